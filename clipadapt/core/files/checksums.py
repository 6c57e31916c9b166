"""Checksums of files and folders, and JSON files that contain their own.

Sealed JSON ends in a line with the sha256 of everything before it. A folder is described by the sha256 of each of its
files.
"""

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
    """Return JSON with the sha256 of its own bytes added as the last member, on a separate line.

    A truncated file or a single flipped bit no longer matches the checksum.

    Args:
        text: ASCII JSON of a non-empty mapping without a member ``sha256``.
    """
    body = text.rstrip().removesuffix("}").rstrip().encode("ascii")
    return body + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode("ascii")


def has_seal(content: bytes) -> bool:
    """Return whether the content ends in a checksum, as :func:`sealed` adds it.

    Raises:
        ValueError: If the checksum does not match the content.
    """
    return unsealed(content) is not None


def unsealed(content: bytes) -> bytes | None:
    """Return the JSON without the checksum that :func:`sealed` added, or None if there is no checksum.

    Raises:
        ValueError: If the checksum does not match the content.
    """
    found = _SEAL.search(content, max(len(content) - 200, 0))
    if found is None:
        return None
    body = content[: found.start()]
    if hashlib.sha256(body).hexdigest() != found[1].decode("ascii"):
        raise ValueError("its content has changed since it was written (its sha256 differs)")
    return body + b"\n}"


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping atomically as :func:`sealed` JSON."""
    write_bytes(path, sealed(json.dumps(value, indent=2, allow_nan=False)))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read a file written by :func:`write_sealed_json`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it has no checksum, or one that does not match.
    """
    content = path.read_bytes()
    if not has_seal(content):
        raise ValueError("it does not end with the sha256 of its content")
    value: dict[str, Any] = json.loads(content)
    del value["sha256"]
    return value


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by relative path."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): sha256_file(p) for p in files}


def first_changed(directory: Path, expected: Mapping[str, str], besides: str) -> str:
    """Return the first file of a folder that has changed, or an empty string.

    Args:
        directory: The folder.
        expected: Its earlier :func:`checksums`.
        besides: Name of a file that was added later.
    """
    there = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if not p.is_dir()}
    for name in sorted(there.symmetric_difference({*expected, besides})):
        return name
    for name, known in expected.items():
        try:
            if not (directory / name).is_file() or sha256_file(directory / name) != known:
                return name
        except OSError:  # unreadable counts as changed
            return name
    return ""
