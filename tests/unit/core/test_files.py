from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from clipadapt.core._files import (
    TEMPORARY_PREFIX,
    atomic_directory,
    atomic_file,
    cache_dir,
    check_writable,
    remove_leftovers,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)
from clipadapt.core.errors import RecordError


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


def test_json_refuses_what_is_no_json(tmp_path):
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


def test_a_name_of_the_longest_length_can_be_written(tmp_path):
    write_bytes(tmp_path / ("n" * 255), b"x")
    assert _names(tmp_path) == ["n" * 255]


def test_a_directory_appears_whole_and_replaces_the_old_one(tmp_path):
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


def test_a_directory_whose_making_fails_does_not_appear(tmp_path):
    def fails():
        with atomic_directory(tmp_path / "run") as new:
            (new / "one").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert _names(tmp_path) == []


def test_only_old_leftovers_are_removed(tmp_path):
    old, young, other = (
        tmp_path / name for name in (f"{TEMPORARY_PREFIX}1", f"{TEMPORARY_PREFIX}2", "x")
    )
    old.mkdir()
    (old / "part").write_text("")
    young.write_text("")
    other.write_text("")
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    os.utime(other, (hours_ago, hours_ago))

    assert remove_leftovers(tmp_path) == 1
    assert _names(tmp_path) == [young.name, "x"]
    assert remove_leftovers(tmp_path / "missing") == 0


def test_check_writable_names_folder_reason_and_way_out(tmp_path):
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
        "  hint: name a folder that can be written with --out DIR"
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
