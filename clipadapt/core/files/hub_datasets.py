"""TODO."""

from __future__ import annotations

import glob
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from clipadapt.core.api.errors import DataError, ModelError, did_you_mean
from clipadapt.core.files.atomic import atomic_directory
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.files.hub import (
    _ask,
    _ChoiceError,
    _chosen,
    _told,
    joined,
    refuse_damaged,
    snapshot,
)
from clipadapt.core.files.safe_yaml import YamlError, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from clipadapt.core.files.hub import (
        Snapshot,
    )


TABLES: Final = (
    *("*.parquet", "*.csv", "*.tsv", "*.json", "*.jsonl", "*.csv.gz", "*.jsonl.gz", "*.arrow"),
)
"""Patterns of a data set's tables."""


CARD: Final = "README.md"


CARDS: Final = (CARD, ".huggingface.yaml", "dataset_infos.json")
"""Files that say how to read the others."""


PARQUET: Final = "refs/convert/parquet"
"""Where the hub keeps the Parquet copy that it makes of data sets."""


_IN_PARQUET_COPY: Final = re.compile(r"[^/]+/[^/]+/\d+\.parquet")
"""Configuration, split and number."""


def dataset(
    repo: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    way_out: str,
    or_any_revision: bool = False,
    config: str | None = None,
) -> Snapshot:
    """Return the files of a data set that fit some patterns, as :func:`snapshot` does.

    Args:
        repo: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
        patterns: Of the data; the cards are fetched with them.
        way_out: What the user can do without a network.
        or_any_revision: See :func:`snapshot`.
        config: The only configuration whose files are wanted, of a data set that has several.

    Raises:
        DataError: If they cannot be had.
    """

    def wanted(files: Sequence[str], read: Callable[[str], Path]) -> list[str]:
        data = _chosen(files, patterns)
        data = [name for name in data if name not in CARDS]
        if not data:
            raise _no_data(repo, files, patterns)
        entries = _configurations(read(CARD)) if CARD in files else {}
        cards = [name for name in files if name in CARDS]
        return [glob.escape(n) for n in cards + _of_configuration(repo, data, entries, config)]

    return snapshot(
        "dataset",
        repo,
        revision,
        wanted=wanted,
        error=DataError,
        way_out=way_out,
        or_any_revision=or_any_revision,
    )


def configuration(folder: Path, config: str | None) -> tuple[Path, str | None]:
    """Return a folder in which a data set's card names one configuration alone, and that one's name.

    The library that reads a data set looks for the files of its other configurations, which are not fetched.

    Args:
        folder: The files of a data set.
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
            for name in others:  # a link to a folder would not be looked into
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).symlink_to(folder / name)
    return shown, chosen


def unreadable(folder: Path, origin: str, err: Exception) -> DataError:
    """Return the error for a data set that the library cannot read; a file that came damaged is named.

    Args:
        folder: Its files, see :func:`configuration`.
        origin: Its name.
        err: What the library says.
    """
    # "An error occurred while generating the dataset": its cause says which.
    problem = f"{origin} cannot be read: {str(err.__cause__ or err).strip()}"
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            refuse_damaged(path)
        except ModelError as damage:
            return DataError(f"{problem}; {damage.problem}", hint=damage.hint)
        except OSError as unread:
            return DataError(f"{problem}; '{path}': {unread.strerror or unread}")
    return DataError(problem, hint="name a configuration by adding ?config=NAME, if it has several")


def licence_of(files: Snapshot) -> str:
    """Return what a data set's card says of its licence, or an empty string."""
    if files.licence or not (files.folder / CARD).is_file():
        return files.licence
    return joined(_metadata(files.folder / CARD).get("license"))


def _metadata(card: Path) -> dict[str, Any]:
    """Return the metadata at the head of a card; none where they cannot be read."""
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", card.read_text(encoding="utf-8"), re.DOTALL)
    try:
        found = parse(head[1]) if head else None
    except YamlError:
        return {}
    return found if isinstance(found, dict) else {}


def _configurations(card: Path) -> dict[str, dict[str, Any]]:
    found = _metadata(card).get("configs")
    entries = [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []
    return {str(e.get("config_name", "default")): e for e in entries}


def _default(entries: dict[str, dict[str, Any]]) -> str | None:
    if len(entries) == 1:
        return next(iter(entries))
    stated = [name for name, entry in entries.items() if entry.get("default") or name == "default"]
    return stated[0] if stated else None


def _of_configuration(
    repo: str, data: list[str], entries: dict[str, dict[str, Any]], config: str | None
) -> list[str]:
    """Return the data files of one configuration.

    Raises:
        DataError: If there is no such configuration, or several and none is asked for.
    """
    folders = sorted({name.partition("/")[0] for name in data if "/" in name})
    if config is not None and not entries and config in folders:
        return [name for name in data if name.startswith(f"{config}/")]
    if not entries and all(_IN_PARQUET_COPY.fullmatch(name) for name in data):
        entries = {folder: {"data_dir": folder} for folder in folders}
    chosen = config or _default(entries)
    known = ", ".join(entries)
    if config is not None and entries and config not in entries:
        near = did_you_mean(config, tuple(entries)) or ";"
        raise _ChoiceError(f"hf:{repo} has no configuration '{config}'{near} it has: {known}")
    if chosen is None and entries:
        raise _ChoiceError(
            f"hf:{repo} has several configurations: {known}",
            hint=f"choose one by adding ?config=NAME: hf:{repo}?config={next(iter(entries))}",
        )
    entry = entries.get(chosen or "", {})
    base = str(entry.get("data_dir") or "").strip("/")
    paths = list(_paths(entry.get("data_files"))) or ["*"]
    patterns = [f"{base}/{path}" if base else path for path in paths]
    patterns += [p.replace("**/", "") for p in patterns]
    return _chosen(data, patterns) or data


def _paths(data_files: Any) -> Iterator[str]:
    """Yield the paths of a card's ``data_files``: one, several, or some for each split."""
    if isinstance(data_files, str):
        yield data_files.removeprefix("./")
    elif isinstance(data_files, dict):
        yield from _paths(data_files.get("path", list(data_files.values())))
    elif isinstance(data_files, list):
        for some in data_files:
            yield from _paths(some)


def _no_data(repo: str, files: Sequence[str], patterns: Sequence[str]) -> DataError:
    scripts = [name for name in files if name.endswith(".py")]
    if not scripts or TABLES[0] not in patterns:
        kinds = ", ".join(sorted({Path(n).suffix or n for n in files})[:8]) or "no file"
        return DataError(f"hf:{repo} holds no data that can be read here (it has {kinds})")
    problem = f"hf:{repo} is a loading script ({scripts[0]}), and scripts are not run"
    try:
        _ask("dataset", repo, PARQUET)
    except Exception as err:  # noqa: BLE001 - whatever the reason, it cannot be offered as certain
        return DataError(
            problem,
            hint=f"where the hub has made a Parquet copy, it is hf:{repo}@{PARQUET} (none was found: "
            f"{_told(err, 'dataset', repo, PARQUET)[0]})",
        )
    return DataError(problem, hint=f"take the Parquet copy that the hub made: hf:{repo}@{PARQUET}")
