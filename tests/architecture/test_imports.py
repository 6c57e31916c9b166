"""Nothing heavy is imported before it is needed, and the files are the registry."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipadapt.core.api.registry import DATASETS, METHODS, MODELS
from clipadapt.core.records.schema import MethodFacts

FRAMEWORKS = (
    "torch", "torchvision", "open_clip", "transformers", "peft", "datasets", "sklearn", "timm", "scipy",
    "pandas", "PIL",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    "code",
    [
        "import clipadapt, textsent",
        "import clipadapt.cli, textsent.cli",
        "from clipadapt.cli import app; from clipadapt.core.cli.streams import run_app\n"
        "try: run_app(app, ['--help'])\nexcept SystemExit: pass",
        "from clipadapt.cli import app; from clipadapt.core.cli.streams import run_app\n"
        "try: run_app(app, ['ls', 'methods'])\nexcept SystemExit: pass",
        "from clipadapt.core.api.registry import METHODS, DATASETS, MODELS\n"
        "METHODS.names(), DATASETS.names(), MODELS.names()",
    ],
)
def test_light_things_load_no_framework(code: str) -> None:
    check = f"{code}\nimport sys, json; print(json.dumps([m for m in {FRAMEWORKS!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("package", ["clipadapt", "textsent"])
def test_no_module_is_replaced_in_sys_modules(package: str) -> None:
    """``sys.modules`` is read, never written: no third-party module is replaced while it is imported.

    Only the registry adds modules, under its own names: the files of plug-ins.
    """
    changes = re.compile(
        r"sys\.modules(\[[^]]+\]\s*=[^=]|\.(update|pop|setdefault|clear|popitem)\b|\s*[|]?=[^=])"
        r"|del\s+sys\.modules|import_?hook|meta_path"
    )
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in (ROOT / package).rglob("*.py")
        if path.name != "registry.py"
        for match in changes.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_every_file_in_the_folders_is_registered_under_its_own_name() -> None:
    for registry, folder in ((METHODS, "methods"), (DATASETS, "datasets"), (MODELS, "models")):
        want = {
            f"{track}/{path.stem}"
            for track, package in (("clip", "clipadapt"), ("text", "textsent"))
            for path in (ROOT / package / folder).glob("[!_]*.py")
        }
        assert set(registry.names()) == want


@pytest.mark.parametrize("registry", [METHODS, DATASETS, MODELS], ids=lambda r: r.kind)
def test_no_registered_name_is_written_in_the_kernel(registry) -> None:
    kernel = "\n".join(p.read_text() for p in (ROOT / "clipadapt" / "core").rglob("*.py"))
    code = "\n".join(
        line
        for line in kernel.splitlines()
        if not line.strip().startswith(("#", '"', "hint", "``"))
    )

    for name in registry.names():
        assert f'== "{name}"' not in code
        assert f'"{name}":' not in code


@pytest.mark.parametrize("package", ["clipadapt", "textsent"])
def test_methods_do_not_import_one_another(package: str) -> None:
    """What two methods share is in a helper, a module whose name begins with an underscore."""
    folder = ROOT / package / "methods"
    methods = {f"{package}.methods.{path.stem}" for path in folder.glob("[!_]*.py")}
    for path in folder.glob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: imports are absolute"
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}

        assert not imported & methods, f"{path} imports a method"


def test_the_kernel_reads_and_names_no_setting_of_a_method() -> None:
    """What a row needs from a method's settings is said by the method and recorded: ``MethodFacts``."""
    facts = "|".join(MethodFacts.model_fields)
    key = re.compile(rf"\bmethod\.(?!(?:{facts})\b)[a-z_]+")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {match[0]}"
        for room in ("cli", "records", "report", "runs", "data", "experiments", "scoring")
        for path in (ROOT / "clipadapt/core" / room).rglob("*.py")
        for node in _texts(ast.parse(path.read_text(encoding="utf-8")))
        for match in key.finditer(node.value)
    ]
    assert found == []


def _texts(tree: ast.Module) -> Iterator[Any]:
    """Yield the strings of a module that are not docstrings."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node
