"""Reference pages of the documentation site, made from the code: commands, config keys and methods.

mkdocs runs it through mkdocs-gen-files. Text comes from docstrings, ``--help``, recipes and the tables that other
scripts measured; nothing is written by hand here.
"""

from __future__ import annotations

import html
import inspect
import re
from enum import Enum, EnumType
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from clipadapt.core.api.registry import METHODS, tracks
from clipadapt.core.experiments.settings import ExperimentConfig, declarations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]


def pages() -> dict[str, str]:
    """Return Markdown by path below ``docs``."""
    found = {"reference/commands.md": commands(), "reference/config.md": config()}
    names = METHODS.names()
    for name in names:
        found[f"reference/methods/{name}.md"] = method(name)
    found["reference/methods/index.md"] = methods(names)
    return found


# ---------------------------------------------------------------- commands


def commands() -> str:
    """Return every command with its options, as ``--help`` describes them."""
    from typer.main import get_command

    import clipadapt.cli
    import textsent.cli

    parts = ["# Commands\n"]
    for app in (clipadapt.cli.app, textsent.cli.app):
        group: Any = get_command(app)
        parts.append(f"## {group.name}\n\n{_plain(group.help)}\n")
        parts += _commands(group, str(group.name))
    return "\n".join(parts)


def _commands(group: Any, program: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, f"{program} {name}")
            continue
        yield f"### {program} {name}\n\n{_plain(command.help)}\n"
        rows = [_parameter(p) for p in command.params if not getattr(p, "hidden", False)]
        yield _table(("argument or option", "default", "meaning"), rows)
        if command.epilog:
            example = _plain(command.epilog).removeprefix("Example: ")
            yield f"```sh\n{example}\n```\n"


def _parameter(p: Any) -> tuple[str, str, str]:
    """Return name, default and meaning of an argument or option."""
    option = bool(p.opts and p.opts[0].startswith("-"))
    name = ", ".join(p.opts) if option else p.metavar or str(p.name).upper()
    if option and not p.is_flag:
        kind = p.type_descriptor.annotation
        choices = "|".join(c.value for c in kind) if isinstance(kind, EnumType) else ""
        name = f"{name} {p.metavar or choices or kind.__name__.upper()}"
    default = p.default.value if isinstance(p.default, Enum) else p.default
    shown = "" if default in (None, False, (), [], "") or p.required else f"`{default}`"
    return f"`{name}`", shown, _plain(p.help)


def _plain(text: str | None) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\[/?[a-z ]*\]", "", text or "")).strip()


# ---------------------------------------------------------------- config keys


def config() -> str:
    """Return every config key with its type, default, effect and meaning."""
    rows = [
        (f"`{key}`", _type(field), _default(field), _effect(key), text)
        for key, field, text in _keys(ExperimentConfig, "")
        if not key.startswith("method.")
    ]
    head = ("key", "type", "default", "affects", "meaning")
    return (
        "# Config keys\n\nEvery key of a config file, and of `--set KEY=VALUE`. What a key affects decides "
        "whether it is part of the run id: only `result` is. The keys below `method` belong to "
        "[each method](methods/index.md).\n\n" + _table(head, rows)
    )


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo, str]]:
    told = _attributes(model)
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field, told.get(name, "")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    from pydantic import BaseModel

    kinds = [k for k in (get_args(annotation) or (annotation,)) if k is not type(None)]
    if len(kinds) != 1 or not isinstance(kinds[0], type) or get_origin(annotation) is tuple:
        return None
    return kinds[0] if issubclass(kinds[0], BaseModel) else None


def _attributes(model: type) -> dict[str, str]:
    """Return the ``Attributes`` of a class and its bases, by name."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        lines = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for match in re.finditer(r"^    (\w+): (.*(?:\n        .*)*)", lines, re.MULTILINE):
            found[match[1]] = re.sub(r"\s+", " ", match[2]).replace("``", "`")
    return found


def _type(field: FieldInfo) -> str:
    return f"`{_type_name(field.annotation)}`"


def _type_name(kind: Any) -> str:
    """Return a type in the words of Python, without limits and other metadata."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " | ".join(repr(value) for value in inner)
    if origin in {Union, UnionType}:
        return " | ".join(_type_name(one) for one in inner)
    if kind is type(None):
        return "None"
    if kind is ...:
        return "..."
    if inner:
        return f"{_type_name(origin)}[{', '.join(_type_name(one) for one in inner)}]"
    return str(getattr(kind, "__name__", kind))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None else f"`{value}`"


