"""``clip/zero_shot`` against CLIP_benchmark and CoOp's zero-shot baselines, through ``fit`` itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Inputs, Task
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.scoring import metrics
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods.zero_shot import ZeroShot, ZeroShotConfig
from clipadapt.models import ImageTextModel

from . import tinyclip
from .parity import fixture

ENSEMBLES = sorted(fixture("zero_shot").spec["templates"])
CLIP_BENCHMARK_SCALE = 100.0


class GivenPixels:
    """The shipped adapter with the fixture's preprocessed images; ids are row numbers."""

    def __init__(self, model: ImageTextModel, pixels: np.ndarray) -> None:
        self._model = model
        self._pixels = torch.from_numpy(pixels)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, inputs: Inputs[Any], tower: str, layer: str = "output") -> np.ndarray:
        if tower == "text":
            return self._model.encode(inputs, "text", layer)
        rows = self._pixels[[int(i) for i in inputs.ids]]
        return self._model.encode_image(rows, layer).numpy()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GivenPixels:
    folder = tinyclip.write_folder(tmp_path_factory.mktemp("tiny") / "clip")
    return GivenPixels(tinyclip.load(folder), fixture("zero_shot").inputs["images"])


def predict(model: GivenPixels, names: list[str], templates: list[str], scale: float | None):
    """Fit the shipped method and score every image of the fixture."""
    task = Task(tuple(names), tuple(t.replace("{c}", "{}") for t in templates))
    ctx = RunContext(0, Path(), Services(FeatureCache(enabled=False)))
    classifier = ZeroShot(ZeroShotConfig(logit_scale=scale)).fit(model, task, ctx)
    ids = tuple(str(i) for i in range(len(fixture("zero_shot").inputs["images"])))
    return classifier.weights, classifier.predict_scores(Inputs(ids, ids))


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_clip_benchmark(model, ensemble):
    data = fixture("zero_shot")
    names = data.spec["classnames_used_by_clip_benchmark_part"]
    templates = data.spec["templates"][ensemble]
    labels = data.inputs["labels"]

    weights, logits = predict(model, names, templates, CLIP_BENCHMARK_SCALE)

    data.assert_close(f"{ensemble}.classifier", weights.T)
    data.assert_close(f"{ensemble}.logits", logits)
    got = [topk_accuracy(logits, labels, k) for k in (1, 5)]
    got.append(metrics.measure("mean_per_class_recall", logits, labels).value)
    data.assert_close(f"{ensemble}.metrics", np.array(got))


@pytest.mark.parametrize("variant", ["coop_zs", "coop_zs2"])
def test_coop(model, variant):
    data = fixture("zero_shot")
    names = [n.replace("_", " ") for n in data.spec["classnames"]]
    one = variant == "coop_zs"
    templates = [data.spec["coop_zs_template"]] if one else data.spec["coop_zs2_templates"]

    weights, logits = predict(model, names, templates, None)

    data.assert_close(f"{variant}.text_features", weights)
    data.assert_close(f"{variant}.logits", logits)
