"""Data sets of the Hugging Face hub: found in seconds or refused in seconds, and read from the hub's own cache."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapt.core.errors import DataError
from textsent.datasets._tables import LABEL_COLUMNS, TEXT_COLUMNS, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 8.0
"""A look-up of a host name has no time limit of its own, so the question is given one."""
PATTERNS = ("*.parquet", "*.csv", "*.tsv", "*.json", "*.jsonl", "*.csv.gz", "*.jsonl.gz", "*.arrow")
CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A data set's files on this machine.

    Attributes:
        folder: Folder of the files.
        revision: Their commit.
        note: Why this commit was taken where it may not be the one meant, or an empty string.
    """

    folder: Path
    revision: str
    note: str = ""


def snapshot(
    repo: str, revision: str | None, *, way_out: str, or_any_revision: bool = False
) -> Snapshot:
    """Return the files of a hub data set: downloaded, or as they lie in the hub cache.

    Args:
        repo: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
        way_out: What the user can do without a network.
        or_any_revision: Without a network, take the cached ``main`` where ``revision`` is not cached.

    Raises:
        DataError: If there is no such data set or revision, or the hub does not answer within
            :data:`ANSWER_SECONDS` and the cache has no copy.
    """
    from huggingface_hub import errors, is_offline_mode, snapshot_download
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    unreachable = "HF_HUB_OFFLINE is set"
    try:
        if not is_offline_mode():
            try:
                commit = _ask(repo, revision)
            except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
                raise
            except (httpx.HTTPError, OSError) as err:
                unreachable = str(err) or type(err).__name__
            else:
                folder = snapshot_download(
                    repo,
                    repo_type="dataset",
                    revision=commit,
                    allow_patterns=[*PATTERNS, *CARDS],
                )
                return Snapshot(Path(folder), commit)
        for wanted in (revision, None) if or_any_revision else (revision,):
            try:
                folder = snapshot_download(
                    repo, repo_type="dataset", revision=wanted, local_files_only=True
                )
            except errors.LocalEntryNotFoundError:
                continue
            commit = Path(folder).name
            cached = f"read from the hub cache, commit {commit} ({unreachable})"
            return Snapshot(Path(folder), commit, "" if commit == revision else cached)
    except errors.HFValidationError:
        raise DataError(
            f"'{repo}' is not the name of a hub data set", hint="write hf:ORG/NAME"
        ) from None
    except errors.GatedRepoError:
        raise DataError(
            f"the data set '{repo}' is gated: its page asks for consent first",
            hint=f"accept at https://huggingface.co/datasets/{repo} and set HF_TOKEN",
        ) from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"the hub has no public data set '{repo}'",
            hint="check the name; a private one needs HF_TOKEN",
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"the hub's data set '{repo}' has no revision '{revision}'") from None
    except (httpx.HTTPError, OSError) as err:
        raise DataError(f"the download of '{repo}' failed: {err}", hint=way_out) from None
    at = f" at revision {revision}" if revision else ""
    raise DataError(
        f"the hub cannot be reached for '{repo}' ({unreachable}), and the hub cache holds no copy{at}",
        hint=way_out,
    )


def read(
    folder: Path, origin: str, *, text: str | None, label: str | None, config: str | None
) -> tuple[dict[str, Table], str, str, tuple[str, ...] | None]:
    """Read the text and label columns of every split.

    Args:
        folder: The data set's files.
        origin: Its name, for messages.
        text: Column of the texts, or None to find it.
        label: Column of the labels, or None to find it.
        config: Configuration of a data set that has several.

    Returns:
        One table per split; the two columns; the class names where the column declares them. Declared labels
        come as names, and None where the hub has none (-1).

    Raises:
        DataError: If the files cannot be read, or a column is missing.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    # The prepared copy that the library keeps would grow by one for every data set; the texts end in memory.
    with tempfile.TemporaryDirectory(prefix="clipadapt-") as scratch, _no_bars():
        try:
            loaded = datasets.load_dataset(str(folder), name=config, cache_dir=scratch)
        except (DatasetsError, OSError, ValueError) as err:
            # "An error occurred while generating the dataset": its cause says which.
            raise DataError(
                f"{origin} cannot be read: {str(err.__cause__ or err).strip()}",
                hint="name a configuration by adding ?config=NAME, or download the files again if they are incomplete",
            ) from None
        features: Mapping[str, Any] = next(iter(loaded.values())).features
        names = Table(origin, dict.fromkeys(features, ()))
        text = names.find("text", text, TEXT_COLUMNS)
        label = names.find("label", label, LABEL_COLUMNS)
        columns = {
            split: part.select_columns([text, label]).to_dict() for split, part in loaded.items()
        }
    declared: tuple[str, ...] | None = None
    if isinstance(features[label], datasets.ClassLabel):
        declared = tuple(features[label].names)
        for values in columns.values():
            values[label] = [None if v is None or v < 0 else declared[v] for v in values[label]]
    tables = {s: Table(f"{origin}, split {s}", values) for s, values in columns.items()}
    return tables, text, label, declared


def _ask(repo: str, revision: str | None) -> str:
    """Return the commit of ``revision``; give up after :data:`ANSWER_SECONDS`."""
    from huggingface_hub import HfApi

    answer: Future[str] = Future()

    def ask() -> None:
        try:
            info = HfApi().dataset_info(repo, revision=revision, timeout=CONNECT_SECONDS)
            answer.set_result(str(info.sha))
        except Exception as err:  # noqa: BLE001 - raised again by answer.result()
            answer.set_exception(err)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(timeout=ANSWER_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:.0f} s") from None


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Switch the library's progress bars off for a moment; they would break up the program's own."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
