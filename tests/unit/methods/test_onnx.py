"""ONNX files of tiny models, run by onnxruntime: one method for each formula and each way of computing features."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from clipadapt.core.api.errors import ModelError
from clipadapt.core.scoring.scores import probabilities
from clipadapt.methods._onnx import SNIPPET
from clipadapt.models import _pixels
from tests.contract.conftest import settings
from tests.unit.methods.conftest import context, method

pytestmark = pytest.mark.slow


onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
TOWERS = [
    ("linear_probe", "clip"),
    ("zero_shot", "hf"),
    ("full_finetune", "clip"),
    ("ivlp", "clip"),
]
HEADS = ["ape", "clip_adapter", "tip_adapter"]


@pytest.mark.parametrize(("name", "family"), TOWERS)
def test_onnxruntime_gives_the_probabilities_of_the_classifier(
    name, family, models, small, tmp_path
):
    import onnxruntime

    (task, inputs), model = small, models(family)
    fitted = method(name, **settings(f"clip/{name}", family)).fit(model, task, context(tmp_path))
    folder = tmp_path / "export"
    exported = fitted.export("onnx", folder, temperature=2.0)
    exported.stamp({"run_id": "r1"})
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    pixels = model.pixels(inputs, np.arange(len(inputs))).numpy()
    expected = probabilities(
        fitted.predict_scores(inputs), 2.0, sigmoid=fitted.score_kind == "sigmoid"
    )

    assert [i.name for i in session.get_inputs()] == ["pixels"]
    assert session.get_inputs()[0].shape == ["n", 3, *pixels.shape[2:]]
    for n in (1, 3, len(inputs)):
        (found,) = session.run(["probabilities"], {"pixels": pixels[:n]})
        np.testing.assert_allclose(found, expected[:n], atol=1e-4)
    read = onnx.load(folder / "model.onnx")
    facts = {entry.key: entry.value for entry in read.metadata_props}
    beside = json.loads((folder / "onnx.json").read_text())
    assert facts["run_id"] == "r1"
    assert facts["temperature"] == "2.0"
    assert facts["max_difference_from_torch"] in exported.facts["Checked"]
    assert float(facts["max_difference_from_torch"]) <= 1e-4
    assert json.loads(facts["classnames"]) == beside["classnames"] == list(task.classnames)
    assert json.loads(facts["preprocessing"]) == beside["preprocessing"]
    # The text tower is not in the file.
    image = sum(p.numel() for p in model.module.visual.parameters())
    stored = sum(np.prod(t.dims) for t in read.graph.initializer if "head_" not in t.name)
    assert stored < 1.2 * image + 2000


@pytest.mark.parametrize("name", HEADS)
def test_onnxruntime_computes_every_kind_of_head(name, models, small, tmp_path, monkeypatch):
    task, model = small[0], models("clip")
    fitted = method(name, **settings(f"clip/{name}", "clip")).fit(model, task, context(tmp_path))
    projection = torch.randn(3, model.embed_dim, generator=torch.Generator().manual_seed(0))

    def encode(self, pixels, layer="output"):
        return torch.nn.functional.normalize(pixels.mean(dim=(2, 3)) @ projection, dim=-1)

    network = type(model.encode_image.__self__)  # a remembered model asks it
    monkeypatch.setattr(network, "encode_image", encode)  # a tower takes seconds to trace
    exported = fitted.export("onnx", tmp_path / "export", temperature=2.0)

    assert float(re.findall(r"at most (\S+) in", exported.facts["Checked"])[0]) <= 1e-5


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
@pytest.mark.parametrize("family", ["clip", "siglip", "hf"])
@pytest.mark.parametrize("size", [(50, 31), (31, 50), (160, 160), (400, 333)])
def test_the_code_of_the_readme_preprocesses_as_the_model_does(family, mode, size, models):
    from PIL import ImageOps

    from clipadapt.datasets._decode import opened_rgb

    model = models(family)
    rng = np.random.default_rng(0)
    raw = Image.fromarray(rng.integers(0, 256, (*size, 4), dtype=np.uint8), "RGBA").convert(mode)
    facts = _pixels.facts_of(model.preprocess(), "m")
    space = {"facts": facts, "np": np, "Image": Image, "ImageOps": ImageOps}
    exec(f"{_pixels.UPRIGHT}\n{_pixels.CODE}", space)

    found = space["pixels_of"](space["upright"](raw))

    assert found.dtype == np.float32
    expected = model.preprocess()(opened_rgb(raw, "raw")).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_preprocessing_that_the_code_does_not_have_is_refused():
    from open_clip.transform import PreprocessCfg, image_transform_v2

    padded = image_transform_v2(PreprocessCfg(resize_mode="longest"), is_train=False)

    with pytest.raises(ModelError, match="'m' has a preprocessing that the onnx export cannot"):
        _pixels.facts_of(padded, "m")


def test_the_code_names_no_library_of_training():
    assert "torch" not in SNIPPET
    assert "clip" not in SNIPPET
