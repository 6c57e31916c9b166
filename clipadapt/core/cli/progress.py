"""Progress on stderr: bars with rate and remaining time on a terminal, otherwise short lines."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.user_input import visible
from clipadapt.core.cli.terminal import no_colour

if TYPE_CHECKING:
    from rich.progress import (
        Task,
    )

    from clipadapt.core.api.progress import Progress, Tracker


class _LineTracker:
    """A line at most every ten seconds, for a stderr that is not a terminal."""

    every = 10.0

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self.description, self.total, self.unit = visible(description), total, unit
        self.done = 0
        self.begun = self.shown = time.monotonic()

    def advance(self, n: int = 1, /, **info: float) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        rate = self.done / (now - self.begun)
        eta = f", {(self.total - self.done) / rate:.0f} s left" if self.total else ""
        extra = "".join(f", {k} {v:.4g}" for k, v in info.items())
        of = f"/{self.total}" if self.total else ""
        print(
            f"{self.description}: {self.done}{of}, {rate:.1f} {self.unit or 'steps'}/s{eta}{extra}",
            file=sys.stderr,
        )

    def __enter__(self) -> _LineTracker:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class _BarTracker:
    def __init__(self, owner: _Bars, description: str, total: int | None, unit: str) -> None:
        self.owner = owner
        self.task = owner.bar.add_task(visible(description), total=total, unit=unit, info="")

    def advance(self, n: int = 1, /, **info: float) -> None:
        extra = " ".join(f"{k} {v:.4g}" for k, v in info.items())
        self.owner.bar.update(self.task, advance=n, info=extra)

    def __enter__(self) -> _BarTracker:
        self.owner.enter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.owner.bar.remove_task(self.task)
        self.owner.leave()


class _Bars:
    """Rich bars on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "")

        self.console = Console(stderr=True, color_system=None if no_colour() else "auto")
        self.bar: Any = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total}"),
            Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}"),
            console=self.console,
            transient=True,
        )
        self.depth = 0

    def enter(self) -> None:
        if self.depth == 0:
            self.bar.start()
        self.depth += 1

    def leave(self) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.bar.stop()

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:
        return _BarTracker(self, description, total, unit)

    def note(self, message: str, /) -> None:
        text = visible(message, lines=True)
        self.console.print(text, highlight=False, markup=False, emoji=False)


class _Lines:
    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:
        return _LineTracker(description, total, unit)

    def note(self, message: str, /) -> None:
        print(visible(message, lines=True), file=sys.stderr)


def on_stderr() -> Progress:
    """Return bars if stderr is a terminal, otherwise short lines."""
    return _Bars() if sys.stderr.isatty() else _Lines()
