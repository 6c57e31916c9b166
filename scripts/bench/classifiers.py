"""Compare the classifiers on features with the official way of computing them, at the scale of ImageNet.

    python scripts/bench/classifiers.py [--classes 1000] [--shots 16] [--queries 10000] [--methods gda proker ...]

Features are synthetic. Each side fits and predicts in its own process, with equal batches and initial values; the
results of both must agree. Where the official way is slow, both sides have fewer queries, and ours is measured with
all of them as well. The limit is the time that this machine needs for the matrix products which a method cannot avoid.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _device
import numpy as np
from _arithmetic import Sizes, live_entries, products, seconds_of
from _common import Bench, class_names, clusters, figure, measured, table, times, use_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _arithmetic import Product
    from _common import Runs
    from numpy.typing import NDArray

    Features = NDArray[np.float32]

OFFICIAL: Final = "official way"
OURS: Final = "ours"
SIDES: Final = (OFFICIAL, OURS)
SCALE: Final = 100.0
NORM: Final = 10.0
"""Norm of the features before they are normalized; CLIP's is about 10."""
WIDTH: Final = 1.5
"""Width of the features before the projection, relative to the width after it, as in ViT-B/16."""
COMPARED: Final = 100
"""Queries whose scores are compared, evenly spread."""
LARGEST_MEMORY: Final = 4 << 30
SPEED: Final = 5.0
SHARE: Final = 0.5
"""From this share of the limit on, a method is reported as limited by the arithmetic."""


@dataclass(frozen=True, slots=True)
class Case:
    """How a method is compared.

    Attributes:
        settings: Its settings; without val nothing is searched, and each image is its own only view.
        note: What a reader has to know of the comparison.
        module: Module of the baselines.
        method: Name of the method, if it is not that of the case.
        queries: Number of queries of both sides at most; None for all.
        gap: Largest allowed difference of a score, relative to the largest score.
        exponentials: Whether the official results are the exponentials of our scores.
    """

    settings: dict[str, Any]
    note: str
    module: str = "heads"
    method: str = ""
    queries: int | None = None
    gap: float = 1e-3
    exponentials: bool = False


FREE: Final = "classifiers"
STEPS: Final = {"epochs": 1, "augment": "none", "warmup_epochs": 0, "keep": "last"}
CACHE: Final = {"views": 0, "search": False}
CASES: Final[dict[str, Case]] = {
    "gda": Case(
        {"views": 0, "alphas": ()},
        "The official pseudo-inverse is a Cholesky factorization here; the rest is the loop over classes",
        FREE,
    ),
    "proker": Case(
        CACHE,
        "One factorization of a matrix of all training vectors on both sides; ours factorizes in float32 and refines "
        "with float64 residuals",
        FREE,
    ),
    "tip_adapter": Case(
        CACHE, "The product with one-hot values is a sum over the keys of each class", FREE
    ),
    "ape": Case(
        CACHE,
        "As tip_adapter; the similarity of classes is one sum. The official code also loops over the members of both "
        "classes, which would take hours: the baseline does not",
        FREE,
    ),
    "transclip": Case(
        {"few_shot": False},
        "Squared distances are matrix products. The time of the baseline grows with queries x classes x width",
        FREE,
        queries=1000,
        exponentials=True,
    ),
    "transclip_few_shot": Case(
        {"few_shot": True, "iterations": 2},
        "As transclip, with the training examples, one value of gamma and 2 iterations in place of 10",
        FREE,
        method="transclip",
        queries=1000,
        exponentials=True,
    ),
    "tda": Case(
        {},
        "The votes of a block of queries are matrix products. The baseline handles one query at a time, each slower "
        "than the one before as long as the caches grow",
        FREE,
        queries=2000,
    ),
    "linear_probe": Case(
        {"search": "none", "layer": "output"},
        "Both sides are scikit-learn's L-BFGS with one penalty and our tolerance, because its own stops before the "
        "first step at this size; for the search see `probe.md`. The limit counts two products for each iteration",
    ),
    "linear_probe_adamw": Case(
        {"solver": "adamw", "search": "none", "layer": "output", "epochs": 1},
        "The recipe of CLIP_benchmark, one epoch; both sides take the same steps with the same operations",
        method="linear_probe",
    ),
    "clip_adapter": Case(STEPS, "One epoch of batches of 32"),
    "tip_adapter_f": Case(
        STEPS | CACHE | {"training_views": 0},
        "One epoch; the product with one-hot values, forward and backward, is a sum over the keys of each class",
    ),
    "ape_t": Case(
        STEPS | CACHE,
        "One epoch; keys and values are not built again in every step, and the similarity of classes is one sum. The "
        "limit computes the similarities of keys and images once for all epochs",
    ),
    "taskres": Case(
        STEPS, "One epoch; both sides normalize the weights of all classes in every step"
    ),
    "clap": Case(
        STEPS | {"views": 0},
        "One epoch; the multipliers need one column of the official product with one-hot labels",
    ),
    "lp_plus_plus": Case(
        {"views": 0, "epochs": 20, "keep": "last"},
        "20 full batches; images and texts are one product, where the official code has two",
    ),
    "prolip": Case({"views": 0, "epochs": 10, "keep": "last"}, "10 full batches"),
    "cross_modal": Case(
        {"views": 0, "search": False, "steps": 1000, "keep": "last"},
        "1,000 steps of 8 examples; a step of AdamW reads and writes the weights of all classes and their moments, "
        "which takes longer than the products",
    ),
}


