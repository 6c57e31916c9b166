"""The training loop alone, compared with hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clipadapt.core.api.errors import DivergedError
from clipadapt.methods import _training
from clipadapt.methods._training import Objective, TrainingConfig
from tests.unit.methods.conftest import Seen, context, method

# Each step increases the parameter by one, so after k steps it is k.
PLAIN = {
    "lr": 1.0,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "batch_size": 2,
    "augment": "none",
}
HALF = math.sqrt(0.5)


def counter() -> torch.Tensor:
    return torch.zeros(1, requires_grad=True)


def objective_of(p: torch.Tensor, n: int = 4, **more) -> Objective:
    return Objective("toy", {"p": p}, lambda rows, view: -p.sum(), n, **more)


@pytest.mark.parametrize(
    ("settings", "epochs", "steps", "expected"),
    [
        # One warm-up epoch, then a cosine over all four epochs, which starts at the maximum and ends at half of it.
        (
            {"lr": 2.0, "schedule": "dassl", "warmup_epochs": 1, "warmup_lr": 0.5},
            4,
            8,
            [0.5, 0.5, 2.0, 2.0, 1 + HALF, 1 + HALF, 1.0, 1.0],
        ),
        ({"lr": 2.0, "schedule": "dassl", "warmup_epochs": 0}, 2, 4, [2.0, 2.0, 1.0, 1.0]),
        (
            {"lr": 1.0, "min_lr": 0.2, "schedule": "cosine", "warmup_steps": 2},
            3,
            6,
            [0.5, 1.0, 1.0, 0.6 + 0.4 * HALF, 0.6, 0.6 - 0.4 * HALF],
        ),
        # The same cosine per step, after a linear warm-up.
        (
            {"lr": 2.0, "schedule": "dassl_step", "warmup_steps": 2, "warmup_lr": 0.5},
            2,
            4,
            [0.5, 1.0, 2.0, 1 + HALF],
        ),
        ({"lr": 2.0, "schedule": "dassl_step", "warmup_steps": 0}, 1, 2, [2.0, 1.0]),
        ({"lr": 1.0, "schedule": "cosine"}, 1, 2, [1.0, 0.5]),
        ({"lr": 1.0, "schedule": "cosine", "warmup_steps": 4}, 1, 2, [0.25, 0.5]),
        (
            {"lr": 1.0, "schedule": "constant", "warmup_steps": 4},
            3,
            6,
            [0.25, 0.5, 0.75, 1.0, 1.0, 1.0],
        ),
    ],
)
def test_schedules(settings, epochs, steps, expected, tmp_path):
    config = TrainingConfig(**{**PLAIN, **settings, "epochs": epochs})
    seen, p = Seen(), counter()

    _training.train(objective_of(p, n=2 * steps // epochs), config, context(tmp_path, observe=seen))

    assert seen.values["lr"] == pytest.approx(expected)
    assert p.item() == pytest.approx(sum(expected))
    per_epoch = steps // epochs
    assert [
        _training.learning_rate(config, s // per_epoch, s, epochs, steps) for s in range(steps)
    ] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("keep", "right", "kept", "epoch"),
    [
        ("best", [2, 3, 3, 1], 4.0, 2),
        ("best", [4, 4, 4, 4], 2.0, 1),
        ("best", [0, 0, 0, 1], 8.0, 4),
        ("last", [2, 3, 3, 1], 8.0, None),
    ],
)
def test_first_of_equally_good_epochs_is_kept(keep, right, kept, epoch, tmp_path):
    config = TrainingConfig(**PLAIN, epochs=4, keep=keep)
    p, looks = counter(), iter(right)
    truth = np.array([0, 1, 0, 1])

    def val_scores() -> np.ndarray:
        scores = np.eye(2, dtype=np.float32)[1 - truth]  # all predictions are wrong
        hits = next(looks)
        scores[:hits] = scores[:hits, ::-1]
        return scores

    ctx = context(tmp_path)
    chosen = _training.train(objective_of(p, val_scores=val_scores, val=truth), config, ctx)

    assert p.item() == kept
    assert [line["val_accuracy"] for line in ctx.history] == [r / 4 for r in right]
    if epoch is None:
        assert chosen is None
    else:
        assert chosen == {"epoch": epoch, "by": "val accuracy", "value": max(right) / 4}


def test_without_val_the_last_step_is_kept(tmp_path):
    p = counter()

    chosen = _training.train(
        objective_of(p), TrainingConfig(**PLAIN, epochs=3, keep="best"), context(tmp_path)
    )

    assert chosen is None
    assert p.item() == 6.0


@pytest.mark.parametrize(
    ("epochs", "steps", "n", "drop_last", "taken", "lines"),
    [
        (3, None, 5, False, 9, [3, 6, 9]),
        (3, None, 5, True, 6, [2, 4, 6]),
        (1, 5, 4, False, 5, [2, 4, 5]),  # however many epochs that is
        (0, 3, 4, False, 3, [2, 3]),
        (9, 4, 4, False, 4, [2, 4]),
        (0, None, 4, False, 0, []),
        (2, None, 1, True, 2, [1, 2]),  # never the only batch
    ],
)
def test_epochs_or_steps(epochs, steps, n, drop_last, taken, lines, tmp_path):
    p, seen = counter(), Seen()
    ctx = context(tmp_path, observe=seen)
    config = TrainingConfig(**PLAIN, epochs=epochs, drop_last=drop_last)

    _training.train(objective_of(p, n=n), config, ctx, steps=steps)

    assert p.item() == taken == len(seen.values.get("lr", []))
    assert [line["step"] for line in ctx.history] == lines
    assert [line["epoch"] for line in ctx.history] == list(range(1, len(lines) + 1))


def test_history_contains_the_mean_loss_of_the_epoch(tmp_path):
    ctx = context(tmp_path)
    scores = np.log(np.array([[0.75, 0.25], [0.75, 0.25]], dtype=np.float32))
    val = {"val_scores": lambda: scores, "val": np.array([0, 1])}

    _training.train(objective_of(counter(), **val), TrainingConfig(**PLAIN, epochs=2), ctx)

    # The loss is minus the parameter before the step: 0, -1 and -2, -3.
    assert [line["train_loss"] for line in ctx.history] == [-0.5, -2.5]
    assert [line["learning_rate"] for line in ctx.history] == [1.0, 1.0]
    for line in ctx.history:
        assert line["val_accuracy"] == 0.5
        assert line["val_loss"] == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_val_is_evaluated_twenty_times_unless_it_selects_the_epoch(tmp_path):
    looks = []
    val = {
        "val_scores": lambda: looks.append(1) or np.eye(2, dtype=np.float32),
        "val": np.array([0, 1]),
    }

    for epochs, keep, expected in ((61, "last", 21), (61, "best", 61), (7, "last", 7)):
        looks.clear()
        config = TrainingConfig(**PLAIN, epochs=epochs, keep=keep)
        ctx = context(tmp_path / f"{epochs}{keep}")
        _training.train(objective_of(counter(), **val), config, ctx)
        assert len(looks) == expected
        assert "val_accuracy" in ctx.history[-1]


@pytest.mark.parametrize(
    ("norm", "expected"), [(None, (-3.0, -4.0)), (10.0, (-3.0, -4.0)), (2.5, (-1.5, -2.0))]
)
def test_gradients_are_clipped_by_their_total_norm(norm, expected, tmp_path):
    a, b = counter(), counter()
    fit = Objective("toy", {"a": a, "b": b}, lambda rows, view: (3 * a + 4 * b).sum(), 2)

    _training.train(fit, TrainingConfig(**PLAIN, epochs=1, clip_norm=norm), context(tmp_path))

    assert (a.item(), b.item()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # lr 0.5, gradient 1 and 1, start 2. SGD: 2 - .5, then velocity .5 + 1.
        ({"optimizer": "sgd", "momentum": 0.5}, 2 - 0.5 - 0.75),
        # SGD adds the decay to the gradient: 1 + .1 * 2, then 1 + .1 * 1.4.
        ({"optimizer": "sgd", "weight_decay": 0.1}, 2 - 0.5 * 1.2 - 0.5 * 1.14),
        # Adam's step is lr for any gradient; the decay is part of the gradient and has no effect here.
        ({"optimizer": "adam", "weight_decay": 0.1}, 1.0),
        # AdamW additionally shrinks the parameter by lr * decay in each step.
        ({"optimizer": "adamw", "weight_decay": 0.1}, (2 * 0.95 - 0.5) * 0.95 - 0.5),
        # The denominator is sqrt(1) + eps.
        ({"optimizer": "adamw", "eps": 1.0}, 2 - 0.25 - 0.25),
    ],
)
def test_optimizers(settings, expected, tmp_path):
    p = torch.full((1,), 2.0, requires_grad=True)
    config = TrainingConfig(**{**PLAIN, "lr": 0.5, **settings}, epochs=1)

    _training.train(
        Objective("toy", {"p": p}, lambda rows, view: p.sum(), 4), config, context(tmp_path)
    )

    assert p.item() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_stops_the_fit(bad, tmp_path):
    p, calls = counter(), []

    def loss(rows, view):
        calls.append(1)
        return -p.sum() * (bad if len(calls) == 3 else 1.0)

    fit = Objective("toy", {"p": p}, loss, 4)
    with pytest.raises(DivergedError, match="toy: the loss is not finite at step 3 of 8") as error:
        _training.train(fit, TrainingConfig(**PLAIN, epochs=4), context(tmp_path))

    assert "method.lr" in error.value.hint
    assert p.item() == 2.0  # the step was not taken


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (4, "the loss is not finite at step 2 of 27"),
        (12, "the scores on val are not finite at step 1 of 9"),
    ],
)
def test_divergence_of_a_method_is_reported(size, message, models, small, tmp_path):
    """At the next step, or at the evaluation on val before it."""
    settings = {"lr": 1e30, "schedule": "constant", "epochs": 9, "augment": "none", "n_ctx": 2}

    with pytest.raises(DivergedError, match=f"coop: {message}"):
        method("coop", batch_size=size, **settings).fit(models("clip"), small[0], context(tmp_path))


def test_each_epoch_has_its_own_view_unless_augmentation_is_off(tmp_path):
    seen = {}
    for augment, seed in (("none", 1), ("crop_flip", 1), ("crop_flip", 2)):
        p, views = counter(), []

        def loss(rows, view, p=p, views=views):
            views.append(view)
            return -p.sum()

        config = TrainingConfig(**PLAIN | {"augment": augment, "batch_size": 4}, epochs=3)
        ctx = context(tmp_path / f"{augment}{seed}", seed=seed)
        _training.train(Objective("toy", {"p": p}, loss, 4), config, ctx)
        seen[augment, seed] = views
    assert seen["none", 1] == [0, 0, 0]
    assert len({*seen["crop_flip", 1], *seen["crop_flip", 2]}) == 6  # each seed has its own crops
    assert 0 not in seen["crop_flip", 1]


def test_random_numbers_depend_on_the_seed_and_not_on_the_global_generator(tmp_path):
    def drawn(seed: int, name: str) -> list[float]:
        values, p = [], counter()

        def loss(rows, view):
            values.append(torch.rand(()).item())
            return -p.sum()

        config = TrainingConfig(**PLAIN, epochs=1)
        _training.train(Objective("toy", {"p": p}, loss, 4), config, context(tmp_path / name, seed))
        return values

    before = torch.get_rng_state()
    first, again, other = drawn(1, "a"), drawn(1, "b"), drawn(2, "c")

    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_follow_the_order_of_the_context(tmp_path):
    p, rows_seen = counter(), []

    def loss(rows, view):
        rows_seen.append(rows.tolist())
        return -p.sum()

    ctx = context(tmp_path)
    _training.train(Objective("toy", {"p": p}, loss, 5), TrainingConfig(**PLAIN, epochs=2), ctx)

    expected = [b.tolist() for e in (0, 1) for b in ctx.batches("toy", 5, 2, e)]
    assert rows_seen == expected
    assert sorted(row for rows in rows_seen[:3] for row in rows) == [0, 1, 2, 3, 4]
    assert rows_seen[:3] != rows_seen[3:]


def scored(p: torch.Tensor, right_from: float, until: float = math.inf):
    """Return val scores of one example that are right while the parameter is in an interval."""

    def scores() -> np.ndarray:
        right = right_from <= p.item() <= until
        return np.array([[float(right), 0.5]], dtype=np.float32)

    return {"val_scores": scores, "val": np.array([0])}


def test_evaluations_every_few_steps_are_logged_and_selected(tmp_path):
    p = counter()
    ctx = context(tmp_path)
    config = TrainingConfig(**PLAIN, epochs=4, keep="best")

    found = _training.train(objective_of(p, every=3, **scored(p, 4)), config, ctx)

    evaluated = [(h["step"], h["val_accuracy"]) for h in ctx.history if "val_accuracy" in h]
    assert evaluated == [(1, 0.0), (4, 1.0), (7, 1.0)]
    assert found == {"epoch": 2, "by": "val accuracy (step=4)", "value": 1.0}
    assert p.item() == 4


@pytest.mark.parametrize(("prefer_last", "epoch"), [(False, 2), (True, 3)])
def test_ties_on_val(prefer_last, epoch, tmp_path):
    p = counter()
    config = TrainingConfig(**PLAIN, epochs=4, keep="best")
    objective = objective_of(p, prefer_last=prefer_last, **scored(p, 4, 6))

    found = _training.train(objective, config, context(tmp_path))

    assert found["epoch"] == epoch
    assert p.item() == 2 * epoch


def test_an_epoch_may_have_fewer_batches_than_the_data(tmp_path):
    p = counter()

    _training.train(
        objective_of(p, n=10, max_batches=2), TrainingConfig(**PLAIN, epochs=3), context(tmp_path)
    )

    assert p.item() == 6


def test_state_changes_after_epochs_and_belongs_to_the_best_epoch(tmp_path):
    p, total = counter(), torch.zeros(1)
    objective = objective_of(
        p,
        state={"total": total},
        after_epoch=lambda epoch: total.add_(p.detach() * (epoch + 1)),
        **scored(p, 4),
    )

    _training.train(objective, TrainingConfig(**PLAIN, epochs=3, keep="best"), context(tmp_path))

    assert total.item() == 2 * 1 + 4 * 2


@pytest.mark.parametrize(("name", "after"), [("lr", 1), ("lr", 2), ("lr", 5), ("epoch", 1)])
def test_state_is_restored_from_a_checkpoint(name, after, tmp_path, every_checkpoint):
    config = TrainingConfig(**PLAIN, epochs=3)

    def run(**observer) -> float:
        p, total, steps = counter(), torch.zeros(1), torch.zeros(1)

        def loss(rows, view):
            steps.add_(1)
            return -steps.item() * p.sum()

        own = Objective(
            "toy",
            {"p": p},
            loss,
            4,
            state={"total": total, "steps": steps},
            after_epoch=lambda epoch: total.add_(p.detach() * (epoch + 1)),
        )
        _training.train(own, config, context(tmp_path, **observer))
        return total.item()

    with pytest.raises(KeyboardInterrupt):
        run(observe=Seen(name, after))

    assert run() == (1 + 2) * 1 + (1 + 2 + 3 + 4) * 2 + 21 * 3


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *((name, key) for name in ("coop", "ape_t") for key in ("lr", "warmup_lr", "min_lr", "weight_decay", "eps")),
        *(("tpt", key) for key in ("lr", "weight_decay", "eps")),
    ],
)  # fmt: skip
def test_numbers_beyond_float32_are_refused(name, key):
    with pytest.raises(ValidationError, match="must be at most 3.4e.38, the largest number in float32"):  # fmt: skip
        method(name, **{key: 1e300})


@pytest.mark.parametrize(
    ("name", "key"),
    [("cross_modal", "lr_grid"), ("cross_modal", "weight_decay_grid"), ("prolip", "lr_grid")],
)
def test_grids_beyond_float32_are_refused(name, key):
    with pytest.raises(ValidationError, match="the largest number in float32"):
        method(name, **{key: (1e300,)})
