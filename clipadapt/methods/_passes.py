"""The cost of methods that run the text tower for every image, reported before they start."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipadapt.core.api.progress import Progress


class Passes:
    """Reports the number of passes of the text tower at once, and an estimate of the time after the first chunk."""

    def __init__(
        self, progress: Progress, what: str, images: int, classes: int, each: int = 1
    ) -> None:
        """Report the number of passes.

        Args:
            progress: Where it is reported.
            what: Name of the method and what it does.
            images: Number of images.
            classes: Number of classes.
            each: Passes per image and class.
        """
        self.progress, self.what = progress, what
        self.total, self.begun, self.started = images * classes * each, 0, 0.0
        times = f" x {each} times" if each > 1 else ""
        progress.note(
            f"{what}: {self.total:,} passes of the text tower ({images:,} images x {classes:,} classes{times})"
        )

    def begin(self, passes: int) -> None:
        """Call before each chunk of passes; after the first one, the time is estimated from it."""
        self.end()
        if not self.begun:
            self.started = time.monotonic()
        self.begun += passes

    def end(self) -> None:
        """Call after a chunk if other work may follow, which the estimate must not include."""
        if self.started and self.begun < self.total:
            seconds = (time.monotonic() - self.started) / self.begun * self.total
            self.progress.note(f"{self.what}: about {duration(seconds)}")
        self.started = 0.0


def duration(seconds: float) -> str:
    """Return a rough duration for a note."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    if seconds < 7200:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
