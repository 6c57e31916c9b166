"""Full disk: optional files are skipped with one warning; required ones are one error and no attempt is recorded."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil

import pytest

from clipadapt.core.features import segment, space
from clipadapt.core.files import atomic as _files
from clipadapt.core.records import run_store as records
from clipadapt.core.runs import record
from clipadapt.methods import _training

resource = pytest.importorskip("resource")

FULL = OSError(errno.ENOSPC, "No space left on device")
IMAGES = ("data.name=synthetic:3x6", "threads=1", "seeds=[1]")


def full(*_, **__):
    raise FULL


def words(*settings):
    return [w for s in settings for w in ("--set", s)]


@contextlib.contextmanager
def no_file_above(size: int):
    """Make the system refuse to write files above a size, like a full disk or a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (records, "atomic_directory"),
        (record, "scratch_folder"),
        (shutil, "copytree"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_record_that_cannot_be_written_is_one_error_and_no_attempt(
    cli, tiny_clip, tmp_path, monkeypatch, module, name
):
    out = tmp_path / "runs"
    command = ["run", "zero_shot", *words(f"model.name={tiny_clip}", *IMAGES), "--out", out]
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            result = cli(*command)
        assert result.code == 2, result.err
        assert "No space left on device" in result.err
        assert "hint: free some space" in result.err
        assert "Traceback" not in result.err
        assert [p for p in out.rglob("*") if p.is_file()] == []

    result = cli(*command, "--json")

    assert result.code == 0, result.err
    assert json.loads(result.out)["records"][0]["attempt"] == 1


def test_a_full_cache_disk_is_one_warning(cli, tiny_clip, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(segment, "atomic_file", full)
    monkeypatch.setattr(space, "write_json", full)
    write = _files.atomic_file

    def no_cache(path):
        return full() if (tmp_path / "cache") in path.parents else write(path)

    monkeypatch.setattr(_files, "atomic_file", no_cache)
    command = ["run", "zero_shot", *words(f"model.name={tiny_clip}", *IMAGES)]

    result = cli(*command, "--out", tmp_path / "runs", "--json")

    assert result.code == 0, result.err
    warned = [r.getMessage() for r in caplog.records if "No space left" in r.getMessage()]
    assert len(warned) == 1
    assert "CLIPADAPT_CACHE" in warned[0]


def largest(folder) -> int:
    return max(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def predictions(folder) -> bytes:
    (path,) = folder.rglob("predictions.npz")
    return path.read_bytes()


def test_an_image_fit_without_room_for_its_checkpoint_gives_equal_predictions(
    cli, tiny_clip, tmp_path, monkeypatch, every_checkpoint
):
    sizes: list[int] = []
    write = _training.write_bytes
    monkeypatch.setattr(
        _training, "write_bytes", lambda p, raw: (sizes.append(len(raw)), write(p, raw))
    )
    few = ("data.shots=4", "method.epochs=2", "method.warmup_steps=0")
    settings = words(f"model.name={tiny_clip}", *IMAGES, *few)
    command = ["run", "full_finetune-quick", *settings]
    result = cli(*command, "--out", tmp_path / "whole")
    assert result.code == 0, result.err
    limit = largest(tmp_path / "whole") + 100
    assert max(sizes) > limit

    with no_file_above(limit):
        result = cli(*command, "--out", tmp_path / "full")

    assert result.code == 0, result.err
    assert result.err.count("cannot write the checkpoint") == 1
    assert "File too large" in result.err
    assert predictions(tmp_path / "full") == predictions(tmp_path / "whole")

    with no_file_above(limit // 2):  # the classifier itself
        result = cli(*command, "--out", tmp_path / "fuller")
    assert result.code == 2, result.err
    assert "File too large" in result.err
    assert not list((tmp_path / "fuller").rglob("record.json"))


def test_a_text_fit_without_room_for_its_checkpoints_gives_equal_predictions(
    cli, tiny_texts, tmp_path, every_checkpoint
):
    lines = [
        f"{'good' if i % 2 else 'bad'} film {i},{'pos' if i % 2 else 'neg'}" for i in range(60)
    ]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]))
    settings = words(
        f"model.name={tiny_texts['distilbert']}", f"data.name=csv:{tmp_path / 'texts.csv'}",
        "threads=1", "seeds=[1]", "method.epochs=3", "method.batch_size=16",
        "method.warmup_steps=0.1",
    )  # fmt: skip
    command = ["run", "full_finetune", *settings]
    result = cli(*command, "--out", tmp_path / "whole", program="textsent")
    assert result.code == 0, result.err
    limit = largest(tmp_path / "whole") + 5000

    with no_file_above(limit):
        result = cli(*command, "--out", tmp_path / "full", program="textsent")

    assert result.code == 0, result.err
    assert result.err.count("cannot write the checkpoint") == 1
    assert predictions(tmp_path / "full") == predictions(tmp_path / "whole")


def test_a_summary_and_curves_that_cannot_be_written_do_not_fail_a_sweep(
    cli, tiny_clip, tmp_path, monkeypatch
):
    from clipadapt.core.report import curves

    sweep = {"datasets": ["synthetic:3x6"], "models": [tiny_clip], "methods": ["zero_shot"]}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    monkeypatch.setattr(_files, "write_text", full)
    monkeypatch.setattr(curves, "plot_curves", full)
    result = cli("bench", tmp_path / "sweep.yaml", "--out", tmp_path / "runs")
    assert result.code == 0, result.err
    assert "no summary.md: [Errno 28] No space left on device" in result.err
    assert "no curves: [Errno 28] No space left on device" in result.err
