"""The package against a local hub: downloads, error messages, and offline use afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants, hf_hub_download
from PIL import Image
from safetensors.torch import load_file, save_file

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import DatasetOptions, Inputs
from clipadapt.core.api.errors import DataError, ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import DATASETS, MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files import hub_client, identity
from tests.hub.conftest import pictures
from tests.unit.models import tiny as clip

FP32 = ModelOptions("fp32", "cpu")
WEIGHTS = "open_clip_model.safetensors"


def identify(name, track="clip"):
    found = MODELS.resolve(name, track)
    return found.provider.identify(found.argument, FP32)


def load(name, track="clip"):
    found = MODELS.resolve(name, track)
    return found.provider.load(found.argument, FP32, Services(FeatureCache(enabled=False)))


def open_(name, track="clip"):
    found = DATASETS.resolve(name, track)
    return found.provider(found.argument, DatasetOptions())


def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def encode(model, texts=("a fine film", "a dull story")):
    return np.asarray(model.encode(Inputs(list(texts), ("1", "2"))))


def age(folder):
    """Make files old enough to be remembered: those younger than two seconds are not."""
    old = time.time() - 60
    for path in Path(folder).rglob("*"):
        if path.is_file():
            os.utime(path, (old, old))


def blob(name):
    """Return the path of a file's content in the cache."""
    return next(Path(constants.HF_HUB_CACHE).rglob(f"snapshots/*/{name}")).resolve()


def move_main(hub, *, keep="v1"):
    """Give org/clip other weights on main and keep the earlier state as a tag."""
    folder = hub.root / "models/org/clip"
    folder.joinpath("main").rename(folder / keep)
    clip.write(folder / "main", "clip")
    path = folder / "main" / WEIGHTS
    save_file({k: v + 1 for k, v in load_file(path).items()}, path)


# ---------------------------------------------------------------- works


def test_a_renamed_repository_and_no_unwanted_file(hub):
    assert load("bert", "text").name == "bert"
    assert not hub.asked("README.md")


