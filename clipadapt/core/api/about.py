"""What a registered file says about itself, for lists: names as typed, a sentence, the paper and what it needs.

A file is parsed, never imported. Its docstring may begin with the names that it serves, in double backquotes and
followed by a colon; a method's class, or the file, names the paper.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.registry import MAX_PLUGIN_BYTES
from clipadapt.core.api.user_input import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REFERENCE: Final = re.compile(
    r"(?P<authors>(?:[A-Z][\w.-]*\.[ -]?)+[^\"():;]{1,80}?), \"[^\"]+\",? (?P<where>[^\".;()]*?\b(?:19|20)\d\d)\b"
)
_ARXIV: Final = re.compile(r"arXiv:\d{4}\.\d{4,5}")
_CITATION: Final = re.compile(
    r"(?P<authors>[^,]+(?:, [A-Z]\.[^,]*)*?), .+?, (?P<where>[^,]*\b(?:19|20)\d\d)\b"
)
_NEEDS: Final = (
    (r"\bpackages?\b", "the extra offline"),
    (r"\[[^\]]*\bDIR\b[^\]]*\]", "a download, or a folder"),
    (r"\bREPO\b", "the hub, or its cache"),
    (r"\bPATH\b", "your files"),
    (r"\bDIR\b", "a folder with its files"),
)
"""What a pattern in the names or in the sentence of a file says about its needs; the first counts."""


@dataclass(frozen=True, slots=True)
class About:
    """One line of a list.

    Attributes:
        name: Name as it is typed.
        paper: Authors, venue and year, or empty.
        needs: What must be there to use it.
        text: A sentence about it.
        kind: For methods, what they are trained on and how they predict.
    """

    name: str
    paper: str
    needs: str
    text: str
    kind: str = ""


def about_file(name: str, path: Path) -> Iterator[About]:
    """Yield a line for each name that a file serves.

    Args:
        name: Registered name without its track.
        path: The file.
    """
    tree = _parsed(path)
    whole = (ast.get_docstring(tree) if tree else None) or ""
    names, text = split_names(" ".join(whole.partition("\n\n")[0].split()))
    found = paper(whole) or next(filter(None, map(from_citation, _citations(tree))), "")
    for typed in names or (name,):
        needs = next(
            (n for pattern, n in _NEEDS if re.search(pattern, f"{typed} {text}")), "nothing else"
        )
        yield About(typed, found, needs, text)


def split_names(line: str) -> tuple[tuple[str, ...], str]:
    """Return the names at the beginning of a docstring, and the rest, without its full stop."""
    head, colon, rest = line.partition("``: ")
    names = (
        tuple(re.findall(r"``([^`]+)``", f"{head}``")) if colon and line.startswith("``") else ()
    )
    return names, (rest if names else line).removesuffix(".")


def paper(text: str) -> str:
    """Return authors, venue and year of the first reference in a docstring, with its arXiv number; else empty."""
    plain = " ".join(text.split())
    found = _REFERENCE.search(plain)
    if found is None:
        return ""
    number = _ARXIV.search(plain[found.end() : found.end() + 80])
    authors = found["authors"]
    if authors.count(", ") and " and " in authors:  # three or more
        authors = f"{authors.partition(', ')[0]} et al."
    return ", ".join([authors, found["where"].strip(), *([number[0]] if number else [])])


def from_citation(text: str) -> str:
    """Return authors, venue and year of a dataset's citation, with its arXiv number; else empty."""
    found = _CITATION.match(text)
    if found is None:
        return ""
    number = _ARXIV.search(text)
    return ", ".join([found["authors"], found["where"].strip(), *([number[0]] if number else [])])


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(read_text(path, "file", MAX_PLUGIN_BYTES))
    except (SyntaxError, ValueError, ConfigError):  # it is reported where it is used
        return None


def _citations(tree: ast.Module | None) -> Iterator[str]:
    """Yield the literal arguments ``citation`` of a file."""
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.keyword) and node.arg == "citation":
            value = getattr(node.value, "value", None)
            if isinstance(value, str):
                yield value
