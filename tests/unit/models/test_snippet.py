"""How the code in an export names its base model."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer

from clipadapt.models import _snippet
from clipadapt.models._sources import Source

TOWER = object.__new__(VisionTransformer)


def code(name, source, **changes):
    visual = changes.pop("visual", TOWER)
    given = {"saved": False, "adapter": False, "seed": 3} | changes
    return _snippet.code(name, source, visual, "output", **given)


@pytest.mark.parametrize(
    ("name", "arch", "checkpoint", "line", "note"),
    [
        ("ViT-B-32/laion400m_e32", "ViT-B-32", "w", '("ViT-B-32", pretrained="laion400m_e32")', "laion400m_e32"),
        ("hf-hub:org/name", "", "w", '("hf-hub:org/name")', "'hf-hub:org/name'"),
        ("hf-hub:org/name@abc", "", "w", '("hf-hub:org/name")', "at the revision abc"),
        ("hf-hub:org/theirs", "", "w", '(f"local-dir:{BASE}")', "the open_clip folder of 'hf-hub:org/theirs'"),
        ("ViT-B-32/mine.pt", "ViT-B-32", "w", '("ViT-B-32", pretrained=BASE)', "the weights file of"),
        ("random:ViT-B-32", "ViT-B-32", None, "torch.manual_seed(3)", "whose weights are random"),
        ("local-dir:mine", "", "w", '(f"local-dir:{BASE}")', "the open_clip folder of 'local-dir:mine'"),
        ("stitched", "", "w", '(f"local-dir:{BASE}")', "the open_clip folder of 'stitched'"),
    ],
)  # fmt: skip
def test_every_form_of_a_name(name, arch, checkpoint, line, note):
    files = (Path("config.json" if "theirs" in name else "open_clip_config.json"),)
    source = Source({"text_cfg": {}}, checkpoint=checkpoint, arch=arch, files=files)

    lines, notes = code(name, source)

    assert line in lines
    assert note in notes[0]
    compile(lines, "snippet", "exec")


def test_a_saved_model_and_its_text_tower_are_loaded_from_the_folder():
    source = Source({"text_cfg": {"hf_model_name": "a/b"}}, {"resize_size": 256})
    tower = object.__new__(TimmModel)
    tower.__dict__["image_size"] = (224, 224)

    lines, notes = code("stitched", source, saved=True, adapter=True, visual=tower)

    assert 'f"local-dir:{FOLDER}", text_cfg=text_cfg)' in lines
    assert "preprocess.transforms[0].size = 256" in lines
    assert "merge_and_unload()" in lines
    assert len(notes) == 2
    assert "BASE" not in lines
    compile(lines, "snippet", "exec")