def test_a_token_goes_to_the_hub_and_not_to_the_store(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    load("hf-hub:org/closed")
    assert {r.token for r in hub.asked("/resolve/")} == {"hf_alice"}
    assert {r.token for r in hub.asked("/store/")} == {None}


def test_a_missing_shard_leaves_no_incomplete_dataset(hub, monkeypatch):
    hub.fault("train-00001", status=503, times=None)
    with pytest.raises(DataError, match=r"failed: 'data/train-00001.*HTTP 503"):
        open_("hf:org/pets")
    hub.faults.clear()
    offline(monkeypatch)
    with pytest.raises(DataError, match="has no copy"):
        open_("hf:org/pets")


def test_a_broken_connection_is_resumed(hub):
    hub.fault("/store/", after=1000)
    load("hf-hub:org/clip")
    assert any(r.range for r in hub.asked("/store/")) or len(hub.asked("/store/")) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_requests_to_a_busy_hub_are_retried(hub, status):
    hub.fault("/api/", status=status, times=2)
    hub.fault(rf"resolve/.*{WEIGHTS}", status=status, times=2)
    assert identify("hf-hub:org/clip").revision


def test_a_revision_of_each_kind_of_repository(hub):
    shutil.copytree(hub.root / "models/org/clip/main", hub.root / "models/org/clip/v1")
    shutil.copytree(hub.root / "models/org/bert/main", hub.root / "models/org/bert/v1")
    shutil.copytree(hub.root / "datasets/org/pets/main", hub.root / "datasets/org/pets/v1")
    found = identify("hf-hub:org/clip@v1")
    assert found.name == "hf-hub:org/clip@v1"
    assert load(f"hf-hub:org/clip@{found.revision}").name == f"hf-hub:org/clip@{found.revision}"
    assert (
        identify("org/bert@v1", "text").weights_sha256
        == identify("org/bert", "text").weights_sha256
    )
    assert open_("hf:org/pets@v1").fingerprint == open_("hf:org/pets@main").fingerprint
    for wrong in ("v2", "a" * 40):
        with pytest.raises(ModelError, match=f"no revision '{wrong}'"):
            identify(f"hf-hub:org/clip@{wrong}")
    with pytest.raises(ModelError, match="not a valid revision"):
        identify("hf-hub:org/clip@../../x")


@pytest.mark.slow
def test_two_processes_on_a_blank_cache(hub, tmp_path):
    # Without the imports of this file, which take seconds.
    code = (
        "from clipadapt.core.api.data import DatasetOptions\n"
        "from clipadapt.core.api.model import ModelOptions\n"
        "from clipadapt.core.api.registry import DATASETS, MODELS\n"
        "model = MODELS.resolve('hf-hub:org/siglip', 'clip')\n"
        "data = DATASETS.resolve('hf:org/pets', 'clip')\n"
        "known = model.provider.identify(model.argument, ModelOptions('fp32', 'cpu'))\n"
        "print(known.weights_sha256, data.provider(data.argument, DatasetOptions()).fingerprint)\n"
    )
    env = {**os.environ, **hub.env(tmp_path / "home")}
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed[0] == printed[1]
    assert len(printed[0].split()) == 2


def test_progress_is_printed_if_stderr_is_not_a_terminal(hub, monkeypatch, capsys):
    monkeypatch.setattr(hub_client, "LINE_SECONDS", 0.0)
    load("hf-hub:org/clip")
    assert re.search(
        r"^download org/clip: [\d.]+ of [\d.]+ MB$", capsys.readouterr().err, re.MULTILINE
    )
    monkeypatch.setattr(hub_client, "LINE_SECONDS", 10.0)
    load("hf-hub:org/siglip")
    assert "download" not in capsys.readouterr().err  # it was downloaded before a line was due


def test_a_clip_of_transformers_is_converted(hub, monkeypatch):
    folder = hub.root / "models/org/theirs/main"
    clip.write_transformers(folder)
    here = load(f"local-dir:{folder}")
    (folder / "flax_model.msgpack").write_bytes(b"not wanted")

    found, model = identify("hf-hub:org/theirs"), load("hf-hub:org/theirs")

    tokens = model.tokenize(["a photo of a dog"])
    assert (model.encode_text(tokens) == here.encode_text(tokens)).all()
    assert not hub.asked("flax_model")
    assert found.revision
    assert found.weights_sha256 == model.identity.weights_sha256
    offline(monkeypatch)
    assert identify("hf-hub:org/theirs") == found


def test_files_of_transformers_in_the_cache_do_not_hide_open_clips(hub):
    """A repository may have both; files downloaded by another program do not decide which is used."""
    clip.write_transformers(hub.root / "models/org/clip/main")
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        hf_hub_download("org/clip", name)
    load("hf-hub:org/clip")
    assert blob(WEIGHTS).is_file()


# ---------------------------------------------------------------- after a first download


def test_a_text_model_works_offline_afterwards(hub, monkeypatch):
    first, found = encode(load("org/bert", "text")), identify("org/bert", "text")
    offline(monkeypatch)
    assert (encode(load("org/bert", "text")) == first).all()
    assert identify("org/bert", "text") == found
    assert found.licence == "mit"


def test_a_cached_text_model_causes_no_request(hub):
    load("org/bert", "text")
    before = len(hub.log)
    load("org/bert", "text")
    assert len(hub.log) == before


def test_a_dataset_works_offline_afterwards(hub, monkeypatch):
    first = open_("hf:org/pets")
    offline(monkeypatch)
    again = open_("hf:org/pets")
    assert again.fingerprint == first.fingerprint
    assert again.revision == first.revision


def test_a_moved_dataset_is_reported_and_not_followed(hub):
    first = open_("hf:org/pets")
    folder = hub.root / "datasets/org/pets"
    folder.joinpath("main").rename(folder / "old")
    pictures(folder / "main", ("frog", "newt"))
    again = open_("hf:org/pets")
    assert again.classnames == ("cat", "dog")
    (note,) = [n for n in again.notes if "has moved to commit" in n]
    new = re.search(r"write (hf:org/pets@\w+)", note)[1]  # the name in the note works
    assert open_(new).classnames == ("frog", "newt")
    assert first.revision in note


def test_the_identity_is_that_of_the_loaded_weights(hub):
    load("hf-hub:org/clip")
    age(Path(constants.HF_HUB_CACHE))
    first = identify("hf-hub:org/clip")
    assert first.notes == ()
    move_main(hub)
    for name in ("open_clip_config.json", WEIGHTS):  # another program of the user's follows main
        hf_hub_download("org/clip", name)
    there = load("hf-hub:org/clip")
    assert there.weights_sha256 != load("hf-hub:org/clip@v1").weights_sha256
    second = identify("hf-hub:org/clip")
    assert second.weights_sha256 == there.identity.weights_sha256 != first.weights_sha256
    assert identify("hf-hub:org/clip@" + first.revision).weights_sha256 == first.weights_sha256


def test_a_main_that_another_program_moved_is_reported_once(hub):
    first = identify("hf-hub:org/clip")
    move_main(hub)
    for name in ("open_clip_config.json", WEIGHTS):
        hf_hub_download("org/clip", name)
    (note,) = identify("hf-hub:org/clip").notes
    assert first.revision in note
    assert identify("hf-hub:org/clip").notes == ()


def test_the_identity_does_not_change_after_the_tokenizer_is_downloaded(
    hub, own_cache, monkeypatch
):
    first = identify("hf-hub:org/siglip")
    load("hf-hub:org/siglip")
    shutil.rmtree(own_cache)
    offline(monkeypatch)
    assert identify("hf-hub:org/siglip").weights_sha256 == first.weights_sha256


def test_the_tokenizer_of_a_tag_is_downloaded_and_hashed(hub, monkeypatch):
    tag_of(monkeypatch, "ViT-B-16-SigLIP", "org/siglip", "org/siglip/")
    first = identify("ViT-B-16-SigLIP/mine")
    assert hub.asked("tokenizer.json")
    own = identify("hf-hub:org/siglip")
    assert first.revision == own.revision
    path = hub.root / "models/org/siglip/main/tokenizer_config.json"
    path.write_text(path.read_text() + " ")
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert identify("ViT-B-16-SigLIP/mine").weights_sha256 != first.weights_sha256


def test_a_tag_is_remembered_until_main_moves(hub, monkeypatch):
    tag_of(monkeypatch, "ViT-B-32", "", "org/clip/")
    first = identify("ViT-B-32/mine")
    age(Path(constants.HF_HUB_CACHE))
    assert identify("ViT-B-32/mine") == first
    monkeypatch.setattr("open_clip.pretrained.get_pretrained_cfg", pytest.fail)
    assert identify("ViT-B-32/mine") == first  # without open_clip
    tag_of(monkeypatch, "ViT-B-32", "", "org/clip/")
    move_main(hub)
    hf_hub_download("org/clip", WEIGHTS)
    assert identify("ViT-B-32/mine").weights_sha256 != first.weights_sha256


@pytest.mark.parametrize(("arch", "repo"), [("ViT-B-32", "clip"), ("ViT-B-16-SigLIP", "siglip")])
def test_the_files_of_a_tag_are_remembered(hub, own_cache, monkeypatch, arch, repo):
    from clipadapt.models import _names, _sources, openclip

    tag_of(monkeypatch, arch, f"org/{repo}" if repo == "siglip" else "", f"org/{repo}/")
    name = _names.Name("tag", arch=arch, tag="mine")
    expected = _sources.find(name)
    age(Path(constants.HF_HUB_CACHE))
    assert openclip._source(name) == expected
    monkeypatch.setattr("open_clip.pretrained.get_pretrained_cfg", pytest.fail)
    assert openclip._source(name) == replace(expected, notes=())


def tag_of(monkeypatch, arch, tokenizer, place):
    """Register a tag 'mine' of an architecture with open_clip, whose weights are on this hub."""
    from clipadapt.models import _names

    config = _names.architecture_config(arch)
    if tokenizer:
        config["text_cfg"]["hf_tokenizer_name"] = tokenizer
    monkeypatch.setattr(_names, "architecture_config", lambda _: config)
    monkeypatch.setattr("open_clip.pretrained.get_pretrained_cfg", lambda *_: {"hf_hub": place})


# ---------------------------------------------------------------- records


def test_the_record_holds_commits_and_a_table_names_them(hub, cli, tmp_path, monkeypatch):
    out = tmp_path / "runs"
    command = ["run", "linear_probe-quick", "--out", out, "--json"]
    command += ["--set", "model.name=hf-hub:org/clip", "--set", "data.name=hf:org/pets"]
    command += ["--set", "model.precision=fp32", "--set", "seeds=[1]"]
    record = json.loads(cli(*command).out)["records"][0]
    assert record["model"]["revision"] == identify("hf-hub:org/clip").revision
    assert record["model"]["licence"] == "see https://huggingface.co/org/clip"
    assert record["data"]["revision"] in record["data"]["source"]
    assert record["data"]["citation"] == "see https://huggingface.co/datasets/org/pets"
    offline(monkeypatch)
    again = json.loads(cli(*command).out)["records"][0]
    assert again["run_id"] == record["run_id"]
    run = next(out.rglob("record.json")).parent
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    move_main(hub)
    for name in ("open_clip_config.json", WEIGHTS):
        hf_hub_download("org/clip", name)
    moved = cli(
        *(c.replace("seeds=[1]", "seeds=[2]") if isinstance(c, str) else c for c in command)
    )
    assert f"was {record['model']['revision']}" in moved.err
    refused = cli("table", out)
    other = json.loads(moved.out)["records"][0]["model"]["revision"]
    assert f"commit {record['model']['revision']}" in refused.err
    assert f"commit {other}" in refused.err

    picture = tmp_path / "a.png"

    Image.new("RGB", (8, 8)).save(picture)
    assert cli("predict", run, picture).code == 0  # with the weights of the run's own commit


# ---------------------------------------------------------------- damaged files


def test_a_damaged_blob_is_named_and_downloading_it_again_works(hub, tmp_path):
    right = load("hf-hub:org/clip").weights_sha256
    path = blob(WEIGHTS)
    flip(path)
    with pytest.raises(ModelError, match="is damaged") as caught:
        load("hf-hub:org/clip")
    assert f"'{path}'" in caught.value.problem
    subprocess.run(["sh", "-c", re.search(r"rm '.*'", caught.value.hint)[0]], check=True)
    assert load("hf-hub:org/clip").weights_sha256 == right
    flip(blob("open_clip_config.json"))  # a small file is named by its git hash
    with pytest.raises(ModelError, match="is damaged"):
        load("hf-hub:org/clip")


def test_a_byte_that_flips_under_an_unchanged_stat_is_found_at_load(hub):
    load("org/bert", "text")
    age(Path(constants.HF_HUB_CACHE))
    identify("org/bert", "text")
    path = blob("model.safetensors")
    stat = path.stat()
    flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    identity._read_here.clear()  # as in another process
    assert identify("org/bert", "text")  # identified by its stat; loading reads it
    with pytest.raises(ModelError, match="is damaged"):
        load("org/bert", "text")


def test_a_damaged_shard_of_a_dataset_is_named(hub):
    open_("hf:org/pets")
    path = next(Path(constants.HF_HUB_CACHE).rglob("snapshots/*/data/test-*")).resolve()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="is damaged") as caught:
        open_("hf:org/pets")
    path.unlink()
    assert str(path) in caught.value.problem
    assert open_("hf:org/pets").classnames == ("cat", "dog")


