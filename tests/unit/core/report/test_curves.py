from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from clipadapt.core.api.errors import ClipAdaptError, RecordError
from clipadapt.core.records.history import Epoch, accuracy_gap, loss_rise, read_epochs
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.records.schema import Selection, slug
from clipadapt.core.report import curves
from clipadapt.core.report.curves import plot_curves
from tests.unit.core.records.test_records import make_predictions, make_record

STEPS = [
    {"epoch": 1, "step": 1, "train_loss": 0.8, "learning_rate": 1e-3},
    {"epoch": 1, "step": 2, "train_loss": 0.6, "learning_rate": 1e-3},
    {"epoch": 1, "val_loss": 0.5, "val_accuracy": 0.7},
    {"epoch": 2, "step": 3, "train_loss": 0.4, "learning_rate": 1e-4},
    {"epoch": 2, "val_loss": 0.6, "val_accuracy": 0.8, "train_accuracy": 0.9},
]


def write(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def save(store, history=STEPS, **changes):
    chosen = Selection(epoch=1, by="val accuracy", value=0.8)
    record = make_record(**{"selection": chosen, **changes})
    return store.run_dir(store.save(record, make_predictions(), history=history))


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn."""
    drawn = []
    draw = curves._draw
    monkeypatch.setattr(curves, "_draw", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    return drawn


def test_lines_are_joined_by_epoch(tmp_path):
    epochs = read_epochs(write(tmp_path, [json.dumps(s) for s in STEPS]))
    assert epochs == (
        Epoch(1.0, pytest.approx(0.7), None, 0.5, 0.7),
        Epoch(2.0, 0.4, 0.9, 0.6, 0.8),
    )
    assert loss_rise(epochs) == pytest.approx(0.1)
    assert accuracy_gap(epochs) == pytest.approx(0.1)
    assert accuracy_gap(epochs, 2) == pytest.approx(0.1)
    assert accuracy_gap(epochs, 1) is None
    assert loss_rise(epochs[:1]) is None


def test_a_run_without_epochs_has_no_curve(tmp_path):
    assert read_epochs(tmp_path) == ()
    assert read_epochs(write(tmp_path, ['{"C": 1.0, "val_accuracy": 0.5}'])) == ()


def test_a_loss_that_is_not_finite_is_a_gap(tmp_path):
    lines = ['{"epoch": 1, "val_loss": null}', '{"epoch": 2, "val_loss": 0.3}']
    assert [e.val_loss for e in read_epochs(write(tmp_path, lines))] == [None, 0.3]


@pytest.mark.parametrize("line", ["{", "[1]", '{"epoch": "x"}'])
def test_a_damaged_history_is_named(tmp_path, line):
    with pytest.raises(RecordError, match=r"history.jsonl is damaged: line 2"):
        read_epochs(write(tmp_path, ['{"epoch": 1}', line]))


def test_one_picture_per_dataset_and_shots(store, tmp_path):
    save(store, run_id="a", fit_id="a")
    save(store, run_id="b", fit_id="b", seed=2)
    save(store, run_id="c", fit_id="c", data__shots=8)
    save(
        store,
        run_id="d",
        fit_id="d",
        data__name="other",
        evaluation__dataset="other",
        data__shots=None,
    )
    save(store, run_id="e", fit_id="e", method__name="text/svm", history=None)

    made = plot_curves(store, tmp_path / "out")

    assert sorted(p.name for p in made) == [
        f"curves-{slug('folder:photo')}-4-shots.png",
        f"curves-{slug('folder:photo')}-8-shots.png",
        "curves-other.png",
    ]  # fmt: skip
    for path in made:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_what_is_drawn(store, tmp_path, figures):
    save(store, run_id="a", fit_id="a")
    save(store, run_id="b", fit_id="a", evaluation__split="val")  # the same fit, one line
    save(store, run_id="c", fit_id="c", method__name="clip/lora", selection=None)

    plot_curves(store, tmp_path / "out")

    (figure,) = figures
    losses, accuracies = figure.axes
    assert (losses.get_xlabel(), losses.get_ylabel()) == ("epoch", "loss, nats")
    assert accuracies.get_ylabel() == "val accuracy, %"
    drawn = [(line.get_linestyle(), line.get_xydata().tolist()) for line in losses.lines]
    train, val = [[1, pytest.approx(0.7)], [2, 0.4]], [[1, 0.5], [2, 0.6]]
    assert drawn == [("--", train), ("-", val), ("-", [[1, 0.5]]), ("--", train), ("-", val)]
    assert accuracies.lines[0].get_ydata() == pytest.approx([70, 80])
    assert [line.get_xydata().tolist() for line in accuracies.lines if len(line.get_xdata()) == 1] == [
        [[1, pytest.approx(70)]]
    ]  # fmt: skip
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == [
        "clip/coop (coop-quick) on stitched, seed 1",
        "clip/lora (coop-quick) on stitched, seed 1",
        "train loss (dashed)",
        "val (solid)",
        "selected epoch",
    ]


def test_the_legend_is_beside_the_lines(store, tmp_path, figures):
    for i in range(7):
        save(store, run_id=f"r{i}", fit_id=f"r{i}", method__name=f"clip/a_method_with_a_name_{i}")
    plot_curves(store, tmp_path / "out")
    (figure,) = figures
    legend = figure.legends[0].get_window_extent()
    assert all(not legend.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1


def test_folders_of_runs_work_too_and_equal_runs_give_equal_bytes(store, tmp_path):
    folder = save(store, data__name="$a$_{b", evaluation__dataset="$a$_{b")
    (first,) = plot_curves([folder], tmp_path / "1")
    (second,) = plot_curves(store, tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()


def test_no_picture_without_epochs(store, tmp_path):
    save(store, history=None)
    assert plot_curves(store, tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_matplotlib_has_no_global_state_afterwards(store, tmp_path):
    save(store)
    code = """
import sys, pathlib
import matplotlib as mpl
from clipadapt.core.report.curves import plot_curves
from clipadapt.core.records.run_store import RunStore
def settings():
    return {k: mpl.rcParams[k] for k in mpl.rcParams if k != "backend"}  # reading it imports pyplot
before = settings()
assert plot_curves(RunStore(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.root), str(tmp_path / "out")],
        env={k: v for k, v in os.environ.items() if k not in {"DISPLAY", "MPLBACKEND"}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_without_matplotlib_the_message_names_the_extra(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    save(store)
    with pytest.raises(ClipAdaptError, match=r'pip install "clipadapt\[report\]"'):
        plot_curves(store, tmp_path / "out")


def test_one_run_has_its_picture_in_its_folder(store, figures):
    folder = save(store, data__shots=None)

    made = curves.plot_run(folder)
    again = curves.plot_run(folder)

    assert made == again == folder / "curves.png"
    assert made.read_bytes().startswith(b"\x89PNG")
    (figure,) = figures  # drawn once
    assert figure.get_suptitle() == "folder:photo"
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx([70, 80])
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_one_epoch_is_no_curve(store):
    assert curves.plot_run(save(store, history=STEPS[:3])) is None
    assert curves.plot_run(save(store, history=None, run_id="b", fit_id="b")) is None


def test_unreadable_runs_of_a_store_are_named_and_the_others_drawn(store, tmp_path, caplog):
    save(store, run_id="a" * 16, fit_id="a")
    damaged = save(store, run_id="b" * 16, fit_id="b", seed=2)
    (damaged / "history.jsonl").write_text("{")

    (path,) = plot_curves(store, tmp_path / "out")

    assert path.is_file()
    assert str(damaged) in caplog.text
