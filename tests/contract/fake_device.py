"""A simulated device: tensors report that they are on it, and are computed on the CPU.

It refuses what the real one refuses, so that mixing devices, or a type it lacks, fails on a machine without it: tensors
of two devices in one operation, ``.numpy()`` of what is not on the CPU, and on ``mps`` every float64.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clipadapt.tensor import moves
from clipadapt.tensor.devices import Accelerator

aten = torch.ops.aten
# These take an index from any device.
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
LACKING = {torch.float64, torch.complex128}  # on mps
# The host waits for the result of these.
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten.equal.default, aten._unique2.default,
}  # fmt: skip
# torch for Linux does not know mps; this device replaces it internally.
MPS, STAND_IN = torch.device("mps", 0), torch.device("cuda", 7)


waits: list[str] = []
"""Where the host has waited for the device, or would have: file and line of the package's innermost frames."""


PRODUCTS = {
    aten.mm.default, aten.mm.out, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten.convolution.default, aten._native_multi_head_attention.default,
}  # fmt: skip
products: Counter[str] = Counter()
"""How many products of matrices were computed on each kind of device."""
events: list[str] = []
"""Copies to the host, in order: ``queued`` when one starts, ``waited`` when the host waits for it."""


class Claimed(torch.Tensor):
    """A tensor on the CPU that reports another device."""

    inner: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: torch.Tensor, place: torch.device) -> Claimed:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device="cpu",
        )  # fmt: skip
        made.inner, made.place = inner.detach(), place
        return made

    @property
    def device(
        self,
    ) -> torch.device:  # only Python sees this; autograd itself uses the CPU
        return MPS if self.place == STAND_IN else self.place

    @property
    def is_cpu(self) -> bool:
        return False

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_mps(self) -> bool:
        return self.device.type == "mps"

    def cpu(self, *_: Any) -> torch.Tensor:
        return self.to("cpu")

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return moved(self, *args, **kwargs)

    def record_stream(self, stream: Any) -> None:
        """Its memory is freed late enough anyway."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Claimed({self.inner!r}, {self.place})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Stream:
    """A queue of the device; everything is done at once, in order."""

    def __init__(self, device: Any = None) -> None: ...

    def wait_stream(self, other: Any) -> None: ...


class Event:
    """A mark in a queue."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, stream: Any = None) -> None:
        events.append("queued")

    def elapsed_time(self, end: Any) -> float:
        """Return a millisecond."""
        return 1.0

    def synchronize(self) -> None:
        events.append("waited")
        waited("an event")


class FakeDevice(TorchDispatchMode):
    """Marks tensors that are created on the device, or moved to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Moves(TorchFunctionMode):
    """Handles moves between devices, and replaces mps by the internal device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.to:
            return moved(*args, **kwargs)
        if func in {torch.tensor, torch.as_tensor} and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return moved(func(*args, **kwargs), device)
        if func is torch.nn.functional.one_hot and isinstance(args[0], Claimed):
            return claimed(func(args[0].inner, *args[1:], **kwargs), args[0].place)
        if func is torch.device:
            return func(*args, **kwargs)
        # Devices stand among the arguments themselves: looking into whole state dicts would take most of the time.
        return func(*map(renamed, args), **{k: renamed(v) for k, v in kwargs.items()})


class Move(torch.autograd.Function):
    """A copy on another device; the gradient is moved back."""

    @staticmethod
    def forward(ctx, x, place, dtype, memory_format):
        ctx.back = (place_of(x), x.dtype)
        ctx.forth = place
        return copied(x, place, dtype, memory_format)

    @staticmethod
    def backward(ctx, grad):
        if ctx.forth != ctx.back[0]:
            waited("a gradient's copy")
        return copied(grad, *ctx.back), None, None, None


