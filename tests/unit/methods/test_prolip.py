"""ProLIP: the order of views, the penalty, the search on val, other classes, and the export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.core.api.errors import ModelError
from clipadapt.methods import _search, prolip
from clipadapt.models import ProjectionTunable
from tests.unit.methods.conftest import Seen, context, method

SETTINGS = {"views": 0, "epochs": 4, "lr": 1e-2}
GRID = {"search": True, "lr_grid": [1e-2, 1e-3], "penalty_grid": [1, 0]}


def test_without_training_it_is_zero_shot(models, small, tmp_path):
    fitted = method("prolip", views=0, epochs=0).fit(models("clip"), small[0], context(tmp_path))

    scores, zero_shot = fitted.predict_scores(small[1]), fitted.zero_shot_scores(small[1])
    scale = fitted.model.logit_scale / fitted.logit_scale
    np.testing.assert_allclose(scale * scores, zero_shot, atol=1e-3)


def test_epochs_cycle_through_the_views(models, small, tmp_path):
    read: list[int] = []

    class Watched:
        def __getattr__(self, name):
            return getattr(models("clip"), name)

        def encode(self, inputs, tower, layer="output", view=0, crop=0.08):
            if tower == "image" and len(inputs) == len(small[0].train):
                read.append(view)
            return models("clip").encode(inputs, tower, layer, view, crop)

    task = Task(small[0].classnames, small[0].templates, small[0].train, None)

    method("prolip", **SETTINGS | {"views": 3}).fit(Watched(), task, context(tmp_path))

    assert read == [2, 3, 1]  # the fourth epoch uses a view that is kept


def test_views_that_do_not_fit_in_memory_are_read_again(models, small, tmp_path, monkeypatch):
    learner = method("prolip", **SETTINGS | {"views": 2})
    kept = learner.fit(models("clip"), small[0], context(tmp_path / "a"))
    monkeypatch.setattr(prolip, "LARGEST_VIEWS", 0)

    again = learner.fit(models("clip"), small[0], context(tmp_path / "b"))

    np.testing.assert_array_equal(again.projection, kept.projection)


@pytest.mark.parametrize(("rule", "expected"), [("1/n", 1 / 4), ("1/n^2", 1 / 16), (0.5, 0.5)])
def test_the_penalty_depends_on_the_shots(rule, expected, models, small, tmp_path):
    seen = Seen()
    learner = method("prolip", **SETTINGS, penalty=rule)

    learner.fit(models("clip"), small[0], context(tmp_path, observe=seen))

    assert seen.values["selected"] == [(1e-2, expected)]


def test_a_larger_penalty_keeps_the_projection_closer(models, small, tmp_path):
    start = models("clip").image_projection().weight

    def distance(penalty: float) -> float:
        learner = method("prolip", **SETTINGS, penalty=penalty)
        fitted = learner.fit(models("clip"), small[0], context(tmp_path / str(penalty)))
        return float(np.abs(fitted.projection - start).sum())

    assert 0 < distance(100.0) < distance(0.0)


def test_the_search_equals_fits_with_each_setting(models, small, tmp_path):
    seen = Seen()
    learner = method("prolip", **SETTINGS | GRID)
    ctx = context(tmp_path / "search", observe=seen)

    fitted = learner.fit(models("clip"), small[0], ctx)

    val, accuracy = small[0].val, {}
    for lr in GRID["lr_grid"]:
        for penalty in GRID["penalty_grid"]:
            one = method("prolip", **SETTINGS | {"lr": lr, "penalty": penalty})
            alone = one.fit(models("clip"), small[0], context(tmp_path / f"{lr}{penalty}"))
            predicted = alone.predict_scores(val.inputs).argmax(axis=1)
            accuracy[lr, penalty] = (predicted == val.labels).mean()
            if (lr, penalty) == seen.values["selected"][0]:
                np.testing.assert_array_equal(fitted.projection, alone.projection)
    assert list(seen.values["grid"][0].ravel()) == pytest.approx(list(accuracy.values()))
    assert seen.values["selected"][0] == max(accuracy, key=accuracy.__getitem__)
    assert fitted.selection["value"] == max(accuracy.values())
    logged = [line for line in ctx.history if "penalty" in line]
    assert [line["val_accuracy"] for line in logged] == list(seen.values["grid"][0].ravel())


def test_without_val_there_is_no_search(models, small, tmp_path):
    task = Task(small[0].classnames, small[0].templates, small[0].train, None)
    seen = Seen()

    fitted = method("prolip", **SETTINGS | GRID).fit(
        models("clip"), task, context(tmp_path, observe=seen)
    )

    assert seen.values["selected"] == [(1e-2, 1 / 4)]
    assert fitted.selection is None


def test_an_interrupted_search_repeats_no_complete_fit(models, small, tmp_path, monkeypatch):
    learner, train, steps = method("prolip", **SETTINGS | GRID), _search._training.train, []
    expected = learner.fit(models("clip"), small[0], context(tmp_path / "whole"))

    def counted(*args, **given):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(args[1].lr)
        return train(*args, **given)

    monkeypatch.setattr(_search._training, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(models("clip"), small[0], context(tmp_path / "killed"))
    monkeypatch.setattr(_search._training, "train", train)
    trained: list[float] = []
    monkeypatch.setattr(
        _search._training, "train", lambda *a, **k: trained.append(a[1].lr) or train(*a, **k)
    )

    got = learner.fit(models("clip"), small[0], context(tmp_path / "killed"))

    assert trained[:-1] == [1e-3, 1e-3]  # the other half of the grid, then the final fit
    np.testing.assert_array_equal(got.projection, expected.projection)
    assert got.selection == expected.selection


def test_a_setting_that_diverges_is_not_selected(models, small, tmp_path):
    seen = Seen()
    learner = method("prolip", **SETTINGS | GRID | {"lr_grid": [1e30, 1e-3]})

    fitted = learner.fit(models("clip"), small[0], context(tmp_path, observe=seen))

    assert seen.values["selected"][0][0] == 1e-3
    assert np.isfinite(fitted.predict_scores(small[1])).all()


def test_a_model_without_a_projection_is_refused(models, small, tmp_path):
    with pytest.raises(ModelError, match="do not come from a linear projection"):
        method("prolip", **SETTINGS).fit(models("siglip"), small[0], context(tmp_path))


def test_a_bias_is_kept_and_saved(models, small, tmp_path):
    class Biased:
        def __getattr__(self, name):
            return getattr(models("clip"), name)

        def image_projection(self):
            return replace(models("clip").image_projection(), bias=np.ones(24, np.float32))

    assert isinstance(models("clip"), ProjectionTunable)
    learner = method("prolip", **SETTINGS)
    fitted = learner.fit(Biased(), small[0], context(tmp_path))
    fitted.save(tmp_path / "saved")

    loaded = learner.load(tmp_path / "saved", models("clip"))

    np.testing.assert_array_equal(loaded.bias, np.ones(24))
    expected = fitted.predict_scores(small[1])
    np.testing.assert_array_equal(loaded.predict_scores(small[1]), expected)


@pytest.mark.parametrize("family", ["clip", "hf"])
def test_the_exported_formula_gives_the_scores(family, models, small, tmp_path):
    from safetensors.numpy import load_file

    fitted = method("prolip", **SETTINGS).fit(models(family), small[0], context(tmp_path))

    fitted.export("classifier", tmp_path / "out")

    names = {
        "np": np,
        "a": load_file(tmp_path / "out" / "classifier.safetensors"),
        "x": models(family).encode(small[1], "image", fitted.layer),
    }
    exec(prolip.FORMULA, names)
    np.testing.assert_allclose(names["scores"], fitted.predict_scores(small[1]), atol=1e-3)
