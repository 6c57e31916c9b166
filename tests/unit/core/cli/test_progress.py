"""Lines of progress: one for each running job, one for all; warnings once."""

from __future__ import annotations

import contextlib
import time

import pytest

from clipadapt.core.api.progress import Silent
from clipadapt.core.cli import progress
from clipadapt.core.runs.schedule import Done, Watched


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_a_duration_has_two_units_at_most(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize("most", [10, 11, 30])
def test_a_long_title_keeps_its_beginning_and_its_end(most):
    title = "coop-quick on folder:pictures, 16 shots, seed 12"
    short = progress.shortened(title, most)

    assert len(short) == most
    assert short.startswith(title[:3])
    assert short.endswith(title[-2:])
    assert progress.shortened(title, len(title)) == title


def test_what_is_left_follows_from_what_is_done(monkeypatch):
    pace = progress._Pace(10, done=2, begun=100.0, last=120.0)
    now = iter([120.0, 125.0, 500.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now, 500.0))

    assert pace.left == "1 min 20 s left"
    assert pace.left == "1 min 15 s left"
    assert pace.left == "1 min 10 s left"  # the step that is late is counted as done
    assert progress._Pace(10, begun=0.0).left == ""
    assert progress._Pace(None, done=3, begun=0.0).left == ""
    assert progress._Pace(3, done=3, begun=0.0).left == ""


def test_what_was_done_before_says_nothing_about_the_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    resumed = progress._Pace(1000, begun=100.0)
    resumed.step(900)
    assert (resumed.rate, resumed.left) == (0.0, "")
    now[0] = 120.0
    resumed.step(10)
    assert resumed.done == 910
    assert (resumed.rate, resumed.left) == (0.5, "3 min 0 s left")

    fresh = progress._Pace(1000, begun=100.0)  # a batch takes a while
    now[0] = 102.0
    fresh.step(64)
    assert fresh.rate == 32.0


def test_in_a_file_a_line_names_the_only_running_job(capsys, monkeypatch):
    monkeypatch.setattr(progress._LineTracker, "every", 0.0)
    shown = progress.on_stderr()
    with shown.job("coop on dtd, seed 1"):
        with shown.track("steps", 4) as bar:
            bar.advance(1, loss=0.5)
        with shown.job("coop on dtd, seed 2"), shown.track("images", None) as bar:
            bar.advance()
    first, second = capsys.readouterr().err.splitlines()

    assert first.startswith("coop on dtd, seed 1: steps: 1/4, ")
    assert first.endswith(" left, loss 0.5")
    assert second.startswith("images: 1, ")


def test_a_warning_is_shown_once_and_other_notes_as_often_as_they_come(capsys):
    shown = progress.on_stderr()
    for _ in range(3):
        shown.note("warning: too few")
        shown.note("2 of 3 runs were complete already, skipped")
    err = capsys.readouterr().err

    assert err.count("too few") == 1
    assert err.count("skipped") == 3


class Two:
    """An executor of two fits at a time, which end in the order in which they are asked for."""

    threads = None

    def __init__(self):
        self.running = []

    def has_room(self):
        return len(self.running) < 2

    def start(self, spec):
        self.running.append(spec)

    def finished(self, timeout):
        del timeout
        return [Done(self.running.pop(0), None)] if self.running else []

    @property
    def busy(self):
        return len(self.running)


class Spec:
    def __init__(self, title):
        self.title = title


class Log(Silent):
    def __init__(self):
        self.seen = []

    @contextlib.contextmanager
    def job(self, title):
        self.seen.append(f"+{title}")
        yield
        self.seen.append(f"-{title}")


def test_each_running_fit_has_a_line_until_it_is_fetched():
    log, specs = Log(), [Spec("a"), Spec("b"), Spec("c")]
    with Watched(Two(), log) as watched:
        watched.start(specs[0])
        watched.start(specs[1])
        assert not watched.has_room()
        watched.finished(0)
        watched.start(specs[2])
        assert (watched.busy, watched.threads) == (2, None)

    assert log.seen[:4] == ["+a", "+b", "-a", "+c"]
    assert sorted(log.seen[4:]) == ["-b", "-c"]  # an interruption leaves no line
