"""What a config key affects, declared where the key is.

Example::

    lr: PositiveFloat = 1e-3                                  # a method's key affects the result by default
    eval_batch_size: Annotated[PositiveInt, Affects("cost")] = 64

The run id, the rows of a table and ``validate`` are derived from these declarations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

Effect = Literal["result", "cost", "nothing"]
_ALWAYS: Final = object()


@dataclass(frozen=True, slots=True)
class Affects:
    """What a config key affects, and where a key that affects the result is in the run id.

    Attributes:
        effect: ``result``: predictions or metrics; ``cost``: only time, memory or files; ``nothing``: neither.
        place: Where the value is in the run id; empty is ``fit.KEY``.
        facts: Where in the run id the facts are that stand for the value, such as the sha256 of a file. The value
            itself is then not in the id.
        omit: A value that is left out of the id, so that a new key does not change the ids of existing runs.
    """

    effect: Effect
    place: str = ""
    facts: tuple[str, ...] = ()
    omit: Any = _ALWAYS

    @property
    def omitted(self) -> Any:
        """The value of a key that is missing in a recorded config; None if it may have had any."""
        return None if self.omit is _ALWAYS else self.omit

    def omits(self, value: Any) -> bool:
        """Return whether the id is made without this value."""
        return self.omit is not _ALWAYS and bool(value == self.omit)


RESULT: Final = Affects("result")


def declared(field: FieldInfo) -> Affects | None:
    """Return what a field declares, or None."""
    return next((item for item in field.metadata if isinstance(item, Affects)), None)


def find_field(model: type[BaseModel], key: str) -> FieldInfo | None:
    """Return the field of a dotted key, or None; keys inside a mapping belong to the mapping's field."""
    current: Any = model
    field: FieldInfo | None = None
    for part in key.split("."):
        if current is None:
            return field
        field = current.model_fields.get(part)
        if field is None:
            return None
        current = model_within(field.annotation)
    return field


def model_within(annotation: Any) -> Any:
    """Return the first model class inside an annotation such as ``tuple[str | Model, ...] | None``."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next(filter(None, map(model_within, get_args(annotation))), None)