def test_damaged_remembered_facts_are_not_trusted(tmp_path, own_cache):
    folder = clip.write(tmp_path / "mine", "clip")
    age(folder)
    right = identify(f"local-dir:{folder}").weights_sha256
    files = sorted((own_cache / "identities").glob("*.json"))
    assert len(files) == 2
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        for _ in range(20):
            raw = bytearray(whole)
            raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
            path.write_bytes(raw)
            identity._read_here.clear()
            assert identify(f"local-dir:{folder}").weights_sha256 == right
            path.write_bytes(whole[: rng.integers(len(whole))])
            identity._read_here.clear()
            assert identify(f"local-dir:{folder}").weights_sha256 == right


def test_files_that_change_between_preparing_and_loading_are_refused(tmp_path):
    folder = clip.write(tmp_path / "mine", "clip")
    before = identify(f"local-dir:{folder}")
    flip(folder / WEIGHTS)
    with pytest.raises(ModelError, match="changed while it was loaded"):
        identity.require_same(load(f"local-dir:{folder}"), before)


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


# ---------------------------------------------------------------- errors


def test_a_tokenizer_that_cannot_be_downloaded_is_an_error(hub):
    right = load("hf-hub:org/siglip").tokenizer(["a photo of a dog."])
    shutil.rmtree(Path(constants.HF_HUB_CACHE))
    hub.fault(r"tokenizer\.json", status=503, times=None)
    with pytest.raises(ModelError, match=r"'tokenizer.json' could not be downloaded: .*HTTP 503"):
        load("hf-hub:org/siglip")
    hub.faults.clear()
    assert (load("hf-hub:org/siglip").tokenizer(["a photo of a dog."]) == right).all()


