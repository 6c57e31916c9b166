from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files.atomic import (
    TEMPORARY_PREFIX,
    atomic_directory,
    atomic_file,
    files_below,
    remove_leftovers,
    scratch_folder,
    temporary_beside,
    write_bytes,
    write_json,
    write_text,
)
from clipadapt.core.files.checksums import sha256_file
from clipadapt.core.files.folders import cache_dir, check_writable
from clipadapt.core.files.locks import locked


def _names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_writes_replace_and_leave_nothing_behind(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    write_text(path.with_name("text"), "naïve\r\n")
    write_json(path.with_name("json"), {"name": "é\udcff", "value": 0.1})

    assert path.read_bytes() == b"two"
    assert path.with_name("text").read_bytes() == "naïve\r\n".encode()
    assert json.loads(path.with_name("json").read_bytes()) == {"name": "é\udcff", "value": 0.1}
    assert _names(path.parent) == ["file.bin", "json", "text"]


def test_json_rejects_values_that_json_cannot_express(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert _names(tmp_path) == []


def test_an_error_keeps_the_old_content(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def interrupted():
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


def test_the_longest_possible_name_can_be_written(tmp_path):
    write_bytes(tmp_path / ("n" * 255), b"x")
    assert _names(tmp_path) == ["n" * 255]


def test_a_directory_appears_complete_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "a" / "run"
    with atomic_directory(path) as new:
        (new / "one").write_text("1")
        assert new.name.startswith(TEMPORARY_PREFIX)
        assert not path.exists()
    with atomic_directory(path) as new:
        (new / "sub").mkdir()
        (new / "sub" / "two").write_text("2")

    assert _names(path) == ["sub"]
    assert _names(path.parent) == ["run"]


def test_a_directory_does_not_appear_if_writing_fails(tmp_path):
    def fails():
        with atomic_directory(tmp_path / "run") as new:
            (new / "one").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert _names(tmp_path) == []


def _ended() -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process


def test_leftovers_of_dead_processes_are_removed_and_those_of_running_ones_kept(tmp_path):
    mine = temporary_beside(tmp_path / "x")
    dead = Path(str(mine).replace(str(os.getpid()), str(_ended().pid)))
    reused = Path(re.sub(r"-\d+-([0-9a-f]{16})$", r"-1-\1", str(mine)))  # same id, another process
    pid, _place, rest = mine.name.removeprefix(TEMPORARY_PREFIX).split("-", 2)
    elsewhere, elsewhere_old = (
        tmp_path / f"{TEMPORARY_PREFIX}{pid}-{'0' * 8}-{i}{rest[1:]}" for i in (1, 2)
    )
    earlier = tmp_path / f"{TEMPORARY_PREFIX}{pid}-{'0' * 16}"  # as earlier versions wrote it
    others = [tmp_path / name for name in ("x", ".tmp-notes", "clipadapt-runs")]
    everything = (mine, dead, reused, elsewhere, elsewhere_old, earlier, *others)
    for path in everything:
        path.mkdir()
        (path / "part").write_text("")
    days_ago = time.time() - 3 * 24 * 3600
    for path in (mine, elsewhere_old, earlier, *others):
        os.utime(path, (days_ago, days_ago))

    assert remove_leftovers(tmp_path) == 4
    assert {p for p in everything if p.exists()} == {mine, elsewhere, *others}
    assert remove_leftovers(tmp_path / "missing") == 0


def test_a_scratch_folder_is_removed_after_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os\n"
        "from clipadapt.core.files.atomic import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'big').write_text('x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert len(_names(tmp_path)) == 1
    with scratch_folder() as folder:
        assert _names(tmp_path) == [folder.name]
        assert folder.stat().st_mode & 0o77 == 0
    assert _names(tmp_path) == []


def test_other_users_can_read_a_directory_with_files_readable_only_by_their_owner(tmp_path):
    with atomic_directory(tmp_path / "model") as new:
        (new / "weights").touch(mode=0o600)
    folder = tmp_path / "model"
    assert (folder / "weights").stat().st_mode & 0o666 == folder.stat().st_mode & 0o666


def test_a_lock_whose_folder_cannot_be_created_does_not_block():
    with locked(Path("/proc/nowhere/cache/locks/x")) as waited:
        assert not waited


def test_check_writable_names_folder_reason_and_next_step(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert _names(tmp_path) == []
    (tmp_path / "there").mkdir()
    check_writable(tmp_path / "there")
    assert _names(tmp_path) == ["there"]

    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError) as caught:
        check_writable(tmp_path / "file" / "runs")
    assert str(caught.value) == (
        f"cannot write to the folder '{tmp_path}/file/runs': Not a directory\n"
        "  hint: choose a writable folder with --out DIR"
    )


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("CLIPADAPT_CACHE", "~/features")
    assert cache_dir() == Path.home() / "features"
    monkeypatch.delenv("CLIPADAPT_CACHE")
    assert cache_dir().name == "clipadapt"


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_files_below_survives_folders_that_vanish_while_it_lists(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / "x.txt").write_text("x")

    found = []
    for path in files_below(tmp_path, "x.txt"):
        found.append(path)
        for other in tmp_path.iterdir():
            if other.name != path.parts[-3]:
                shutil.rmtree(other)

    assert len(found) == 1
    assert list(files_below(tmp_path / "nowhere")) == []
