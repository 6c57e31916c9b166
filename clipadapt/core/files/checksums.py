"""TODO."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.files.atomic import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


_SEAL: Final = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')


def sealed(text: str) -> bytes:
    """Return the JSON of a mapping with the sha256 of its own bytes as the last member, on a line of its own.

    Every byte counts: a file that was cut short, or in which one bit is another, no longer fits its seal.

    Args:
        text: JSON of a mapping that is not empty and has no member ``sha256``; ASCII.
    """
    body = text.rstrip().removesuffix("}").rstrip().encode("ascii")
    return body + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode("ascii")


def has_seal(content: bytes) -> bool:
    """Tell whether the content is what :func:`sealed` returned.

    Raises:
        ValueError: If it has a seal that does not fit it.
    """
    found = _SEAL.search(content)
    if found is None:
        return False
    if hashlib.sha256(content[: found.start()]).hexdigest() != found[1].decode("ascii"):
        raise ValueError("its content is not what was written (its sha256 differs)")
    return True


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping atomically, as :func:`sealed` JSON; see :func:`write_json`."""
    write_bytes(path, sealed(json.dumps(value, indent=2, allow_nan=False)))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_sealed_json` wrote.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not, byte for byte, what was written.
    """
    content = path.read_bytes()
    if not has_seal(content):
        raise ValueError("it does not end in the sha256 of its content")
    value: dict[str, Any] = json.loads(content)
    del value["sha256"]
    return value


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder, by its path there."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): sha256_file(p) for p in files}


def first_changed(directory: Path, expected: Mapping[str, str], besides: str) -> str:
    """Return the first file of a folder that is not as it was, or an empty string.

    Args:
        directory: The folder.
        expected: What :func:`checksums` said of it.
        besides: Name of a file written after that.
    """
    there = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if not p.is_dir()}
    for name in sorted(there.symmetric_difference({*expected, besides})):
        return name
    for name, known in expected.items():
        try:
            if not (directory / name).is_file() or sha256_file(directory / name) != known:
                return name
        except OSError:  # one that cannot be read is as good as lost
            return name
    return ""
