"""Imports open_clip without what it never calls: torch's compiler, and the solver that detection losses take.

Three libraries name the compiler while they are imported: torchvision's region operators ask whether it is there,
timm marks a function as not to be compiled, transformers takes a context that it enters where masks are compiled; its
losses of object detection take a function of ``scipy.optimize``. Stand-ins answer them and are taken away again;
whoever compiles something or assigns boxes later gets the real module.
``CLIPADAPT_LEAN_IMPORTS=off`` imports everything as it comes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SWITCH: Final = "CLIPADAPT_LEAN_IMPORTS"
COMPILER: Final = "torch._dynamo"
UTILS: Final = f"{COMPILER}.utils"
TRACED: Final = f"{COMPILER}._trace_wrapped_higher_order_op"
SOLVER: Final = "scipy.optimize"


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Stand in for the compiler's modules while others are imported, unless they are there already."""
    import torch

    if COMPILER in sys.modules or os.environ.get(SWITCH) == "off":
        yield
        return
    stand_ins: dict[str, Any] = {name: ModuleType(name) for name in (COMPILER, UTILS, TRACED)}
    stand_ins[COMPILER].__path__ = []
    stand_ins[COMPILER].__getattr__ = _decorator
    stand_ins[UTILS].is_compile_supported = lambda *_: False
    stand_ins[TRACED].TransformGetItemToIndex = _real_context
    if SOLVER not in sys.modules:
        stand_ins[SOLVER] = ModuleType(SOLVER)
        stand_ins[SOLVER].linear_sum_assignment = _real_assignment
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if vars(torch).get("_dynamo") is stand_ins[COMPILER]:  # getattr would import the real one
            del vars(torch)["_dynamo"]


def _same(fn: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Return what is decorated, with or without arguments to the decorator."""
    return fn if fn is not None else _same


def _decorator(name: str) -> Any:
    """Stand in for any of the compiler's decorators: functions are left as they are."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _same


def _real_context(*args: Any, **kwargs: Any) -> Any:
    """Return the real context when one is entered after all."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex(*args, **kwargs)


def _real_assignment(*args: Any, **kwargs: Any) -> Any:
    """Call the real function."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(*args, **kwargs)


with without_compiler():
    import open_clip  # noqa: F401
