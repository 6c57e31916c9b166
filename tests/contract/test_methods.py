"""The contract of every registered method, on every model family."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from clipadapt.core.api import registry
from clipadapt.core.api.data import DatasetOptions, Task
from clipadapt.core.api.errors import ConfigError, ModelError
from clipadapt.core.api.method import Classifier, OpenVocabulary, Setting, setting_of
from clipadapt.core.api.registry import METHODS, Resolved
from clipadapt.core.experiments import config, shipped, sweep
from clipadapt.core.runs.session import run_experiments
from clipadapt.core.scoring.scores import probabilities
from clipadapt.tensor import onnx
from tests.contract.conftest import REFUSED, SMALL

every_method = pytest.mark.parametrize("name", METHODS.names())
# Scores of equal inputs may differ in the last bits if they are in another row of a matrix product.
NEAR = {"rtol": 1e-4, "atol": 1e-4}


def test_fit_is_deterministic_and_leaves_the_backbone_alone(fitted, tmp_path):
    case, first, scores = fitted.case, fitted.classifier, fitted.scores

    second = case.method.fit(case.backbone, case.task, case.context(tmp_path))

    assert isinstance(first, Classifier)
    assert first.classnames == case.task.classnames
    assert scores.shape == (len(case.inputs), len(case.task.classnames))
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, second.predict_scores(case.inputs))
    assert case.is_as(fitted.before)
    assert first.n_trainable_params >= 0
    # A loss or a rule of its own is a softmax; only the scores of a model with a sigmoid loss itself are sigmoids.
    own = case.name == "clip/zero_shot" and case.backbone.logit_bias != 0
    assert first.score_kind in ({"sigmoid"} if own else {"logit", "margin"})


def test_a_saved_classifier_gives_equal_scores(fitted, tmp_path):
    case = fitted.case

    fitted.classifier.save(tmp_path / "saved")
    loaded = case.method.load(tmp_path / "saved", case.backbone)

    assert loaded.classnames == fitted.classifier.classnames
    assert loaded.n_trainable_params == fitted.classifier.n_trainable_params
    np.testing.assert_array_equal(loaded.predict_scores(case.inputs), fitted.scores)
    assert not [
        p for p in (tmp_path / "saved").rglob("*") if p.suffix in {".pkl", ".pt", ".bin", ".joblib"}
    ]


def test_the_network_of_an_onnx_export_computes_the_probabilities(fitted, tmp_path, monkeypatch):
    case, classifier = fitted.case, fitted.classifier
    if "onnx" not in getattr(classifier, "export_formats", ()):
        pytest.skip("no such format")
    seen = []

    def write(folder, network, example, expected, **_):
        seen.append(network)
        with torch.no_grad():
            np.testing.assert_allclose(network(*example.values()), expected, **NEAR)
        return 0.0

    monkeypatch.setattr(onnx, "write", write)
    classifier.export("onnx", tmp_path / "export", temperature=2.0)

    if case.name.startswith("clip/"):
        pixels = case.backbone.pixels(case.inputs, np.arange(len(case.inputs)))
        with torch.no_grad():
            found = seen[0](pixels)
        sigmoid = classifier.score_kind == "sigmoid"
        # The tiny models give GDA logits of 10,000, whose last bit in float32 is 1e-3.
        rounding = 2e-7 * np.abs(fitted.scores).max()
        expected = probabilities(fitted.scores, 2.0, sigmoid=sigmoid)
        np.testing.assert_allclose(found, expected, atol=max(1e-4, rounding))
    assert case.is_as(fitted.before)


def test_permuted_inputs_give_permuted_scores(fitted):
    case, classifier = fitted.case, fitted.classifier
    order = np.random.default_rng(0).permutation(len(case.inputs))

    permuted = classifier.predict_scores(case.inputs.take(order))
    alone = classifier.predict_scores(case.inputs.take(order[:1]))

    setting = setting_of(METHODS.get(case.name))
    if setting != "online":
        np.testing.assert_allclose(permuted, fitted.scores[order], **NEAR)
    if setting == "inductive":
        np.testing.assert_allclose(alone, fitted.scores[order[:1]], **NEAR)
    assert np.isfinite(alone).all()


def test_predicting_changes_nothing(fitted):
    fitted.classifier.predict_scores(fitted.case.inputs.take(np.arange(2)))

    again = fitted.classifier.predict_scores(fitted.case.inputs)

    np.testing.assert_array_equal(again, fitted.scores)


def test_a_task_without_val_is_fitted(fitted, tmp_path):
    case = fitted.case
    task = Task(case.task.classnames, case.task.templates, case.task.train, None)

    without_val = case.method.fit(case.backbone, task, case.context(tmp_path))

    assert np.isfinite(without_val.predict_scores(case.inputs)).all()


def test_open_vocabulary_classifiers_accept_other_classes(fitted):
    case, classifier = fitted.case, fitted.classifier
    is_open = isinstance(classifier, OpenVocabulary)
    assert getattr(case.method, "open_vocabulary", True) is is_open
    if not is_open:
        pytest.skip(f"{case.name} has a closed set of classes")
    names = ("a dog", "a cat", "a horse", "a square")

    other = classifier.with_classnames(names, case.task.templates)

    assert other.classnames == names
    assert other.predict_scores(case.inputs).shape == (len(case.inputs), 4)
    assert classifier.classnames == case.task.classnames


@pytest.mark.parametrize(("name", "family"), REFUSED)
def test_a_family_that_cannot_be_served_is_refused_before_training(
    name, family, tiny_case, tmp_path
):
    case = tiny_case(name, family)
    context = case.context(tmp_path)
    computed = context.services.meter.computed

    with pytest.raises(ModelError, match=REFUSED[name, family]):
        case.method.fit(case.backbone, case.task, context)

    assert not context.history
    assert context.services.meter.computed == computed


@every_method
def test_defaults_are_valid_and_misspelt_keys_are_refused(name):
    method = METHODS.get(name)
    data = "synthetic" if name.startswith("clip/") else "rotten_tomatoes:offline"
    whole = {"data": {"name": data}, "model": {"name": "stitched"}, "method": {"name": name}}

    built = config.build([("test", whole)], source="test")

    assert built.method == method.Config()
    assert isinstance(method.version, int)
    with pytest.raises(ConfigError, match=r"method\.no_such_key"):
        config.build(
            [("test", whole | {"method": {"name": name, "no_such_key": 1}})], source="test"
        )


@every_method
def test_a_setting_is_known_and_an_online_method_has_an_order(name):
    method = METHODS.get(name)

    assert setting_of(method) in get_args(Setting)
    assert ("order_seed" in method.Config.model_fields) == (setting_of(method) == "online")


@every_method
def test_recipes_exist_and_are_valid(name):
    track, _, stem = name.partition("/")
    names = shipped.config_names(track)
    wanted = [stem] if name == "clip/zero_shot" else [stem, f"{stem}-quick"]

    for recipe in wanted:
        assert recipe in names, f"configs/methods/{track}/{recipe}.yaml is missing"
    for recipe in [n for n in names if n == stem or n.startswith(f"{stem}-")]:
        loaded = config.load([recipe], ["data.name=synthetic"], track=track)
        assert loaded.method_name == name
        assert loaded.config.recipe.source
        if (
            recipe.endswith("-quick")
            and loaded.method != config.load([stem], ["data.name=synthetic"], track=track).method
        ):
            assert loaded.config.recipe.deviations


# Integer settings whose bound is checked elsewhere: name -> where.
CHECKED: dict[str, str] = {}


def unbounded(schema):
    """Return the paths of the integers without a maximum in a JSON schema."""
    definitions = schema.get("$defs", {})

    def walk(node, path):
        if "$ref" in node:
            yield from walk(definitions[node["$ref"].rpartition("/")[2]], path)
        if node.get("type") == "integer" and not {"maximum", "exclusiveMaximum"} & node.keys():
            yield path
        for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for child in node.get(key, ()):
                yield from walk(child, path)
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                yield from walk(node[key], path)
        for name, child in node.get("properties", {}).items():
            yield from walk(child, f"{path}.{name}")

    return set(walk(schema, ""))


@every_method
def test_every_integer_setting_has_a_largest_value(name):
    found = {f"{name}{path}" for path in unbounded(METHODS.get(name).Config.model_json_schema())}

    assert found <= CHECKED.keys()


def test_every_integer_of_an_experiment_has_a_largest_value():
    assert unbounded(config.ExperimentConfig.model_json_schema()) == set()
    for model in (sweep.MethodAxis, sweep.Axes, sweep.Exclude, sweep.ProtocolConfig):
        assert unbounded(model.model_json_schema()) == set()


@every_method
def test_a_paper_recipe_states_its_precision_source_and_deviations(name):
    track, _, stem = name.partition("/")
    for recipe, path in shipped.config_names(track).items():
        if recipe != stem and not recipe.startswith(f"{stem}-"):
            continue
        raw = shipped.read_fragment(path)
        assert raw["recipe"]["source"]
        assert isinstance(raw["recipe"]["deviations"], list)
        if METHODS.get(name).requires is not None and not recipe.endswith("-quick"):
            assert raw["model"] == {"precision": "fp32"}, recipe
            # The recipe sets the precision of the model; another precision is a deviation.
            words = ["data.name=synthetic", "model.name=any"]
            own = config.load([recipe], words, track=track)
            assert (own.config.model.name, own.config.model.precision) == ("any", "fp32")
            assert own.deviations == own.config.recipe.deviations
            changed = config.load([recipe], [*words, "model.precision=auto"], track=track)
            assert changed.deviations[-1] == "model.precision=auto (--set)"
        if "fewshot" in recipe or (stem in FEW_SHOT and track == "clip"):
            declared = " ".join(raw["recipe"]["deviations"])
            assert "few-shot draws are clipadapt's own" in declared, recipe


# Papers with their own rules for drawing examples of each class.
FEW_SHOT = (
    "ape",
    "ape_t",
    "clap",
    "clip_adapter",
    "cocoop",
    "coop",
    "cross_modal",
    "gda",
    "kgcoop",
    "proker",
    "linear_probe",
    "lora",
    "lp_plus_plus",
    "prograd",
    "prolip",
    "taskres",
    "tip_adapter",
    "tip_adapter_f",
)


class Guarded:
    """A dataset whose test split raises until the fit has finished."""

    def __init__(self, inner, state) -> None:
        self._inner, self._state = inner, state

    def __getattr__(self, key):
        return getattr(self._inner, key)

    def split(self, name):
        if name == "test":
            assert self._state["fitted"], "the test split was touched before the fit was over"
            self._state["touched"] = True
        return self._inner.split(name)


@every_method
def test_the_test_split_is_never_used_for_selection(
    name, tiny_clip, tiny_texts, tmp_path, monkeypatch
):
    track = name.partition("/")[0]
    state = {"fitted": False, "touched": False}
    if track == "clip":
        found = registry.DATASETS.resolve("synthetic:3x12", "clip")
        inner = found.provider(found.argument, DatasetOptions())
    else:
        path = tmp_path / "reviews.csv"
        rows = [f"a {w} plot {i},{y}" for i in range(40) for y, w in ((0, "dull"), (1, "fine"))]
        path.write_text("text,label\n" + "\n".join(rows) + "\n")
        found = registry.DATASETS.resolve(f"csv:{path}", "text")
        inner = found.provider(found.argument, DatasetOptions())
    guarded = Guarded(inner, state)
    monkeypatch.setattr(
        registry.DATASETS, "resolve", lambda *_: Resolved("test", "", lambda *_: guarded)
    )
    method = METHODS.get(name)
    fit = method.fit

    def watched(self, backbone, task, ctx):
        test_ids = set(inner.split("test").inputs.ids)
        for part in (task.train, task.val):
            assert part is None or not test_ids & set(part.inputs.ids)
        fitted = fit(self, backbone, task, ctx)
        state["fitted"] = True
        return fitted

    monkeypatch.setattr(method, "fit", watched)
    named = tiny_clip if track == "clip" else tiny_texts["distilbert"]
    model = {"model": {"name": named, "precision": "fp32"}} if method.requires else {}
    whole = {
        "data": {"name": "guarded", "shots": 2},
        "method": {"name": name, **SMALL.get(name, {})},
        **model,
    }

    (record,) = run_experiments([config.build([("test", whole)], source="test")], tmp_path / "runs")

    assert record.status == "ok"
    assert state["touched"]
