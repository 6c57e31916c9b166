from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.api.errors import DataError, RecordError
from clipadapt.core.api.method import Classifier
from clipadapt.core.experiments.config import load as load_config
from textsent.methods.tfidf_svm import TfidfSVM, TfidfSVMConfig

WORDS = {
    0: ["bad", "dull", "awful", "boring"],
    1: ["good", "fine", "great", "lovely"],
    2: ["odd", "weird", "strange", "queer"],
}


def make_split(n_classes, n, seed, present=None):
    rng = np.random.default_rng(seed)
    labels = rng.choice(present if present is not None else n_classes, size=n).astype(np.int64)
    filler = [f"word{i}" for i in range(40)]
    texts = [
        " ".join([*rng.choice(filler, 6), *rng.choice(WORDS[int(y)], 2), *rng.choice(filler, 2)])
        for y in labels
    ]
    inputs = Inputs(tuple(texts), tuple(f"row/{i}" for i in range(n)))
    return Split(inputs, labels, tuple(f"class {c}" for c in range(n_classes)))


@pytest.fixture
def ctx(tmp_path):
    return RunContext(1, tmp_path, Services(None))  # type: ignore[arg-type]


def fit(train, ctx, **config):
    return TfidfSVM(TfidfSVMConfig(**config)).fit(None, Task(train.classnames, (), train), ctx)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "config", [{}, {"C": 0.1, "max_ngram": 3, "min_df": 2, "sublinear_tf": True}]
)
def test_scores_equal_those_of_scikit_learn(ctx, n_classes, config):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    train, test = make_split(n_classes, 200, 0), make_split(n_classes, 50, 1)
    scores = fit(train, ctx, **config).predict_scores(test.inputs)

    vectorizer = TfidfVectorizer(
        ngram_range=(1, config.get("max_ngram", 2)),
        min_df=config.get("min_df", 1),
        sublinear_tf=config.get("sublinear_tf", False),
    )
    svm = LinearSVC(C=config.get("C", 1.0), random_state=0, max_iter=10_000)
    svm.fit(vectorizer.fit_transform(train.inputs.examples), train.labels)
    expected = svm.decision_function(vectorizer.transform(test.inputs.examples))
    if n_classes == 2:
        expected = np.stack([-expected, expected], axis=1)

    assert scores.shape == (50, n_classes)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(
        scores.argmax(axis=1), svm.predict(vectorizer.transform(test.inputs.examples))
    )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_saved_classifier_gives_equal_scores_without_a_pickle(ctx, tmp_path, n_classes):
    train, test = make_split(n_classes, 100, 0), make_split(n_classes, 30, 1)
    fitted = fit(train, ctx, sublinear_tf=True)
    fitted.save(tmp_path / "classifier")
    loaded = TfidfSVM(TfidfSVMConfig()).load(tmp_path / "classifier", None)
    assert isinstance(loaded, Classifier)
    np.testing.assert_array_equal(
        fitted.predict_scores(test.inputs), loaded.predict_scores(test.inputs)
    )
    assert loaded.classnames == fitted.classnames
    assert loaded.n_trainable_params == fitted.n_trainable_params
    assert sorted(p.name for p in (tmp_path / "classifier").iterdir()) == [
        "classifier.json",
        "classifier.safetensors",
    ]


