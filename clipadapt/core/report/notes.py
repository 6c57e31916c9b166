"""Notes below tables that `table`, summary and page share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.report.formats import method_title, metric_title, split_title
from clipadapt.core.scoring.metrics import of_probabilities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.records.schema import RunRecord

INTERVALS = (
    "Intervals are 95 %: over test examples (Wilson) for one seed, over seeds and examples together for several. "
    "n: test examples."
)
SETTINGS = (
    "Setting: an inductive method predicts each test example on its own. A transductive one sees all unlabelled test "
    "examples at once, an online one sees them one after another in a recorded order and adapts to them, so their "
    "figures depend on the other test examples. Rows of different settings are never compared."
)
"""A note for records of which some are not inductive."""
ENCODING = (
    "encode, s: seconds that encoding the frozen features took; features from the cache count with the seconds of "
    "their first encoding."
)
"""A note for runs that used frozen features."""
MOST_FAILURES = 5
"""Failed runs that a note names."""


def setting_notes(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return the note :data:`SETTINGS` if a record is not inductive."""
    return (SETTINGS,) if any(r.method.setting != "inductive" for r in records) else ()


def probability_notes(records: Sequence[RunRecord], metrics: Sequence[str]) -> tuple[str, ...]:
    """Return a note if some records have a softmax and others sigmoids, and one of the metrics reads probabilities.

    Args:
        records: Records that have the metrics.
        metrics: Names of the metrics that are shown.
    """
    titles = [metric_title(name, "") for name in metrics if of_probabilities(name)]
    if not titles or len({r.probabilities for r in records}) < 2:
        return ()
    note = (
        "Probabilities are a softmax over the classes in some rows and one sigmoid per class in others, so their "
        f"{', '.join(titles)} cannot be compared: the likelihood and the squared error of sigmoids are sums over all "
        "classes, and their confidences need not sum to 1."
    )
    return (note,)


def failure_note(failed: Sequence[RunRecord]) -> str:
    """Return a note that counts failed runs and names the first of them."""
    which = "; ".join(
        f"{method_title(r.method.name, r.method.recipe)} on {r.evaluation.dataset}, seed {r.seed}: "
        + (r.error or "").partition("\n")[0]
        for r in failed[:MOST_FAILURES]
    )
    more = f"; and {len(failed) - MOST_FAILURES} more" if len(failed) > MOST_FAILURES else ""
    plural = "run" if len(failed) == 1 else "runs"
    return f"{len(failed)} failed {plural}, not included in any mean: {which}{more}."


def conditions(records: Sequence[RunRecord]) -> str:
    """Return a note of the protocol, templates and class names of each evaluation, once where they are the same."""
    found: dict[str, list[str]] = {}
    for record in records:
        evaluation = record.evaluation
        where = f"{evaluation.dataset} ({split_title(evaluation.split, evaluation.classes)})"
        parts = [f"protocol {evaluation.protocol}"]
        if record.method.prompts:
            parts.append(record.method.prompts)
        if evaluation.templates and record.method.uses_templates:
            some = f'"{evaluation.templates[0]}"'
            n = len(evaluation.templates)
            parts.append(f"template {some}" if n == 1 else f"{n} templates, the first {some}")
        parts.append(f"class names {evaluation.classnames_sha256[:8]}")
        text = ", ".join(parts)
        if where not in found.setdefault(text, []):
            found[text].append(where)
    return "Evaluated on: " + "; ".join(f"{', '.join(v)}: {k}" for k, v in found.items()) + "."
