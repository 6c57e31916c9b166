"""``clip/zero``: votes, ties, settings without a vote."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.core.api.errors import ConfigError
from clipadapt.methods import _test_views
from clipadapt.methods.zero import vote
from tests.unit.methods.conftest import context, method


def views(*rows: tuple[int, float]) -> np.ndarray:
    """Logits of three classes: the chosen class of each view and how far it is above the others."""
    out = np.zeros((1, len(rows), 3), dtype=np.float32)
    for i, (chosen, margin) in enumerate(rows):
        out[0, i, chosen] = margin
    return out


def test_the_next_most_confident_view_breaks_a_tie():
    got = vote(views((2, 9), (1, 8), (0, 7), (1, 6), (2, 5)), kept=2)

    np.testing.assert_array_equal(got.confident, [[0, 1]])
    np.testing.assert_array_equal(got.counts, [[0, 2, 1]])  # the view of class 0 is not asked
    assert got.tie.all()


def test_a_tie_that_no_view_breaks_goes_to_the_first_class():
    got = vote(views((2, 9), (1, 8), (0, 7)), kept=2)

    np.testing.assert_array_equal(got.counts, [[0, 1, 1]])
    assert got.counts.argmax() == 1
    assert got.tie.all()


def test_a_majority_needs_no_other_view():
    got = vote(views((2, 9), (1, 8), (2, 7), (1, 6)), kept=3)

    np.testing.assert_array_equal(got.counts, [[0, 1, 2]])
    assert not got.tie.any()


def test_one_class_and_extreme_logits():
    one = vote(np.ones((2, 4, 1), dtype=np.float32), kept=3)

    np.testing.assert_array_equal(one.counts, [[3], [3]])
    extreme = _test_views.entropy(
        _test_views.log_softmax(np.array([[1e4, 0.0], [0.0, 0.0]], dtype=np.float32))
    )
    np.testing.assert_allclose(extreme, [0, np.log(2)], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("zero", {"views": 3, "gamma": 0.3}, "gamma=0.3"),
        ("tpt", {"views": 9}, "selection_p=0.1"),
    ],
)
def test_no_confident_view_is_an_error(name, settings, key, models, small, tmp_path):
    views = settings["views"]
    with pytest.raises(ConfigError, match=rf"method\.{key} of method\.views={views} views") as error:  # fmt: skip
        method(name, **settings).fit(models("clip"), small[0], context(tmp_path))
    assert "increase method.views" in error.value.hint


def test_one_view_is_zero_shot(models, small, tmp_path):
    task, inputs = small
    fitted = method("zero", views=1, gamma=1.0).fit(models("clip"), task, context(tmp_path))

    scores = fitted.predict_scores(inputs)

    np.testing.assert_array_equal(scores.sum(axis=1), 1)
    expected = fitted.zero_shot_scores(inputs).argmax(axis=1)
    np.testing.assert_array_equal(scores.argmax(axis=1), expected)


def test_blocks_of_images_give_the_same_votes(models, small, tmp_path, monkeypatch):
    task, inputs = small
    learner = method("zero", views=4, gamma=0.5)
    fitted = learner.fit(models("clip"), Task(task.classnames, task.templates), context(tmp_path))
    whole = fitted.predict_scores(inputs)

    monkeypatch.setattr(_test_views, "NUMBERS_AT_ONCE", 1)

    np.testing.assert_array_equal(fitted.predict_scores(inputs), whole)
