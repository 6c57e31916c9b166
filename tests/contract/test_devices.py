"""Every method on a simulated GPU: no devices are mixed, and the scores equal those of the CPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clipadapt.core.api.context import Services
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import METHODS, MODELS
from clipadapt.core.features.cache import FeatureCache
from tests.contract.conftest import CASES, build_case
from tests.contract.fake_device import fake_device

pytestmark = pytest.mark.slow
# One family with attention and one with convolutions are enough.
FAMILIES = ("clip", "hf", "roberta")
WITH_MODEL = [c for c in CASES if METHODS.get(c[0]).requires is not None and c[1] in FAMILIES]


@pytest.fixture(scope="module", params=WITH_MODEL, ids="-".join)
def on_cpu(request, backbones, tmp_path_factory):
    """A case and its scores on the CPU, for all devices."""
    case = build_case(*request.param, backbones)
    context = case.context(tmp_path_factory.mktemp("cpu"))
    if case.name.startswith("text/"):  # packed texts, on a CPU alone, have other dropout masks
        context.services = dataclasses.replace(context.services, fast=False)
    fitted = case.method.fit(case.backbone, case.task, context)
    return case, request.param[1], fitted.predict_scores(case.inputs)


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_fit_predict_save_and_load_stay_on_the_device(
    on_cpu, device, tiny_models, tiny_texts, tmp_path, monkeypatch
):
    case, family, want = on_cpu

    with fake_device(device.partition(":")[0], monkeypatch):
        track = case.name.partition("/")[0]
        found = MODELS.resolve((tiny_models if track == "clip" else tiny_texts)[family], track)
        services = Services(FeatureCache(enabled=False), workers=1)
        backbone = found.provider.load(found.argument, ModelOptions("fp32", device), services)
        before = {n: t.device.type for n, t in backbone.module.state_dict().items()}
        context = case.context(tmp_path / "device")
        context.services = services

        fitted = case.method.fit(backbone, case.task, context)
        scores = fitted.predict_scores(case.inputs)
        fitted.save(tmp_path / "saved")
        loaded = case.method.load(tmp_path / "saved", backbone)

        assert set(before.values()) == {device.partition(":")[0]}
        assert {n: t.device.type for n, t in backbone.module.state_dict().items()} == before
        if "lora" not in case.name:  # its dropout masks are drawn on the device
            np.testing.assert_allclose(scores, want, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(loaded.predict_scores(case.inputs), scores)
