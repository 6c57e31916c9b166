"""What every test shares: no network, a cache of its own, and where the real data lie."""

from __future__ import annotations

import os

# Before any hub library is imported: an uncached name then fails at once instead of waiting for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import contextlib
import functools
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clipadapt.core.files import pacing

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, then the larger files, so that two processes end at the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    size = Counter(item.path for item in items)
    items.sort(key=lambda item: (slow[item.path] == 0, -size[item.path], str(item.path)))


def pytest_collection_finish() -> None:
    """Exclude what is imported by now from garbage collection, which would scan half a million objects each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the whole session, so that nothing of the user's is read or written."""
    folder = tmp_path_factory.mktemp("cache")
    if "PYTEST_XDIST_WORKER" in os.environ:  # the model 'stitched' is built once for all processes
        models = tmp_path_factory.getbasetemp().parent / "models"
        models.mkdir(exist_ok=True)
        (folder / "models").symlink_to(models)
    os.environ["CLIPADAPT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint_always() -> Callable[[], Any]:
    """Make fits write a checkpoint at every occasion, whatever it costs."""

    @contextlib.contextmanager
    def always() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pacing, "SECONDS", 0.0)
            patch.setattr(pacing, "SHARE", 1e12)
            yield

    return always


@pytest.fixture
def every_checkpoint(checkpoint_always: Callable[[], Any]) -> Iterator[None]:
    """Make the fits of a test write a checkpoint at every occasion."""
    with checkpoint_always():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data for trials; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("CLIPADAPT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set CLIPADAPT_SHARED")
    return folder


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything on stderr with line breaks folded, as rich wraps usage errors in boxes."""
        return " ".join(self.err.replace("│", " ").split())


@functools.cache
def command(program: str) -> Any:
    """Return the parser of a program; typer would build one at each call, which takes longer than most commands."""
    from typer.main import get_command

    import clipadapt.cli
    import textsent.cli

    return get_command({"clipadapt": clipadapt.cli, "textsent": textsent.cli}[program].app)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in this process: ``cli("ls", "methods")``, or ``cli(..., program="textsent")``."""

    def call(*arguments: object, program: str = "clipadapt") -> Result:
        from clipadapt.core.cli.streams import run_app

        capsys.readouterr()
        code = 0
        try:
            run_app(command(program), [str(a) for a in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def console() -> Callable[[str], str]:
    """Path of a console script of this environment."""
    return lambda name: str(Path(sys.executable).parent / name)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names of tiny random models, one per family.

    ViT CLIP, a custom text tower, convolutions + BERT, SigLIP, CoCa, and MobileCLIP: a projection inside the image
    trunk and a text tower without mask.
    """
    from tests.unit.models import tiny

    root = tmp_path_factory.mktemp("tiny")
    families = ("clip", "custom", "hf", "siglip", "coca", "mobile")
    return {f: f"local-dir:{tiny.write(root / f, f)}" for f in families}


@pytest.fixture(scope="session")
def tiny_clip(tiny_models: dict[str, str]) -> str:
    """Name of the tiny random ViT CLIP."""
    return tiny_models["clip"]


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names of tiny random text encoders, one per family."""
    from tests.unit.textsent.models import tiny

    root = tmp_path_factory.mktemp("tiny-text")
    return {f: str(tiny.write(root / f, f)) for f in ("distilbert", "bert", "roberta")}
