"""Compare the linear probe's sweep of penalties with scikit-learn, and Tip-Adapter's search with a Python loop.

    python scripts/bench/probe.py [--n 10000] [--penalties 96] [--val 40 4000]

Features are synthetic, around one centre per class. For the probe, the objective of every optimum is compared: mean
cross-entropy plus the penalty, in float64. For the search, the chosen pair and the accuracies of the whole grid are.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _device
import numpy as np
from _common import SHARE, Bench, clusters, figure, measured, table, times, use_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _common import Runs
    from numpy.typing import NDArray

VARIANTS: Final = ("scikit-learn", "ours")
LARGEST_GAP: Final = 1e-4
"""Largest allowed difference from scikit-learn's objective."""
TIGHT: Final = 1e-9
"""Tolerance at which scikit-learn's objective counts as the optimum."""


# ---------------------------------------------------------------- the probe


def sweep(settings: dict[str, Any]) -> dict[str, Any]:
    """Fit with every penalty by one of the variants."""
    from baselines import linear_probe

    use_threads(settings)
    n, width, C = settings["n"], settings["width"], settings["classes"]
    x, y = clusters(n, width, C)
    xv, yv = clusters(max(n // 5, C), width, C, seed=2)
    values = np.logspace(-6, 6, settings["penalties"])
    solve = linear_probe.sweep if settings["variant"] == "scikit-learn" else sweep_of_ours
    solve(x[:200], y[:200], xv, yv, values[:2], 5)  # imports and first kernels
    found, seconds, memory = measured(lambda: solve(x, y, xv, yv, values, settings["max_iter"]))
    return {
        "device": _device.CPU,
        "seconds": seconds,
        "memory": memory,
        "objective": [objective(p.weight, p.bias, x, y, p.C) for p in found],
        "accuracy": [p.accuracy for p in found],
    }


def optimum(settings: dict[str, Any]) -> dict[str, Any]:
    """Return scikit-learn's objective at a tight tolerance, in float64; not timed."""
    from baselines import linear_probe

    use_threads(settings)
    x, y = clusters(settings["n"], settings["width"], settings["classes"])
    wide = x.astype(np.float64)
    found = linear_probe.sweep(wide, y, wide[:1], y[:1], settings["values"], 20_000, TIGHT)
    return {"objective": [objective(p.weight, p.bias, x, y, p.C) for p in found]}


def sweep_of_ours(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    xv: NDArray[np.float32],
    yv: NDArray[np.int64],
    penalties: NDArray[np.float64],
    _max_iter: int,
) -> list[Any]:
    """Fit all penalties by the batched solver of ``clip/linear_probe``."""
    from baselines.linear_probe import Probe

    from clipadapt.methods.linear_probe import Batched

    layers = Batched([x], y, int(y.max()) + 1)(penalties.tolist())
    return [
        Probe(C, layer.weight, layer.bias, float((layer(xv).argmax(1) == yv).mean()))
        for C, layer in zip(penalties.tolist(), layers, strict=True)
    ]


def objective(
    weight: NDArray[Any], bias: NDArray[Any], x: NDArray[Any], y: NDArray[Any], C: float
) -> float:
    """Return the objective of logistic regression, a mean over examples."""
    w = weight.astype(np.float64)
    logits = x.astype(np.float64) @ w.T + bias.astype(np.float64)  # (n, C)
    top = logits.max(axis=1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    loss = (total - logits[np.arange(len(y)), y]).mean()
    return float(loss + (w**2).sum() / (2 * C * len(y)))


# ---------------------------------------------------------------- Tip-Adapter


def search(settings: dict[str, Any]) -> dict[str, Any]:
    """Search alpha and beta by one of the variants."""
    import torch
    from baselines import tip_adapter

    from clipadapt.core.api.context import RunContext, Services
    from clipadapt.core.features.cache import FeatureCache
    from clipadapt.methods import _cache_model

    use_threads(settings)
    C, width = settings["classes"], settings["width"]
    keys, labels = clusters(settings["shots"] * C, width, C)
    val, val_labels = clusters(settings["val"], width, C, seed=2)
    # Ours searches on the host, where the features are.
    is_ours = settings["variant"] == "ours"
    device = _device.CPU if is_ours else settings["device"]
    weights = torch.from_numpy(clusters(C, width, C, seed=3)[0]).to(device)  # (C, D)
    config = _cache_model.SearchConfig(alpha_steps=settings["alphas"], beta_steps=settings["betas"])
    scale = (config.beta_max, config.alpha_max)
    features, targets = (torch.from_numpy(a).to(device) for a in (val, val_labels))
    cache = _cache_model.CacheModel(torch.from_numpy(keys).to(device), labels, C)
    values = cache.values().to(device)
    shown: dict[str, Any] = {}

    def by_ours() -> tuple[float, float, Any]:
        services = Services(FeatureCache(enabled=False))
        ctx = RunContext(0, Path(), services, observe=shown.__setitem__)
        best = _cache_model.search(cache, features, val_labels, weights, config, ctx)
        return best["beta"], best["alpha"], 100 * shown["grid"]

    def by_loop(steps: tuple[int, int]) -> tuple[float, float, Any]:
        given = (features, targets, cache.keys.T, values, weights.T)
        return tip_adapter.search(*given, scale=scale, steps=steps)

    # A matrix product of the same shapes first: thread pools start at the first use.
    tip_adapter.logits(features, cache.keys.T, values, weights.T, 1.0, 1.0)
    whole = (config.beta_steps, config.alpha_steps)
    work = by_ours if is_ours else partial(by_loop, whole)
    (beta, alpha, grid), seconds, memory = measured(work, device)
    flop = _device.counted(by_ours) if is_ours else _device.counted(partial(by_loop, (1, 1)))
    return {
        "device": device,
        "flop": flop * (1 if is_ours else math.prod(whole)),
        "seconds": seconds,
        "memory": memory,
        "pair": [beta, alpha],
        "grid": np.asarray(grid).tolist(),
    }


MEASUREMENTS: Final = {"sweep": sweep, "optimum": optimum, "search": search}


def rows_of(work: str, runs: dict[str, Runs], bench: Bench) -> list[list[str]]:
    """Return the rows of one case; ours is compared with the first variant."""
    base = next(iter(runs.values())).of()
    return [
        [
            work,
            variant,
            figure(found.of()),
            found.span(),
            times(base, found.of()),
            *found.share(bench.peak("fp32", _device.CPU if variant == "ours" else None)),
            found.memory,
        ]
        for variant, found in runs.items()
    ]


def compared_probe(runs: dict[str, Runs]) -> str:
    """Report the difference from scikit-learn's optima."""
    theirs, own = (np.array(runs[variant].first["objective"]) for variant in VARIANTS)
    # Below is fine: scikit-learn stops at its own tolerance.
    agree = np.mean(
        np.isclose(runs[VARIANTS[0]].first["accuracy"], runs["ours"].first["accuracy"], atol=1e-9)
    )
    above, below = max((own - theirs).max(), 0.0), max((theirs - own).max(), 0.0)
    verdict = "within" if above <= LARGEST_GAP else "NOT within"
    return (
        f"- Objective of the {len(own)} optima: ours is above scikit-learn's by at most {above:.2g} "
        f"({verdict} {LARGEST_GAP:g}), below by {below:.2g}; equal val accuracy at {agree:.0%} of the penalties."
    )


def compared_optimum(own: Sequence[float], tight: Sequence[float]) -> str:
    """Report the difference from the exact optima."""
    gap = float(np.abs(np.array(own) - np.array(tight)).max())
    verdict = "within" if gap <= LARGEST_GAP else "NOT within"
    return (
        f"- Against scikit-learn at a tolerance of {TIGHT:g}, {len(tight)} of the penalties: ours differs by at most "
        f"{gap:.2g} ({verdict} {LARGEST_GAP:g})."
    )


def compared_search(work: str, runs: dict[str, Runs]) -> str:
    """Report whether both searches agree."""
    loop, own = runs["loop in Python"].first, runs["ours"].first
    differ = np.mean(np.abs(np.array(loop["grid"]) - np.array(own["grid"])) > 1e-3)
    same = "the same pair" if np.allclose(loop["pair"], own["pair"]) else "ANOTHER pair"
    return f"- {work}: {same} is chosen; {differ:.2%} of the grid's accuracies differ."


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("probe", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--n", type=int, default=10_000, help="training examples of the probe")
    add("--width", type=int, default=512)
    add("--classes", type=int, default=10)
    add("--penalties", type=int, default=96)
    add("--max-iter", type=int, default=1000)
    add("--check", type=int, default=7, help="penalties whose optimum is computed exactly")
    add("--shots", type=int, default=16, help="keys per class of the cache")
    add("--val", type=int, nargs="+", default=[40, 4000], help="val examples of the search")
    add("--betas", type=int, default=200)
    add("--alphas", type=int, default=20)
    quick = {
        "n": 200,
        "width": 16,
        "classes": 3,
        "penalties": 4,
        "check": 2,
        "max_iter": 200,
        "val": [12],
    }
    o = bench.parse(argv, {**quick, "betas": 5, "alphas": 4})
    with bench.scratch():
        common = {"width": o.width, "classes": o.classes}
        settings = common | {"n": o.n, "penalties": o.penalties, "max_iter": o.max_iter}
        runs = bench.alternate({
            variant: ("sweep", settings | {"variant": variant}) for variant in VARIANTS
        })
        work = f"sweep of {o.penalties} penalties, {o.n:,} x {o.width}, {o.classes} classes"
        rows, notes = rows_of(work, runs, bench), [compared_probe(runs)]
        chosen = np.unique(np.linspace(0, o.penalties - 1, o.check).round().astype(int))
        values = np.logspace(-6, 6, o.penalties)[chosen].tolist()
        tight = bench.measure("optimum", common | {"n": o.n, "values": values})["objective"]
        own = np.array(runs["ours"].first["objective"])[chosen].tolist()
        notes.append(compared_optimum(own, tight))
        for val in o.val:
            settings = common | {"shots": o.shots, "val": val, "betas": o.betas, "alphas": o.alphas}
            runs = bench.alternate({
                variant: ("search", settings | {"variant": variant})
                for variant in ("loop in Python", "ours")
            })
            keys = o.shots * o.classes
            work = f"search of {o.betas} x {o.alphas}, {keys} keys, {val:,} val examples"
            rows += rows_of(work, runs, bench)
            notes.append(compared_search(work, runs))
    head = ["task", "variant", "seconds", "min to max", "speed-up", *SHARE, "peak memory, MiB"]
    where = f"The loop in Python runs on {bench.device}, everything else on the CPU."
    notes.append(f"- {where} {bench.peak_note()}")
    bench.write("Linear probe and Tip-Adapter's search", table(head, rows), notes)


if __name__ == "__main__":
    main()
