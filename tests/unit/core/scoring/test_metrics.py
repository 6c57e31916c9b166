from __future__ import annotations

import tracemalloc
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import logsumexp
from scipy.stats import ttest_1samp
from sklearn import metrics as sk

from clipadapt.core.api.errors import RecordError
from clipadapt.core.scoring import metrics
from clipadapt.core.scoring import scores as scores_module
from clipadapt.core.scoring.calibration import (
    ECE_BINS,
    Binning,
    calibration_error,
    fit_temperature,
)
from clipadapt.core.scoring.scores import (
    LabelledScores,
    class_counts,
    class_figures,
    nll,
    softmax,
    topk_accuracy,
)
from clipadapt.core.scoring.statistics import wilson

AVERAGES = [
    "mean_per_class_recall", "macro_f1", "weighted_f1", "weighted_precision", "weighted_recall",
]  # fmt: skip
Case = tuple[NDArray[np.float32], NDArray[np.int64]]


@pytest.fixture(params=[(400, 10), (60, 2), (50, 5), (300, 37)], ids=lambda p: f"{p[0]}x{p[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    n, n_classes = request.param
    rng = np.random.default_rng(n)
    labels = rng.integers(n_classes, size=n)
    scores = rng.normal(size=(n, n_classes)).astype(np.float32) * 2
    scores[np.arange(n), labels] += 2
    return scores, labels


def reference_softmax(scores: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    from scipy.special import softmax

    return np.asarray(softmax(scores.astype(np.float64) / temperature, axis=1))


def test_values_agree_with_scikit_learn(case: Case) -> None:
    scores, labels = case
    classes = np.arange(scores.shape[1])
    predicted, p = scores.argmax(axis=1), reference_softmax(scores)
    average = {"zero_division": 0.0}

    got = {name: metric.value for name, metric in metrics.compute_metrics(scores, labels).items()}

    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "mean_per_class_recall": sk.balanced_accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro", **average),
        "weighted_f1": sk.f1_score(labels, predicted, average="weighted", **average),
        "weighted_precision": sk.precision_score(labels, predicted, average="weighted", **average),
        "weighted_recall": sk.recall_score(labels, predicted, average="weighted", **average),
        "nll": sk.log_loss(labels, p, labels=classes),
        "brier": np.square(p - np.eye(len(classes))[labels]).sum(axis=1).mean(),
    }
    if len(classes) == 5:
        expected["top5_accuracy"] = 1.0
    if len(classes) > 5:
        expected["top5_accuracy"] = sk.top_k_accuracy_score(labels, scores, k=5, labels=classes)
    assert got.keys() == expected.keys() | {"ece", "ece_mass", "aurc"}
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-12), name


def error(
    probabilities: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    bins: int = ECE_BINS,
    binning: Binning = "width",
) -> float:
    """Calibration error of rows of probabilities."""
    correct = probabilities.argmax(axis=1) == labels
    return calibration_error(probabilities.max(axis=1), correct, bins=bins, binning=binning)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_agrees_with_torchmetrics(case: Case, bins: int) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    scores, labels = case
    expected = multiclass_calibration_error(
        torch.from_numpy(scores).double().softmax(1),
        torch.from_numpy(labels),
        num_classes=scores.shape[1],
        n_bins=bins,
        norm="l1",
    )

    got = error(reference_softmax(scores), labels, bins=bins)

    assert got == pytest.approx(float(expected), abs=1e-6)
    if bins == ECE_BINS:
        assert metrics.compute_metrics(scores, labels)["ece"].value == pytest.approx(got, abs=1e-9)


def test_confidence_on_an_edge_belongs_to_the_upper_bin_and_one_to_the_last() -> None:
    p = np.array([[0.7, 0.3], [0.75, 0.25], [1.0, 0.0], [0.95, 0.05]], dtype=np.float32)
    labels = np.array([0, 1, 0, 1])

    # Bins [.7, .8) with accuracy 1/2, confidence .725, and [.9, 1] with 1/2 and .975.
    assert error(p, labels, bins=10) == pytest.approx((0.225 + 0.475) / 2, abs=1e-6)


def test_equal_mass_bins_have_equal_counts_in_any_order(case: Case) -> None:
    scores, labels = case
    p = softmax(scores.astype(np.float64))
    by_confidence = np.argsort(p.max(axis=1))
    gaps = [
        abs(float((p[rows].argmax(axis=1) == labels[rows]).mean() - p[rows].max(axis=1).mean()))
        for rows in np.split(by_confidence, 10)
    ]

    got = error(p, labels, bins=10, binning="mass")
    backwards = error(p[::-1], labels[::-1], bins=10, binning="mass")

    assert got == pytest.approx(np.mean(gaps), abs=1e-12)
    assert backwards == pytest.approx(got, abs=1e-12)


