"""Claims: one holder at a time, and the operating system releases those of a process that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clipadapt.core.api.errors import RecordError
from clipadapt.core.runs.claims import FOLDER, Claims

HOLD = """
import sys, time
from pathlib import Path
from clipadapt.core.runs.claims import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.acquire("fit"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the claim ``fit``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()


def test_one_holder_at_a_time(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.acquire("fit")
        assert not one.acquire("fit")
        assert not other.acquire("fit")
        assert other.holder("fit") == f"process {os.getpid()} on {socket.gethostname()}"
        one.release("fit")
        assert other.acquire("fit")
        assert other.acquire("another")
    assert not (tmp_path / FOLDER).exists()


def test_a_killed_process_gives_way_at_once(tmp_path, other_process):
    with Claims(tmp_path) as claims:
        assert not claims.acquire("fit")
        assert claims.holder("fit") == f"process {other_process.pid} on {socket.gethostname()}"
        other_process.kill()
        # It has ended, but nobody has fetched its exit status: a zombie.
        os.waitid(os.P_PID, other_process.pid, os.WEXITED | os.WNOWAIT)
        assert claims.acquire("fit")
        assert claims.holder("fit") == f"process {os.getpid()} on {socket.gethostname()}"
    assert not (tmp_path / FOLDER).exists()


def test_a_stopped_process_keeps_its_claim(tmp_path, other_process):
    other_process.send_signal(signal.SIGSTOP)
    with Claims(tmp_path) as claims:
        assert not claims.acquire("fit")
        claims.tidy()
    assert (tmp_path / FOLDER / "fit.lock").exists()
    assert Claims(tmp_path).holder("fit").startswith("process")


def test_files_of_dead_processes_are_removed(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    with Claims(tmp_path) as claims:
        assert claims.acquire("mine")
        claims.tidy()
        assert sorted(p.name for p in claims.folder.iterdir()) == ["mine.lock", "mine.txt"]
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "loop"])
@pytest.mark.parametrize("name", ["fit", ".lock", "fit.txt", ".tmp-1-0123456789abcdef"])
def test_other_files_do_not_block_and_are_removed(tmp_path, kind, name):
    """Such as the claims of versions that had heartbeats."""
    path = tmp_path / FOLDER / name
    path.parent.mkdir()
    {
        "file": lambda: path.write_text('{"host": "a", "pid": 1}'),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
    }[kind]()
    with Claims(tmp_path) as claims:
        assert claims.holder("fit") == "another process"
        assert name == "fit.txt" or claims.acquire("fit")
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("text", ["", "\x1b[31m", "process 1 on \x1b[31m", "process 1 on a\nb"])
def test_a_damaged_note_names_nobody(tmp_path, text):
    with Claims(tmp_path) as claims:
        assert claims.acquire("fit")
        (claims.folder / "fit.txt").write_text(text)
        assert claims.holder("fit") == "another process"


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / FOLDER).write_text("a file in the way")
    with pytest.raises(RecordError, match="cannot claim a run") as caught:
        Claims(tmp_path).acquire("fit")
    assert f"remove the file '{tmp_path / FOLDER}'" in str(caught.value)


def _grab(root: str, gate, wins) -> None:
    with Claims(Path(root)) as claims:
        gate.wait()
        for i in range(40):
            if claims.acquire(f"fit{i}"):
                wins.put((i, os.getpid()))
        gate.wait()  # no process gives back before every one has asked


def test_of_four_processes_one_gets_each_claim(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    gate, wins = spawn.Barrier(4), spawn.Queue()
    processes = [spawn.Process(target=_grab, args=(str(tmp_path), gate, wins)) for _ in range(4)]
    for process in processes:
        process.start()
    got = [wins.get(timeout=60) for _ in range(40)]
    for process in processes:
        process.join()
    assert sorted(i for i, _ in got) == list(range(40))
    assert wins.empty()
    assert not (tmp_path / FOLDER).exists()


def _take_turns(root: str, n: int) -> None:
    counter = Path(root, "counter")
    for _ in range(n):
        claims = Claims(Path(root))
        while not claims.acquire("fit"):
            pass
        counter.write_text(str(int(counter.read_text()) + 1))
        claims.close()


@pytest.mark.slow
def test_claims_exclude_each_other_while_their_files_come_and_go(tmp_path):
    (tmp_path / "counter").write_text("0")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_take_turns, args=(str(tmp_path), 200)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "600"


def test_a_release_that_is_interrupted_is_finished_by_close(tmp_path, monkeypatch):
    def interrupted(path, **kwargs):
        raise KeyboardInterrupt

    claims = Claims(tmp_path)
    assert claims.acquire("fit")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            claims.release("fit")
    claims.close()

    assert not (tmp_path / FOLDER).exists()
