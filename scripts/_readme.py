"""Write tables into Markdown files, between the markers ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from clipadapt.core.files.atomic import write_text

if TYPE_CHECKING:
    from pathlib import Path


def insert(path: Path, name: str, text: str) -> None:
    """Replace the text between the markers of a Markdown file."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = path.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        sys.exit(f"{path} has no markers '{begin}' and '{end}'")
    head, _, rest = whole.partition(begin)
    _, _, tail = rest.partition(end)
    write_text(path, f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}")
