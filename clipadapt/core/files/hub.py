"""Repositories of the Hugging Face hub: found in seconds or refused in seconds, and read from the hub's own cache.

The first use of a repository pins its commit, which the hub's cache keeps as ``refs/main``. What is there whole is
taken as it is; a ``main`` that has moved is reported and not followed, unless another program fetched it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import re
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from clipadapt.core.api.errors import ClipAdaptError, DataError, ModelError
from clipadapt.core.files.atomic import write_text
from clipadapt.core.files.checksums import read_sealed_json, sha256_file, write_sealed_json
from clipadapt.core.files.folders import cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


CONNECT_SECONDS = 5.0


ANSWER_SECONDS = 8.0
"""A look-up of a host name has no time limit of its own, so the question is given one."""


WAITS: Final = (0.5, 1.0, 2.0)
"""Seconds before a question is asked again that the hub could not answer just now."""


LINE_SECONDS = 10.0
"""Seconds between two lines about a download where stderr is no terminal."""


Kind = Literal["dataset", "model"]


_WORDS: Final = {"dataset": "data set", "model": "model"}


_WRITE: Final = {"dataset": "write hf:ORG/NAME", "model": "write NAME or ORG/NAME"}


_PAGES: Final = {"dataset": "datasets/", "model": ""}


_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


_REVISION: Final = re.compile(r"[\w.-]+(/[\w.-]+)*")


_BUSY: Final = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository's files on this machine.

    Attributes:
        folder: Folder of the files.
        revision: Their commit.
        note: Why this commit was taken where it may not be the one meant, or an empty string.
        licence: What the hub says of the licence, or an empty string.
    """

    folder: Path
    revision: str
    note: str = ""
    licence: str = ""


class _AbsentError(Exception):
    """A file that decides what else is wanted is not on this machine."""


class _ChoiceError(DataError):
    """A choice that the user has to make, whatever files there are."""


def page(kind: Kind, repo: str) -> str:
    """Return the address of a repository's page."""
    return f"https://huggingface.co/{_PAGES[kind]}{repo}"


def cached(
    kind: Kind,
    repo: str,
    revision: str | None,
    wanted: Callable[[Sequence[str], Callable[[str], Path]], Sequence[str]],
) -> Snapshot | None:
    """Return a repository as it is in the hub cache, or None where a file that is wanted is missing.

    Args:
        kind: Data set or model.
        repo: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
        wanted: See :func:`snapshot`.

    Raises:
        ClipAdaptError: From ``wanted``, if the repository is known not to hold what is wanted.
    """
    commit = _cached_commit(kind, repo, revision)
    folder = _storage(kind, repo) / "snapshots" / commit
    if not commit or not folder.is_dir():
        return None
    listed = _listed(kind, repo, commit)
    names = listed
    if names is None:  # fetched by a program that keeps no list: what is there must do
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

    def read(name: str) -> Path:
        if not (folder / name).is_file():
            raise _AbsentError
        return folder / name

    try:
        needed = _chosen(names, wanted(names, read))
    except _AbsentError:
        return None
    except _ChoiceError:
        raise
    except ClipAdaptError:
        if listed is None:
            return None
        raise
    if not needed or any(not (folder / name).is_file() for name in needed):
        return None
    return Snapshot(folder, commit)


