"""Errors that a user can fix: one message, no traceback, exit code 2."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_DEFECT: Final = 1
EXIT_USER_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130
MAX_COMPARED: Final = 200


class ClipAdaptError(Exception):
    """Base of all errors that a user can fix; the CLI prints them without a traceback and exits with 2.

    Attributes:
        problem: What is wrong, the value given and what is accepted.
        hint: The next step, or an empty string.
    """

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{problem}\n  hint: {hint}" if hint else problem)
        self.problem = problem
        self.hint = hint


class UnknownNameError(ClipAdaptError):
    """A name that is not registered."""


class ConfigError(ClipAdaptError):
    """An invalid config, setting or command line option."""


class DataError(ClipAdaptError):
    """A dataset, split, image or text that cannot be used."""


class ModelError(ClipAdaptError):
    """A model that cannot be loaded or does not support an operation."""


class DivergedError(ClipAdaptError):
    """A run whose scores are not finite; it is recorded as failed."""


class RecordError(ClipAdaptError):
    """A run folder or record that cannot be read, written or combined."""


class DamagedError(RecordError):
    """A file of a run whose bytes have changed since it was written."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message about what is kept; the CLI prints it and exits with 130."""


def first_line(err: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    lines = str(err).strip().splitlines()
    return lines[0].strip() if lines else type(err).__name__


def did_you_mean(name: str, known: Sequence[str], *, most: int = 3) -> str:
    """Return ``"; did you mean 'a' or 'b'?"``, or an empty string if no name is similar.

    Args:
        name: The name given.
        known: The accepted names.
        most: Maximum number of suggestions.
    """
    folded = {k.lower(): k for k in known if k != name.strip()}
    near = difflib.get_close_matches(name[:MAX_COMPARED].lower(), list(folded), n=most, cutoff=0.6)
    if not near:
        return ""
    return "; did you mean " + " or ".join(f"'{folded[n]}'" for n in near) + "?"


def unknown(kind: str, name: str, known: Sequence[str], *, hint: str = "") -> UnknownNameError:
    """Return the error for a name that is not among ``known``."""
    near = did_you_mean(name, known) or "."
    short = name if len(name) <= MAX_COMPARED else f"{name[: MAX_COMPARED - 3]}..."
    return UnknownNameError(
        f"unknown {kind} '{short}'{near} Known: {', '.join(known) or 'none'}", hint=hint
    )
