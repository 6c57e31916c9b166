"""With 20,000 classes neither files nor memory grow with the number of pairs of classes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from clipadapt.core.records.predictions import Predictions
from clipadapt.core.records.run_store import RunStore
from tests.unit.core.records.test_records import make_record

pytestmark = pytest.mark.slow


CLASSES, EXAMPLES = 20_000, 4_000

# In a process of its own, to measure its peak; a dense int64 matrix would take 3,200 MB.
MEASURED = """
import sys
import numpy as np
from clipadapt.core.records.environment import peak_memory, reset_peak_memory
reset_peak_memory()  # otherwise a child process starts with the peak of its parent
from clipadapt.core.cli.streams import run_app
if sys.argv[1] == "metrics":
    from clipadapt.core.scoring.metrics import compute_metrics
    rng = np.random.default_rng(0)
    scores, labels = rng.random((200, 20_000), np.float32), rng.integers(0, 20_000, 200)
    print(compute_metrics(scores, labels)["macro_f1"].value)
else:
    from clipadapt.cli import app
    try:
        run_app(app, sys.argv[1:])
    except SystemExit as end:
        assert not end.code, end.code
print("PEAK", peak_memory() >> 20)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Save runs of two seeds, with predictions in the short form."""
    store = RunStore(tmp_path_factory.mktemp("runs"))
    labels = np.arange(EXAMPLES, dtype=np.int64) * 5
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        best = np.where(rng.random(EXAMPLES) < 0.6, labels, labels + 1).astype(np.int32)
        classes = np.stack([best, (best + 2) % CLASSES], axis=1)
        scores = np.tile(np.array([2, 1], np.float32), (EXAMPLES, 1))
        ids = tuple(f"test/{i}.png" for i in range(EXAMPLES))
        store.save(
            make_record(
                run_id=f"{seed:016d}",
                seed=seed,
                per_class={"classnames": [f"class number {i}" for i in range(CLASSES)]},
                data__n_classes=CLASSES,
                data__n_test=EXAMPLES,
            ),
            Predictions(ids, labels, scores, classes, scores[:, 0], np.log(np.exp(scores).sum(1))),
        )
    return store


def test_a_record_grows_linearly_with_the_classes(runs):
    for path in runs.root.rglob("*.*"):
        assert path.stat().st_size < 2_000_000, path


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("command", ["table", "report", "metrics"])
def test_peak_memory(runs, tmp_path, command):
    words = {
        "table": ["table", runs.root],
        "report": ["report", runs.root, "--no-examples", "--output", tmp_path / "page.html"],
        "metrics": ["metrics"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, words)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("PEAK ")[2]) < 400
    if command == "report":
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "Too many classes to draw the confusion matrix." in page
        assert "Most frequent confusions" in page
