"""Trackers read back with their own libraries, offline; one that fails or is missing fails no run."""

from __future__ import annotations

import json
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest

from clipadapt.core.api.errors import ConfigError, UnknownNameError
from clipadapt.core.api.progress import Silent
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs import trackers
from clipadapt.core.runs.trackers import Tracking, describe
from tests.unit.core.records.test_records import make_record
from tests.unit.core.report.report_runs import save_run


def needs(package):
    return pytest.mark.skipif(
        find_spec(package) is None, reason=f"{package} is not installed: pip install .[trackers]"
    )


class Notes(Silent):
    """Keeps what is reported."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


@pytest.fixture
def records(store):
    """One run with a history and one that failed."""
    failed = make_record(status="failed", metrics={}, run_id="f" * 16, error="RuntimeError: boom")
    return [save_run(store, "clip/coop", 1.0), store.save_failure(failed)]


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("<p>page</p>")
    return path


def log(name, store, records, page):
    found = Tracking([name], store.root, Notes())
    found.log(records)
    found.log_page(page)
    assert found.progress.notes == []
    assert found.logged == {name: 2}
    return found


def test_what_is_logged_of_a_run(store, records):
    record = records[0]
    run = describe(record, store)

    accuracy = record.metrics["accuracy"]
    assert run.metrics["accuracy"] == accuracy.value
    assert run.metrics["accuracy_low"] == accuracy.low
    assert run.metrics["accuracy_high"] == accuracy.high
    assert run.metrics["cost.fit_seconds"] == record.cost.fit_seconds
    assert run.settings["config.method.lr"] == 0.1
    assert run.settings["seed"] == 1
    assert run.flags == ("leakage",)
    assert [s["train_loss"] for s in run.steps] == [1, 1 / 2, 1 / 3]
    assert [s["epoch"] for s in run.steps] == [1, 2, 3]


@needs("tensorboard")
def test_tensorboard(store, records, page):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log("tensorboard", store, records, page)

    name = f"{records[0].run_id}-1"
    (folder,) = [p for p in (store.root / "tensorboard").rglob("*") if p.name == name]
    events = EventAccumulator(str(folder)).Reload()
    losses = events.Scalars("history/train_loss")
    assert {e.step: e.value for e in losses} == pytest.approx({1: 1, 2: 1 / 2, 3: 1 / 3})
    (low,) = events.Scalars("final/accuracy_low")
    assert low.value == pytest.approx(records[0].metrics["accuracy"].low)
    (text,) = events.Tensors("run")
    assert b"flags: leakage" in text.tensor_proto.string_val[0]
    assert "_hparams_/session_start_info" in events.summary_metadata


@needs("mlflow")
def test_mlflow(store, records, page):
    from mlflow.tracking import MlflowClient

    found = log("mlflow", store, records, page)

    client = MlflowClient(found.trackers["mlflow"].uri)
    experiment = client.get_experiment_by_name("clipadapt").experiment_id
    runs = {r.info.run_name: r for r in client.search_runs([experiment])}
    one = next(r for r in runs.values() if r.data.tags.get("clipadapt.run_id") == records[0].run_id)
    accuracy = records[0].metrics["accuracy"]
    assert one.info.status == "FINISHED"
    assert one.data.metrics["accuracy_high"] == pytest.approx(accuracy.high)
    assert one.data.params["config.method.lr"] == "0.1"
    assert one.data.tags["clipadapt.flags"] == "leakage"
    history = client.get_metric_history(one.info.run_id, "history.val_loss")
    assert {m.step: m.value for m in history} == pytest.approx({1: 1.2, 2: 0.6, 3: 0.4})
    assert [r.info.status for r in runs.values()].count("FAILED") == 1
    assert [a.path for a in client.list_artifacts(runs["report"].info.run_id)] == ["report.html"]


def messages_of(path):
    """Yield the messages of a W&B file: after 7 bytes, LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, message = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        room = 2**15 - at % 2**15
        size, kind = struct.unpack("<HB", raw[at + 4 : at + 7])
        if room < 7 or not kind:  # the rest of the block is padding
            at += room
            continue
        message += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in {1, 4}:  # whole, or the last part
            yield Record.FromString(message)
            message = b""


def items(entries):
    return {e.nested_key[0] if e.nested_key else e.key: json.loads(e.value_json) for e in entries}