def test_equal_mass_bins_work_with_equal_confidences() -> None:
    p = np.full((8, 2), 0.5)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])

    assert error(p, labels, binning="mass") == pytest.approx(0.125)


def test_intervals_directions_and_units() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(80, 6)).astype(np.float32), rng.integers(6, size=80)

    record = metrics.compute_metrics(scores, labels)

    accuracy, own = record["accuracy"], -np.log(softmax(scores)[np.arange(80), labels])
    bounds = wilson(round(accuracy.value * 80), 80)
    assert (accuracy.low, accuracy.high) == (bounds.low, bounds.high)
    low, high = ttest_1samp(own, 0.0).confidence_interval()
    assert (record["nll"].low, record["nll"].high) == pytest.approx((low, high), abs=1e-6)
    assert record["brier"].low is not None
    assert all(record[name].low is None for name in ("ece", "ece_mass", "aurc"))
    for name in AVERAGES:
        low, high = record[name].low, record[name].high
        assert low is not None
        assert high is not None
        assert 0 <= low < record[name].value < high <= 1, name
    assert {m.n for m in record.values()} == {80}
    lower_is_better = {name for name, m in record.items() if not m.higher_is_better}
    assert lower_is_better == {"nll", "brier", "ece", "ece_mass", "aurc"}
    units = {record["nll"].unit, record["brier"].unit, record["ece"].unit, accuracy.unit}
    assert units == {"nats", "squared error", "fraction"}


def test_one_example_has_no_interval_of_the_mean_and_no_nan() -> None:
    record = metrics.compute_metrics(np.array([[1.0, 2.0]], dtype=np.float32), np.array([1]))

    assert record["accuracy"].value == 1.0
    assert record["accuracy"].low == pytest.approx(0.2065, abs=1e-4)
    assert (record["nll"].low, record["nll"].high) == (None, None)
    assert "top5_accuracy" not in record


def test_temperature_adds_calibrated_values_and_margins_have_no_others(case: Case) -> None:
    scores, labels = case
    names = {"nll", "brier", "ece", "ece_mass", "aurc"}
    calibrated = {f"{name}_calibrated" for name in names}

    logit = metrics.compute_metrics(scores, labels, temperature=2.5)
    margin = metrics.compute_metrics(scores, labels, score_kind="margin")
    margin_calibrated = metrics.compute_metrics(
        scores, labels, score_kind="margin", temperature=2.5
    )

    assert logit.keys() >= names | calibrated
    assert not margin.keys() & (names | calibrated)
    assert margin_calibrated.keys() & (names | calibrated) == calibrated
    p = reference_softmax(scores, 2.5)
    expected = sk.log_loss(labels, p, labels=np.arange(scores.shape[1]))
    assert logit["nll_calibrated"].value == pytest.approx(expected)
    assert logit["nll_calibrated"] == margin_calibrated["nll_calibrated"]
    assert logit["ece_calibrated"].value == pytest.approx(error(p, labels))
    assert logit["nll"] == metrics.compute_metrics(scores, labels)["nll"]


def test_ties_go_to_the_first_index_in_every_k() -> None:
    scores = np.zeros((6, 6), dtype=np.float32)
    labels = np.arange(6)

    for k in (1, 2, 5, 9):
        hits = [topk_accuracy(scores[:1], labels[c : c + 1], k) == 1 for c in range(6)]
        assert hits == [c < k for c in range(6)]
    assert metrics.compute_metrics(scores, labels)["accuracy"].value == pytest.approx(1 / 6)
    assert (LabelledScores(labels, scores).predicted == 0).all()


def test_a_class_that_is_only_predicted_counts_for_f1_and_not_for_recall() -> None:
    scores = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    labels = np.array([0, 0, 1, 1])

    recall, precision, f1 = class_figures(*class_counts(scores.argmax(axis=1), labels, 4))

    assert recall.tolist() == [1.0, 0.5, 0.0, 0.0]
    assert precision.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert f1 == pytest.approx([1, 2 / 3, 0, 0])
    assert metrics.measure("mean_per_class_recall", scores, labels).value == 0.75
    assert metrics.compute_metrics(scores, labels)["macro_f1"].value == pytest.approx(5 / 9)


