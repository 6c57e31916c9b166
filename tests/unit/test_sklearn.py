"""CLIPClassifier follows scikit-learn's conventions for estimators."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import clipadapt
from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import METHODS, MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.tensor import estimator

COLOURS = {"red_thing": (210, 40, 40), "blue_thing": (40, 60, 210), "green_thing": (50, 170, 60)}


@pytest.fixture(scope="module")
def images():
    """Return noisy colours of shape ``(24, 40, 40, 3)``, and their labels."""
    rng = np.random.default_rng(0)
    labels = list(COLOURS) * 8
    noise = rng.normal(0, 25, (24, 40, 40, 3))
    colours = np.array([COLOURS[name] for name in labels])[:, None, None]
    return (noise + colours).clip(0, 255).astype(np.uint8), labels


@pytest.fixture
def classifier(tiny_clip):
    return clipadapt.CLIPClassifier(tiny_clip)


@pytest.mark.slow
def test_lazy_import_from_the_package():
    code = (
        "import sys, clipadapt; assert 'CLIPClassifier' in clipadapt.__all__\n"
        "assert not {'sklearn', 'PIL', 'torch'} & set(sys.modules)\n"
        "clipadapt.CLIPClassifier()\n"
        "assert 'sklearn' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'CLIPClasifier'"):
        clipadapt.CLIPClasifier  # noqa: B018


def test_scores_equal_those_of_the_method(classifier, tiny_clip, images, tmp_path):
    array, labels = images
    ours = classifier.set_params(method_params={"C": 2.0}, random_state=3).fit(array, labels)

    found = MODELS.resolve(tiny_clip, "clip")
    model = found.provider.load(found.argument, ModelOptions("fp32"), Services(FeatureCache()))
    inputs = Inputs([Image.fromarray(a) for a in array], tuple(map(str, range(24))))
    names = ("blue thing", "green thing", "red thing")
    y = np.array([sorted(COLOURS).index(name) for name in labels])
    probe = METHODS.get("clip/linear_probe")
    task = Task(names, ("a photo of a {}.",), Split(inputs, y, names))
    theirs = probe(probe.Config(C=2.0)).fit(model, task, RunContext(3, tmp_path, model.services))

    np.testing.assert_array_equal(ours.predict_scores(array), theirs.predict_scores(inputs))
    assert ours.classifier_.classnames == names
    assert ours.classes_.tolist() == sorted(COLOURS)
    probabilities = ours.predict_proba(array)
    assert probabilities.shape == (24, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    best = ours.classes_[probabilities.argmax(axis=1)]
    assert ours.predict(array).tolist() == best.tolist()
    hits = np.array(best) == np.array(labels)
    assert ours.score(array, labels) == hits.mean() > 0.9
    weights = np.arange(24)
    assert ours.score(array, labels, sample_weight=weights) == np.average(hits, weights=weights)


def test_prompts_contain_the_labels_as_text(classifier, images):
    array, labels = images
    zero_shot = classifier.set_params(method="zero_shot").fit(array, labels)
    named = clone(classifier).fit(array, [name.replace("_", " ") for name in labels])

    assert zero_shot.classifier_.classnames == ("blue thing", "green thing", "red thing")
    np.testing.assert_array_equal(zero_shot.predict_scores(array), named.predict_scores(array))


def test_images_may_be_arrays_pil_images_or_paths(classifier, images, tmp_path):
    array, labels = images
    images = [Image.fromarray(a) for a in array]
    paths = [tmp_path / f"{i}.png" for i in range(24)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    transparent = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    classifier.fit(array, labels)

    want = classifier.predict_scores(array)
    objects = np.empty(24, dtype=object)
    objects[:] = images
    mixed = [*array[:8], *images[8:16], *paths[16:]]
    for given in (images, paths, list(map(str, paths)), np.array(list(map(str, paths))), objects,
                  mixed, tuple(images)):  # fmt: skip
        np.testing.assert_array_equal(classifier.predict_scores(given), want)
    white = Image.new("RGB", (40, 40), "white")
    np.testing.assert_array_equal(
        classifier.predict_scores([transparent]), classifier.predict_scores([white])
    )
    again = clone(classifier).fit(paths, labels)
    np.testing.assert_array_equal(again.predict_scores(images), want)


@pytest.mark.parametrize(
    "values",
    [
        [3, 1, 2],
        [True, False, True],
        ["b", "a", "c"],
        [("x", 1), ("x", 2), ("y", 0)],
        ["b", "a", 2],
        [1.0, 2.0, 3.0],
    ],
    ids=str,
)
def test_labels_may_be_anything_hashable(classifier, images, values):
    array, labels = images
    y = [values[list(COLOURS).index(name)] for name in labels]

    fitted = classifier.fit(array, y)

    assert set(fitted.classes_.tolist()) == set(values)
    assert fitted.classes_.ndim == 1
    assert set(fitted.predict(array).tolist()) <= set(values)
    assert fitted.score(array, y) > 0.8


def test_numpy_scalars_are_labels(classifier, images):
    array, labels = images
    y = np.array([list(COLOURS).index(name) for name in labels], dtype=np.int16)

    fitted = classifier.fit(array, y)

    assert fitted.classes_.tolist() == [0, 1, 2]
    assert fitted.classes_.dtype.kind == "i"
    assert fitted.classifier_.classnames == ("0", "1", "2")


def test_tensors_are_labels_by_value(classifier, images):
    array, labels = images
    y = [list(COLOURS).index(name) for name in labels]
    for given in (
        torch.tensor(y),
        [torch.tensor(v) for v in y],
        torch.tensor(y, dtype=torch.uint8),
    ):
        assert classifier.fit(array, given).classes_.tolist() == [0, 1, 2]
    assert classifier.score(array, torch.tensor(y)) > 0.8
    grown = torch.tensor([float(v) for v in y], requires_grad=True)
    assert classifier.fit(array, grown).classes_.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "missing", [None, float("nan"), np.float32("nan"), np.datetime64("NaT"), "pandas"], ids=str
)
def test_missing_labels_are_refused_as_scikit_learn_does(classifier, images, missing):
    array, labels = images
    if missing == "pandas":
        missing = pytest.importorskip("pandas").NA
    y = [labels[0], missing, *labels[2:]]
    for given in (y, np.array(y, dtype=object)):
        with pytest.raises(
            ValueError, match=r"missing values: .* at position 1 \(cases: 1 of 24\)"
        ):
            classifier.fit(array, given)


def test_indistinguishable_class_names_give_a_warning(classifier, images):
    array, labels = images
    y = ["Red thing" if i < 3 else name for i, name in enumerate(labels)]

    with pytest.warns(UserWarning, match="distinguish the classes 'Red thing' and 'red thing'"):
        classifier.fit(array, y)


def test_works_with_scikit_learns_tools(classifier, tiny_clip, images):
    array, labels = images
    images = [Image.fromarray(a) for a in array]
    pipeline = Pipeline([("same", FunctionTransformer()), ("clip", classifier)])
    grid = [
        {"clip__method": ["linear_probe"], "clip__method_params": [{"C": 1e-6}, {"C": 1.0}]},
        {"clip__method": ["zero_shot"]},
    ]

    assert is_classifier(classifier)
    assert repr(classifier) == f"CLIPClassifier(model='{tiny_clip}')"
    scores = cross_val_score(pipeline, images, labels, cv=3)
    np.testing.assert_array_equal(scores, cross_val_score(classifier, array, labels, cv=3))
    assert scores.min() > 0.8
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(images, labels)
    assert len(search.cv_results_["params"]) == 3
    assert search.best_params_["clip__method"] == "linear_probe"
    assert search.predict(images[:2]).tolist() == labels[:2]
    for scorer in ("neg_log_loss", "roc_auc_ovr", "balanced_accuracy"):
        assert np.isfinite(get_scorer(scorer)(search, images, labels))


def test_grid_search_with_invalid_parameters(classifier, images):
    grid = {"method_params": [{"C": 1.0}, {"max_itr": 9}]}
    with pytest.warns(Warning, match=r"did you mean 'max_iter'"):
        search = GridSearchCV(classifier, grid, cv=2).fit(*images)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]


def test_the_model_is_loaded_once_and_shared(tiny_models, images, monkeypatch):
    array, labels = images
    monkeypatch.setattr(estimator, "_models", {})
    loaded = []
    provider = MODELS.get("clip/openclip")
    load = type(provider).load
    monkeypatch.setattr(
        type(provider), "load", lambda self, *a: loaded.append(a[0]) or load(self, *a)
    )
    first = clipadapt.CLIPClassifier(tiny_models["custom"])

    fitted = [clone(first).fit(array, labels) for _ in range(3)]
    cross_val_score(first, array, labels, cv=2)

    assert len(loaded) == 1
    assert len({id(f.classifier_.model) for f in fitted}) == 1


def test_pickle_does_not_contain_the_model(classifier, images, tiny_clip):
    array, labels = images
    fitted = clone(classifier).fit(array, labels)
    saved = io.BytesIO()
    joblib.dump(classifier, saved)

    raw = pickle.dumps(fitted)
    restored, copied = pickle.loads(raw), copy.deepcopy(fitted)

    assert len(saved.getvalue()) < 500
    assert len(raw) < 5000
    assert b"torch" not in raw
    for other in (restored, copied):
        np.testing.assert_array_equal(other.predict_scores(array), fitted.predict_scores(array))
        assert other.classifier_.model is fitted.classifier_.model
    saved.seek(0)
    assert joblib.load(saved).get_params() == classifier.get_params()
    fitted.set_params(method="zero_shot")  # does not affect the fitted classifier
    other = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(other.predict_scores(array), restored.predict_scores(array))


def test_different_weights_are_detected_when_unpickling(images, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from tests.unit.models import tiny

    folder = tiny.write(tmp_path / "model", "clip")
    fitted = clipadapt.CLIPClassifier(f"local-dir:{folder}").fit(*images)
    raw = pickle.dumps(fitted)
    weights = folder / "open_clip_model.safetensors"
    state = load_file(weights)
    state["visual.proj"] = state["visual.proj"] + torch.ones(())
    save_file(state, weights)
    os.utime(weights, ns=(1, 1))

    with pytest.raises(Exception, match="was fitted with different weights of 'local-dir:"):
        pickle.loads(raw)


@pytest.mark.slow
def test_other_processes_give_the_same_result(classifier, images):
    array, labels = images
    done = cross_validate(classifier, array, labels, cv=2, n_jobs=2, return_estimator=True)

    np.testing.assert_array_equal(
        done["test_score"], cross_val_score(classifier, array, labels, cv=2)
    )
    assert done["estimator"][0].predict(array[:1]).tolist() == labels[:1]


def test_random_state_determines_the_seed(classifier, images, monkeypatch):
    seeds = []
    method = METHODS.get("clip/zero_shot")
    fit = method.fit
    monkeypatch.setattr(
        method, "fit", lambda self, b, t, ctx: seeds.append(ctx.seed) or fit(self, b, t, ctx)
    )
    classifier.set_params(method="zero_shot")
    generators = [np.random.RandomState(5), np.random.RandomState(5)]
    for state in (7, np.int64(7), *generators):
        classifier.set_params(random_state=state).fit(*images)

    assert seeds[:2] == [7, 7]
    assert seeds[2] == seeds[3]
    classifier.set_params(random_state="x")
    with pytest.raises(ValueError, match="cannot be used to seed"):
        classifier.fit(*images)


# ---------------------------------------------------------------- parameters


def test_one_hyperparameter_in_a_grid(classifier, images):
    array, labels = images
    given = {"solver": "lbfgs", "C": 5.0}
    classifier.set_params(method_params=given)
    pipeline = Pipeline([("same", FunctionTransformer()), ("clip", classifier)])
    grid = {"clip__method_params__C": [1.0, 1e-6], "clip__method": ["linear_probe"]}

    pictures = [Image.fromarray(a) for a in array]
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(pictures, labels)

    assert search.best_params_["clip__method_params__C"] == 1.0
    best = search.best_estimator_.named_steps["clip"]
    assert best.method_params == {"solver": "lbfgs", "C": 1.0}
    assert best.fitted_.config.C == 1.0
    assert given == {"solver": "lbfgs", "C": 5.0}
    assert classifier.method_params is given
    assert classifier.get_params()["method_params__C"] == 5.0
    assert "method_params__C" not in classifier.get_params(deep=False)
    assert clone(best).get_params() == best.get_params()
    changed = clipadapt.CLIPClassifier().set_params(method="coop", method_params__n_ctx=4)
    assert changed.method_params == {"n_ctx": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method_params__max_itr": 1}, "Invalid parameter 'method_params__max_itr': clip/linear_probe .*'max_iter'"),
        ({"method_parms": {}}, "Invalid parameter 'method_parms'"),
        ({"method_params": 5, "method_params__C": 1}, "method_params must be a mapping or None, got 5"),
    ],
)  # fmt: skip
def test_parameters_that_do_not_exist(classifier, change, message):
    with pytest.raises(ValueError, match=message):
        classifier.set_params(**change)


def test_decision_function(classifier, images):
    array, labels = images
    classifier.fit(array, labels)
    scores = classifier.predict_scores(array)
    np.testing.assert_array_equal(classifier.decision_function(array), scores)

    two = [name == "red_thing" for name in labels]
    classifier.fit(array, two)
    scores, decision = classifier.predict_scores(array), classifier.decision_function(array)
    assert decision.shape == (24,)
    np.testing.assert_array_equal(decision > 0, classifier.predict(array))
    np.testing.assert_allclose(decision, scores[:, 1].astype(float) - scores[:, 0])
    assert get_scorer("roc_auc")(classifier, array, two) > 0.9
    assert get_scorer("average_precision")(classifier, array, two) > 0.9


def test_sample_weight(classifier, images):
    array, labels = images
    weights = np.tile([1.0, 2.0, 0.0], 8)
    kept = np.flatnonzero(weights)
    repeated = np.repeat(np.arange(24), weights.astype(int))

    classifier.fit(array, labels, sample_weight=weights)

    assert classifier.classes_.tolist() == ["blue_thing", "red_thing"]
    weighted = classifier.decision_function(array)
    same = clone(classifier).fit(array[repeated], [labels[i] for i in repeated])
    np.testing.assert_allclose(weighted, same.decision_function(array), atol=1e-3)
    plain = clone(classifier).fit(array[kept], [labels[i] for i in kept])
    assert not np.allclose(weighted, plain.decision_function(array), atol=1e-3)
    for change in (
        {"method": "tip_adapter", "method_params": None},
        {"method_params": {"solver": "batched"}},
    ):
        with pytest.raises(ValueError, match=r"cannot weigh .* use method='linear_probe'"):
            clone(classifier).set_params(**change).fit(array, labels, sample_weight=weights)
    for wrong, message in (
        (weights[:3], "expected \\(24,\\)"),
        (-weights, "not negative"),
        (weights[:, None], "must be 1D"),
        (np.zeros(24), "at least one non-zero"),
        (np.full(24, np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.fit(array, labels, sample_weight=wrong)


def test_numbers_are_not_prompts(classifier, images):
    array, labels = images
    y = np.array([list(COLOURS).index(name) for name in labels])
    named = clone(classifier).set_params(method="zero_shot").fit(array, labels)
    zero_shot = classifier.set_params(method="zero_shot")
    for given in (y, y.astype(str), y.astype(float)):
        with pytest.raises(ValueError, match=r"means nothing in a prompt.* with classnames=, for"):
            zero_shot.fit(array, given)

    order = ["red thing", "blue thing", "green thing"]
    zero_shot.set_params(classnames=order).fit(array, y)
    assert zero_shot.classifier_.classnames == tuple(order)
    by_label = clone(zero_shot).set_params(classnames=dict(enumerate(order))).fit(array, y)
    np.testing.assert_array_equal(by_label.predict(array), zero_shot.predict(array))
    np.testing.assert_array_equal(
        zero_shot.predict_scores(array)[:, [1, 2, 0]], named.predict_scores(array)
    )
    assert zero_shot.predict(array).dtype.kind == "i"


def test_templates(classifier, images):
    array, labels = images
    zero_shot = classifier.set_params(method="zero_shot")
    plain = clone(zero_shot).fit(array, labels).predict_scores(array)
    same = clone(zero_shot).set_params(templates="a photo of a {}.").fit(array, labels)
    seven = clone(zero_shot).set_params(templates="7").fit(array, labels)
    two = clone(zero_shot).set_params(templates=["a photo of a {}.", "a sketch of a {}."])

    np.testing.assert_array_equal(same.predict_scores(array), plain)
    assert not np.array_equal(seven.predict_scores(array), plain)
    assert not np.array_equal(two.fit(array, labels).predict_scores(array), plain)
    grid = {"templates": ["7", "a photo of a {}."]}
    assert len(GridSearchCV(zero_shot, grid, cv=2).fit(array, labels).cv_results_["params"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classnames": ["a", "b"]}, "classnames has 2 names, and there are 3 classes"),
        ({"classnames": {"red_thing": "red"}}, "classnames has no name for the label 'blue_thing'"),
        ({"classnames": "abc"}, "classnames must be a mapping, a list of names or None, got 'abc'"),
        ({"classnames": ["a", "b", 3]}, "classnames must be texts that are not empty, got 3"),
        ({"templates": "a photo"}, "templates must be 7, 80, or templates with one '{}' .* got 'a photo'"),
        ({"templates": ["a {}", "{} {}"]}, "got '{} {}'"),
        ({"templates": []}, "got none"),
        ({"templates": 7}, "got 7"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_prompts(classifier, images, change, message):
    with pytest.raises(ValueError, match=message):
        classifier.set_params(**change).fit(*images)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "linear_prob"}, r"unknown method 'clip/linear_prob'; did you mean"),
        ({"method": "text/svm"}, "text/svm is not for images"),
        ({"method": None}, "method must be a name, got None"),
        ({"model": "stiched"}, "did you mean 'stitched'"),
        (
            {"method_params": {"max_itr": 1}},
            r"method_params.max_itr: Extra inputs .* did you mean 'max_iter'",
        ),
        ({"method_params": {"C": -1}}, r"method_params.C: .* greater than 0 \(got -1\)"),
        ({"method_params": [1]}, r"method_params must be a mapping or None, got \[1\]"),
    ],
    ids=str,
)
def test_wrong_parameters(classifier, images, change, message):
    with pytest.raises(ValueError, match=message):
        classifier.set_params(**change).fit(*images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: a.astype(float), r"got an array of float64 and shape \(24, 40, 40, 3\)"),
        (lambda a: a[..., 0], r"got an array of uint8 and shape \(24, 40, 40\)"),
        (lambda a: a[0], "got an array of uint8"),
        (lambda a: a[:0], "found no images"),
        (lambda a: [], "found no images"),
        (lambda a: "a.png", "expected several images, got one str"),
        (lambda a: Image.fromarray(a[0]), "expected several images, got one Image"),
        (lambda a: 5, "got int"),
        (lambda a: [*a[:3], 5], "image 3: expected PIL images"),
        (lambda a: [a[0][..., 0]], r"image 0: expected a uint8 array .* got uint8 \(40, 40\)"),
        (lambda a: ["/nowhere/at.png"] * 2, "cannot read the file '/nowhere/at.png'"),
        (lambda a: [__file__] * 2, r"is not an image: it starts like text"),
    ],
)
def test_wrong_images(classifier, images, make, message):
    array, labels = images
    given = make(array)
    with pytest.raises(ValueError, match=message):
        classifier.fit(given, labels[: len(given)] if isinstance(given, list) else labels)
    fitted = clone(classifier).fit(array, labels)
    with pytest.raises(ValueError, match=message):
        fitted.predict(given)


def test_data_frame_is_not_a_list_of_images(classifier):
    import pandas as pd

    frame = pd.DataFrame({"path": ["a.png", "b.png"], "label": ["a", "b"]})
    with pytest.raises(ValueError, match=r"got a DataFrame of shape \(2, 2\)"):
        classifier.fit(frame, frame["label"])


def test_series_are_accepted(classifier, images, tmp_path):
    import pandas as pd

    array, labels = images
    paths = pd.Series([str(tmp_path / f"{i}.png") for i in range(24)], index=range(100, 124))
    for a, path in zip(array, paths, strict=True):
        Image.fromarray(a).save(path)
    fitted = classifier.fit(paths, pd.Series(labels, index=range(7, 31)))

    assert fitted.score(paths, pd.Series(labels)) == fitted.score(array, labels)
    assert cross_val_score(classifier, paths, pd.Series(labels), cv=2).min() > 0.8


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", "b"], r"inconsistent numbers of samples: \[24, 2\]"),
        (dict.fromkeys(range(24), "a"), "expected one label per image"),
        (set(range(24)), "expected one label per image"),
        (["a"] * 24, "at least two classes are required, got only one class: 'a'"),
        (np.zeros((24, 2)), r"y should be a 1d array, got an array of shape \(24, 2\)"),
        (np.linspace(0, 1, 24), "Unknown label type"),
        ([float("nan")] * 24, "missing values: nan at position 0"),
        ([["a"]] * 24, "labels must be hashable"),
        (None, "expected one label per image"),
        ("ab" * 12, "expected one label per image"),
    ],
    ids=str,
)
def test_wrong_labels(classifier, images, y, message):
    with pytest.raises(ValueError, match=message):
        classifier.fit(images[0], y)


@pytest.mark.parametrize("call", ["predict", "predict_proba", "predict_scores"])
def test_before_fit(classifier, images, call):
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        getattr(classifier, call)(images[0])
    assert not hasattr(classifier, "classifier_")


def test_model_without_the_required_capability(classifier, images, monkeypatch):
    class Other:
        pass

    monkeypatch.setattr(METHODS.get("clip/zero_shot"), "requires", Other)
    with pytest.raises(ValueError, match="clip/zero_shot needs a model that is a Other"):
        classifier.set_params(method="zero_shot").fit(*images)
