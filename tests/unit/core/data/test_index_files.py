"""Few-shot index files: every published form is read, and matched to a dataset by path."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from clipadapt.core.api.data import Subset
from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.data.draws import draw_task
from clipadapt.core.data.index_files import Entry, IndexFile, read_draw
from clipadapt.core.data.labelled import LabelledSet, make_split
from clipadapt.core.data.published_draws import PathIndex, find_all, manifest_of
from clipadapt.core.data.sampling import Manifest
from clipadapt.core.data.targets import Target
from clipadapt.core.experiments.config import build
from clipadapt.core.experiments.settings import DataConfig

CLASSES = ("cat", "dog", "owl", "eel")
PATHS = ["cat/1.jpg", "dog/1.jpg", "owl/1.jpg"]


def triples(paths):
    return [[p, i, p.split("/")[0]] for i, p in enumerate(paths)]


def objects(paths):
    return [
        {"impath": f"./data/pets/{p}", "label": i, "classname": p.split("/")[0]}
        for i, p in enumerate(paths)
    ]


FORMS = {
    "paths": {"train": PATHS, "val": ["cat/4.jpg"]},
    "triples": {"train": triples(PATHS), "val": triples(["cat/4.jpg"])},
    "objects": {"train": objects(PATHS), "val": objects(["cat/4.jpg"])},
    "data": {
        "train": {"data": objects(PATHS), "indices": [0, 3, 6]},
        "val": {"data": objects(["cat/4.jpg"]), "indices": [0]},
    },
    "classes": {
        "train": {p.split("/")[0]: [p] for p in PATHS},
        "validation": {"cat": ["cat/4.jpg"]},
        "seed": 1,
    },
    "labels": {"train": {p: i for i, p in enumerate(PATHS)}, "val": {"cat/4.jpg": 0}},
    "with test": {"train": PATHS, "val": ["cat/4.jpg"], "test": ["cat/9.jpg"]},
    "rows": [{"path": p, "split": "train"} for p in PATHS] + [{"path": "cat/4.jpg", "split": "val"}],
    "windows": {"train": [p.replace("/", "\\") for p in PATHS], "val": [".\\cat\\4.jpg"]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lines", [False, True])
def test_every_form_lists_the_same_paths(tmp_path, form, lines):
    content = FORMS[form]
    path = tmp_path / "shot_1-seed_1.json"
    if lines and isinstance(content, list):
        path.write_text("\n".join(map(json.dumps, content)) + "\n\n")
    else:
        path.write_text(json.dumps(content, indent=1))

    index = read_draw(path)

    assert isinstance(index, IndexFile)
    assert [e.path.removeprefix("data/pets/") for e in index.train] == PATHS
    assert [e.path.removeprefix("data/pets/") for e in index.val] == ["cat/4.jpg"]


@pytest.mark.parametrize(
    "content", [PATHS, triples(PATHS), objects(PATHS), {p.split("/")[0]: [p] for p in PATHS}]
)
def test_a_list_without_roles_is_train(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    listed = content.values() if isinstance(content, dict) else content
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, listed)))

    assert len(read_draw(tmp_path / "a.json").train) == 3
    assert not read_draw(tmp_path / "a.json").val
    if not isinstance(content, dict):
        assert read_draw(tmp_path / "b.jsonl").train == read_draw(tmp_path / "a.json").train


@pytest.mark.parametrize("special", ["train", "val", "Test", "data", "image", "indices"])
@pytest.mark.parametrize("within", [False, True])
def test_a_class_may_have_the_name_of_a_split_or_a_key(tmp_path, special, within):
    by_folder = {special: [f"{special}/1.jpg", f"{special}/2.jpg"], "bus": ["v/bus/1.jpg"]}
    by_number = {special: ["001/1.jpg", "001/2.jpg"], "air bus": ["002/1.jpg"]}
    for content, names in ((by_folder, ()), (by_number, ("Air_bus", special))):
        path = tmp_path / "index.json"
        path.write_text(json.dumps({"train": content, "val": content} if within else content))

        index = read_draw(path, names)

        expected = [Entry(p, name) for name, paths in content.items() for p in paths]
        assert list(index.train) == expected
        assert list(index.val) == (expected if within else [])


@pytest.mark.parametrize(
    "more",
    [
        {"classnames": ["cat", "dog"]},
        {"unlabeled": ["x/cat/7.jpg"]},
        {"seed": 1},
        {"data": ["cat/7.jpg"]},
        {"meta": {"cat": ["cat/7.jpg"]}},
    ],
)
def test_other_keys_beside_the_splits_do_not_make_them_classes(tmp_path, more):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"train": ["bus/1.jpg"], "test": ["bus/2.jpg"], **more}))

    index = read_draw(path, ("bus", "cat"))

    assert index.train == (Entry("bus/1.jpg"),)
    assert index.val == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neither JSON nor JSON lines"),
        ('"a.jpg"\nb.jpg\n', "line 2 is 'b.jpg'"),
        ("[1, 2]", "has positions instead of paths"),
        ('{"train": {"indices": [1]}}', "has positions instead of paths"),
        ("3", "has positions instead of paths"),
        ("null", "is not a few-shot index file: it is None"),
        ('{"train": [{"label": 1}]}', r"train\[0\] is \{'label': 1\}, which has no path"),
        ('{"train": [["a.jpg", [1]]]}', r"has the label \[1\] at train\[0\], which is neither"),
        ('{"train": ["/"]}', "which has no path"),
        ('{"val": ["a.jpg"]}', "lists no train examples"),
        ("[]", "lists no train examples"),
        ("", "is not a valid manifest"),
        ('{"dataset_sha256": 1}', "is not a valid manifest"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_lists_nothing(tmp_path, text, message):
    path = tmp_path / "index.json"
    path.write_text(text)

    with pytest.raises(DataError, match=message):
        read_draw(path)


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path):
    for name, content in (
        ("shot_1-seed_1.pkl", pickle.dumps({"train": []}, protocol=0)),
        ("draw.json", pickle.dumps({"train": []})),
        ("draw.pt", b"PK\3\4"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="is a pickle, which is not read") as caught:
            read_draw(tmp_path / name)
        assert "x.impath, x.label, x.classname" in caught.value.hint
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_draw(tmp_path / "none.json")


def test_the_command_of_the_hint_converts_a_pickle_of_coop(tmp_path):
    """The hint's command runs where the pickled class is known; a class of this test stands in for Dassl's."""
    import os
    import shlex
    import subprocess
    import sys

    from clipadapt.core.data.index_files import TO_JSON

    (tmp_path / "datum.py").write_text(
        "class Datum:\n    def __init__(self, *a): self.impath, self.label, self.classname = a\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    code = (
        "import pickle, datum; pickle.dump({'train': [datum.Datum('/d/cat/1.jpg', 0, 'cat')], 'val': []}, "
        "open('IN.pkl', 'wb'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    command = shlex.split(TO_JSON)
    assert command[0] == "python"

    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, env=environment, check=True)

    index = read_draw(tmp_path / "OUT.json")
    assert index.train == (Entry("d/cat/1.jpg", 0),)


# ---------------------------------------------------------------- paths


def test_paths_are_compared_by_their_last_components():
    index = PathIndex(["images/cat/1.jpg", "images/dog/1.jpg", "images/dog/2.jpg"])
    split_of = dict.fromkeys(index.ids.values(), "train")

    def find(*paths):
        return find_all(paths, index, split_of)

    assert find("data/pets/cat/1.jpg", "data/pets/dog/2.jpg") == [
        "images/cat/1.jpg",
        "images/dog/2.jpg",
    ]
    assert find("images/cat/1.jpg", "x/images/dog/1.jpg") == [
        "images/cat/1.jpg",
        "images/dog/1.jpg",
    ]
    assert find("cat/1.jpg", "2.jpg") == ["images/cat/1.jpg", "images/dog/2.jpg"]
    assert find("1.jpg", "owl/1.jpg", "owl/2.jpg", "") == [None, None, None, None]


def test_unique_file_names_in_other_folders_are_not_found():
    index = PathIndex(["images/cat/1.jpg", "images/dog/2.jpg", "images/dog/3.jpg"])
    split_of = dict.fromkeys(index.ids.values(), "train")

    assert find_all(["a/cow/1.jpg", "a/dog/2.jpg", "a/dog/3.jpg"], index, split_of) == [
        None,
        "images/dog/2.jpg",
        "images/dog/3.jpg",
    ]
    assert find_all(["1.jpg", "2.jpg"], index, split_of) == ["images/cat/1.jpg", "images/dog/2.jpg"]


# ---------------------------------------------------------------- a draw


def make_target(classes="all", split="test", extra=()):
    """Each class has images 1-3 in train, 4-6 in val and 7-9 in test."""
    parts = {}
    for name, numbers in (("train", (1, 2, 3)), ("val", (4, 5, 6)), ("test", (7, 8, 9))):
        ids = [f"{c}/{i}.jpg" for c in CLASSES for i in numbers]
        labels = [label for label in range(len(CLASSES)) for _ in numbers]
        parts[name] = make_split([f"text {i}" for i in ids], ids, labels, CLASSES)
    data = LabelledSet(
        "pets", CLASSES, "none", "none", "none", parts, templates=("a {}.",), flags=extra
    )
    names = {"all": CLASSES, "base": CLASSES[:2], "new": CLASSES[2:]}[classes]
    return Target(data, split, names, ("a {}.",), (), classes)


def listed(train, val=(), path="index.json"):
    return IndexFile(path, tuple(Entry(*e) for e in train), tuple(Entry(*e) for e in val))


def every(number, classes=CLASSES):
    return [(f"{c}/{number}.jpg", i) for i, c in enumerate(classes)]


def options(shots=1, **changes):
    return DataConfig(name="pets", shots=shots, **changes)


def drawn(manifest, target, **changes):
    raw = {"data": {"name": "pets", **changes}, "method": {"name": "clip/zero_shot"}}
    return draw_task(target, build([("a", raw)], source="a"), manifest, 1)


def test_the_draw_is_the_file(tmp_path):
    target = make_target()

    manifest = manifest_of(listed(every(2) + every(1), every(5)), target, options(2))

    assert (manifest.shots, manifest.seed, manifest.fewer) == (2, None, {})
    assert manifest.train == tuple(p for p, _ in every(2) + every(1))
    draw = drawn(manifest, target)
    assert draw.task.train.inputs.ids == manifest.train
    assert draw.task.train.labels.tolist() == [0, 1, 2, 3] * 2
    assert draw.task.val.inputs.ids == manifest.val == tuple(p for p, _ in every(5))
    assert draw.flags == ()
    manifest.write(tmp_path / "m.json")
    assert Manifest.read(tmp_path / "m.json") == manifest


def test_examples_may_come_from_val_here_and_from_train():
    """A published draw may have another border between train and val; test is never touched."""
    target = make_target()

    draw = drawn(manifest_of(listed(every(4) + every(1), every(3)), target, options(2)), target)

    train = draw.task.train
    assert train.inputs.ids == tuple(p for p, _ in every(4) + every(1))
    assert [train.inputs.examples[i] for i in (0, 4)] == ["text cat/4.jpg", "text cat/1.jpg"]
    assert isinstance(train.inputs.examples, Subset)
    assert train.inputs.examples[:2][1] == "text dog/4.jpg"
    assert len({d.tobytes() for d in train.inputs.digests()}) == 8
    np.testing.assert_array_equal(
        train.inputs.digests()[4], target.split_of("train").inputs.digests()[0]
    )
    assert draw.task.val.inputs.ids == tuple(p for p, _ in every(3))


@pytest.mark.parametrize("classes", ["base", "new"])
def test_the_draw_of_half_of_the_classes(classes):
    target = make_target(classes)

    draw = drawn(manifest_of(listed(every(1), every(4)), target, options()), target, classes=classes)  # fmt: skip

    assert draw.task.train.labels.tolist() == [0, 1]
    assert draw.task.train.inputs.ids == tuple(f"{c}/1.jpg" for c in target.classnames)
    assert draw.task.classnames == target.classnames


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (listed([("cow/1.jpg",), ("cow/2.jpg",), ("hen/1.jpg",), ("hen/2.jpg",)]), {},
         r"4 of the 4 train paths in 'index\.json' are not in pets: 'cow/1\.jpg', 'cow/2\.jpg', 'hen/1\.jpg', \.\.\."
         r".*\n.*end like 'cat/1\.jpg'"),
        (listed(every(1), [("cow/1.jpg",)]), {}, "1 of the 1 val paths"),
        (listed(every(7)), {}, "4 of the 4 train paths .* are in the split 'test' of pets, which is never trained on"),
        (listed(every(1), every(7)), {}, "val paths .* in the split 'test'"),
        (listed(every(1) + every(1)), {}, "lists 4 train examples twice: 'cat/1.jpg'"),
        (listed(every(1), every(1)), {}, "lists 4 examples in both train and val"),
        (listed([("cat/1.jpg", 0), ("dog/1.jpg", 0)]), {}, "gives the label 0 to images of 'cat' and of 'dog'"),
        (listed([("cat/1.jpg", "a"), ("cat/2.jpg", "b")]), {}, "gives the labels 'a' and 'b' to images of 'cat'"),
        (listed(every(1) + every(2)), {"shots": 1}, "data.shots is 1, but .* lists 2 train examples of one class"),
        (listed(every(1)), {"shots": 2}, "has fewer than 2 train examples of 4 of the 4 classes of pets: 'cat' has 1"),
        (listed(every(1) + every(2)), {"shots": None}, r"data\.shots is not set, .*\n.*add --set data\.shots=2"),
        (listed(every(1)[:3]), {}, "has fewer than 1 train examples of 1 of the 4 classes of pets: 'eel' has 0"),
    ],
)  # fmt: skip
def test_a_draw_of_other_data(index, changes, message):
    with pytest.raises((ConfigError, DataError), match=message):
        manifest_of(index, make_target(), options(**changes))


def test_fewer_examples_can_be_allowed():
    target = make_target()

    manifest = manifest_of(listed(every(1) + every(2)[:1]), target, options(2, allow_fewer=True))

    assert manifest.shots == 2
    assert manifest.fewer == {"train": {"dog": 1, "owl": 1, "eel": 1}}
    assert drawn(manifest, target).flags == ("allow_fewer",)


def test_the_evaluation_split_is_not_trained_on():
    with pytest.raises(DataError, match="in the split 'val' of pets, which is never trained on"):
        manifest_of(listed(every(1), every(4)), make_target(split="val"), options())


def test_a_manifest_of_fewer_classes_is_refused():
    """A draw of the base classes does not serve all of them."""
    base = make_target("base")
    own = drawn(None, base, shots=2, classes="base").manifest
    whole = make_target()

    assert drawn(own, base, classes="base").flags == ()
    with pytest.raises(
        DataError,
        match="the manifest has fewer than 2 train examples of 2 of the 4 classes of pets",
    ):
        drawn(own, whole)
    assert set(drawn(own, whole, allow_fewer=True).flags) == {
        "allow_fewer",
        "class_missing_in_train",
    }
