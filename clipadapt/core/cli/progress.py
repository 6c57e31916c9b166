"""Progress on stderr: on a terminal one line for each running job and one for all of them, otherwise short lines."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.user_input import visible
from clipadapt.core.cli.terminal import no_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Task, TaskID

    from clipadapt.core.api.progress import Progress, Tracker

WARNING: Final = "warning: "
"""A message that begins with this is shown once."""
SHORTEST_TITLE: Final = 20
"""Characters of a job's title that are shown on any terminal; the bar and the counts need about 56 more."""
LONGEST_STAGE: Final = 40
"""Characters of what a job does now."""


def duration(seconds: float) -> str:
    """Return a duration in the largest units that matter: ``40 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shortened(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters: a longer one loses its middle, as the end tells jobs apart."""
    head = most // 2 - 2
    return text if len(text) <= most else f"{text[:head]}...{text[head + 3 - most :]}"


AT_ONCE: Final = 0.2
"""Seconds within which nothing but a look at what was done before takes several steps."""


@dataclass(slots=True)
class _Pace:
    """How fast something is done, counted from the first thing that was done.

    Attributes:
        total: How much there is to do, or None.
        done: How much is done.
        before: How much of it was done before, as when a fit resumes: it says nothing about the speed.
        begun: When it began.
        last: When something was last done.
    """

    total: int | None
    done: int = 0
    begun: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    before: int = 0

    def step(self, n: int) -> None:
        """Count ``n`` more as done."""
        now = time.monotonic()
        if not self.done and n > 1 and now - self.begun < AT_ONCE:
            self.before = n
        self.done += n
        self.last = now

    @property
    def rate(self) -> float:
        """Steps per second."""
        return (self.done - self.before) / max(time.monotonic() - self.begun, 1e-9)

    @property
    def left(self) -> str:
        """Remaining time, which counts down between steps; empty while it is unknown."""
        now = self.done - self.before
        if not self.total or not now or self.done >= self.total:
            return ""
        each = max(self.last - self.begun, 0.0) / now
        since = min(time.monotonic() - self.last, each)
        return f"{duration(each * (self.total - self.done) - since)} left"


# ---------------------------------------------------------------- lines


class _LineTracker:
    """A line at most every ten seconds, for a stderr that is not a terminal."""

    every = 10.0

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self.description, self.unit = visible(description), unit
        self.pace = _Pace(total)
        self.shown = self.pace.begun

    def advance(self, n: int = 1, /, **info: float) -> None:
        self.pace.step(n)
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        left = f", {self.pace.left}" if self.pace.left else ""
        extra = "".join(f", {k} {v:.4g}" for k, v in info.items())
        of = f"/{self.pace.total}" if self.pace.total else ""
        rate = f"{self.pace.rate:.1f}" if self.pace.rate >= 1 else f"{self.pace.rate:.2g}"
        print(
            f"{self.description}: {self.pace.done}{of}, {rate} {self.unit or 'steps'}/s{left}{extra}",
            file=sys.stderr,
        )

    def __enter__(self) -> _LineTracker:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class _Lines:
    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.warned: set[str] = set()

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:
        of = f"{self.jobs[0]}: " if len(self.jobs) == 1 else ""
        return _LineTracker(f"{of}{description}", total, unit)

    @contextlib.contextmanager
    def job(self, title: str, /) -> Iterator[None]:
        self.jobs.append(title)
        try:
            yield
        finally:
            self.jobs.remove(title)

    def note(self, message: str, /) -> None:
        if _is_new(message, self.warned):
            print(visible(message, lines=True), file=sys.stderr)


def _is_new(message: str, warned: set[str]) -> bool:
    """Return whether a message is to be shown; a warning is remembered and shown once."""
    if not message.startswith(WARNING):
        return True
    known = message in warned
    warned.add(message)
    return not known


# ---------------------------------------------------------------- bars


class _BarTracker:
    """A bar on a line of its own, or, within the only running job, on that job's line."""

    def __init__(self, owner: _Bars, description: str, total: int | None, unit: str) -> None:
        self.owner, self.unit = owner, unit
        self.description = visible(description)
        self.pace = _Pace(total)
        self.line: _Line | None = None

    def advance(self, n: int = 1, /, **info: float) -> None:
        self.pace.step(n)
        if self.line is not None:
            self.line.show(" ".join(f"{k} {v:.4g}" for k, v in info.items()))

    def __enter__(self) -> _BarTracker:
        if self.pace.total is None and not self.owner.lines:
            self.owner.begin_status(self.description)
            return self
        own = self.owner.lines[-1] if self.owner.is_in_one_job() else None
        self.pace.begun = time.monotonic()
        if own is None:
            self.line = self.owner.add("", self)
        else:
            self.line = own
            own.stages.append(self)
            own.show(now=True)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.line is None:
            self.owner.end_status()
            return
        self.line.stages.remove(self)
        if not self.line.stages and not self.line.is_job:
            self.owner.remove(self.line)
        else:
            self.line.show()
        self.line = None


