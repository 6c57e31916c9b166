"""Rows as the report page shows them: with a colour, a place, and the attributes by which they are filtered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.report.comparisons import RankedRow
    from clipadapt.core.report.rows import Row
    from clipadapt.core.report.summary import Block, Summary


@dataclass(frozen=True)
class PageRow:
    """One row of the leaderboard.

    Attributes:
        number: Its place on the page.
        block: Where it competes.
        ranked: The row in that block.
        style: Number of its colour and shape.
    """

    number: int
    block: Block
    ranked: RankedRow
    style: int

    @property
    def row(self) -> Row:
        """Runs and their figures."""
        return self.ranked.row

    @property
    def trained(self) -> bool:
        """Whether the method trains; zero-shot is shown next to every number of shots."""
        return self.row.first.method.uses_train

    @property
    def label(self) -> str:
        """Method, recipe and settings, without the model, which has a column of its own."""
        return self.row.label

    @property
    def label_with_model(self) -> str:
        """The label and, if there is one, the model."""
        return f"{self.label} on {self.row.model}" if self.row.model else self.label

    @property
    def shots(self) -> str:
        """Shots as the page names them."""
        if not self.trained:
            return "zero-shot"
        shots = self.row.first.data.shots
        return "all" if shots is None else str(shots)

    @property
    def data(self) -> dict[str, str]:
        """Values of the page's filters; a baseline matches every value of a filter that it does not have."""
        found = {"data": place(self.block), "method": self.label}
        if self.row.model is not None:
            found["model"] = self.row.model
        if self.trained:
            found["shots"] = self.shots
        return found

    @property
    def title(self) -> str:
        """Title of a card of this row."""
        counted = {"zero-shot": "", "all": ", all examples", "1": ", 1 shot"}
        return self.label + counted.get(self.shots, f", {self.shots} shots")

    @property
    def accuracy(self) -> float:
        """Accuracy, 0 if unknown."""
        return self.row.accuracy.value if self.row.accuracy else 0.0

    @cached_property
    def votes(self) -> Votes:
        """What the seeds predicted on each example."""
        answers = self.row.answers
        assert answers is not None
        correct = answers.values.mean(axis=0)
        most = _most_common(answers.predicted, np.where(correct > 0.5, -1, answers.labels))
        return Votes(answers.ids, answers.labels, correct, most)


@dataclass(frozen=True, slots=True)
class Votes:
    """Predictions of the seeds of a row, by example.

    Attributes:
        ids: Sorted ids, shape ``(n,)``.
        labels: Shape ``(n,)``.
        correct: Share of seeds that are correct, shape ``(n,)``.
        predicted: Class that most seeds predicted, shape ``(n,)``; unless most are correct, the most common wrong one.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    correct: NDArray[np.float64]
    predicted: NDArray[np.int64]


def page_rows(summary: Summary) -> list[PageRow]:
    """Return every row of a summary once; the same method on the same model has one style."""
    styles = sorted({_look(r.row) for b in summary.blocks for r in b.rows})
    found: dict[tuple[str, ...], PageRow] = {}
    for block in summary.blocks:
        for ranked in block.rows:
            if ranked.row.run_ids not in found:  # zero-shot is in every block of its data
                style = styles.index(_look(ranked.row))
                found[ranked.row.run_ids] = PageRow(len(found) + 1, block, ranked, style)
    return list(found.values())


def place(block: Block) -> str:
    """Return data, split, protocol, classes and setting: what the rows of one chart have in common."""
    parts = [block.dataset, block.split]
    if block.state:
        parts.insert(1, block.state)
    if block.protocol != "standard":
        parts.append(block.protocol)
    if block.classes != "all":
        parts.append(f"{block.classes} classes")
    if block.setting != "inductive":
        parts.append(block.setting)
    return ", ".join(parts)


def by_size(value: str) -> tuple[bool, int, str]:
    """Sort numbers by size, before words."""
    return not value.isdecimal(), int(value) if value.isdecimal() else 0, value


def filters(rows: Sequence[PageRow]) -> list[tuple[str, str, list[str]]]:
    """Return attribute, name and values of every filter."""
    names = (("data", "Data"), ("model", "Model"), ("method", "Method"), ("shots", "Shots"))
    return [
        (key, name, sorted({r.data[key] for r in rows if key in r.data}, key=by_size))
        for key, name in names
    ]


def _look(row: Row) -> tuple[str, str]:
    return row.label, row.model or ""


def _most_common(predicted: NDArray[np.int64], avoided: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class that most seeds predicted, of equally many that of the first seed, shape ``(n,)``.

    Args:
        predicted: Shape ``(S, n)``.
        avoided: A class of each example that counts only if no seed predicted another, shape ``(n,)``.
    """
    counts = sum((predicted == of_seed).astype(np.int64) for of_seed in predicted)  # (S, n)
    seed = np.where(predicted == avoided, 0, counts).argmax(axis=0)
    most: NDArray[np.int64] = predicted[seed, np.arange(predicted.shape[1])]
    return most
