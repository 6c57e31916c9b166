"""Settings of a recipe that depend on the number of shots or on the dataset.

A config file may hold lines beside its other settings, its body::

    by_shots: {1: {method: {epochs: 50}}, 2: {method: {epochs: 100}}, 8: {method: {epochs: 200}}}
    by_dataset: {imagenet: {method: {epochs: 50}}, dtd: {by_shots: {16: {method: {epochs: 300}}}}}

The line of ``by_shots`` with the largest key that is at most ``data.shots`` applies, and none to full data. The line of
the dataset goes over it, and the ``by_shots`` inside that line goes over both. Settings of later files and of ``--set``
go over all lines of earlier ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from clipadapt.core.api.errors import ConfigError, did_you_mean
from clipadapt.core.api.limits import Shots
from clipadapt.core.api.registry import dataset_key, dataset_keys
from clipadapt.core.api.user_input import read_text, shown, user_path, visible
from clipadapt.core.experiments import dotted

if TYPE_CHECKING:
    from collections.abc import Iterator

BY_SHOTS: Final = "by_shots"
BY_DATASET: Final = "by_dataset"
# What a line must not set, because it depends on it.
FIXED: Final = ("data.name", "data.shots", "data.manifest", "method.name")
MAX_MANIFEST_BYTES: Final = 1 << 30
_LINE: Final = re.compile(rf"(, {BY_DATASET} [^,/]+)?(, {BY_SHOTS} \d+)?$")
_SHOTS: Final[TypeAdapter[int | None]] = TypeAdapter(Shots | None)
_EXAMPLE: Final = "for example {1: {method: {epochs: 50}}}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        path: Where it is, as in ``by_dataset.dtd.by_shots.16``.
        settings: Its settings, as plain data.
        dataset: Dataset that it is for; None is any.
        shots: Smallest number of shots that it is for; None is any, and full data.
    """

    path: str
    settings: Mapping[str, Any]
    dataset: str | None = None
    shots: int | None = None

    @property
    def words(self) -> str:
        """The line in words, as in ``by_dataset dtd, by_shots 16``."""
        parts = ((BY_DATASET, self.dataset), (BY_SHOTS, self.shots))
        return ", ".join(f"{kind} {key}" for kind, key in parts if key is not None)


