"""Where the columns of a closed classifier come from when it is judged on other classes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from clipadapt.core.api.errors import DataError
from clipadapt.core.runs.plan import _columns


def target(name, *classnames):
    return SimpleNamespace(dataset=SimpleNamespace(name=name), classnames=classnames)


HOME = target("home", "cat", "missile", "dog", "missile")


def test_columns_are_found_by_name():
    assert _columns(HOME, target("away", "dog", "cat")) == [2, 0]


def test_equal_classes_are_taken_in_order_even_where_a_name_stands_twice():
    assert _columns(HOME, target("away", *HOME.classnames)) == [0, 1, 2, 3]


def test_a_name_that_stands_twice_cannot_be_matched():
    with pytest.raises(DataError, match="'missile' stands twice in home, so a class of away"):
        _columns(HOME, target("away", "dog", "missile"))


def test_a_class_that_was_not_learnt_is_named():
    with pytest.raises(DataError, match="away has classes that were not learnt on home: horse"):
        _columns(HOME, target("away", "dog", "horse"))
