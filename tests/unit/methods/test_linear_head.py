"""The linear head: its formula, saving, and export."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.errors import RecordError
from clipadapt.methods import _linear_head
from clipadapt.methods._linear_head import LinearHead
from clipadapt.methods._text import cosine_scores, zero_shot_weights


@pytest.fixture
def head(models, small):
    model, names = models("clip"), small[0].classnames
    start = zero_shot_weights(model, names, small[0].templates)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=start.shape).astype(np.float32)
    bias = rng.normal(size=len(names)).astype(np.float32)
    selection = {"epoch": 3, "by": "val accuracy", "value": 0.5}
    return LinearHead(model, names, weights, bias, start, 7.0, 5, selection, "projected")


def test_scores_follow_the_formula(head, small):
    x = head.model.encode(small[1], "image", "projected")

    scores = head.predict_scores(small[1])

    np.testing.assert_allclose(scores, 7 * x @ head.weights.T + head.bias, rtol=1e-5, atol=1e-4)
    assert scores.dtype == np.float32
    zero_shot = cosine_scores(head.model, small[1], head.start)
    np.testing.assert_array_equal(head.zero_shot_scores(small[1]), zero_shot)


def test_a_loaded_head_is_equal(head, small, tmp_path):
    head.save(tmp_path)

    loaded = _linear_head.load(tmp_path, head.model)

    np.testing.assert_array_equal(loaded.predict_scores(small[1]), head.predict_scores(small[1]))
    np.testing.assert_array_equal(loaded.start, head.start)
    assert (loaded.n_trainable_params, loaded.layer) == (5, "projected")
    assert loaded.selection == head.selection


def test_a_head_of_other_classes_is_refused(head, tmp_path):
    from dataclasses import replace

    replace(head, classnames=("one", "two")).save(tmp_path)

    with pytest.raises(RecordError, match="does not fit"):
        _linear_head.load(tmp_path, head.model)


def test_the_exported_arrays_give_the_scores(head, small, tmp_path):
    from safetensors.numpy import load_file

    head.export("classifier", tmp_path / "out", temperature=2.0)

    a = load_file(tmp_path / "out" / "classifier.safetensors")
    x = head.model.encode(small[1], "image", "projected")
    scores = a["logit_scale"] * x @ a["weight"].T + a["logit_bias"]
    np.testing.assert_allclose(scores, head.predict_scores(small[1]), rtol=1e-5, atol=1e-4)
