from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Task
from clipadapt.core.api.errors import DataError, ModelError, RecordError
from clipadapt.core.api.method import Classifier, Selected
from clipadapt.core.experiments.config import load as load_config
from tests.unit.textsent.tiny import TinyEncoder, make_split, make_task
from textsent.methods.logreg import LogReg, LogRegConfig
from textsent.methods.svm import SVM, SVMConfig

METHODS = {"svm": SVM, "logreg": LogReg}


@pytest.fixture(scope="module")
def encoder():
    return TinyEncoder("bert")


@pytest.fixture
def ctx(tmp_path):
    return RunContext(42, tmp_path, Services(None))  # type: ignore[arg-type]


def fit(name, encoder, task, ctx, **config):
    method = METHODS[name]
    return method(method.Config(**config)).fit(encoder, task, ctx)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    ("kernel", "standardize"), [("rbf", False), ("rbf", True), ("linear", False)]
)
def test_margins_are_scikit_learns_before_and_after_saving(
    encoder, ctx, tmp_path, n_classes, kernel, standardize
):
    task, test = make_task(60, n_classes), make_split(50, 2, n_classes)
    ours = fit("svm", encoder, task, ctx, kernel=kernel, standardize=standardize)
    ours.save(tmp_path / "saved")
    restored = SVM(SVMConfig()).load(tmp_path / "saved", encoder)

    x, xt = (encoder.encode(s.inputs).astype(np.float64) for s in (task.train, test))
    if standardize:
        scaler = StandardScaler().fit(x)
        x, xt = scaler.transform(x), scaler.transform(xt)
    theirs = SVC(kernel=kernel, C=1.0, random_state=42).fit(x, task.train.labels)
    want = theirs.decision_function(xt)
    assert want.shape == ((50,) if n_classes == 2 else (50, 3))
    if n_classes == 2:
        want = np.stack([-want, want], axis=1)
    scores = ours.predict_scores(test.inputs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, want, atol=1e-6)
    np.testing.assert_array_equal(restored.predict_scores(test.inputs), scores)
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "classifier.json",
        "classifier.safetensors",
    ]
    assert isinstance(ours, Classifier)
    assert ours.score_kind == "margin"
    assert ours.n_trainable_params == theirs.dual_coef_.size + theirs.intercept_.size


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logits_are_scikit_learns_before_and_after_saving(encoder, ctx, tmp_path, n_classes):
    task, test = make_task(60, n_classes, val=False), make_split(50, 2, n_classes)
    ours = fit("logreg", encoder, task, ctx, C=0.5)
    ours.save(tmp_path / "saved")
    restored = LogReg(LogRegConfig()).load(tmp_path / "saved", encoder)

    x, xt = (encoder.encode(s.inputs).astype(np.float64) for s in (task.train, test))
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(C=0.5, max_iter=1000).fit(scaler.transform(x), task.train.labels)
    scores = ours.predict_scores(test.inputs)
    odds = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(
        odds / odds.sum(1, keepdims=True), theirs.predict_proba(scaler.transform(xt)), atol=1e-5
    )
    np.testing.assert_array_equal(restored.predict_scores(test.inputs), scores)
    assert ours.score_kind == "logit"
    assert ours.selection is None
    assert ours.n_trainable_params == n_classes * 33


@pytest.mark.parametrize("name", METHODS)
def test_the_penalty_is_selected_on_val(encoder, ctx, name):
    task = make_task(80)
    chosen = fit(name, encoder, task, ctx, C_grid=(10.0, 1e-5, 1.0))
    assert isinstance(chosen, Selected)
    assert [line["C"] for line in ctx.history] == [1e-5, 1.0, 10.0]
    best = max(line["val_accuracy"] for line in ctx.history)
    accuracy = (chosen.predict_scores(task.val.inputs).argmax(1) == task.val.labels).mean()
    assert chosen.selection["value"] == best == accuracy
    first = next(line["C"] for line in ctx.history if line["val_accuracy"] == best)
    if name == "svm":  # ties go to the smaller C
        assert chosen.selection["by"] == f"val accuracy over C (C={first:.4g})"


