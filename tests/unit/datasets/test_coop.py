"""CoOp's datasets: each in its own layout, with exactly the split of its file."""

from __future__ import annotations

import json
import pickle

import pytest

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import ClipAdaptError, ConfigError, DataError, UnknownNameError
from clipadapt.core.api.registry import DATASETS
from clipadapt.core.data.sampling import base_new_classes
from clipadapt.core.data.templates import read_templates
from clipadapt.datasets._coop import SETS
from clipadapt.datasets._imagenet import CLASSNAMES, WNIDS
from clipadapt.datasets._sets import Facts
from tests.unit.datasets import coop_layout

STRICT = DatasetOptions()
TEMPLATES = {
    "caltech101": "a photo of a {}.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}.",
    "flowers102": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "sun397": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
}


def opened(name, options=STRICT):
    resolved = DATASETS.resolve(name, "clip")
    return resolved.provider(resolved.argument, options)


def rows(data, split):
    part = data.split(split)
    return [[key, label] for key, label in zip(part.inputs.ids, part.labels.tolist(), strict=True)]


@pytest.mark.parametrize("name", coop_layout.LAYOUTS)
def test_the_split_is_that_of_the_file(name, tmp_path):
    split = coop_layout.make(tmp_path, name)
    folder, split_file, classes = coop_layout.LAYOUTS[name]
    home = tmp_path / folder.split("/")[0]

    data = opened(f"coop:{name}:{tmp_path}")

    assert data.name == f"{name}:coop"
    assert data.classnames == tuple(prompt for _, _, prompt in classes)
    assert data.templates == (TEMPLATES[name],)
    for part in ("train", "val", "test"):
        assert rows(data, part) == [[path, label] for path, label, _ in split[part]]
        assert data.split(part).inputs.examples[0].size == (8, 8)
    assert data.flags == ("not_the_official_split",)  # these tiny sizes are not the published ones
    assert "12 / 8 / 8 examples (train / val / test) of 2 classes instead of" in data.notes[0]
    for other in (
        f"{name}:{tmp_path}", f"coop:{name}:{home}", f"coop:{home / split_file}", f"{name}:{home / split_file}",
        f"coop:{split_file.split('_')[2].removesuffix('.json')}:{home}",
    ):  # fmt: skip
        assert opened(other).fingerprint == data.fingerprint
        assert opened(other).name == data.name


def test_aircraft_has_lists(tmp_path):
    names = coop_layout.make_aircraft(tmp_path)

    data = opened(f"coop:fgvc_aircraft:{tmp_path}")

    assert data.name == "fgvc_aircraft:coop"
    assert data.classnames == ("707-320", "F-16A/B")
    assert {s: list(data.split(s).inputs.ids) for s in data.splits} == names
    assert data.split("test").labels.tolist() == [0] * 4 + [1] * 4
    assert opened(f"FGVCAircraft:{tmp_path}").fingerprint == data.fingerprint
    (tmp_path / "fgvc_aircraft" / "variants.txt").write_text("707-320\n")
    with pytest.raises(DataError, match=r"the class 'F-16A/B', which variants\.txt does not have"):
        opened(f"coop:fgvc_aircraft:{tmp_path}")


def test_every_dataset_has_its_facts():
    assert set(SETS) == set(TEMPLATES)
    for coop_set in SETS.values():
        assert isinstance(coop_set.facts, Facts)
        assert coop_set.facts.template == TEMPLATES[coop_set.name]
        assert coop_set.facts.licence
        assert coop_set.facts.citation
        assert min(coop_set.sizes) >= coop_set.n_classes
    names = [name for coop_set in SETS.values() for name in set(coop_set.names)]
    assert len(set(names)) == len(names)


def test_a_published_split_has_no_flag_and_its_halves_are_in_label_order(tmp_path, monkeypatch):
    from dataclasses import replace

    split = coop_layout.make(tmp_path, "dtd")
    # Labels that are not in alphabetical order stay as they are.
    split = {s: [[p, 1 - label, n] for p, label, n in listed] for s, listed in split.items()}
    (tmp_path / "dtd" / coop_layout.LAYOUTS["dtd"][1]).write_text(json.dumps(split))
    of_two = replace(SETS["dtd"], sizes=(12, 8, 8), n_classes=2)
    monkeypatch.setitem(SETS, "dtd", of_two)

    data = opened(f"coop:dtd:{tmp_path}")

    assert (data.flags, data.notes) == ((), ())
    base, new = base_new_classes(len(data.classnames))
    assert [data.classnames[c] for c in base] == ["polka-dotted"]
    assert [data.classnames[c] for c in new] == ["banded"]


