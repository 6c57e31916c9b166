"""Progress: the ``typing.Protocol`` of what shows bars and notes of long operations, and one that shows nothing."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class Progress(Protocol):
    """Where long operations show their progress."""

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:
        """Start a progress bar; use it as a context manager."""
        ...

    def job(self, title: str, /) -> AbstractContextManager[object]:
        """Show a line for something that is being done, such as a run; bars that start within it are shown there."""
        ...

    def note(self, message: str, /) -> None:
        """Show one line, such as a warning, without breaking the bars; the same warning is shown once."""
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

    def job(self, title: str, /) -> AbstractContextManager[object]:  # noqa: ARG002
        """Show nothing."""
        return nullcontext()

    def note(self, message: str, /) -> None:
        """Show nothing."""
