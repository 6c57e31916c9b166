"""A model that was built once answers from memory: equal features without its network, and nothing stale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions, provides
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files import identity
from clipadapt.models import ImageTextModel, _recalled
from clipadapt.models._adapter import OpenClipModel
from clipadapt.models._recalled import RecalledModel, space_key
from tests.unit.models import tiny

WEIGHTS = "open_clip_model.safetensors"
TEXTS = Inputs(("a cat", "a photo of a dog"), ("0", "1"))
NAMES = ("cat", "dog")


def pictures(n: int) -> Inputs:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(n)]
    return Inputs(images, tuple(f"{i}.png" for i in range(n)))


def age(folder: Path, seconds: float = 100.0) -> None:
    """Date the files back: the hash of a file that was written just now is not remembered."""
    for path in folder.iterdir():
        then = time.time() - seconds
        os.utime(path, (then, then))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    made = tiny.write(tmp_path / "clip", "clip")
    age(made)
    return made


def load(folder: Path, precision: str = "fp32", **more: object) -> ImageTextModel:
    found = MODELS.resolve(f"local-dir:{folder}", "clip")
    services = Services(FeatureCache(), **more)
    return found.provider.load(found.argument, ModelOptions(precision, "cpu"), services)


def used(model: ImageTextModel, n: int = 3) -> list[np.ndarray]:
    model.name_tokens(NAMES)
    return [model.encode(pictures(n), "image"), model.encode(TEXTS, "text")]


def is_built(model: RecalledModel) -> bool:
    return model._slot.model is not None


@pytest.mark.parametrize("family", ["clip", "custom", "hf", "siglip"])
def test_a_second_load_answers_without_the_network(folder: Path, family: str) -> None:
    if family != "clip":
        folder = tiny.write(folder.parent / family, family)
        age(folder)
    first = load(folder)
    expected = used(first)
    second = load(folder)

    assert isinstance(first, OpenClipModel)
    assert isinstance(second, RecalledModel)
    for a, b in zip(expected, used(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert second.name_tokens(NAMES) == first.name_tokens(NAMES)
    facts = ("context_length", "logit_scale", "logit_bias", "n_params", "weights_sha256")
    for name in (*facts, "embed_dim", "device", "dtype", "name", "identity"):
        assert getattr(second, name) == getattr(first, name), name
    assert second.load_seconds > 0
    assert not is_built(second)


@pytest.mark.parametrize("protocol", RecalledModel.PROVIDES)
def test_it_provides_what_the_network_provides(folder: Path, protocol: type) -> None:
    used(load(folder))
    model = load(folder)
    assert provides(model, protocol)
    assert not is_built(model)
    assert isinstance(model, protocol)
    assert isinstance(model.module, torch.nn.Module)


def test_a_feature_that_is_not_cached_builds_the_network_once(folder: Path) -> None:
    used(load(folder))
    model = load(folder)
    copy = model.with_services(Services(FeatureCache()))
    got = model.encode(pictures(5), "image")

    assert is_built(copy)
    assert copy.module is model.module
    assert model.services.meter.computed == 2
    assert copy.services.meter.computed == 0
    plain = Services(FeatureCache(enabled=False))
    np.testing.assert_array_equal(got, model.with_services(plain).encode(pictures(5), "image"))


def test_views_of_one_kind_are_remembered_together(folder: Path) -> None:
    first = load(folder)
    expected = [first.encode(pictures(2), "image", view=view) for view in (0, 1, 2)]
    model = load(folder)
    for view, features in enumerate(expected):
        np.testing.assert_array_equal(model.encode(pictures(2), "image", view=view), features)
    assert not is_built(model)
    assert not np.array_equal(expected[1], expected[2])

    model.encode(pictures(2), "image", view=1, smallest_crop=0.5)
    assert is_built(model)


def test_building_is_no_part_of_a_fit(folder: Path) -> None:
    used(load(folder))
    model = load(folder)
    remembered = model.load_seconds
    model.clone()

    assert model.services.meter.spent_seconds == model.load_seconds != remembered
    assert model.services.meter.used_seconds == 0


# ---------------------------------------------------------------- nothing stale


def changed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {"visual.proj": -state["visual.proj"]}


def rewrite(weights: Path) -> None:
    save_file(changed(load_file(weights)), weights)


def test_other_weights_are_another_model(folder: Path) -> None:
    expected = used(load(folder))[0]
    before = load(folder).weights_sha256
    rewrite(folder / WEIGHTS)
    age(folder, 50.0)
    other = load(folder)

    assert isinstance(other, OpenClipModel)
    assert other.weights_sha256 != before
    np.testing.assert_allclose(used(other)[0], -expected, atol=1e-6)
    np.testing.assert_allclose(used(load(folder))[0], -expected, atol=1e-6)


def test_weights_replaced_while_the_model_is_in_use_remember_nothing_of_it(folder: Path) -> None:
    first = load(folder)
    rewrite(folder / WEIGHTS)
    age(folder, 50.0)
    expected = used(first)[0]  # the network of the old weights

    assert isinstance(load(folder), OpenClipModel)
    second = load(folder)
    np.testing.assert_allclose(used(second)[0], -expected, atol=1e-6)


def test_weights_replaced_before_the_network_is_built_are_an_error(folder: Path) -> None:
    used(load(folder))
    model = load(folder)
    rewrite(folder / WEIGHTS)
    age(folder, 50.0)
    with pytest.raises(ModelError, match="changed while it was loaded"):
        model.encode(pictures(5), "image")


def test_another_config_is_another_model(folder: Path) -> None:
    used(load(folder))
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(config))
    age(folder, 50.0)
    assert isinstance(load(folder), OpenClipModel)


def test_another_tokenizer_is_another_model(tmp_path: Path, folder: Path) -> None:
    made = tiny.write(tmp_path / "hf", "hf")
    age(made)
    used(load(made))
    assert isinstance(load(made), RecalledModel)
    path = made / "vocab.txt"
    path.write_text(path.read_text().replace("horse", "zebra"))
    age(made, 50.0)
    assert isinstance(load(made), OpenClipModel)


def test_other_versions_remember_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used(load(folder))
    real = identity.versions
    monkeypatch.setattr(identity, "versions", lambda *names: real(*names).replace("torch", "new"))
    assert isinstance(load(folder), OpenClipModel)


def test_other_code_remembers_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used(load(folder))
    monkeypatch.setattr(_recalled, "code_sha256", lambda: "another")
    assert isinstance(load(folder), OpenClipModel)


def test_another_precision_remembers_nothing(folder: Path) -> None:
    used(load(folder))
    assert isinstance(load(folder, "bf16"), OpenClipModel)


@pytest.mark.parametrize("setting", [{"fast": False}, {"compile": True}])
def test_another_setting_is_another_space(folder: Path, setting: dict[str, bool]) -> None:
    used(load(folder))
    model = load(folder, **setting)
    assert model.name_tokens(NAMES)
    assert not is_built(model)
    if "fast" in setting:
        model.encode(TEXTS, "text")
        assert is_built(model)
    key = [
        space_key(Services(FeatureCache(), **given), "image", "output", 0, 0.08)
        for given in ({}, setting)
    ]
    assert key[0] != key[1]


def test_a_damaged_memory_is_not_read(folder: Path, tmp_path: Path) -> None:
    expected = used(load(folder))
    for path in (tmp_path / "cache" / "identities").iterdir():
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    model = load(folder)
    assert isinstance(model, OpenClipModel)
    for a, b in zip(expected, used(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_changed_weights_are_not_remembered(folder: Path) -> None:
    expected = used(load(folder))[0]
    model = load(folder)
    model.module.visual.proj.data.mul_(-1)
    np.testing.assert_allclose(model.encode(pictures(3), "image"), -expected, atol=1e-6)
    model.encode(pictures(3), "image", "pre_projection")

    again = load(folder)
    np.testing.assert_array_equal(again.encode(pictures(3), "image"), expected)
    assert not is_built(again)
    again.encode(pictures(3), "image", "pre_projection")
    assert is_built(again)


def test_without_the_feature_cache_everything_is_computed(folder: Path) -> None:
    expected = used(load(folder))
    model = load(folder).with_services(Services(FeatureCache(enabled=False)))

    np.testing.assert_array_equal(used(model)[1], expected[1])
    assert is_built(model)


# ---------------------------------------------------------------- commands

HEAVY = ("torch", "torchvision", "open_clip", "transformers", "tokenizers", "timm")
PROGRAM = f"""
import sys
from clipadapt.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)
"""
TIMES = {"started_at", "cost", "environment"}


@pytest.fixture
def data(tmp_path: Path) -> str:
    for split in ("train", "test"):
        for i, image in enumerate(pictures(6).examples):
            there = tmp_path / "data" / split / NAMES[i % 2]
            there.mkdir(parents=True, exist_ok=True)
            image.rotate(90 * (split == "train")).save(there / f"{i}.png")
    return f"folder:{tmp_path / 'data'}"


def run(*words: object) -> tuple[dict[str, object], list[str]]:
    """Run a command in a new process; return its JSON and the frameworks that it imported."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.rpartition("loaded:")[2].split()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zeroshot", "linear_probe", "tip_adapter"])