class Given:
    """A backbone with given features; ids are row numbers."""

    name, weights_sha256, dtype = "given", "", "fp32"
    logit_scale, logit_bias = SCALE, 0.0

    def __init__(
        self,
        images: Features,
        text: Features,
        projection: Features,
        services: Any,
        device: str,
    ) -> None:
        self.device = device
        self.images, self.text, self.projection = images, text, projection
        self.embed_dim, self.services = text.shape[1], services

    def encode(self, inputs: Any, tower: str, layer: str = "output", *_: Any) -> Features:
        """Return the rows of the inputs, or the text features."""
        rows = [] if tower == "text" else [int(i) for i in inputs.ids]
        found = self.text if tower == "text" else self.images[rows]
        return np.float32(NORM) * found if layer == "projected" else found

    def logits(self, images: Any, text: Any) -> Any:
        """Return the scaled cosine."""
        return SCALE * images @ text.T

    def image_projection(self) -> Any:
        """Return the pretrained projection."""
        from clipadapt.models import Projection

        return Projection("pre_projection", self.projection, None)


@dataclass(frozen=True, slots=True)
class Problem:
    """What both sides get, as arrays; see ``baselines.classifiers.Data``."""

    x: Features
    y: NDArray[np.int64]
    q: Features
    text: Features
    projection: Features
    start: dict[str, Features] = field(default_factory=dict)


