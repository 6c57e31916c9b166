"""Prediction sets of examples, as ``run.predict_sets`` returns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clipadapt.core.python import show
from clipadapt.core.report.formats import format_set

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.runs.sets import SetRule

SHOWN: Final = 5
"""Sets in the table of a notebook."""


@dataclass(frozen=True, slots=True, eq=False)
class PredictedSets:
    """The prediction sets of ``n`` examples.

    Attributes:
        sets: Class names of each example, the most probable first; empty without a coverage.
        none_of_these: Whether each example is rejected as none of the classes, shape ``(n,)``; None without a reject
            rate.
        rule: How they were made: ``threshold``, ``least_confidence``, ``n`` calibration examples, ``caveats``, and what
            it does on the evaluated examples of the run (``measured``).
    """

    sets: tuple[tuple[str, ...], ...]
    none_of_these: NDArray[np.bool_] | None
    rule: SetRule

    def __repr__(self) -> str:
        return f"<prediction sets: {'; '.join(self._facts())}>"

    def _facts(self) -> list[str]:
        sizes = [len(s) for s in self.sets]
        found = (
            [f"{len(sizes)} with {sum(sizes) / len(sizes):.2f} classes on average"] if sizes else []
        )
        if self.none_of_these is not None:
            found.append(f"{self.none_of_these.sum()} of {len(self.none_of_these)} none of these")
        return [*found, *self.rule.sentences()]

    def _repr_html_(self) -> str:
        facts = {"prediction sets": "; ".join(self._facts())}
        for i, classes in enumerate(self.sets[:SHOWN]):
            rejected = self.none_of_these is not None and self.none_of_these[i]
            facts[str(i)] = format_set(classes) + (" none of these" if rejected else "")
        return show.html_facts(facts)
