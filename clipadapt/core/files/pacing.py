"""When the next checkpoint of a fit is due: rarely enough to cost little, often enough to lose little."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clipadapt.core.api.context import Meter

SHARE: Final = 0.02
"""Share of a fit's time that its checkpoints may take, by the time that the last one took."""
SECONDS: Final = 10.0
"""Least seconds between two checkpoints."""
BYTES_PER_SECOND: Final = 200e6
"""Assumed speed of the first write; hashing and waiting for the disk included."""


class Pacing:
    """Decides when a fit writes a checkpoint.

    Attributes:
        cost: Seconds of the last write; an estimate before the first one.
        spent: Seconds of all writes.
    """

    def __init__(self, size: int, meter: Meter) -> None:
        """Start the clock.

        Args:
            size: Bytes of a checkpoint, about.
            meter: Counts the seconds of the writes as its stage ``checkpoints``.
        """
        self.cost = size / BYTES_PER_SECOND
        self.spent = 0.0
        self._meter = meter
        self._begun = self._last = time.monotonic()

    def due(self) -> bool:
        """Return whether a checkpoint is due: after some seconds, and if all of them take a small share of the time."""
        now = time.monotonic()
        if now - self._last < SECONDS:
            return False
        return self.spent + self.cost <= SHARE * (now - self._begun)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Measure a write, one that fails too."""
        begun = time.monotonic()
        try:
            with self._meter.stage("checkpoints"):
                yield
        finally:
            self._last = time.monotonic()
            self.cost = self._last - begun
            self.spent += self.cost
