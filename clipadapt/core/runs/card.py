"""The ``README.md`` of an export: what it is, how the other library loads it, and what it does not contain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.api.method import Exported
    from clipadapt.core.records.schema import RunRecord

NAME: Final = "README.md"


def render(
    record: RunRecord,
    form: str,
    classnames: Sequence[str],
    temperature: float | None,
    exported: Exported,
) -> str:
    """Return the text of the file.

    Args:
        record: The run's record.
        form: Format of the export.
        classnames: ``C`` class names, in the order of the scores.
        temperature: Softmax temperature of the run, or None.
        exported: What the method reports about the export.
    """
    accuracy = record.metrics.get("accuracy")
    facts = {
        "Method": f"{record.method.name}, version {record.method.version}",
        "Model": "none"
        if record.model is None
        else f"{record.model.name} ({record.model.dtype}), sha256 of its files {record.model.weights_sha256}",
        "Trained on": f"{record.data.name}, {record.data.n_train} examples, seed {record.seed}",
        "Accuracy": "unknown"
        if accuracy is None
        else f"{accuracy.value:.4f} on {record.evaluation.dataset}, split {record.evaluation.split}",
        "Temperature": "none was fitted: the probabilities are not calibrated"
        if temperature is None
        else f"{temperature:.6g}, fitted on val",
        **exported.facts,
        "Run": record.run_id,
    }
    notes = exported.notes or ("Nothing that affects the scores.",)
    lines = [
        f"# {record.method.name} as {form}",
        "",
        *(f"- {name}: {_line(text)}" for name, text in facts.items()),
        "",
        "Classes, in the order of the scores:",
        "",
        *_block("json", json.dumps(list(classnames), ensure_ascii=False)),
        "",
        "## How to load it",
        "",
        *_block("python", exported.snippet.strip()),
        "",
        "## What it does not contain",
        "",
        *(f"- {_line(note)}" for note in notes),
    ]
    return "\n".join(lines) + "\n"


def _block(language: str, text: str) -> list[str]:
    """Return a fenced block; the fence is longer than any in the text, such as in a class name."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", text, fence]


def _line(text: str) -> str:
    return " ".join(text.split())
