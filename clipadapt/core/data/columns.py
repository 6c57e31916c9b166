"""Options after a dataset's name (``?key=value``), and the columns of a table that they choose."""

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
        origin: Name of the table, for messages.
        columns: Names of its columns.
        what: ``text``, ``image`` or ``label``; also the key with which the user names the column.
        named: The column named by the user, or None to look for a usual name.
        usual: Usual names, most likely first; case is ignored.
        both: How to name all columns, for the hint.

    Raises:
        DataError: If there is no such column; the message lists the existing ones.
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
        hint=f"name it by adding ?{what}=COLUMN to the dataset's name ({both} for both); if the first line has values "
        "instead of column names, add a line of names above it",
    )


def split_hub_name(
    argument: str, accepted: Sequence[str]
) -> tuple[str, str | None, str, dict[str, str]]:
    """Split ``ORG/NAME[@REVISION][?key=value]``, the part after ``hf:`` of a dataset's name.

    Args:
        argument: The text after ``hf:``.
        accepted: Accepted keys.

    Returns:
        The repository; its revision, or None for ``main``; the name for messages and records; the options.

    Raises:
        DataError: If the repository is missing, or an option is not accepted.
    """
    name, query = split_query(argument, accepted)
    repo, _, revision = name.partition("@")
    if not repo:
        raise DataError("hf: names no dataset", hint="write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    title = f"hf:{name}" + (f"?config={query['config']}" if "config" in query else "")
    return repo, None if revision in {"", "main"} else revision, title, query


def split_query(argument: str, accepted: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Split ``NAME?key=value&key=value``; values may be percent-encoded.

    Raises:
        DataError: If a key is not ``accepted``, is repeated, or has no value.
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
