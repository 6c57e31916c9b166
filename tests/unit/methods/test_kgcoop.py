"""``clip/kgcoop``: the distance to the hand-written prompts, and what follows from its weight."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clipadapt.core.api.data import Split
from clipadapt.core.api.errors import ConfigError
from clipadapt.methods._text import zero_shot_weights
from tests.unit.methods.conftest import Seen, context, method

SHORT = {"epochs": 2, "batch_size": 4, "augment": "none", "lr": 0.1, "warmup_epochs": 0}
ORDER = {"order": lambda _, n, size, __: [np.arange(i, min(i + size, n)) for i in range(0, n, size)]}  # fmt: skip


def test_without_the_distance_it_is_coop(models, small, tmp_path):
    coop = method("coop", ctx_init="a photo of a", **SHORT)
    kgcoop = method("kgcoop", W=0.0, **SHORT)

    ours, theirs = (
        m.fit(models("clip"), small[0], context(tmp_path / str(i), **ORDER))
        for i, m in enumerate((kgcoop, coop))
    )

    np.testing.assert_allclose(ours.context, theirs.context, atol=1e-6)
    assert ours.n_trainable_params == theirs.n_trainable_params == ours.context.size


def test_a_larger_weight_holds_the_prompts_nearer_to_the_hand_written_ones(models, small, tmp_path):
    task = dataclasses.replace(small[0], templates=("a photo of a {}.",))
    written = zero_shot_weights(models("clip"), task.classnames, task.templates)
    cosine = {}
    for W in (0.0, 100.0):
        fitted = method("kgcoop", W=W, **SHORT | {"lr": 0.02, "epochs": 6}).fit(
            models("clip"), task, context(tmp_path / str(W), **ORDER)
        )
        cosine[W] = float((fitted.weights * written).sum(axis=1).mean())

    assert cosine[0.0] < cosine[100.0] <= 1 + 1e-6


def test_the_distance_starts_at_zero_with_the_words_of_the_template(models, small, tmp_path):
    task = dataclasses.replace(small[0], templates=("a photo of a {}.",))
    seen = Seen()

    method("kgcoop", **SHORT).fit(models("clip"), task, context(tmp_path, observe=seen))

    assert float(seen.values["distance"][0]) == pytest.approx(0, abs=1e-5)
    assert float(seen.values["distance"][1]) > 1e-6


def test_one_class_a_class_without_examples_and_no_val(models, small, tmp_path):
    task, inputs = small
    for classes, names in (([0], task.classnames[:1]), ([0, 2], task.classnames)):
        rows = np.flatnonzero(np.isin(task.train.labels, classes))
        train = Split(task.train.inputs.take(rows), task.train.labels[rows], names)
        fitted = method("kgcoop", **SHORT).fit(
            models("clip"),
            dataclasses.replace(task, classnames=names, train=train, val=None),
            context(tmp_path / str(len(names))),
        )
        scores = fitted.predict_scores(inputs)
        assert scores.shape == (len(inputs), len(names))
        assert np.isfinite(scores).all()
        assert fitted.selection is None


def test_words_and_class_specific_context_are_contradictory(models, small, tmp_path):
    with pytest.raises(ConfigError, match="initializes a shared context, but CSC is on"):
        method("kgcoop", CSC=True, **SHORT).fit(models("clip"), small[0], context(tmp_path))
