"""Class names: read from a file, checked for duplicates, and checked against the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import DataError, did_you_mean
from clipadapt.core.api.model import ReadsNames
from clipadapt.core.data.labelled import class_key
from clipadapt.core.data.templates import read_lines, read_list_file
from clipadapt.core.files import safe_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.api.data import Dataset

UNKNOWN_SHARE: Final = 0.02
"""Share of unknown tokens in the class names above which every table shows a flag."""


def read_classnames(path: str | None, dataset: Dataset[Any]) -> tuple[tuple[str, ...], str]:
    """Return the class names in a file, or the dataset's own without a file.

    The file has one name per line in the order of the classes, or maps each class to a name: lines
    ``folder<TAB>name``, ``folder: name`` or ``folder,name`` for every class, or a mapping or list in YAML or JSON.
    If the names are the dataset's own in another order, they are sorted.

    Returns:
        The class names, and the pairing of classes and names if it rests on the order of lines alone, so that it
        must be shown to the user; else an empty string.

    Raises:
        DataError: If the file cannot be read or does not hold one name per class.
    """
    own = tuple(dataset.classnames)
    if path is None:
        return own, ""
    keys = tuple(getattr(dataset, "keys", ())) or own
    names = _read_names(path, keys)
    if isinstance(names, dict):
        return tuple(
            _name_of(key, name, names, path) for key, name in zip(keys, own, strict=True)
        ), ""
    if len(names) != len(own):
        shown = ", ".join(keys[:20]) + (" ..." if len(keys) > 20 else "")
        raise DataError(
            f"the class-names file {path} has {len(names)} names; {dataset.name} has {len(own)} classes: {shown}",
            hint="write one name per line, in this order, or 'CLASS<TAB>NAME' lines",
        )
    for theirs in (own, keys):
        wanted, given = list(map(class_key, theirs)), {class_key(name): name for name in names}
        if wanted == list(given):
            return tuple(names), ""
        if len(given) == len(wanted) and set(given) == set(wanted):
            return tuple(given[key] for key in wanted), ""
    pairs = [f"{key} -> {name}" for key, name in zip(keys, names, strict=True)]
    more = f" and {len(pairs) - 20} more" if pairs[20:] else ""
    return tuple(names), ", ".join(pairs[:20]) + more


def _read_names(path: str, keys: Sequence[str]) -> list[str] | dict[str, str]:
    """Return the content of a class-names file: names in order, or class -> name."""
    if PurePath(path).suffix.lower() in {".yaml", ".yml", ".json"}:
        return _structured_names(path)
    lines = read_lines(path, "class names")
    for mark in ("\t", ":", "=", ",", ";"):
        cells = [[cell.strip() for cell in line.split(mark, 1)] for line in lines]
        if not lines or any(len(pair) != 2 for pair in cells):
            continue
        before = {cell[0] for cell in cells}
        # A name may contain such a mark: the lines are a mapping only if the parts before it are the classes.
        if mark == "\t" or before >= set(keys):
            return _without_repeats(path, [(key, name) for key, name in cells])
        if all(key.isdecimal() for key in before):
            raise DataError(
                f"the lines of the class-names file {path} begin with numbers that are not the classes: '{lines[0]}'; "
                f"the classes are {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}",
                hint=f"write the class before the '{mark}', or names only, one per line, in this order",
            )
    return lines


def _without_repeats(path: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a mapping.

    Raises:
        DataError: If a class is named twice.
    """
    twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
    if twice:
        raise DataError(
            f"the class-names file {path} names the class '{twice[0]}' more than once",
            hint="keep one name for each class",
        )
    return dict(pairs)


def _structured_names(path: str) -> list[str] | dict[str, str]:
    """Return the content of a class-names file in YAML or JSON."""
    text = read_list_file(path, "class names")
    accepted = "a mapping of class to name, or a list of names"
    try:
        value = (
            json.loads(text, object_pairs_hook=lambda pairs: _without_repeats(path, pairs))
            if path.lower().endswith(".json")
            else safe_yaml.parse(text, words=True)
        )
    except (ValueError, RecursionError) as err:
        raise DataError(
            f"the class-names file '{path}' cannot be read: {err}", hint=f"write {accepted}"
        ) from None
    values = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(values, list) or not all(
        isinstance(v, str | int) and not isinstance(v, bool) and str(v).strip() for v in values
    ):
        raise DataError(f"the class-names file '{path}' is not {accepted}, each name a string")
    if isinstance(value, dict):
        return {str(key).strip(): str(name).strip() for key, name in value.items()}
    return [str(name).strip() for name in values]


def _name_of(key: str, name: str, names: Mapping[str, str], path: str) -> str:
    found = names.get(key, names.get(name, ""))
    if not found:
        near = did_you_mean(key, tuple(names)) or ""
        raise DataError(
            f"the class-names file {path} has no name for the class '{key}'{near or ';'} "
            f"it names {len(names)} classes: {', '.join([*names][:8])}{' ...' if len(names) > 8 else ''}",
            hint="write one line 'CLASS<TAB>NAME' for every class",
        )
    return found


def duplicate_names(classnames: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of class names that are equal after normalisation."""
    seen: dict[str, str] = {}
    pairs = []
    for name in classnames:
        key = class_key(name)
        if key in seen:
            pairs.append((seen[key], name))
        seen.setdefault(key, name)
    return pairs


def token_warnings(backbone: Any, classnames: Sequence[str]) -> dict[str, str]:
    """Return a warning for class names with equal or unknown tokens, by the flag that it sets.

    Args:
        backbone: The model; one that does not read class names causes no warning.
        classnames: The class names used in prompts.
    """
    if not isinstance(backbone, ReadsNames):
        return {}
    tokens = backbone.name_tokens(classnames)
    same: dict[tuple[int, ...], list[str]] = {}
    for name, (ids, _) in zip(classnames, tokens, strict=True):
        same.setdefault(ids, []).append(name)
    found = {}
    # Names that are equal as text were already reported when the dataset was opened.
    alike = [names for names in same.values() if len(set(map(class_key, names))) > 1]
    if alike:
        shown = "; ".join(" = ".join(f"'{name}'" for name in names[:5]) for names in alike[:3])
        found["duplicate_classnames"] = (
            f"the tokenizer of {backbone.name} gives these class names the same tokens: {shown}; "
            "no prompt can distinguish these classes"
        )
    unknown = [name for name, (_, n) in zip(classnames, tokens, strict=True) if n]
    share = sum(n for _, n in tokens) / max(sum(len(ids) for ids, _ in tokens), 1)
    if share > UNKNOWN_SHARE:
        found["unknown_tokens"] = (
            f"the tokenizer of {backbone.name} does not know {share:.0%} of the tokens of the class names "
            f"({len(unknown)} of {len(classnames)} names, such as '{unknown[0]}'); name the classes in its language"
        )
    return found


def classnames_sha256(classnames: Sequence[str]) -> str:
    """Return the sha256 of class names in their order."""
    return hashlib.sha256("\0".join(classnames).encode()).hexdigest()
