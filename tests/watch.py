"""Looking into folders that another process writes to and removes from."""

from __future__ import annotations

from pathlib import Path

from clipadapt.core.files.atomic import files_below


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder whose relative path matches, none of them twice."""
    return [p for p in files_below(folder) if p.relative_to(folder).match(pattern)]
