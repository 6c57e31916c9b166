"""Columns of a table, found by their usual names or named by the user with ``?key=COLUMN`` after a data set's name."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from clipadapt.core.api.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence


def find_column(
    origin: str,
    columns: Sequence[str],
    what: str,
    named: str | None,
    usual: Sequence[str],
    *,
    both: str,
) -> str:
    """Return the name of the column that holds ``what``.

    Args:
        origin: What to call the table in a message.
        columns: Names of its columns.
        what: ``text``, ``image`` or ``label``; also the key by which the user names it.
        named: The column the user named, or None to look for a usual name.
        usual: Usual names, the likeliest first; case does not matter.
        both: How to name every column at once, for the hint.

    Raises:
        DataError: If there is no such column; the message names those there are.
    """
    present = ", ".join(columns) or "none"
    if named is not None:
        if named not in columns:
            near = did_you_mean(named, tuple(columns)) or ";"
            raise DataError(f"{origin} has no column '{named}'{near} its columns: {present}")
        return named
    folded = {name.strip().casefold(): name for name in reversed(tuple(columns))}
    for name in usual:
        if name in folded:
            return folded[name]
    raise DataError(
        f"{origin} has no column with a usual name for the {what}; its columns: {present}; "
        f"usual names: {', '.join(usual)}",
        hint=f"name it by adding ?{what}=COLUMN to the data set's name ({both} for both); where these are no names "
        "but values, write a line of names above them",
    )


def split_query(argument: str, accepted: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Split ``NAME?key=value&key=value``; values may be percent-encoded.

    Raises:
        DataError: If a key is not among ``accepted``, or has no value.
    """
    name, _, query = argument.partition("?")
    values = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key not in accepted or not value:
            near = did_you_mean(key, accepted) or ";"
            raise DataError(
                f"'{pair}' in '{argument}' is not an option{near} accepted: "
                + ", ".join(f"{a}=VALUE" for a in accepted)
            )
        if key in values:
            raise DataError(f"'{argument}' names the option '{key}' twice")
        values[key] = unquote(value)
    return name.strip(), values
