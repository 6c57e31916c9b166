"""``clip/zero_shot`` with prompts in words: the file, random words, other classes, saved classifiers, run ids."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.experiments import config as experiments
from clipadapt.core.experiments import run_id
from clipadapt.methods import _descriptions
from clipadapt.methods._descriptions import PromptsConfig, Words, phrase, random_texts
from clipadapt.methods.zero_shot import ZeroShot, ZeroShotConfig
from tests.unit.methods.conftest import context

OTHER = {"red_fish": ["a fish that is red", "scales"], "grey bird": ["feathers"]}


@pytest.fixture
def write(tmp_path, small):
    """Write a file of descriptions; without any given, one for the classes of the small task and others."""

    def call(content=None, name="d.json"):
        own = {n: [f"a {n} shape", "used for tests", n] for n in small[0].classnames}
        file = tmp_path / name
        given = {**own, **OTHER} if content is None else content
        file.write_text(given if isinstance(given, str) else json.dumps(given))
        return str(file)

    return call


def settings(**prompts):
    return ZeroShotConfig.model_validate({"prompts": prompts})


def exported_scores(classifier, inputs, folder):
    """Return what the formula of an export computes from features."""
    classifier.export("classifier", folder)
    facts = json.loads((folder / "classifier.json").read_text())
    space = {"np": np, "a": load_file(folder / "classifier.safetensors")}
    exec(
        "\n".join(facts["formula"]), space | {"x": classifier.model.encode(inputs, "image")}, space
    )
    return space["scores"]


@pytest.mark.parametrize(
    "prompts",
    [
        {"form": "cupl", "with_templates": True},
        {"form": "dclip"},
        {"form": "dclip", "combine": "max"},
        {"form": "waffle", "count": 4},
        {"form": "waffle", "count": 1, "file": False},
    ],
)
def test_a_saved_classifier_serves_other_classes_without_the_file(
    models, small, tmp_path, write, prompts
):
    task, inputs = small
    file = {} if prompts.pop("file", True) is False else {"descriptions": write()}
    config, model = settings(**prompts, **file), models("clip")
    config.check(task)
    fitted = ZeroShot(config).fit(model, task, context(tmp_path))
    again = ZeroShot(config).fit(model, task, context(tmp_path))
    fitted.save(tmp_path)
    (tmp_path / "d.json").unlink(missing_ok=True)

    loaded = ZeroShot(config).load(tmp_path, model)

    scores = fitted.predict_scores(inputs)
    assert scores.shape == (len(inputs), len(task.classnames))
    np.testing.assert_array_equal(again.predict_scores(inputs), scores)
    np.testing.assert_array_equal(loaded.predict_scores(inputs), scores)
    same = loaded.with_classnames(task.classnames, task.templates)
    np.testing.assert_array_equal(same.predict_scores(inputs), scores)
    others = loaded.with_classnames(("red fish", "grey_bird"), ("a photo of a {}.",))
    assert others.predict_scores(inputs).shape == (len(inputs), 2)
    assert exported_scores(loaded, inputs, tmp_path / "export") == pytest.approx(scores, abs=1e-4)
    if file:
        with pytest.raises(ConfigError, match="no entry for 1 of 2 classes: 'chair'"):
            loaded.with_classnames(("red fish", "chair"), ("{}",))


def test_the_largest_score_is_that_of_all_prompts_in_any_block(
    models, small, tmp_path, write, monkeypatch
):
    task, inputs = small
    config = settings(form="dclip", descriptions=write(), combine="max", end=".")
    fitted = ZeroShot(config).fit(models("clip"), task, context(tmp_path))
    whole = fitted.predict_scores(inputs)
    monkeypatch.setattr(_descriptions, "ROWS", 3)

    np.testing.assert_allclose(fitted.predict_scores(inputs), whole, rtol=1e-6)
    cosines = models("clip").encode(inputs, "image") @ fitted.weights.T  # (n, P)
    expected = cosines.reshape(len(inputs), len(task.classnames), 3).max(axis=2)
    np.testing.assert_allclose(whole, models("clip").logit_scale * expected, rtol=1e-5)


def test_random_words_depend_on_the_seed_and_are_shared_by_the_classes(tmp_path):
    names = ("golden retriever", "tench")
    drawn = [
        Words(PromptsConfig(form="waffle", count=3), {}).with_random(names, context(tmp_path, seed))
        for seed in (1, 1, 2)
    ]

    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0].random) == 6
    first, second = drawn[0].prompts(names, ())
    assert [p.replace("golden retriever", "tench") for p in first] == second
    assert second[0] == f"A photo of a tench, {phrase(drawn[0].random[0])}."


def test_random_texts_are_about_as_long_as_the_class_names():
    names, rng = ["golden retriever", "gas pump", "French horn"], np.random.default_rng(0)
    words, letters = random_texts(names, 1, rng)

    # Two words of at most (13/2 + 7/2 + 10/2)/3 letters; groups of ceil((9 + 4 + 6)/3) // 2 + 1 letters.
    assert [len(w) <= 5 for w in words.split(" ")] == [True, True]
    assert [len(g) for g in letters.split(", ")] == [4, 4]


def test_descriptions_of_the_class_are_mixed_with_random_words(tmp_path):
    own = {"tench": ("red eyes", "fins"), "horn": ("brass",)}
    words = Words(PromptsConfig(form="waffle", count=15), own)
    words = words.with_random(tuple(own), context(tmp_path))

    for name, prompts in zip(own, words.prompts(tuple(own), ()), strict=True):
        texts = {words.config.prompt(name, text) for text in words.random}
        mine = {words.config.prompt(name, text) for text in own[name]}
        assert len(prompts) == 30
        assert len(words.random) == 20
        assert 10 <= sum(p in mine for p in prompts) <= 20
        assert set(prompts) <= texts | mine


@pytest.mark.parametrize(
    ("description", "clause"),
    [
        ("antique valves", "which is antique valves"),
        ("used daily", "which is used daily"),
        ("has a tail", "which has a tail"),
        ("canvas", "which canvas"),  # the prefix test of the official code
        ("red eyes", "which has red eyes"),
        ("", "which has "),
    ],
)
def test_the_grammar_of_a_description(description, clause):
    assert phrase(description) == clause


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "contains [1], expected classes with their sentences"),
        ("{}", "contains [], expected classes with their sentences"),
        ({"a": "b"}, "'a': 'b' is not a list of sentences"),
        ({"a": ["b", 3], "c": None}, "'a': 3 is not a sentence\n  'c': None is not a list of sentences"),
        ({"a_b": ["x"], "a b": ["y"]}, "'a b' occurs twice"),
        ('{"a": ["x"], "a": ["y"]}', "'a' occurs twice"),
        ({"a": [{"b": 1}]}, "is not a sentence"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_valid(write, content, message):
    with pytest.raises(ConfigError) as caught:
        _descriptions.read(write(content))
    assert message in str(caught.value)
    assert '{"class name": ["a sentence"' in caught.value.hint


def test_a_pickle_is_refused(tmp_path, write):
    file = tmp_path / "d.pkl"
    file.write_bytes(pickle.dumps({"a": ["b"]}))

    with pytest.raises(ConfigError, match="is a pickle, which can run any code.*\n.*json.dump"):
        _descriptions.read(str(file))
    file.rename(tmp_path / "d.json")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        _descriptions.read(str(tmp_path / "d.json"))


def test_classes_without_descriptions_are_named_before_a_model_is_loaded(small, write):
    task = small[0]
    first, *rest = task.classnames
    whole = {name: ["x"] for name in rest}

    with pytest.raises(ConfigError) as missing:
        settings(descriptions=write(whole)).check(task)
    with pytest.raises(ConfigError, match=f"only in capitals: '{first.upper()}' for '{first}'"):
        settings(descriptions=write({**whole, first.upper(): ["x"]})).check(task)
    with pytest.raises(ConfigError) as empty:
        settings(descriptions=write({**whole, first: []})).check(task)
    with pytest.raises(ConfigError, match="need a file of descriptions"):
        settings(form="dclip").check(task)
    with pytest.raises(ConfigError, match="need a file of descriptions"):
        settings().check(task)

    assert f"no entry for 1 of {len(task.classnames)} classes: '{first}'" in str(missing.value)
    assert f"no sentence for 1 of {len(task.classnames)} classes: '{first}'" in str(empty.value)
    settings(form="dclip", descriptions=write({**whole, first: []})).check(task)
    settings(form="waffle").check(task)


def test_the_run_id_has_the_content_of_the_file_and_not_its_path(write):
    content = {"a b": ["x", "y"], "c": ["z"]}
    ids = [
        settings(descriptions=write(given, name)).in_run_id()
        for given, name in (
            (content, "one.json"),
            (json.dumps({"c": ["z"], "a_b": ["x", "y"]}, indent=2), "two.json"),
            ({**content, "c": ["other"]}, "one.json"),
        )
    ]

    assert ids[0] == ids[1] != ids[2]
    config = settings(descriptions=write(content, "one.json"))
    assert run_id.file_contents(config) == {
        "method.prompts.descriptions": ids[0]["prompts"]["descriptions"]
    }
    assert run_id.file_contents(ZeroShotConfig()) == {}
    assert ZeroShotConfig().in_run_id() == {"logit_scale": None}  # ids from before are still valid


def test_the_file_is_a_deviation_only_where_the_recipe_has_no_place_for_it(write):
    words = ["data.name=synthetic", f"method.prompts.descriptions={write()}"]
    cupl = experiments.load(["zero_shot-cupl"], [*words, "method.prompts.with_templates=true"])
    other = experiments.load(["zero_shot"], words)

    assert cupl.deviations[len(cupl.config.recipe.deviations) :] == (
        "method.prompts.with_templates=True (--set)",
    )
    assert other.deviations[-1].startswith("method.prompts.descriptions=")


def test_the_method_says_what_its_prompts_are(write):
    for settings_, prompts, uses_templates in (
        (ZeroShotConfig(), "", True),
        (settings(form="waffle"), "prompts in words (waffle)", False),
        (settings(descriptions=write()), "prompts in words (cupl)", False),
        (settings(descriptions=write(), with_templates=True), "prompts in words (cupl)", True),
    ):
        method = ZeroShot(settings_)
        assert (method.prompts, method.uses_templates) == (prompts, uses_templates)
