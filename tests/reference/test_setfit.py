"""``text/setfit`` against sentence-transformers: the loss and its gradient, and the features of the trained encoder."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
import torch

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from textsent.methods import _contrastive
from textsent.methods.setfit import SetFit, SetFitConfig, draw_partners

WORDS = {0: ("dull", "empty", "bad"), 1: ("warm", "fine", "good")}
ROWS = [(f"a {word} {noun}", y) for y in WORDS for word in WORDS[y] for noun in ("film", "story")]
TEXTS = [text for text, _ in ROWS]
LABELS = np.array([y for _, y in ROWS], dtype=np.int64)
NAMES = ("negative", "positive")


def loaded(folder: str):
    found = MODELS.resolve(folder, "text")
    services = Services(FeatureCache(enabled=False), workers=1)
    return found.provider.load(found.argument, ModelOptions("fp32", "cpu"), services)


def context(folder) -> RunContext:
    return RunContext(3, folder, Services(FeatureCache(enabled=False)))


def task() -> Task[str]:
    inputs = Inputs(TEXTS, tuple(map(str, range(len(TEXTS)))))
    return Task(NAMES, (), Split(inputs, LABELS, NAMES), None)


def pairs_of(partners):
    """Return the pairs ``(m, 2)`` in their order, and 1 for pairs of one class, else 0."""
    draws, n, _ = partners.shape
    first = np.broadcast_to(np.arange(n)[None, :, None], partners.shape)
    return np.stack([first, partners], axis=-1).reshape(-1, 2), np.tile([1, 0], draws * n)


def oracle(folder: str, pooling: str):
    """Return sentence-transformers' model of the same folder, and its loss."""
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers.sentence_transformer import losses
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        body = Transformer(folder)
        width = body.get_embedding_dimension()
        model = library.SentenceTransformer(modules=[body, Pooling(width, pooling)], device="cpu")
    return model.eval(), losses.CosineSimilarityLoss(model)


@pytest.mark.parametrize("family", ["distilbert", "bert", "roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_loss_and_its_gradient_are_those_of_sentence_transformers(
    tiny_texts, tmp_path, family, pooling
):
    model, loss_of = oracle(tiny_texts[family], pooling)
    encoder = loaded(tiny_texts[family])
    pairs, same = pairs_of(draw_partners(LABELS, 1, context(tmp_path)))
    rows = list(
        _contrastive.PairRows(encoder.tokenize(TEXTS), draw_partners(LABELS, 1, context(tmp_path)))
    )
    assert [row["labels"] for row in rows] == same.tolist()
    for parameter in encoder.module.parameters():
        parameter.requires_grad = True

    ours = _contrastive.PairModel(encoder.module, pooling)
    loss = ours(**_contrastive.PairCollator(encoder.tokenizer)(rows))["loss"]
    loss.backward()

    columns = [model.preprocess([TEXTS[i] for i in pairs[:, k]]) for k in (0, 1)]
    expected = loss_of(columns, torch.from_numpy(same).float())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = dict(model[0].model.named_parameters())
    compared = 0
    for name, parameter in encoder.module.named_parameters():
        wanted = theirs[name].grad
        if wanted is None or parameter.grad is None:
            assert name.startswith("pooler.")
            continue
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-7)
        compared += 1
    assert compared > 20


def test_training_moves_texts_of_one_class_together(tiny_texts, tmp_path):
    encoder = loaded(tiny_texts["distilbert"])
    config = SetFitConfig(num_iterations=20, batch_size=8, lr=3e-3)

    fitted = SetFit(config).fit(encoder, task(), context(tmp_path))

    def gap(model) -> float:
        x = model.encode(task().train.inputs, -1, "mean")
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        same = LABELS[:, None] == LABELS
        cosine = x @ x.T
        return float(cosine[same].mean() - cosine[~same].mean())

    assert gap(fitted.encoder) > gap(encoder) + 0.2
    scores = fitted.predict_scores(task().train.inputs)
    assert (scores.argmax(1) == LABELS).mean() == 1.0


@pytest.mark.parametrize("n_classes", [2, 5])
def test_the_pairs_are_those_of_one_choice_after_another(tmp_path, n_classes):
    labels = np.random.default_rng(1).permutation(np.arange(23) % n_classes)
    labels[labels == 1] = 0  # a class without a text, and of one text below
    labels[4] = 1
    rng, rows = context(tmp_path).rng("setfit.pairs"), np.arange(len(labels))
    equal = {y: rows[labels == y] for y in np.unique(labels)}
    other = {y: rows[labels != y] for y in equal}
    expected = [
        (i, rng.choice(pool[labels[i]])) for _ in range(3) for i in rows for pool in (equal, other)
    ]

    pairs, _ = pairs_of(draw_partners(labels, 3, context(tmp_path)))

    np.testing.assert_array_equal(pairs, expected)


def test_the_pairs_of_many_texts_take_a_few_bytes_each(tmp_path):
    labels = np.arange(20_000) % 100
    tracemalloc.start()
    rows = _contrastive.PairRows(
        [[1, 2]] * len(labels), draw_partners(labels, 20, context(tmp_path))
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(rows) == 800_000
    assert rows[len(rows) - 1]["labels"] == 0.0
    assert peak < 8 * len(rows)
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_each_text_has_as_many_pairs_of_either_kind(tmp_path):
    pairs, same = pairs_of(draw_partners(LABELS, 4, context(tmp_path)))

    assert len(pairs) == len(same) == SetFitConfig(num_iterations=4).n_pairs(len(LABELS))
    np.testing.assert_array_equal(LABELS[pairs[:, 0]] == LABELS[pairs[:, 1]], same == 1)
    for kind in (0, 1):
        drawn = np.bincount(pairs[same == kind, 0], minlength=len(LABELS))
        assert (drawn == 4).all()


def test_the_trained_features_are_those_of_sentence_transformers(tiny_texts, tmp_path):
    encoder = loaded(tiny_texts["bert"])
    fitted = SetFit(SetFitConfig(num_iterations=1, lr=1e-3)).fit(encoder, task(), context(tmp_path))
    model, _ = oracle(tiny_texts["bert"], "mean")
    model[0].model.load_state_dict(fitted.encoder.module.state_dict())

    expected = model.encode(TEXTS)

    got = fitted.encoder.encode(task().train.inputs, -1, "mean")
    np.testing.assert_allclose(got, expected, atol=2e-6)
