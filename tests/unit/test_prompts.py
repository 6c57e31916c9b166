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

    name, dtype, logit_scale, logit_bias = "tower", "fp32", 10.0, 0.0

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


def run(templates, bad: float = 0.4, test: bool = False, own=None, bias: float = 0.0):
    images, examples = split()
    model = Tower(images, bad)
    model.logit_bias = bias
    own = templates[:1] if own is None else own
    test = examples if test else None
    return audit(AuditTask(model, "data", "val", examples, own, templates, test), Silent())


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
    assert on_val.selected.value == on_val.own.value == pytest.approx(good.accuracy)
    assert on_val.selected_minus_own.value == 0
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
    found = run((BAD, GOOD), test=True)

    assert len(found.selection) == 1
    assert any(s.startswith("the selected template is better than") for s in found.suggestions)


def test_a_selection_is_called_better_only_on_another_split():
    on_val, on_test = run((BAD, GOOD)), run((BAD, GOOD), test=True)

    (said,) = (s for s in on_val.suggestions if "selected" in s)
    assert "better" not in said
    assert "on val, which is optimistic because val was used to select" in said
    assert not any("optimistic" in s for s in on_test.suggestions)


def test_a_long_template_is_shortened_where_it_is_read():
    long = "word " * 15 + "{} noise"
    found = run((GOOD, BAD, long), bad=-0.5, own=(long,))

    assert long not in render(found).replace("\\", "")
    assert not any(long in s for s in found.suggestions)
    assert any(g.template == long for g in found.templates)
    assert max(map(len, render(found).split("\n"))) < 400


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


def test_the_loss_of_a_model_with_a_sigmoid_loss_is_that_of_its_sigmoids():
    plain, sigmoid = run((GOOD, BAD)), run((GOOD, BAD), bias=-5.0)

    images, examples = split()
    z = (10 * images - 5).astype(np.float64)
    losses = np.logaddexp(0, z).sum(1) - z[np.arange(60), examples.labels]
    assert (plain.probabilities, sigmoid.probabilities) == ("softmax", "sigmoid")
    assert sigmoid.selection[0].nll == pytest.approx(losses.mean(), rel=1e-5)
    shifted = z - z.max(1, keepdims=True)
    softmax = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(60), examples.labels]
    assert plain.selection[0].nll == pytest.approx(softmax.mean(), rel=1e-5)
    assert "one sigmoid per class" in render(sigmoid)
    assert "sigmoid" not in render(plain)


def test_the_own_templates_of_a_dataset_are_one_ensemble():
    other = "a drawing of a {}."
    both, one = run((GOOD, BAD, other), own=(GOOD, BAD)), run((GOOD, BAD), own=(GOOD, BAD))

    assert both.ensembles[0].own == one.ensembles[0].all
    assert "the mean of 2 templates, the first 'a photo of a {}.'" in render(both).replace("\\", "")
    (said,) = (s for s in both.suggestions if "own" in s)
    assert "minus the dataset's own 2 templates: " in said


@pytest.mark.parametrize("own", [(LONG,), (GOOD, LONG), ()])
def test_no_other_template_is_called_the_datasets_own(own):
    found = run((GOOD, BAD, LONG), own=own)

    assert found.ensembles[0].own is None
    assert found.ensembles[0].selected_minus_own is None
    assert not [s for s in found.suggestions if "own template" in s]
    assert ("Not all of the dataset's own templates fit" in render(found)) == bool(own)


@pytest.mark.parametrize(
    ("confused", "n", "suggested"), [(1, 10, False), (3, 20, False), (8, 20, True), (14, 100, False), (30, 100, True)]
)  # fmt: skip
def test_a_new_name_is_suggested_only_with_evidence(confused, n, suggested):
    labels = np.repeat([0, 1, 2], [n, n, 20])
    images = np.eye(3, dtype=np.float32)[labels]
    images[: 2 * confused] = np.eye(3)[1]  # n cats, of which some look like dogs
    ids = tuple(map(str, range(len(labels))))
    examples = Split(Inputs(ids, ids), labels.astype(np.int64), NAMES)
    task = AuditTask(Tower(images), "data", "val", examples, (GOOD,), (GOOD,))

    found = audit(task, Silent())

    (pair,) = (p for p in found.pairs if {p.first, p.second} == {"cat", "dog"})
    assert (pair.confused, pair.n) == (2 * confused, 2 * n)
    assert pair.share.value == pytest.approx(confused / n)
    assert (pair.share.low > 0.1) == suggested
    assert any("are confused in" in s for s in found.suggestions) == suggested
