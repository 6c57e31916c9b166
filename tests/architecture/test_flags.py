"""Every flag that the code can set is registered with a meaning; the flags are found in the source code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipadapt.core.api.context import Services
from clipadapt.core.api.flags import FLAGS, Flag, register, registered
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.report.references import UNLIKE

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for package in ("clipadapt", "textsent") for p in (ROOT / package).rglob("*.py"))
FLAG = re.compile(r"[a-z]+(_[a-z]+)*")
SPLITS = ("train", "val", "test")


def strings(node: ast.AST, constants: dict[str, str]) -> Iterator[str]:
    """Yield the texts an expression may give, conditions aside; ``"evaluated_on_" + split`` gives one per split."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name) if name in constants:
            yield constants[name]
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Add()) if text.endswith("_"):
            yield from (text + split for split in SPLITS)
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) if text.endswith("_"):
            yield from (text + split for split in SPLITS)
        case ast.IfExp(body=body, orelse=orelse):
            yield from strings(body, constants)
            yield from strings(orelse, constants)
        case ast.Tuple(elts=elts) | ast.List(elts=elts) | ast.Set(elts=elts):
            for element in elts:
                yield from strings(element, constants)
        case ast.Starred(value=value) | ast.GeneratorExp(elt=value) | ast.ListComp(elt=value):
            yield from strings(value, constants)
        case ast.BinOp(left=left, right=right):
            yield from strings(left, constants)
            yield from strings(right, constants)
        case ast.Call(func=ast.Name(id="tuple" | "list"), args=args):
            for argument in args:
                yield from strings(argument, constants)


def named(node: ast.AST) -> str:
    """Return the last part of a name: ``flags`` of ``self.flags``."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def flags_in(source: str) -> set[str]:
    """Return the flags that a module may set."""
    tree = ast.parse(source)
    constants = {
        named(target): node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    found: set[str] = set()

    def take(node: ast.AST | None) -> None:
        if node is not None:
            found.update(strings(node, constants))

    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=owner, attr="append" | "extend" | "insert"), args=args
            ):
                if named(owner).endswith("flags"):
                    for argument in args:
                        take(argument)
            # Report.add("flag", sentence), Services.report("flag", why)
            case ast.Call(func=ast.Attribute(attr="add" | "report"), args=[first, _]):
                take(first)
            case ast.keyword(arg="flags", value=value):
                take(value)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    if named(target).endswith("flags"):
                        take(value)
            case (
                ast.AnnAssign(target=target, value=value)
                | ast.AugAssign(target=target, value=value)
            ):
                if named(target).endswith("flags"):
                    take(value)
            case ast.FunctionDef() if "flag" in (ast.get_docstring(node) or "").lower():
                for inner in ast.walk(node):
                    match inner:
                        case ast.Return(value=value) | ast.Yield(value=value):
                            take(value)
                        case ast.Assign(targets=[ast.Subscript(slice=key)]):
                            take(key)
                        case ast.Call(func=ast.Attribute(attr="append"), args=[flag]):
                            take(flag)
    return {flag for flag in found if FLAG.fullmatch(flag) and len(flag) > 2}


def test_every_flag_in_the_code_is_registered() -> None:
    found = {path: flags_in(path.read_text(encoding="utf-8")) for path in SOURCES}
    known = set().union(*found.values())

    assert {"leakage", "collapse", "evaluated_on_val", "evaluated_on_train"} <= known
    assert len(known) >= 15
    without = {
        str(path.relative_to(ROOT)): sorted(flags - FLAGS.keys())
        for path, flags in found.items()
        if flags - FLAGS.keys()
    }
    assert without == {}
    assert set(UNLIKE) <= FLAGS.keys()


def test_every_flag_has_a_meaning() -> None:
    assert all(name == flag.name and flag.meaning.strip() for name, flag in FLAGS.items())
    with pytest.raises(ValueError, match="no meaning"):
        register("new_flag", " ")
    with pytest.raises(ValueError, match="already registered"):
        register("leakage", "something else")


def test_an_unregistered_flag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    services = Services(FeatureCache(enabled=False))
    with pytest.raises(ValueError, match="unregistered flag new_flag"):
        services.report("new_flag", "why")
    with pytest.raises(ValueError, match="unregistered flag new_flag"):
        registered(("leakage", "new_flag"))
    assert registered(["nan", "leakage", "nan"]) == ("nan", "leakage")

    monkeypatch.setitem(FLAGS, "new_flag", Flag("new_flag", "of a plug-in", "note"))
    services.report("new_flag", "why")
    assert services.flags == {"new_flag": "why"}


@pytest.mark.parametrize(
    "source",
    [
        "flags.append('new_flag')",
        "self.flags += ['new_flag']",
        "flags = ('new_flag',) if x else ()",
        "Set(flags=(*own, *(('new_flag',) if x else ())))",
        "FLAG = 'new_flag'\nrun.flags.append(FLAG)",
        "ctx.services.report('new_flag', f'{n} of {m}')",
        "report.add('new_flag', 'a sentence')",
        "def f():\n    '''Return the flags of a run.'''\n    found['new_flag'] = 'why'\n    return found",
        "def f():\n    '''Return the flags of a run.'''\n    found.append('new_flag')",
        "def f():\n    '''Return the flag ``new_flag``.'''\n    return ('new_flag',) if x else ()",
    ],
)
def test_each_way_to_set_one_is_seen(source: str) -> None:
    assert flags_in(source) == {"new_flag"}
