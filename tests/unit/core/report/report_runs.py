"""Runs for tests of the report: pictures by name, hostile names, margins, a failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.registry import DATASETS
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.records.schema import RunRecord
from clipadapt.core.scoring.calibration import fit_temperature
from clipadapt.core.scoring.metrics import compute_metrics
from tests.unit.core.records.test_records import make_record

DATA = "synthetic:3x12"
HOSTILE = "<script>alert(1)</script>"
NAMES = (HOSTILE, 'a "quoted" & <b>bold</b> class', "plain")
PATH = '/home/me/<img src=x onerror="alert(2)">'


def save_run(
    store: RunStore,
    method: str,
    strength: float,
    *,
    shots: int | None = 4,
    seed: int = 1,
    kind: str = "logit",
    calibrated: bool = True,
    data: str = DATA,
    **changes: object,
) -> RunRecord:
    """Save a run on the synthetic pictures whose scores favour the label by ``strength``."""
    resolved = DATASETS.resolve(DATA, "clip")
    dataset = resolved.provider(resolved.argument, DatasetOptions())
    test = dataset.split("test")
    rng = np.random.default_rng([seed, shots or 0, len(method)])
    scores = rng.normal(size=(len(test), len(NAMES))).astype(np.float32)
    scores[np.arange(len(test)), test.labels] += strength
    temperature = fit_temperature(scores, test.labels) if calibrated else None
    values: dict[str, object] = {
        "run_id": f"{method}{shots}{seed}{data}".encode().hex()[-40:],
        "fit_id": f"{method}{shots}{seed}",
        "seed": seed,
        "config": {
            "data": {"name": data},
            "method": {"name": method, "lr": 0.1, "note": HOSTILE},
            "recipe": {"source": f"A paper of {HOSTILE}"},
        },
        "data__name": DATA,
        "data__sha256": dataset.fingerprint,
        "data__n_test": len(test),
        "data__n_classes": 3,
        "data__shots": shots,
        "evaluation__dataset": DATA,
        "evaluation__templates": ["a photo of a {}."],
        "method__name": method,
        "method__uses_train": not method.endswith("zero_shot"),
        "method__recipe": "own",
        "method__deviations": [f"reads {PATH}"],
        "calibration": {"temperature": temperature},
        "n_trainable_params": 0 if method.endswith("zero_shot") else 100 * len(method),
        "metrics": compute_metrics(
            scores,
            test.labels,
            score_kind="margin" if kind == "margin" else "logit",
            temperature=temperature,
        ),
        "per_class": {"classnames": list(NAMES)},
        "flags": ["leakage"],
        "leakage": {
            "overlaps": [
                {
                    "trained": "train", "evaluated": "test", "exact": 1, "near": 2,
                    "examples": [[f"train/{HOSTILE}.png", "test/1.png"]],
                }
            ],
            "near_by": "thumbnails",
        },
        **changes,
    }  # fmt: skip
    history = [
        {"epoch": e, "train_loss": 1 / e, "val_loss": 1.2 / e, "val_accuracy": 0.3 + 0.1 * e}
        for e in (1, 2, 3)
    ]
    return store.save(
        make_record(**values),
        Predictions(test.inputs.ids, test.labels, scores),
        history=None if method.endswith("zero_shot") else history,
    )


def save_all(root: Path) -> RunStore:
    """Save zero-shot, two methods at three numbers of shots and three seeds, one with margins, and a failure."""
    store = RunStore(root)
    save_run(store, "clip/zero_shot", 0.3, shots=None)
    for shots in (1, 2, 4):
        for seed in (1, 2, 3):
            save_run(store, "clip/coop", 0.5 + 0.3 * shots, shots=shots, seed=seed)
            save_run(store, "clip/linear_probe", 0.2 + 0.6 * shots, shots=shots, seed=seed)
    save_run(store, "clip/margins", 1.0, kind="margin", calibrated=False)
    store.save_failure(
        make_record(
            status="failed",
            metrics={},
            run_id="f" * 16,
            error=f"RuntimeError: {HOSTILE}",
            method__name="clip/broken",
            evaluation__dataset=DATA,
            data__shots=4,
        )
    )
    return store
