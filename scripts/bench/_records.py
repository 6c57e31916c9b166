"""Generated records of a large sweep: real schema, configs, pictures, metrics and predictions, but no fit.

Each dataset is a folder of small images, so that a report can show its examples. The scores of a run are random, with
a share for the label; runs on the same examples agree on which are hard, as those of real methods do.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from _common import class_names, write_images

from clipadapt.core.api.progress import Silent
from clipadapt.core.data.classnames import classnames_sha256
from clipadapt.core.data.targets import open_target
from clipadapt.core.experiments import config
from clipadapt.core.records import schema
from clipadapt.core.records.environment import environment
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.scoring.calibration import fit_temperature
from clipadapt.core.scoring.metrics import METRICS_VERSION, compute_metrics
from clipadapt.core.scoring.prediction_sets import (
    HEADLINE,
    CalibrationExamples,
    by_class,
    measure_sets,
)
from clipadapt.core.scoring.scores import probabilities

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Split
    from clipadapt.core.data.targets import Target
    from clipadapt.core.experiments.config import Experiment

DATASETS: Final = {
    "imagenet": 100, "caltech101": 100, "oxford_pets": 37, "stanford_cars": 100, "flowers102": 100, "food101": 100,
    "fgvc_aircraft": 100, "sun397": 100, "dtd": 47, "eurosat": 10, "ucf101": 100,
}  # fmt: skip
"""The eleven datasets of CoOp with their numbers of classes, at most 100."""
SHOTS: Final = (1, 2, 4, 8, 16)
EPOCHS: Final = 40
DISTINCT: Final = 100
"""Different images of a dataset; the other files repeat them."""
VAL: Final = 200


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is generated: every kind of fit on every dataset and number of shots with every seed.

    Attributes:
        kinds: Recipes with their models.
        seeds: Seeds of each row.
        examples: Test examples of each dataset.
        datasets: Datasets with their numbers of classes.
        shots: Numbers of shots.
    """

    kinds: Sequence[tuple[str, str]]
    seeds: int
    examples: int
    datasets: dict[str, int]
    shots: Sequence[int]


class _Data:
    """One dataset: its examples, and scores that all runs on it share."""

    def __init__(self, folder: Path, name: str, sweep: Sweep) -> None:
        self.folder = folder / name
        n_classes = sweep.datasets[name]
        names = class_names(n_classes)
        for split, n in (("train", n_classes), ("val", n_classes), ("test", sweep.examples)):
            write_images(self.folder, split, n, 160, names, distinct=DISTINCT)
        self.rng = np.random.default_rng([len(name), *name.encode()])

    @cached_property
    def target(self) -> Target:
        """The opened dataset."""
        experiment = self.experiment("zero_shot", "random:ViT-B-32", 1)
        data = experiment.config.data
        return open_target(data.name, "test", data, "clip", Silent())

    @cached_property
    def test(self) -> Split[Any]:
        """The test examples."""
        return self.target.examples(None)

    @cached_property
    def common(self) -> NDArray[np.float32]:
        """What the scores of all runs have in common: how hard an example is, and which classes look alike."""
        shape = len(self.test), len(self.target.classnames)
        return (1.5 * self.rng.normal(size=shape)).astype(np.float32)

    def experiment(self, recipe: str, model: str, shots: int) -> Experiment:
        """Return the configuration of a row."""
        given = [f"data.name=folder:{self.folder}", f"model.name={model}", f"data.shots={shots}"]
        return config.load([recipe], given)

    def scores(self, strength: float, seed: int) -> NDArray[np.float32]:
        """Return the scores of a run, shape ``(n, C)``."""
        noise = np.random.default_rng([seed, round(1e4 * strength)])
        own = self.common + 0.8 * noise.normal(size=self.common.shape).astype(np.float32)
        own[np.arange(len(own)), self.test.labels] += strength
        return own


def write_records(root: Path, images: Path, sweep: Sweep, processes: int = 1) -> int:
    """Write the records of a sweep into ``root`` and its images into ``images``; return the number of records.

    Args:
        root: Folder of the records.
        images: Folder of the images.
        sweep: What is generated; the records are the same for any number of processes.
        processes: Datasets that are generated at a time.
    """
    write = partial(_write_dataset, root, images, sweep)
    if processes == 1:
        return sum(map(write, sweep.datasets))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return sum(pool.map(write, sweep.datasets))


def _write_dataset(root: Path, images: Path, sweep: Sweep, name: str) -> int:
    store, where = RunStore(root), environment(threads=1)
    data, written = _Data(images, name, sweep), 0
    for m, (recipe, model) in enumerate(sweep.kinds):
        for shots in sweep.shots:
            experiment = data.experiment(recipe, model, shots)
            strength = 3.0 + 0.35 * np.log2(shots) + 0.6 * np.sin(m + data.rng.normal() / 4)
            for seed in range(1, sweep.seeds + 1):
                _write(store, data, experiment, float(strength), seed, where)
                written += 1
    return written