def test_a_damaged_classifier_is_refused(ctx, tmp_path):
    method = TfidfSVM(TfidfSVMConfig())
    with pytest.raises(RecordError, match="no readable classifier"):
        method.load(tmp_path / "none", None)
    fit(make_split(2, 50, 0), ctx).save(tmp_path)
    facts = json.loads((tmp_path / "classifier.json").read_text())
    facts["vocabulary"].pop()
    (tmp_path / "classifier.json").write_text(json.dumps(facts))
    with pytest.raises(RecordError, match="does not fit"):
        method.load(tmp_path, None)
    (tmp_path / "classifier.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(RecordError, match="no readable"):
        method.load(tmp_path, None)


def test_permuted_inputs_give_permuted_scores(ctx):
    train, test = make_split(2, 100, 0), make_split(2, 40, 1)
    fitted = fit(train, ctx)
    order = np.random.default_rng(0).permutation(40)
    scores = fitted.predict_scores(test.inputs)
    np.testing.assert_array_equal(fitted.predict_scores(test.inputs.take(order)), scores[order])
    one = fitted.predict_scores(test.inputs.take(np.asarray([7])))
    np.testing.assert_array_equal(one, scores[[7]])
    assert fitted.predict_scores(Inputs(("", "?"), ("a", "b"))).shape == (2, 2)


def test_the_fit_is_deterministic_and_needs_no_seed(tmp_path):
    train, test = make_split(3, 100, 0), make_split(3, 40, 1)
    a, b = (
        fit(train, RunContext(seed, tmp_path, Services(None))).predict_scores(test.inputs)  # type: ignore[arg-type]
        for seed in (1, 2)
    )
    np.testing.assert_array_equal(a, b)


def test_parameters_are_counted(ctx):
    two, three = fit(make_split(2, 60, 0), ctx), fit(make_split(3, 60, 0), ctx)
    assert two.n_trainable_params == len(two.vocabulary) + 1
    assert three.n_trainable_params == 3 * (len(three.vocabulary) + 1)
    assert two.score_kind == "margin"


@pytest.mark.parametrize("present", [[0, 2], [1, 2]])
def test_a_class_without_an_example_is_never_predicted(ctx, present):
    scores = fit(make_split(3, 80, 0, present), ctx).predict_scores(make_split(3, 30, 1).inputs)
    absent = ({0, 1, 2} - set(present)).pop()
    assert scores.shape == (30, 3)
    assert np.isfinite(scores).all()
    assert absent not in scores.argmax(axis=1)


def test_what_cannot_be_fitted(ctx):
    train = make_split(2, 20, 0)
    with pytest.raises(DataError, match="no train split"):
        TfidfSVM(TfidfSVMConfig()).fit(None, Task(train.classnames), ctx)
    with pytest.raises(DataError, match="at least two classes, got 1"):
        fit(make_split(2, 20, 0, [1]), ctx)
    with pytest.raises(DataError, match="no n-gram in the 20 training texts with min_df=21"):
        fit(train, ctx, min_df=21)
    silent = Split(Inputs(("! ?", "a"), ("0", "1")), np.asarray([0, 1]), ("a", "b"))
    with pytest.raises(DataError, match="no n-gram in the 2 training texts"):
        fit(silent, ctx)
    with pytest.raises(ValidationError):
        TfidfSVMConfig(C=-1.0)


def test_a_solver_that_does_not_converge_is_reported(tmp_path):
    class Notes:
        def __init__(self):
            self.said = []

        def note(self, message):
            self.said.append(message)

    notes = Notes()
    ctx = RunContext(1, tmp_path, Services(None, progress=notes))  # type: ignore[arg-type]
    fit(make_split(2, 200, 0), ctx, C=1000.0, max_iter=1)
    assert "did not converge in 1 passes; raise method.max_iter" in notes.said[0]


def test_it_learns(ctx):
    train, test = make_split(2, 200, 0), make_split(2, 100, 1)
    predicted = fit(train, ctx).predict_scores(test.inputs).argmax(axis=1)
    assert (predicted == test.labels).mean() > 0.95


@pytest.mark.parametrize("name", ["tfidf_svm", "tfidf_svm-quick"])
def test_the_recipes_are_valid(name):
    experiment = load_config([name], ["data.name=rotten_tomatoes:offline"], track="text")
    assert experiment.method_name == "text/tfidf_svm"
    assert experiment.config.seeds == (1,)
    assert experiment.method == TfidfSVMConfig()


def test_importing_the_method_and_the_data_is_light():
    code = (
        "import sys, textsent.methods.tfidf_svm, textsent.datasets.csv, textsent.datasets.hf\n"
        "import textsent.datasets.rotten_tomatoes\n"
        "heavy = {'sklearn', 'scipy', 'torch', 'pandas', 'pyarrow', 'datasets', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"
