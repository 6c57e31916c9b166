"""Compare the classifiers on features with the official way of computing them, at the scale of ImageNet.

    python scripts/bench/classifiers.py [--classes 1000] [--shots 16] [--queries 10000] [--methods gda proker ...]

Features are synthetic. Each side fits and predicts in its own process; the scores of both must agree.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from _common import Bench, class_names, clusters, figure, measured, table, times, use_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SIDES: Final = ("official way", "ours")
SCALE: Final = 100.0
LARGEST_GAP: Final = 1e-3
"""Largest allowed difference of a score, relative to the largest score."""
GIVEN: Final[dict[str, dict[str, Any]]] = {
    "gda": {"views": 0, "alpha": 1.0},
    "proker": {"views": 0, "beta": 1.7, "lmbda": 0.1},
    "tip_adapter": {"views": 0, "alpha": 1.17, "beta": 1.0},
    "ape": {"views": 0, "alpha": 1.0, "beta": 1.0, "gamma": 0.1, "channels": 0.7},
}
"""Settings of each method; without val nothing is searched."""


class Given:
    """A backbone with given features; ids are row numbers."""

    logit_scale, logit_bias = SCALE, 0.0

    def __init__(self, images: NDArray[np.float32], text: NDArray[np.float32]) -> None:
        self.images, self.text, self.embed_dim = images, text, images.shape[1]

    def encode(self, inputs: Any, tower: str, *_: Any, **__: Any) -> NDArray[np.float32]:
        """Return the rows of the inputs, or the text features."""
        if tower == "text":
            return self.text
        return self.images[np.array([int(i) for i in inputs.ids], dtype=np.int64)]


def compare(settings: dict[str, Any]) -> dict[str, Any]:
    """Fit and predict by one side; keep a sample of the scores for the comparison."""
    use_threads(settings)
    C, D, shots = settings["classes"], settings["width"], settings["shots"]
    x, y = clusters(C * shots, D, C)
    x, y = (
        x[np.argsort(y, kind="stable")],
        np.sort(y),
    )  # the official code expects the classes in order
    queries, _ = clusters(settings["queries"], D, C, seed=2)
    text, _ = clusters(C, D, C, seed=3)
    side = ours if settings["side"] == "ours" else official
    (scores, fit, predict), _, memory = measured(
        lambda: side(settings["method"], x, y, queries, text)
    )
    return {
        "seconds": fit + predict,
        "fit": fit,
        "predict": predict,
        "memory": memory,
        "sample": scores[::97].astype(float).tolist(),
    }


Timed = tuple[Any, float, float]


def ours(
    method: str,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    queries: NDArray[np.float32],
    text: NDArray[np.float32],
) -> Timed:
    """Fit and predict by the shipped method."""
    import scipy.linalg  # noqa: F401  # imports are not timed

    from clipadapt.core.api.context import RunContext, Services
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.registry import METHODS
    from clipadapt.core.features.cache import FeatureCache

    names = class_names(len(text))
    every = tuple(map(str, range(len(x) + len(queries))))
    train, test = every[: len(x)], every[len(x) :]
    backbone = Given(np.concatenate([x, queries]), text)
    task = Task(names, ("{}",), Split(Inputs(train, train), y, names))
    kind = METHODS.get(f"clip/{method}")
    context = RunContext(0, Path(), Services(FeatureCache(enabled=False)))
    begun = time.perf_counter()
    fitted = kind(kind.Config(**GIVEN[method])).fit(backbone, task, context)
    middle = time.perf_counter()
    scores = fitted.predict_scores(Inputs(test, test))
    return scores, middle - begun, time.perf_counter() - middle


def official(
    method: str,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    queries: NDArray[np.float32],
    text: NDArray[np.float32],
) -> Timed:
    """Fit and predict as the official code does: float32, loops over classes, one-hot products, inverses."""
    import torch
    from baselines import classifiers

    tensors = [torch.from_numpy(a) for a in (x, y, queries, text)]
    fit, predict = getattr(classifiers, method)(*tensors, **GIVEN[method])
    begun = time.perf_counter()
    state = fit()
    middle = time.perf_counter()
    scores = predict(*state)
    return scores.numpy(), middle - begun, time.perf_counter() - middle


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("classifiers", __doc__ or "", {"compare": compare})
    add = bench.parser.add_argument
    add("--classes", type=int, default=1000)
    add("--shots", type=int, default=16)
    add("--width", type=int, default=512)
    add("--queries", type=int, default=10_000)
    add("--methods", nargs="+", default=list(GIVEN), choices=list(GIVEN))
    bench.parser.set_defaults(repeats=1)
    o = bench.parse(argv, {"classes": 5, "shots": 4, "width": 16, "queries": 100})
    rows, notes = [], []
    with bench.scratch():
        common = {k: getattr(o, k) for k in ("classes", "shots", "width", "queries")}
        for method in o.methods:
            runs = bench.alternate({
                side: ("compare", common | {"method": method, "side": side}) for side in SIDES
            })
            theirs, own = (np.array(runs[side].first["sample"]) for side in SIDES)
            gap = float(np.abs(theirs - own).max() / np.abs(theirs).max())
            if gap > LARGEST_GAP:
                raise SystemExit(
                    f"classifiers: the scores of {method} differ by {gap:.3g} of the largest"
                )
            for side in SIDES:
                run = runs[side]
                cells = [figure(run.of(k)) for k in ("fit", "predict")]
                speed = times(runs[SIDES[0]].of(), run.of())
                rows.append([method, side, *cells, run.memory, speed, f"{gap:.1e}"])
    notes.append(
        "- Largest difference: of one score, relative to the largest score, over every 97th query."
    )
    notes.append(
        "- The hyperparameters are fixed: nothing is searched, and each image is its own only view."
    )
    head = ["method", "side", "fit, s", "predict, s", "peak MiB", "speed-up", "largest difference"]
    bench.write("Classifiers on features", table(head, rows), notes)


if __name__ == "__main__":
    main()