@pytest.mark.parametrize("seed", range(20))
def test_averages_over_classes_cover_those_present(seed: int) -> None:
    """As scikit-learn and torchmetrics do by default, even if classes have no example or are never predicted."""
    from torchmetrics.functional.classification import multiclass_f1_score

    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(3, 12))
    of_labels = rng.choice(n_classes, int(rng.integers(1, n_classes)), replace=False)
    labels = rng.choice(of_labels, int(rng.integers(1, 60)))
    scores = rng.normal(size=(len(labels), n_classes)).astype(np.float32)
    scores[np.arange(len(labels)), labels] += 1.0
    scores[:, rng.integers(n_classes)] -= 100  # never predicted
    predicted = scores.argmax(axis=1)

    got = {name: m.value for name, m in metrics.compute_metrics(scores, labels).items()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # predicted classes without examples
        recall = sk.balanced_accuracy_score(labels, predicted)
        f1 = sk.f1_score(labels, predicted, average="macro")
    assert got["mean_per_class_recall"] == pytest.approx(recall, abs=1e-12)
    assert got["macro_f1"] == pytest.approx(f1, abs=1e-12)
    for average in ("macro", "weighted"):
        theirs = multiclass_f1_score(
            torch.tensor(predicted), torch.tensor(labels), n_classes, average=average
        )
        assert got[f"{average}_f1"] == pytest.approx(float(theirs), abs=1e-6)
    for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score)):
        value = score(labels, predicted, average="weighted", zero_division=0.0)
        assert got[f"weighted_{name}"] == pytest.approx(value, abs=1e-12)


def test_perfect_predictions_on_three_of_five_classes_have_a_macro_f1_of_one() -> None:
    labels = np.array([0, 2, 4, 0, 2, 4])

    got = metrics.compute_metrics(np.eye(5, dtype=np.float32)[labels], labels)

    for name in ("macro_f1", "mean_per_class_recall", "weighted_f1", "weighted_precision"):
        assert got[name].value == 1.0
        assert got[name].high == 1.0
        assert got[name].low is not None
        assert 0.2 < got[name].low < 0.9  # six examples do not prove perfection


@pytest.mark.parametrize("name", AVERAGES)
def test_the_interval_of_an_average_over_classes_is_that_of_a_bootstrap(name: str) -> None:
    rng = np.random.default_rng(3)
    labels = rng.choice(4, 400, p=[0.4, 0.3, 0.2, 0.1])
    scores = rng.normal(size=(400, 4)).astype(np.float32)
    scores[np.arange(400), labels] += 1.5

    got = metrics.compute_metrics(scores, labels)[name]

    draws = []
    for _ in range(800):
        drawn = rng.integers(400, size=400)
        values = metrics.example_values(name, LabelledScores(labels[drawn], scores[drawn]))
        draws.append(values.values.mean())
    assert (got.low, got.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.012)


def test_extreme_scores_stay_finite() -> None:
    scores = np.array([[3e38, -3e38, 0], [1e4, 0, 0], [0, 1e4, 0]], dtype=np.float32)
    labels = np.array([0, 1, 1])

    record = metrics.compute_metrics(scores, labels, temperature=1e-4)

    assert nll(scores, labels) == pytest.approx(1e4 / 3)
    assert record["nll_calibrated"].value == pytest.approx(1e8 / 3)
    assert record["brier"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax_keeps_the_dtype(dtype: type[np.floating[Any]]) -> None:
    scores = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]], dtype=dtype)

    p = softmax(scores, 2.0)

    assert p.dtype == dtype
    np.testing.assert_allclose(
        p, reference_softmax(scores, 2.0), rtol=2 * float(np.finfo(dtype).eps)
    )


@pytest.mark.parametrize("true", [0.02, 0.4, 1.0, 5.0, 80.0])
def test_fit_temperature_finds_the_scale_of_the_logits(true: float) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4000, 6)) * 2
    noise = rng.gumbel(size=logits.shape)
    labels = (logits + noise).argmax(axis=1)  # a draw from softmax(logits)
    scores = (logits * true).astype(np.float32)

    temperature = fit_temperature(scores, labels)

    assert temperature == pytest.approx(true, rel=0.08)
    best = nll(scores, labels, temperature)
    for factor in (0.99, 1.01):
        assert best < nll(scores, labels, temperature * factor)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_fit_temperature_of_separated_classes_is_confident_but_not_certain(scale: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 4)
    scores = (np.eye(10)[labels] * 5 + rng.normal(size=(40, 10)) * 0.3).astype(np.float32) * scale

    temperature = fit_temperature(scores, labels)

    confidence = softmax(scores, temperature).max(axis=1)
    assert 0.9 < confidence.mean() < 0.99
    # The fit follows the scale of the scores.
    assert temperature / scale == pytest.approx(
        fit_temperature(scores / np.float32(scale), labels), rel=1e-3
    )