def _effect(key: str) -> str:
    found = declarations().get(key)
    return found.effect if found is not None else ""


# ---------------------------------------------------------------- methods


def methods(names: list[str]) -> str:
    """Return the list of methods."""
    rows = [
        (
            f"[{name}]({name}.md)",
            _summary(METHODS.get(name)),
            str(getattr(METHODS.get(name), "setting", "inductive")),
        )
        for name in names
    ]
    return "# Methods\n\n" + _table(("method", "what it does", "setting"), rows)


def method(name: str) -> str:
    """Return the page of one method: docstring, settings, recipes, and its rows of the measured table."""
    kind: Any = METHODS.get(name)
    track, _, short = name.partition("/")
    parts = [f"# {name}\n", _docstring(kind)]
    needs = getattr(kind.requires, "__name__", None)
    facts = [
        f"setting: {getattr(kind, 'setting', 'inductive')}",
        f"needs: {f'a model that is `{needs}`' if needs else 'no model'}",
        f"uses training data: {'yes' if getattr(kind, 'uses_train', True) else 'no'}",
    ]
    parts.append("".join(f"- {fact}\n" for fact in facts))
    program = tracks()[track].program
    parts.append(
        f"```sh\n{program} run {short} --dataset NAME{' --model NAME' if needs else ''}\n```\n"
    )
    rows = [
        (f"`{key}`", _type(field), _default(field), text)
        for key, field, text in _keys(kind.Config, "")
        if key != "name"
    ]
    if rows:
        parts.append(
            "## Settings\n\nKeys below `method`.\n\n"
            + _table(("key", "type", "default", "meaning"), rows)
        )
    parts += [_recipe(path) for path in _recipes(track, name)]
    measured = _measured(name)
    if measured:
        parts.append(f"## Measured\n\nFrom [the results](../../../results.md).\n\n{measured}")
    return "\n".join(parts)


def _summary(kind: type) -> str:
    return _plain(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]).replace("``", "`")


def _docstring(kind: type) -> str:
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", inspect.cleandoc(kind.__doc__ or ""))
    text = re.sub(
        r"^(References|Attributes|Args|Raises):\n", r"**\1**\n\n", text, flags=re.MULTILINE
    )
    return re.sub(r"^    ", "", text, flags=re.MULTILINE).replace("``", "`") + "\n"


def _recipes(track: str, name: str) -> list[Path]:
    """Return the recipes of a method, the paper's first."""
    found = []
    for path in sorted((ROOT / "configs" / "methods" / track).glob("*.yaml")):
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        if loaded.get("method", {}).get("name") == name:
            found.append(path)
    return sorted(found, key=lambda p: ("-" in p.stem, p.stem))


def _recipe(path: Path) -> str:
    loaded: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    told = loaded.get("recipe", {})
    parts = [f"## Recipe `{path.stem}`\n"]
    if told.get("source"):
        parts.append(f"{told['source']}\n")
    if told.get("deviations"):
        parts.append(
            "Deviations from the source:\n\n" + "".join(f"- {d}\n" for d in told["deviations"])
        )
    parts.append(f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```\n")
    return "\n".join(parts)


def _measured(name: str) -> str:
    """Return the rows of a method in the tables of docs/results.md."""
    rows: list[str] = []
    head: list[str] = []
    escaped = name.replace("_", "\\_")
    for line in (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| dataset |"):
            head = [line]
        elif line.startswith("| ---") and len(head) == 1:
            head.append(line)
        elif f"| {escaped} (" in line:
            rows += [*(head if not rows else ()), line]
    return "\n".join([*rows, ""]) if rows else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def cell(text: str) -> str:
        """Return a cell; a bar in code cannot be escaped in Markdown."""
        code = re.sub(r"`([^`]*\|[^`]*)`", lambda m: f"<code>{html.escape(m[1])}</code>", text)
        return code.replace("\n", " ").replace("|", "&#124;")

    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell(c) for c in line)} |\n" for line in lines)


def main() -> None:
    """Write the pages into the site that mkdocs builds."""
    import mkdocs_gen_files

    for path, text in pages().items():
        with mkdocs_gen_files.open(path, "w") as file:
            file.write(text)


if __name__ in {"__main__", "<run_path>"}:
    main()
