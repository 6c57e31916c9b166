"""The encoder on tiny random folders of every family: features, cache, copies, classifiers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from textsent.models import TextEncoder, _build, _states
from textsent.models._tokenize import tokenizer_digest

from . import tiny

TEXTS = [
    "a fine film",
    "the story is dull , and it was not good !",
    "film",
    "very very unfine films",
    "it is a very good story and a very warm film .",
]
TARGETS = {
    "distilbert": ("q_lin", "v_lin"),
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.write(root / family, family) for family in tiny.FAMILIES}


def load(
    folder: Path | str, precision: str = "fp32", store: FeatureCache | None = None, **services: int
) -> TextEncoder:
    found = MODELS.resolve(str(folder), "text")
    given = Services(store or FeatureCache(enabled=False), **services)
    return found.provider.load(found.argument, ModelOptions(precision, "cpu"), given)


def inputs(texts: list[str]) -> Inputs[str]:
    return Inputs(texts, tuple(str(i) for i in range(len(texts))))


@pytest.fixture(params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def encoder(family: str, folders: dict[str, Path]) -> TextEncoder:
    return load(folders[family])


def own_states(folder: Path, texts: list[str]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return all hidden states of transformers, and the mask."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(
        texts, truncation=True, max_length=tiny.POSITIONS, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = AutoModel.from_pretrained(folder)(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
        )
    return out.hidden_states, batch["attention_mask"]


def test_the_adapter_meets_the_protocol(encoder: TextEncoder, family: str) -> None:
    assert isinstance(encoder, TextEncoder)
    assert (encoder.architecture, encoder.width) == (family, tiny.WIDTH)
    assert (encoder.n_layers, encoder.max_length) == (tiny.LAYERS, tiny.POSITIONS)
    assert not encoder.module.training
    assert not any(p.requires_grad for p in encoder.module.parameters())
    assert encoder.n_params == sum(p.numel() for p in encoder.module.parameters())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_every_layer_equals_that_of_transformers(
    encoder: TextEncoder, family: str, folders: dict[str, Path], pooling: str
) -> None:
    states, mask = own_states(folders[family], TEXTS)
    for layer, state in enumerate(states):
        mean = (state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        want = state[:, 0] if pooling == "cls" else mean
        got = encoder.encode(inputs(TEXTS), layer, pooling)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-5)
        below = encoder.encode(inputs(TEXTS), layer - tiny.LAYERS - 1, pooling)
        np.testing.assert_array_equal(below, got)


def test_layers_above_the_one_read_are_not_run(encoder: TextEncoder) -> None:
    stack = _states.layer_list(encoder.module, tiny.LAYERS)
    assert stack is not None
    ran: list[int] = []
    for i, child in enumerate(stack):
        child.register_forward_hook(lambda *_, i=i: ran.append(i))
    for layer in range(tiny.LAYERS + 1):
        ran.clear()
        encoder.encode(inputs(TEXTS[:1]), layer)
        assert ran == list(range(layer))


def test_unknown_layer_lists_give_the_same_features(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = encoder.encode(inputs(TEXTS), 1)
    monkeypatch.setattr(_states, "LAYER_LISTS", ())
    np.testing.assert_allclose(encoder.encode(inputs(TEXTS), 1), want, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_text_does_not_depend_on_the_others(
    folders: dict[str, Path], family: str, precision: str, pooling: str
) -> None:
    encoder = load(folders[family], precision)
    # Lengths from 3 tokens to more than the model reads
    texts = [
        " ".join(("a good film and the very dull story " * 6).split()[:n]) for n in range(1, 49)
    ]
    texts = [f"{t} {'!' * (i % 3)}" for t in texts for i in range(3)]
    order = np.random.default_rng(0).permutation(len(texts))

    whole = encoder.encode(inputs(texts), -1, pooling)

    assert np.isfinite(whole).all()
    some = encoder.encode(inputs([texts[i] for i in order[:40]]), -1, pooling)
    np.testing.assert_array_equal(some, whole[order[:40]])
    for i in order[:5]:
        np.testing.assert_array_equal(encoder.encode(inputs([texts[i]]), -1, pooling)[0], whole[i])
    small = load(folders[family], precision, batch_size=5).encode(inputs(texts), -1, pooling)
    np.testing.assert_allclose(small, whole, atol=1e-5 if precision == "fp32" else 0.1)


def test_bf16_is_close_and_does_not_change_the_weights(
    folders: dict[str, Path], family: str
) -> None:
    full, half = load(folders[family]), load(folders[family], "bf16")
    a, b = full.encode(inputs(TEXTS)), half.encode(inputs(TEXTS))
    assert half.dtype == "bf16"
    assert not np.array_equal(a, b)
    assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(a)
    # Training starts from the stored weights.
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}
    assert half.weights_sha256 == full.weights_sha256


def test_tokens(encoder: TextEncoder, family: str, folders: dict[str, Path]) -> None:
    own = AutoTokenizer.from_pretrained(folders[family])
    want = own(TEXTS, truncation=True, max_length=tiny.POSITIONS)["input_ids"]
    assert encoder.tokenize(TEXTS) == want
    cut = encoder.tokenize(["film " * 90, "a"], 6)
    assert len(cut[0]) == 6
    assert (cut[0][0], cut[0][-1]) == (own.cls_token_id, own.sep_token_id)
    assert len(encoder.tokenize(["film " * 90])[0]) == tiny.POSITIONS
    cut[0].clear()
    assert len(encoder.tokenize(["film " * 90], 6)[0]) == 6


def test_a_text_is_tokenized_once(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder.encode(inputs([*TEXTS, TEXTS[0]]), -1)
    monkeypatch.setattr(encoder._tokenizer, "inner", None)  # must not be called
    assert len(encoder.tokenize(TEXTS)) == len(TEXTS)


def test_the_cache_separates_layer_pooling_and_length(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(folders["bert"], store=FeatureCache(tmp_path))
    meter = encoder.services.meter
    ways = [(-1, "cls", None), (-1, "mean", None), (1, "cls", None), (-1, "cls", 5)]
    first = [encoder.encode(inputs(TEXTS), *way) for way in ways]
    assert meter.computed == len(ways) * len(TEXTS)
    assert len({a.tobytes() for a in first}) == len(ways)

    again = load(folders["bert"], store=FeatureCache(tmp_path))
    monkeypatch.setattr(_states.Network, "states", None)  # must not be called
    for way, want in zip(ways, first, strict=True):
        np.testing.assert_array_equal(again.encode(inputs(TEXTS), *way), want)
    assert again.services.meter.computed == 0
    assert again.services.meter.used_seconds > 0
    # The maximum of the model, given as a number
    np.testing.assert_array_equal(again.encode(inputs(TEXTS), -1, "cls", tiny.POSITIONS), first[0])
    np.testing.assert_array_equal(again.encode(inputs(TEXTS), tiny.LAYERS), first[0])


def test_changed_weights_are_encoded_again(folders: dict[str, Path], tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        encoder = load(folders["distilbert"], precision, FeatureCache(tmp_path))
        copy = encoder.clone()
        before = encoder.encode(inputs(TEXTS))
        np.testing.assert_array_equal(copy.encode(inputs(TEXTS)), before)
        copy.module.get_input_embeddings().weight.data.mul_(2)
        assert not np.allclose(copy.encode(inputs(TEXTS)), before)
        assert copy.weights_sha256 != encoder.weights_sha256
        np.testing.assert_array_equal(encoder.encode(inputs(TEXTS)), before)


def test_an_encoder_with_other_services_shares_the_weights(folders: dict[str, Path]) -> None:
    encoder = load(folders["distilbert"], "bf16")
    own = encoder.services
    other = encoder.with_services(Services(FeatureCache(enabled=False)))

    np.testing.assert_array_equal(other.encode(inputs(TEXTS)), encoder.encode(inputs(TEXTS)))

    assert encoder.services is own is not other.services
    assert other.module is encoder.module
    assert own.meter.computed == other.services.meter.computed == len(TEXTS)
    assert encoder._network.in_dtype() is other._network.in_dtype()


def test_another_call_of_the_tokenizer_does_not_change_the_key(encoder: TextEncoder) -> None:
    before = tokenizer_digest(encoder.tokenizer)
    encoder.tokenizer(TEXTS, truncation=True, max_length=7, padding="max_length")
    assert tokenizer_digest(encoder.tokenizer) == before


def test_bad_requests(encoder: TextEncoder) -> None:
    for call, message in (
        (lambda: encoder.encode(inputs(TEXTS), 4), "has no layer 4"),
        (lambda: encoder.encode(inputs(TEXTS), -5), "has no layer -5"),
        (lambda: encoder.encode(inputs(TEXTS), -1, "max"), "unknown pooling 'max'"),
        (lambda: encoder.encode(inputs(TEXTS), -1, "cls", 41), "at most 40 tokens, got .* 41"),
        (lambda: encoder.tokenize(TEXTS, 41), "at most 40 tokens, got max_length 41"),
        (lambda: encoder.tokenize(TEXTS, 2), "no room for text"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            call()
        assert caught.value.hint
    assert encoder.encode(inputs([])).shape[0] == 0


def test_the_number_of_threads_is_set(folders: dict[str, Path]) -> None:
    before = torch.get_num_threads()
    try:
        encoder = load(folders["bert"], threads=2)
        assert torch.get_num_threads() == 2
        encoder.with_services(replace(encoder.services, threads=1)).encode(inputs(TEXTS))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- classifiers


def test_a_classifier_has_the_encoder_and_a_head_from_the_seed(
    encoder: TextEncoder, family: str
) -> None:
    before, state = encoder.weights_sha256, torch.random.get_rng_state()

    first, same, other = (encoder.classifier(("bad", "good"), seed) for seed in (7, 7, 8))

    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(first).__name__.lower() == f"{family}forsequenceclassification"
    assert first.config.id2label == {0: "bad", 1: "good"}
    assert first.config.label2id == {"bad": 0, "good": 1}
    assert all(p.dtype == torch.float32 and p.requires_grad for p in first.parameters())
    own = encoder.module.state_dict()
    drawn = set()
    for (name, a), b, c in zip(
        first.state_dict().items(),
        same.state_dict().values(),
        other.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
        kept = own.get(name.removeprefix(f"{first.base_model_prefix}."))
        if name.startswith(first.base_model_prefix) and kept is not None:
            assert torch.equal(a, kept)
        elif not torch.equal(a, c):
            drawn.add(name)
    assert "classifier.weight" in drawn or "classifier.out_proj.weight" in drawn
    with torch.no_grad():
        for p in first.parameters():
            p.add_(1)
    assert encoder.weights_sha256 == before


def test_a_classifier_of_three_classes_runs(encoder: TextEncoder) -> None:
    model = encoder.classifier(("a", "b", "c"), 0)
    ids = torch.tensor(encoder.tokenize(TEXTS[:1]))
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape == (1, 3)


def test_a_pooler_missing_from_the_checkpoint_is_drawn_with_the_head(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny.write(tmp_path / "masked", "bert")
    path = folder / "model.safetensors"
    state = {k: v for k, v in load_file(path).items() if not k.startswith("pooler.")}
    save_file(state, path, metadata={"format": "pt"})

    encoder = load(folder)

    np.testing.assert_allclose(
        encoder.encode(inputs(TEXTS)), load(folders["bert"]).encode(inputs(TEXTS)), atol=1e-6
    )
    assert encoder.weights_sha256 == load(folder).weights_sha256
    first, same, other = (encoder.classifier(("a", "b"), s) for s in (7, 7, 8))
    weights = [m.get_parameter("bert.pooler.dense.weight") for m in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_lora_targets(encoder: TextEncoder, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoder.lora_targets() == TARGETS[family]
    monkeypatch.setattr(_build, "LORA_TARGETS", {})
    with pytest.raises(ModelError, match=f"'{family}'; its linear layers are ") as caught:
        encoder.lora_targets()
    assert TARGETS[family][0] in caught.value.problem
    assert "method.target_modules" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("electra", {"embedding_size": 16}),
        ("albert", {"embedding_size": 16}),
        ("deberta-v2", {"pos_att_type": ["c2p", "p2c"], "relative_attention": True}),
        ("mpnet", {}),
        ("xlm-roberta", {}),
        ("camembert", {}),
    ],
)
def test_other_architectures(kind: str, sizes: dict, tmp_path: Path) -> None:
    """Their LoRA targets exist, and every layer equals that of transformers."""
    import json

    from textsent.models._configurations import LORA_TARGETS

    folder = tiny.write(tmp_path / kind, "distilbert")
    config = {
        "model_type": kind,
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    encoder = load(f"random:{folder}")

    assert encoder.lora_targets() == LORA_TARGETS[kind]
    ids = torch.tensor(encoder.tokenize(TEXTS[:1]))
    with torch.no_grad():
        states = encoder.module(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
        ).hidden_states
    for layer, state in enumerate(states):
        got = encoder.encode(inputs(TEXTS[:1]), layer)
        np.testing.assert_allclose(got, state[:, 0], atol=1e-5)
    assert encoder.classifier(("a", "b"), 0).config.num_labels == 2


def test_truncated_texts_are_counted_reported_once_and_flagged(encoder):
    notes = []
    encoder.services.progress = Notes(notes)
    long, short = " ".join(["good"] * 30), "good"

    encoder.encode(inputs([long, short, long + " film", short]), max_length=8)
    encoder.tokenize([long], 8)

    assert len(notes) == 1
    assert "2 of 4 texts (50.0%) are truncated to 8 tokens" in notes[0]
    assert f"method.max_length={encoder.max_length}" in notes[0]
    assert list(encoder.services.flags) == ["texts_cut"]


def test_a_text_of_exactly_the_limit_is_not_truncated(encoder):
    (ids,) = encoder.tokenize(["good film good"])
    encoder.services.flags.clear()

    encoder.tokenize(["good film good"], len(ids))
    assert encoder.services.flags == {}

    encoder.tokenize(["good film good"], len(ids) - 1)
    assert "texts_cut" in encoder.services.flags


def test_one_long_text_among_many_is_reported_without_a_flag(encoder):
    notes = []
    encoder.services.progress = Notes(notes)

    encoder.encode(inputs([" ".join(["good"] * 30), *["good"] * 199]), max_length=8)

    assert "1 of 200 texts (0.5%)" in notes[0]
    assert encoder.services.flags == {}


def test_weights_are_hashed_once_per_call_and_not_per_batch(folders, monkeypatch):
    encoder = load(folders["bert"], "bf16", batch_size=2)
    hashed = []
    own = _states.Network.weights_sha256
    monkeypatch.setattr(
        _states.Network, "weights_sha256", property(lambda n: hashed.append(1) or own.fget(n))
    )
    encoder.encode(inputs([f"good film {i}" for i in range(40)]))
    assert len(hashed) <= 2


class Notes(Silent):
    def __init__(self, notes):
        self.notes = notes

    def note(self, message, /):
        self.notes.append(message)