@pytest.mark.parametrize("track", ["clip", "text"])
def test_a_tokenizer_without_vocabulary_is_an_error(tiny_texts, tmp_path, track):
    if track == "text":
        folder = Path(shutil.copytree(tiny_texts["bert"], tmp_path / "mine"))
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]")
    else:
        folder = clip.write(tmp_path / "mine", "hf")
        (folder / "vocab.txt").write_text("\n".join(clip.WORDS[:5]))
    name = str(folder) if track == "text" else f"local-dir:{folder}"
    with pytest.raises(ModelError, match="knows 0 tokens beside its special ones"):
        load(name, track)


def test_the_same_file_as_open_clip_is_downloaded(hub):
    folder = hub.root / "models/org/clip/main"
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"not the same")
    (folder / "open_clip_pytorch_model.safetensors").write_bytes(b"not the same")
    load("hf-hub:org/clip")
    assert not hub.asked(r"/store/.*pytorch_model")


def test_a_tags_files_in_open_clips_order():
    from clipadapt.models._sources import _tag_names

    for file in ("open_clip_pytorch_model.bin", "pytorch_model.bin", "x.pth", "x.safetensors"):
        theirs = [*open_clip.pretrained._get_safe_alternatives(file), file]
        assert list(_tag_names(file)) == theirs


