"""SentimentClassifier follows scikit-learn's conventions for estimators."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

import textsent

GOOD, BAD = "a fine and moving film, number", "a dull and lifeless film, number"


@pytest.fixture(scope="module")
def reviews():
    texts = [
        f"{text} {['one', 'two', 'three', 'four'][i % 4]}" for i in range(8) for text in (GOOD, BAD)
    ]
    return texts, ["good", "bad"] * 8


@pytest.fixture
def words():
    return textsent.SentimentClassifier(method="tfidf_svm")


def test_fits_texts_and_predicts_labels(words, reviews):
    texts, labels = reviews

    words.fit(texts, labels)

    assert words.classes_.tolist() == ["bad", "good"]
    assert words.predict(["a fine thing", "a dull thing"]).tolist() == ["good", "bad"]
    assert words.score(texts, labels) == 1.0
    scores, decision = words.predict_scores(texts), words.decision_function(texts)
    assert decision.shape == (16,)
    np.testing.assert_allclose(decision, scores[:, 1] - scores[:, 0].astype(float))
    for given in (
        np.array(texts),
        np.array(texts, dtype=object),
        pd.Series(texts, index=range(5, 21)),
        tuple(texts),
    ):
        np.testing.assert_array_equal(words.predict_scores(given), scores)


def test_margins_have_no_probabilities(words, reviews):
    texts, labels = reviews
    with pytest.raises(NotFittedError):
        words.predict_proba(texts)
    words.fit(texts, labels)

    assert not hasattr(words, "predict_proba")
    with pytest.raises(AttributeError, match="predict_proba"):
        words.predict_proba(texts)
    calibrated = CalibratedClassifierCV(words, cv=2).fit(texts, labels)
    np.testing.assert_allclose(calibrated.predict_proba(texts).sum(axis=1), 1)


def test_works_with_scikit_learns_tools(words, reviews):
    texts, labels = reviews
    pipeline = Pipeline([
        ("lower", FunctionTransformer(lambda x: [t.lower() for t in x])),
        ("clf", words),
    ])
    grid = {"clf__method_params__C": [0.1, 1.0], "clf__method_params__max_ngram": [1, 2]}

    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(texts, labels)

    assert len(search.cv_results_["params"]) == 4
    assert cross_val_score(words, texts, labels, cv=2).tolist() == [1.0, 1.0]
    assert repr(words) == "SentimentClassifier(method='tfidf_svm')"


def test_methods_on_a_model(tiny_texts, reviews):
    texts, labels = reviews
    model = textsent.SentimentClassifier(tiny_texts["distilbert"])

    model.fit(texts, labels, sample_weight=np.ones(16))
    plain = clone(model).fit(texts, labels)

    np.testing.assert_array_equal(model.predict_scores(texts), plain.predict_scores(texts))
    np.testing.assert_allclose(model.predict_proba(texts).sum(axis=1), 1)
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_scores(texts), model.predict_scores(texts))
    assert restored.classifier_.reader.encoder is model.classifier_.reader.encoder
    weights = np.tile([1.0, 3.0], 8)
    for method in ("logreg", "svm"):
        weighted = clone(model).set_params(method=method).fit(texts, labels, sample_weight=weights)
        equal = clone(weighted).fit(texts, labels)
        assert not np.array_equal(weighted.predict_scores(texts), equal.predict_scores(texts))
    with pytest.raises(ValueError, match=r"text/lora cannot weigh .* method='logreg'"):
        clone(model).set_params(method="lora").fit(texts, labels, sample_weight=weights)


def test_weights_are_those_of_scikit_learn(words, reviews):
    texts, labels = reviews
    weights = np.linspace(0.1, 2, 16)
    from sklearn.feature_extraction.text import TfidfVectorizer

    words.set_params(method_params={"max_ngram": 1}).fit(texts, labels, sample_weight=weights)

    vectorizer = TfidfVectorizer()
    theirs = LinearSVC(max_iter=10_000, random_state=0)
    theirs.fit(vectorizer.fit_transform(texts), labels, sample_weight=weights)
    np.testing.assert_allclose(
        words.decision_function(texts),
        2 * theirs.decision_function(vectorizer.transform(texts)),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ("a text", ["a"], "expected several texts, got one str"),
        (["a", 5], ["a", "b"], "text 1: expected a str, got int"),
        (["a", None], ["a", "b"], "text 1: expected a str, got NoneType"),
        ([], [], "found no texts"),
        (["aa", "bb"], ["a"], r"inconsistent numbers of samples: \[2, 1\]"),
        (["aa", "bb"], ["a", "a"], "at least two classes are required"),
        (["aa", "bb"], None, "expected one label per text, got y=None"),
        (
            pd.DataFrame({"text": ["a"], "label": ["b"]}),
            ["b"],
            r"got a DataFrame of shape \(1, 2\)",
        ),
        (["a", "b"], [1.0, float("inf")], "contains infinity"),
    ],
)
def test_wrong_data(words, X, y, message):
    with pytest.raises(ValueError, match=message):
        words.fit(X, y)


def test_labels_in_a_column_are_accepted_with_scikit_learns_warning(words, reviews):
    texts, labels = reviews
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        words.fit(texts, np.array(labels)[:, None])
    assert words.fit(texts, torch.tensor([1, 0] * 8)).classes_.tolist() == [0, 1]


def test_methods_for_images_are_refused(words, reviews):
    with pytest.raises(ValueError, match="clip/coop is not for texts; use a method of the track"):
        words.set_params(method="clip/coop").fit(*reviews)
