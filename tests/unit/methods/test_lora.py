"""``clip/lora``: adapted layers, dropout, DoRA, export."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from clipadapt.core.api.errors import ClipAdaptError, ModelError
from clipadapt.core.data.templates import prompts_of
from clipadapt.methods._lora_layers import targets_of
from clipadapt.methods.lora import Adapted, LoRAConfig
from tests.unit.methods.conftest import FAMILIES, Seen, context, load, method

SHORT = {
    "epochs": 2,
    "steps_per_shot": None,
    "augment": "none",
    "lr": 0.02,
    "batch_size": 6,
    "lora_dropout": 0.0,
}
# A convolutional tower has no attention to adapt.
ROLES = {
    family: {"roles": ["pointwise"], "encoder": "image"}
    if family == "hf"
    else {"roles": ["q", "v", "out", "mlp"]}
    for family in FAMILIES
}


def layers(model, **settings) -> list[str]:
    config, split = LoRAConfig(**settings), model.in_dtype("fp32").clone(split=True)
    return targets_of(split, config.encoder, config.roles, config.blocks)[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"roles": ["q"]}, ["visual.transformer.resblocks.{i}.attn.q", "transformer.resblocks.{i}.attn.q"]),
        ({"roles": ["out"], "encoder": "text"}, ["transformer.resblocks.{i}.attn.out"]),
        (
            {"roles": ["k", "mlp"], "encoder": "image"},
            ["visual.transformer.resblocks.{i}." + n for n in ("attn.k", "mlp.c_fc", "mlp.c_proj")],
        ),
    ],
)  # fmt: skip
def test_roles_and_encoder_select_the_layers(settings, expected, models):
    wanted = {e.format(i=i) for e in expected for i in (0, 1)}

    found = layers(models("clip"), **settings)

    assert set(found) == wanted
    assert len(found) == len(wanted)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        # The units of the image tower are the stem, block 0, block 1 and the projection.
        (2, ["visual.transformer.resblocks.1.attn.q", *(f"transformer.resblocks.{i}.attn.q" for i in (0, 1))]),
        (None, [f"{t}transformer.resblocks.{i}.attn.q" for t in ("visual.", "") for i in (0, 1)]),
    ],
)  # fmt: skip
def test_blocks_count_from_the_end(blocks, expected, models):
    assert layers(models("clip"), roles=["q"], blocks=blocks) == expected


@pytest.mark.parametrize(
    ("blocks", "encoder", "message"),
    [
        (1, "both", "the last 1 units of the image tower .* have no layer"),
        (9, "image", "method.blocks is 9; the image tower of .* has 4"),
        (9, "text", "method.blocks is 9; the text tower of .* has 2"),
    ],
)
def test_too_many_blocks_is_an_error(blocks, encoder, message, models):
    with pytest.raises(ClipAdaptError, match=message):
        layers(models("clip"), roles=["q"], blocks=blocks, encoder=encoder)


def test_input_of_the_first_adapted_unit_is_computed_once(models, small, tmp_path):
    model = models("clip")
    settings = {**SHORT, "encoder": "image", "blocks": 2, "roles": ["q", "v"]}
    fitted = method("lora", **settings).fit(model, small[0], context(tmp_path))

    assert fitted.adapted.images.first == 2
    stored = fitted.adapted.images.stored(small[1])
    assert stored.shape == (12, 17, 32)  # 16 patches and the class token
    pixels = model.pixels(small[1], np.arange(12))
    np.testing.assert_allclose(stored, model.encode_image(pixels, "unit:2"), atol=1e-5)


def test_every_family_has_adapter_targets(models):
    counts = {
        family: {
            tower: {role: len(names) for role, names in split.adapter_targets(tower).items()}
            for tower in ("image", "text")
        }
        for family in FAMILIES
        for split in [models(family).clone(split=True)]
    }

    attention = {"q": 2, "k": 2, "v": 2, "out": 2, "mlp": 4}
    assert counts["clip"] == counts["custom"] == {"image": attention, "text": attention}
    assert set(counts["hf"]["image"]) == {"pointwise"}
    assert counts["hf"]["text"] == attention
    assert counts["siglip"]["text"] == attention
    assert set(counts["siglip"]["image"]) == set(attention)


@pytest.mark.parametrize(
    ("family", "image"), [("clip", ("q", "k", "v")), ("siglip", ("q", "k", "v")), ("hf", ("pointwise",))]
)  # fmt: skip
def test_auto_selects_attention_or_convolutions_in_each_tower(models, family, image):
    offered = models(family).clone(split=True)
    wanted = [offered.adapter_targets("image")[role] for role in image]
    wanted += [offered.adapter_targets("text")[role] for role in ("q", "k", "v")]

    assert layers(models(family), roles=["auto"]) == [name for names in wanted for name in names]


def test_missing_role_is_an_error(models, small, tmp_path):
    message = "the image tower of .* has no layer with the role 'q'.*it has: pointwise"
    with pytest.raises(ModelError, match=message) as error:
        method("lora", **SHORT).fit(models("hf"), small[0], context(tmp_path))

    assert error.value.hint == "set method.roles=[pointwise] or method.encoder=text"


def test_blocks_without_matching_layers_are_an_error(models, small, tmp_path):
    message = "the last 1 units of .* have no layer with the roles q, k, v"
    with pytest.raises(ModelError, match=message) as error:
        method("lora", **SHORT, blocks=1, encoder="image").fit(
            models("clip"), small[0], context(tmp_path)
        )

    assert "method.blocks" in error.value.hint


# ---------------------------------------------------------------- dropout


@pytest.fixture(scope="module")
def start(models) -> dict[str, np.ndarray]:
    """Initial values of every matrix of the tiny CLIP; PEFT initializes B to zero, which hides the dropout."""
    rng = np.random.default_rng(0)
    matrices = Adapted.of(models("clip"), LoRAConfig(), None).parameters
    return {n: rng.normal(0, 0.3, tuple(p.shape)).astype(np.float32) for n, p in matrices.items()}


def losses(model, task, folder, seed, start, **settings) -> list[float]:
    ctx = context(folder, seed, start=start, observe=Seen())
    given = {**SHORT, "lr": 1e-9, "batch_size": 99, "schedule": "constant", **settings}
    method("lora", **given).fit(model, task, ctx)
    return ctx.observe.values["loss"]


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_fast_steps_equal_plain_ones(dropout, tiny_models, small, start, tmp_path, monkeypatch):
    """The plain path is PEFT's layers on padded texts; the mask of an element depends on its value alone here."""

    def mask(x, p):
        return ((x.abs() % 1 > dropout).to(x.dtype) if p else None), 1.0

    monkeypatch.setattr("clipadapt.tensor.dropout.mask", mask)
    found = []
    for fast in (False, True):
        model, seen = load(tiny_models["clip"], fast=fast), Seen()
        ctx = context(tmp_path / str(fast), start=start, observe=seen)
        given = {**SHORT, "epochs": 1, "batch_size": 12, "lora_dropout": dropout}
        method("lora", **given).fit(model, small[0], ctx)
        found.append(seen.values)

    plain, fast = found
    np.testing.assert_allclose(fast["loss"], plain["loss"], rtol=1e-4)
    for name, gradient in plain["grad"][0].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(fast["grad"][0][name], gradient, atol=1e-3 * scale, rtol=0)


