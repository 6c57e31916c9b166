"""Parse many records: what is the same in several of them is validated once.

``record.json`` has one field per line. The runs of a sweep share most of them, such as config, data and environment;
records are immutable, so they share the parsed values too.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from clipadapt.core.records.migrations import SCHEMA_VERSION
from clipadapt.core.records.schema import RunRecord

if TYPE_CHECKING:
    from collections.abc import Callable

CURRENT: Final = f'{{\n  "schema_version": {SCHEMA_VERSION},'.encode()
"""How a record of the current version begins."""
_TRIES: Final = 64
"""Values of a field that are kept before it is clear whether they repeat."""


class _Field:
    """One field: its validator, and how many different values it had so far."""

    def __init__(self, name: str, parse: Callable[[bytes], Any]) -> None:
        self.name = name
        self.parse = parse
        self.misses = 0


class RecordParser:
    """Parser of the records of one folder; it holds what they share."""

    def __init__(self) -> None:
        self._fields = {
            f'  "{name}"'.encode(): _Field(name, parse) for name, parse in _field_parsers().items()
        }
        self._needed = {n for n, field in RunRecord.model_fields.items() if field.is_required()}
        self._known: dict[bytes, tuple[str, Any]] = {}
        self._records = 0

    def parse(self, body: bytes) -> RunRecord | None:
        """Return a record whose checksum matches; None if it has to be read the long way, which says what is wrong.

        Args:
            body: Content of a ``record.json`` without its checksum.
        """
        if not body.startswith(CURRENT) or not body.endswith(b"\n}"):
            return None
        self._records += 1
        known = self._known
        try:
            values = dict([
                known.get(line) or self._field(line) for line in body[2:-2].split(b"\n")
            ])
        except (KeyError, ValidationError):
            return None
        agrees = (values.get("status") == "ok") == (values.get("error") is None)
        if not agrees or not self._needed <= values.keys():
            return None
        return RunRecord.model_construct(**values)

    def _field(self, line: bytes) -> tuple[str, Any]:
        """Return name and value of a line that is not known; it is kept if lines of its field repeat."""
        key, _, value = line.partition(b": ")
        field = self._fields[key]
        found = field.name, field.parse(value.removesuffix(b","))
        field.misses += 1
        if field.misses < max(_TRIES, self._records // 2):
            self._known[line] = found
        return found


@cache
def _field_parsers() -> dict[str, Callable[[bytes], Any]]:
    parsers: dict[str, Callable[[bytes], Any]] = {}
    for name, field in RunRecord.model_fields.items():
        kind: Any = field.annotation
        if field.metadata:
            kind = Annotated[kind, *field.metadata]
        parsers[name] = fast_validator(TypeAdapter(kind)).validate_json
    return parsers


def fast_validator(model: Any) -> SchemaValidator:
    """Return the validator of a type without the checks of :class:`~clipadapt.core.api.strict.StrictModel`.

    Args:
        model: A model, or a type adapter.
    """

    def without_checks(schema: Any) -> Any:
        if isinstance(schema, dict):
            if schema.get("type") == "function-before":
                return without_checks(schema["schema"])
            return {key: without_checks(value) for key, value in schema.items()}
        return [without_checks(x) for x in schema] if isinstance(schema, list) else schema

    core = model.core_schema if isinstance(model, TypeAdapter) else model.__pydantic_core_schema__
    schema = without_checks(core)
    try:  # else the models inside a record are validated with their checks
        return SchemaValidator(schema, _use_prebuilt=False)
    except TypeError:  # an older pydantic always does that
        return SchemaValidator(schema)
