"""Reading the files of a run: whatever is missing or damaged is one clear error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DamagedError, RecordError

if TYPE_CHECKING:
    from pathlib import Path

REMAKE: Final = "run the experiment again; what is damaged is kept aside"


def bytes_of(path: Path) -> bytes:
    """Return the content of a file of a run.

    Raises:
        RecordError: If it is missing or cannot be read.
    """
    if not path.is_file():
        raise DamagedError(f"the file {path} is missing", hint=REMAKE)
    try:
        return path.read_bytes()
    except OSError as err:
        raise RecordError(f"cannot read {path}: {err.strerror or err}") from err
