"""Repositories of the Hugging Face hub: read from the hub's own cache, downloaded if they are missing.

The first use of a repository pins its commit, which the hub cache keeps as ``refs/main``. A complete copy in the cache
is used as it is. If ``main`` has moved on the hub, that is reported but not followed, unless another program downloaded
the new commit.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import ClipAdaptError, DataError, ModelError
from clipadapt.core.files import hub_client
from clipadapt.core.files.atomic import write_text
from clipadapt.core.files.checksums import read_sealed_json, sha256_file, write_sealed_json
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.files.hub_client import DownloadError, Repo, matching

if TYPE_CHECKING:
    from pathlib import Path

    from clipadapt.core.files.hub_client import Kind, Listing, Wanted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository on this machine.

    Attributes:
        repo: The repository.
        folder: Folder of the files.
        revision: Their commit.
        note: Why this commit is used, if it may not be the expected one; else an empty string.
        licence: Licence stated by the hub, or an empty string.
    """

    repo: Repo
    folder: Path
    revision: str
    note: str = ""
    licence: str = ""

    @property
    def see(self) -> str:
        """Reference to the page, where nothing more precise is known."""
        return f"see {self.repo.page}"

    @property
    def source(self) -> str:
        """Page and commit, for a record."""
        return f"{self.repo.page}, commit {self.revision}"


class _MissingError(Exception):
    """A file that determines which files are wanted is not cached."""


class ChoiceError(DataError):
    """The user has to make a choice, whichever files are cached."""


def cached(kind: Kind, name: str, revision: str | None, wanted: Wanted) -> Snapshot | None:
    """Return a repository from the hub cache, or None if a wanted file is missing.

    Args:
        kind: Dataset or model.
        name: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
        wanted: See :func:`snapshot`.

    Raises:
        ClipAdaptError: From ``wanted``, if the repository is known not to have the wanted files.
    """
    return _cached(Repo(kind, name, revision), wanted)


def _cached(repo: Repo, wanted: Wanted) -> Snapshot | None:
    commit = _cached_commit(repo)
    folder = repo.storage / "snapshots" / commit
    if not commit or not folder.is_dir():
        return None
    listed = _cached_listing(repo, commit)
    names = listed
    if names is None:  # downloaded by a program that keeps no listing: use the files that are there
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

    def read(name: str) -> Path:
        if not (folder / name).is_file():
            raise _MissingError
        return folder / name

    try:
        needed = matching(names, wanted(names, read))
    except _MissingError:
        return None
    except ChoiceError:
        raise
    except ClipAdaptError:
        if listed is None:
            return None
        raise
    if not needed or any(not (folder / name).is_file() for name in needed):
        return None
    return Snapshot(repo, folder, commit)


def snapshot(
    kind: Kind,
    name: str,
    revision: str | None,
    *,
    wanted: Wanted,
    error: type[ClipAdaptError],
    way_out: str,
    or_any_revision: bool = False,
) -> Snapshot:
    """Return the files of a repository: from the hub cache if it has all of them, else downloaded.

    Args:
        kind: Dataset or model. For a dataset, the hub is asked whether ``main`` has moved.
        name: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
        wanted: Called with the names of all files and a function that fetches one of them; returns glob patterns of
            the files to fetch.
        error: Type of the error raised.
        way_out: What the user can do without a network.
        or_any_revision: Without a network, use the cached ``main`` if ``revision`` is not cached.

    Raises:
        ClipAdaptError: As ``error``, if there is no such repository or revision, or the cache has no copy and the hub
            does not answer within :data:`hub_client.ANSWER_SECONDS`.
    """
    from huggingface_hub import is_offline_mode

    repo = Repo(kind, name, revision)
    hub_client.check_name(repo, error)
    here = _cached(repo, wanted)
    if here is not None and (kind == "model" or here.revision == revision):
        return _remembered(here)
    problem, hint = "HF_HUB_OFFLINE is set", ""
    if not is_offline_mode():
        try:
            listing = hub_client.list_files(repo)
        except Exception as err:  # noqa: BLE001 - any answer, or none, is explained to the user
            problem, hint = hub_client.explain(err, repo)
        else:
            if here is None:
                return _download(repo, listing, wanted, error, way_out)
            return _compared(_remembered(replace(here, licence=listing.licence)), listing.commit)
    if here is None and or_any_revision:
        here = _cached(Repo(kind, name), wanted)
    if here is not None:
        note = f"read from the hub cache, commit {here.revision} ({problem})"
        return replace(_remembered(replace(here, repo=repo)), note=note)
    if hint:
        raise error(problem, hint=hint)
    raise error(_not_cached(repo, problem), hint=way_out)


