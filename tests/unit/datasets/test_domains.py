"""Datasets of several domains: published lists, folders without them, all of a domain as test."""

from __future__ import annotations

import pytest

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError
from clipadapt.core.api.registry import DATASETS
from clipadapt.core.experiments.sweep import load_protocol
from tests.unit.datasets.coop_layout import write_image

STRICT = DatasetOptions()
CLASSES = ("alarm_clock", "zebra")


def opened(name, options=STRICT):
    resolved = DATASETS.resolve(name, "clip")
    return resolved.provider(resolved.argument, options)


def make(root, domain, ends, first, lists, n=20):
    """Write ``n`` images per class for each list."""
    seed = 0
    for end in ends:
        lines = []
        for label, name in enumerate(CLASSES):
            for _ in range(n):
                seed += 1
                path = f"{domain}/{name}/{seed:04}.jpg"
                write_image(root / path, label, seed)
                lines.append(f"{path} {label + first}")
        lists.mkdir(exist_ok=True)
        (lists / f"{domain}{end}").write_text("\n".join(lines) + "\n")


PACS = ("_train_kfold.txt", "_crossval_kfold.txt")
DOMAINNET = ("_train.txt", "_test.txt")


@pytest.mark.parametrize("place", ["beside", "splits", "above"])
@pytest.mark.parametrize(
    ("name", "ends", "first"), [("pacs", PACS, 1), ("domainnet", DOMAINNET, 0)]
)
def test_the_lists_are_the_splits(tmp_path, name, ends, first, place):
    root = tmp_path / "data" / "images"
    lists = {"beside": root, "splits": root / "splits", "above": tmp_path / "data" / "splits"}[
        place
    ]
    lists.mkdir(parents=True)
    make(root, "sketch", ends, first, lists)

    data = opened(f"{name}:{root}/sketch")

    assert data.name == f"{name}:sketch"
    assert data.classnames == ("alarm clock", "zebra")
    assert data.flags == ()
    test = data.split("test")
    assert test.inputs.ids == tuple(
        f"{c}/{i:04}.jpg" for c, begin in (("alarm_clock", 41), ("zebra", 61)) for i in range(begin, begin + 20)
    )  # fmt: skip
    assert test.labels.tolist() == [0] * 20 + [1] * 20
    train, val = data.split("train"), data.split("val")
    assert len(train) + len(val) == 40
    assert 1 <= len(val) <= 12
    assert test.inputs.examples[0].size == (8, 8)

    whole = opened(f"{name}:{root}/sketch?test=all")
    assert (whole.name, whole.splits) == (f"{name}:sketch:all", ("test",))
    ids = [i for s in data.splits for i in data.split(s).inputs.ids]
    assert sorted(ids) == list(whole.split("test").inputs.ids)
    assert whole.split("test").labels.sum() == 40
    assert whole.split("test").inputs.examples[79].size == (8, 8)


def test_a_domain_without_lists_is_a_folder(tmp_path):
    for split, n in (("train", 4), ("test", 3)):
        for label, name in enumerate(CLASSES):
            for i in range(n):
                write_image(tmp_path / "photo" / split / name / f"{i}.jpg", label, i)

    data = opened(f"pacs:{tmp_path}/photo")

    assert {s: len(data.split(s)) for s in data.splits} == {"train": 8, "test": 6}
    assert data.name == "pacs:photo"
    assert "not_the_official_split" in data.flags
    assert "the published lists of images are not in" in data.notes[-1]
    whole = opened(f"pacs:{tmp_path}/photo?test=all")
    assert len(whole.split("test")) == 14
    assert whole.split("test").inputs.examples[0].size == (8, 8)


def test_the_real_mini_set(shared):
    data = opened(f"pacs:{shared}/data/pacs-mini/sketch")
    plain = opened(f"folder:{shared}/data/pacs-mini/sketch")

    assert data.classnames == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert data.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("photo/zebra/1.jpg 1", r"expected sketch/CLASS/IMAGE LABEL"),
        ("sketch/zebra/1.jpg", r"expected sketch/CLASS/IMAGE LABEL"),
        ("sketch/../1.jpg 1", r"expected sketch/CLASS/IMAGE LABEL"),
        ("sketch/zebra/1.jpg 0", "gives the label 0 to 'zebra', other lines to 'alarm_clock'"),
        ("sketch/cat/1.jpg 3", "have no image of the label 2"),
        ("sketch/cat/1.jpg 999999999", "have no image of the label 2"),
        ("sketch/cat/1.jpg 9999999999", r"expected sketch/CLASS/IMAGE LABEL"),
        ("sketch/zebra/none.jpg 1", r"1 of the 41 images in .* are not in .*'zebra/none\.jpg'\n"),
    ],
)
def test_a_list_that_does_not_fit(tmp_path, line, message):
    make(tmp_path, "sketch", DOMAINNET, 0, tmp_path)
    write_image(tmp_path / "sketch" / "cat" / "1.jpg", 0, 0)
    with (tmp_path / "sketch_test.txt").open("a") as file:
        file.write(line + "\n")

    with pytest.raises(DataError, match=message):
        opened(f"domainnet:{tmp_path}/sketch")
    for end in DOMAINNET:
        (tmp_path / f"sketch{end}").write_text("")
    with pytest.raises(DataError, match="have no image of the label 0"):
        opened(f"domainnet:{tmp_path}/sketch")


@pytest.mark.parametrize("within", ["one list", "two lists"])
def test_an_image_that_is_listed_twice(tmp_path, within):
    make(tmp_path, "sketch", PACS, 1, tmp_path, n=2)
    train, val = (tmp_path / f"sketch{end}" for end in PACS)
    target = train if within == "one list" else val
    with target.open("a") as file:
        file.write("sketch/zebra/0003.jpg 2\n")

    for query in ("", "?test=all"):
        with pytest.raises(DataError, match=r"lists 'zebra/0003\.jpg' a second time"):
            opened(f"pacs:{tmp_path}/sketch{query}")


def test_a_folder_that_is_no_domain(tmp_path):
    (tmp_path / "sketch").mkdir()
    with pytest.raises(
        DataError, match=r"is not the folder of a domain of pacs: photo, art_painting"
    ):
        opened(f"pacs:{tmp_path}")
    with pytest.raises(DataError, match="pacs is not downloaded automatically"):
        opened("pacs")
    with pytest.raises(DataError, match=r"'\?all' is not an option of pacs"):
        opened(f"pacs:{tmp_path}/sketch?all")
    with pytest.raises(DataError, match="there is no folder"):
        opened(f"pacs:{tmp_path}/sketsh")


def test_unreadable_images_are_skipped(tmp_path):
    make(tmp_path, "sketch", DOMAINNET, 0, tmp_path)
    (tmp_path / "sketch" / "zebra" / "0061.jpg").write_text("text")

    data = opened(f"domainnet:{tmp_path}/sketch", DatasetOptions(on_bad_image="skip"))

    assert (data.skipped, len(data.split("test"))) == (1, 39)


def test_each_domain_is_transferred_to_the_others():
    targets = load_protocol("domain_shift")[1].eval_on
    for name, count in (("pacs", 4), ("domainnet", 6)):
        sources = [s for s in targets if s.startswith(f"{name}:")]
        assert len(sources) == count
        for source in sources:
            assert {t.removesuffix("?test=all") for t in targets[source]} == set(sources) - {source}
