"""Prediction sets against TorchCP and MAPIE: scores, thresholds, sets, coverage and size."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from clipadapt.core.scoring.prediction_sets import (
    CalibrationExamples,
    SetScore,
    nonconformity,
    prediction_sets,
    set_figures,
)
from tests.reference.parity import fixture

DATA = fixture("conformal")
GIVEN = DATA.spec["hyperparameters"]
P, LABELS = DATA.inputs["test_probs64"], DATA.inputs["test_labels"]
CALIBRATION = CalibrationExamples.of(DATA.inputs["cal_probs64"], DATA.inputs["cal_labels"])
SCORES = {
    "lac": SetScore("lac"),
    "aps": SetScore("aps"),
    "raps": SetScore("raps", penalty=GIVEN["raps_penalty"], k_reg=GIVEN["raps_kreg"]),
}
U = DATA.inputs["mapie.aps.u_cal64"]
# MAPIE's three ways to treat the last label are three values of u for the inputs.
LAST = {
    "aps_include_last": np.ones(len(P)),
    "aps_exclude_last": None,
    "aps_randomized": DATA.inputs["mapie.aps.u_test64"],
}
CASES = sorted({n.rpartition(".")[0] for n in DATA.expected if ".alpha" in n})


def sets_of(variant: str, coverage: float) -> tuple[Any, Any]:
    """Return threshold and sets of one variant of the fixture."""
    library, name = variant.split(".")
    if library == "mapie" and name in LAST:
        threshold = CALIBRATION.threshold(SCORES["aps"], coverage, U)
        at_least_one = name == "aps_exclude_last"
        found = prediction_sets(P, threshold, SCORES["aps"], LAST[name], at_least_one=at_least_one)
        return threshold, found
    score = SCORES[name.removeprefix("class_conditional_")]
    if name.startswith("class_conditional_"):
        per_class = CALIBRATION.class_thresholds(score, coverage, GIVEN["C"])
        return per_class, prediction_sets(P, per_class, score)
    threshold = CALIBRATION.threshold(score, coverage)
    return threshold, prediction_sets(P, threshold, score)


@pytest.mark.parametrize("case", CASES)
def test_threshold_sets_coverage_and_size(case: str) -> None:
    variant, _, alpha = case.rpartition(".alpha")

    threshold, found = sets_of(variant, 1 - float(alpha))

    if f"{case}.qhat64" in DATA.expected:
        DATA.assert_close(f"{case}.qhat64", np.atleast_1d(threshold))
    else:  # left out of the fixture because a class has too few examples
        assert np.isinf(threshold).any()
    DATA.assert_close(f"{case}.sets", found.astype(np.int64))
    DATA.assert_close(f"{case}.coverage_size64", set_figures(found, LABELS)[:2])


@pytest.mark.parametrize("name", [n for n in DATA.expected if n.endswith("_scores64")])
def test_scores(name: str) -> None:
    library, kind, which = re.fullmatch(r"(\w+)\.(\w+)\.(\w+)", name).groups()
    if which == "test_scores64":
        DATA.assert_close(name, nonconformity(P, SCORES[kind]))
    else:
        DATA.assert_close(name, CALIBRATION.scores(SCORES[kind], U if library == "mapie" else None))


def test_the_random_numbers_are_mapies() -> None:
    rng = np.random.RandomState(GIVEN["mapie_random_state"])

    np.testing.assert_array_equal(rng.uniform(size=GIVEN["n_cal"]), U)


def test_every_expected_number_was_compared() -> None:
    DATA.assert_complete()
