"""The formulas and graphs of exports give the scores of the classifiers that they describe."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.api.errors import UnknownNameError
from clipadapt.core.scoring.scores import probabilities
from tests.unit.textsent.tiny import TinyEncoder, make_split, make_task
from textsent.methods._features import Scaler
from textsent.methods.logreg import LogReg
from textsent.methods.svm import SVM, SVMClassifier, fit_machine
from textsent.methods.tfidf_svm import TfidfSVM

CLASSES = ("red", "green", "blue", "never seen")


def evaluated(arrays, formula, x):
    space = {"np": np, "a": arrays, "x": x}
    exec("\n".join(formula), space)
    return space["scores"]


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("n_seen", [2, 3])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_formula_of_an_svm_gives_its_scores(kernel, n_seen, standardize):
    rng = np.random.default_rng(0)
    y = np.arange(40) % n_seen * (3 - n_seen + 1) % 4  # two classes: 0 and 2
    x = (rng.normal(size=(40, 6)) * 3 + 20 + y[:, None]).astype(np.float32).astype(np.float64)
    scaler = Scaler.fitted(x, standardize=standardize)
    fitted = SVMClassifier(None, CLASSES, fit_machine(x, y, scaler, kernel, 1.0))
    new = rng.normal(size=(50, 6)) * 3 + 21

    arrays, formula = fitted.machine.exported(len(CLASSES))

    np.testing.assert_allclose(evaluated(arrays, formula, new), fitted.scores(new), atol=1e-6)
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.testing.assert_allclose(
        evaluated(single, formula, new.astype(np.float32)), fitted.scores(new), atol=1e-4
    )


@pytest.mark.parametrize("method", [SVM, LogReg])
def test_a_layer_and_pooling_other_than_the_default_are_in_the_code(method, tmp_path):
    ctx = RunContext(1, tmp_path, Services(None))
    config = method.Config(layer=-2, pooling="mean", max_length=9)
    fitted = method(config).fit(TinyEncoder("bert"), make_task(), ctx)

    code = fitted.export("hf", tmp_path / "hf").snippet

    assert "hidden_states[1]" in code
    assert ".sum(1) / weight.sum(1)" in code
    facts = json.loads((tmp_path / "hf" / "classifier.json").read_text())
    assert (facts["layer"], facts["pooling"], facts["max_length"]) == (-2, "mean", 9)
    with pytest.raises(UnknownNameError, match="Known: classifier, hf, onnx"):
        fitted.export("peft", tmp_path / "peft")


def fit_tfidf(texts, labels, classnames, folder, **config):
    inputs = Inputs(tuple(texts), tuple(map(str, range(len(texts)))))
    train = Split(inputs, np.array(labels), classnames)
    ctx = RunContext(1, folder, Services(None))
    return TfidfSVM(TfidfSVM.Config(**config)).fit(None, Task(classnames, (), train, None), ctx)


@pytest.mark.parametrize("temperature", [None, 0.3])
@pytest.mark.parametrize(
    ("config", "n_classes", "n_seen"),
    [({}, 2, 2), ({"sublinear_tf": True, "max_ngram": 3}, 3, 3), ({"max_ngram": 1}, 4, 2)],
)
def test_the_graph_of_tfidf_svm_gives_its_probabilities(
    config, n_classes, n_seen, temperature, tmp_path
):
    ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from textsent.methods import _tfidf

    split = make_split(40, 0, n_seen)
    fitted = fit_tfidf(split.inputs.examples, split.labels, CLASSES[:n_classes], tmp_path, **config)
    fitted.export("onnx", tmp_path / "export", temperature=temperature)
    texts = ("", "GOOD good good word1", "bad", "nothing known", *make_split(9, 5).inputs.examples)

    session = ort.InferenceSession(tmp_path / "export" / "model.onnx")
    (found,) = session.run(None, {"words": _tfidf.words(texts)})

    scores = fitted.predict_scores(Inputs(texts, tuple(map(str, range(len(texts))))))
    expected = probabilities(scores.astype(np.float64), temperature or 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_vocabulary_without_longer_ngrams_and_with_other_scripts_is_exported(tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from textsent.methods import _tfidf

    texts = ["schön", "Ärger", "良い", "悪い"]
    fitted = fit_tfidf(texts, [0, 1, 0, 1], ("gut", "schlecht"), tmp_path, max_ngram=2)
    fitted.export("onnx", tmp_path / "export")

    session = ort.InferenceSession(tmp_path / "export" / "model.onnx")
    (found,) = session.run(None, {"words": _tfidf.words([*texts, "SCHÖN ärger"])})

    assert found.argmax(1)[:4].tolist() == [0, 1, 0, 1]
    scores = fitted.predict_scores(Inputs((*texts, "SCHÖN ärger"), tuple("abcde")))
    np.testing.assert_allclose(found, probabilities(scores.astype(np.float64), 1.0), atol=1e-5)
