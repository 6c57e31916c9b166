"""The device of a benchmark: which one, its clock, its memory, and the share of its peak that a measurement reaches.

The peak is the rate of a large square matrix product in the same precision on the same device. The floating-point
operations are those of matrix products and convolutions, counted by torch while a measured step or batch runs again.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from _arithmetic import rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CPU: Final = "cpu"
SIDES: Final = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices whose product is the peak, by kind of device."""
QUICK_SIDE: Final = 64


def resolved(name: str) -> str:
    """Return the device for a value of ``--device``; ``auto`` is a GPU if torch finds one.

    Raises:
        ModelError: If this machine does not have it.
    """
    from clipadapt.core.api.errors import ModelError
    from clipadapt.core.api.model import ModelOptions
    from clipadapt.core.files import hardware
    from clipadapt.tensor import devices

    if name == "auto":
        found = devices.accelerators() if hardware.accelerator_possible() else {}
        name = "cuda" if "cuda" in found else CPU
    if name == "mps":
        raise ModelError("the benchmarks do not run on mps", hint="use auto, cpu or cuda")
    return devices.device_and_dtype(ModelOptions("fp32", name))[0]


def card(device: str) -> str:
    """Return the name of a GPU."""
    import torch

    return str(torch.cuda.get_device_name(device))


def wait_for(device: str) -> None:
    """Wait until a GPU has done what was queued."""
    if device != CPU:
        import torch

        torch.cuda.synchronize(device)


def reserved(device: str) -> int | None:
    """Return the peak of the memory that torch has reserved on a GPU, in bytes; None on the CPU."""
    if device == CPU:
        return None
    import torch

    return int(torch.cuda.max_memory_reserved(device))


class AnonymousMemory:
    """Watch how much a process's own memory grows, without mapped files.

    Attributes:
        growth: Largest growth in bytes.
    """

    def __init__(self) -> None:
        self.growth = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> AnonymousMemory:
        """Start watching."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        begun = self._now()
        while not self._done.wait(0.02):
            self.growth = max(self.growth, self._now() - begun)

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"^RssAnon:\s+(\d+) kB$", status, flags=re.MULTILINE)
        return int(found[1]) * 1024 if found else 0


# ---------------------------------------------------------------- steps


class EnoughStepsError(Exception):
    """Ends a fit of which only the first steps are needed."""


class Clock:
    """Progress of a fit that records the end of each training step.

    On a GPU an event is recorded in its queue, so that the host does not wait for it.

    Attributes:
        at: Values of ``mark``, one for each step.
        first: Host time after the first step.
    """

    def __init__(
        self, device: str = CPU, mark: Callable[[], Any] | None = None, limit: int | None = None
    ) -> None:
        """Set up a clock.

        Args:
            device: Device of the fit.
            mark: What to record after each step; None records the time.
            limit: The fit ends after this number of steps, with :class:`EnoughStepsError`.
        """
        self.at: list[Any] = []
        self.first = 0.0
        self._device, self._limit = device, limit
        self._events = mark is None and device != CPU
        self._mark = mark or (self._event if self._events else time.perf_counter)

    def seconds(self, drop: int) -> list[float]:
        """Return the seconds between the ends of successive steps without the first ``drop``."""
        wait_for(self._device)
        pairs = list(zip(self.at, self.at[1:], strict=False))[drop:]
        if self._events:
            return [begun.elapsed_time(end) / 1000 for begun, end in pairs]
        return [end - begun for begun, end in pairs]

    def track(self, _description: str, _total: int | None, unit: str = "", /) -> Any:
        """Return a bar; those of other units than steps are ignored."""
        from clipadapt.core.api.progress import Silent

        return contextlib.nullcontext(self) if unit == "steps" else Silent().track("", None)

    def advance(self, n: int = 1, /, **_info: float) -> None:
        """Record the end of a step."""
        if not n:
            return
        if not self.at:
            wait_for(self._device)
            self.first = time.perf_counter()
        self.at.append(self._mark())
        if len(self.at) == self._limit:
            raise EnoughStepsError

    def job(self, _title: str, /) -> contextlib.AbstractContextManager[object]:
        """Show nothing."""
        return contextlib.nullcontext()

    def note(self, _message: str, /) -> None:
        """Show nothing."""

    def _event(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


# ---------------------------------------------------------------- share of the peak


@contextlib.contextmanager
def counter() -> Iterator[Callable[[], int]]:
    """Count floating-point operations inside the block; yields a function that returns the number so far."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_fused()) as mode:
        yield mode.get_total_flops


def counted(work: Callable[[], Any]) -> int:
    """Return the floating-point operations of ``work``, which runs once."""
    with counter() as total:
        work()
        return total()


def counted_step(fit: Callable[[Clock], Any]) -> int:
    """Return the floating-point operations of the second step of a fit, which then ends.

    Args:
        fit: Fits with a clock as progress; its steps are not repeated as graphs, whose operations torch does not see.
    """
    from clipadapt.tensor import graphs

    with mock.patch.object(graphs, "possible", return_value=False), counter() as total:
        clock = Clock(mark=total, limit=2)
        with contextlib.suppress(EnoughStepsError):
            fit(clock)
    return int(clock.at[1] - clock.at[0])


def _fused() -> dict[Any, Any]:
    """Return the operations of torch's fused attention layer, which its counter does not know."""
    import torch

    def flop(
        query: tuple[int, ...], key: tuple[int, ...], *_: Any, out_val: Any = None, **__: Any
    ) -> int:
        del out_val
        n, q, D = query
        projections = n * (2 * q + 2 * key[1]) * D * D  # query and output, key and value
        return int(2 * (projections + 2 * n * q * key[1] * D))

    return {torch.ops.aten._native_multi_head_attention: flop}


def peak(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the peak of a device: the rate of a product in the precision of a measurement.

    Args:
        settings: ``on``, a device, ``precision``, ``quick``, and ``set``, in which ``model.tf32`` counts.
    """
    from clipadapt.core.api.model import ModelOptions
    from clipadapt.core.experiments import config, dotted
    from clipadapt.tensor.devices import set_arithmetic, torch_dtype

    device, precision = settings["on"], settings["precision"]
    given = dotted.flatten(config.parse_settings(settings["set"]))
    set_arithmetic(ModelOptions(precision, device, tf32=given.get("model.tf32") is True), device)
    side = QUICK_SIDE if settings["quick"] else SIDES[device.partition(":")[0]]
    begun = time.perf_counter()
    found = rate((side, side, side), torch_dtype(precision), device)
    return {"seconds": time.perf_counter() - begun, "rate": found}
