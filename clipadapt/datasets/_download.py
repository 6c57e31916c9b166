"""Downloads with a library's own downloader: fail fast without a network and turn failures into one message."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError
from clipadapt.core.files.network import unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

STALL_SECONDS: Final = 60.0


def require_reachable(url: str, *, what: str, hint: str) -> None:
    """Check within some seconds that ``url`` answers, before a downloader retries for minutes.

    Args:
        url: The address to download from.
        what: Name of the dataset.
        hint: What works without a network.

    Raises:
        DataError: If there is no answer.
    """
    if reason := unreachable(url):
        raise DataError(f"cannot download {what} from {url}: {reason}", hint=hint)


@contextlib.contextmanager
def download_errors(what: str, *, hint: str) -> Iterator[None]:
    """Convert the exceptions of a downloader to :class:`DataError`, and abort transfers that stall.

    Raises:
        DataError: If the download fails or its checksum is wrong.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    except (OSError, RuntimeError, ValueError, EOFError) as err:
        raise DataError(f"the download of {what} failed: {err}", hint=hint) from err
    finally:
        socket.setdefaulttimeout(before)
