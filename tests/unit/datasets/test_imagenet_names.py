from __future__ import annotations

from importlib.resources import files

from clipadapt.datasets._imagenet import CLASSNAMES, TEMPLATES_7, TEMPLATES_80, WNIDS, wnid_index


def test_names_and_templates_equal_those_of_open_clip():
    import open_clip

    assert tuple(open_clip.IMAGENET_CLASSNAMES) == CLASSNAMES
    assert tuple(t("{}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES) == TEMPLATES_80
    assert tuple(t("{}") for t in open_clip.SIMPLE_IMAGENET_TEMPLATES) == TEMPLATES_7


def test_wnids_equal_those_of_timm():
    listed = files("timm.data._info").joinpath("imagenet_synsets.txt").read_text(encoding="utf-8")
    assert tuple(listed.split()) == WNIDS


def test_every_wnid_has_its_label():
    assert len(WNIDS) == len(CLASSNAMES) == 1000
    assert CLASSNAMES[wnid_index()["n01440764"]] == "tench"
    assert CLASSNAMES[wnid_index()["n02102040"]] == "English Springer Spaniel"
    assert len(wnid_index()) == 1000
    assert {n for n in CLASSNAMES if CLASSNAMES.count(n) > 1} == {"missile", "sunglasses"}
