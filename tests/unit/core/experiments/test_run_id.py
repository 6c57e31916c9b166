"""The settings part of a run id: ids of existing runs stay, and every key that affects the result is in it."""

from __future__ import annotations

from typing import Annotated

import pytest

from clipadapt.core.api.effects import RESULT, Affects
from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.experiments import config
from clipadapt.core.experiments.dotted import flatten, get, merge, nested
from clipadapt.core.experiments.run_id import evaluation_part, fit_part
from clipadapt.core.experiments.settings import (
    TargetConfig,
    declarations,
    effect_of,
    settings_that_affect_results,
)
from clipadapt.core.records.schema import make_fit_id, make_run_id

CATS_AND_DOGS = "2b9393bb47cabe22483d02fcce1e713099fd2b8a54d830df6fae5a83502da962"
FOXES = "776cb326ab0cd5f0a974c1b9606044d8485201f2db19cf8e3749bdee5f36e200"
MODEL = {"name": "m", "weights_sha256": "w" * 64, "dtype": "fp32", "device": "cuda"}
CLIP = ("data.name=synthetic", "model.name=stitched")
BASE_TO_NEW = (
    *CLIP, "data.classes=base", "data.allow_fewer=true", "evaluation.protocol=base_to_new", "evaluation.leakage=off",
)  # fmt: skip

# Recipe, settings, version of the method, facts of the fit, facts of the evaluation, fit id, run id.
# The ids were written by releases in which no key declared what it affects.
KEPT = {
    "zero_shot": ("zero_shot", CLIP, 1, {}, {}, "978c83ef3b2c5d0b", "ac91301ed731fc7a"),
    "fast": ("zero_shot", (*CLIP, "fast=off"), 1, {}, {}, "908d03dd291a6503", "a435d7d36b8eaa4d"),
    "compile": ("zero_shot", (*CLIP, "compile=on"), 1, {}, {}, "693da1564ddc2c3f", "1d55cf480d7b808e"),
    "few_shot": (
        "linear_probe", (*CLIP, "data.shots=4", "data.limit=5", "evaluation.calibrate=false"), 3, {"seed": 3}, {},
        "fb7272ce40fdc3c3", "0c3beb026ac88a9e",
    ),
    "manifest": (
        "linear_probe-quick", CLIP, 3, {"data.shots": 2, "data.manifest": "a" * 64}, {},
        "b19c691e88dc9126", "b8fecd0dc6765734",
    ),
    "base": (
        "coop-quick", BASE_TO_NEW, 2, {"seed": 2, "data.classes": "base"}, {"classes": "base"},
        "397dce54822c08e9", "f0bcdcfe493e8b8f",
    ),
    "new": (
        "coop-quick", BASE_TO_NEW, 2, {"seed": 2, "data.classes": "base"}, {"classes": "new", "classnames": FOXES},
        "397dce54822c08e9", "02a45f4c05273568",
    ),
    "text": (
        "text/tfidf_svm", ("data.name=rotten_tomatoes:offline",), 1,
        {"model": None, "data.templates": [], "data.held_out": "val"}, {"templates": [], "split": "val"},
        "5d1b6dda562e8d5e", "c0840fb618bbdcda",
    ),
}  # fmt: skip


def parts(experiment, version=1, fit=(), evaluation=()):
    """Return both parts of an id, from facts as a run determines them."""
    of_fit = {
        "data.sha256": "d" * 64, "data.held_out": "test", "data.shots": experiment.config.data.shots,
        "data.manifest": None, "data.classes": "all", "data.classnames": CATS_AND_DOGS,
        "data.templates": ["a photo of a {}."], "model": MODEL, "seed": 1, "threads": 2,
    }  # fmt: skip
    of_evaluation = {
        "dataset": "pets", "sha256": "d" * 64, "split": "test", "classes": "all", "classnames": CATS_AND_DOGS,
        "templates": ["a photo of a {}."], "protocol": experiment.config.evaluation.protocol,
    }  # fmt: skip
    return {
        "fit": fit_part(experiment, version, of_fit | dict(fit)),
        "evaluation": evaluation_part(experiment, of_evaluation | dict(evaluation)),
    }


@pytest.mark.parametrize("case", KEPT)
def test_the_ids_of_existing_runs_do_not_change(case):
    recipe, settings, version, fit, evaluation, fit_id, run_id = KEPT[case]
    found = parts(config.load([recipe], settings), version, fit, evaluation)

    assert make_fit_id(fit=found["fit"]) == fit_id
    assert make_run_id(**found) == run_id


def test_every_key_declares_what_it_affects():
    assert {"data.name", "evaluation.also", "resources.custom", "fast"} < declarations().keys()
    assert declarations(TargetConfig).keys() == TargetConfig.model_fields.keys()

    class Section(StrictModel):
        key: int = 1

    with pytest.raises(TypeError, match="'section.key' does not declare"):
        declarations(Section, "section.")


