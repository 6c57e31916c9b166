"""CLAP: multipliers of classes without examples, the size of an epoch, and the effect of the constraint."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from tests.unit.methods.conftest import Seen, context, method

SETTINGS = {"views": 2, "epochs": 3, "batch_size": 5}


def without_a_class(task):
    rows = np.flatnonzero(task.train.labels != 1)
    return Task(task.classnames, task.templates, task.train.take(rows), None)


@pytest.mark.parametrize("constraint", ["l2", "l2_corrected", "l2_constant", "l2_balanced"])
def test_a_class_without_examples_has_the_mean_multiplier(constraint, models, small, tmp_path):
    seen = Seen()
    learner = method("clap", **SETTINGS, constraint=constraint)

    fitted = learner.fit(models("clip"), without_a_class(small[0]), context(tmp_path, observe=seen))

    alpha = seen.values["alpha"][0].numpy()
    assert alpha[1] == pytest.approx(alpha[[0, 2]].mean(), rel=1e-5)
    if constraint == "l2_corrected":
        assert alpha.mean() == pytest.approx(1)
    assert np.isfinite(fitted.predict_scores(small[1])).all()


@pytest.mark.parametrize(("drop_last", "steps"), [(True, 2), (False, 3)])
def test_an_epoch_has_as_many_images_as_train(drop_last, steps, models, small, tmp_path):
    seen = Seen()
    learner = method("clap", **SETTINGS, drop_last=drop_last)

    learner.fit(models("clip"), small[0], context(tmp_path, observe=seen))

    assert len(small[0].train) == 12
    assert len(seen.values["lr"]) == steps * SETTINGS["epochs"]


def test_the_constraint_keeps_the_prototypes_near_the_text(models, small, tmp_path):
    def distance(constraint: str) -> float:
        learner = method("clap", **SETTINGS, constraint=constraint)
        fitted = learner.fit(models("clip"), small[0], context(tmp_path / constraint))
        return float(np.abs(fitted.weights - fitted.start).sum())

    assert distance("l2_balanced") < distance("none")


def test_one_class_one_image(models, small, tmp_path):
    task = small[0]
    split = task.train.take(np.array([0]))
    names = task.classnames[:1]
    one = Task(names, task.templates, type(split)(split.inputs, split.labels, names), None)

    fitted = method("clap", **SETTINGS).fit(models("clip"), one, context(tmp_path))

    assert fitted.predict_scores(small[1]).shape == (len(small[1]), 1)
