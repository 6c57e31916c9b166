"""``ls``: names that can be typed, one line each; as JSON what it was."""

from __future__ import annotations

import json

import pytest

from clipadapt.core.api.about import from_citation, paper, split_names
from clipadapt.core.api.registry import DATASETS, METHODS, MODELS

KINDS = ("methods", "datasets", "models", "configs", "sweeps", "protocols")


def listed(cli, kind, program="clipadapt"):
    done = cli("ls", kind, program=program)
    assert done.code == 0, done.err
    return [line.split("\t") for line in done.out.splitlines()]


def test_a_method_has_its_kind_its_needs_and_its_paper(cli):
    rows = {row[0]: row[1:] for row in listed(cli, "methods")}

    assert rows["clip/coop"] == [
        "supervised", "trainable prompts", "K. Zhou et al., IJCV 2022, arXiv:2109.01134",
        "learned context vectors in the prompt",
    ]  # fmt: skip
    assert rows["clip/tda"][:2] == ["zero-shot, online", "any model"]
    assert rows["clip/transclip"][0] == "transductive"


def test_a_method_without_a_model_says_so(cli):
    rows = {row[0]: row[1:] for row in listed(cli, "methods", "textsent")}

    assert rows["text/tfidf_svm"][1:3] == ["no model", "S. Wang and C. Manning, ACL 2012"]
    assert rows["text/lora"][1] == "any encoder"


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_line_has_a_name_and_says_what_it_is(cli, program, kind):
    rows = listed(cli, kind, program)
    names = [row[0] for row in rows]

    assert len(set(names)) == len(names)
    assert all(row[-1] and len(row) > 1 for row in rows), rows
    assert max(len(cell) for row in rows for cell in row) <= 80


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
@pytest.mark.parametrize(
    ("kind", "registry"), [("datasets", DATASETS), ("models", MODELS), ("methods", METHODS)]
)
def test_every_listed_name_is_one_that_is_served(cli, program, kind, registry):
    track = {"clipadapt": "clip", "textsent": "text"}[program]
    for name, *_ in listed(cli, kind, program):
        typed = name.partition("[")[0]
        if kind == "methods":
            assert registry.complete(typed, track) == name
        elif not typed.startswith(("ARCH", "ORG")):
            assert registry.resolve(typed, track).entry.startswith(f"{track}/")


def test_what_a_dataset_needs(cli):
    rows = {row[0]: row[1] for row in listed(cli, "datasets")}

    assert rows["folder:PATH"] == "your files"
    assert rows["openmoji:line"] == "the extra offline"
    assert rows["imagenet:DIR"] == "a folder with its files"
    assert rows["imagenette-sketch[:DIR]"] == "a download, or a folder"
    assert rows["hf:REPO[@REVISION]"] == "the hub, or its cache"
    assert rows["dtd"] == "a download, or NAME:DIR"
    assert rows["synthetic[:CLASSES[xN]]"] == "nothing else"


def test_the_names_of_the_machine_form_are_those_of_the_files(cli):
    assert json.loads(cli("ls", "models", "--json").out) == {"models": ["openclip", "stitched"]}
    names = json.loads(cli("ls", "datasets", "--json").out)["datasets"]
    assert {"folder", "openmoji", "dtd", "imagenet_sketch"} <= set(names)
    found = json.loads(cli("ls", "methods", "--json").out)
    assert found.keys() == {"methods", "settings"}
    assert found["settings"]["clip/tda"] == "online"


def test_a_plugin_is_listed_by_its_docstring(cli, tmp_path, monkeypatch):
    (tmp_path / "birds.py").write_text(
        '"""``birds:DIR``: photos of birds.\n\nJ. Doe and A. Poe, "Birds", CVPR 2020. arXiv:2001.00001\n"""\n'
        "def DATASET(argument, options):\n    return None\n"
    )
    monkeypatch.setenv("CLIPADAPT_PLUGINS", str(tmp_path))
    rows = {row[0]: row[1:] for row in listed(cli, "datasets")}

    assert rows["birds:DIR"] == [
        "a folder with its files", "J. Doe and A. Poe, CVPR 2020, arXiv:2001.00001", "photos of birds",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('R. Zhang et al., "Tip: A, B", ECCV 2022,\nsection 3.1. arXiv:2207.09519',
         "R. Zhang et al., ECCV 2022, arXiv:2207.09519"),
        ('C. Cortes and V. Vapnik, "Support-Vector Networks", Machine Learning 20, 1995.',
         "C. Cortes and V. Vapnik, Machine Learning 20, 1995"),
        ('E. Ben Zaken, S. Ravfogel and Y. Goldberg, "BitFit",\n2016. arXiv:1610.01644',
         "E. Ben Zaken et al., 2016, arXiv:1610.01644"),
        ("No reference at all.", ""),
    ],
)  # fmt: skip
def test_the_paper_of_a_docstring(text, expected):
    assert paper(text) == expected


def test_the_paper_of_a_citation():
    text = "S. Maji et al., Fine-Grained, Visual Classification, 2013, arXiv:1306.5151"
    assert from_citation(text) == "S. Maji et al., 2013, arXiv:1306.5151"
    assert from_citation("none (the user's own images)") == ""


def test_names_at_the_beginning_of_a_docstring():
    assert split_names("``a:X`` and ``a:Y``: two things.") == (("a:X", "a:Y"), "two things")
    assert split_names("One ``thing``: of a kind.") == ((), "One ``thing``: of a kind")
