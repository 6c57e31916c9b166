"""Match the classes of a fitted classifier with those of an evaluation target."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.method import OpenVocabulary

if TYPE_CHECKING:
    from clipadapt.core.api.method import Classifier
    from clipadapt.core.data.targets import Target


def for_classes(
    classifier: Classifier, home: Target, target: Target
) -> tuple[Classifier, list[int] | None]:
    """Return the classifier for a target's classes, and the columns of its scores to take.

    Args:
        classifier: The fitted classifier.
        home: The target that the fit was trained on.
        target: The target to evaluate.

    Returns:
        The classifier, and None if its scores are in the order of the target's classes.

    Raises:
        DataError: If a classifier without an open vocabulary was not trained on one of the classes.
    """
    if target.classnames == home.classnames and target.templates == home.templates:
        return classifier, None
    if isinstance(classifier, OpenVocabulary):
        return classifier.with_classnames(target.classnames, target.templates), None
    return classifier, class_columns(home, target)


def class_columns(home: Target, target: Target) -> list[int]:
    """Return the position of each of the target's classes among the trained ones.

    Raises:
        DataError: If a class was not trained, or its name is ambiguous.
    """
    if target.classnames == home.classnames:
        return list(range(len(home.classnames)))
    index = {name: i for i, name in enumerate(home.classnames)}
    untrained = [name for name in target.classnames if name not in index]
    if untrained:
        raise DataError(
            f"{target.dataset.name} has classes that were not trained on {home.dataset.name}: "
            f"{', '.join(untrained[:5])}{' ...' if len(untrained) > 5 else ''}",
            hint="use a dataset with the same class names, or a method with an open vocabulary",
        )
    counts = Counter(home.classnames)
    twice = [name for name in target.classnames if counts[name] > 1]
    if twice:
        raise DataError(
            f"two classes of {home.dataset.name} are named '{twice[0]}', so a class of "
            f"{target.dataset.name} cannot be matched by name",
            hint="use a method with an open vocabulary, or give the classes different names with data.classnames",
        )
    return [index[name] for name in target.classnames]
