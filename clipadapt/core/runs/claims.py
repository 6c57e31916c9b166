"""Claims: which process does which fit, so that several may share one output folder.

A claim is a small file ``<out>/.claims/<key>`` that appears whole and can be made once. It names the process; its
time of change is the heartbeat. A claim is stale, and taken over, when its process is gone (seen at once on the
same machine) or, where the process cannot be seen from here (another machine, another container), when its
heartbeat has stood still for :data:`TIMEOUT` seconds by the clock of the one who looks: no two clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import stat
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files import processes as _processes
from clipadapt.core.files.atomic import remove, remove_leftovers, temporary_beside
from clipadapt.core.files.locks import locked

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

FOLDER: Final = ".claims"
BEAT: Final = 5.0
"""Seconds between two heartbeats."""
TIMEOUT: Final = 60.0
"""A heartbeat that stands still for so long belongs to a process that is gone."""
_LOCK: Final = ".lock"
_LARGEST: Final = 1 << 16  # bytes of a claim


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a claim.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        space: What the number belongs to: the boot of the machine and the container.
        started: When the process began, in ticks since the boot; None where the system does not say.
        claimed_at: UTC, for people.
        token: Tells this claim from any other.
    """

    host: str
    pid: int
    space: str
    started: str | None
    claimed_at: str
    token: str

    @classmethod
    def me(cls) -> Holder:
        """Return a new claim of this process."""
        pid = os.getpid()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        started = _processes.started(pid)
        return cls(
            socket.gethostname(), pid, _processes.space(), started, now, secrets.token_hex(8)
        )

    @classmethod
    def read(cls, raw: bytes) -> Holder:
        """Return the holder that a claim names; a damaged claim names an unknown one, which is not here."""
        try:
            found = cls(**json.loads(raw))
        except (ValueError, TypeError, RecursionError):
            return UNKNOWN
        texts = (found.host, found.space, found.claimed_at, found.token, found.started or "")
        sound = (
            all(isinstance(text, str) and text.isprintable() for text in texts)
            and type(found.pid) is int
            and 0 < found.pid < 2**31
        )
        return found if sound else UNKNOWN

    @property
    def is_here(self) -> bool:
        """Tell whether the process, where it is alive, can be seen from this one."""
        return (self.host, self.space) == (socket.gethostname(), _processes.space())

    @property
    def is_gone(self) -> bool | None:
        """Tell whether a process of this machine has ended; None where that cannot be known."""
        return _processes.is_gone(self.pid, self.started)

    def __str__(self) -> str:
        if self == UNKNOWN:
            return f"an unknown process, whose claim is damaged (waiting up to {TIMEOUT:.0f} s)"
        return f"process {self.pid} on {self.host}"


UNKNOWN: Final = Holder("", 0, "", None, "", "")


class Claims:
    """The claims of this process in one output folder; use it as a context manager.

    Args:
        root: The output folder.
        beat: Seconds between two heartbeats.
        timeout: Seconds without a heartbeat after which an unseen process counts as gone.
    """

    def __init__(self, root: Path, *, beat: float = BEAT, timeout: float = TIMEOUT) -> None:
        self.folder = root / FOLDER
        self.beat, self.timeout = beat, timeout
        self._held: dict[str, str] = {}  # key -> token
        self._seen: dict[
            str, tuple[str, int, float]
        ] = {}  # key -> token, heartbeat, when first seen
        self._end = threading.Event()
        self._pulse: threading.Thread | None = None

    def acquire(self, key: str) -> bool:
        """Claim ``key`` for this process; return False where another one (or this one) has it.

        Raises:
            RecordError: If the claim cannot be written.
        """
        if key in self._held:
            return False
        path, mine = self.folder / key, Holder.me()
        try:
            with locked(self.folder / _LOCK):
                there = self.holder(key)
                if there is not None:
                    if not self._is_stale(key, there):
                        return False
                    remove(path)
                self._held[key] = mine.token
                if not _create(path, json.dumps(asdict(mine))):
                    del self._held[key]
                    return False
        except OSError as err:
            self._held.pop(key, None)
            raise RecordError(
                f"cannot claim a run in '{self.folder}': {err.strerror or err}",
                hint=f"remove the file '{self.folder}', or name another folder with --out DIR"
                if isinstance(err, FileExistsError | NotADirectoryError)
                else "make room, or name another folder with --out DIR",
            ) from err
        self._seen.pop(key, None)
        self._start_pulse()
        return True

    def release(self, key: str) -> None:
        """Give a claim back; one that was taken over in between is left alone."""
        token = self._held.get(key)
        if token is None:
            return
        with contextlib.suppress(OSError), locked(self.folder / _LOCK):
            there = self.holder(key)
            if there is not None and there.token == token:
                (self.folder / key).unlink(missing_ok=True)
        # Only now: close() gives back what an interruption of these lines has left.
        self._held.pop(key, None)

    def holder(self, key: str) -> Holder | None:
        """Return who holds ``key``, None where nobody does.

        Raises:
            NotADirectoryError: If a file stands in the place of the folder.
        """
        path = self.folder / key
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return UNKNOWN  # a folder, or a pipe that would be waited for without end
            with path.open("rb") as file:
                return Holder.read(file.read(_LARGEST))
        except (FileNotFoundError, NotADirectoryError) as err:
            if isinstance(err, NotADirectoryError) and not self.folder.is_dir():
                raise
            return None
        except OSError:  # not ours to read: the heartbeat decides
            return UNKNOWN

    def close(self) -> None:
        """Give back every claim and remove the folder where nobody else uses it."""
        self._end.set()
        for key in list(self._held):
            self.release(key)
        if self._pulse is not None:
            self._pulse.join()
            self._pulse = None
        if not self.folder.is_dir():
            return
        with contextlib.suppress(OSError), locked(self.folder / _LOCK):
            # Claims are written under the lock: whatever is unfinished now is of a process that was killed.
            remove_leftovers(self.folder, older_than=0)
            if {p.name for p in self.folder.iterdir()} == {_LOCK}:
                (self.folder / _LOCK).unlink()
                self.folder.rmdir()

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _is_stale(self, key: str, there: Holder) -> bool:
        gone = there.is_gone if there.is_here else None
        if gone is not None:
            return gone
        try:
            beat = (self.folder / key).lstat().st_mtime_ns
        except FileNotFoundError:
            return True
        now = time.monotonic()
        token, last, since = self._seen.get(key, (there.token, beat, now))
        if (token, last) != (there.token, beat):
            since = now
        self._seen[key] = there.token, beat, since
        return now - since > self.timeout

    def _start_pulse(self) -> None:
        if self._pulse is None:
            self._end.clear()
            self._pulse = threading.Thread(target=self._beat, name="claims", daemon=True)
            self._pulse.start()

    def _beat(self) -> None:
        while not self._end.wait(self.beat):
            for key in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(self.folder / key)


def _create(path: Path, text: str) -> bool:
    """Make a file that appears whole; return False where there is one of that name."""
    temporary = temporary_beside(path)
    try:
        temporary.write_text(text, encoding="ascii")
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):  # the last: tidied away, where there are no locks
        return False
    except OSError:  # a file system without links; the lock still keeps others away
        if path.exists():
            return False
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True
