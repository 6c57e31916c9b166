"""Progress: the ``typing.Protocol`` of what shows bars and notes of long operations, and one that shows nothing."""

from __future__ import annotations

from typing import (
    Protocol,
)


class Progress(Protocol):
    """Where long operations show their progress."""

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:
        """Start a progress bar; use it as a context manager."""
        ...

    def note(self, message: str, /) -> None:
        """Show one line, such as a warning, without breaking the bars."""
        ...


class Tracker(Protocol):
    """One progress bar."""

    def advance(self, n: int = 1, /, **info: float) -> None:
        """Advance by ``n``; ``info``, such as the loss, is shown beside the bar."""
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
    """Progress that is not shown, for tests and library use."""

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:  # noqa: ARG002
        """Return a tracker that shows nothing."""
        return _SilentTracker()

    def note(self, message: str, /) -> None:
        """Show nothing."""