@pytest.mark.parametrize(
    ("fault", "message", "hint"),
    [
        ({"match": "/api/", "status": 503, "times": None}, "HTTP 503", "again in some minutes"),
        ({"match": "open_clip_config", "status": 503, "times": None}, "HTTP 503", "again in some"),
        (
            {"match": "/store/", "after": 1000, "times": None},
            "could not be downloaded",
            "try again",
        ),
        (
            {"match": "open_clip_model", "cut": 1000, "times": None},
            "not a safetensors file",
            "rm '",
        ),
        ({"match": "/store/", "damage": True, "times": None}, "is damaged", "rm '"),
        ({"match": "/api/", "status": 403, "times": None}, "HTTP 403", "permission"),
        (
            {"match": "/api/", "status": 404, "times": None},
            "does not behave like the hub",
            "HF_ENDPOINT",
        ),
        ({"match": "/api/", "body": "<html>log in</html>"}, "not the hub", "requires a login"),
        ({"match": "/api/", "body": "[1]"}, "not the hub", "requires a login"),
        (
            {"match": "/api/", "status": 429, "times": None, "headers": {"Retry-After": "77"}},
            "HTTP 429",
            "again in 77 s",
        ),
    ],
)
def test_a_failing_hub(hub, fault, message, hint):
    hub.fault(**fault)
    with pytest.raises(ModelError, match=message) as caught:
        load("hf-hub:org/clip")
    assert hint in caught.value.hint
    assert "\n" not in caught.value.problem


