"""scikit-learn's own ``check_estimator`` on both estimators.

Its checks fit numeric rows. The estimators declare that they do not take those, so here each row is rendered as an
example: an image of stripes, or a text of words for the ranges of its values. Everything else is the estimator's own.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import clipadapt
import textsent

MARGINS = "that the scores are margins is known after the fit; until then there is a predict_proba"
EXPECTED = {
    "clip": {
        "check_sample_weight_equivalence_on_dense_data": "L-BFGS stops near the optimum: equal to 1e-5, not to 1e-7",
        "check_methods_subset_invariance": "float32 scores of other batches differ in the last bits: equal to 1e-5",
    },
    "text": {
        "check_sample_weight_equivalence_on_dense_data": MARGINS,
        "check_decision_proba_consistency": MARGINS,
    },
}


class Rendered:
    """Takes numeric rows and hands their rendering on."""

    def fit(self, X, y, sample_weight=None):
        return super().fit(self.render(validate_data(self, X)), y, sample_weight)

    def predict_scores(self, X):
        check_is_fitted(self, "classes_")
        return super().predict_scores(self.render(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = True, False
        return tags


class ImageRows(Rendered, clipadapt.CLIPClassifier):
    @staticmethod
    def render(X):
        grey = np.clip(128 + 40 * X, 0, 255).astype(np.uint8)
        stripes = np.repeat(grey, -(-16 // grey.shape[1]), axis=1)  # (n, height)
        return np.broadcast_to(stripes[:, :, None, None], (*stripes.shape, 16, 3)).copy()


class TextRows(Rendered, textsent.SentimentClassifier):
    @staticmethod
    def render(X):
        bins = np.floor(2 * X).astype(int) + 1000
        return [" ".join(f"f{j}b{b}" for j, b in enumerate(row)) for row in bins]


def estimators(tiny_clip):
    return {
        "clip": ImageRows(tiny_clip, method_params={"C": 100.0}),
        "text": TextRows(method="tfidf_svm", method_params={"max_ngram": 1}),
    }


@pytest.mark.slow
@pytest.mark.parametrize("track", ["clip", "text"])
def test_scikit_learns_checks(tiny_clip, track):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(
            estimators(tiny_clip)[track],
            expected_failed_checks=EXPECTED[track],
            on_fail=None,
            on_skip=None,
        )

    status = {c["check_name"]: c["status"] for c in found}
    failed = {c["check_name"]: repr(c["exception"])[:300] for c in found if c["status"] == "failed"}
    assert failed == {}
    assert {name for name, s in status.items() if s == "xfail"} == set(EXPECTED[track])
    assert sum(s == "passed" for s in status.values()) > 45


@pytest.mark.parametrize("make", [clipadapt.CLIPClassifier, textsent.SentimentClassifier])
def test_the_estimators_declare_what_they_take(make):
    tags = make().__sklearn_tags__()
    assert (tags.input_tags.two_d_array, tags.input_tags.string) == (False, True)
    with pytest.warns(SkipTestWarning, match="requires input"):
        found = check_estimator(make(), on_skip=None)
    assert {c["status"] for c in found} == {"passed"}