def snapshot(
    kind: Kind,
    repo: str,
    revision: str | None,
    *,
    wanted: Callable[[Sequence[str], Callable[[str], Path]], Sequence[str]],
    error: type[ClipAdaptError],
    way_out: str,
    or_any_revision: bool = False,
) -> Snapshot:
    """Return the files of a hub repository: from the hub cache where it holds them all, else downloaded.

    Args:
        kind: Data set or model. For a data set the hub is asked whether ``main`` has moved.
        repo: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
        wanted: Given the names of all files, and how to have one of them, returns patterns of those to have.
        error: What is raised.
        way_out: What the user can do without a network.
        or_any_revision: Without a network, take the cached ``main`` where ``revision`` is not cached.

    Raises:
        ClipAdaptError: As ``error``, if there is no such repository or revision, or the hub does not answer
            within :data:`ANSWER_SECONDS` and the cache has no copy.
    """
    from huggingface_hub import is_offline_mode

    _check_name(kind, repo, revision, error)
    here = cached(kind, repo, revision, wanted)
    if here is not None and (kind == "model" or here.revision == revision):
        return _remembered(kind, repo, revision, here)
    problem, hint = "HF_HUB_OFFLINE is set", ""
    if not is_offline_mode():
        try:
            commit, files, licence = _ask(kind, repo, revision)
        except Exception as err:  # noqa: BLE001 - whatever answers there, or does not, is told
            problem, hint = _told(err, kind, repo, revision)
        else:
            if here is None:
                return _fetch(kind, repo, revision, commit, files, licence, wanted, error, way_out)
            here = _remembered(kind, repo, revision, replace(here, licence=licence))
            return here if commit == here.revision else _moved(kind, repo, here, commit)
    if here is None and or_any_revision:
        here = cached(kind, repo, None, wanted)
    if here is not None:
        note = f"read from the hub cache, commit {here.revision} ({problem})"
        return replace(_remembered(kind, repo, revision, here), note=note)
    if hint:
        raise error(problem, hint=hint)
    at = f" at revision {revision}" if revision else ""
    commit = _cached_commit(kind, repo, revision)
    part = commit and (_storage(kind, repo) / "snapshots" / commit).is_dir()
    raise error(
        f"the hub cannot be reached for '{repo}' ({problem}), and the hub cache holds no copy{at}"
        + (", only a part of one" if part else ""),
        hint=way_out,
    )


def is_current(path: Path) -> bool:
    """Tell whether a file of the hub cache belongs to the commit that is taken for ``main``; others are."""
    for folder in path.parents:
        if folder.parent.name == "snapshots" and (folder.parent.parent / "refs").is_dir():
            with contextlib.suppress(OSError):
                main = folder.parent.parent / "refs" / "main"
                return main.read_text(encoding="utf-8").strip() == folder.name
    return True


def refuse_damaged(path: Path, sha256: str | None = None) -> None:
    """Compare a file of the hub cache with its name there, which is a hash of what the hub sent.

    Args:
        path: Any file; one outside of a hub cache passes.
        sha256: Hash of its bytes, or None to take it here.

    Raises:
        OSError: If it cannot be read.
        ModelError: If the file is not what its name says.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return
    got = (sha256 or sha256_file(blob)) if len(blob.name) == 64 else _git_sha1(blob)
    if got != blob.name:
        raise ModelError(
            f"'{path.name}' in the hub cache is damaged: the file '{blob}' has the hash {got}, "
            "and is named by the one it should have",
            hint=f"remove the file, and it is fetched again: rm '{blob}'",
        )


def _git_sha1(path: Path) -> str:
    """Return the hash by which git, and so the hub, knows a small file."""
    raw = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


def _storage(kind: Kind, repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"{kind}s--{repo.replace('/', '--')}"


def _cached_commit(kind: Kind, repo: str, revision: str | None) -> str:
    """Return the commit that a revision was when it was fetched, or an empty string."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    try:
        ref = _storage(kind, repo) / "refs" / (revision or "main")
        return ref.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _listed(kind: Kind, repo: str, commit: str) -> list[str] | None:
    """Return the names of all files of a commit, or None where they are not known here."""
    from huggingface_hub import constants, errors, get_cached_repo_tree

    try:
        tree = get_cached_repo_tree(
            repo, repo_type=kind, revision=commit, cache_dir=constants.HF_HUB_CACHE
        )
    except errors.CachedRepoTreeNotFoundError:
        return None
    return [file.path for file in tree]


