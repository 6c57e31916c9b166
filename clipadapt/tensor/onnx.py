"""Write a network as an ONNX file and check it: onnxruntime must give the probabilities of torch."""

from __future__ import annotations

import importlib
import io
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from clipadapt.core.api.errors import ClipAdaptError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FILE: Final = "model.onnx"
OUTPUT: Final = "probabilities"
TOLERANCE: Final = 1e-4
"""Largest accepted difference of a probability between onnxruntime and torch."""
LIBRARIES: Final = ("onnx", "onnxruntime", "onnxscript")
_OTHER: Final = "use another --format"


def require() -> None:
    """Check that the libraries of the extra ``onnx`` are installed.

    Raises:
        ClipAdaptError: If one is missing.
    """
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ClipAdaptError(
                f"an export as onnx needs {name}, which is not installed",
                hint='pip install "clipadapt[onnx]"',
            ) from None


def write(
    folder: Path,
    network: torch.nn.Module,
    example: Mapping[str, torch.Tensor],
    expected: NDArray[np.floating[Any]],
    *,
    free: Sequence[str] = ("n",),
) -> float:
    """Write ``model.onnx``, which maps named inputs to ``probabilities``, and check it.

    Args:
        folder: An existing folder.
        network: Takes the inputs in their order and returns probabilities ``(n, C)``; in evaluation mode, float32.
        example: Inputs by name, each with the same number of rows, at least two.
        expected: Probabilities of the example from torch, shape ``(n, C)``.
        free: Names of the first axes of every input whose length is free: the batch size, for texts also the length.

    Returns:
        The largest difference between onnxruntime's probabilities and ``expected``, over the example as one batch and
        over each row alone.

    Raises:
        ClipAdaptError: If a library is missing.
        ModelError: If torch cannot export the network, onnxruntime cannot run it, or the difference exceeds
            :data:`TOLERANCE`.
    """
    require()
    sizes: dict[int, Any] = {axis: torch.export.Dim(name) for axis, name in enumerate(free)}
    with _errors("torch cannot write this network as onnx"), _quiet():
        program: Any = torch.onnx.export(
            network,
            tuple(example.values()),
            dynamo=True,
            verbose=False,
            input_names=list(example),
            output_names=[OUTPUT],
            dynamic_shapes=tuple(sizes for _ in example),
        )
        _forget_the_source(program.model)
        program.save(str(folder / FILE))
    arrays = {name: value.cpu().numpy() for name, value in example.items()}
    return check(folder / FILE, arrays, expected)


def check(
    path: Path,
    example: Mapping[str, NDArray[Any]],
    expected: NDArray[np.floating[Any]],
    source: str = "torch",
) -> float:
    """Return the largest difference of onnxruntime's probabilities from those expected.

    Args:
        path: The file.
        example: Inputs by name, each with ``n`` rows.
        expected: Their probabilities, shape ``(n, C)``.
        source: What the expected probabilities were computed with.

    Raises:
        ModelError: If onnxruntime cannot run the file, or the difference exceeds :data:`TOLERANCE`.
    """
    with _errors("onnxruntime cannot run the onnx file of this classifier"):
        found = _difference(path, example, expected)
    if not found <= TOLERANCE:  # also if it is not a number
        raise ModelError(
            f"the onnx file differs from {source}: a probability by {found:.2g}, at most {TOLERANCE:g} is accepted",
            hint=_OTHER,
        )
    return found


def _forget_the_source(model: Any) -> None:
    """Remove what the exporter notes beside the graph: lines of code, and so the paths of this machine."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and warnings off both streams."""
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _errors(problem: str) -> Iterator[None]:
    """Turn the many kinds of errors of torch's exporter and of onnxruntime into one message.

    Raises:
        OSError: If the file cannot be written.
        ModelError: For any other error.
    """
    try:
        yield
    except (OSError, ClipAdaptError):
        raise
    except Exception as err:
        # The exporter's own text is a general guide; the error below it says what was wrong.
        first: BaseException = err
        while first.__cause__ is not None:
            first = first.__cause__
        lines = [line.strip() for line in str(first).splitlines() if line.strip()]
        cause = lines[0] if lines else type(first).__name__
        raise ModelError(f"{problem}: {cause}", hint=_OTHER) from err


def _difference(
    path: Path, arrays: Mapping[str, NDArray[Any]], expected: NDArray[np.floating[Any]]
) -> float:
    """Return the largest difference of a probability, over all rows at once and over each row alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, arrays)
    alone = [
        session.run(None, {name: a[i : i + 1] for name, a in arrays.items()})[0]
        for i in range(len(expected))
    ]
    both = np.stack([whole, np.concatenate(alone)])  # (2, n, C)
    return float(np.abs(both - expected).max())


def stamp(folder: Path, facts: Mapping[str, str]) -> Callable[[Mapping[str, str]], None]:
    """Return a function that adds ``facts`` and those of the run to the file's ``metadata_props``."""

    def add(more: Mapping[str, str]) -> None:
        import onnx

        model = onnx.load(str(folder / FILE), load_external_data=False)
        onnx.helper.set_model_props(model, {**facts, **more})
        onnx.save(model, str(folder / FILE))

    return add