def test_the_cached_dataset_is_used_whatever_the_hub_answers(hub):
    first = open_("hf:org/pets").fingerprint
    for fault in ({"status": 503}, {"status": 403}, {"body": "<html>"}):
        hub.fault("/api/", times=None, **fault)
        again = open_("hf:org/pets")
        assert again.fingerprint == first
        assert any("read from the hub cache" in note for note in again.notes)
        hub.faults.clear()


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("nothing", "not the address"),
        ("ftp://127.0.0.1", "not the address"),
        ("http://127.0.0.1:9", "cannot reach"),
    ],
)
def test_an_invalid_endpoint(hub, monkeypatch, endpoint, message):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    with pytest.raises(ModelError, match=message) as caught:
        identify("hf-hub:org/clip")
    assert endpoint in caught.value.problem
    assert "HF_ENDPOINT" in caught.value.hint or "stitched" in caught.value.hint


@pytest.mark.parametrize("token", [None, "hf_bob"])
def test_a_gated_model_says_so(hub, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelError, match="gated") as caught:
        load("hf-hub:org/closed")
    assert "https://huggingface.co/org/closed" in caught.value.hint
    assert ("set HF_TOKEN" in caught.value.hint) is (token is None)


def test_private_disabled_and_absent_repositories(hub, monkeypatch):
    for name in ("private", "disabled"):
        folder = hub.root / f"models/org/{name}"
        shutil.copytree(hub.root / "models/org/clip/main", folder / "main")
        (folder / "repo.json").write_text(json.dumps({name: True}))
    for name in ("org/private", "org/nothing"):
        with pytest.raises(ModelError, match=f"no public model '{name}'"):
            identify(f"hf-hub:{name}")
        with pytest.raises(ModelError, match=f"no public model '{name}'"):
            identify(name, "text")
    with pytest.raises(ModelError, match="is disabled"):
        identify("hf-hub:org/disabled")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    with pytest.raises(ModelError, match="that the token in use may read"):
        identify("hf-hub:org/private")


@pytest.mark.parametrize("name", ["org/clip@main", "org/-x", "org/a..b", "org/a--b", "org/x.git"])
def test_an_invalid_name(hub, name):
    with pytest.raises(ModelError) as caught:
        identify(f"hf-hub:{name}")
    assert caught.value.hint
    assert not hub.log


def test_an_invalid_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    for call in (lambda: open_("hf:org/pets"), lambda: identify("hf-hub:org/clip")):
        with pytest.raises((DataError, ModelError), match="rejects the token") as caught:
            call()
        assert "unset it" in caught.value.hint


def test_a_repository_of_something_else(hub):
    with pytest.raises(ModelError, match=r"holds no open_clip_config\.json, but a 'bert' of"):
        identify("hf-hub:org/bert")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        identify("org/siglip", "text")
    folder = hub.root / "models/org/bert/main"
    (folder / "vocab.txt").unlink()
    with pytest.raises(ModelError, match="holds no tokenizer with a vocabulary"):
        identify("org/bert", "text")


def test_an_unwritable_cache(hub, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="is not writable") as caught:
        identify("hf-hub:org/clip")
    assert "HF_HOME" in caught.value.hint


def test_doctor_says_the_same(hub, cli):
    found = cli("doctor", "--model", "hf-hub:org/clip", "--dataset", "hf:org/pets")
    assert identify("hf-hub:org/clip").revision in found.out
    assert open_("hf:org/pets").revision in found.out
    wrong = cli("doctor", "--model", "hf-hub:org/closed")
    assert "gated" in wrong.out + wrong.err
    assert wrong.code == 2


# ---------------------------------------------------------------- configurations of datasets

CARD = """---
license: cc-by-4.0
configs:
- config_name: one
  data_files:
  - split: train
    path: one/train-*
- config_name: two
  data_files:
  - split: train
    path: two/train-*
  - split: test
    path: two/**/test-*
---
"""


