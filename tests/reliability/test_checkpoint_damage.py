"""Damaged checkpoints of both tracks are reported and skipped, and the fit gives the same result."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from clipadapt.methods import _training
from tests.unit.methods.test_resume import toy
from tests.unit.textsent.test_methods_trained import TEST, Bars, Killed, context, fit
from tests.unit.textsent.tiny import TinyEncoder, make_task
from textsent.methods import _checkpoints, _trainer

pytestmark = pytest.mark.slow


CASES = 20
SETTINGS = {"epochs": 4, "lr": 1e-3}
METHODS = ("full_finetune", "lora")


class Notes(Bars):
    """Keeps notes."""

    def __init__(self, stop_after=None):
        super().__init__(stop_after)
        self.notes: list[str] = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module", autouse=True)
def a_checkpoint_at_every_occasion(checkpoint_always):
    with checkpoint_always():
        yield


@pytest.fixture(scope="module")
def encoder():
    return TinyEncoder()


@pytest.fixture(scope="module", params=METHODS)
def killed(request, encoder, tmp_path_factory, a_checkpoint_at_every_occasion):
    """Kill a fit in its last epoch; return method, full scores, work folder, copied checkpoints, key."""
    name, root = request.param, tmp_path_factory.mktemp("checkpoints")
    whole = fit(name, encoder, make_task(44), context(root / "whole"), **SETTINGS)
    with pytest.raises(Killed):
        fit(
            name,
            encoder,
            make_task(44),
            context(root / "work", progress=Bars(19)),
            **SETTINGS,
        )
    shutil.copytree(root / "work", root / "pristine")
    newest = max((root / "work" / "trainer").glob("checkpoint-*"), key=_step)
    key = json.loads((newest / _checkpoints.CHECKSUMS).read_text())["key"]
    return name, whole.predict_scores(TEST), root / "work", root / "pristine", key


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def restored(work: Path, pristine: Path) -> Path:
    """Restore the checkpoints; return the newest."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(pristine, work)
    return max((work / "trainer").glob("checkpoint-*"), key=_step)


def damages(raw: bytes, rng: random.Random) -> list[bytes]:
    """Return copies with a byte flipped, then truncated ones."""
    out = []
    for _ in range(CASES):
        flipped = bytearray(raw)
        flipped[rng.randrange(len(raw))] ^= rng.randrange(1, 256)
        out.append(bytes(flipped))
    return out + [raw[: rng.randrange(len(raw))] for _ in range(CASES)]


def test_a_damaged_text_checkpoint_is_reported_and_skipped(killed):
    _, _, work, pristine, key = killed
    rng = random.Random(0)
    newest = restored(work, pristine)
    names = sorted(p.name for p in newest.iterdir())
    assert {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < set(names)
    assert {"training_args.bin", "checksums.json"} < set(names)
    notes: list[str] = []
    assert _checkpoints.newest_valid(newest.parent, key, notes.append) == newest
    assert notes == []
    for name in names:
        for damaged in damages((pristine / "trainer" / newest.name / name).read_bytes(), rng):
            newest = restored(work, pristine)
            (newest / name).write_bytes(damaged)
            notes = []
            found = _checkpoints.newest_valid(newest.parent, key, notes.append)
            assert found != newest
            assert not newest.exists()
            (note,) = notes
            assert f"{newest} ({name})" in note
            assert note.endswith(
                "from the beginning" if found is None else f"resumes from {found.name}"
            )


@pytest.mark.parametrize(
    "file",
    ["weights", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "checksums.json", "all"],
)  # fmt: skip
def test_a_text_fit_gives_the_same_result_after_damage(killed, encoder, file):
    name, expected, work, pristine, _ = killed
    newest = restored(work, pristine)
    every = [newest] if file != "all" else list(newest.parent.glob("checkpoint-*"))
    for checkpoint in every:
        weights = next(n for n in _checkpoints.WEIGHTS if (checkpoint / n).exists())
        path = checkpoint / (weights if file in {"weights", "all"} else file)
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    bars = Notes()
    got = fit(name, encoder, make_task(44), context(work, progress=bars), **SETTINGS)
    np.testing.assert_array_equal(got.predict_scores(TEST), expected)
    assert len(bars.notes) == 1
    assert "are ignored" in bars.notes[0]


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", _checkpoints.PICKLED)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_hostile_pickle_runs_nothing_whatever_the_checksums_say(
    killed, encoder, tmp_path, file, sealed
):
    name, expected, work, pristine, key = killed
    newest = restored(work, pristine)
    torch.save({"state": Hostile(tmp_path / "ran")}, newest / file)
    if sealed:
        (newest / _checkpoints.CHECKSUMS).unlink()
        _checkpoints.seal(newest, key)
    bars = Notes()
    got = fit(name, encoder, make_task(44), context(work, progress=bars), **SETTINGS)
    assert not (tmp_path / "ran").exists()
    np.testing.assert_array_equal(got.predict_scores(TEST), expected)
    assert len(bars.notes) == 1


