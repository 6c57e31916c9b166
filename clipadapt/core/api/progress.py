"""TODO."""

from __future__ import annotations

from typing import (
    Protocol,
)


class Progress(Protocol):
    """Where long work shows itself."""

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:
        """Begin one bar; use it as a context manager."""
        ...

    def note(self, message: str, /) -> None:
        """Show one line (a warning, a decision) without breaking the bars."""
        ...


class Tracker(Protocol):
    """One running bar."""

    def advance(self, n: int = 1, /, **info: float) -> None:
        """Count ``n`` more done; ``info`` (loss, val accuracy) is shown beside the bar."""
        ...

    def __enter__(self) -> Tracker: ...
    def __exit__(self, *exc: object) -> None: ...


class _SilentTracker:
    def advance(self, n: int = 1, /, **info: float) -> None:
        pass

    def __enter__(self) -> _SilentTracker:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class Silent:
    """Shows nothing; for tests and library use."""

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:  # noqa: ARG002
        """Return a tracker that shows nothing."""
        return _SilentTracker()

    def note(self, message: str, /) -> None:
        """Show nothing."""