def test_layer_pooling_and_length_are_saved(encoder, ctx, tmp_path):
    task = make_task(60, val=False)
    how = {"layer": 1, "pooling": "mean", "max_length": 6}
    fitted = fit("svm", encoder, task, ctx, **how)
    fitted.save(tmp_path / "saved")
    restored = SVM(SVMConfig()).load(tmp_path / "saved", encoder)
    for classifier in (fitted, restored):
        assert classifier.reader.facts() == how
    plain = fit("svm", encoder, task, ctx)
    assert plain.reader.facts() == {"layer": -1, "pooling": "cls", "max_length": 40}
    test = make_split(20, 2).inputs
    assert not np.array_equal(fitted.predict_scores(test), plain.predict_scores(test))
    np.testing.assert_array_equal(fitted.predict_scores(test), restored.predict_scores(test))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("present", [[0, 2], [1, 2]])
def test_a_class_without_an_example_is_never_predicted(encoder, ctx, name, present):
    train = make_split(60, 0, 3, present)
    scores = fit(name, encoder, Task(train.classnames, (), train), ctx).predict_scores(
        make_split(40, 1, 3).inputs
    )
    assert scores.shape == (40, 3)
    assert np.isfinite(scores).all()
    assert set(scores.argmax(1)) <= set(present)


@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_fitted(encoder, ctx, name):
    one = make_split(10, 0, 2, [1])
    with pytest.raises(DataError, match=f"{name} needs examples of at least two classes, got 1"):
        fit(name, encoder, Task(one.classnames, (), one), ctx)
    with pytest.raises(DataError, match="no train split"):
        fit(name, encoder, Task(one.classnames), ctx)
    with pytest.raises(ModelError, match="got max_length 41"):
        fit(name, encoder, make_task(), ctx, max_length=41)
    with pytest.raises(ValidationError):
        METHODS[name].Config(pooling="max")


@pytest.mark.parametrize("name", METHODS)
def test_a_damaged_classifier_or_another_model_is_rejected(encoder, ctx, tmp_path, name):
    method = METHODS[name](METHODS[name].Config())
    fit(name, encoder, make_task(), ctx).save(tmp_path / "saved")
    wide = TinyEncoder("bert")
    wide.width = 64
    with pytest.raises(RecordError, match="does not fit this model"):
        method.load(tmp_path / "saved", wide)
    facts = json.loads((tmp_path / "saved" / "classifier.json").read_text())
    del facts["pooling"]
    (tmp_path / "saved" / "classifier.json").write_text(json.dumps(facts))
    with pytest.raises(RecordError, match="lacks pooling"):
        method.load(tmp_path / "saved", encoder)
    with pytest.raises(RecordError, match="no readable classifier"):
        method.load(tmp_path / "nothing", encoder)


def test_a_solver_that_does_not_converge_is_reported(encoder, tmp_path):
    said = []

    class Notes:
        note = staticmethod(said.append)

    ctx = RunContext(1, tmp_path, Services(None, progress=Notes()))  # type: ignore[arg-type]
    fit("logreg", encoder, make_task(val=False), ctx, C=100.0, max_iter=1)
    assert "did not converge in 1 iterations at C=100; raise method.max_iter" in said[0]


@pytest.mark.parametrize("name", ["svm", "svm-quick", "logreg", "logreg-quick"])
def test_the_recipes_are_valid(name):
    experiment = load_config(
        [name], ["model.name=minilm", "data.name=rotten_tomatoes:offline"], track="text"
    )
    assert experiment.method_name == f"text/{name.removesuffix('-quick')}"
    assert experiment.method == METHODS[name.removesuffix("-quick")].Config()


def test_importing_the_methods_is_light():
    code = (
        "import sys\n"
        "from textsent.methods import svm, logreg, head, full_finetune, lora, bitfit\n"
        "heavy = {'sklearn', 'scipy', 'torch', 'transformers', 'peft', 'datasets', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"
