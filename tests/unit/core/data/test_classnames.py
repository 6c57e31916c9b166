"""Class names from a file, and warnings about them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from clipadapt.core.api.errors import ClipAdaptError, DataError
from clipadapt.core.data.classnames import duplicate_names, read_classnames, token_warnings
from clipadapt.core.data.labelled import LabelledSet, make_split

FOLDERS = ("1", "2", "10")


@pytest.fixture
def dataset():
    part = make_split(["a", "b", "c"], ("1", "2", "3"), np.arange(3), FOLDERS)
    return LabelledSet(
        name="folder:data",
        classnames=FOLDERS,
        licence="",
        citation="",
        source="",
        parts={"test": part},
    )


@pytest.fixture
def read(dataset, tmp_path):
    def of(text, ending="txt"):
        path = tmp_path / f"names.{ending}"
        path.write_text(text, encoding="utf-8")
        return read_classnames(str(path), dataset)

    return of


def test_names_by_position_are_shown_with_their_classes(read):
    names, pairing = read("red circle\r\ngreen circle\n\nblue circle\n")
    assert names == ("red circle", "green circle", "blue circle")
    assert pairing == "1 -> red circle, 2 -> green circle, 10 -> blue circle"


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("txt", "10\tblue\n1\tred\n2\tgreen: dark\n3\tnot here\n"),
        ("txt", "10: blue\n1: red\n2: green: dark\n"),
        ("csv", "folder,name\n10,blue\n1,red\n2,green: dark\n"),
        ("yaml", "10: blue\n1: red\n2: 'green: dark'\n"),
        ("yml", "- red\n- 'green: dark'\n- blue\n"),
        ("json", json.dumps({"10": "blue", "1": "red", "2": "green: dark"})),
        ("json", json.dumps(["red", "green: dark", "blue"])),
    ],
)
def test_names_by_class(read, ending, text):
    assert read(text, ending)[0] == ("red", "green: dark", "blue")


def test_names_with_a_colon_are_names(read):
    assert read("a: b\nc: d\ne: f")[0] == ("a: b", "c: d", "e: f")


def test_the_classes_own_names_in_another_order_are_put_in_order(read):
    assert read("1\n10\n2\n") == (FOLDERS, "")
    assert read("1\n2\n10\n") == (FOLDERS, "")


@pytest.mark.parametrize(
    ("ending", "text", "message"),
    [
        (
            "txt",
            "red\ngreen\n",
            r"has 2 names; folder:data has 3 classes: 1, 2, 10\n.*CLASS<TAB>NAME",
        ),
        (
            "txt",
            "1\tred\n2\tgreen\n11\tblue\n",
            "has no name for the class '10'; did you mean",
        ),
        ("json", '{"1": "red"}', "has no name for the class '2'.* it names 1 classes: 1"),
        ("json", '{"1": {"2": "red"}}', "is not a mapping of class to name, or a list of names"),
        ("txt", "1: red\n2: green\n10: blue\n2: lime\n", "names the class '2' more than once"),
        ("json", '{"1": "a", "1": "b", "2": "c", "10": "d"}', "names the class '1' more than once"),
        (
            "txt",
            "0: red\n1: green\n2: blue\n",
            "begin with numbers that are not the classes: '0: red'",
        ),
        ("csv", "01;red\n02;green\n10;blue\n", "begin with numbers that are not the classes"),
        ("json", "[1, ", "cannot be read"),
        ("yaml", "a: &a [*a, *a]", "cannot be read"),
        ("yaml", "[" * 3000, "cannot be read"),
        ("yaml", "just text", "is not a mapping"),
        ("yaml", "1: !!python/object:os.system x", "has no name for the class|cannot be read"),
    ],
)
def test_wrong_files_of_names(read, ending, text, message):
    with pytest.raises(DataError, match=message):
        read(text, ending)


def test_a_class_names_file_must_be_a_regular_file(dataset, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(
            ClipAdaptError, match="is not a regular file|[Ii]s a (directory|folder)"
        ):
            read_classnames(str(path), dataset)


def test_duplicate_names():
    assert duplicate_names(["a b", "A_b", "0", "0.0", "c"]) == [("a b", "A_b"), ("0", "0.0")]


class Backbone:
    """A tokenizer that maps all words but two to the unknown token."""

    name = "tiny"

    def name_tokens(self, names):
        ids = [[{"red": 5, "green": 6}.get(word, 0) for word in name.split()] for name in names]
        return [(tuple(row), row.count(0)) for row in ids]


def test_equal_and_unknown_tokens_are_reported():
    warnings = token_warnings(Backbone(), ["red", "green", "蓝色", "黄色"])
    assert set(warnings) == {"duplicate_classnames", "unknown_tokens"}
    assert (
        "the same tokens: '蓝色' = '黄色'; no prompt can distinguish"
        in warnings["duplicate_classnames"]
    )
    assert (
        "does not know 50% of the tokens of the class names (2 of 4 names, such as '蓝色')"
        in warnings["unknown_tokens"]
    )
    assert token_warnings(Backbone(), ["red", "green", "red green"]) == {}
    assert token_warnings(None, ["a", "b"]) == {}
