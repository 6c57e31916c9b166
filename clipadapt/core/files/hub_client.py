"""Requests to the Hugging Face hub: listing a repository's files, downloading them, and explaining errors.

Every request gives up after some seconds, and every error is a sentence with a next step.
"""

from __future__ import annotations

import glob
import io
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from clipadapt.core.api.errors import first_line
from clipadapt.core.files.network import within

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clipadapt.core.api.errors import ClipAdaptError

    Wanted = Callable[[Sequence[str], Callable[[str], Path]], Sequence[str]]

Kind = Literal["dataset", "model"]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 8.0
"""Time limit of a whole request, including the look-up of the host name."""
WAITS: Final = (0.5, 1.0, 2.0)
"""Seconds before each retry if the hub is busy."""
LINE_SECONDS = 10.0
"""Seconds between progress lines of a download if stderr is not a terminal."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_REVISION: Final = re.compile(r"[\w.-]+(/[\w.-]+)*")
_BUSY: Final = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository of the hub at a revision.

    Attributes:
        kind: Dataset or model.
        name: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
    """

    kind: Kind
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"the {self.kind} '{self.name}'"

    @property
    def page(self) -> str:
        """Address of its page."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    @property
    def storage(self) -> Path:
        """Its folder in the hub cache."""
        from huggingface_hub import constants

        cache = Path(constants.HF_HUB_CACHE).expanduser()
        return cache / f"{self.kind}s--{self.name.replace('/', '--')}"

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return bool(self.revision and _COMMIT.fullmatch(self.revision))


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository, as the hub lists them.

    Attributes:
        commit: Commit of the revision.
        files: Names of all files.
        licence: Licence stated by the hub, or an empty string.
    """

    commit: str
    files: list[str]
    licence: str


def check_name(repo: Repo, error: type[ClipAdaptError]) -> None:
    """Check the name and revision of a repository.

    Raises:
        ClipAdaptError: As ``error``, if one of them is invalid.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo.name)
    except errors.HFValidationError:
        accepted = "hf:ORG/NAME" if repo.kind == "dataset" else "NAME or ORG/NAME"
        raise error(
            f"'{repo.name}' is not a valid name of a hub {repo.kind}", hint=f"write {accepted}"
        ) from None
    if repo.revision is not None and (
        not _REVISION.fullmatch(repo.revision) or ".." in repo.revision
    ):
        raise error(
            f"'{repo.revision}' is not a valid revision",
            hint=f"write {repo.name}@REVISION with a commit, a tag or a branch",
        )


def list_files(repo: Repo) -> Listing:
    """List the files of a repository; retry while the hub is busy.

    Raises:
        Exception: Whatever the client raises; see :func:`explain`.
    """
    return within(ANSWER_SECONDS, lambda: _list_files(repo))


def _list_files(repo: Repo) -> Listing:
    from huggingface_hub import HfApi, errors

    for wait in (*WAITS, None):
        try:
            info: Any = HfApi().repo_info(
                repo.name, repo_type=repo.kind, revision=repo.revision, timeout=CONNECT_SECONDS
            )
        except errors.HfHubHTTPError as err:
            if wait is None or err.response.status_code not in _BUSY:
                raise
            time.sleep(wait)
        else:
            break
    card = getattr(info, "card_data", None) or {}
    names = [f.rfilename for f in info.siblings or []]
    return Listing(str(info.sha), names, licence_text(card.get("license")))


class DownloadError(Exception):
    """A download failed.

    Attributes:
        problem: The failed file and the reason.
        hint: The next step, or an empty string.
    """

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def download(repo: Repo, listing: Listing, wanted: Wanted) -> Path:
    """Download the wanted files of a commit to the hub cache and return their folder.

    Args:
        repo: The repository.
        listing: Its commit and files.
        wanted: See :func:`~clipadapt.core.files.hub.snapshot`.

    Raises:
        ClipAdaptError: From ``wanted``.
        DownloadError: If a file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    from clipadapt.core.api.errors import ClipAdaptError

    common: Any = {"repo_type": repo.kind, "revision": listing.commit}
    name = ""

    def read(file: str) -> Path:
        nonlocal name
        name = file
        return Path(hf_hub_download(repo.name, file, **common))

    try:
        needed = matching(listing.files, wanted(listing.files, read))
        name = ""
        patterns = [glob.escape(n) for n in needed]
        folder = Path(
            snapshot_download(repo.name, allow_patterns=patterns, **common, **_progress(repo.name))
        )
        # If the hub does not answer, the client returns whatever is cached.
        for name in needed:
            (folder / name).stat()
    except ClipAdaptError:
        raise
    except Exception as err:  # noqa: BLE001 - any answer, or none, is explained to the user
        cause = _cause(err)
        problem, hint = explain(cause, repo)
        if isinstance(cause, OSError) and cause.errno is not None and not _is_http(cause):
            cache = repo.storage.parent
            problem = f"the hub cache '{cache}' is not writable: {cause.strerror or cause}"
            hint = "free some space there, or set HF_HOME to another folder"
        file = name or _file_of(cause) or "a file"
        raise DownloadError(f"'{file}' could not be downloaded: {problem}", hint) from None
    return folder


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the file names that match one of the glob patterns."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    return list(filter_repo_objects(names, allow_patterns=list(patterns)))


