"""A user's mistake is one clear message, exit code 2, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

SCARY = ("Traceback", 'File "')


@pytest.fixture
def wrong(cli, tmp_path):
    """Run a command that must fail; return its message after checking its manners."""

    def call(*arguments, program="clipadapt"):
        out = tmp_path / "runs"
        extra = (
            ["--out", out]
            if arguments[0] in {"run", "zeroshot"} and "--out" not in arguments
            else []
        )
        result = cli(*arguments, *extra, program=program)
        assert result.code == 2, result.err
        assert result.out == ""
        assert not any(s in result.err for s in SCARY)
        assert not out.exists() or not [p for p in out.rglob("*") if p.is_file()]
        return result.text

    return call


def zeroshot(model, data, *more):
    return ["zeroshot", "--model", model, "--dataset", data, *more]


def test_a_missing_folder(wrong, tiny_clip, pictures):
    text = wrong(*zeroshot(tiny_clip, f"folder:{pictures}s"))

    assert f"{pictures}s" in text
    assert "pictures" in text.replace(f"{pictures}s", "")  # the nearest name


def test_an_empty_folder(wrong, tiny_clip, tmp_path):
    (tmp_path / "empty").mkdir()

    text = wrong(*zeroshot(tiny_clip, f"folder:{tmp_path / 'empty'}"))

    assert str(tmp_path / "empty") in text
    assert ".jpg" in text or "jpg" in text


@pytest.mark.parametrize("fault", ["truncated", "text"])
def test_an_unreadable_image_is_named(wrong, cli, records, tiny_clip, pictures, tmp_path, fault):
    good = pictures / "test" / "red_thing" / "0.png"
    bad = good.with_name("bad.jpg")
    if fault == "truncated":
        from PIL import Image

        Image.open(good).resize((300, 300)).save(bad)
        bad.write_bytes(bad.read_bytes()[:-3000])
    else:
        bad.write_text("this is no picture\n")

    text = wrong(*zeroshot(tiny_clip, f"folder:{pictures}"))
    skipped = cli(
        *zeroshot(tiny_clip, f"folder:{pictures}", "--on-bad-image", "skip", "--json"),
        "--out",
        tmp_path / "r",
    )

    assert "bad.jpg" in text
    assert "--on-bad-image skip" in text
    (record,) = records(skipped)
    assert record["data"]["skipped"] == 1
    assert record["data"]["n_test"] == 12


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("stiched", "did you mean 'stitched'"),
        ("ViT-B-31-quickgelu/openai", "did you mean 'ViT-B-32-quickgelu'"),
        ("ViT-B-32-quickgelu/opanai", "did you mean 'openai'"),
        ("ViT-B-32/openai", "ViT-B-32-quickgelu/openai"),
        ("random:ViT-B-33", "did you mean"),
        ("openclip", "serves the names of other models"),
        ("local-dir:/nowhere/at/all", "/nowhere/at/all"),
        ("ViT-B-32/nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_an_unknown_model(wrong, pictures, model, message):
    assert message in wrong(*zeroshot(model, f"folder:{pictures}"))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("foldr:x", "folder"),
        ("imagenete", "did you mean 'imagenette'"),
        ("openmoji:colour", "openmoji:color"),
        ("imagenet-sketch:/nowhere", "there is no folder '/nowhere'"),
        ("imagenette-sketch:{pictures}", "contains no WordNet-id folders"),
        ("tiny-imagenet:{pictures}", "contains no wnids.txt"),
        ("hf:org/none", "the hub cache has no copy"),
        ("hf:org/none?labl=x", "did you mean 'label'"),
    ],
)
def test_an_unknown_dataset(wrong, tiny_clip, pictures, dataset, message):
    assert message in wrong(*zeroshot(tiny_clip, dataset.format(pictures=pictures)))


def test_misspelt_keys_are_all_named_at_once(wrong, tiny_clip):
    text = wrong(
        "run", "linear_probe", "--set", "data.name=synthetic", "--set", f"model.name={tiny_clip}",
        "--set", "data.shot=4", "--set", "method.C=-1", "--set", "method.layr=output",
    )  # fmt: skip

    assert "data.shot: Extra inputs are not permitted (got 4); did you mean 'shots'?" in text
    assert "method.C: Input should be greater than 0 (got -1)" in text
    assert (
        "method.layr: Extra inputs are not permitted (got 'output'); did you mean 'layer'?" in text
    )


@pytest.mark.parametrize("limit", ["-1", "0"])
def test_a_limit_that_is_none(wrong, tiny_clip, pictures, limit):
    text = wrong(*zeroshot(tiny_clip, f"folder:{pictures}", "--limit", limit))

    assert f"--limit must be at least 1 (got {limit})" in text


@pytest.mark.parametrize("line", ["a photo of it.", "a {} of a {}."])
def test_a_template_without_its_place(wrong, tiny_clip, pictures, tmp_path, line):
    (tmp_path / "t.txt").write_text(f"a photo of a {{}}.\n{line}\n")

    text = wrong(*zeroshot(tiny_clip, f"folder:{pictures}", "--templates", tmp_path / "t.txt"))

    assert f"the template '{line}'" in text
    assert "exactly one '{}'" in text


@pytest.mark.parametrize(("content", "message"), [(None, "no templates"), ("\n\n", "is empty")])
def test_a_templates_file_that_is_none(wrong, tiny_clip, pictures, tmp_path, content, message):
    if content is not None:
        (tmp_path / "t.txt").write_text(content)

    assert message in wrong(
        *zeroshot(tiny_clip, f"folder:{pictures}", "--templates", tmp_path / "t.txt")
    )


def test_a_class_names_file_with_one_name_missing(wrong, tiny_clip, pictures, tmp_path):
    (tmp_path / "names.txt").write_text("a red thing\na blue thing\n")

    text = wrong(*zeroshot(tiny_clip, f"folder:{pictures}", "--classnames", tmp_path / "names.txt"))

    assert "has 2 names" in text
    assert "has 3 classes: blue_thing, green_thing, red_thing" in text


def test_an_output_that_cannot_be_written(wrong, tiny_clip, pictures, tmp_path):
    (tmp_path / "file").write_text("")

    text = wrong(*zeroshot(tiny_clip, f"folder:{pictures}"), "--out", tmp_path / "file" / "runs")

    assert str(tmp_path / "file") in text
    assert "--out" in text


def test_fewer_images_than_shots(wrong, cli, records, tiny_clip, pictures, tmp_path):
    (pictures / "train" / "red_thing" / "5.png").unlink()
    settings = [
        "--set",
        f"model.name={tiny_clip}",
        "--set",
        f"data.name=folder:{pictures}",
        "--set",
        "seeds=[1]",
    ]

    text = wrong("run", "linear_probe-quick", *settings, "--set", "data.shots=6")
    allowed = cli(
        "run", "linear_probe-quick", *settings, "--set", "data.shots=6", "--set", "data.allow_fewer=true",
        "--json", "--out", tmp_path / "r",
    )  # fmt: skip

    assert "'red thing' has 5" in text
    assert "data.allow_fewer=true" in text
    (record,) = records(allowed)
    assert "allow_fewer" in record["flags"]
    assert record["data"]["n_train"] == 17


def test_a_prompt_longer_than_the_context(wrong, tiny_clip, pictures, tmp_path):
    (tmp_path / "t.txt").write_text("photo " * 90 + "{}\n")

    assert "longer than" in wrong(
        *zeroshot(tiny_clip, f"folder:{pictures}", "--templates", tmp_path / "t.txt")
    )


def test_a_setting_that_is_none(wrong):
    assert "KEY=VALUE" in wrong("run", "zero_shot", "--set", "data.name")


def test_a_config_that_is_none(wrong, tmp_path):
    (tmp_path / "c.yaml").write_text("method: [unclosed\n")

    assert "did you mean 'linear_probe-quick'" in wrong("run", "linear_probe-quik")
    assert "is not YAML" in wrong("run", tmp_path / "c.yaml")


def test_a_split_the_data_lack(wrong, tiny_clip, pictures):
    import shutil

    shutil.rmtree(pictures / "val")

    text = wrong(*zeroshot(tiny_clip, f"folder:{pictures}", "--split", "val"))

    assert "has no split 'val'; it has train, test" in text


def test_a_method_without_a_model(wrong, pictures):
    text = wrong("run", "zero_shot", "--set", f"data.name=folder:{pictures}")

    assert "needs a model" in text
    assert "--model stitched, or set model.name" in text


def test_a_table_of_nothing(wrong, tmp_path):
    (tmp_path / "none").mkdir()

    assert "no records" in wrong("table", tmp_path / "none")
    assert "no folder" in wrong("table", tmp_path / "nowhere")


def test_debug_shows_where_it_came_from(cli, pictures):
    from clipadapt.core.api.errors import ClipAdaptError

    with pytest.raises(ClipAdaptError):
        cli("table", pictures / "nowhere", "--debug")


def test_no_network_is_said_within_ten_seconds(console, pictures, tmp_path):
    """With a network that answers nothing and nothing in the hub's cache."""
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hub"),
        "CLIPADAPT_CACHE": str(tmp_path / "cache"),
    }
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        environment.pop(name, None)
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "http_proxy": "", "https_proxy": ""}
    command = [console("clipadapt"), *zeroshot("ViT-B-32-quickgelu/openai", f"folder:{pictures}")]

    begun = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )

    assert done.returncode == 2, done.stderr
    assert (
        time.monotonic() - begun < 30
    )  # ten for the network, the rest for imports on a busy machine
    assert "stitched" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(tmp_path / "runs").exists()


@pytest.mark.parametrize("method", ["maple", "promptsrc", "ivlp"])
def test_prompts_in_a_convolutional_image_tower(wrong, tiny_models, method):
    settings = [f"model.name={tiny_models['hf']}", "data.name=synthetic:3x12", "data.shots=2"]

    text = wrong("run", f"{method}-quick", *(w for s in settings for w in ("--set", s)))

    assert f"{method} adds prompts to the image tower" in text
    assert "EfficientNet" in text
    assert "ivlp-language_only" in text
