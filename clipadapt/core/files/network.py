"""Network calls with a time limit: resolving a host name has none of its own."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PROBE_SECONDS: Final = 6.0
_FROM_PROXY: Final = frozenset({407, 502, 503, 504})


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of ``call``, which runs in a thread that is left behind after ``seconds``.

    Raises:
        TimeoutError: If it takes longer.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except Exception as err:  # noqa: BLE001 - raised again by answer.result()
            answer.set_exception(err)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except TimeoutError as err:
        if not answer.done():
            raise TimeoutError(f"no answer within {seconds:.0f} s") from None
        raise err from None


def unreachable(url: str, seconds: float | None = None) -> str:
    """Return why the server of ``url`` cannot be reached, or an empty string if it answers.

    Args:
        url: The address; the proxy of the environment is used.
        seconds: Time limit; None is :data:`PROBE_SECONDS`.
    """
    limit = PROBE_SECONDS if seconds is None else seconds

    def probe() -> str:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "clipadapt"})  # noqa: S310
        try:
            urllib.request.urlopen(request, timeout=limit).close()  # noqa: S310
        except urllib.error.HTTPError as err:
            # Any other status comes from the server itself, so the network works.
            return f"HTTP {err.code}" if err.code in _FROM_PROXY else ""
        except (OSError, ValueError) as err:
            return str(getattr(err, "reason", err))
        return ""

    try:
        return within(limit, probe)
    except TimeoutError as err:
        return str(err)