def test_a_second_run_builds_nothing_and_has_the_same_record(
    folder: Path, data: str, tmp_path: Path, method: str
) -> None:
    if method == "zeroshot":
        command = ["zeroshot", "--model", f"local-dir:{folder}", "--dataset", data]
    else:
        given = (f"model.name=local-dir:{folder}", f"data.name={data}", "data.shots=2", "seeds=[1]")
        command = ["run", f"{method}-quick", *(x for s in given for x in ("--set", s))]
    (plain, imported), (recalled, left) = (
        run(*command, "--out", tmp_path / name) for name in ("plain", "recalled")
    )

    assert "open_clip" in imported
    assert left == ([] if method == "zeroshot" else ["torch"])  # which the others compute with
    (expected,), (got,) = plain["records"], recalled["records"]
    assert {k: v for k, v in got.items() if k not in TIMES} == {
        k: v for k, v in expected.items() if k not in TIMES
    }
    assert got["cost"].keys() == expected["cost"].keys()
    arrays = [
        np.load(next((tmp_path / name).rglob("predictions.npz"))) for name in ("plain", "recalled")
    ]
    for name in arrays[0].files:
        np.testing.assert_array_equal(arrays[1][name], arrays[0][name])


@pytest.mark.slow
def test_predict_with_a_coop_run_builds_no_model_for_images_that_were_seen(
    folder: Path, data: str, tmp_path: Path
) -> None:
    given = (f"model.name=local-dir:{folder}", f"data.name={data}", "data.shots=2", "seeds=[1]")
    quick = ("method.epochs=1", "method.warmup_epochs=0", "method.n_ctx=2")
    words = [x for s in (*given, *quick) for x in ("--set", s)]
    run("run", "coop-quick", *words, "--out", tmp_path / "runs")
    there = next((tmp_path / "runs").rglob("record.json")).parent
    seen = tmp_path / "data" / "test" / "cat"
    recalled, left = run("predict", there, seen)
    assert left == []

    shutil.rmtree(tmp_path / "cache" / "identities")
    plain, imported = run("predict", there, seen)
    assert "open_clip" in imported
    assert recalled == plain
