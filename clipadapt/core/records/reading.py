"""Read the files of a run and check them against its record.

A record ends in the sha256 of its own bytes and holds the sha256 of every other file of the run. Every missing or
damaged file is one :class:`~clipadapt.core.api.errors.DamagedError`.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from clipadapt.core.api.errors import DamagedError, RecordError
from clipadapt.core.files.checksums import sha256_file, unsealed
from clipadapt.core.records.migrations import SCHEMA_VERSION, upgrade
from clipadapt.core.records.parsing import CURRENT, fast_validator
from clipadapt.core.records.schema import RunRecord

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import SchemaValidator

    from clipadapt.core.records.parsing import RecordParser

RERUN: Final = "run the experiment again; damaged files are kept aside"
_OTHER_VERSION: Final = (
    "read it with the version of clipadapt that wrote it, or name another folder"
)


def read_record(path: Path, parser: RecordParser | None = None) -> RunRecord:
    """Return the record in a ``record.json``.

    Args:
        path: The file.
        parser: Parser that reads many records and holds what they share.

    Raises:
        RecordError: If it cannot be read, is damaged, or was written by a newer clipadapt.
    """
    try:
        content = path.read_bytes()
    except OSError as err:
        raise RecordError(f"cannot read {path}: {err.strerror or err}") from err
    return parse_record(content, path, parser)


def read_record_if_present(path: Path, parser: RecordParser | None = None) -> RunRecord | None:
    """Return the record, or None if there is none or another process is replacing it; see :func:`read_record`.

    Raises:
        RecordError: As :func:`read_record`.
    """
    if not path.is_file():
        return None
    try:
        return read_record(path, parser)
    except RecordError:
        if path.is_file():
            raise
        return None


def parse_record(content: bytes, path: Path, parser: RecordParser | None = None) -> RunRecord:
    """Return the record in the content of a ``record.json``; ``path`` is for messages only.

    Raises:
        RecordError: As :func:`read_record`.
    """
    try:
        body = unsealed(content)
    except ValueError as err:
        raise DamagedError(f"{path} is damaged: {err}", hint=RERUN) from None
    known = None if body is None else parser.parse(body) if parser else _as_written(body)
    if known is not None:
        return known
    intact = body is not None
    try:
        raw = json.loads(content)
        version = raw["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RecordError(
                f"{path} has schema version {version}; this clipadapt reads up to {SCHEMA_VERSION}",
                hint="upgrade clipadapt: pip install --upgrade clipadapt",
            )
        if intact:
            del raw["sha256"]
        elif version != 1:  # version 1 had no checksum
            raise DamagedError(
                f"{path} is damaged: it does not end in the sha256 of its content", hint=RERUN
            )
        return RunRecord.model_validate(upgrade(raw))
    except ValidationError as err:
        fault = err.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        kind, hint = (RecordError, _OTHER_VERSION) if intact else (DamagedError, RERUN)
        raise kind(f"{path} is not a valid record: {where}: {fault['msg']}", hint=hint) from err
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise DamagedError(f"{path} is truncated or not a record: {err}", hint=RERUN) from err


def _as_written(body: bytes) -> RunRecord | None:
    """Return a record of the current version that has its checksum; None if it has to be read the long way.

    Such a record was valid when it was written, so the checks of :class:`StrictModel`, which take most of the time
    because they are in Python, are left out.
    """
    if not body.startswith(CURRENT):
        return None
    try:
        record: RunRecord = _fast_validator().validate_json(body)
    except ValidationError:  # the long way says what is wrong
        return None
    return record


@cache
def _fast_validator() -> SchemaValidator:
    return fast_validator(RunRecord)


def read_file(run_dir: Path, record: RunRecord, name: str) -> bytes | None:
    """Return the content of one file of a run, or None if the run has no such file.

    Args:
        run_dir: Folder of the run.
        record: Its record.
        name: Path of the file in the folder.

    Raises:
        DamagedError: If the file is missing, or its sha256 differs from the record's.
        RecordError: If it cannot be read.
    """
    path, expected = run_dir / name, record.files.get(name)
    # Records of version 1 list no files.
    if expected is None and (record.files or not path.is_file()):
        return None
    if not path.is_file():
        raise DamagedError(f"the file {path} is missing", hint=RERUN)
    try:
        content = path.read_bytes()
    except OSError as err:
        raise RecordError(f"cannot read {path}: {err.strerror or err}") from err
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise differs(path)
    return content


def check_files(run_dir: Path, record: RunRecord, folder: str = "") -> None:
    """Check the files of a run, or those in one of its folders, against its record.

    Raises:
        DamagedError: If one is missing, or its sha256 differs from the record's.
        RecordError: If one cannot be read.
    """
    for name, expected in record.files.items():
        if not name.startswith(folder):
            continue
        path = run_dir / name
        if not path.is_file():
            raise DamagedError(f"the file {path} is missing", hint=RERUN)
        try:
            found = sha256_file(path)
        except OSError as err:
            raise RecordError(f"cannot read {path}: {err.strerror or err}") from err
        if found != expected:
            raise differs(path)


def differs(path: Path) -> DamagedError:
    """Return the error for a file whose content is not what the record says."""
    return DamagedError(f"{path} is not what its record says (sha256 differs)", hint=RERUN)