def problem_of(name: str, settings: dict[str, Any]) -> Problem:
    """Return synthetic features, and the initial values of what starts at random."""
    C, D, shots = settings["classes"], settings["width"], settings["shots"]
    W = round(WIDTH * D)
    width = W if name == "prolip" else D
    x, y = clusters(C * shots, width, C)
    order = np.argsort(y, kind="stable")  # the official code expects the classes in order
    queries, _ = clusters(settings["queries"], width, C, seed=2)
    text, _ = clusters(C, D, C, seed=3)
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Features:
        bound = shape[-1] ** -0.5
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    projection, start = drawn(W, D), {}
    if name == "clip_adapter":
        start = {"fc.0.weight": drawn(D // 4, D), "fc.2.weight": drawn(D, D // 4)}
    elif name == "linear_probe_adamw":
        start = {"weight": drawn(C, D), "bias": drawn(C)}
    elif name == "lp_plus_plus":
        start = {"bias": drawn(C)}
    elif name == "prolip":  # normalizing again would change the last bits
        start = {"text_features": text}
    return Problem(x[order], y[order], queries, text, projection, start)


def order(stream: str, n: int, size: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return shuffled batches; an incomplete last one is dropped, unless it is the only one."""
    rows = np.random.default_rng([epoch, n, len(stream)]).permutation(n)
    whole = [rows[i : i + size] for i in range(0, n, size)]
    return whole[:-1] if len(whole) > 1 and len(whole[-1]) < size else whole


def config_of(name: str) -> Any:
    """Return the settings of a case, with the defaults of its method."""
    from clipadapt.core.api.registry import METHODS

    case = CASES[name]
    return METHODS.get(f"clip/{case.method or name}").Config(**case.settings)


def compare(settings: dict[str, Any]) -> dict[str, Any]:
    """Fit and predict by one side; keep a sample of the scores for the comparison."""
    use_threads(settings)
    device = settings["device"]
    warm_up(device)
    name, config = settings["case"], config_of(settings["case"])
    problem = problem_of(name, settings)
    side = ours if settings["side"] == OURS else official
    gc.freeze()  # the modules are not searched for garbage before each measurement
    try:
        (scores, fit, predict, facts), _, memory = measured(
            lambda: side(name, problem, config, device), device
        )
    finally:
        gc.unfreeze()
    scores = np.array(scores, dtype=np.float64)
    if CASES[name].exponentials and settings["side"] == OURS:
        scores = np.exp(scores)
    found = {"seconds": fit + predict, "fit": fit, "predict": predict, "memory": memory}
    return found | facts | {"sample": scores[:: max(1, len(scores) // COMPARED)].tolist()}


def warm_up(device: str) -> None:
    """Import what both sides use and start the threads, so that neither is timed."""
    import torch
    from scipy.linalg import cho_factor
    from sklearn.linear_model import LogisticRegression  # noqa: F401

    cho_factor(np.eye(64))
    parameter = torch.ones(64, 64, requires_grad=True, device=device)
    (parameter @ parameter).sum().backward()
    torch.optim.AdamW([parameter], lr=0.0).step()


Timed = tuple[Any, float, float, dict[str, Any]]


def ours(name: str, problem: Problem, config: Any, device: str) -> Timed:
    """Fit and predict by the shipped method; scores are arrays, so a GPU has ended when it returns."""
    import torch  # noqa: F401  # imports are not timed

    from clipadapt.core.api.context import RunContext, Services
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.registry import METHODS
    from clipadapt.core.features.cache import FeatureCache

    x, names = problem.x, class_names(len(problem.text))
    every = tuple(map(str, range(len(x) + len(problem.q))))
    train, test = every[: len(x)], every[len(x) :]
    services = Services(FeatureCache(enabled=False))
    images = np.concatenate([x, problem.q])
    backbone = Given(images, problem.text, problem.projection, services, device)
    task = Task(names, ("{}",), Split(Inputs(train, train), problem.y, names))
    kind = METHODS.get(f"clip/{CASES[name].method or name}")
    with tempfile.TemporaryDirectory() as folder:
        context = RunContext(0, Path(folder), services, order=order, start=problem.start)
        begun = time.perf_counter()
        fitted = kind(config).fit(backbone, task, context)
        middle = time.perf_counter()
    again = time.perf_counter()
    scores = fitted.predict_scores(Inputs(test, test))
    end = time.perf_counter()
    return scores, middle - begun, end - again, {}


def official(name: str, problem: Problem, config: Any, device: str) -> Timed:
    """Fit and predict as the official code does: float32, loops over classes, one-hot products, inverses."""
    from importlib import import_module

    import torch
    from baselines.classifiers import Data

    x, y, q, text, projection = (
        torch.from_numpy(getattr(problem, n)).to(device)
        for n in ("x", "y", "q", "text", "projection")
    )
    start = {n: torch.from_numpy(a).to(device) for n, a in problem.start.items()}
    given = Data(x, y, q, text, NORM, order, start, projection)
    fit, predict = getattr(import_module(f"baselines.{CASES[name].module}"), name)(given, config)
    with torch.device(device):  # where the baselines create tensors and layers
        _device.wait_for(device)
        begun = time.perf_counter()
        state = fit()
        _device.wait_for(device)
        middle = time.perf_counter()
        with torch.no_grad():
            scores = predict(*state).cpu()
        end = time.perf_counter()
    facts = {"iterations": state[-1]} if name == "linear_probe" else {}
    return scores.numpy(), middle - begun, end - middle, facts


def limits(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds and the GFLOP of the matrix products that methods cannot avoid, for each of ``each``."""
    use_threads(settings)
    rates: dict[Any, float] = {}
    found = [seconds_of(_products(one), rates, settings["device"]) for one in settings["each"]]
    return {"each": found}


def _products(settings: dict[str, Any]) -> list[Product]:
    name, config = settings["case"], config_of(settings["case"])
    live = 0
    if name == "tda":
        problem = problem_of(name, settings)
        predicted = (problem.q @ problem.text.T).argmax(axis=1)
        live = live_entries(predicted, config.capacity)
    C, D, shots = settings["classes"], settings["width"], settings["shots"]
    more = (settings["iterations"], live)
    return products(
        name, Sizes(C, C * shots, settings["queries"], D, round(WIDTH * D), *more), config
    )


def difference(official_way: dict[str, Any], own: dict[str, Any]) -> float:
    """Return the largest difference of a score, relative to the largest score of the official way."""
    theirs, mine = np.array(official_way["sample"]), np.array(own["sample"])
    return float(np.abs(theirs - mine).max() / np.abs(theirs).max())


def problems(lines: Sequence[Line]) -> list[str]:
    """Return what is wrong with the results: scores that differ, or too much memory."""
    found = []
    for line in lines:
        name, run = line.settings["case"], line.run
        allowed = CASES[name].gap
        if line.gap is not None and not line.gap <= allowed:
            found.append(
                f"{name}: the scores differ by {line.gap:.3g}, at most {allowed:g} is allowed"
            )
        peaks = [r["memory"] or 0 for r in run.results]
        if line.side != OFFICIAL and max(peaks) > LARGEST_MEMORY:
            found.append(
                f"{name} needed {max(peaks) / 2**30:.2f} GiB, at most {LARGEST_MEMORY >> 30} GiB are allowed"
            )
    return found


def verdict(speed: float, share: float) -> str:
    """Say which of the two aims was reached."""
    if speed >= SPEED:
        return f"{SPEED:g}x reached ({speed:.1f}x)"
    if share >= SHARE:
        return f"limit of the arithmetic reached ({share:.0%}; {speed:.1f}x)"
    return f"neither {SPEED:g}x nor the limit ({speed:.1f}x, {share:.0%} of the limit)"


@dataclass(frozen=True, slots=True)
class Line:
    """One row: the repeats of a side.

    Attributes:
        settings: The case and the sizes.
        side: Its name in the table.
        run: The repeats.
        against: Those of the official way at the same sizes, or None.
        gap: Difference of the results, or None if it was not compared.
    """

    settings: dict[str, Any]
    side: str
    run: Runs
    against: Runs | None
    gap: float | None

    def cells(self, limit: tuple[float, float] | None) -> list[str]:
        """Return the cells of the row.

        Args:
            limit: Seconds and GFLOP of the products, or None.
        """
        seconds = [figure(self.run.of(k)) for k in ("fit", "predict")]
        faster = "" if self.against is None else times(self.against.of(), self.run.of())
        most = ["", "", ""]
        if limit is not None:
            most = [figure(limit[1]), figure(limit[0]), f"{limit[0] / self.run.of():.0%}"]
        gap = "" if self.gap is None else f"{self.gap:.1e}"
        return [self.settings["case"], self.side, *seconds, self.run.memory, faster, *most, gap]


def lines_of(bench: Bench, name: str, common: dict[str, Any]) -> list[Line]:
    """Measure both sides of one method, and ours with all queries if both have fewer."""
    case, every = CASES[name], common["queries"]
    sized = common | {"case": name, "queries": min(every, case.queries or every), "iterations": 0}
    runs = bench.alternate({side: ("compare", sized | {"side": side}) for side in SIDES})
    theirs, own = (runs[side] for side in SIDES)
    gap = difference(theirs.first, own.first)
    sized["iterations"] = theirs.first.get("iterations", 0)
    lines = [
        Line(sized, OFFICIAL, theirs, theirs, None),
        Line(sized, OURS, own, theirs, gap),
    ]
    if sized["queries"] < every:
        whole = sized | {"queries": every}
        runs = bench.alternate({OURS: ("compare", whole | {"side": OURS})})
        lines.append(Line(whole, f"{OURS}, {every:,} queries", runs[OURS], None, None))
    return lines


def note_of(name: str, lines: Sequence[Line], limit: float) -> str:
    """Return the note of a method; ``limit`` belongs to its last row."""
    theirs, own = lines[0].run, lines[1].run
    fewer = f", both with {lines[0].settings['queries']:,} queries" if len(lines) > 2 else ""
    reached = verdict(theirs.of() / own.of(), limit / lines[-1].run.of())
    return f"- {name}: {reached}{fewer}. {CASES[name].note}."


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("classifiers", __doc__ or "", {"compare": compare, "limits": limits})
    add = bench.parser.add_argument
    add("--classes", type=int, default=1000)
    add("--shots", type=int, default=16)
    add("--width", type=int, default=512)
    add("--queries", type=int, default=10_000)
    add("--methods", "--only", nargs="+", default=list(CASES), choices=list(CASES))
    bench.parser.set_defaults(repeats=1)
    o = bench.parse(argv, {"classes": 5, "shots": 4, "width": 16, "queries": 100})
    rows, notes = [], []
    with bench.scratch():
        common = {k: getattr(o, k) for k in ("classes", "shots", "width", "queries")}
        measured_lines = {name: lines_of(bench, name, common) for name in o.methods}
        each = [line.settings for lines in measured_lines.values() for line in lines[1:]]
        found = iter(bench.measure("limits", {"each": each})["each"])
    for name, lines in measured_lines.items():
        most = [next(found) for _ in lines[1:]]
        rows += [line.cells(one) for line, one in zip(lines, [None, *most], strict=True)]
        notes.append(note_of(name, lines, most[-1][0]))
    head = ["method", "side", "fit, s", "predict, s", "peak MiB", "speed-up", "GFLOP",
            "limit, s", "of the limit", "difference"]  # fmt: skip
    bench.write("Classifiers on features", table(head, rows), [*general(o), "", *notes])
    wrong = [p for lines in measured_lines.values() for p in problems(lines)]
    if wrong:
        sys.exit("\n".join(f"classifiers: {problem}" for problem in wrong))


def general(o: Any) -> list[str]:
    """Return the notes that hold for all methods."""
    sizes = f"{o.classes:,} classes x {o.shots} images, features of width {o.width}, {o.queries:,} queries"
    return [
        f"- {sizes}, all synthetic. Nothing is searched, and each image is its own only view.",
        "- Limit: seconds of the matrix products that the method cannot avoid, in float32, at the rates measured here.",
        f"- Difference: of one score of {COMPARED} queries, relative to the largest score.",
        f"- Every fit and prediction of ours needs at most {LARGEST_MEMORY >> 30} GiB; the script fails otherwise.",
    ]


if __name__ == "__main__":
    main()
