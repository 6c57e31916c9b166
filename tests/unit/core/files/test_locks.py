"""Locks: they exclude other processes, end with their process, and never block where there are none."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
import threading

import filelock
import pytest

from clipadapt.core.files.locks import locked, remove_unheld, try_lock

HOLD = """
import sys, time
from pathlib import Path
from clipadapt.core.files.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(path, seconds: float) -> subprocess.Popen:
    """Start a process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_free_lock_is_not_waited_for_and_its_file_stays(tmp_path):
    with locked(tmp_path / "new" / "lock") as waited:
        assert not waited
        assert try_lock(tmp_path / "new" / "lock") is None
    assert (tmp_path / "new" / "lock").read_bytes() == b""


def test_another_process_is_waited_for(tmp_path):
    process = hold(tmp_path / "lock", 0.5)
    assert try_lock(tmp_path / "lock") is None
    with locked(tmp_path / "lock") as waited:
        assert waited
    process.wait()


def test_a_killed_process_holds_nothing(tmp_path):
    process = hold(tmp_path / "lock", 60)
    process.kill()
    process.wait()
    with locked(tmp_path / "lock") as waited:
        assert not waited


def test_the_holder_may_remove_the_file_while_others_wait(tmp_path):
    path, held = tmp_path / "lock", []

    def work() -> None:
        with locked(path):
            held.append(None)
            assert len(held) == 1
            path.unlink()
            held.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not path.exists()


def test_only_files_that_nobody_holds_are_removed(tmp_path):
    (tmp_path / "free").touch()
    process = hold(tmp_path / "held", 60)
    assert remove_unheld(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["held"]
    process.kill()
    process.wait()
    assert remove_unheld(tmp_path / "nowhere") == 0


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_nothing_is_held_and_nothing_blocks(tmp_path, monkeypatch, code):
    def unsupported(lock, **kwargs):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(filelock.FileLock, "acquire", unsupported)
    with locked(tmp_path / "lock") as waited:
        assert not waited
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    lock.release()


def test_a_file_that_cannot_be_created_is_an_error_of_try_lock(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        try_lock(tmp_path / "file" / "lock")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_every_user_of_a_shared_folder_can_open_a_lock(tmp_path):
    before = os.umask(0o022)
    try:
        lock = try_lock(tmp_path / "fit.lock")
        assert lock is not None
        assert stat.S_IMODE((tmp_path / "fit.lock").stat().st_mode) == 0o666
        lock.release()
    finally:
        os.umask(before)


def test_a_file_system_without_locks_is_warned_about_once(tmp_path, monkeypatch, caplog):
    def unsupported(self, *args, **kwargs):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(filelock.FileLock, "acquire", unsupported)
    with caplog.at_level(logging.WARNING):
        assert try_lock(tmp_path / "a.lock") is not None
        assert try_lock(tmp_path / "b.lock") is not None

    assert [r.getMessage().partition(" has no locks")[1] for r in caplog.records] == [
        " has no locks"
    ]
