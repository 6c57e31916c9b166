"""Flipped bits and truncations in every kind of file that is read back are detected, without a traceback.

A kind is a function that makes its file below a folder and returns the file and a function that reads it as a command
would. A damaged file is either rejected with a message that names it, or gives the same result as an undamaged file
(a cache entry is recomputed). Add a kind by adding a function to :data:`KINDS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.api.features import Space
from clipadapt.core.api.registry import DATASETS
from clipadapt.core.data import leakage
from clipadapt.core.data.sampling import Manifest
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.records.history import read_epochs
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.inference import inspect_run, load_run
from tests.unit.core.records.test_records import make_failure, make_predictions, make_record

TIMES = 20

Made = tuple[Path, Callable[[], Any]]


def saved(root: Path) -> Path:
    """Save a run with a history, a draw, a classifier and an earlier attempt; return its folder."""
    store, made = RunStore(root / "runs"), root / "made"
    made.mkdir(parents=True)
    (made / "weights.bin").write_bytes(random.Random(0).randbytes(500))
    manifest = Manifest.create(
        dataset="folder:photo", dataset_sha256="d1", seed=1, shots=2, train=["a", "b\udcff"], val=["c"]
    )  # fmt: skip
    store.save_failure(make_failure())
    record = store.save(
        make_record(per_class={"classnames": list("abcd")}, flags=["collapse"]),
        make_predictions(),
        history=[{"epoch": e, "train_loss": 1 / e} for e in (1, 2, 3)],
        classifier_dir=made,
        manifest=manifest,
    )
    return store.run_dir(record)


def record(root: Path) -> Made:
    folder = saved(root)
    return folder / "record.json", lambda: RunStore.load(folder)


def predictions(root: Path) -> Made:
    folder = saved(root)
    return folder / "predictions.npz", lambda: RunStore.load_predictions(folder).sha256()


def history(root: Path) -> Made:
    folder = saved(root)
    return folder / "history.jsonl", lambda: read_epochs(folder, RunStore.load(folder))


def manifest_of_a_run(root: Path) -> Made:
    folder = saved(root)
    return folder / "manifest.json", lambda: RunStore(root / "runs").damage(folder.name)


def manifest(root: Path) -> Made:
    folder = saved(root)
    return folder / "manifest.json", lambda: Manifest.read(folder / "manifest.json")


def earlier_attempt(root: Path) -> Made:
    folder = saved(root)
    return folder / "attempt-1.json", lambda: RunStore(root / "runs").damage(folder.name)


def classifier_of_a_run(root: Path) -> Made:
    folder = saved(root)
    return folder / "classifier" / "weights.bin", lambda: RunStore(root / "runs").damage(folder.name)  # fmt: skip


def duplicates_found(root: Path) -> Made:
    resolved = DATASETS.resolve("synthetic:3x4", "clip")
    data = resolved.provider(resolved.argument, DatasetOptions())
    look = lambda: leakage.examine(data, "test", data, "test")  # noqa: E731
    look()
    path = leakage._cached(data, ("train", "val"), data, "test")
    return path, look


def features(root: Path) -> Made:
    space = Space("w", "gelu", "output", "p", "fp32", 0, "image")
    keys = np.random.default_rng(0).integers(0, 256, (20, 32), dtype=np.uint8)
    rows = np.arange(160, dtype=np.float32).reshape(20, 8)

    def read() -> list[list[float]]:
        store = FeatureCache(root / "cache")
        return store.get_or_compute(space, keys, lambda i: iter([(i, rows[i])])).rows.tolist()

    read()
    (path,) = (root / "cache" / "features").rglob("*.safetensors")
    return path, read


KINDS: dict[str, Callable[[Path], Made]] = {
    f.__name__: f
    for f in (
        record, predictions, history, manifest, manifest_of_a_run, earlier_attempt, classifier_of_a_run,
        duplicates_found, features,
    )
}  # fmt: skip


def flipped(whole: bytes, number: int) -> bytes:
    """Return the content with one bit flipped, at a different place each time."""
    at = random.Random(number).randrange(8 * len(whole))
    raw = bytearray(whole)
    raw[at // 8] ^= 1 << at % 8
    return bytes(raw)


def cut(whole: bytes, number: int) -> bytes:
    """Return the content without its end: empty, all but the last byte, or something in between."""
    return whole[: number * (len(whole) - 1) // (TIMES - 1)]


def survives(path: Path, read: Callable[[], Any], harm: Callable[[bytes, int], bytes]) -> None:
    """Damage a file repeatedly; reading it must fail with its name, or give the right result."""
    whole = path.read_bytes()
    expected = read()
    for number in range(TIMES):
        path.write_bytes(harm(whole, number))
        try:
            found = read()
        except ClipAdaptError as err:
            found = err.problem
        named = isinstance(found, str) and path.name in found and found != expected
        assert named or found == expected, f"{harm.__name__} {number} goes unnoticed"
    path.write_bytes(whole)
    assert read() == expected


@pytest.mark.parametrize("harm", [flipped, cut])
@pytest.mark.parametrize("kind", KINDS)
def test_all_damage_is_detected(kind, harm, tmp_path):
    survives(*KINDS[kind](tmp_path), harm)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tiny_clip):
    """Make a real run with a classifier; return its folder."""
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.session import run_experiments

    out = tmp_path_factory.mktemp("real")
    settings = [f"model.name={tiny_clip}", "data.name=synthetic:3x6", "seeds=[1]"]
    (made,) = run_experiments([config.load(["linear_probe-quick"], settings)], out)
    return RunStore(out).run_dir(made)


@pytest.mark.parametrize("harm", [flipped, cut])
@pytest.mark.parametrize("name", ["classifier.safetensors", "classifier.json"])
def test_a_damaged_classifier_is_never_loaded(fitted, name, harm):
    path = fitted / "classifier" / name
    for read in (load_run, inspect_run):
        survives(path, lambda read=read: (read(fitted), path.read_bytes())[1], harm)
