"""Safe YAML: plain data only, according to the core schema of YAML 1.2, with limits on size and depth.

``on``, ``off``, ``yes``, ``no``, ``2024-13-45``, ``1:30`` and ``007`` are strings, and no tag builds an object. Aliases
that would expand without limit are rejected before they are expanded.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml
from yaml import events

from clipadapt.core.api.user_input import visible

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 20_000
"""Limit on the values in one document; an alias counts as its values, each time."""
MAX_DIGITS: Final = 25

_SCALARS: Final = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?(?:0|[1-9][0-9]*)"),
    "float": re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}
_TAG: Final = "tag:yaml.org,2002:"


class YamlError(ValueError):
    """Invalid YAML, or YAML that exceeds a limit; the message has the position."""


def parse(text: str, *, words: bool = False) -> Any:
    """Parse the one document in a text to dicts, lists, strings, numbers, booleans and None.

    Args:
        text: The text.
        words: Keep every number, boolean and null as a string, including keys.

    Raises:
        YamlError: If it is not valid YAML, exceeds a limit, or has a key that is neither a string nor a whole number.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES:,} characters")
    try:
        return _Reader(text, words=words).document()
    except yaml.MarkedYAMLError as err:
        problem = " ".join(part for part in (err.context, err.problem) if part)
        raise _fault(problem, err.problem_mark or err.context_mark) from None
    except yaml.YAMLError as err:  # a character that YAML does not allow
        raise YamlError(" ".join(str(err).split())) from None


def _fault(problem: str, mark: Any) -> YamlError:
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return YamlError(where + visible(problem))


class _Reader:
    """Converts the events of one document to plain data and counts its values."""

    def __init__(self, text: str, *, words: bool) -> None:
        self.words = words
        self.events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self.anchors: dict[str, tuple[Any, int, int]] = {}  # value, number of values, levels below
        self.count = 0

    def document(self) -> Any:
        next(self.events)  # start of the stream
        if isinstance(next(self.events), events.StreamEndEvent):
            return None
        value, _ = self.value(next(self.events), 1)
        next(self.events)  # end of the document
        more = next(self.events)
        if not isinstance(more, events.StreamEndEvent):
            raise _fault("a second document begins here", more.start_mark)
        return value

    def value(self, event: Any, depth: int) -> tuple[Any, int]:
        """Return the value that starts with an event, and the number of levels below it."""
        if isinstance(event, events.AliasEvent):
            if event.anchor not in self.anchors:
                raise _fault(
                    f"the alias '*{event.anchor}' is undefined, or contains itself",
                    event.start_mark,
                )
            value, size, height = self.anchors[event.anchor]
            self.count += size
        else:
            before, self.count = self.count, self.count + 1
            value, height = self._new(event, depth)
            if event.anchor is not None:
                self.anchors[event.anchor] = value, self.count - before, height
        if depth + height > MAX_DEPTH:
            raise _fault(f"more than {MAX_DEPTH} levels deep", event.start_mark)
        if self.count > MAX_VALUES:
            raise _fault(f"more than {MAX_VALUES:,} values, including aliases", event.start_mark)
        return value, height

    def _new(self, event: Any, depth: int) -> tuple[Any, int]:
        if depth > MAX_DEPTH:
            raise _fault(f"more than {MAX_DEPTH} levels deep", event.start_mark)
        if isinstance(event, events.ScalarEvent):
            return (event.value if self.words else _scalar(event)), 0
        if event.tag not in {None, "!", f"{_TAG}seq", f"{_TAG}map"}:
            raise _fault(f"unknown tag '{event.tag}'", event.start_mark)
        if isinstance(event, events.SequenceStartEvent):
            return self._list(depth)
        return self._mapping(depth)

    def _list(self, depth: int) -> tuple[list[Any], int]:
        items, height = [], 0
        while not isinstance(event := next(self.events), events.SequenceEndEvent):
            item, levels = self.value(event, depth + 1)
            items.append(item)
            height = max(height, levels + 1)
        return items, height

    def _mapping(self, depth: int) -> tuple[dict[str, Any], int]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        height = 0
        while not isinstance(event := next(self.events), events.MappingEndEvent):
            key, _ = self.value(event, depth + 1)
            value, levels = self.value(next(self.events), depth + 1)
            height = max(height, levels + 1)
            if isinstance(key, int) and not isinstance(key, bool):
                key = str(key)  # a number of shots
            if not isinstance(key, str):
                raise _fault(f"the key {key!r} is not a string", event.start_mark)
            if key == "<<":
                several = value if isinstance(value, list) else [value]
                if not all(isinstance(one, dict) for one in several):
                    raise _fault("'<<' needs a mapping, or a list of mappings", event.start_mark)
                for one in several:  # if several have a key, the first wins
                    merged = {**one, **merged}
            elif key in own:
                raise _fault(f"the key '{key}' occurs twice", event.start_mark)
            else:
                own[key] = value
        return {**merged, **own}, height


def _scalar(event: events.ScalarEvent) -> Any:
    text: str = event.value
    if event.tag is None and event.style is None:
        kind = next((k for k, pattern in _SCALARS.items() if pattern.fullmatch(text)), "str")
    elif event.tag in {None, "!"}:
        kind = "str"
    else:
        kind = event.tag.removeprefix(_TAG)
        fits = ("float", "int") if kind == "float" else (kind,)
        if kind != "str" and not any(k in _SCALARS and _SCALARS[k].fullmatch(text) for k in fits):
            raise _fault(f"'{text[:40]}' is not a value of the tag '{event.tag}'", event.start_mark)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        if len(text) > MAX_DIGITS:
            raise _fault(f"a number with {len(text):,} digits", event.start_mark)
        return int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