def _write(
    store: RunStore,
    data: _Data,
    experiment: Experiment,
    strength: float,
    seed: int,
    where: schema.Environment,
) -> None:
    scores, labels = data.scores(strength, seed), data.test.labels
    temperature = fit_temperature(scores[:VAL], labels[:VAL]) or 1.0
    sets = _prediction_sets(scores, labels, temperature)
    headline = sets.headline
    metrics = compute_metrics(
        scores,
        labels,
        score_kind="logit",
        temperature=temperature,
        set_threshold=headline.threshold if headline else None,
    )
    part = {"method": experiment.recipe, "config": experiment.resolved(), "seed": seed}
    evaluation = _evaluation(data.target)
    record = schema.RunRecord(
        run_id=schema.make_run_id(fit=part, evaluation=evaluation.model_dump()),
        fit_id=schema.make_fit_id(fit=part),
        status="ok",
        config=experiment.resolved(),
        seed=seed,
        data=_facts(data, experiment),
        evaluation=evaluation,
        model=_model(experiment),
        method=schema.MethodFacts(
            name=experiment.method_name,
            version=1,
            recipe=experiment.recipe,
            deviations=experiment.deviations,
            uses_train=not str(experiment.recipe).startswith("zero_shot"),
        ),
        selection=schema.Selection(epoch=EPOCHS, by="last", value=None),
        calibration=schema.Calibration(temperature=temperature),
        prediction_sets=sets,
        n_trainable_params=1000 * len(str(experiment.recipe)),
        n_total_params=151_277_313,
        metrics=metrics,
        cost=_cost(strength, seed),
        per_class={"classnames": list(data.target.classnames)},
        environment=where,
        started_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=seed),
        metrics_version=METRICS_VERSION,
    )
    predictions = Predictions(data.test.inputs.ids, labels, scores)
    store.save(record, predictions, history=list(_history(strength, seed)))


def _prediction_sets(
    scores: NDArray[np.float32], labels: NDArray[np.int64], temperature: float
) -> schema.PredictionSets:
    examples = CalibrationExamples.of(
        probabilities(scores[:VAL].astype(np.float64), temperature), labels[:VAL]
    )
    found = measure_sets(examples, scores, labels, temperature)
    headline = [m for m in found if (m.score, m.nominal) == HEADLINE]
    n_classes = scores.shape[1]
    return schema.PredictionSets(
        n_calibration=len(examples),
        calibrated_on="val",
        points=tuple(
            schema.SetPoint(
                score=m.score.kind, nominal=m.nominal, threshold=m.threshold, **m.figures._asdict()
            )
            for m in found
        ),
        coverage_by_class=tuple(
            c for m in headline for c in by_class(m.covered, labels, n_classes)
        ),
        size_by_class=tuple(c for m in headline for c in by_class(m.size, labels, n_classes)),
    )


def _evaluation(target: Target) -> schema.EvaluationFacts:
    return schema.EvaluationFacts(
        dataset=target.dataset.name,
        split=target.split,
        templates=target.templates,
        classnames_sha256=classnames_sha256(target.classnames),
        protocol="standard",
        sha256=target.dataset.fingerprint,
    )


def _facts(data: _Data, experiment: Experiment) -> schema.DataFacts:
    dataset, n_classes = data.target.dataset, len(data.target.classnames)
    shots = experiment.config.data.shots or 0
    return schema.DataFacts(
        name=dataset.name,
        sha256=dataset.fingerprint,
        n_train=shots * n_classes,
        n_val=min(shots, 4) * n_classes,
        n_test=len(data.test),
        n_classes=n_classes,
        shots=shots,
        manifest_sha256=None,
        skipped=0,
        source=dataset.source,
        licence=dataset.licence,
        citation=dataset.citation,
    )


def _model(experiment: Experiment) -> schema.ModelFacts:
    model = experiment.config.model
    assert model is not None
    return schema.ModelFacts(
        name=model.name, weights_sha256=f"{len(model.name):064x}", dtype="fp32"
    )


def _cost(strength: float, seed: int) -> schema.Cost:
    fit = 20 * strength + seed
    return schema.Cost(
        fit_seconds=fit,
        encode_seconds=12.5,
        predict_seconds=0.03,
        cold_seconds=fit + 13,
        peak_memory_bytes=(900 + seed) << 20,
        saved_bytes=4 << 20,
    )


def _history(strength: float, seed: int) -> Iterator[dict[str, float]]:
    noise = np.random.default_rng([seed, 7]).normal(size=(EPOCHS, 2)) / 50
    for epoch in range(1, EPOCHS + 1):
        loss = 3 / np.sqrt(epoch) + noise[epoch - 1, 0]
        yield {
            "epoch": epoch,
            "train_loss": float(loss),
            "val_loss": float(loss + epoch / 100),
            "train_accuracy": min(1.0, 0.4 + epoch / 80),
            "val_accuracy": 0.5 + strength / 20 + float(noise[epoch - 1, 1]),
        }
