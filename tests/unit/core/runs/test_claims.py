"""Claims: one holder at a time, the dead give way at once, the unseen after their heartbeat stops."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files import processes as _processes
from clipadapt.core.runs.claims import FOLDER, Claims, Holder


def forge(root: Path, key: str, **changes) -> Path:
    """Write a claim as another process would."""
    from dataclasses import asdict

    path = root / FOLDER / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**asdict(Holder.me()), **changes}))
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_holder_at_a_time(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.acquire("fit")
        assert not one.acquire("fit")
        assert not other.acquire("fit")
        holder = other.holder("fit")
        assert (holder.pid, holder.is_here, holder.is_gone) == (os.getpid(), True, False)
        one.release("fit")
        assert other.acquire("fit")
        assert other.acquire("another")
    assert not (tmp_path / FOLDER).exists()


def test_a_dead_process_gives_way_at_once(tmp_path):
    forge(tmp_path, "fit", pid=dead_pid())
    with Claims(tmp_path) as claims:
        assert claims.acquire("fit")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_number_given_to_another_process_is_not_mistaken_for_the_first(tmp_path):
    forge(tmp_path, "fit", started="1")  # this process's number, but another beginning
    with Claims(tmp_path) as claims:
        assert claims.acquire("fit")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_zombie_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with Claims(tmp_path) as claims:
        forge(tmp_path, "fit", pid=process.pid, started=_processes.started(process.pid))
        assert not claims.acquire("fit")
        process.kill()
        os.waitid(
            os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
        )  # it has ended, but nobody has fetched it
        assert claims.acquire("fit")
    process.wait()


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"space": "another container"}])
def test_an_unseen_process_gives_way_when_its_heartbeat_stops(tmp_path, elsewhere):
    path = forge(tmp_path, "fit", pid=1, **elsewhere)
    os.utime(path, (1, 1))  # its clock may be far off: only change counts
    with Claims(tmp_path, timeout=0.2) as claims:
        for _ in range(4):
            assert not claims.acquire("fit")
            time.sleep(0.1)
            os.utime(path)  # alive
        assert not claims.acquire("fit")
        time.sleep(0.3)
        assert claims.acquire("fit")


def test_the_heartbeat_beats_and_a_claim_taken_over_is_left_alone(tmp_path):
    with Claims(tmp_path, beat=0.02) as claims:
        claims.acquire("fit")
        path = tmp_path / FOLDER / "fit"
        before = path.stat().st_mtime_ns
        time.sleep(0.2)
        assert path.stat().st_mtime_ns > before
        forge(tmp_path, "fit", token="of another")
        claims.release("fit")
        assert path.exists()


def test_what_a_killed_process_was_writing_is_tidied_away(tmp_path):
    with Claims(tmp_path) as claims:
        claims.acquire("fit")
        (tmp_path / FOLDER / f".tmp-{dead_pid()}-{'0' * 16}").write_text("{")
    assert not (tmp_path / FOLDER).exists()


def test_a_damaged_claim_is_waited_for_and_taken_over(tmp_path):
    forge(tmp_path, "fit").write_text("{")
    with Claims(tmp_path, timeout=0.05) as claims:
        assert not claims.acquire("fit")
        time.sleep(0.1)
        assert claims.acquire("fit")


@pytest.mark.parametrize(
    "changes",
    [
        {"started": None},
        {"pid": -1},
        {"pid": 0},
        {"pid": 10**30},
        {"pid": "1"},
        {"pid": True},
        {"pid": 1.0},
        {"pid": None},
        {"started": 17},
        {"host": ["a"]},
        {"host": "\x1b[31m"},
        {"token": None},
        {"extra": 1},
    ],
    ids=str,
)
def test_an_odd_claim_is_waited_for_as_long_as_its_heartbeat_says(tmp_path, changes):
    forge(tmp_path, "fit", **changes)
    with Claims(tmp_path, timeout=0.05) as claims:
        assert not claims.acquire("fit")
        assert "\x1b" not in str(claims.holder("fit"))
        time.sleep(0.1)
        assert claims.acquire("fit")
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize(
    "kind", ["[]", "[" * 100_000, "1" * 5000, "", "\xff", "folder", "pipe", "loop"]
)
def test_what_is_no_claim_is_taken_over_too(tmp_path, kind):
    path = forge(tmp_path, "fit")
    if kind in {"folder", "pipe", "loop"}:
        path.unlink()
        {
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
            "loop": lambda: path.symlink_to(path),
        }[kind]()
    else:
        path.write_bytes(kind.encode("latin-1"))
    with Claims(tmp_path, timeout=0.05) as claims:
        assert not claims.acquire("fit")
        time.sleep(0.1)
        assert claims.acquire("fit")
    assert not (tmp_path / FOLDER).exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
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
        gate.wait()  # nobody gives back before everybody has asked


def test_a_dead_process_is_succeeded_by_one_alone(tmp_path):
    dead = dead_pid()
    for i in range(40):
        forge(tmp_path, f"fit{i}", pid=dead)
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


def test_a_release_that_is_interrupted_is_made_good_by_close(tmp_path, monkeypatch):
    def interrupted(self, key):
        raise KeyboardInterrupt

    claims = Claims(tmp_path)
    assert claims.acquire("fit")
    with monkeypatch.context() as patched:
        patched.setattr(Claims, "holder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            claims.release("fit")
    claims.close()

    assert not (tmp_path / FOLDER).exists()
