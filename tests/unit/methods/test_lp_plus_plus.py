"""LP++: initial values and step sizes against loops, and the accumulated gradient of alpha."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.core.api.errors import ConfigError
from clipadapt.methods.lp_plus_plus import Start
from tests.unit.methods.conftest import Seen, context, method

C, D = 4, 6


def unit(rng, n):
    x = rng.normal(size=(n, D)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3] * 5, [0, 0, 2], [1]])
def test_start_equals_loops_over_classes(labels):
    """More examples than features, fewer, and classes without examples."""
    rng = np.random.default_rng(0)
    y = np.array(labels)
    x, text = unit(rng, len(y)), unit(rng, C)

    start = Start.of(x, y, text, 250.0)

    similarity = []
    for c in range(C):
        own = x[y == c]
        np.testing.assert_allclose(start.weight[c], own.sum(axis=0), atol=1e-6)
        if len(own):
            similarity.append((own @ text[c]).mean())
    np.testing.assert_allclose(start.alpha, [250 * np.mean(similarity)] * C, rtol=1e-5)
    norm = np.linalg.norm(x.astype(np.float64), 2)
    assert start.lr_weight == pytest.approx(4 * len(y) / norm**2, rel=1e-5)
    most = max(((x @ t) ** 2).sum() for t in text)
    assert start.lr_alpha == pytest.approx(len(y) / (4 * most), rel=1e-5)


def test_alpha_moves_along_the_sum_of_its_gradients(models, small, tmp_path):
    task = Task(small[0].classnames, small[0].templates, small[0].train, None)

    def alphas(epochs: int) -> np.ndarray:
        seen = Seen()
        learner = method("lp_plus_plus", views=0, alpha_every=2, epochs=epochs)
        learner.fit(models("clip"), task, context(tmp_path / str(epochs), observe=seen))
        return seen.values["final"][0][2].numpy()

    np.testing.assert_array_equal(alphas(1), alphas(0))
    assert np.abs(alphas(2) - alphas(1)).max() > 0
    np.testing.assert_array_equal(alphas(3), alphas(2))


def test_views_are_pooled(models, small, tmp_path):
    seen = Seen()
    learner = method("lp_plus_plus", views=3, epochs=1)

    learner.fit(models("clip"), small[0], context(tmp_path, observe=seen))

    crops = [
        models("clip").encode(small[0].train.inputs, "image", "output", v, 0.5) for v in (1, 2, 3)
    ]
    rows = small[0].train.labels == 0
    total = sum(x[rows].sum(axis=0) for x in crops)
    np.testing.assert_allclose(seen.values["start"][0].weight[0], total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("views", "steps"), [(0, 6), (1, 6), (3, 18)])
def test_the_warm_up_is_compared_with_the_steps_of_all_crops(views, steps, models, small, tmp_path):
    """12 images, batches of 4, 2 epochs."""
    seen, more = Seen(), {"views": views, "epochs": 2, "batch_size": 4}

    learner = method("lp_plus_plus", **more, warmup_steps=steps)
    learner.fit(models("clip"), small[0], context(tmp_path, observe=seen))

    assert len(seen.values["loss"]) == steps
    with pytest.raises(ConfigError, match=f"more than the {steps} training steps"):
        method("lp_plus_plus", **more, warmup_steps=steps + 1).config.check(small[0])