def moved(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return the result of ``x.to(...)``."""
    other = args[0] if args else kwargs.pop("other", None)
    if isinstance(other, torch.Tensor):
        args = (place_of(other), other.dtype, *args[1:])
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(
        *map(renamed, args), **{k: renamed(v) for k, v in kwargs.items()}
    )
    place = place_of(x) if device is None else with_index(device)
    dtype = dtype or x.dtype
    if (place, dtype, memory_format) == (place_of(x), x.dtype, None) and not kwargs.get("copy"):
        return x
    if place != place_of(x) and not (non_blocking and place_of(x).type == "cpu"):
        waited("a copy")
    return Move.apply(x, place, dtype, memory_format)


def copied(
    x: Any, place: torch.device, dtype: torch.dtype, memory_format: Any = None
) -> torch.Tensor:
    inner = x.inner if isinstance(x, Claimed) else x.detach()
    kept = torch.preserve_format if memory_format is None else memory_format
    with torch._C.DisableTorchFunction():
        return claimed(inner.to(dtype=dtype, copy=True, memory_format=kept), place)


def claimed(value: torch.Tensor, place: torch.device) -> torch.Tensor:
    if place == STAND_IN and value.dtype in LACKING:
        raise TypeError(f"mps has no {value.dtype}")
    return value if place.type == "cpu" else Claimed(value, place)


def place_of(x: torch.Tensor) -> torch.device:
    return x.place if isinstance(x, Claimed) else torch.device("cpu")


def renamed(value: Any) -> Any:
    is_mps = (
        value == "mps"
        if isinstance(value, str)
        else isinstance(value, torch.device) and value.type == "mps"
    )
    return STAND_IN if is_mps else value


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors: list[torch.Tensor] = []
    plain_args = [inner(a, tensors) for a in args]
    plain_kwargs = {k: inner(v, tensors) for k, v in kwargs.items()} if kwargs else {}
    place = next((t.place for t in tensors if isinstance(t, Claimed)), torch.device("cpu"))
    if func is not aten.copy_.default:
        check_places(func, args, tensors)
    elif len({place_of(t) for t in tensors}) > 1 and not (len(args) > 2 and args[2]):
        waited("a copy")
    if waits_for(func, args, tensors):
        waited(str(func))
    if func in PRODUCTS:
        products[place.type] += 1
    if plain_kwargs:
        device = plain_kwargs.get("device")
        if device is not None:
            if torch.device(device).type != "cpu":  # autograd itself requests the CPU
                place = with_index(device)
            plain_kwargs["device"] = torch.device("cpu")
        plain_kwargs.pop("pin_memory", None)
    with torch._C._DisableTorchDispatch():
        out = func(*plain_args, **plain_kwargs)
    if out is None:
        return None
    first, name = written(func)
    if name is not None and not isinstance(out, list | tuple):
        return args[first] if first < len(args) else kwargs[name]
    return mapped(lambda v: claimed(v, place), out)


def mapped(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Return an argument or a result of an operation with its tensors changed; lists may hold them."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(mapped(change, v) for v in value)
    return value


def inner(value: Any, found: list[torch.Tensor]) -> Any:
    """Return an argument as the CPU takes it; its tensors are appended to ``found``."""

    def taken(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor.inner if isinstance(tensor, Claimed) else tensor

    return mapped(taken, value)


@functools.cache
def written(func: Any) -> tuple[int, str | None]:
    """Return position and name of the first argument that an operation writes to."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info and argument.alias_info.is_write:
            return i, argument.name
    return -1, None


def waits_for(func: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> bool:
    """Return whether a GPU makes the host wait for this operation."""
    if not any(isinstance(t, Claimed) for t in tensors):
        return False
    if func in INDEXED:  # the rows of a mask are counted; an index on the host is copied
        given = [t for t in args[1] if t is not None]
        return any(t.dtype is torch.bool or not isinstance(t, Claimed) for t in given)
    return func in WAITING


def waited(what: str) -> None:
    """Note where the host waits."""
    places: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(places) < 3:
        name = frame.f_code.co_filename
        if "/tests/" not in name and ("/clipadapt/" in name or "/textsent/" in name):
            places.insert(0, f"{name.rpartition('/')[2]}:{frame.f_lineno}")
        frame = frame.f_back
    waits.append(f"{what} in {' > '.join(places)}")


def with_index(device: Any) -> torch.device:
    device = torch.device(renamed(device))
    return torch.device("cuda", 0) if str(device) == "cuda" else device


def check_places(func: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
    """Raise, as torch does, if tensors are on different devices; zero-dimensional tensors may be."""
    if func in INDEXED:
        tensors = [
            t
            for t in (args[0], *(args[2:3] if len(args) > 2 else ()))
            if isinstance(t, torch.Tensor)
        ]
    places = {place_of(t) for t in tensors if t.dim() or isinstance(t, Claimed)}
    if len(places) > 1:
        shown = ", ".join(sorted(map(str, places)))
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {shown}")


@contextlib.contextmanager
def fake_device(kind: str, monkeypatch: Any) -> Iterator[None]:
    """Make torch find two devices of a kind while the block runs."""
    moves._streams.cache_clear()
    found = {kind: Accelerator(2 if kind == "cuda" else 1, bf16=kind == "cuda")}
    monkeypatch.setattr("clipadapt.tensor.devices.accelerators", lambda: found)
    monkeypatch.setattr("clipadapt.core.files.hardware.accelerator_possible", lambda: True)
    for module in (torch.cuda, torch.mps):
        monkeypatch.setattr(module, "_lazy_init", lambda: None, raising=False)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(
        torch, "inference_mode", torch.no_grad
    )  # inference_mode does not support views of such tensors
    move_module = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        # A parameter that is already on the device stays the same object, as an optimizer expects.
        if len(args) == 1 and isinstance(args[0], str | torch.device) and not kwargs:
            place = with_index(args[0])
            if all(place_of(t) == place for t in (*self.parameters(), *self.buffers())):
                return self
        return move_module(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    torch._C._ensureCUDADeviceGuardSet()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(
        True
    )  # ``.data =`` would lose the device
    try:
        with Moves(), FakeDevice():
            yield
    finally:
        moves._streams.cache_clear()
        torch.__future__.set_overwrite_module_params_on_conversion(before)