@pytest.mark.parametrize("encoder", ["image", "text", "both"])
def test_dropout_is_active_in_training(encoder, models, small, start, tmp_path):
    """With one batch of all examples and a negligible learning rate, the losses differ only by dropout."""
    model, task = models("clip"), small[0]

    def run(seed, dropout, name):
        given = {"encoder": encoder, "lora_dropout": dropout}
        return losses(model, task, tmp_path / name, seed, start, **given)

    one, two, again = run(1, 0.4, "a"), run(2, 0.4, "b"), run(1, 0.4, "c")
    off = run(1, 0.0, "d") + run(2, 0.0, "e")

    assert one == again
    # Two epochs and two seeds give four different losses; evaluating on val between the epochs keeps dropout on.
    assert len({round(v, 3) for v in one + two}) == 4
    np.testing.assert_allclose(off, off[0], rtol=1e-4)


def test_dropout_is_off_when_predicting(models, small, start, tmp_path):
    model, (task, inputs) = models("clip"), small

    plain, dropped = (
        method("lora", **SHORT | {"epochs": 0, "lora_dropout": p}).fit(
            model, task, context(tmp_path, start=start)
        )
        for p in (0.0, 0.9)
    )

    scores = dropped.predict_scores(inputs)
    np.testing.assert_array_equal(scores, plain.predict_scores(inputs))
    np.testing.assert_array_equal(scores, dropped.predict_scores(inputs))
    np.testing.assert_array_equal(dropped.weights, plain.weights)
    assert np.abs(scores - dropped.zero_shot_scores(inputs)).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_adapters_equal_the_zero_shot_model(family, models, small, tmp_path):
    task, inputs = small
    settings = SHORT | {"epochs": 0, "logit_scale": None} | ROLES[family]

    fitted = method("lora", **settings).fit(models(family), task, context(tmp_path))

    np.testing.assert_allclose(
        fitted.predict_scores(inputs), fitted.zero_shot_scores(inputs), atol=1e-4
    )


