"""The base of every config and record: a frozen pydantic model without extra keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from clipadapt.core.api import user_input as _given

if TYPE_CHECKING:
    from pydantic import ValidationInfo


Name = Annotated[str, Field(min_length=1), AfterValidator(_given.name)]
Identifier = Annotated[str, AfterValidator(_given.identifier)]


_PLAIN: Final = frozenset({str, int, float, type(None)})


class StrictModel(BaseModel):
    """Frozen model that refuses unknown keys, booleans for numbers, and numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if type(value) in _PLAIN:  # almost all values of a record
            return value
        several = value.values() if isinstance(value, dict) else value
        items = several if isinstance(value, dict | list | tuple) else (value,)
        if any(item is True or item is False for item in items):
            annotation = str(cls.model_fields[str(info.field_name)].annotation)
            inner = isinstance(value, dict) and "dict[" not in annotation  # the fields of a model
            if not inner and not any(kind in annotation for kind in ("bool", "Any", "JsonValue")):
                raise ValueError("true and false are not values of this setting")
        return value
