from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.gains import gains
from clipadapt.core.report.summary import build_summary
from tests.unit.core.report.test_summary import N, right, save


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def sentences(store):
    return gains(build_summary(store), "clip/zero_shot")


def test_a_significant_gain_is_told_with_the_interval_and_the_number_of_methods(store):
    save(store, "clip/zero_shot", right(45))
    for seed in range(1, 6):
        save(store, "clip/coop", right(20 + seed % 2), seed=seed, data__shots=4)
        save(store, "clip/lora", right(6 + seed % 2), seed=seed, data__shots=4)
    (sentence,) = sentences(store)
    assert sentence.startswith(
        "reviews: 4 examples per class raised accuracy from 25 % to 89 % ["
    ), sentence
    assert sentence.endswith("] with clip/lora, the best of 2 methods.")


def test_a_significant_loss_is_called_a_loss(store):
    save(store, "clip/zero_shot", right(6))
    save(store, "clip/coop", right(45), data__shots=1)
    (sentence,) = sentences(store)
    assert "1 example per class lowered accuracy from 90 % to 25 % [" in sentence
    assert sentence.endswith("with clip/coop.")


def test_a_difference_that_is_not_significant_is_neither(store):
    save(store, "clip/zero_shot", right(12))
    save(store, "clip/coop", right(10, start=5))
    (sentence,) = sentences(store)
    assert sentence.startswith("reviews: all training examples took accuracy from 80 % to 83 % [")
    assert sentence.endswith("; the difference is not significant (p = 0.73 after Holm).")


def test_runs_on_other_examples_are_not_compared(store):
    other = tuple(f"x{i}" for i in range(N))
    save(store, "clip/zero_shot", right(12))
    save(store, "clip/coop", right(6), ids=other)
    (sentence,) = sentences(store)
    assert sentence.endswith("; the difference is not significant (not compared).")


def test_without_zero_shot_or_without_a_fitted_method_there_is_no_sentence(store):
    save(store, "clip/coop", right(6))
    assert sentences(store) == ()


def test_only_zero_shot_gives_no_sentence(store):
    save(store, "clip/zero_shot", np.ones(N, dtype=bool))
    assert sentences(store) == ()


def test_a_method_without_training_that_is_not_zero_shot_is_not_the_start(store):
    save(store, "clip/zero_shot", right(45))
    save(store, "clip/tpt", right(40), method__uses_train=False)
    save(store, "clip/coop", right(6))
    (sentence,) = sentences(store)
    assert "raised accuracy from 25 % to 90 %" in sentence
    assert sentence.endswith("with clip/coop.")