# ---------------------------------------------------------------- DoRA, scaling, steps


@pytest.mark.parametrize("family", FAMILIES)
def test_dora_trains_one_magnitude_per_output(family, models, small, tmp_path):
    task, inputs = small
    learner = method("lora", **SHORT | {"use_dora": True} | ROLES[family])
    plain = method("lora", **SHORT | ROLES[family])

    fitted = learner.fit(models(family), task, context(tmp_path))
    without = plain.fit(models(family), task, context(tmp_path / "plain"))

    kinds = {n.rpartition(".")[2] for n in fitted.adapted.parameters}
    assert kinds == {"A", "B", "magnitude"}
    outputs = sum(p.shape[0] for n, p in fitted.adapted.parameters.items() if n.endswith(".B"))
    assert fitted.n_trainable_params == without.n_trainable_params + outputs
    assert not np.array_equal(fitted.predict_scores(inputs), without.predict_scores(inputs))
    fitted.save(tmp_path / "saved")
    loaded = learner.load(tmp_path / "saved", models(family))
    np.testing.assert_array_equal(loaded.predict_scores(inputs), fitted.predict_scores(inputs))


@pytest.mark.parametrize(
    ("rslora", "r", "alpha", "factor"), [(True, 4, 6, 3.0), (False, 4, 6, 1.5), (True, 1, 0.5, 0.5)]
)
def test_updates_are_scaled(rslora, r, alpha, factor, models, small, tmp_path):
    settings = {"use_rslora": rslora, "r": r, "lora_alpha": alpha, "roles": ["q"]}
    fitted = method("lora", **SHORT | settings).fit(models("clip"), small[0], context(tmp_path))

    merged = fitted.adapted.merged()

    layer, name = (
        "visual.transformer.resblocks.1.attn.q",
        "visual.transformer.resblocks.1.attn.in_proj_weight",
    )
    a, b = (fitted.adapted.parameters[f"{layer}.{k}"].detach() for k in "AB")
    assert a.shape == (r, 32)
    before = models("clip").module.state_dict()[name]
    torch.testing.assert_close(
        merged[name][:32] - before[:32], factor * b @ a, atol=1e-6, rtol=1e-4
    )
    assert torch.equal(merged[name][32:], before[32:])


def test_steps_depend_on_the_largest_class(models, small, tmp_path):
    ctx = context(tmp_path, observe=Seen())

    task = dataclasses.replace(small[0], few_shot=True)
    method("lora", **SHORT | {"steps_per_shot": 2, "epochs": 1}).fit(models("clip"), task, ctx)

    assert len(ctx.observe.values["lr"]) == 2 * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_other_classes_are_encoded_by_the_adapted_tower(family, models, small, tmp_path):
    task, inputs = small
    fitted = method("lora", **SHORT | ROLES[family]).fit(models(family), task, context(tmp_path))

    other = fitted.with_classnames(("horse", *task.classnames[::-1]), task.templates)

    np.testing.assert_allclose(
        other.predict_scores(inputs)[:, :0:-1], fitted.predict_scores(inputs), atol=1e-3
    )


def test_several_templates_are_averaged(models, small, tmp_path):
    from clipadapt.core.api.data import Task

    task, _ = small
    several = Task(task.classnames, ("a photo of a {}.", "the {}."), task.train)

    fitted = method("lora", **SHORT).fit(models("clip"), several, context(tmp_path))

    model = fitted.adapted.model
    with torch.no_grad():
        each = model.encode_text(model.tokenize(prompts_of(task.classnames, several.templates)))
    mean = each.reshape(3, 2, -1).mean(dim=1)
    expected = mean / mean.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(fitted.weights, expected, atol=1e-5)


# ---------------------------------------------------------------- export


@pytest.fixture(params=[(f, d) for f in FAMILIES for d in (False, True)], ids=str)
def fitted(request, models, small, tmp_path):
    family, dora = request.param
    settings = SHORT | ROLES[family] | {"use_dora": dora, "epochs": 4}
    return method("lora", **settings).fit(models(family), small[0], context(tmp_path / "fit"))