def test_fit_temperature_of_degenerate_scores() -> None:
    labels = np.array([0, 1, 2])
    assert fit_temperature(np.ones((3, 3), dtype=np.float32), labels) == 1.0
    # Worse than chance, or with a class far below all others: the best temperature is at the end of the search.
    wrong = np.roll(np.eye(3, dtype=np.float32), 1, axis=1)
    unseen = np.array([[3, 0, -1e4], [0, 3, -1e4], [3, 0, -1e4]], dtype=np.float32)
    assert fit_temperature(wrong, labels) is None
    assert fit_temperature(unseen, labels) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_rejected(bad: float) -> None:
    scores = np.zeros((5, 3), dtype=np.float32)
    scores[2, 1] = scores[4, 0] = bad

    with pytest.raises(
        RecordError, match=r"scores of 2 of 5 examples contain nan or infinity .*row 2"
    ):
        metrics.compute_metrics(scores, np.zeros(5, dtype=np.int64))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, dtype=int), r"scores have shape \(0, 3\)"),
        (np.zeros(3), np.zeros(3, dtype=int), r"scores have shape \(3,\)"),
        (np.zeros((4, 3)), np.zeros(5, dtype=int), r"expected integers of shape \(4,\)"),
        (np.zeros((4, 3)), np.zeros(4), "labels are float64"),
        (np.zeros((2, 3)), np.array([0, 3]), "labels range from 0 to 3; .* allow 0 to 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "labels range from -1 to 0"),
    ],
)
def test_scores_and_labels_must_match(
    scores: NDArray[Any], labels: NDArray[Any], message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        metrics.compute_metrics(scores, labels)


def test_wrong_arguments_are_rejected() -> None:
    scores, labels = np.array([[5.0, -2.0]]), np.array([0])

    with pytest.raises(ValueError, match="temperature must be positive"):
        nll(scores, labels, 0.0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        topk_accuracy(scores, labels, 0)
    with pytest.raises(ValueError, match="bins must be at least 1"):
        error(softmax(scores), labels, bins=0)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    scores, labels = case
    whole = metrics.compute_metrics(scores, labels, temperature=2.0)
    whole_softmax = softmax(scores)

    monkeypatch.setattr(scores_module, "BLOCK", 3 * scores.shape[1] + 1)

    assert metrics.compute_metrics(scores, labels, temperature=2.0) == whole
    np.testing.assert_array_equal(softmax(scores), whole_softmax)


def test_memory_stays_below_the_scores_themselves() -> None:
    scores = np.random.default_rng(0).random((20_000, 1000), dtype=np.float32)  # 80 MB
    labels = np.arange(20_000) % 1000
    metrics.compute_metrics(scores[:10], labels[:10], temperature=2.0)  # imports

    tracemalloc.start()
    try:
        metrics.compute_metrics(scores, labels, temperature=2.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 40e6


def test_a_metric_is_one_decorated_function(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    scores, labels = case
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))

    @metrics.metric(
        "confidence in the label", unit="nats", higher_is_better=False, probabilities=True
    )
    def doubt(s: LabelledScores) -> metrics.ExampleValues:
        assert s.losses is not None
        return metrics.ExampleValues(2 * s.losses)

    record = metrics.compute_metrics(scores, labels, temperature=2.0)
    margins = metrics.compute_metrics(scores, labels, score_kind="margin")

    assert record["doubt"].value == pytest.approx(2 * record["nll"].value)
    assert record["doubt"].low == pytest.approx(2 * record["nll"].low)
    assert (record["doubt"].unit, record["doubt"].higher_is_better) == ("nats", False)
    assert "doubt_calibrated" in record
    assert "doubt" not in margins
    assert metrics.find_metric("doubt_calibrated").title == "confidence in the label"


def test_the_short_form_gives_what_its_scores_allow(case: Case) -> None:
    scores, labels = case
    k = min(5, scores.shape[1])
    classes = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)
    total = logsumexp(scores.astype(np.float64), axis=1).astype(np.float32)
    short = LabelledScores(
        labels, np.take_along_axis(scores, classes, 1), 1.0, classes, scores[np.arange(len(labels)), labels], total,
        set_threshold=0.8,
    )  # fmt: skip
    whole = LabelledScores(labels, scores, set_threshold=0.8)

    for name, known in metrics.METRICS.items():
        expected, got = known.compute(whole), known.compute(short)
        if name == "brier" or known.sets:
            assert got is None
            assert expected is not None
        elif isinstance(expected, float):
            assert got == pytest.approx(expected, abs=1e-4), name
        else:
            np.testing.assert_allclose(got.values, expected.values, atol=1e-5, err_msg=name)
    assert replace(short, temperature=2.0).losses is None
    assert replace(short, temperature=2.0).confidence is None


def test_metric_values_are_closed_and_never_nan() -> None:
    with pytest.raises(ValidationError):
        metrics.MetricValue(
            value=float("nan"), low=None, high=None, n=1, higher_is_better=True, unit="fraction"
        )