OTHER = {  # another valid value of each key that is in the id by its value, or not at all
    "data.calibration_share": 0.5,
    "data.allow_fewer": True, "data.on_bad_image": "skip", "data.limit": 5, "evaluation.calibrate": False,
    "evaluation.also": [{"split": "val"}], "evaluation.leakage": "off", "store": "off", "fast": "off", "compile": "on",
    "workers": 2, "resources.cpus": 2, "resources.gpus": 0.5, "resources.memory_bytes": 1,
    "resources.custom": {"a": 1}, "recipe.source": "a paper", "recipe.deviations": ["one"],
}  # fmt: skip


@pytest.mark.parametrize("key", declarations())
def test_exactly_the_keys_that_affect_the_result_change_the_id(key):
    affects = declarations()[key]
    base = {
        "data": {"name": "synthetic", "shots": 2},
        "model": {"name": "stitched"},
        "method": {"name": "clip/zero_shot"},
    }
    plain = parts(config.build([("a", base)], source="test"))
    if affects.facts:  # the value is not in the id, and each of its facts is
        assert affects.effect == "result"
        for place in affects.facts:
            part, _, name = place.partition(".")
            other = "base" if name.endswith("classes") else "other"
            changed = parts(config.build([("a", base)], source="test"), **{part: {name: other}})
            assert changed[part] != plain[part]
        return
    over = nested({key: OTHER[key]})
    changed = parts(config.build([("a", base), ("b", over)], source="test"))
    assert (changed != plain) == (affects.effect == "result")


def test_a_method_may_declare_that_a_key_does_not_affect_the_result():
    class Config(MethodConfig):
        lr: float = 0.1
        eval_batch_size: Annotated[int, Affects("cost")] = 8

    experiment = config.Experiment(
        config.load(["zero_shot"], CLIP).config, "clip/mine", Config(lr=0.2, eval_batch_size=4)
    )
    assert parts(experiment, 7)["fit"]["method"] == {"name": "clip/mine", "version": 7, "lr": 0.2}
    assert effect_of("method.lr", Config) == "result"
    assert effect_of("method.eval_batch_size", Config) == "cost"
    assert experiment.effects()["method.eval_batch_size"] == "cost"
    assert experiment.effects()["resources.custom"] == "cost"


def test_a_fact_that_is_missing_or_that_no_key_declares_is_refused():
    experiment = config.load(["zero_shot"], CLIP)
    with pytest.raises(ValueError, match="facts of the run id .fit.: .*data.sha256"):
        fit_part(experiment, 1, {})
    with pytest.raises(ValueError, match="facts of the run id .evaluation.: colour"):
        parts(experiment, evaluation={"colour": 1})


def test_the_settings_of_a_record_that_tell_rows_apart():
    experiment = config.load(["zero_shot"], (*CLIP, "data.limit=5", "store=off", "workers=3"))
    recorded = experiment.resolved()
    found = settings_that_affect_results(recorded)

    assert found["data.limit"] == 5
    assert {
        "fast",
        "compile",
        "evaluation.leakage",
        "evaluation.calibrate",
        "data.allow_fewer",
    } < found.keys()
    assert (
        not {"store", "workers", "data.name", "method.name", "seeds", "recipe.source"}
        & found.keys()
    )
    del recorded["compile"]  # a record from before the key
    assert settings_that_affect_results(recorded) == found


def test_dotted_keys():
    data = {"a": {"b": 1, "c": {}}, "d": [{"e": 1}]}
    assert flatten(data) == {"a.b": 1, "a.c": {}, "d": [{"e": 1}]}
    assert nested(flatten(data)) == data
    assert (get(data, "a.b"), get(data, "a.x.y"), get(data, "d.e")) == (1, None, None)
    merge(data, {"a": {"b": {"x": 2}}, "d": 3})
    assert data == {"a": {"b": {"x": 2}, "c": {}}, "d": 3}
    with pytest.raises(ConfigError, match="'a' already has the value 1"):
        nested({"a": 1, "a.b": 2})


def test_what_omits_a_value():
    assert not RESULT.omits(None)
    assert Affects("result", omit=None).omits(None)
    assert not Affects("result", omit="on").omits("off")


def test_a_key_that_an_old_record_lacks_is_not_taken_for_its_default():
    """Runs without the key ``fast`` may have been computed in another way; an omitted key has its omitted value."""
    from clipadapt.core.experiments.settings import settings_that_affect_results

    found = settings_that_affect_results({"method": {"name": "clip/zero_shot"}})

    assert found["fast"] is None
    assert found["compile"] == "off"
