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

import yaml

from clipadapt.core._files import (
    atomic_directory,
    cache_dir,
    read_sealed_json,
    sha256_file,
    write_sealed_json,
    write_text,
)
from clipadapt.core._yaml import YamlError, parse
from clipadapt.core.errors import ClipAdaptError, DataError, ModelError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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


# ---------------------------------------------------------------- the hub cache


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


# ---------------------------------------------------------------- the hub itself


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
                answer.set_result((str(info.sha), names, _joined(card.get("license"))))
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


# ---------------------------------------------------------------- data sets

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
    return _joined(_metadata(files.folder / CARD).get("license"))


def _joined(licence: Any) -> str:
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence or "")


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