class _Line:
    """One line of the display: a job with what it does now, or a bar outside jobs.

    Attributes:
        title: Name of the job, empty for a bar.
        stages: Bars that are shown on the line, the innermost last.
    """

    def __init__(self, owner: _Bars, title: str, *stages: _BarTracker) -> None:
        self.owner, self.title = owner, title
        self.stages = list(stages)
        total = stages[-1].pace.total if stages else None
        self.task: TaskID = owner.bar.add_task("", total=total, line=self, info="")

    @property
    def is_job(self) -> bool:
        return bool(self.title)

    def show(self, info: str = "", *, now: bool = False) -> None:
        """Show the innermost stage, at once or with the next refresh."""
        pace = self.stages[-1].pace if self.stages else _Pace(None)
        self.owner.bar.update(
            self.task, total=pace.total, completed=pace.done, info=info, refresh=now
        )


def _name(task: Task) -> str:
    """Return the job of a line, or what a line outside jobs shows."""
    line: _Line = task.fields["line"]
    return line.title or (line.stages[-1].description if line.stages else "")


def _stage(task: Task) -> str:
    """Return what a job does now."""
    line: _Line = task.fields["line"]
    text = line.stages[-1].description if line.title and line.stages else ""
    return shortened(text, LONGEST_STAGE)


def _count(task: Task) -> str:
    """Return how much is done, or for how long it has been done."""
    line: _Line = task.fields["line"]
    stage = line.stages[-1] if line.stages else None
    if stage is None or stage.pace.total is None:
        return duration(task.elapsed or 0.0)
    return f"{stage.pace.done:,}/{stage.pace.total:,} {stage.unit}".rstrip()


def _left(task: Task) -> str:
    line: _Line = task.fields["line"]
    return line.stages[-1].pace.left if line.stages else ""


class _Bars:
    """Lines of rich on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column
        from rich.text import Text

        class Words(ProgressColumn):
            def __init__(self, words: Callable[[Task], str], **options: Any) -> None:
                super().__init__(Column(no_wrap=True, **options))
                self.words = words

            def render(self, task: Task) -> Text:
                return Text(self.words(task))

        self.console = Console(stderr=True, color_system=None if no_colour() else "auto")
        self.bar: Any = RichProgress(
            Words(_name, ratio=1, overflow="ellipsis"),
            Words(_stage),
            BarColumn(bar_width=max(8, min(30, self.console.width // 8))),
            Words(_count),
            Words(_left),
            Words(lambda task: str(task.fields["info"])),
            console=self.console,
            transient=True,
            expand=True,
            redirect_stdout=sys.stdout.isatty(),  # what a pipe reads is not for the screen
        )
        self.lines: list[_Line] = []
        self.statuses: list[str] = []
        self.warned: set[str] = set()

    def begin_status(self, text: str) -> None:
        """Show a text without a bar: a library that is loading may show bars of its own, which take its place."""
        self.statuses.append(text)
        self._show_status()

    def end_status(self) -> None:
        """Show the status before the last one again, if there was one."""
        self.statuses.pop()
        if not self.lines:
            self._show_status()

    def _clear_status(self) -> None:
        if self.statuses and not self.lines and not self.console.is_dumb_terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def _show_status(self) -> None:
        """Show the last status on the line of the one before, or clear that line."""
        text = self.statuses[-1] if self.statuses else ""
        room = self.console.width - 1
        text = text if len(text) <= room else f"{text[: room - 3]}..."
        if not self.console.is_dumb_terminal:
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
        elif text:
            print(text, file=sys.stderr)

    def add(self, title: str, *stages: _BarTracker) -> _Line:
        """Add a line; the first one starts the display."""
        line = _Line(self, title, *stages)
        if not self.lines:
            self._clear_status()
            self.bar.start()
        self.lines.append(line)
        return line

    def remove(self, line: _Line) -> None:
        """Remove a line; the last one ends the display."""
        self.bar.remove_task(line.task)
        self.lines.remove(line)
        if not self.lines:
            self.bar.stop()
            if self.statuses:
                self._show_status()

    def is_in_one_job(self) -> bool:
        """Return whether the last line is a job, and the only one."""
        return bool(self.lines) and self.lines[-1].is_job and sum(x.is_job for x in self.lines) == 1

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:
        return _BarTracker(self, description, total, unit)

    @contextlib.contextmanager
    def job(self, title: str, /) -> Iterator[None]:
        line = self.add(shortened(visible(title), max(SHORTEST_TITLE, self.console.width - 56)))
        try:
            yield
        finally:
            self.remove(line)

    def note(self, message: str, /) -> None:
        if _is_new(message, self.warned):
            text = visible(message, lines=True)
            self._clear_status()
            self.console.print(text, highlight=False, markup=False, emoji=False)
            if self.statuses and not self.lines:
                self._show_status()


def on_stderr() -> Progress:
    """Return bars if stderr is a terminal, otherwise short lines."""
    return _Bars() if sys.stderr.isatty() else _Lines()
