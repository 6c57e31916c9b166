"""Forecast what a sweep will cost from the costs of similar runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.plan import FitSpec

# How much a difference matters for the cost: the recipe most, the number of shots little.
_WEIGHTS: Final = {"recipe": 8.0, "model": 4.0, "dataset": 2.0, "shots": 1.0, "threads": 0.5}


@dataclass(frozen=True, slots=True)
class Estimate:
    """The expected cost of one run.

    Attributes:
        fit_seconds: Seconds of fitting and scoring.
        encode_seconds: Seconds of encoding, if the features are not cached.
        peak_memory_bytes: Peak memory, or None if no record reports it.
        differs: How the records used differ from the run; empty if they are of the same kind.
        n_records: Number of records used.
    """

    fit_seconds: float
    encode_seconds: float
    peak_memory_bytes: int | None
    differs: tuple[str, ...]
    n_records: int

    @property
    def basis(self) -> str:
        """The records used, in words."""
        plural = "run" if self.n_records == 1 else "runs"
        if not self.differs:
            return f"{self.n_records} same {plural}"
        return f"nearest: {self.n_records} {plural} with other {', '.join(self.differs)}"


def estimate(spec: FitSpec, past: Sequence[RunRecord]) -> Estimate | None:
    """Estimate the cost of a fit from the most similar complete records of its method; None if there is none.

    Args:
        spec: The fit.
        past: Records of any kind.
    """
    name = spec.experiment.method_name
    own = _traits(spec)
    ranked = [
        (_distance(own, _traits_of(r)), r)
        for r in past
        if r.method.name == name and r.status == "ok"
    ]
    if not ranked:
        return None
    least = min(distance for distance, _ in ranked)
    near = [r for distance, r in ranked if distance == least]
    differs = [k for k in _WEIGHTS if _traits_of(near[0])[k] != own[k]]
    peaks = [r.cost.peak_memory_bytes for r in near if r.cost.peak_memory_bytes is not None]
    return Estimate(
        median(r.cost.fit_seconds + r.cost.predict_seconds for r in near),
        median(r.cost.encode_seconds for r in near),
        max(peaks, default=None),
        tuple(differs),
        len(near),
    )


def forecast(planned: Sequence[Sequence[FitSpec]], past: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what a sweep will run and cost, as plain data.

    Encoding is counted once for each model and dataset, and not at all if a complete run has used both.

    Args:
        planned: Fits of each experiment.
        past: Records to estimate from.
    """
    encoded = {
        (r.model.name, r.evaluation.dataset)
        for r in past
        if r.model is not None and r.status == "ok"
    }
    experiments = [_experiment(specs, past, encoded) for specs in planned if specs]
    known = [e["expected"] for e in experiments if e["expected"] is not None]
    peaks = [k["peak_memory_bytes"] for k in known if k["peak_memory_bytes"] is not None]
    return {
        "experiments": experiments,
        "total": {
            "runs": sum(e["runs"] for e in experiments),
            "complete": sum(e["complete"] for e in experiments),
            "seconds": sum(k["seconds"] for k in known) if known else None,
            "peak_memory_bytes": max(peaks, default=None),
            "runs_without_estimate": sum(
                e["runs"] - e["complete"] for e in experiments if e["expected"] is None
            ),
        },
    }


def render(plan: dict[str, Any]) -> str:
    """Return a forecast as lines of text."""
    lines = []
    for e in plan["experiments"]:
        parts = [
            f"{e['recipe']} on {e['dataset']}" + (f" with {e['model']}" if e["model"] else ""),
            f"shots {e['shots'] or 'all'}",
        ]
        if e["lines"]:
            parts.append("settings of " + " and of ".join(e["lines"]))
        if e["protocol"] != "standard":
            parts.append(f"protocol {e['protocol']}")
        parts.append("evaluated on " + ", ".join(e["evaluated_on"]))
        line = f"{', '.join(parts)}: {e['complete']} of {e['runs']} runs complete"
        if e["complete"] < e["runs"]:
            line += f"; {_cost(e['expected'])}"
        lines.append(line)
    total = plan["total"]
    left = total["runs"] - total["complete"]
    line = f"in all {total['complete']} of {total['runs']} runs complete"
    if left and total["seconds"] is not None:
        memory = _memory(total["peak_memory_bytes"])
        line += f"; {left} to do, about {_time(total['seconds'])}{memory}"
        if total["runs_without_estimate"]:
            line += f", and {total['runs_without_estimate']} runs without an estimate: no similar record"
    elif left:
        line += f"; {left} to do, no similar record to estimate the time from"
    return "\n".join([*lines, line]) + "\n"


def _experiment(
    specs: Sequence[FitSpec], past: Sequence[RunRecord], encoded: set[tuple[str, str]]
) -> dict[str, Any]:
    """Return the forecast of one experiment; what it encodes is added to ``encoded``."""
    opened, experiment = specs[0].opened, specs[0].experiment
    todo = [spec for spec in specs if spec.missing()]
    found = estimate(todo[0], past) if todo else None
    expected = None
    if found is not None:
        model = opened.identity.name if opened.identity else ""
        spaces = {(model, t.dataset.name) for t in opened.targets} - encoded if model else set()
        encoded |= spaces
        expected = {
            "seconds": found.fit_seconds * len(todo) + (found.encode_seconds if spaces else 0.0),
            "peak_memory_bytes": found.peak_memory_bytes,
            "basis": found.basis,
            "differs": list(found.differs),
            "n_records": found.n_records,
        }
    config = experiment.config
    return {
        "recipe": experiment.recipe or experiment.method_name,
        "method": experiment.method_name,
        "lines": list(experiment.lines),
        "dataset": config.data.name,
        "model": config.model.name if opened.provider and config.model else None,
        "shots": config.data.shots,
        "seeds": list(config.seeds),
        "protocol": config.evaluation.protocol,
        "evaluated_on": [target.title for target in opened.targets],
        "runs": len(specs),
        "complete": len(specs) - len(todo),
        "expected": expected,
    }


def _traits(spec: FitSpec) -> dict[str, Any]:
    opened, experiment = spec.opened, spec.experiment
    return {
        "recipe": experiment.recipe,
        "model": opened.identity.name if opened.identity else None,
        "dataset": opened.home.dataset.name,
        "shots": experiment.config.data.shots,
        "threads": opened.threads,
    }


def _traits_of(record: RunRecord) -> dict[str, Any]:
    return {
        "recipe": record.method.recipe,
        "model": record.model.name if record.model else None,
        "dataset": record.data.name,
        "shots": record.data.shots,
        "threads": record.environment.threads,
    }


def _distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    total = sum(weight for key, weight in _WEIGHTS.items() if a[key] != b[key])
    if a["shots"] and b["shots"]:  # 8 shots are nearer to 16 than 1 shot is
        total += min(abs(math.log2(a["shots"] / b["shots"])), 20) / 100
    return float(total)


def _cost(expected: dict[str, Any] | None) -> str:
    if expected is None:
        return "no similar record to estimate the time from"
    memory = _memory(expected["peak_memory_bytes"])
    return f"about {_time(expected['seconds'])}{memory} ({expected['basis']})"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _memory(peak: int | None) -> str:
    return "" if peak is None else f", {peak / 2**20:,.0f} MiB"
