"""Datasets of the Hugging Face hub: which files to download, configurations, and licences.

A dataset's card (``README.md``) has metadata that name its configurations and their data files. Loading scripts are
never run.
"""

from __future__ import annotations

import glob
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from clipadapt.core.api.errors import DataError, ModelError, did_you_mean
from clipadapt.core.files import hub_client
from clipadapt.core.files.atomic import atomic_directory
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.files.hub import ChoiceError, refuse_damaged, snapshot
from clipadapt.core.files.hub_client import Repo, matching
from clipadapt.core.files.safe_yaml import YamlError, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from clipadapt.core.files.hub import Snapshot

TABLES: Final = (
    *("*.parquet", "*.csv", "*.tsv", "*.json", "*.jsonl", "*.csv.gz", "*.jsonl.gz", "*.arrow"),
)
"""Glob patterns of table files."""
CARD: Final = "README.md"
CARDS: Final = (CARD, ".huggingface.yaml", "dataset_infos.json")
"""Files that describe how to read the others."""
PARQUET: Final = "refs/convert/parquet"
"""Revision under which the hub keeps its own Parquet copy of a dataset."""

_IN_PARQUET_COPY: Final = re.compile(r"[^/]+/[^/]+/\d+\.parquet")
"""Configuration, split and number."""


def dataset(
    name: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    way_out: str,
    or_any_revision: bool = False,
    config: str | None = None,
) -> Snapshot:
    """Return the files of a dataset that match some patterns; see :func:`~clipadapt.core.files.hub.snapshot`.

    Args:
        name: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
        patterns: Glob patterns of the data; the cards are fetched with them.
        way_out: What the user can do without a network.
        or_any_revision: Without a network, use the cached ``main`` if ``revision`` is not cached.
        config: Configuration whose files are wanted, for a dataset that has several.

    Raises:
        DataError: If the files are not available.
    """

    def wanted(files: Sequence[str], read: Callable[[str], Path]) -> list[str]:
        data = [name for name in matching(files, patterns) if name not in CARDS]
        if not data:
            raise _no_data(name, files, patterns)
        entries = _configurations(read(CARD)) if CARD in files else {}
        cards = [name for name in files if name in CARDS]
        return [glob.escape(n) for n in cards + _of_configuration(name, data, entries, config)]

    return snapshot(
        "dataset",
        name,
        revision,
        wanted=wanted,
        error=DataError,
        way_out=way_out,
        or_any_revision=or_any_revision,
    )


def configuration(folder: Path, config: str | None) -> tuple[Path, str | None]:
    """Return a folder whose card has a single configuration, and the name of that configuration.

    The ``datasets`` library also looks for the files of other configurations, which are not downloaded.

    Args:
        folder: The files of a dataset.
        config: The configuration, or None for the only one or the default.
    """
    entries = _configurations(folder / CARD) if (folder / CARD).is_file() else {}
    if not entries and config is not None and (folder / config).is_dir():
        return folder / config, None
    chosen = config or _default(entries)
    if len(entries) < 2 or chosen not in entries:
        return folder, config
    card = _metadata(folder / CARD)
    infos = card.get("dataset_info")
    if isinstance(infos, list):
        infos = [i for i in infos if isinstance(i, dict) and i.get("config_name") == chosen]
    text = yaml.safe_dump({**card, "configs": [entries[chosen]], "dataset_info": infos or {}})
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    others = [str(p) for p in files if str(p) not in {CARD, ".huggingface.yaml"}]
    key = hashlib.sha256(f"{folder}|{text}|{others}".encode()).hexdigest()[:32]
    shown = cache_dir() / "datasets" / "configurations" / key
    if not shown.is_dir():
        with atomic_directory(shown) as new:
            (new / CARD).write_text(f"---\n{text}---\n", encoding="utf-8")
            for name in others:  # the library does not follow a link to a folder
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).symlink_to(folder / name)
    return shown, chosen


def unreadable(folder: Path, origin: str, err: Exception) -> DataError:
    """Return the error for a dataset that the library cannot read, naming a damaged file if there is one.

    Args:
        folder: Its files, see :func:`configuration`.
        origin: Its name.
        err: The library's error.
    """
    # The message is "An error occurred while generating the dataset"; the cause has the details.
    problem = f"{origin} cannot be read: {str(err.__cause__ or err).strip()}"
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            refuse_damaged(path)
        except ModelError as damage:
            return DataError(f"{problem}; {damage.problem}", hint=damage.hint)
        except OSError as unread:
            return DataError(f"{problem}; '{path}': {unread.strerror or unread}")
    return DataError(
        problem, hint="if it has several configurations, choose one by adding ?config=NAME"
    )


