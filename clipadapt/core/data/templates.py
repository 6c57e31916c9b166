"""Prompt templates: a named set, one template, or a file with one template per line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.user_input import read_text, shown, user_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clipadapt.core.api.data import Dataset

MAX_LIST_BYTES: Final = 100 << 20
"""Size limit of a file of class names or templates."""
_LIKE_A_FILE: Final = re.compile(r"[/\\]|\.\w{1,5}$")
"""A separator or a suffix."""


def read_templates(
    choice: str, dataset: Dataset[Any], sets: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Return the prompt templates that ``--templates`` names.

    Args:
        choice: ``single`` (the dataset's own), the name of a set, one template, or a file with one per line.
        dataset: The dataset evaluated; it may have ``template_sets`` of its own.
        sets: Named sets of templates for any dataset.

    Raises:
        DataError: If the file cannot be read or is empty, or a template does not have exactly one ``{}``.
    """
    if choice == "single":
        return tuple(dataset.templates)
    sets = {**sets, **getattr(dataset, "template_sets", {})}
    if choice in sets:
        return tuple(sets[choice])
    if choice.count("{}") == 1:
        return (choice,)
    if not user_path(choice).exists():
        named = ", ".join(("single", *sets))
        if (" " in choice or "{" in choice) and not _LIKE_A_FILE.search(choice):
            raise DataError(
                f"the template {shown(choice)} needs exactly one '{{}}' for the class name",
                hint=f"for example 'a photo of a {{}}.'; sets of templates are {named}",
            )
        accepted = f"{named}, a template with '{{}}', or a file"
        raise DataError(
            f"there is no templates file {shown(choice)}; accepted: {accepted}"
            if _LIKE_A_FILE.search(choice)
            else f"no templates {shown(choice)} for {dataset.name}; accepted: {accepted}",
            hint="write a file with one template per line, such as 'a photo of a {}.'",
        )
    lines = read_lines(choice, "templates")
    bad = [line for line in lines if line.count("{}") != 1]
    if bad:
        raise DataError(
            f"the template '{bad[0]}' in {choice} needs exactly one '{{}}' for the class name",
            hint="for example 'a photo of a {}.'",
        )
    if not lines:
        raise DataError(f"the templates file {choice} is empty", hint="write one template per line")
    return tuple(lines)


def read_lines(path: str, what: str) -> list[str]:
    """Return the non-empty lines of a user's file, stripped."""
    return [line.strip() for line in read_list_file(path, what).split("\n") if line.strip()]


def read_list_file(path: str, what: str) -> str:
    """Return the text of a user's file of class names or templates."""
    return read_text(user_path(path), f"{what} file", MAX_LIST_BYTES)


def prompts_of(classnames: tuple[str, ...], templates: tuple[str, ...]) -> list[str]:
    """Return ``C * T`` prompts, grouped by class.

    Raises:
        ValueError: If there is no template, or one has no ``{}``.
    """
    bad = [t for t in templates if t.count("{}") != 1]
    if bad or not templates:
        raise ValueError(f"templates need exactly one '{{}}' each, got {bad or 'none'}")
    return [t.replace("{}", name) for name in classnames for t in templates]
