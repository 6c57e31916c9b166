"""``clip/prograd``: initialization from the template, and the removal of opposing gradients."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clipadapt.core.api.errors import ConfigError
from clipadapt.methods.prograd import aligned
from tests.unit.methods.conftest import context, method

SHORT = {"epochs": 2, "batch_size": 4, "augment": "none", "lr": 0.1, "warmup_epochs": 0}


@pytest.mark.parametrize("CSC", [False, True])
def test_the_template_is_at_the_end_of_the_context(CSC, models, small, tmp_path):
    model, task = (
        models("clip"),
        dataclasses.replace(small[0], templates=("a photo of {}, alone.",)),
    )

    fitted = method("prograd", n_ctx=5, CSC=CSC, epochs=0).fit(model, task, context(tmp_path))

    words = model.embed_tokens(model.context_tokens("a photo of")).numpy()
    for vectors in fitted.context if CSC else [fitted.context]:
        assert not vectors[:2].any()
        np.testing.assert_array_equal(vectors[2:], words)


def test_a_template_that_begins_with_the_class_name_gives_zeros(models, small, tmp_path):
    task = dataclasses.replace(small[0], templates=("{} texture.",))

    fitted = method("prograd", n_ctx=3, epochs=0).fit(models("clip"), task, context(tmp_path))

    assert not fitted.context.any()


def test_contradictory_settings_are_refused(models, small, tmp_path):
    task = dataclasses.replace(small[0], templates=("a photo of a {}.",))
    with pytest.raises(ConfigError, match=r"has 4 tokens .* method\.n_ctx=3") as error:
        method("prograd", n_ctx=3).fit(models("clip"), task, context(tmp_path))
    assert "method.n_ctx to 4" in error.value.hint
    with pytest.raises(ConfigError, match="two initial values: method.ctx_init 'a photo'"):
        method("prograd", ctx_init="a photo").fit(models("clip"), task, context(tmp_path))


def test_an_opposing_part_is_removed():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(size=(3, 4))) for _ in range(2))
    if (a * b).sum() > 0:
        b = -b

    whole, half = aligned(a, b, 1.0), aligned(a, b, 0.5)

    assert float((whole * b).sum()) == pytest.approx(0, abs=1e-12)
    assert float((half * b).sum()) == pytest.approx(float((a * b).sum()) / 2)
    assert torch.equal(aligned(a, -b, 1.0), a)


def test_without_removal_it_is_coop(models, small, tmp_path):
    task = small[0]
    coop = method("coop", n_ctx=2, ctx_init="a photo", **SHORT)
    prograd = method(
        "prograd", n_ctx=2, ctx_init="a photo", template_init=False, LAMBDA=0.0, **SHORT
    )

    given = {"order": lambda _, n, size, __: [np.arange(i, min(i + size, n)) for i in range(0, n, size)]}  # fmt: skip
    ours, theirs = (
        m.fit(models("clip"), task, context(tmp_path / str(i), **given))
        for i, m in enumerate((prograd, coop))
    )

    np.testing.assert_allclose(ours.context, theirs.context, atol=1e-5)
    assert ours.n_trainable_params == theirs.n_trainable_params
