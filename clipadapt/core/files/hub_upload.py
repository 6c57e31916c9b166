"""Push files to a model repository of the Hugging Face hub, in one commit.

Token and address are those of the hub client: ``HF_TOKEN`` or ``hf auth login``, and ``HF_ENDPOINT``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ClipAdaptError, ConfigError
from clipadapt.core.files import hub_client
from clipadapt.core.files.hub_client import ANSWER_SECONDS, CONNECT_SECONDS, Repo
from clipadapt.core.files.network import within

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOKENS: Final = "https://huggingface.co/settings/tokens"


class PushError(ClipAdaptError):
    """Files could not be pushed to the hub."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push.

    Attributes:
        name: ``ORG/NAME``.
        url: Address of the repository.
        commit: The commit that holds the files.
        created: Whether the repository is new.
        private: Whether only its owners can read it.
    """

    name: str
    url: str
    commit: str
    created: bool
    private: bool


def check_target(name: str) -> None:
    """Check the name of a repository to push to.

    Raises:
        ConfigError: If it is not ``ORG/NAME``.
    """
    if name.count("/") != 1:
        raise ConfigError(
            f"'{name}' is not the name of a model repository",
            hint="write ORG/NAME, where ORG is your user name or an organization",
        )
    hub_client.check_name(Repo("model", name), ConfigError)


def check_can_push(name: str) -> None:
    """Check the name, the network setting and the token, before anything is prepared.

    Raises:
        ConfigError: If the name is not ``ORG/NAME``.
        PushError: If the hub client is offline or has no token.
    """
    from huggingface_hub import get_token, is_offline_mode

    check_target(name)
    if is_offline_mode():
        raise PushError(
            f"cannot push to '{name}': HF_HUB_OFFLINE is set", hint="unset it (or set it to 0)"
        )
    if not get_token():
        raise PushError(
            f"cannot push to '{name}': there is no token for the hub",
            hint=f"create one with write access at {TOKENS}, then set HF_TOKEN or run 'hf auth login'",
        )


def push(
    name: str, files: Mapping[str, bytes | Path], message: str, *, private: bool, replace: str
) -> Pushed:
    """Create the repository if there is none, and write all files in one commit.

    Args:
        name: ``ORG/NAME``, checked by :func:`check_can_push`.
        files: Content, or the path of a local file, by path in the repository.
        message: First line of the commit.
        private: Create a private repository.
        replace: Folder in the repository that holds only the given files afterwards, such as ``classifier``.

    Raises:
        PushError: If the hub refuses or cannot be reached; then the repository has none of the files.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    existing = _existing(api, name)
    if existing is not None and private and not existing.private:
        raise PushError(
            f"the model repository '{name}' exists and is public",
            hint="leave out --private, name another repository, or change its visibility on its page",
        )
    if existing is None:
        _create(api, name, private=private)
    old = [f.rfilename for f in (existing.siblings or [])] if existing is not None else []
    stale = [n for n in old if n.startswith(f"{replace}/") and n not in files]
    operations: list[Any] = [CommitOperationDelete(n) for n in stale]
    for path, content in files.items():
        operations.append(
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        )
    try:
        done = api.create_commit(name, operations, commit_message=message)
    except Exception as err:  # noqa: BLE001 - any answer, or none, is explained to the user
        empty = "; the new repository is empty" if existing is None else ""
        raise _refused(err, name, f"the files were not pushed to '{name}'{empty}") from None
    url = f"{api.endpoint}/{name}"
    is_private = private if existing is None else bool(existing.private)
    return Pushed(name, url, str(done.oid), existing is None, is_private)


def _existing(api: Any, name: str) -> Any:
    """Return what the hub says about the repository, or None if it has none that the token may read."""
    from huggingface_hub import errors

    try:
        return within(ANSWER_SECONDS, lambda: api.model_info(name, timeout=CONNECT_SECONDS))
    except (errors.GatedRepoError, errors.DisabledRepoError) as err:
        raise _refused(err, name, f"cannot push to '{name}'") from None
    except errors.RepositoryNotFoundError as err:
        if err.response.status_code == 401 and "token" in str(err.server_message).lower():
            raise _refused(err, name, f"cannot push to '{name}'") from None
        return None
    except Exception as err:  # noqa: BLE001 - any answer, or none, is explained to the user
        raise _refused(err, name, f"cannot push to '{name}'") from None


def _create(api: Any, name: str, *, private: bool) -> None:
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
    except Exception as err:  # noqa: BLE001 - any answer, or none, is explained to the user
        raise _refused(err, name, f"the repository '{name}' was not created") from None


def _refused(err: Exception, name: str, problem: str) -> PushError:
    """Return the error for an answer of the hub."""
    from huggingface_hub import errors

    owner = name.partition("/")[0]
    write = f"use a token with write access to '{owner}': {TOKENS}"
    if isinstance(err, errors.HfHubHTTPError):
        status, said = err.response.status_code, str(err.server_message or "").strip()
        if status == 401:
            return PushError(
                f"{problem}: the hub rejects the token (HTTP 401)",
                hint=f"set HF_TOKEN to a valid token with write access: {TOKENS}",
            )
        if status == 403:
            why = said or "the token lacks the permission"
            return PushError(
                f"{problem}: the token in use may not write there (HTTP 403): {why}", hint=write
            )
        if status == 404:
            return PushError(
                f"{problem}: the hub has no user or organization '{owner}' where the token in use may write",
                hint=f"check the name; {write}",
            )
        if status < 500 and status != 429 and said:
            return PushError(f"{problem}: the hub answers: {said} (HTTP {status})")
    if isinstance(err, ValueError) and "README.md" in str(err):
        return PushError(f"{problem}: the hub refuses the card: {' '.join(str(err).split())}")
    reason, hint = hub_client.explain(err, Repo("model", name))
    return PushError(f"{problem}: {reason}", hint=hint or "try again; nothing is left half-written")
