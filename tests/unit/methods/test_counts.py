"""The number of trainable parameters on ViT-B/16 equals that in the comment of each recipe."""

from __future__ import annotations

import re
from typing import Any

import pytest

from clipadapt.core.api.registry import METHODS
from tests.unit.methods.conftest import context, load, method, recorded

C, N = 3, 12
EXPECTED = {
    "lora": 184_320,
    "coop": 8_192,
    "cocoop": 35_360,
    "kgcoop": 2_048,
    "prograd": 8_192,
    "clip_adapter": 131_072,
    "clap": 512 * C,
    "lp_plus_plus": 514 * C,
    "prolip": 768 * 512,
    "cross_modal": 512 * C,
    "ivlp": 12 * 2 * (512 + 768),
    "maple": 9 * (2 * 512 + 512 * 768 + 768),
    "promptsrc": 9 * 4 * (512 + 768),
    "taskres": 512 * C,
    "tip_adapter": 0,
    "tip_adapter_f": 512 * N,
    "full_finetune": 86_192_640 + 513 * C,
    "wise_ft": 86_192_640 + 513 * C,
    "zero": 0,
    "zero_shot": 0,
    "tpt": 2_048,
    "transclip": 0,
    "tda": 0,
}
UNTRAINED: dict[str, dict[str, Any]] = {
    "clap": {"epochs": 0, "views": 0},
    "cross_modal": {"steps": None, "epochs": 0, "views": 0},
    "lp_plus_plus": {"epochs": 0, "views": 0},
    "prolip": {"epochs": 0, "views": 0},
    "lora": {"epochs": 0, "steps_per_shot": None},
    "tip_adapter": {"views": 0},
    "tip_adapter_f": {"views": 0, "epochs": 0},
    "wise_ft": {"epochs": 0, "alpha": 1.0},
    "tpt": {},
    "zero": {},
    "zero_shot": {},
    "transclip": {},
    "tda": {},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from clipadapt.core.features.cache import FeatureCache

    return load("random:ViT-B-16", cache=FeatureCache(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("name", EXPECTED)
def test_counts(name, model, small, tmp_path):
    task = type(small[0])(small[0].classnames, small[0].templates, small[0].train)

    fitted = method(name, **UNTRAINED.get(name, {"epochs": 0})).fit(model, task, context(tmp_path))

    assert fitted.n_trainable_params == EXPECTED[name]
    stated = recorded(name)
    numbers = [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", stated.split("(")[0])]
    if "per class" in stated:
        base, each = [0, *numbers][-2:]
        assert base + each * C == EXPECTED[name]
    elif "per training image" in stated:
        assert [n * N for n in numbers] == [EXPECTED[name]]
    else:
        assert numbers == [EXPECTED[name]]


def test_only_zero_shot_methods_use_no_training_data():
    methods = {name: METHODS.get(name) for name in METHODS.names()}

    without = [name for name, m in methods.items() if not getattr(m, "uses_train", True)]

    assert without == ["clip/tda", "clip/tpt", "clip/zero", "clip/zero_shot"]