def _chosen(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    return list(filter_repo_objects(names, allow_patterns=list(patterns)))


def _remembered(kind: Kind, repo: str, revision: str | None, found: Snapshot) -> Snapshot:
    """Return what was found with what is known of it; say it where another commit was used before."""
    key = f"{kind}|{repo}|{revision or 'main'}"
    path = cache_dir() / "hub" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # never written, or damaged: it is written anew
        known = read_sealed_json(path)
    before, same = known.get("commit"), known.get("commit") == found.revision
    licence = found.licence or (str(known.get("licence", "")) if same else "")
    now = {"key": key, "commit": found.revision, "licence": licence}
    if now != known:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs the report
            write_sealed_json(path, now)
    note = found.note
    if before and not same:
        note = (
            f"'{revision or 'main'}' of '{repo}' is commit {found.revision} now and was {before} when it was used "
            f"here before; for the earlier state write {repo}@{before}"
        )
    return replace(found, licence=licence, note=note)


def _moved(kind: Kind, repo: str, here: Snapshot, commit: str) -> Snapshot:
    prefix = "hf:" if kind == "dataset" else ""
    return replace(
        here,
        note=f"the hub's '{repo}' has moved to commit {commit}; {here.revision} is used, as at the first use; "
        f"for the new state write {prefix}{repo}@{commit}",
    )


def _check_name(kind: Kind, repo: str, revision: str | None, error: type[ClipAdaptError]) -> None:
    from huggingface_hub import errors
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except errors.HFValidationError:
        raise error(
            f"'{repo}' is not the name of a hub {_WORDS[kind]}", hint=_WRITE[kind]
        ) from None
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise error(
            f"'{revision}' is not the name of a revision",
            hint=f"write {repo}@REVISION with a commit, a tag or a branch",
        )


def _ask(kind: Kind, repo: str, revision: str | None) -> tuple[str, list[str], str]:
    """Return the commit of ``revision``, the names of its files and its licence; give up after a while."""
    from huggingface_hub import HfApi, errors

    answer: Future[tuple[str, list[str], str]] = Future()

    def ask() -> None:
        for wait in (*WAITS, None):
            try:
                info: Any = HfApi().repo_info(
                    repo, repo_type=kind, revision=revision, timeout=CONNECT_SECONDS
                )
                card = getattr(info, "card_data", None) or {}
                names = [f.rfilename for f in info.siblings or []]
                answer.set_result((str(info.sha), names, joined(card.get("license"))))
            except errors.HfHubHTTPError as err:
                if wait is not None and err.response.status_code in _BUSY:
                    time.sleep(wait)
                    continue
                answer.set_exception(err)
            except Exception as err:  # noqa: BLE001 - raised again by answer.result()
                answer.set_exception(err)
            return

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(timeout=ANSWER_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:.0f} s") from None


def _fetch(
    kind: Kind,
    repo: str,
    revision: str | None,
    commit: str,
    files: Sequence[str],
    licence: str,
    wanted: Callable[[Sequence[str], Callable[[str], Path]], Sequence[str]],
    error: type[ClipAdaptError],
    way_out: str,
) -> Snapshot:
    """Download what is wanted of a commit, whole, and pin the revision to it."""
    from huggingface_hub import hf_hub_download, snapshot_download

    storage = _storage(kind, repo)
    name = ""

    def read(file: str) -> Path:
        nonlocal name
        name = file
        return Path(hf_hub_download(repo, file, repo_type=kind, revision=commit))

    try:
        needed = _chosen(files, wanted(files, read))
        name = ""
        folder = Path(
            snapshot_download(
                repo,
                repo_type=kind,
                revision=commit,
                allow_patterns=[glob.escape(n) for n in needed],
                **_progress(repo),
            )
        )
        # The client takes what there is for all there can be when the hub does not answer.
        for name in needed:
            (folder / name).stat()
        if revision is None or not _COMMIT.fullmatch(revision):
            write_text(storage / "refs" / (revision or "main"), commit)
    except ClipAdaptError:
        raise
    except Exception as err:  # noqa: BLE001 - whatever answers there, or does not, is told
        cause = _cause(err)
        problem, hint = _told(cause, kind, repo, revision)
        if (
            isinstance(cause, OSError)
            and getattr(cause, "errno", None) is not None
            and not _is_http(cause)
        ):
            problem = (
                f"the hub cache '{storage.parent}' cannot be written: {cause.strerror or cause}"
            )
            hint = "make room there, or name another folder with HF_HOME"
        file = name or _file_of(cause) or "a file"
        raise error(
            f"the download of '{repo}' failed: '{file}' could not be fetched: {problem}",
            hint=hint or f"try again: what has come is kept; {way_out}",
        ) from None
    return _remembered(kind, repo, revision, Snapshot(folder, commit, licence=licence))


def _cause(err: BaseException) -> BaseException:
    """Return what the client's "not in the cache, and the hub cannot be reached" stands for."""
    from huggingface_hub import errors

    while isinstance(err, errors.LocalEntryNotFoundError) and err.__cause__ is not None:
        err = err.__cause__
    return err


def _is_http(err: BaseException) -> bool:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return isinstance(err, httpx.HTTPError)


def _file_of(err: BaseException) -> str:
    """Return the name of the file that was asked for, or an empty string."""
    try:
        answer: Any = getattr(err, "response", err)
        address = str(answer.request.url)
    except (AttributeError, RuntimeError):
        return ""
    found = re.search(r"/resolve(?:-cache)?/.*?[0-9a-f]{40}/([^?#]+)", address)
    return found[1] if found else ""


def _told(err: BaseException, kind: Kind, repo: str, revision: str | None) -> tuple[str, str]:
    """Return what went wrong with a request, in a sentence, and the next step.

    The next step is empty where the hub cannot be reached: what works then, the caller knows.
    """
    from huggingface_hub import errors, get_token

    err = _cause(err)
    word, own = _WORDS[kind], _endpoint()
    if isinstance(err, errors.GatedRepoError):
        ask = "and set HF_TOKEN (or run 'hf auth login')"
        if get_token():
            ask = "with the account of the token in use"
        return (
            f"the {word} '{repo}' is gated: its page asks for consent first",
            f"accept at {page(kind, repo)} {ask}",
        )
    if isinstance(err, errors.DisabledRepoError):
        return f"the {word} '{repo}' is disabled by the hub", f"see {page(kind, repo)}"
    if isinstance(err, errors.RepositoryNotFoundError):
        if get_token():
            return (
                f"the hub has no {word} '{repo}' that the token in use may read",
                "check the name; a private one needs a token of an account that may read it",
            )
        return (
            f"the hub has no public {word} '{repo}'",
            "check the name; a private one needs HF_TOKEN (or 'hf auth login')",
        )
    if isinstance(err, errors.RevisionNotFoundError):
        return (
            f"the hub's {word} '{repo}' has no revision '{revision}'",
            f"choose one of {page(kind, repo)}/tree/main, or leave @{revision} out",
        )
    if isinstance(err, errors.HfHubHTTPError):
        return _told_status(err, own)
    if type(err).__name__ in {"InvalidURL", "UnsupportedProtocol"}:
        return (
            f"{own} is not an address of a hub: {err}",
            "set HF_ENDPOINT to one such as https://huggingface.co, or unset it",
        )
    if isinstance(err, ValueError | KeyError | TypeError | AttributeError):
        sign_in = "log in to the network where it asks for that (open the address in a browser)"
        return (
            f"what answers at {own} is not the hub: it sent something other than JSON",
            f"{sign_in}; check HF_ENDPOINT and the proxy",
        )
    first = str(err).strip().partition("\n")[0] or type(err).__name__
    return f"{own}: {first}", ""


def _told_status(err: Any, own: str) -> tuple[str, str]:
    """Return what an answer with an error's status means, and the next step."""
    status = err.response.status_code
    if status == 401:
        return (
            f"the hub at {own} refuses the token it was given (HTTP 401)",
            "set HF_TOKEN to a valid token, or unset it (and 'hf auth logout') for what is public",
        )
    if status == 403:
        return (
            f"the hub at {own} forbids it (HTTP 403): {err.server_message or 'the token lacks the permission'}",
            "give the token the permission to read it, or ask its owner",
        )
    if status == 429:
        after = err.response.headers.get("Retry-After", "")
        wait = f"{after} s" if after.isdecimal() else "some minutes"
        return (
            f"the hub at {own} was asked too often (HTTP 429)",
            f"try again in {wait}; with HF_TOKEN set it may be asked more often",
        )
    if status >= 500:
        return f"the hub at {own} cannot answer now (HTTP {status})", "try again in some minutes"
    if status == 407:
        return "the proxy asks for a password (HTTP 407)", "set it in HTTPS_PROXY"
    return (
        f"what answers at {own} does not behave like the hub (HTTP {status})",
        "check HF_ENDPOINT; unset it for https://huggingface.co",
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _progress(repo: str) -> dict[str, Any]:
    """Return how a download shows itself: the client's bars on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        return {}
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Lines(tqdm):  # type: ignore[misc]
        """Counts what the client reports; of its three bars only that of the bytes is shown."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.said = time.monotonic()
            shown = str(kwargs.get("desc", "")).startswith("Reconstructing")
            super().__init__(*args, **{**kwargs, "disable": not shown, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            now = time.monotonic()
            if now - self.said >= LINE_SECONDS:
                self.said = now
                done, total = self.n / 1e6, (self.total or 0) / 1e6
                print(f"fetch {repo}: {done:.1f} of {total:.1f} MB", file=sys.stderr, flush=True)

    return {"tqdm_class": Lines}


def joined(licence: Any) -> str:
    """Return the licence that a card states, one or several, as text."""
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence or "")
