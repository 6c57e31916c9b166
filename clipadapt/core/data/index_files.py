"""Few-shot index files: the examples of a draw by path, in the JSON forms that papers publish.

Accepted are JSON and JSON lines. ``train`` and ``val`` hold the examples of each role; without them all are ``train``::

    {"train": ["cat/1.jpg", ...], "val": [...]}                 # paths
    {"train": [["cat/1.jpg", 0, "cat"], ...], "val": [...]}     # as in CoOp's split_zhou_*.json
    {"train": {"data": [{"impath": "./data/cat/1.jpg", "label": 0, "classname": "cat"}, ...]}, ...}
    {"cat": ["cat/1.jpg", ...], "dog": [...]}                   # by class
    {"impath": "cat/1.jpg", "label": 0, "split": "train"}       # one per line

The third form is that of Z. Lin et al., "Multimodality Helps Unimodality", CVPR 2023 (``indices/`` of the official
code). Pickles, such as CoOp's own ``split_fewshot/*.pkl``, are never read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.user_input import read_text, shown
from clipadapt.core.data.labelled import class_key, split_named
from clipadapt.core.data.sampling import Manifest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from clipadapt.core.api.data import SplitName

MAX_BYTES: Final = 1 << 30
_PATH: Final = ("impath", "path", "image", "image_path", "img_path", "file", "file_name", "filename")  # fmt: skip
_LABEL: Final = ("label", "class_id", "target", "classname", "class_name", "class")
_ROLE: Final = ("split", "subset", "role", "set")
_SPECIAL: Final = frozenset({*_PATH, "data", "indices"})
_PICKLED: Final = frozenset({".pkl", ".pickle", ".p", ".pt", ".pth", ".joblib"})
TO_JSON: Final = (
    "python -c \"import json, pickle, sys; d = pickle.load(open(sys.argv[1], 'rb')); json.dump("
    "{s: [[x.impath, x.label, x.classname] for x in d[s]] for s in d}, open(sys.argv[2], 'w'))\" IN.pkl OUT.json"
)
"""Converts a pickled draw of CoOp's code; runs where that code runs."""
FORMS: Final = (
    'accepted: {"train": [...], "val": [...]} or a list, of paths, [path, label, class name], or '
    '{"impath": path, "label": label}; or JSON lines of these'
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One example of an index file.

    Attributes:
        path: Its path with ``/``, without ``.`` components.
        label: Its label or class name in the file, or None.
    """

    path: str
    label: int | str | None = None


@dataclass(frozen=True, slots=True)
class IndexFile:
    """A draw by path; see :func:`clipadapt.core.data.published_draws.manifest_of`.

    Attributes:
        path: The file.
        train: Training examples.
        val: Validation examples; empty if the file lists none.
    """

    path: Path
    train: tuple[Entry, ...]
    val: tuple[Entry, ...]


def read_draw(path: Path, classnames: Collection[str] = ()) -> Manifest | IndexFile:
    """Read the draw of an earlier run, or a few-shot index file.

    Args:
        path: The file.
        classnames: Classes of the dataset, one of which may be called train, val or test.

    Raises:
        DataError: If it is a pickle, or neither a manifest nor an index file.
    """
    if not path.is_file():
        return Manifest.read(path)  # raises
    refuse_pickle(path)
    text = read_text(path, "few-shot index file", MAX_BYTES)
    if '"dataset_sha256"' in text or not text.strip():
        return Manifest.read(path)
    rows = list(_rows(_parsed(text, path), path, classnames))
    train, val = (tuple(e for role, e in rows if role == name) for name in ("train", "val"))
    if not train:
        raise DataError(f"the few-shot index file '{path}' lists no train examples", hint=FORMS)
    return IndexFile(path, train, val)


def refuse_pickle(path: Path) -> None:
    """Raise if a file is a pickle: reading one can run any program.

    Raises:
        DataError: With the command that converts CoOp's.
    """
    with path.open("rb") as file:
        head = file.read(2)
    zipped = head == b"PK" and path.suffix in _PICKLED
    if zipped or path.suffix in _PICKLED or (head[:1] == b"\x80" and head[1:] <= b"\x05"):
        raise DataError(
            f"'{path}' is a pickle, which is not read because a pickle can run any program",
            hint=f"convert it to JSON in the environment of the code that wrote it: {TO_JSON}",
        )


def read_json(path: Path, what: str) -> Any:
    """Return the content of a user's JSON file.

    Raises:
        DataError: If it is a pickle or not valid JSON.
    """
    if path.is_file():
        refuse_pickle(path)
    try:
        return json.loads(read_text(path, what, MAX_BYTES))
    except (ValueError, RecursionError) as err:
        raise DataError(f"the {what} '{path}' is not valid JSON: {err}") from None


def plain_path(text: str) -> str:
    """Return a path with ``/`` as separator and without empty and ``.`` components."""
    return "/".join(part for part in text.replace("\\", "/").split("/") if part not in {"", "."})


def _parsed(text: str, path: Path) -> Any:
    """Parse JSON, or JSON lines as a list."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"the few-shot index file '{path}' is nested too deeply") from None
    except ValueError as err:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        at, whole = 0, str(err)
    values = []
    for i, line in lines:
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            at = i
            break
    if at:
        where = f"line {at} is {shown(lines[len(values)][1])}" if values else whole
        raise DataError(
            f"the few-shot index file '{path}' is neither JSON nor JSON lines: {where}", hint=FORMS
        )
    return values


def _rows(
    content: Any, path: Path, classnames: Collection[str]
) -> Iterator[tuple[SplitName, Entry]]:
    """Yield role and entry of each example; those of test are left out."""
    if isinstance(content, dict) and not _by_class(content, classnames):
        parts = [(role, v) for k, v in content.items() if (role := split_named(str(k)))]
        if parts:
            for role, value in parts:
                if role != "test":
                    entries = _entries(value, str(role), path, classnames)
                    yield from ((role, entry) for _, entry in entries)
            return
    entries = _entries(content, "", path, classnames)
    yield from ((role or "train", e) for role, e in entries if role != "test")


def _entries(
    value: Any, where: str, path: Path, classnames: Collection[str]
) -> Iterator[tuple[SplitName | None, Entry]]:
    """Yield the examples in one list or mapping, with the role that each states for itself."""
    if isinstance(value, dict) and _by_class(value, classnames):
        value = [[p, name] for name, paths in value.items() for p in paths]
    elif isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    elif isinstance(value, dict) and not any(key in value for key in _PATH):
        if value and all(isinstance(v, list) for v in value.values()) and "indices" not in value:
            value = [[p, name] for name, paths in value.items() for p in paths]  # by class
        elif value and all(isinstance(v, int) for v in value.values()):
            value = list(map(list, value.items()))  # {path: label}
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise _not_one(value, where, path)
    for i, item in enumerate(value):
        yield _entry(item, f"{where}[{i}]", path)


def _by_class(content: dict[str, Any], classnames: Collection[str]) -> bool:
    """Return whether a mapping of names to lists of paths is by class, although a class has a name with a meaning.

    It is if there are names without one, and each of those is a class of the dataset or a folder in all of its paths.
    """
    lists = content.values()
    if not all(isinstance(v, list) and all(isinstance(p, str) for p in v) for v in lists):
        return False
    known = set(map(class_key, classnames))
    others = [name for name in content if name not in _SPECIAL and split_named(name) is None]
    return bool(others) and all(
        class_key(name) in known
        or all(name in plain_path(p).split("/")[:-1] for p in content[name])
        for name in others
    )


def _entry(item: Any, where: str, path: Path) -> tuple[SplitName | None, Entry]:
    role: SplitName | None = None
    label: Any = None
    found: Any = item
    if isinstance(item, dict):
        found = next((item[key] for key in _PATH if key in item), None)
        label = next((item[key] for key in _LABEL if key in item), None)
        role = split_named(str(next((item[key] for key in _ROLE if key in item), "")))
    elif isinstance(item, list) and item:
        found, label = item[0], item[1] if len(item) > 1 else None
    if not isinstance(found, str) or not plain_path(found):
        raise _not_one(item, where, path)
    if not _is_label(label):
        raise DataError(
            f"the few-shot index file '{path}' has the label {shown(label)} at {where}, "
            "which is neither a whole number nor a text",
            hint=FORMS,
        )
    return role, Entry(plain_path(found), label)


def _is_label(label: Any) -> bool:
    return label is None or (isinstance(label, int | str) and not isinstance(label, bool))


def _not_one(item: Any, where: str, path: Path) -> DataError:
    at = f"{where} is " if where else "it is "
    if isinstance(item, int) or (isinstance(item, dict) and "indices" in item):
        return DataError(
            f"the few-shot index file '{path}' has positions instead of paths ({at}{shown(item)}), "
            "which depend on the code that wrote them",
            hint=FORMS,
        )
    return DataError(
        f"'{path}' is not a few-shot index file: {at}{shown(item)}, which has no path", hint=FORMS
    )