@needs("wandb")
def test_wandb_offline(store, records, page):
    import wandb

    log("wandb", store, records, page)
    wandb.teardown()  # as at the end of a process: W&B's own service has then written everything

    logged = {}
    for path in sorted((store.root / "wandb").glob("offline-run-*/*.wandb")):
        found = list(messages_of(path))
        name = next(m.run.display_name for m in found if m.HasField("run"))
        logged[name] = found
    assert len(logged) == 3
    assert any(m.HasField("artifact") for m in logged["report"])
    one = logged[describe(records[0], store).title]
    history = [items(m.history.item) for m in one if m.HasField("history")]
    assert [h["train_loss"] for h in history] == pytest.approx([1, 1 / 2, 1 / 3])
    summary = {
        k: v for m in one if m.HasField("summary") for k, v in items(m.summary.update).items()
    }
    assert summary["accuracy_low"] == pytest.approx(records[0].metrics["accuracy"].low)
    assert summary["flags"] == ["leakage"]
    config = next(items(m.run.config.update) for m in one if m.HasField("run"))
    assert config["config.method.lr"] == 0.1


@needs("wandb")
def test_wandb_without_an_account(store, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("wandb.login", lambda **_: False)
    with pytest.raises(ConfigError, match="there is no API key"):
        trackers.open_tracker("wandb", store.root)

    def refuse(**_):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr("wandb.login", refuse)
    with pytest.raises(ConfigError, match="cannot log in: no route to host"):
        trackers.open_tracker("wandb", store.root)


@needs("tensorboard")
def test_a_run_is_logged_once_and_a_complete_one_from_its_record(cli, tiny_clip, tmp_path):
    out = tmp_path / "out"
    command = ("run", "zero_shot", "--model", tiny_clip, "--dataset", "synthetic:3x8", "--out", out)
    assert cli(*command).code == 0

    first = cli(*command, "--tracker", "tensorboard")
    second = cli(*command, "--tracker", "tensorboard", "--tracker", "tensorboard", "--json")

    assert (first.code, second.code) == (0, 0)
    assert "tensorboard: 1 run logged; tensorboard --logdir" in first.err
    assert "tensorboard: 0 runs logged, 1 were logged before" in second.err
    assert len(list((out / "tensorboard").rglob("events*"))) == 1
    (record,) = json.loads(second.out)["records"]
    assert "tracker" not in json.dumps(record["config"])


class Broken:
    """A tracker whose server is away."""

    package = "json"
    where = "nowhere"
    calls = 0

    def __init__(self, out):
        del out

    def log_run(self, run):
        Broken.calls += 1
        raise ConnectionError("no route\nto host")

    def log_page(self, page):
        raise AssertionError


def test_a_tracker_that_fails_is_reported_once_and_fails_no_run(store, records, page, monkeypatch):
    monkeypatch.setattr(trackers, "open_tracker", lambda _, out: Broken(out))
    notes = Notes()
    found = Tracking(["broken"], store.root, notes)

    found.log(records)
    found.log(records)
    found.log_page(page)

    (note,) = notes.notes
    assert "the tracker broken failed" in note
    assert "ConnectionError: no route to host" in note
    assert Broken.calls == 1
    assert not (store.root / trackers.LEDGER).exists()


def test_every_file_is_a_tracker_and_others_are_unknown(store):
    assert trackers.names() == ["mlflow", "tensorboard", "wandb"]
    with pytest.raises(UnknownNameError, match="did you mean 'wandb'"):
        trackers.open_tracker("wandbb", store.root)


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_a_missing_package_is_one_message_before_the_first_fit(cli, tmp_path, monkeypatch, name):
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda n: None if n == name else find_spec(n)
    )
    out = tmp_path / "out"
    done = cli(
        "run", "zero_shot", "--model", "random:ViT-B-32", "--dataset", "synthetic:3x8",
        "--out", out, "--tracker", name,
    )  # fmt: skip
    assert done.code == 2
    assert f"--tracker {name} needs {name}, which is not installed" in done.text
    assert 'pip install "clipadapt[trackers]"' in done.text
    assert not list(Path(out).rglob("record.json"))


def test_an_unknown_tracker_stops_a_sweep_before_the_first_fit(cli, tmp_path):
    done = cli("bench", "openmoji", "--out", tmp_path / "out", "--tracker", "tensorbord")
    assert done.code == 2
    assert "did you mean 'tensorboard'" in done.text
    assert not (tmp_path / "out").exists()
