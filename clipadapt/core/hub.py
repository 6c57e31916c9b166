"""Repositories of the Hugging Face hub: found in seconds or refused in seconds, and read from the hub's own cache."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from clipadapt.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clipadapt.core.errors import ClipAdaptError

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 8.0
"""A look-up of a host name has no time limit of its own, so the question is given one."""

TABLES: Final = (
    *("*.parquet", "*.csv", "*.tsv", "*.json", "*.jsonl", "*.csv.gz", "*.jsonl.gz", "*.arrow"),
    *("README.md", ".huggingface.yaml", "dataset_infos.json"),
)
"""Patterns of a data set's tables, and of the cards that say how to read them."""

Kind = Literal["dataset", "model"]
_WORDS: Final = {"dataset": "data set", "model": "model"}
_WRITE: Final = {"dataset": "write hf:ORG/NAME", "model": "write NAME or ORG/NAME"}
_PAGES: Final = {"dataset": "datasets/", "model": ""}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository's files on this machine.

    Attributes:
        folder: Folder of the files.
        revision: Their commit.
        note: Why this commit was taken where it may not be the one meant, or an empty string.
    """

    folder: Path
    revision: str
    note: str = ""


def cached(kind: Kind, repo: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repository in the hub cache, or None; it may hold a part of the files only."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True)
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


def snapshot(
    kind: Kind,
    repo: str,
    revision: str | None,
    *,
    wanted: Callable[[list[str]], Sequence[str]],
    error: type[ClipAdaptError],
    way_out: str,
    or_any_revision: bool = False,
) -> Snapshot:
    """Return the files of a hub repository: downloaded, or as they lie in the hub cache.

    Args:
        kind: Data set or model.
        repo: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
        wanted: Given the names of all files, returns the patterns of those to download.
        error: What is raised.
        way_out: What the user can do without a network.
        or_any_revision: Without a network, take the cached ``main`` where ``revision`` is not cached.

    Raises:
        ClipAdaptError: As ``error``, if there is no such repository or revision, or the hub does not answer
            within :data:`ANSWER_SECONDS` and the cache has no copy.
    """
    from huggingface_hub import errors, is_offline_mode, snapshot_download
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        httpx,
        validate_repo_id,
    )

    word = _WORDS[kind]
    unreachable = "HF_HUB_OFFLINE is set"
    try:
        validate_repo_id(repo)
        if not is_offline_mode():
            try:
                commit, files = _ask(kind, repo, revision)
            except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
                raise
            except (httpx.HTTPError, OSError) as err:
                unreachable = str(err) or type(err).__name__
            else:
                folder = snapshot_download(
                    repo, repo_type=kind, revision=commit, allow_patterns=list(wanted(files))
                )
                return Snapshot(Path(folder), commit)
        for tried in (revision, None) if or_any_revision else (revision,):
            there = cached(kind, repo, tried)
            if there is not None:
                note = f"read from the hub cache, commit {there.name} ({unreachable})"
                return Snapshot(there, there.name, "" if there.name == revision else note)
    except errors.HFValidationError:
        raise error(f"'{repo}' is not the name of a hub {word}", hint=_WRITE[kind]) from None
    except errors.GatedRepoError:
        raise error(
            f"the {word} '{repo}' is gated: its page asks for consent first",
            hint=f"accept at https://huggingface.co/{_PAGES[kind]}{repo} and set HF_TOKEN",
        ) from None
    except errors.RepositoryNotFoundError:
        raise error(
            f"the hub has no public {word} '{repo}'",
            hint="check the name; a private one needs HF_TOKEN",
        ) from None
    except errors.RevisionNotFoundError:
        raise error(f"the hub's {word} '{repo}' has no revision '{revision}'") from None
    except (httpx.HTTPError, OSError) as err:
        raise error(f"the download of '{repo}' failed: {err}", hint=way_out) from None
    at = f" at revision {revision}" if revision else ""
    raise error(
        f"the hub cannot be reached for '{repo}' ({unreachable}), and the hub cache holds no copy{at}",
        hint=way_out,
    )


def dataset(
    repo: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    way_out: str,
    or_any_revision: bool = False,
) -> Snapshot:
    """Return the files of a data set that fit some patterns, as :func:`snapshot` does.

    Raises:
        DataError: If they cannot be had.
    """
    return snapshot(
        "dataset",
        repo,
        revision,
        wanted=lambda _: patterns,
        error=DataError,
        way_out=way_out,
        or_any_revision=or_any_revision,
    )


def _ask(kind: Kind, repo: str, revision: str | None) -> tuple[str, list[str]]:
    """Return the commit of ``revision`` and the names of its files; give up after :data:`ANSWER_SECONDS`."""
    from huggingface_hub import HfApi

    answer: Future[tuple[str, list[str]]] = Future()

    def ask() -> None:
        try:
            info: Any = HfApi().repo_info(
                repo, repo_type=kind, revision=revision, timeout=CONNECT_SECONDS
            )
            answer.set_result((str(info.sha), [f.rfilename for f in info.siblings or []]))
        except Exception as err:  # noqa: BLE001 - raised again by answer.result()
            answer.set_exception(err)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(timeout=ANSWER_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:.0f} s") from None
