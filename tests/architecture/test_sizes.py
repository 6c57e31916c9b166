"""Files and functions stay short enough to read."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = [p for package in ("clipadapt", "textsent") for p in sorted((ROOT / package).rglob("*.py"))]
DATA = {"_imagenet.py"}
MOST_LINES = 600
MOST_LINES_OF_A_FUNCTION = 60


def test_no_file_is_too_long() -> None:
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES}

    assert {p: n for p, n in lines.items() if n > MOST_LINES and Path(p).name not in DATA} == {}


def test_no_function_is_too_long() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }

    assert {name: n for name, n in found.items() if n > MOST_LINES_OF_A_FUNCTION} == {}