def body_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config file without its lines."""
    return {key: value for key, value in data.items() if key not in {BY_SHOTS, BY_DATASET}}


def lines_of(data: Mapping[str, Any], track: str, faults: list[str]) -> list[Line]:
    """Return the lines of a config file, from the weakest to the strongest.

    Args:
        data: The file as plain data.
        track: Track of the datasets.
        faults: What is wrong with their form is added to it, one text per fault.
    """
    found = list(_by_shots(data.get(BY_SHOTS), "", None, faults))
    entries = data.get(BY_DATASET)
    if entries is not None and not isinstance(entries, Mapping):
        faults.append(
            f"  {BY_DATASET}: it maps names of datasets to settings, {_EXAMPLE.replace('1', 'dtd')} "
            f"(got {shown(entries)})"
        )
    seen: dict[str, str] = {}
    for name, entry in entries.items() if isinstance(entries, Mapping) else ():
        path, dataset = f"{BY_DATASET}.{visible(str(name))}", dataset_key(str(name), track)
        if ":" in str(name):
            faults.append(f"  {path}: write the name before ':', {dataset!r}")
        elif dataset not in (known := dataset_keys(track)):
            near = did_you_mean(dataset, known) or ";"
            faults.append(f"  {path}: unknown dataset{near} accepted: {', '.join(known)}")
        elif dataset in seen:
            faults.append(
                f"  {path}: it is the same dataset as '{seen[dataset]}'; write one of them"
            )
        elif not isinstance(entry, Mapping):
            faults.append(f"  {path}: it maps keys to values (got {shown(entry)})")
        else:
            own = {key: value for key, value in entry.items() if key != BY_SHOTS}
            found += _checked(Line(path, own, dataset), faults)
            found += _by_shots(entry.get(BY_SHOTS), f"{path}.", dataset, faults)
        seen.setdefault(dataset, visible(str(name)))
    return found


def _by_shots(lines: Any, prefix: str, dataset: str | None, faults: list[str]) -> Iterator[Line]:
    if lines is None:
        return
    if not isinstance(lines, Mapping):
        faults.append(
            f"  {prefix}{BY_SHOTS}: it maps numbers of shots to settings, {_EXAMPLE} (got {shown(lines)})"
        )
        return
    found: list[Line] = []
    seen: set[int] = set()
    for key, settings in lines.items():
        path = f"{prefix}{BY_SHOTS}.{visible(str(key))}"
        try:
            shots = _SHOTS.validate_python(key)
        except ValidationError:
            shots = None
        if shots is None:
            faults.append(f"  {path}: a line of {BY_SHOTS} needs a positive number of shots")
        elif shots in seen:
            faults.append(f"  {path}: there are two lines for {shots} shots; write one of them")
        elif not isinstance(settings, Mapping):
            faults.append(f"  {path}: it maps keys to values (got {shown(settings)})")
        else:
            found += _checked(Line(path, settings, dataset, shots), faults)
        seen.add(shots or 0)
    yield from sorted(found, key=lambda line: line.shots or 0)


def _checked(line: Line, faults: list[str]) -> list[Line]:
    """Return a line in a list, or none if it has settings that it must not have; these are added to ``faults``."""
    wrong = [
        f"  {line.path}.{key}: a line must not set it, because it decides which lines apply"
        for key in FIXED
        if key in dotted.flatten(line.settings)
    ]
    for key in (BY_SHOTS, BY_DATASET):
        if key in line.settings:
            where = f"a line of {BY_DATASET}" if key == BY_SHOTS else "the top level of the file"
            wrong.append(f"  {line.path}.{key}: {key} belongs in {where}")
    faults += wrong
    return [] if wrong else [line]


def applied(lines: list[Line], raw: Mapping[str, Any], track: str) -> list[Line]:
    """Return the lines that apply to an experiment, from the weakest to the strongest.

    Args:
        lines: The lines of one file, in the order of :func:`lines_of`.
        raw: The merged bodies of all files, perhaps not valid.
        track: Track of the dataset.
    """
    if not lines:
        return []
    data = raw.get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    dataset = dataset_key(name, track) if isinstance(name, str) else None
    shots = _shots_of(data, raw.get("seeds", (1,))) if isinstance(data, Mapping) else None
    last: dict[tuple[str | None, bool], Line] = {}
    for line in lines:
        for_dataset = line.dataset in {None, dataset}
        for_shots = line.shots is None or (shots is not None and line.shots <= shots)
        if for_dataset and for_shots:
            last[line.dataset, line.shots is None] = (
                line  # a larger number of shots replaces a smaller one
            )
    return list(last.values())


def _shots_of(data: Mapping[str, Any], seeds: Any) -> int | None:
    """Return the number of shots of an experiment, None for full data or if it is not known.

    Of a manifest per seed, the first seed's counts.
    """
    manifest = data.get("manifest")
    if isinstance(manifest, str) and isinstance(seeds, list | tuple) and seeds:
        manifest = manifest.replace("{seed}", str(seeds[0]))
    if manifest is not None and (stated := _shots_in(manifest)) is not None:
        return stated
    try:
        return _SHOTS.validate_python(data.get("shots"))
    except ValidationError:
        return None  # reported with the other faults of the experiment


def _shots_in(manifest: Any) -> int | None:
    """Return the number of shots that the file of a draw states; None if it states none, as few-shot index files."""
    try:
        content = json.loads(read_text(user_path(manifest), "manifest", MAX_MANIFEST_BYTES))
        return _SHOTS.validate_python(content["shots"])
    except (ConfigError, ValueError, TypeError, KeyError, RecursionError):
        return None  # whether it is a valid draw is checked when it is used


def file_of(origin: str) -> str:
    """Return the name of the file in the origin of a value, without its folder, suffix and line."""
    return Path(_LINE.sub("", origin)).stem


def line_of(origin: str) -> str:
    """Return the line in the origin of a value, as in ``by_shots 16``; empty if it is not from a line."""
    return _LINE.search(origin)[0].removeprefix(", ")  # type: ignore[index]  # it matches every text
