"""The prompt audit: gains, selection, close class names and prompts that do not fit, on features with known answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Split
from clipadapt.core.api.errors import DataError, ModelError
from clipadapt.core.api.progress import Silent
from clipadapt.prompts import AuditTask, audit
from clipadapt.prompts_page import render, write_page

NAMES = ("cat", "dog", "car")
GOOD, BAD, LONG = "a photo of a {}.", "noise {}", "very " * 30 + "{}"


class Tower:
    """A model whose prompts of GOOD point at their class, those of BAD at the next one."""

    name, logit_scale, logit_bias = "tower", 10.0, 0.0

    def __init__(self, images: np.ndarray, bad: float = 0.4) -> None:
        self.images, self.bad = images, bad

    def tokenize(self, texts):
        for text in texts:
            if len(text) > 100:
                raise ModelError(f"a text of {len(text)} tokens is too long", hint="shorten it")

    def encode(self, inputs: Inputs, tower: str) -> np.ndarray:
        if tower == "image":
            return self.images[[int(i) for i in inputs.ids]]
        rows = []
        for text in inputs.examples:
            c = next(i for i, name in enumerate(NAMES) if name in text)
            row = np.eye(3, dtype=np.float32)[c].copy()
            if text.startswith("noise"):
                row = np.roll(row, 1) + np.float32(self.bad) * row
            rows.append(row / np.linalg.norm(row))
        return np.stack(rows)


def split() -> tuple[np.ndarray, Split]:
    labels = np.repeat(np.arange(3), 20)
    rng = np.random.default_rng(0)
    images = np.eye(3)[labels] + 0.2 * rng.normal(size=(60, 3))
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    ids = tuple(map(str, range(60)))
    return images, Split(Inputs(ids, ids), labels.astype(np.int64), NAMES)


def run(templates, bad: float = 0.4, test: bool = False):
    images, examples = split()
    task = AuditTask(
        Tower(images, bad), "data", "val", examples, templates, examples if test else None
    )
    return audit(task, Silent())


def test_a_harmful_template_is_found_and_left_out():
    found = run((GOOD, BAD), bad=-0.5)

    good, bad = found.templates
    assert good.accuracy > 0.95
    assert bad.accuracy < 0.5
    assert bad.gain.value < 0 < good.gain.value
    assert bad.gain.low <= bad.gain.value <= bad.gain.high
    assert [s.template for s in found.selection] == [GOOD]
    (on_val,) = found.ensembles
    assert (on_val.split, on_val.n) == ("val", 60)
    assert on_val.selected.value == on_val.first.value == pytest.approx(good.accuracy)
    assert on_val.selected_minus_first.value == 0
    without_bad = on_val.all.value - good.accuracy
    assert bad.gain.value == pytest.approx(without_bad)
    assert any(BAD in s and "leave out" in s for s in found.suggestions)


def test_one_template_has_no_gain_over_itself():
    found = run((GOOD,))

    assert [g.gain.value for g in found.templates] == [0.0]
    assert len(found.selection) == 1
    assert found.suggestions == ()
    assert "nothing to change" in render(found)


def test_prompts_that_do_not_fit_are_named_and_left_out():
    found = run((GOOD, LONG))

    assert [g.template for g in found.templates] == [GOOD]
    assert len(found.long_prompts) == len(NAMES)
    assert "tokens is too long" in found.long_prompts[0].problem
    assert any("3 prompts are longer" in s for s in found.suggestions)
    with pytest.raises(DataError, match="cannot read"):
        run((LONG,))


def test_closest_names_come_first_with_their_confusions():
    found = run((GOOD, BAD))

    cosines = [p.cosine for p in found.pairs]
    assert cosines == sorted(cosines, reverse=True)
    assert len(found.pairs) == 3
    assert all(p.n == 40 and 0 <= p.confused <= p.n for p in found.pairs)
    assert found.median_cosine == pytest.approx(float(np.median(cosines)))


def test_suggestions_count_in_words_of_one_and_of_several():
    found = run((BAD, GOOD))

    assert len(found.selection) == 1
    assert any(s.startswith("the selected template is better than") for s in found.suggestions)


def test_a_selection_is_confirmed_on_test():
    found = run((GOOD, BAD), test=True)

    assert [e.split for e in found.ensembles] == ["val", "test"]
    assert found.ensembles[0].selected == found.ensembles[1].selected


def test_the_page_escapes_and_the_document_is_json(tmp_path):
    found = run((GOOD, "<b>{}</b> a photo"))

    write_page(tmp_path / "p.html", found)

    page = (tmp_path / "p.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    document = json.loads(json.dumps(found.as_dict()))
    assert document["templates"][0]["gain"].keys() >= {"value", "low", "high"}
