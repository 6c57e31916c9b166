"""What adaptation gains over zero-shot, in one sentence per block of the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.report.comparisons import SIGNIFICANT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clipadapt.core.report.comparisons import RankedRow
    from clipadapt.core.report.summary import Block, Summary
    from clipadapt.core.scoring.statistics import Interval


def gains(summary: Summary, zero_shot: str) -> tuple[str, ...]:
    """Return a sentence for each block that has zero-shot and at least one method fitted to examples.

    It names the method with the highest accuracy and how many methods it was chosen from. Only a difference that is
    significant after Holm over the pairs of the block is called a gain or a loss.

    Args:
        summary: The summary.
        zero_shot: Name of the method that classifies by the class names alone.
    """
    return tuple(sentence for block in summary.blocks for sentence in _sentences(block, zero_shot))


def _sentences(block: Block, name: str) -> Iterable[str]:
    ranked = [r for r in block.rows if r.row.accuracy]
    trained = [r for r in ranked if r.row.first.method.uses_train]
    for zero_shot in (r for r in ranked if r.row.first.method.name == name):
        rivals = [r for r in trained if r.row.model == zero_shot.row.model]
        if rivals:
            yield _sentence(block, zero_shot, rivals[0], len(rivals))


def _sentence(block: Block, zero_shot: RankedRow, best: RankedRow, n_methods: int) -> str:
    before, after = zero_shot.row.accuracy, best.row.accuracy
    assert before is not None
    assert after is not None
    pair = {zero_shot.label, best.label}
    test = next((c for c in block.comparisons if {c.first, c.second} == pair), None)
    significant = test is not None and test.p_adjusted < SIGNIFICANT
    verb = "raised accuracy" if after.value > before.value else "lowered accuracy"
    sentence = (
        f"{_place(block)}: {_examples(block.shots)} {verb if significant else 'took accuracy'} from "
        f"{100 * before.value:.0f} % to {_percent(after)} with {_method(best, n_methods)}"
    )
    if significant:
        return f"{sentence}."
    why = "not compared" if test is None else f"p = {test.p_adjusted:.2f} after Holm"
    return f"{sentence}; the difference is not significant ({why})."


def _method(best: RankedRow, n_methods: int) -> str:
    method = best.row.first.method
    name = method.recipe or method.name
    return f"{name}, the best of {n_methods} methods" if n_methods > 1 else name


def _place(block: Block) -> str:
    parts = [block.dataset]
    if block.classes != "all":
        parts.append(f"{block.classes} classes")
    if block.setting != "inductive":
        parts.append(block.setting)
    return ", ".join(parts)


def _examples(shots: int | None) -> str:
    if shots is None:
        return "all training examples"
    return f"{shots} example{'' if shots == 1 else 's'} per class"


def _percent(interval: Interval) -> str:
    value = f"{100 * interval.value:.0f} %"
    if interval.low is None or interval.high is None:
        return value
    return f"{value} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"