def test_merged_checkpoint_gives_equal_logits(fitted, small, tmp_path):
    inputs = small[1]
    fitted.export("openclip", tmp_path / "out")

    merged = load(f"local-dir:{tmp_path / 'out'}")

    prompts = prompts_of(fitted.classnames, fitted.templates)
    with torch.no_grad():
        text = merged.encode_text(merged.tokenize(prompts)).numpy()
        image = merged.encode_image(merged.pixels(inputs, np.arange(len(inputs)))).numpy()
    moved = np.abs(fitted.predict_scores(inputs) - 100 * image_of(fitted, inputs) @ fitted.start.T)
    assert moved.max() > 0.01  # the adapters have an effect
    np.testing.assert_allclose(100 * image @ text.T, fitted.predict_scores(inputs), atol=2e-3)
    np.testing.assert_allclose(text, fitted.weights, atol=1e-5)
    with safe_open(tmp_path / "out" / "classifier.safetensors", framework="np") as file:
        facts = file.metadata()
        weight, scale = file.get_tensor("weight"), file.get_tensor("logit_scale")
        assert file.get_tensor("logit_bias") == 0
    assert facts["base_weights_sha256"] == fitted.model.weights_sha256
    assert json.loads(facts["classnames"]) == list(fitted.classnames)
    np.testing.assert_allclose(scale * image @ weight.T, fitted.predict_scores(inputs), atol=2e-3)


def image_of(fitted, inputs) -> np.ndarray:
    return fitted.model.encode(inputs, "image")


def has_plain_attention(fitted) -> bool:
    """Return whether an adapted layer is in torch's attention module, for which PEFT has no DoRA."""
    return any(".attn.q" in name and "trunk" not in name for name in fitted.adapted.parameters)


def test_peft_loads_the_adapter(fitted, small, tmp_path):
    from peft import PeftModel

    if has_plain_attention(fitted) and "out" in fitted.adapted.config.roles:
        with pytest.raises(ModelError, match="adds the update of the output projection twice"):
            fitted.export("peft", tmp_path / "out")
        return
    if has_plain_attention(fitted) and fitted.adapted.config.use_dora:
        with pytest.raises(ModelError, match="does not support DoRA"):
            fitted.export("peft", tmp_path / "out")
        return
    inputs = small[1]
    fitted.export("peft", tmp_path / "out")

    copy = fitted.model.in_dtype("fp32").clone()
    PeftModel.from_pretrained(copy.module, str(tmp_path / "out")).merge_and_unload().eval()

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == fitted.model.name
    assert not list((tmp_path / "out").rglob("*.bin"))
    with torch.no_grad():
        text = copy.encode_text(copy.tokenize(prompts_of(fitted.classnames, fitted.templates)))
        image = copy.encode_image(copy.pixels(inputs, np.arange(len(inputs))))
    np.testing.assert_allclose(text, fitted.weights, atol=1e-5)
    np.testing.assert_allclose(image, fitted.adapted.image_features(inputs), atol=1e-5)
    np.testing.assert_allclose(100 * image @ text.T, fitted.predict_scores(inputs), atol=2e-3)


@pytest.mark.parametrize(
    ("family", "roles"),
    [
        ("clip", ["q", "v"]),
        ("clip", ["k", "mlp"]),
        ("clip", ["q", "k", "v"]),
        ("siglip", ["q", "v"]),
        ("siglip", ["out"]),
        ("siglip", ["q", "k", "v", "out", "mlp"]),
    ],
)
def test_any_roles_can_be_exported_for_open_clips_attention(family, roles, models, small, tmp_path):
    from peft import PeftModel

    settings = SHORT | {"roles": roles, "lr": 0.1, "encoder": "image"}
    fitted = method("lora", **settings).fit(models(family), small[0], context(tmp_path / "fit"))
    fitted.export("peft", tmp_path / "out")

    copy = fitted.model.in_dtype("fp32").clone()
    PeftModel.from_pretrained(copy.module, str(tmp_path / "out")).merge_and_unload().eval()

    inputs = small[1]
    with torch.no_grad():
        image = copy.encode_image(copy.pixels(inputs, np.arange(len(inputs)))).numpy()
    assert np.abs(image - image_of(fitted, inputs)).max() > 1e-4  # the adapters have an effect
    np.testing.assert_allclose(image, fitted.adapted.image_features(inputs), atol=1e-5)


def test_exporting_changes_nothing(fitted, small, tmp_path):
    before = fitted.predict_scores(small[1])

    fitted.export("openclip", tmp_path / "a")
    if not has_plain_attention(fitted):
        fitted.export("peft", tmp_path / "b")

    np.testing.assert_array_equal(fitted.predict_scores(small[1]), before)
