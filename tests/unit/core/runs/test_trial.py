"""A run tried on a few inputs, as plain data: classes, sets, near training examples, other classes."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import cards
from clipadapt.core.runs.inference import load_run
from clipadapt.core.runs.sets import SetOptions
from clipadapt.core.runs.trial import MOST_INPUTS, Answer, Asked, Result, Trial, read_names
from tests.integration.conftest import COLOURS, picture, rewrite


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("trial") / "images"
    for s, (split, n) in enumerate((("train", 5), ("val", 4), ("test", 4))):
        for c, (name, colour) in enumerate(COLOURS.items()):
            for i in range(n):
                picture(root / split / name / f"{i}.png", colour, 1000 * s + 100 * c + i)
    return root


@pytest.fixture(scope="module")
def fitted(images, tiny_clip, tmp_path_factory):
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.session import run_experiments

    def fit(recipe, *settings):
        out = tmp_path_factory.mktemp("runs")
        given = [f"model.name={tiny_clip}", f"data.name=folder:{images}", "seeds=[1]", *settings]
        (record,) = run_experiments([config.load([recipe], given)], out)
        return RunStore(out).run_dir(record)

    return fit


@pytest.fixture(scope="module")
def zero_shot(fitted):
    return Trial(load_run(fitted("zero_shot")))


@pytest.fixture(scope="module")
def tip(fitted):
    return fitted("tip_adapter-quick", "data.shots=2")


def paths(images, split="test"):
    return [str(images / split / name / "0.png") for name in COLOURS]


def test_predictions_are_those_of_predict(zero_shot, images):
    given = paths(images)

    found = zero_shot.predict(given, Asked(top=3)).results
    expected = zero_shot.run.predict(zero_shot.track.trial.inputs(given), top=3)

    assert [r.name for r in found] == ["0.png"] * 3
    for one, wanted in zip(found, expected, strict=True):
        assert [label for label, _ in one.top] == [t["label"] for t in wanted["top"]]
        np.testing.assert_allclose(
            [p for _, p in one.top], [t["probability"] for t in wanted["top"]], rtol=1e-5
        )
        assert one.members is None
        assert one.none_of_these is False


def test_sets_are_those_of_the_rule_and_say_how_good_they_are(zero_shot, images):
    from clipadapt.core.runs.sets import make_rule

    answer = zero_shot.predict(paths(images), Asked(0.8, 0.1, 3))
    rule = make_rule(zero_shot.run, SetOptions(0.8, reject_rate=0.1))
    scores = zero_shot.run.classifier.predict_scores(zero_shot.track.trial.inputs(paths(images)))
    wanted = rule.apply(zero_shot.run.probabilities(scores), zero_shot.classnames)

    assert [list(r.members) for r in answer.results] == [w["set"] for w in wanted]
    assert [r.none_of_these for r in answer.results] == [w["none_of_these"] for w in wanted]
    assert any("probability 0.8 (lac, calibrated on 12 examples of val)" in n for n in answer.notes)


def test_too_few_calibration_examples_are_a_sentence_and_the_rest_still_works(zero_shot, images):
    answer = zero_shot.predict(paths(images), Asked(0.99, 0.1))

    assert any(
        "coverage of 0.99 needs at least 99 calibration examples, and there are 12" in n
        for n in answer.notes
    )
    assert all(r.members is None and r.top for r in answer.results)
    assert any("'none of these' means a confidence below" in n for n in answer.notes)


def test_the_nearest_training_example_of_a_training_image_is_itself(tip, images):
    trial = Trial(load_run(tip), k=2)
    n = len(trial.near.examples)

    answer = trial.predict(paths(images, "train") + paths(images), Asked())

    assert n == trial.near.total == 6  # two shots of three classes
    rows = [row for r in answer.results for (row, _, _), _ in r.neighbours]
    assert len(rows) == 12
    drawn = {name: i for i, name in enumerate(trial.near.examples.base.names)}
    for name, result in zip(COLOURS, answer.results, strict=False):
        (first, example), (second, _) = result.neighbours
        assert first.similarity >= second.similarity
        assert first.label in {c.replace("_", " ") for c in COLOURS} | set(COLOURS)
        assert example.size == (48, 40)
        if drawn[f"train/{name}/0.png"] in trial.near.examples.indices.tolist():
            assert first.similarity == pytest.approx(1, abs=1e-5)
    # The cosine is that of the model's own features.
    model = trial.run.backbone
    features = model.encode(trial.track.trial.inputs(paths(images)), "image")
    cosine = (features @ trial.near.features.T).max(axis=1)
    np.testing.assert_allclose(
        [r.neighbours[0][0].similarity for r in answer.results[3:]], cosine, atol=1e-5
    )


def test_a_final_fit_on_val_too_is_searched_with_val(fitted):
    trial = Trial(load_run(fitted("linear_probe-quick", "method.refit=true")))

    assert trial.near.total == 3 * (5 + 4)


def test_training_images_that_are_not_here_are_said_and_the_rest_works(tip, images):
    run = load_run(tip)
    gone = tip / "record.json"
    kept = gone.read_bytes()
    try:
        rewrite(tip, lambda r: r["config"]["data"].update(name="folder:/nowhere"))
        trial = Trial(load_run(tip))
    finally:
        gone.write_bytes(kept)
    answer = trial.predict(paths(images), Asked())

    assert trial.near is None
    assert trial.why_not_near.startswith("no training examples are shown: ")
    assert "/nowhere" in trial.why_not_near
    assert all(r.top and not r.neighbours for r in answer.results)
    assert any(n.startswith("No training examples are shown") for n in answer.notes)
    assert Trial(run, k=0).why_not_near == ""


def test_other_classes_are_those_of_the_classifier_for_them(zero_shot, images):
    asked = Asked(0.8, None, 4, "red\nblue\ngreen\nyellow", "a drawing of a {}.\na {}.")
    answer = zero_shot.predict(paths(images), asked)
    other = zero_shot.run.classifier.with_classnames(
        ("red", "blue", "green", "yellow"), ("a drawing of a {}.", "a {}.")
    )
    scores = other.predict_scores(zero_shot.track.trial.inputs(paths(images)))

    assert [r.top[0][0] for r in answer.results] == [other.classnames[i] for i in scores.argmax(1)]
    assert all(r.members is None for r in answer.results)
    assert any("sets: they are calibrated for the run's own" in n for n in answer.notes)
    same = zero_shot.predict(paths(images), Asked(0.8, classnames="\n".join(zero_shot.classnames)))
    assert all(r.members is not None for r in same.results)


def test_templates_that_a_method_does_not_use_change_nothing_and_it_is_said(fitted, images):
    trial = Trial(load_run(fitted("coop-quick", "method.epochs=1", "data.shots=1")), k=0)

    answer = trial.predict(paths(images), Asked(templates="a drawing of a {}."))

    assert trial.open_vocabulary
    assert answer.results == trial.predict(paths(images), Asked()).results
    assert "clip/coop predicts without templates." in answer.notes


def test_a_closed_classifier_ignores_other_classes(tip, images):
    trial = Trial(load_run(tip), k=0)

    answer = trial.predict(paths(images), Asked(classnames="a\nb"))

    assert not trial.open_vocabulary
    assert {label for r in answer.results for label, _ in r.top} == set(trial.classnames)


@pytest.mark.parametrize(
    ("names", "templates", "words"),
    [
        ("dog", "", "at least 2 class names (got 1: dog)"),
        ("dog\nDog", "", "'dog' and 'Dog' are the same"),
        ("a\nb", "a photo", "the template 'a photo' needs exactly one '{}'"),
        ("a\nb", "{} and {}", "the template '{} and {}' needs exactly one '{}'"),
        ("a\nb", "/etc/passwd", "the template '/etc/passwd' needs exactly one"),
    ],
)
def test_wrong_names_and_templates_are_one_message(zero_shot, images, names, templates, words):
    with pytest.raises((ConfigError, DataError)) as caught:
        zero_shot.predict(paths(images)[:1], Asked(classnames=names, templates=templates))

    assert words in caught.value.problem
    assert caught.value.hint


def test_names_on_one_line_may_have_commas_between_them():
    assert read_names(["red, blue,green "]) == ("red", "blue", "green")


def test_a_file_that_is_no_image_has_a_message_and_the_others_are_predicted(
    zero_shot, images, tmp_path
):
    bad = tmp_path / "<b>bad.png"
    bad.write_text("no image")

    answer = zero_shot.predict([str(bad), paths(images)[0]], Asked())
    html = cards.cards(answer)

    first, second = answer.results
    assert "'<b>bad.png' is not an image" in first.error
    assert str(tmp_path) not in first.error
    assert "--" not in first.error  # no hint for the command line
    assert second.top
    assert "<b>bad" not in html
    assert "&lt;b&gt;bad.png" in html
    assert zero_shot.predict([str(bad)], Asked()).results[0].error


def test_too_many_inputs_are_refused(zero_shot):
    with pytest.raises(ConfigError, match="clipadapt predict"):
        zero_shot.predict(["x"] * (MOST_INPUTS + 1), Asked())


def test_cards_show_class_set_rejection_and_neighbours(tip, images):
    trial = Trial(load_run(tip), k=3)
    html = cards.cards(trial.predict(paths(images)[:1], Asked(top=2)))
    empty = Result("x.png", "a text", "", (("dog", 0.5), ("<cat>", 0.25)), (), none_of_these=True)
    other = cards.cards(Answer((empty,), ("A note.",)))

    assert html.count("data:image/jpeg;base64,") == 1 + 3
    assert html.count("--p:") == 2
    assert "none of these" in other
    assert "(most probable: dog, 50.0%)" in other
    assert "empty: no class is plausible" in other
    assert "&lt;cat&gt;" in other
    assert "A note." in other
    assert "clip/tip_adapter" in cards.about(trial.run.record)


def test_texts_have_neighbours_too(tiny_texts, tmp_path):
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.session import run_experiments

    rows = [(f"a fine film {i}", "good") for i in range(6)]
    rows += [(f"a dull film {i}", "bad") for i in range(6)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(f"{t},{y}" for t, y in rows))
    settings = [
        f"model.name=local-dir:{tiny_texts['bert']}", f"data.name=csv:{tmp_path / 't.csv'}",
        "seeds=[1]",
    ]  # fmt: skip
    (record,) = run_experiments(
        [config.load(["logreg-quick"], settings, track="text")], tmp_path / "o"
    )
    trial = Trial(load_run(RunStore(tmp_path / "o").run_dir(record)), k=2)

    answer = trial.predict(["a fine film 1", " "], Asked(top=2))

    (near, text), _ = answer.results[0].neighbours
    assert text.startswith("a ")
    assert near.label in {"good", "bad"}
    assert answer.results[1].error == "Text 0 is empty."
    assert not trial.open_vocabulary