def test_an_added_file_is_damage_too(killed):
    _, _, work, pristine, key = killed
    newest = restored(work, pristine)
    torch.save({}, newest / "pytorch_model.bin")
    notes: list[str] = []
    assert _checkpoints.newest_valid(newest.parent, key, notes.append) != newest
    assert "pytorch_model.bin" in notes[0]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("keep", "failing", "error"),
    [
        ("best", {1}, FULL),
        ("best", {2, 3}, FULL),
        ("best", {1, 2, 3, 4}, FULL),
        ("last", {2, 3}, FULL),
        ("best", {2, 3, 4}, RuntimeError("[enforce fail] unexpected pos 64 vs 0")),
        ("best", {2, 3, 4}, SafetensorError("No space left on device")),
    ],
    ids=str,
)
def test_a_text_checkpoint_that_cannot_be_written_changes_nothing(
    encoder, tmp_path, monkeypatch, keep, failing, error
):
    settings = {**SETTINGS, "keep": keep}
    task = make_task(44)
    whole = fit("full_finetune", encoder, task, context(tmp_path / "whole"), **settings)
    count, save = [0], _trainer.Trainer._save_rng_state

    def full(self, folder):
        count[0] += 1
        if count[0] in failing:
            raise error
        save(self, folder)

    monkeypatch.setattr(_trainer.Trainer, "_save_rng_state", full)
    bars = Notes()
    ctx = context(tmp_path / "work", progress=bars)
    got = fit("full_finetune", encoder, task, ctx, **settings)

    np.testing.assert_array_equal(got.predict_scores(TEST), whole.predict_scores(TEST))
    assert got.selection == whole.selection
    (note,) = bars.notes
    assert "cannot write the checkpoint" in note
    for left in (tmp_path / "work" / "trainer").glob("checkpoint-*"):
        assert (left / _checkpoints.CHECKSUMS).exists()


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_damaged_image_checkpoint_is_reported_and_skipped(tmp_path, capsys, monkeypatch, keep):
    notes: list[str] = []
    monkeypatch.setattr("clipadapt.core.api.progress.Silent.note", lambda _, m: notes.append(m))
    expected = toy(tmp_path / "fresh", keep=keep)
    toy(tmp_path / "w", after=4, keep=keep)
    (path,) = (tmp_path / "w").iterdir()
    pristine = path.read_bytes()
    for damaged in damages(pristine, random.Random(1)):
        path.write_bytes(damaged)
        notes.clear()
        assert toy(tmp_path / "w", keep=keep) == expected
        assert len(notes) == 1, notes
        assert f"the checkpoint {path} is damaged and ignored" in notes[0]
    path.write_bytes(pristine)
    assert toy(tmp_path / "w", keep=keep) == (expected[0], expected[1] - 4)


def test_a_changed_dtype_is_damage(tmp_path):
    expected = toy(tmp_path / "fresh")
    toy(tmp_path / "w", after=4)
    (path,) = (tmp_path / "w").iterdir()
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    assert toy(tmp_path / "w") == expected


def test_an_image_checkpoint_that_cannot_be_written_is_one_warning(tmp_path, monkeypatch):
    notes: list[str] = []
    monkeypatch.setattr("clipadapt.core.api.progress.Silent.note", lambda _, m: notes.append(m))
    expected = toy(tmp_path / "fresh")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_training, "write_bytes", full)
    notes.clear()
    assert toy(tmp_path / "w") == expected
    (note,) = notes
    assert "cannot write the checkpoint" in note
    assert "No space left on device" in note