def test_torchvisions_copy_is_read_with_its_own_split(tmp_path):
    coop_layout.make(tmp_path, "dtd")
    labels = tmp_path / "dtd" / "dtd" / "labels"
    labels.mkdir(parents=True)
    for i, split in enumerate(("train", "val", "test")):
        coop_layout.write_image(labels.parent / "images" / "banded" / f"banded_{i}.jpg", 0, i)
        (labels / f"{split}1.txt").write_text(f"banded/banded_{i}.jpg\n")

    assert opened(f"dtd:{tmp_path}").name == "dtd"
    assert opened(f"coop:dtd:{tmp_path}").name == "dtd:coop"
    assert opened(f"dtd:{tmp_path}").fingerprint != opened(f"coop:dtd:{tmp_path}").fingerprint


def test_a_split_file_elsewhere(tmp_path):
    split = coop_layout.make(tmp_path / "data", "oxford_pets")
    there = tmp_path / "data" / "oxford_pets" / "split_zhou_OxfordPets.json"
    other = tmp_path / "other.json"
    split["train"] = split["train"][::2]
    other.write_text(json.dumps(split))

    data = opened(f"coop:oxford_pets:{tmp_path / 'data'}?split={other}")
    assert rows(data, "train") == [[path, label] for path, label, _ in split["train"]]
    there.unlink()
    assert opened(f"coop:oxford_pets:{tmp_path / 'data'}?split={other}")
    assert opened(f"oxford_pets:{tmp_path / 'data'}?split={other}").fingerprint == data.fingerprint
    with pytest.raises(DataError, match=r"no split_zhou_OxfordPets\.json in .*\n.*DATASETS\.md"):
        opened(f"oxford_pets:{tmp_path / 'data'}")
    with pytest.raises(DataError, match=r"'\?labels=x' is not an option"):
        opened(f"coop:oxford_pets:{tmp_path}?labels=x")


def test_a_split_file_of_other_images(tmp_path):
    coop_layout.make(tmp_path, "dtd")
    coop_layout.make(tmp_path, "ucf101")
    other = tmp_path / "ucf101" / "split_zhou_UCF101.json"

    with pytest.raises(DataError) as caught:
        opened(f"coop:dtd:{tmp_path}?split={other}")
    message = str(caught.value)
    assert f"28 of the 28 images in '{other}' are not in" in message
    assert "'Apply_Eye_Makeup/Apply_Eye_Makeup_001.jpg', " in message
    assert message.count(".jpg'") == 3
    assert "belongs to other images" in message

    (tmp_path / "dtd" / "images" / "banded" / "banded_001.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 28 images .*banded_001\.jpg'\n.*unpack"):
        opened(f"coop:dtd:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [1], "it has a list; expected"),
        (lambda s: {"training": []}, "it has keys training; expected"),
        (lambda s: s | {"val": 3}, "'val' in the split file .* is 3"),
        (lambda s: s | {"val": [["a.jpg", "0", "x"]]}, r"val\[0\] in the split file .* is \['a\.jpg'"),
        (lambda s: s | {"val": [["/etc/a.jpg", 0, "banded"]]}, "is not below the image folder"),
        (lambda s: s | {"val": [["../a.jpg", 0, "banded"]]}, "is not below the image folder"),
        (lambda s: s | {"val": [["..\\a.jpg", 0, "banded"]]}, "is not below the image folder"),
        (lambda s: s | {"val": [["a.jpg", 10**12, "x"]]}, "has no example of the label 2"),
        (lambda s: s | {"val": [["a.jpg", 0, "x"]]}, "the label 0 to two classes: 'banded' and 'x'"),
        (lambda s: s | {"val": [["a.jpg", 3, "x"]]}, "has no example of the label 2"),
        (lambda s: s | {"val": [["a.jpg", True, "x"]]}, r"is \['a\.jpg', True"),
        (lambda s: s | {"val": s["train"]}, "twice: in train and in val"),
    ],
)  # fmt: skip
def test_a_split_file_of_another_form(tmp_path, change, message):
    split = coop_layout.make(tmp_path, "dtd")
    path = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    path.write_text(json.dumps(change(split)))

    with pytest.raises(DataError, match=message):
        opened(f"coop:dtd:{tmp_path}")


