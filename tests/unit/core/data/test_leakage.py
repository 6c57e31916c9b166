from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from clipadapt.core.api.data import Inputs, Split, Subset, thumbnail
from clipadapt.core.api.errors import DataError
from clipadapt.core.data import leakage
from clipadapt.core.data.labelled import LabelledSet, make_split

NAMES = ("cat", "dog")


def scene(seed: int) -> Image.Image:
    """A smooth picture, like a photograph, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((120, 120), Image.Resampling.BICUBIC)


def squeezed(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=40)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def labelled(name: str, classnames=NAMES, aliases=None, **parts) -> LabelledSet:
    splits = {
        split: make_split(
            examples,
            [f"{split}/{i}" for i in range(len(examples))],
            [i % 2 for i in range(len(examples))],
            classnames,
        )
        for split, examples in parts.items()
    }
    return LabelledSet(name, classnames, "none", "none", "here", splits, aliases=aliases or {})


def counts(facts: leakage.LeakageFacts) -> dict[tuple[str, str], tuple[int, int | None]]:
    return {(o.trained, o.evaluated): (o.exact, o.near) for o in facts.overlaps}


def test_exact_and_near_duplicates_of_images_are_counted_separately():
    train = [scene(i) for i in range(6)]
    test = [scene(10), train[1].copy(), squeezed(train[2]), train[3].resize((70, 90)), scene(11)]
    val = [squeezed(train[4]), scene(12)]
    data = labelled("pictures", train=train, val=val, test=test)

    facts = leakage.examine(data, "test", data, "test")

    assert counts(facts) == {
        ("train", "test"): (1, 2),
        ("val", "test"): (0, 0),
        ("train", "val"): (0, 1),
    }
    assert facts.near_by == "thumbnails"
    assert facts.overlaps[0].examples == (
        ("train/1", "test/1"), ("train/2", "test/2"), ("train/3", "test/3"),
    )  # fmt: skip
    assert facts.flags(5) == ("leakage", "duplicates_train_val")
    assert leakage.examine(data, "test", data, "test") == facts  # from the cache


@pytest.mark.parametrize(
    "change",
    [
        squeezed,
        lambda i: i.resize((60, 60)),
        lambda i: i.resize((224, 200)),
        lambda i: i.crop((1, 1, 119, 119)),
        lambda i: ImageEnhance.Contrast(i).enhance(1.3),
    ],
    ids=["jpeg", "half", "aspect", "crop 1 %", "contrast"],
)
def test_only_a_changed_copy_is_near(change):
    originals = np.stack([thumbnail([scene(i)], 0) for i in range(40)])
    copies = np.stack([thumbnail([change(scene(i))], 0) for i in range(40)])

    found = leakage.cosine_neighbours(
        leakage.gradients(originals), leakage.gradients(copies), leakage.NEAR_IMAGE
    )
    others = leakage.cosine_neighbours(
        leakage.gradients(originals[:20]), leakage.gradients(originals[20:]), leakage.NEAR_IMAGE
    )

    assert found.tolist() == list(range(40))
    assert (others == -1).all()


def test_pictures_that_differ_in_colour_alone_are_not_near():
    def disc(colour):
        image = Image.new("RGB", (64, 64), "white")
        image.paste(colour, (16, 16, 48, 48))
        return image

    data = labelled("discs", train=[disc("red"), scene(1)], test=[disc("blue"), scene(2)])

    assert counts(leakage.examine(data, "test", data, "test")) == {("train", "test"): (0, 0)}


def test_uniform_images_are_exact_but_not_near_duplicates():
    def blank(grey):
        return Image.new("RGB", (40, 40), (grey, grey, grey))

    data = labelled("blank", train=[blank(10), blank(20)], test=[blank(10), blank(30)])

    assert counts(leakage.examine(data, "test", data, "test")) == {("train", "test"): (1, 0)}


def test_texts_are_compared_by_their_words():
    train = ["A fine film, well made and well played by all.", "dull", "the third of them"]
    test = ["a FINE film well made and well played by all", "dull", "nothing of the kind"]
    data = labelled("reviews", train=train, test=test)

    facts = leakage.examine(data, "test", data, "test")

    assert counts(facts) == {("train", "test"): (1, 1)}
    assert facts.near_by == "words"


def test_another_dataset_is_compared_with_the_training_data():
    home = labelled("home", train=[scene(1), scene(2)], test=[scene(3), scene(4)])
    away = labelled("away", ("Cat", "wolf"), test=[scene(2), scene(5)])

    facts = leakage.examine(home, "test", away, "test")

    assert counts(facts) == {("train", "test"): (1, 0)}


def test_a_copy_of_a_split_is_that_split_under_any_name():
    train, val = [scene(1), scene(2)], [scene(3), scene(4)]
    home = labelled("home", train=train, val=val, test=[scene(5)])
    away = labelled("away", test=train[::-1], val=val)

    on_train = leakage.examine(home, "test", away, "test")
    on_val = leakage.examine(home, "test", away, "val")

    assert on_train.flags(2) == ("evaluated_on_train", "leakage")
    assert on_val.flags(2) == ("evaluated_on_val", "leakage")
    assert [o.before for o in on_val.overlaps] == [False, False, True]


def test_duplicates_between_train_and_val_have_their_own_flag():
    home = labelled("home", train=[scene(1), scene(2)], val=[scene(1)], test=[scene(5)])
    away = labelled("away", val=[scene(6)])

    assert leakage.examine(home, "test", away, "val").flags(1) == ("duplicates_train_val",)


def test_the_held_out_split_is_not_trained_on_under_an_alias():
    parts = {"train": [scene(1), scene(2)], "val": [scene(3)], "test": [scene(3)]}
    data = labelled("alias", aliases={"val": "test"}, **parts)

    assert leakage.trainable(data, "test") == ("train",)
    assert counts(leakage.examine(data, "test", data, "test")) == {("train", "test"): (0, 0)}
    on_val = leakage.examine(data, "val", data, "val")
    assert counts(on_val) == {("train", "val"): (0, 0)}


def test_an_undecodable_image_does_not_stop_the_search():
    class Broken(list):
        def __getitem__(self, index):
            if index == 0:
                raise DataError("broken")
            return super().__getitem__(index)

        def digest(self, index):
            return bytes([index]) * 32

    data = labelled("broken", train=[scene(1), scene(2)], test=[scene(2)])
    part = data.parts["train"]
    broken = Split(Inputs(Broken(part.inputs.examples), part.inputs.ids), part.labels, NAMES)
    data = labelled("broken", test=[scene(2)])
    object.__setattr__(data, "parts", {"train": broken, "test": data.parts["test"]})

    assert counts(leakage.examine(data, "test", data, "test")) == {("train", "test"): (0, 1)}


def test_large_sets_are_searched_for_exact_copies_only(monkeypatch):
    monkeypatch.setattr(leakage, "MAX_NEAR", 3)
    data = labelled(
        "large", train=[scene(1), scene(2), scene(3)], test=[scene(1), squeezed(scene(2))]
    )

    facts = leakage.examine(data, "test", data, "test")

    assert counts(facts) == {("train", "test"): (1, None)}
    assert facts.near_by is None
    assert facts.flags(len(data.split("test"))) == ("leakage",)


def test_a_sequence_may_have_its_own_thumbnails_and_a_subset_uses_them():
    class Cheap(list):
        def thumbnail(self, index):
            return np.full((16, 16, 3), self[index], dtype=np.uint8)

    chosen = Subset(Cheap([7, 8, 9]), np.array([2, 0]))

    assert [int(thumbnail(chosen, i)[0, 0, 0]) for i in range(2)] == [9, 7]
    with pytest.raises(TypeError, match="no thumbnail of an example of type str"):
        thumbnail(["text"], 0)


def test_nearest_neighbours_agree_with_all_pairs():
    rng = np.random.default_rng(0)
    trained, evaluated = rng.normal(size=(5000, 4)), rng.normal(size=(60, 4))
    evaluated[0] = 0
    cosine = (trained / np.linalg.norm(trained, axis=1, keepdims=True)) @ (
        evaluated[1:] / np.linalg.norm(evaluated[1:], axis=1, keepdims=True)
    ).T

    found = leakage.cosine_neighbours(trained, evaluated, 0.99)

    assert found[0] == -1
    expected = np.where(cosine.max(axis=0) >= 0.99, cosine.argmax(axis=0), -1)
    np.testing.assert_array_equal(found[1:], expected)
    assert 0 < (expected >= 0).sum()


def test_class_overlap_folds_case_and_underscores():
    assert leakage.class_overlap(("red_fox", "Owl"), ("Red Fox", "owl", "bee")) == (
        "Red Fox",
        "owl",
    )
