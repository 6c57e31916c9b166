"""Downloads through a library's own downloader: fail fast without a network, never leave half a set behind."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE_SECONDS: Final = 6.0
STALL_SECONDS: Final = 60.0


def require_reachable(url: str, *, what: str, hint: str) -> None:
    """Check within ``PROBE_SECONDS`` that ``url`` answers, before a downloader tries for minutes.

    Args:
        url: What will be downloaded.
        what: Name of the data set.
        hint: What works without a network.

    Raises:
        DataError: If nothing answers.
    """
    reason = f"no answer within {PROBE_SECONDS:.0f} s"
    answered = threading.Event()

    def ask() -> None:
        nonlocal reason
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "clipadapt"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):  # noqa: S310
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # there is a network; what is wrong with the file, the download will say
        except (OSError, ValueError) as err:
            reason = str(getattr(err, "reason", err))

    # A look-up of a name may hang for longer than any socket's timeout: a thread can be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    if not answered.is_set():
        raise DataError(f"cannot download {what} from {url}: {reason}", hint=hint)


@contextlib.contextmanager
def download_errors(what: str, *, hint: str) -> Iterator[None]:
    """Turn what a downloader raises into one message, and end a transfer that stalls.

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
