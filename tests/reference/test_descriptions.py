"""``clip/zero_shot`` with prompts in words against CuPL, DCLIP and WaffleCLIP, through ``fit`` itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods._descriptions import Words, phrase
from clipadapt.methods.zero_shot import ZeroShot, ZeroShotClassifier, ZeroShotConfig

from . import tinyclip
from .parity import fixture

DATA = fixture("descriptions")
SPEC = DATA.spec
NAMES = [name.replace("_", " ") for name in SPEC["classnames"]]
N = len(DATA.inputs["image_features"])
IDS = tuple(map(str, range(N)))
MODES = sorted(SPEC["waffle_prompts"])
START = "A photo of a "


class GivenFeatures:
    """The tiny CLIP's text tower with the fixture's image features."""

    def __init__(self, folder: Path) -> None:
        self._model = tinyclip.load(folder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, inputs: Inputs[Any], tower: str, layer: str = "output") -> np.ndarray:
        if tower == "text":
            return self._model.encode(inputs, "text", layer)
        return DATA.inputs["image_features"][[int(i) for i in inputs.ids]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GivenFeatures:
    return GivenFeatures(
        tinyclip.write_folder(tmp_path_factory.mktemp("tiny") / "clip", "descriptions")
    )


@pytest.fixture
def fit(model, tmp_path):
    """Fit the shipped method; returns the classifier and its cosines."""

    def call(
        prompts: dict[str, Any] | None = None,
        *,
        sentences: dict[str, list[str]] | None = None,
        templates: list[str] | None = None,
        start: dict[str, np.ndarray] | None = None,
    ) -> tuple[ZeroShotClassifier, np.ndarray]:
        if sentences is not None:
            file = tmp_path / "descriptions.json"
            file.write_text(json.dumps(sentences))
            prompts = {**(prompts or {}), "descriptions": str(file)}
        config = ZeroShotConfig.model_validate({"logit_scale": 1, "prompts": prompts})
        task = Task(tuple(NAMES), tuple(templates or SPEC["templates"]))
        config.check(task)
        context = tinyclip.context(tmp_path, start=start or {})
        found = ZeroShot(config).fit(model, task, context)
        return found, found.predict_scores(Inputs(IDS, IDS))

    return call


def accuracy(scores: np.ndarray) -> float:
    return 100 * topk_accuracy(scores, DATA.inputs["labels"], 1)


@pytest.mark.parametrize("variant", ["templates", "cupl", "cupl_both"])
def test_cupl(fit, variant):
    words = {"form": "cupl", "with_templates": variant == "cupl_both"}
    if variant == "templates":
        classifier, scores = fit()
    else:
        classifier, scores = fit(words, sentences=SPEC["cupl_prompts"])

    DATA.assert_close(f"{variant}.weights", classifier.weights.T)
    DATA.assert_close(f"{variant}.logits", scores)
    DATA.assert_close(f"{variant}.acc", accuracy(scores))


@pytest.mark.parametrize(("variant", "end"), [("dclip", ""), ("dclip_imagenet", ".")])
def test_dclip(fit, variant, end):
    words = {"form": "dclip", "end": end}
    classifier, scores = fit(words, sentences=SPEC["descriptors"])
    _, labels = fit(templates=[f"{{}}{end}"])

    assert classifier.words.prompts(NAMES, ()) == list(SPEC[f"{variant}_prompts"].values())
    DATA.assert_close(f"{variant}.scores", scores)
    DATA.assert_close(f"{variant}.mean_embedding", classifier.weights)
    DATA.assert_close(f"{variant}.acc", accuracy(scores))
    DATA.assert_close(f"{variant}.label_logits", labels)
    for combine in ("max", "sum"):
        if f"{variant}.scores_{combine}" in DATA.expected:
            _, scores = fit({**words, "combine": combine}, sentences=SPEC["descriptors"])
            DATA.assert_close(f"{variant}.scores_{combine}", scores)


def texts_of(mode: str) -> dict[str, list[str]]:
    """Return the descriptions and random texts from which the official code made the prompts of each class."""
    found = {}
    for name, prompts in SPEC["waffle_prompts"][mode].items():
        head = f"{START}{name.replace('_', ' ')}, "
        clauses = [prompt.removeprefix(head).removesuffix(".") for prompt in prompts]
        texts = [c.removeprefix("which ") for c in clauses]
        own = [[t.removeprefix(word) for word in ("", "has ", "is ")] for t in texts]
        pairs = zip(clauses, own, strict=True)
        found[name] = [next(t for t in several if phrase(t) == clause) for clause, several in pairs]
    return found


@pytest.mark.parametrize("mode", MODES)
def test_waffle(fit, mode):
    words: dict[str, Any] = {"form": "waffle"}
    given: dict[str, Any] = {}
    if mode == "clip":  # no description at all
        templates = [f"{START}{{}}."]
        given = {"templates": templates}
    elif mode == "gpt_descriptions":
        words = {"form": "dclip", "start": START, "end": "."}
        given = {"sentences": SPEC["descriptors"]}
    elif mode == "waffle":
        drawn = next(iter(texts_of(mode).values()))
        assert all(texts == drawn for texts in texts_of(mode).values())
        words["count"] = len(drawn) // 2
        given = {"start": {"random": np.array(drawn)}}
    else:
        mixed = {f"mixed.{n.replace('_', ' ')}": np.array(t) for n, t in texts_of(mode).items()}
        size = len(next(iter(mixed.values())))
        words["count"] = -(-size // 2)
        given = {"sentences": SPEC["descriptors"], "start": mixed}

    got = {}
    for name, combine in (("scores", "scores"), ("merged_scores", "features")):
        own = None if mode == "clip" else {**words, "combine": combine}
        classifier, got[name] = fit(own, **given)
        DATA.assert_close(f"waffle_mode_{mode}.{name}", got[name])
    DATA.assert_close(f"waffle_mode_{mode}.acc", np.array([accuracy(s) for s in got.values()]))
    if mode in {"gpt_descriptions", "waffle"}:
        prompts = classifier.words.prompts(NAMES, ())
        assert prompts == list(SPEC["waffle_prompts"][mode].values())


def test_the_default_form_of_each_method_is_the_official_one(tmp_path):
    file = tmp_path / "d.json"
    file.write_text(json.dumps(SPEC["descriptors"]))
    defaults = {
        form: Words.of(ZeroShotConfig(prompts={"form": form, "descriptions": str(file)}).prompts)
        for form in ("cupl", "dclip", "waffle")
    }

    assert [w.config.combined for w in defaults.values()] == ["features", "scores", "scores"]
    assert defaults["dclip"].prompts(NAMES, ()) == list(SPEC["dclip_prompts"].values())


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