def licence_text(licence: Any) -> str:
    """Return the licence or licences in a card as text."""
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence or "")


def _cause(err: BaseException) -> BaseException:
    """Return the error behind the client's "not in the cache, and the hub cannot be reached"."""
    from huggingface_hub import errors

    while isinstance(err, errors.LocalEntryNotFoundError) and err.__cause__ is not None:
        err = err.__cause__
    return err


def _is_http(err: BaseException) -> bool:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return isinstance(err, httpx.HTTPError)


def _file_of(err: BaseException) -> str:
    """Return the name of the requested file, or an empty string."""
    try:
        answer: Any = getattr(err, "response", err)
        address = str(answer.request.url)
    except (AttributeError, RuntimeError):
        return ""
    found = re.search(r"/resolve(?:-cache)?/.*?[0-9a-f]{40}/([^?#]+)", address)
    return found[1] if found else ""


def explain(err: BaseException, repo: Repo) -> tuple[str, str]:
    """Return why a request failed, and the next step; the latter is empty if the hub cannot be reached."""
    from huggingface_hub import constants, errors, get_token

    err = _cause(err)
    hub = str(constants.ENDPOINT)
    if isinstance(err, errors.GatedRepoError):
        how = (
            "with the account of the token in use"
            if get_token()
            else "and set HF_TOKEN (or run 'hf auth login')"
        )
        return f"{repo} is gated: its page asks for consent first", f"accept at {repo.page} {how}"
    if isinstance(err, errors.DisabledRepoError):
        return f"{repo} is disabled by the hub", f"see {repo.page}"
    if isinstance(err, errors.RepositoryNotFoundError):
        if get_token():
            return (
                f"the hub has no {repo.kind} '{repo.name}' that the token in use may read",
                "check the name; a private one needs a token of an account that may read it",
            )
        return (
            f"the hub has no public {repo.kind} '{repo.name}'",
            "check the name; a private one needs HF_TOKEN (or 'hf auth login')",
        )
    if isinstance(err, errors.RevisionNotFoundError):
        return (
            f"{repo} has no revision '{repo.revision}' on the hub",
            f"choose one from {repo.page}/tree/main, or remove @{repo.revision}",
        )
    if isinstance(err, errors.HfHubHTTPError):
        return _explain_status(err, hub)
    if type(err).__name__ in {"InvalidURL", "UnsupportedProtocol"}:
        return (
            f"{hub} is not the address of a hub: {err}",
            "set HF_ENDPOINT to an address such as https://huggingface.co, or unset it",
        )
    if isinstance(err, ValueError | KeyError | TypeError | AttributeError):
        return (
            f"the server at {hub} is not the hub: its answer is not JSON",
            "if your network requires a login, open the address in a browser; check HF_ENDPOINT and the proxy",
        )
    return f"{hub}: {first_line(err)}", ""


def _explain_status(err: Any, hub: str) -> tuple[str, str]:
    """Return the meaning of an HTTP status, and the next step."""
    status = err.response.status_code
    if status == 401:
        return (
            f"the hub at {hub} rejects the token (HTTP 401)",
            "set HF_TOKEN to a valid token; for public repositories, unset it (and run 'hf auth logout')",
        )
    if status == 403:
        return (
            f"the hub at {hub} denies access (HTTP 403): {err.server_message or 'the token lacks the permission'}",
            "give the token permission to read it, or ask its owner",
        )
    if status == 429:
        after = err.response.headers.get("Retry-After", "")
        wait = f"{after} s" if after.isdecimal() else "some minutes"
        return (
            f"too many requests to the hub at {hub} (HTTP 429)",
            f"try again in {wait}; with HF_TOKEN set, more requests are allowed",
        )
    if status >= 500:
        return f"the hub at {hub} is unavailable (HTTP {status})", "try again in some minutes"
    if status == 407:
        return "the proxy requires a password (HTTP 407)", "set it in HTTPS_PROXY"
    return (
        f"the server at {hub} does not behave like the hub (HTTP {status})",
        "check HF_ENDPOINT; unset it for https://huggingface.co",
    )


def _progress(name: str) -> dict[str, Any]:
    """Return how a download shows progress: the client's bars on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        return {}
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Lines(tqdm):  # type: ignore[misc]
        """Prints progress as lines; of the client's three bars only the one that counts bytes is shown."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.printed = time.monotonic()
            shown = str(kwargs.get("desc", "")).startswith("Reconstructing")
            super().__init__(*args, **{**kwargs, "disable": not shown, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            now = time.monotonic()
            if now - self.printed >= LINE_SECONDS:
                self.printed = now
                done, total = self.n / 1e6, (self.total or 0) / 1e6
                print(f"download {name}: {done:.1f} of {total:.1f} MB", file=sys.stderr, flush=True)

    return {"tqdm_class": Lines}
