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
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clipadapt.core._files import TEMPORARY_PREFIX, locked, remove_leftovers
from clipadapt.core.errors import RecordError

if TYPE_CHECKING:
    from types import TracebackType

FOLDER: Final = ".claims"
BEAT: Final = 5.0
"""Seconds between two heartbeats."""
TIMEOUT: Final = 60.0
"""A heartbeat that stands still for so long belongs to a process that is gone."""
_LOCK: Final = ".lock"


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
        return cls(socket.gethostname(), pid, _space(), _started(pid), now, secrets.token_hex(8))

    @property
    def is_here(self) -> bool:
        """Tell whether the process, where it is alive, can be seen from this one."""
        # Windows has no harmless signal to ask with; there the heartbeat decides.
        return os.name == "posix" and (self.host, self.space) == (socket.gethostname(), _space())

    @property
    def is_gone(self) -> bool:
        """Tell whether a process of this machine has ended, its number perhaps given to another."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        started = _started(self.pid)
        return self.started is not None and started != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


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
                    path.unlink(missing_ok=True)
                self._held[key] = mine.token
                if not _create(path, json.dumps(asdict(mine))):
                    del self._held[key]
                    return False
        except OSError as err:
            self._held.pop(key, None)
            raise RecordError(
                f"cannot claim a run in '{self.folder}': {err.strerror or err}",
                hint="make room, or name another folder with --out DIR",
            ) from err
        self._seen.pop(key, None)
        self._start_pulse()
        return True

    def release(self, key: str) -> None:
        """Give a claim back; one that was taken over in between is left alone."""
        token = self._held.pop(key, None)
        if token is None:
            return
        with contextlib.suppress(OSError), locked(self.folder / _LOCK):
            there = self.holder(key)
            if there is not None and there.token == token:
                (self.folder / key).unlink(missing_ok=True)

    def holder(self, key: str) -> Holder | None:
        """Return who holds ``key``, None where nobody does."""
        try:
            return Holder(**json.loads((self.folder / key).read_bytes()))
        except FileNotFoundError:
            return None
        except (
            ValueError,
            TypeError,
        ):  # not written by this version, or damaged: the heartbeat decides
            return Holder("an unknown machine", 0, "", None, "", "")

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
        if there.is_here:
            return there.is_gone
        try:
            beat = (self.folder / key).stat().st_mtime_ns
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
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}")
    temporary.write_text(text, encoding="ascii")
    try:
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


@cache
def _space() -> str:
    """Return what process numbers belong to here: this boot of the machine, and the container."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Return when a process began, None where it has ended or the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in {"Z", "X"} else rest[18]
