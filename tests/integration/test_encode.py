"""``encode``: the runs that follow find every feature in the cache; wrong inputs are one message."""

from __future__ import annotations

import io
import json
import os
import tarfile

import pytest

from clipadapt.core.runs import shards


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A feature cache of this test."""
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_tower(monkeypatch):
    """Return a function after which no image and no text can be encoded."""

    def forbid():
        from clipadapt.models._encode import Towers

        def encode(*_, **__):
            raise AssertionError("something was encoded")

        for name in ("encode_image", "encode_text"):
            monkeypatch.setattr(Towers, name, encode)

    return forbid


def encode(cli, model, dataset, *more, program="clipadapt"):
    done = cli("encode", "--model", model, "--dataset", dataset, *more, "--json", program=program)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.slow
def test_zeroshot_and_bench_after_it_encode_nothing(
    cli, own_cache, no_tower, pictures, tiny_clip, tmp_path
):
    data = f"folder:{pictures}"

    found = encode(cli, tiny_clip, data)

    assert {p["name"]: p["encoded"] for p in found["parts"]} == {
        "train": 18, "val": 12, "test": 12, "prompts": 3,
    }  # fmt: skip
    assert found["cache"].startswith(str(own_cache))
    assert sum(found["share_of_time"].values()) == pytest.approx(1)
    assert found["per_second"] == pytest.approx(45 / found["seconds"])
    encode(cli, tiny_clip, data, "--features", "layer=pre_projection")  # which the probe reads
    no_tower()
    again = encode(cli, tiny_clip, data)
    assert (again["encoded"], again["stored_before"]) == (0, 45)
    done = cli(
        "zeroshot", "--model", tiny_clip, "--dataset", data, "--out", tmp_path / "z", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["records"][0]["cost"]["encode_seconds"] > 0  # paid before
    plan = {
        "datasets": [data],
        "models": [tiny_clip],
        "methods": ["zero_shot", {"recipe": "linear_probe", "set": {"method.max_iter": 5}}],
        "shots": [2],
        "seeds": [1],
    }
    (tmp_path / "s.yaml").write_text(json.dumps(plan))
    done = cli("bench", tmp_path / "s.yaml", "--out", tmp_path / "b", "--json")
    assert done.code == 0, done.err
    assert [r["status"] for r in json.loads(done.out)["records"]] == ["ok", "ok"]


def test_splits_limits_layers_and_precisions_are_chosen(cli, own_cache, pictures, tiny_clip):
    data = f"folder:{pictures}"

    few = encode(cli, tiny_clip, data, "--split", "test", "--limit", 5, "--templates", "7")
    other = encode(cli, tiny_clip, data, "--split", "test", "--features", "layer=projected")
    # Both change nothing on a CPU, and are as valid as in a run that reads these features.
    gpu = ("--set", "model.tf32=true", "--set", "model.deterministic=true")
    exact = encode(cli, tiny_clip, data, "--split", "test", "--set", "model.precision=bf16", *gpu)
    rest = encode(cli, tiny_clip, data, "--split", "test", "--split", "test")

    assert [(p["name"], p["encoded"]) for p in few["parts"]] == [("test", 5), ("prompts", 21)]
    assert [(p["name"], p["encoded"]) for p in other["parts"]] == [("test", 12), ("prompts", 3)]
    assert [(p["name"], p["encoded"]) for p in exact["parts"]] == [("test", 12), ("prompts", 3)]
    assert [(p["name"], p["encoded"]) for p in rest["parts"]] == [("test", 7), ("prompts", 0)]


def test_it_reads_tar_files_and_texts(
    cli, own_cache, no_tower, pictures, tiny_clip, tiny_texts, tmp_path
):
    data = tmp_path / "tars"
    (data / "test").mkdir(parents=True)
    (data / "classnames.txt").write_text("red\nblue\ngreen\n")
    names = ("red_thing", "blue_thing", "green_thing")
    for shard in range(2):
        with tarfile.open(data / "test" / f"{shard}.tar", "w") as tar:
            for label, name in enumerate(names):
                picture = (pictures / "test" / name / f"{shard}.png").read_bytes()
                for ending, content in (("png", picture), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{shard}{label}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    texts = tmp_path / "texts.csv"
    texts.write_text(
        "text,label\n" + "".join(f"film number {i} was fine,{i % 2}\n" for i in range(40))
    )

    tars = encode(cli, tiny_clip, f"wds:{data}")
    words = ("--features", "pooling=mean", "--features", "max_length=16")
    own = encode(cli, tiny_texts["distilbert"], f"csv:{texts}", *words, program="textsent")
    twice = encode(cli, tiny_texts["distilbert"], f"csv:{texts}", *words, program="textsent")

    assert [(p["name"], p["encoded"]) for p in tars["parts"]] == [("test", 6), ("prompts", 3)]
    assert (own["encoded"], twice["encoded"]) == (40, 0)
    no_tower()
    done = cli(
        "zeroshot", "--model", tiny_clip, "--dataset", f"wds:{data}", "--out", tmp_path / "z"
    )
    assert done.code == 0, done.err


def test_an_unreadable_image_ends_it_and_the_same_command_goes_on(
    cli, own_cache, monkeypatch, pictures, tiny_clip
):
    monkeypatch.setattr(shards, "FIRST", 4)
    bad = pictures / "test" / "red_thing" / "3.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:100])
    words = ("encode", "--model", tiny_clip, "--dataset", f"folder:{pictures}", "--json")

    done = cli(*words)

    assert done.code == 2
    assert f"cannot decode the image '{bad}'" in done.err
    assert "Traceback" not in done.err
    bad.write_bytes(content)
    found = json.loads(cli(*words).out)
    assert found["stored_before"] >= 30  # of train and val
    assert found["stored_before"] + found["encoded"] == 45


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "should be greater than or equal to 1"),
        (["--workers", "2"], "--workers 2 needs --executor ray"),
        (["--split", "tset"], "--split takes train, val, test, all (got 'tset')"),
        (["--split", "all"], "has splits of its own"),
        (["--limit", "0"], "should be greater than or equal to 1"),
        (["--features", "layr=x"], "--features has no key 'layr'; did you mean 'layer'?"),
        (["--features", "view=front"], "--features view takes a value like 0 (got 'front')"),
        (["--features", "layer=top"], "unknown layer 'top'"),
        (["--set", "store=off"], "encode does not use store"),
        (["--set", "method.C=1"], "encode does not use method.C"),
        (["--set", "data.limit=3", "--limit", "3"], "set the same value"),
        (["--model", "random:ViT-B-999"], "ViT-B-999"),
        (["--dataset", "foldr:x"], "unknown dataset 'foldr:x'; did you mean 'folder'?"),
        (["--dataset", "folder:/nowhere/at/all"], "/nowhere/at/all"),
        (["--executor", "dask"], "'dask' is not one of 'local', 'ray'"),
    ],
)
def test_wrong_inputs_are_one_message(cli, own_cache, tiny_clip, words, said):
    done = cli("encode", "--model", tiny_clip, "--dataset", "synthetic:2x2", *words)

    assert done.code == 2
    assert said in done.text
    assert "Traceback" not in done.err
    assert not (own_cache / "features").exists()


def test_nothing_to_encode_is_a_message(cli, own_cache, tiny_clip, tmp_path):
    (tmp_path / "empty").mkdir()

    done = cli("encode", "--model", tiny_clip, "--dataset", f"folder:{tmp_path / 'empty'}")

    assert done.code == 2
    assert "contains no images" in done.err or "no images" in done.err


def test_without_ray_the_message_names_the_extra(cli, own_cache, monkeypatch, tiny_clip):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)

    done = cli("encode", "--model", tiny_clip, "--dataset", "synthetic:2x2", "--executor", "ray")

    assert done.code == 2
    assert "--executor ray needs Ray" in done.err
    assert "pip install 'clipadapt[ray]'" in done.err
    assert not os.path.isdir(own_cache / "features")  # noqa: PTH112


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_one_message(
    cli, own_cache, monkeypatch, tiny_clip, address
):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'clipadapt[ray]'")
    monkeypatch.setenv("RAY_ADDRESS", address)

    done = cli("encode", "--model", tiny_clip, "--dataset", "synthetic:2x2", "--executor", "ray")

    assert done.code == 2
    assert f"cannot connect to the Ray cluster '{address}' that RAY_ADDRESS names: " in done.err
    assert "unset RAY_ADDRESS to use this machine" in done.err
    assert not os.path.isdir(own_cache / "features")  # noqa: PTH112