def texts(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        table = {"text": [f"{file} {i}" for i in range(60)], "label": [0, 1] * 30}
        pq.write_table(pa.table(table), folder / file)
    return folder


@pytest.fixture
def several(hub):
    names = ("one/train-0.parquet", "two/train-0.parquet", "two/test-0.parquet")
    folder = texts(hub.root / "datasets/org/several/main", *names)
    (folder / "README.md").write_text(CARD)
    return hub


def test_a_configuration_downloads_only_its_files(several, monkeypatch):
    data = open_("hf:org/several?config=two", "text")
    assert data.splits == ("train", "test")
    assert data.licence == "cc-by-4.0"
    assert not several.asked("one%2Ftrain|one/train")
    offline(monkeypatch)
    assert open_("hf:org/several?config=two", "text").fingerprint == data.fingerprint
    with pytest.raises(DataError, match="has no copy, only a part"):
        open_("hf:org/several?config=one", "text")


def test_a_configuration_must_be_chosen_before_anything_is_downloaded(several):
    with pytest.raises(DataError, match="several configurations: one, two") as caught:
        open_("hf:org/several", "text")
    assert not several.asked(r"\.parquet")
    name = re.search(r"hf:\S+", caught.value.hint)[0]
    assert open_(name, "text").classnames
    with pytest.raises(DataError, match="no configuration 'tow'; did you mean 'two'"):
        open_("hf:org/several?config=tow", "text")


def test_only_the_default_configuration_is_downloaded(several):
    card = several.root / "datasets/org/several/main/README.md"
    card.write_text(CARD.replace("config_name: two", "config_name: two\n  default: true"))
    assert open_("hf:org/several", "text").splits == ("train", "test")
    assert not several.asked("one%2Ftrain|one/train")


def test_a_loading_script_is_not_run_and_its_parquet_copy_is_offered(hub):
    folder = hub.root / "datasets/org/script"
    folder.joinpath("main").mkdir(parents=True)
    (folder / "main/script.py").write_text("raise SystemExit")
    with pytest.raises(DataError, match=r"is a loading script \(script.py\)") as caught:
        open_("hf:org/script", "text")
    assert "none was found" in caught.value.hint

    copy = folder / "refs%2Fconvert%2Fparquet"
    texts(copy, "plain/train/0000.parquet", "plain/test/0000.parquet")
    with pytest.raises(DataError) as caught:
        open_("hf:org/script", "text")
    assert "none was found" not in caught.value.hint
    name = re.search(r"hf:org/script@\S+", caught.value.hint)[0]
    assert open_(name, "text").splits == ("train", "test")
    texts(copy, "other/train/0000.parquet")
    shutil.rmtree(constants.HF_HUB_CACHE)
    with pytest.raises(DataError, match="several configurations: other, plain"):
        open_(name, "text")
    assert open_(f"{name}?config=other", "text").splits


# ---------------------------------------------------------------- equal to open_clip


@pytest.mark.parametrize("name", ["org/clip", "org/siglip"])
def test_equal_to_open_clip(hub, name):
    ours = load(f"hf-hub:{name}")
    theirs = open_clip.create_model(f"hf-hub:{name}").eval()
    states = zip(ours.module.state_dict().values(), theirs.state_dict().values(), strict=True)
    assert all((a == b).all() for a, b in states)
    tokenize = open_clip.get_tokenizer(f"hf-hub:{name}")
    assert (ours.tokenizer(["a photo of a dog."]) == tokenize(["a photo of a dog."])).all()


def test_a_configuration_of_picture_files_is_read(hub):
    """The data are read from a folder of links to the hub cache."""
    folder = hub.root / "datasets/org/shots/main"
    for config in ("one", "two"):
        for name in ("cat", "dog"):
            for i in range(20):
                path = folder / config / "train" / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (i, len(config), len(name) + ord(name[0]))).save(path)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_dir: one\n- config_name: two\n  data_dir: two\n---\n"
    )

    data = open_("hf:org/shots?config=two")

    assert data.classnames == ("cat", "dog")
    assert data.n_read == 40
    assert data.split("train").inputs.examples[0].size == (8, 8)
    assert not hub.asked("one%2Ftrain|one/train")
