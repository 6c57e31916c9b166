"""The pipeline: each draw is made once, and each fit has services of its own."""

from __future__ import annotations

import contextlib

import pytest

from clipadapt.core.data import draws
from clipadapt.core.experiments import config
from clipadapt.core.records import reading
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs import plan, session
from clipadapt.core.runs.models import ModelLoader


@pytest.fixture
def experiment(tiny_clip, monkeypatch, tmp_path):
    """A linear probe with two seeds, evaluated on test and val."""
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    raw = {
        "data": {"name": "synthetic:3x8", "shots": 2},
        "model": {"name": tiny_clip, "device": "cpu", "precision": "fp32"},
        "method": {"name": "clip/linear_probe", "max_iter": 20},
        "evaluation": {"also": [{"split": "val"}]},
        "seeds": [1, 2],
    }
    return config.build([("test", raw)], source="test")


def test_a_fit_draws_its_examples_once(experiment, tmp_path, monkeypatch):
    seeds = []

    def counted(target, experiment, manifest, seed):
        seeds.append(seed)
        return draw_task(target, experiment, manifest, seed)

    draw_task = draws.draw_task
    monkeypatch.setattr(draws, "draw_task", counted)
    monkeypatch.setattr(session, "draw_task", counted)

    records = session.run_experiments([experiment], tmp_path / "runs")
    assert [(r.seed, r.evaluation.split) for r in records] == [
        (1, "test"), (1, "val"), (2, "test"), (2, "val"),
    ]  # fmt: skip
    assert seeds == [1, 2]

    assert session.run_experiments([experiment], tmp_path / "runs") == records
    assert seeds == [1, 2]  # complete fits are not drawn


def test_no_record_is_read_that_was_written_here_and_a_complete_one_once(
    experiment, tmp_path, monkeypatch
):
    read, paths = reading.read_record, []

    def counted(path, parser=None):
        paths.append(path)
        return read(path, parser)

    monkeypatch.setattr(reading, "read_record", counted)

    records = session.run_experiments([experiment], tmp_path)
    assert paths == []

    assert session.run_experiments([experiment], tmp_path) == records
    assert len(paths) == len(set(paths)) == len(records) == 4


def test_fits_of_other_methods_share_the_draw(experiment, tmp_path):
    other = config.build(
        [("test", {**experiment.resolved(), "method": {"name": "clip/zero_shot"}})], source="test"
    )
    opening = session.Session(tmp_path)
    one, two = opening.plan([opening.open(e) for e in (experiment, other)])

    assert [a.draw is b.draw for a, b in zip(one, two, strict=False)] == [True, True]
    assert one[0].draw is not one[1].draw  # another seed


def test_every_record_counts_the_encoding_of_its_own_features(experiment, tmp_path):
    records = session.run_experiments([experiment], tmp_path / "runs")

    assert all(r.cost.encode_seconds > 0 for r in records)
    assert len({r.cost.fit_seconds for r in records if r.seed == 1}) == 1
    assert len({r.fit_id for r in records}) == 2


def test_a_model_is_loaded_once_and_bound_to_the_services_of_each_fit(experiment, tmp_path):
    loader = ModelLoader()
    opened = plan.open_experiment(experiment, RunStore(tmp_path))

    one, other = loader.load(opened), loader.load(opened)

    assert one.backbone.module is other.backbone.module
    assert one.backbone.services is one.services
    assert one.services is not other.services
    assert one.services.meter is not other.services.meter
    assert one.services.flags is not other.services.flags
    one.services.report("texts_cut", "reported once for both")
    other.services.report("texts_cut", "reported once for both")
    assert one.services.flags == other.services.flags == {"texts_cut": "reported once for both"}


def test_a_plan_has_one_fit_per_seed(experiment, tmp_path):
    specs = session.Session(tmp_path).plan([plan.open_experiment(experiment, RunStore(tmp_path))])
    assert [[s.seed for s in of_one] for of_one in specs] == [[1, 2]]
    assert all(spec.is_open() and spec.draw is not None for spec in specs[0])


def test_fit_and_evaluation_calculate_with_the_options_of_their_model(
    experiment, tmp_path, monkeypatch
):
    """Another model of this process may have other options; what the record states must hold."""
    inside: list[bool] = []
    seen: list[tuple[str, bool]] = []

    @contextlib.contextmanager
    def calculating(backbone):
        inside.append(backbone is not None)
        yield
        inside.clear()

    def watched(name):
        work = getattr(session, name)

        def call(*args):
            seen.append((name, inside == [True]))
            return work(*args)

        return call

    monkeypatch.setattr(session, "calculating", calculating)
    for name in ("fit", "evaluate"):
        monkeypatch.setattr(session, name, watched(name))

    session.run_experiments([experiment], tmp_path)

    assert seen
    assert set(seen) == {("fit", True), ("evaluate", True)}
    assert not inside
