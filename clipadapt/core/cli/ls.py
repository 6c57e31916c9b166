"""``ls``: list what is registered or shipped, one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from clipadapt.core.api import registry
from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.api.method import setting_of
from clipadapt.core.cli.options import JsonOption, track_of
from clipadapt.core.cli.output import print_json
from clipadapt.core.cli.terminal import print_rows, screen

if TYPE_CHECKING:
    from clipadapt.core.api.about import About
    from clipadapt.core.api.tracks import Track


LONGEST_TEXT: Final = 78
"""Characters of a sentence in a list."""


class Kind(StrEnum):
    """What ``ls`` lists."""

    methods = "methods"
    datasets = "datasets"
    models = "models"
    configs = "configs"
    sweeps = "sweeps"
    protocols = "protocols"


def ls(
    context: typer.Context, kind: Annotated[Kind, typer.Argument()], as_json: JsonOption = False
) -> None:
    """List methods, datasets, models, recipes, sweeps or protocols: kind, needs, paper and a sentence."""
    faults: list[str] = []
    registries: dict[Kind, registry.Registry[Any]] = {
        Kind.methods: registry.METHODS,
        Kind.datasets: registry.DATASETS,
        Kind.models: registry.MODELS,
    }
    track = track_of(context)
    entries: dict[str, registry.Entry] = {}
    files: dict[str, Path] = {}
    if kind in registries:
        entries, faults = registries[kind].survey()
        names = sorted(name for name in entries if name.startswith(f"{track.name}/"))
        if kind is not Kind.methods:
            names = registries[kind].typed(names, track.name)
    else:
        files = _shipped(kind, track.name)
        names = sorted(files)
    if as_json:
        settings = _settings(names) if kind is Kind.methods else {}
        print_json({kind.value: names} | ({"settings": settings} if settings else {}))
    else:
        if kind is Kind.methods:
            rows = list(_methods(names, entries, track))
        elif kind in registries:
            rows = list(_served(registries[kind], entries, track.name))
        else:
            rows = [_file(name, path) for name, path in sorted(files.items())]
        _print(rows, track.name)
    registry.refuse_plugins(faults)


def _print(rows: Sequence[About], track: str) -> None:
    from clipadapt.core.report.formats import Column

    titles = ("name", "kind", "needs", "paper", "what it is")
    on_screen = screen() is not None  # where a line is short
    cells = []
    for r in rows:
        name = r.name.removeprefix(f"{track}/") if on_screen else r.name
        source = r.paper.partition(", arXiv")[0] if on_screen else r.paper
        cells.append([name, r.kind, r.needs, *(_short(x) for x in (source, r.text))])
    shown = [j for j in range(len(titles)) if any(row[j] for row in cells)]
    print_rows(
        [
            Column(titles[j], text=True, figure=True, rank=int(j == 4 and len(shown) > 2))
            for j in shown
        ],
        [[row[j] for j in shown] for row in cells],
    )


def _short(text: str) -> str:
    return shorten(text, LONGEST_TEXT, placeholder="...")


def _settings(names: Sequence[str]) -> dict[str, str]:
    """Return the setting of every method that can be imported."""
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(ClipAdaptError):  # a plug-in's fault is reported when it is used
            found[name] = setting_of(registry.METHODS.get(name))
    return found


def _methods(
    names: Sequence[str], entries: Mapping[str, registry.Entry], track: Track
) -> Iterator[About]:
    """Yield a line for each method: what it is trained on, how it predicts, and which model it needs."""
    from clipadapt.core.api.about import About, about_file, paper

    for name in names:
        of_file = next(about_file(name, entries[name].path))
        kind, needs, found = "", "", ""
        with contextlib.suppress(ClipAdaptError):
            method = registry.METHODS.get(name)
            uses_train = getattr(method, "uses_train", True)
            words = [
                {True: "supervised", False: "zero-shot"}.get(uses_train, ""),
                setting_of(method),
            ]
            kind = ", ".join(word for word in words if word not in {"", "inductive"})
            needs = track.capabilities.get(getattr(method.requires, "__name__", ""), "")
            needs = needs or getattr(method.requires, "__name__", "no model")
            found = paper(method.__doc__ or "")
        text = of_file.text.partition(": ")[2] or of_file.text  # without the name before the colon
        yield About(name, found or of_file.paper, needs, text.partition("; ")[0], kind)


def _served(
    kind: registry.Registry[Any], entries: Mapping[str, registry.Entry], track: str
) -> Iterator[About]:
    """Yield a line for each name of a dataset or model, those that the default file serves included."""
    from clipadapt.core.api.about import About, about_file, from_citation

    default = kind.default(track)
    own = {n.partition("/")[2]: e for n, e in entries.items() if n.startswith(f"{track}/")}
    rows = [row for n, e in own.items() if n != default for row in about_file(n, e.path)]
    for name, (text, source, needs) in kind.served(track).items():
        rows.append(About(name, from_citation(source) or source, needs, text))
    yield from sorted(rows, key=lambda row: row.name.casefold())


def _file(name: str, path: Path) -> About:
    """Return the line of a config file: its first comment, and the source that it states."""
    from clipadapt.core.api.about import About, from_citation
    from clipadapt.core.experiments import shipped
    from clipadapt.core.experiments.dotted import get

    data = shipped.read_fragment(path)
    source = str(get(data, "recipe.source") or get(data, "source") or "").partition(";")[0]
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    text = first.removeprefix("#").strip() if first.startswith("#") else ""
    return About(name, from_citation(source) or source, "", text.removesuffix("."))


def _shipped(kind: Kind, track: str) -> dict[str, Path]:
    from clipadapt.core.experiments import shipped

    match kind:
        case Kind.configs:
            return shipped.config_names(track)
        case Kind.sweeps:
            return shipped.sweep_names(track)
        case _:
            return shipped.protocol_names()
