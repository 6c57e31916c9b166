"""Flags: facts about a run that every table shows beside its figures, such as ``leakage``.

Each flag is registered once, below, with its meaning and severity. Records, tables and the report page read the
registry :data:`FLAGS`; a run that carries an unregistered flag is a programming error. A plug-in registers a flag of
its own with :func:`register` when it is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One fact about a run.

    Attributes:
        name: Name in records, tables and the report page.
        meaning: One line for readers of a table.
        severity: ``error`` means the figures must not be used, ``warning`` that they need care, and ``note`` that
            they are sound but may not be comparable with others.
    """

    name: str
    meaning: str
    severity: Severity


FLAGS: Final[dict[str, Flag]] = {}


def register(name: str, meaning: str, severity: Severity = "warning") -> None:
    """Add a flag to :data:`FLAGS`.

    Raises:
        ValueError: If the meaning is empty, or the name is already registered with another meaning or severity.
    """
    flag = Flag(name, meaning, severity)
    if not meaning.strip():
        raise ValueError(f"the flag '{name}' has no meaning")
    if FLAGS.setdefault(name, flag) != flag:
        raise ValueError(f"the flag '{name}' is already registered: {FLAGS[name].meaning}")


def registered(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names in order.

    Raises:
        ValueError: If a name is not registered.
    """
    found = tuple(dict.fromkeys(names))
    unknown = [name for name in found if name not in FLAGS]
    if unknown:
        raise ValueError(
            f"unregistered flag {', '.join(unknown)}: add it to {__name__}, or call {__name__}.register in a plug-in"
        )
    return found


register("leakage", "examples of the evaluation split, or near copies of them, are in train or val")
register("evaluated_on_train", "evaluated on the examples it was trained on", "error")
register("evaluated_on_val", "evaluated on the split used for selection")
register("evaluated_on_test", "evaluated on test and on another split", "note")
register("class_overlap", "classes treated as new were seen in training")
register("refit_on_val", "trained on val too, after selecting on it", "note")
register("duplicates_train_val", "examples of val, or near copies of them, are in train")
register("duplicates_across_splits", "the same bytes or text occur in two splits")
register("duplicates_across_classes", "the same bytes or text occur with two labels")
register("duplicate_classnames", "two classes have the same name, or names with the same tokens")
register("unknown_tokens", "the tokenizer does not know many tokens of the class names")
register("collapse", "all examples are assigned to one class, or accuracy is at or below chance")
register("below_zero_shot", "less accurate than zero-shot")
register(
    "resumed_inexactly",
    "resumed on a GPU without model.deterministic: an undisturbed fit may differ in the last bits",
    "note",
)
register("nan", "the scores are not finite", "error")
register("temperature_at_bound", "no temperature fits val; the probabilities are not calibrated")
register(
    "user_error",
    "failed because of a setting, file or model that the user can change; every resume tries it again",
    "error",
)
register("allow_fewer", "a class has fewer examples than shots")
register("many_left_out", "more than one in twenty images or rows could not be read")
register("empty_class", "a class has no readable example")
register(
    "class_missing_in_train",
    "a class has no training example; trained scores and probabilities are unreliable",
)
register("class_missing_in_val", "a class has no example for selection")
register("class_missing_in_test", "a class has no example to evaluate")
register("texts_cut", "many texts are truncated to the maximum length")
register("not_the_official_split", "not evaluated on the split of the published numbers", "note")
register("not_the_official_data", "not the data of the published numbers", "note")
register("other_classes", "not the classes of the published numbers, or not all of them", "note")
register(
    "split_by_hash", "the data have no splits; a hash of each example assigns it to one", "note"
)
register("test_is_published_val", "test is the published validation split", "note")
