"""``clip/coop``: initialization of the context, other classes, chunks, inspection, export."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open

from clipadapt.core.api.data import Task
from clipadapt.core.api.errors import ConfigError, DataError, ModelError, UnknownNameError
from tests.unit.methods.conftest import FAMILIES, context, method

SHORT = {"epochs": 2, "batch_size": 4, "augment": "none", "lr": 0.1, "warmup_epochs": 0}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("words", "n"), [("a photo of a", 4), ("a_photo_of", 3), ("the", 1)])
def test_ctx_init_sets_the_number_of_vectors(family, words, n, models, small, tmp_path):
    model = models(family)

    fitted = method("coop", n_ctx=9, ctx_init=words, epochs=0).fit(
        model, small[0], context(tmp_path)
    )

    tokens = model.context_tokens(words.replace("_", " "))
    assert len(tokens) == n
    np.testing.assert_array_equal(fitted.context, model.embed_tokens(tokens).numpy())
    assert fitted.n_trainable_params == fitted.context.size == n * fitted.context.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_ctx_init_equals_the_hand_written_prompt(family, models, small, tmp_path):
    task, inputs = small
    written = Task(task.classnames, ("a photo of a {}.",), task.train)

    fitted = method("coop", ctx_init="a photo of a", epochs=0).fit(
        models(family), written, context(tmp_path)
    )

    np.testing.assert_allclose(fitted.weights, fitted.start, atol=1e-6)
    np.testing.assert_allclose(
        fitted.predict_scores(inputs), fitted.zero_shot_scores(inputs), atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_returns_the_words_of_ctx_init(family, models, small, tmp_path):
    fitted = method("coop", ctx_init="a photo of a", epochs=0).fit(
        models(family), small[0], context(tmp_path)
    )

    vectors = fitted.inspect()["context"]

    assert [v["vector"] for v in vectors] == [1, 2, 3, 4]
    assert [v["nearest"][0]["word"] for v in vectors] == ["a", "photo", "of", "a"]
    for vector in vectors:
        distances = [near["distance"] for near in vector["nearest"]]
        assert distances[0] == 0.0
        assert distances == sorted(distances)
        assert len(distances) == 5
        assert distances[1] > 0
    json.dumps(vectors, allow_nan=False)


def test_inspect_of_class_specific_context_is_per_class(models, small, tmp_path):
    fitted = method("coop", CSC=True, n_ctx=2, **SHORT).fit(
        models("clip"), small[0], context(tmp_path)
    )

    found = fitted.inspect()["context"]

    assert [f["class"] for f in found] == list(small[0].classnames)
    assert [len(f["vectors"]) for f in found] == [2, 2, 2]
    # The distance to a token equals that to the embedding table, computed in another way.
    near = found[1]["vectors"][0]["nearest"][0]
    table = models("clip")._towers.token_embedding.weight.detach().numpy()
    distances = np.sqrt(((fitted.context[1, 0] - table) ** 2).sum(axis=1))
    assert near["distance"] == pytest.approx(distances.min(), abs=1e-3)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("CSC", [False, True])
def test_shape_and_distribution_of_a_random_context(position, CSC, models, small, tmp_path):
    settings = {"n_ctx": 16, "CSC": CSC, "class_token_position": position, "epochs": 0}

    fitted = method("coop", **settings).fit(models("clip"), small[0], context(tmp_path))
    other = method("coop", **settings).fit(models("clip"), small[0], context(tmp_path, seed=2))

    assert fitted.context.shape == ((3, 16, 32) if CSC else (16, 32))
    assert fitted.context.std() == pytest.approx(0.02, rel=0.1)
    assert abs(fitted.context.mean()) < 0.003
    assert not np.array_equal(fitted.context, other.context)


def test_ctx_init_with_class_specific_context_is_an_error(models, small, tmp_path):
    with pytest.raises(ConfigError, match="'a photo of a' initializes a shared context, but CSC is on"):  # fmt: skip
        method("coop", CSC=True, ctx_init="a photo of a").fit(
            models("clip"), small[0], context(tmp_path)
        )


@pytest.mark.parametrize("words", ["", "  ", "_"])
def test_ctx_init_without_words_is_an_error(words, models, small, tmp_path):
    with pytest.raises(ConfigError, match="ctx_init"):
        method("coop", ctx_init=words).fit(models("clip"), small[0], context(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["words", "vectors"])
def test_context_longer_than_the_context_length_is_an_error(family, kind, models, small, tmp_path):
    limit = models(family).context_length
    given, message, hint = {
        "words": ({"ctx_init": "a photo " * limit}, f"leave no room .* reads {limit}", "ctx_init"),
        "vectors": ({"n_ctx": limit - 2}, f"'red circle' are .* longer than the {limit} that", "n_ctx"),
    }[kind]  # fmt: skip

    with pytest.raises(ModelError, match=message) as error:
        method("coop", **given).fit(models(family), small[0], context(tmp_path))

    assert f"method.{hint}" in error.value.hint
    assert "X X" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_longest_possible_context(family, models):
    model, names = models(family), ("red dog", "a cat")
    # Two words of a name, and the tokens around a text: start, full stop, end.
    most = model.context_length - 2 - {"siglip": 1}.get(family, 3)

    tokens, slots = model.prompt_slots(names, most)

    assert slots.shape == (2, most)
    assert tokens.shape == (2, model.context_length)
    with pytest.raises(ModelError, match=f"{most + 1} context vectors and the class name 'red dog'"):  # fmt: skip
        model.prompt_slots(names, most + 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_shared_context_transfers_to_other_classes(family, position, models, small, tmp_path):
    task, inputs = small
    settings = {"n_ctx": 3, "class_token_position": position, **SHORT}
    fitted = method("coop", **settings).fit(models(family), task, context(tmp_path))
    names = (task.classnames[2], "horse", task.classnames[0])

    other = fitted.with_classnames(names, ("a photo of the {}.",))
    same = other.with_classnames(task.classnames, task.templates)

    scores, before = other.predict_scores(inputs), fitted.predict_scores(inputs)
    np.testing.assert_allclose(scores[:, [0, 2]], before[:, [2, 0]], atol=1e-4)
    np.testing.assert_array_equal(other.context, fitted.context)
    np.testing.assert_allclose(same.weights, fitted.weights, atol=1e-6)
    np.testing.assert_allclose(same.start, fitted.start, atol=1e-6)


def test_class_specific_context_is_permuted_with_the_classes(models, small, tmp_path):
    task, inputs = small
    fitted = method("coop", CSC=True, n_ctx=2, **SHORT).fit(
        models("custom"), task, context(tmp_path)
    )
    order = [2, 0]

    other = fitted.with_classnames(tuple(task.classnames[i] for i in order), task.templates)

    np.testing.assert_array_equal(other.context, fitted.context[order])
    np.testing.assert_allclose(
        other.predict_scores(inputs), fitted.predict_scores(inputs)[:, order], atol=1e-4
    )
    with pytest.raises(DataError, match="not trained for horse"):
        fitted.with_classnames((*task.classnames, "horse"), task.templates)


@pytest.mark.parametrize("CSC", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_class_chunks_give_the_same_result(family, CSC, models, small, tmp_path):
    def fit(chunk):
        learner = method("coop", class_chunk=chunk, n_ctx=2, CSC=CSC, **SHORT)
        return learner.fit(models(family), small[0], context(tmp_path / f"{chunk}"))

    whole = fit(None)

    for chunk in (1, 2, 7) if family == "clip" else (2,):
        part = fit(chunk)
        np.testing.assert_allclose(part.context, whole.context, atol=1e-4)
        np.testing.assert_allclose(part.weights, whole.weights, atol=1e-4)


def test_training_reduces_the_loss_and_changes_every_vector(models, small, tmp_path):
    ctx = context(tmp_path)
    learner = method("coop", **SHORT | {"epochs": 15, "n_ctx": 2, "lr": 1.0})
    start = method("coop", epochs=0, n_ctx=2).fit(models("clip"), small[0], context(tmp_path))

    fitted = learner.fit(models("clip"), small[0], ctx)

    assert ctx.history[-1]["train_loss"] < ctx.history[0]["train_loss"]
    assert (np.abs(fitted.context - start.context).max(axis=1) > 0.01).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_classifier_recomputed_by_hand(family, models, small, tmp_path):
    model, (task, inputs) = models(family), small
    fitted = method("coop", n_ctx=2, **SHORT).fit(model, task, context(tmp_path))

    fitted.export("classifier", tmp_path / "out")

    with safe_open(tmp_path / "out" / "classifier.safetensors", framework="np") as stored:
        facts = stored.metadata()
        weight, scale, bias = (
            stored.get_tensor(n) for n in ("weight", "logit_scale", "logit_bias")
        )
    assert facts["base_weights_sha256"] == model.weights_sha256
    assert facts["base_model"] == model.name
    assert json.loads(facts["classnames"]) == list(task.classnames)
    assert facts["features"] == "output"
    assert bias == (-10 if family == "siglip" else 0)
    logits = scale * model.encode(inputs, "image") @ weight.T + bias
    np.testing.assert_allclose(logits, fitted.predict_scores(inputs), atol=1e-5)
    with pytest.raises(UnknownNameError, match="unknown export format 'peft'"):
        fitted.export("peft", tmp_path / "other")


def test_training_without_augmentation_only_reads_the_cache(tiny_clip, small, tmp_path, monkeypatch):  # fmt: skip
    from clipadapt.core.features.cache import FeatureCache
    from clipadapt.models._encode import Towers
    from tests.unit.methods.conftest import load

    model, calls = load(tiny_clip, cache=FeatureCache(tmp_path / "cache")), []
    encode = Towers.encode_image
    monkeypatch.setattr(
        Towers,
        "encode_image",
        lambda self, pixels, layer, *, fast: (
            calls.append(len(pixels)) or encode(self, pixels, layer, fast=fast)
        ),
    )
    task = small[0]

    method("coop", n_ctx=2, **SHORT).fit(model, task, context(tmp_path / "a"))
    once = model.services.meter.computed
    encoded = len(calls)
    method("coop", n_ctx=2, **SHORT | {"epochs": 5}).fit(model, task, context(tmp_path / "b"))

    # Train and val once each, in one padded batch, and the prompts.
    assert encoded == 2
    assert once == 12 + 12 + 3
    assert len(calls) == 2
    assert model.services.meter.computed == once
    method("coop", n_ctx=2, **SHORT | {"augment": "crop_flip"}).fit(
        model, task, context(tmp_path / "c")
    )
    assert len(calls) == 2 + 6  # new views at each step