def licence_of(files: Snapshot) -> str:
    """Return the licence stated by the hub or the dataset's card, or else a reference to its page."""
    stated = files.licence
    if not stated and (files.folder / CARD).is_file():
        stated = hub_client.licence_text(_metadata(files.folder / CARD).get("license"))
    return stated or files.see


def _metadata(card: Path) -> dict[str, Any]:
    """Return the metadata at the top of a card, empty if they cannot be parsed."""
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", card.read_text(encoding="utf-8"), re.DOTALL)
    try:
        found = parse(head[1]) if head else None
    except YamlError:
        return {}
    return found if isinstance(found, dict) else {}


def _configurations(card: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations in a card by name."""
    found = _metadata(card).get("configs")
    entries = [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []
    return {str(e.get("config_name", "default")): e for e in entries}


def _default(entries: dict[str, dict[str, Any]]) -> str | None:
    """Return the only configuration, or the one stated as the default, or None."""
    if len(entries) == 1:
        return next(iter(entries))
    stated = [name for name, entry in entries.items() if entry.get("default") or name == "default"]
    return stated[0] if stated else None


def _of_configuration(
    name: str, data: list[str], entries: dict[str, dict[str, Any]], config: str | None
) -> list[str]:
    """Return the data files of one configuration.

    Raises:
        DataError: If there is no such configuration, or there are several and none is chosen.
    """
    folders = sorted({file.partition("/")[0] for file in data if "/" in file})
    if config is not None and not entries and config in folders:
        return [file for file in data if file.startswith(f"{config}/")]
    if not entries and all(_IN_PARQUET_COPY.fullmatch(file) for file in data):
        entries = {folder: {"data_dir": folder} for folder in folders}
    chosen = config or _default(entries)
    known = ", ".join(entries)
    if config is not None and entries and config not in entries:
        near = did_you_mean(config, tuple(entries)) or ";"
        raise ChoiceError(f"hf:{name} has no configuration '{config}'{near} it has: {known}")
    if chosen is None and entries:
        raise ChoiceError(
            f"hf:{name} has several configurations: {known}",
            hint=f"choose one by adding ?config=NAME: hf:{name}?config={next(iter(entries))}",
        )
    entry = entries.get(chosen or "", {})
    base = str(entry.get("data_dir") or "").strip("/")
    paths = list(_paths(entry.get("data_files"))) or ["*"]
    patterns = [f"{base}/{path}" if base else path for path in paths]
    patterns += [p.replace("**/", "") for p in patterns]
    return matching(data, patterns) or data


def _paths(data_files: Any) -> Iterator[str]:
    """Yield the paths in a card's ``data_files``: a path, a list, or a mapping of splits to paths."""
    if isinstance(data_files, str):
        yield data_files.removeprefix("./")
    elif isinstance(data_files, dict):
        yield from _paths(data_files.get("path", list(data_files.values())))
    elif isinstance(data_files, list):
        for some in data_files:
            yield from _paths(some)


def _no_data(name: str, files: Sequence[str], patterns: Sequence[str]) -> DataError:
    """Return the error for a repository without data files."""
    scripts = [file for file in files if file.endswith(".py")]
    if not scripts or TABLES[0] not in patterns:
        kinds = ", ".join(sorted({Path(n).suffix or n for n in files})[:8]) or "no file"
        return DataError(f"hf:{name} has no data in a supported format (it has {kinds})")
    problem = f"hf:{name} is a loading script ({scripts[0]}), and scripts are not run"
    copy = Repo("dataset", name, PARQUET)
    try:
        hub_client.list_files(copy)
    except Exception as err:  # noqa: BLE001 - for whatever reason, the copy is not certain to exist
        return DataError(
            problem,
            hint=f"if the hub has a Parquet copy, it is hf:{name}@{PARQUET} (none was found: "
            f"{hub_client.explain(err, copy)[0]})",
        )
    return DataError(problem, hint=f"use the Parquet copy made by the hub: hf:{name}@{PARQUET}")
