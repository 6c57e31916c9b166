"""Which columns of a closed classifier belong to the classes of another target."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from clipadapt.core.api.errors import DataError
from clipadapt.core.runs.classes import class_columns


def target(name, *classnames):
    return SimpleNamespace(dataset=SimpleNamespace(name=name), classnames=classnames)


HOME = target("home", "cat", "missile", "dog", "missile")


def test_columns_are_found_by_name():
    assert class_columns(HOME, target("other", "dog", "cat")) == [2, 0]


def test_equal_classes_are_taken_in_order_even_with_a_repeated_name():
    assert class_columns(HOME, target("other", *HOME.classnames)) == [0, 1, 2, 3]


def test_a_repeated_name_cannot_be_matched():
    with pytest.raises(
        DataError, match="two classes of home are named 'missile', so a class of other"
    ):
        class_columns(HOME, target("other", "dog", "missile"))


def test_a_class_that_was_not_trained_is_named():
    with pytest.raises(DataError, match="other has classes that were not trained on home: horse"):
        class_columns(HOME, target("other", "dog", "horse"))