def test_a_pickle_is_not_read(tmp_path):
    coop_layout.make(tmp_path, "dtd")
    path = tmp_path / "split.json"
    path.write_bytes(pickle.dumps({"train": []}))

    with pytest.raises(DataError, match=r"is a pickle, which is not read.*\n.*json\.dump"):
        opened(f"coop:dtd:{tmp_path}?split={path}")
    path.write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        opened(f"coop:dtd:{tmp_path}?split={path}")


def test_names_and_folders_that_are_none(tmp_path):
    with pytest.raises(UnknownNameError, match=r"did you mean 'caltech101'\?"):
        opened("coop:caltech10:x")
    with pytest.raises(DataError, match=r"coop:dtd needs a folder.*\n.*DATASETS\.md"):
        opened("coop:dtd")
    with pytest.raises(DataError, match="needs a folder"):
        opened("ucf101")
    with pytest.raises(DataError, match="there is no folder"):
        opened(f"coop:dtd:{tmp_path / 'none'}")
    (tmp_path / "split.json").write_text("{}")
    with pytest.raises(DataError, match="does not have the name of one of CoOp's split files"):
        opened(f"coop:{tmp_path / 'split.json'}")
    with pytest.raises(ClipAdaptError):
        opened("coop:")


def test_unreadable_images_are_skipped(tmp_path):
    coop_layout.make(tmp_path, "dtd")
    (tmp_path / "dtd" / "images" / "banded" / "banded_001.jpg").write_text("text")

    data = opened(f"coop:dtd:{tmp_path}", DatasetOptions(on_bad_image="skip"))

    assert (data.skipped, len(data.split("train"))) == (1, 11)


def test_imagenet_takes_the_class_names_of_coop(tmp_path):
    for split in ("train", "val"):
        for c, wnid in enumerate(WNIDS[:2]):
            for i in range(3):
                coop_layout.write_image(
                    tmp_path / "imagenet" / "images" / split / wnid / f"{wnid}_{i}.JPEG", c, i
                )
    plain = opened(f"coop:imagenet:{tmp_path}")
    assert (plain.name, plain.classnames) == ("imagenet", CLASSNAMES)
    assert plain.fingerprint == opened(f"imagenet:{tmp_path / 'imagenet'}").fingerprint

    path = tmp_path / "imagenet" / "classnames.txt"
    names = ["a tench", *CLASSNAMES[1:]]
    path.write_text("\n".join(f"{w} {n}" for w, n in zip(WNIDS, names, strict=True)))
    data = opened(f"coop:imagenet:{tmp_path / 'imagenet'}")
    assert data.classnames[:2] == ("a tench", "goldfish")
    assert data.split("test").classnames == data.classnames
    assert data.fingerprint != plain.fingerprint

    path.write_text("n01440764 tench\n")
    with pytest.raises(DataError, match="no name for 999 of the 1,000 classes"):
        opened(f"coop:imagenet:{tmp_path}")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        opened(f"coop:imagenet:{tmp_path}")


def test_the_templates_of_the_clip_paper(tmp_path):
    sizes = {
        "caltech101": 34, "oxford_pets": 1, "stanford_cars": 8, "flowers102": 1, "food101": 1, "fgvc_aircraft": 2,
        "sun397": 2, "dtd": 8, "eurosat": 3, "ucf101": 48,
    }  # fmt: skip
    for coop_set in SETS.values():
        templates = coop_set.facts.template_sets["clip"]
        assert len(set(templates)) == len(templates) == sizes[coop_set.name]
        assert all(t.count("{}") == 1 and "A " not in t for t in templates)
    assert SETS["caltech101"].facts.ensemble[-7] == "the {} in a video game."
    assert SETS["ucf101"].facts.ensemble[13] == "a video of the person using {}."
    assert SETS["dtd"].facts.ensemble[6] == "a photo of the {} thing."

    coop_layout.make(tmp_path, "dtd")
    data = opened(f"coop:dtd:{tmp_path}")
    assert read_templates("clip", data, {"7": ()}) == SETS["dtd"].facts.ensemble
    assert read_templates("single", data, {}) == ("{} texture.",)
    with pytest.raises(
        DataError, match=r"no templates 'clip' for synthetic:2x1; accepted: single, 7, a template"
    ):
        read_templates("clip", opened("synthetic:2x1"), {"7": ()})