def _not_cached(repo: Repo, problem: str) -> str:
    """Return the message for a repository that is neither reachable nor cached."""
    at = f" at revision {repo.revision}" if repo.revision else ""
    commit = _cached_commit(repo)
    part = commit and (repo.storage / "snapshots" / commit).is_dir()
    return (
        f"cannot reach the hub for '{repo.name}' ({problem}), and the hub cache has no copy{at}"
        + (", only a part of one" if part else "")
    )


def _download(
    repo: Repo, listing: Listing, wanted: Wanted, error: type[ClipAdaptError], way_out: str
) -> Snapshot:
    """Download the wanted files and pin the revision to their commit."""
    try:
        folder = hub_client.download(repo, listing, wanted)
        if not repo.is_commit:
            write_text(repo.storage / "refs" / (repo.revision or "main"), listing.commit)
    except DownloadError as err:
        raise error(
            f"the download of '{repo.name}' failed: {err.problem}",
            hint=err.hint or f"try again: finished files are kept; {way_out}",
        ) from None
    except OSError as err:
        raise error(
            f"the hub cache '{repo.storage.parent}' is not writable: {err.strerror or err}",
            hint="free some space there, or set HF_HOME to another folder",
        ) from None
    return _remembered(Snapshot(repo, folder, listing.commit, licence=listing.licence))


def is_current(path: Path) -> bool:
    """Return whether a file of the hub cache belongs to the commit used for ``main``; True for any other file."""
    for folder in path.parents:
        if folder.parent.name == "snapshots" and (folder.parent.parent / "refs").is_dir():
            with contextlib.suppress(OSError):
                main = folder.parent.parent / "refs" / "main"
                return main.read_text(encoding="utf-8").strip() == folder.name
    return True


def refuse_damaged(path: Path, sha256: str | None = None) -> None:
    """Compare a file of the hub cache with its file name there, which is the hash sent by the hub.

    Args:
        path: Any file; one outside a hub cache passes.
        sha256: Hash of its bytes, or None to compute it.

    Raises:
        OSError: If it cannot be read.
        ModelError: If the content does not match the name.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return
    got = (sha256 or sha256_file(blob)) if len(blob.name) == 64 else _git_sha1(blob)
    if got != blob.name:
        raise ModelError(
            f"'{path.name}' in the hub cache is damaged: the file '{blob}' has the hash {got}, "
            "but its name is the expected hash",
            hint=f"remove the file to download it again: rm '{blob}'",
        )


def _git_sha1(path: Path) -> str:
    """Return the git hash of a small file, which the hub uses as its name."""
    raw = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


def _cached_commit(repo: Repo) -> str:
    """Return the commit of the revision when it was downloaded, or an empty string."""
    if repo.is_commit:
        return str(repo.revision)
    try:
        ref = repo.storage / "refs" / (repo.revision or "main")
        return ref.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _cached_listing(repo: Repo, commit: str) -> list[str] | None:
    """Return the names of all files of a commit, or None if the cache has no listing."""
    from huggingface_hub import constants, errors, get_cached_repo_tree

    try:
        tree = get_cached_repo_tree(
            repo.name, repo_type=repo.kind, revision=commit, cache_dir=constants.HF_HUB_CACHE
        )
    except errors.CachedRepoTreeNotFoundError:
        return None
    return [file.path for file in tree]


def _remembered(found: Snapshot) -> Snapshot:
    """Add the licence from an earlier use, and a note if an earlier use had another commit."""
    repo = found.repo
    key = f"{repo.kind}|{repo.name}|{repo.revision or 'main'}"
    path = cache_dir() / "hub" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # missing or damaged: it is written again
        known = read_sealed_json(path)
    before, same = known.get("commit"), known.get("commit") == found.revision
    licence = found.licence or (str(known.get("licence", "")) if same else "")
    now = {"key": key, "commit": found.revision, "licence": licence}
    if now != known:
        with contextlib.suppress(OSError):  # without a writable cache, only this note is lost
            write_sealed_json(path, now)
    note = found.note
    if before and not same:
        note = (
            f"'{repo.revision or 'main'}' of '{repo.name}' is now commit {found.revision}; it was {before} when last "
            f"used here; to use the earlier version, write {repo.name}@{before}"
        )
    return replace(found, licence=licence, note=note)


def _compared(here: Snapshot, commit: str) -> Snapshot:
    """Add a note if the hub has another commit than the cache."""
    if commit == here.revision:
        return here
    prefix = "hf:" if here.repo.kind == "dataset" else ""
    return replace(
        here,
        note=f"the hub's '{here.repo.name}' has moved to commit {commit}; {here.revision} is used, as at the first "
        f"use; to use the new version, write {prefix}{here.repo.name}@{commit}",
    )
