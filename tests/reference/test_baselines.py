"""The reference implementations of the benchmarks give the numbers of the official code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipadapt.core.scoring.scores import softmax
from tests.reference import tinyclip
from tests.reference.parity import fixture

BASELINES = Path(__file__).parents[2] / "scripts" / "bench" / "baselines"


def baseline(name: str) -> Any:
    """Import one file of ``scripts/bench/baselines``."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BASELINES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


coop, clip_lora, linear_probe, tip_adapter, zero_shot = (
    baseline(n) for n in ("coop", "clip_lora", "linear_probe", "tip_adapter", "zero_shot")
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def batches(data: Any, size: int):
    """The fixture's rows in order, the same in every epoch."""
    images, labels = (torch.from_numpy(data.inputs[n]) for n in ("images", "labels"))

    def of(_epoch: int):
        return zip(images.split(size), labels.split(size), strict=True)

    return of


# ---------------------------------------------------------------- CoOp


COOP = fixture("coop")
COOP_SIZE = COOP.spec["hyperparameters"]["batch_size"]


def prompt_learner(clip: Any, spec: dict[str, Any], ctx: np.ndarray | None) -> Any:
    learner = coop.PromptLearner(
        clip.module,
        clip.tokenizer.inner,
        COOP.spec["classnames"],
        spec["n_ctx"],
        ctx_init=spec.get("ctx_init", ""),
        position=spec["class_token_position"],
        csc=spec["CSC"],
    )
    if ctx is not None:
        assert learner.ctx.shape == ctx.shape
        learner.ctx.data = torch.from_numpy(ctx)
    return coop.CoOp(clip.module, learner)


@pytest.mark.parametrize("name", COOP.spec["variants"])
def test_coop_features_loss_and_gradient(name, model):
    spec, given = COOP.spec["variants"][name], COOP.inputs[f"{name}.ctx"]
    # With ctx_init the learner computes the vectors itself.
    method = prompt_learner(model, spec, None if spec["ctx_init"] else given)
    pixels, labels = next(iter(batches(COOP, COOP_SIZE)(0)))

    logits = method.logits(pixels)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()

    np.testing.assert_array_equal(method.learner.ctx.detach(), given)
    np.testing.assert_array_equal(method.learner.tokens, COOP.inputs[f"{name}.tokenized_prompts"])
    COOP.assert_close(f"{name}.text_features", method.text_features())
    COOP.assert_close(f"{name}.logits", logits)
    COOP.assert_close(f"{name}.loss", loss)
    COOP.assert_close(f"{name}.grad_ctx", method.learner.ctx.grad)


@pytest.mark.parametrize("name", COOP.spec["trajectories"])
def test_coop_training(name, model):
    spec = COOP.spec["trajectories"][name]
    method = prompt_learner(model, spec, COOP.inputs[f"{name}.ctx_init"])
    settings = {k: spec[k] for k in ("lr", "momentum", "weight_decay")}

    steps = list(
        method.train(
            batches(COOP, COOP_SIZE),
            spec["max_epoch"],
            warmup_lr=spec["warmup_cons_lr"],
            **settings,
        )
    )

    rates, losses = zip(*steps, strict=True)
    COOP.assert_close(f"{name}.lr_per_step64", np.array(rates))
    COOP.assert_close(f"{name}.loss_per_step", np.array(losses))
    COOP.assert_close(f"{name}.ctx_final", method.learner.ctx)
    COOP.assert_close(
        f"{name}.logits_final", method.logits(torch.from_numpy(COOP.inputs["images"]))
    )


# ---------------------------------------------------------------- CLIP-LoRA


LORA = fixture("clip_lora")
LORA_SIZE = LORA.spec["hyperparameters"]["batch_size"]
TRAJECTORIES = [n for n in LORA.spec["trajectories"] if not n.startswith("quirk")]


def adapted(clip: Any, spec: dict[str, Any], prefix: str) -> Any:
    """The baseline with the matrices of the fixture."""
    method = clip_lora.CLIPLoRA(
        clip.clone().module,
        spec["encoder"],
        spec["params"],
        r=spec["r"],
        alpha=spec["alpha"],
        dropout=0.0,
    )
    given = {n for n in LORA.inputs if n.startswith(f"{prefix}.") and n[-2:] in {".A", ".B"}}
    # The fixture of a training contains only A; B is initialized to zero.
    wanted = {f"{prefix}.{n}" for n in method.parameters}
    assert given in (wanted, {n for n in wanted if n.endswith(".A")})
    for name in given:
        matrix = method.parameters[name.removeprefix(f"{prefix}.")]
        matrix.data = torch.from_numpy(LORA.inputs[name])
    return method


@pytest.mark.parametrize("name", LORA.spec["variants"])
def test_clip_lora_features_loss_and_gradients(name, model):
    method = adapted(model, LORA.spec["variants"][name], name)
    pixels, labels = next(iter(batches(LORA, LORA_SIZE)(0)))

    text = method.text_features(torch.from_numpy(LORA.inputs["tokens"]))
    logits = method.logits(pixels, text)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()

    LORA.assert_close(f"{name}.text_features", text)
    LORA.assert_close(f"{name}.image_features", method.image_features(pixels))
    LORA.assert_close(f"{name}.logits", logits)
    LORA.assert_close(f"{name}.loss", loss)
    for parameter, value in method.parameters.items():
        LORA.assert_close(f"{name}.grad.{parameter}", value.grad)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_clip_lora_training(name, model):
    spec = LORA.spec["trajectories"][name]
    method = adapted(model, spec, f"{name}.init")
    tokens = torch.from_numpy(LORA.inputs["tokens"])

    steps = list(method.train(batches(LORA, LORA_SIZE), tokens, spec["total_iters"], lr=spec["lr"]))

    rates, losses = zip(*steps, strict=True)
    LORA.assert_close(f"{name}.lr_per_step64", np.array(rates))
    LORA.assert_close(f"{name}.loss_per_step", np.array(losses))
    for parameter, value in method.parameters.items():
        LORA.assert_close(f"{name}.final.{parameter}", value)
    with torch.no_grad():
        logits = method.logits(
            torch.from_numpy(LORA.inputs["test_images"]), method.text_features(tokens)
        )
    LORA.assert_close(f"{name}.test_logits_final", logits)


def test_clip_lora_drops_out_in_training_only(model):
    spec = LORA.spec["variants"]["both_qkv"]
    method = clip_lora.CLIPLoRA(model.clone().module, spec["encoder"], spec["params"], dropout=0.5)
    for parameter in method.parameters.values():
        parameter.data.fill_(0.05)
    pixels = torch.from_numpy(LORA.inputs["images"][:4])

    with torch.no_grad():
        still = [method.image_features(pixels) for _ in range(2)]
        method.clip.train()
        moved = [method.image_features(pixels) for _ in range(2)]

    assert torch.equal(*still)
    assert not torch.equal(*moved)


# ---------------------------------------------------------------- linear probe


def test_the_sweep_of_the_linear_probe():
    data = fixture("linear_probe")
    train, val, test = (
        (data.inputs[f"{p}_features"], data.inputs[f"{p}_labels"]) for p in ("train", "val", "test")
    )

    probes = linear_probe.sweep(*train, *val, data.inputs["grid.C64"])

    data.assert_close("grid.val_acc", np.array([p.accuracy for p in probes]))
    right = [((test[0] @ p.weight.T + p.bias).argmax(1) == test[1]).mean() for p in probes]
    data.assert_close("grid.test_acc", np.array(right))


def test_one_fit_of_the_linear_probe():
    data = fixture("linear_probe")
    train, val = (
        (data.inputs[f"{p}_features"], data.inputs[f"{p}_labels"]) for p in ("train", "val")
    )

    (probe,) = linear_probe.sweep(*train, *val, [0.316])

    data.assert_close("openai.coef", probe.weight)
    data.assert_close("openai.intercept", probe.bias)


# ---------------------------------------------------------------- Tip-Adapter


TIP = fixture("tip_adapter")


def test_the_keys_of_tip_adapter():
    DATA = torch.from_numpy(TIP.inputs["train_features_raw"])

    TIP.assert_close("cache_keys", tip_adapter.keys_of(DATA))


def tip(*names: str) -> list[torch.Tensor]:
    return [torch.from_numpy({**TIP.inputs, **TIP.expected}[n]) for n in names]


def test_the_search_of_tip_adapter():
    given = TIP.spec["hyperparameters"]
    features, labels, keys, values, weights = tip(
        "val_features", "val_labels", "cache_keys", "cache_values", "clip_weights"
    )

    beta, alpha, grid = tip_adapter.search(
        features,
        labels,
        keys,
        values,
        weights,
        scale=given["search_scale"],
        steps=given["search_step"],
    )

    # Rounding may break ties differently in a few cells.
    assert (np.abs(np.array(grid) - TIP.expected["search.val_acc_grid"]) > 1e-3).sum() <= 4
    TIP.assert_close("search.best_beta_alpha64", np.array([beta, alpha]))
    test, test_labels = tip("test_features", "test_labels")
    scores = tip_adapter.logits(test, keys, values, weights, alpha, beta)
    TIP.assert_close("test.tip_logits_searched", scores)
    TIP.assert_close("test.tip_acc_searched", np.float64(tip_adapter.accuracy(scores, test_labels)))


@pytest.mark.parametrize(("name", "pair"), [("ab0", (1, 1)), ("ab1", (2, 5.5)), ("ab2", (7.3, 11))])
def test_the_logits_of_tip_adapter(name, pair):
    scores = tip_adapter.logits(
        *tip("val_features", "cache_keys", "cache_values", "clip_weights"), *pair
    )

    TIP.assert_close(f"{name}.val_tip_logits", scores)


# ---------------------------------------------------------------- zero-shot


ZERO = fixture("zero_shot")
ZERO_NAMES = ZERO.spec["classnames_used_by_clip_benchmark_part"]


class Images(torch.utils.data.Dataset):
    """The fixture's pixels and labels as a dataset with classes."""

    classes = ZERO_NAMES

    def __len__(self) -> int:
        return len(ZERO.inputs["labels"])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(ZERO.inputs["images"][i]), int(ZERO.inputs["labels"][i])


@pytest.mark.parametrize("ensemble", sorted(ZERO.spec["templates"]))
def test_zero_shot_as_clip_benchmark(ensemble, model):
    templates = [t.replace("{c}", "{}") for t in ZERO.spec["templates"][ensemble]]

    weights = zero_shot.classifier(model.module, model.tokenizer.inner, ZERO_NAMES, templates)
    scores = zero_shot.scores(model.module, weights, zero_shot.loader(Images(), workers=0))

    ZERO.assert_close(f"{ensemble}.classifier", weights)
    ZERO.assert_close(f"{ensemble}.logits", scores)


@pytest.mark.parametrize("ensemble", sorted(ZERO.spec["templates"]))
def test_zero_shot_by_the_package_itself(ensemble, model):
    pytest.importorskip("clip_benchmark", reason="pip install 'clipadapt[bench]'")
    templates = ZERO.spec["templates"][ensemble]

    found = zero_shot.package().evaluate(
        model.module,
        zero_shot.loader(Images(), workers=0),
        model.tokenizer.inner,
        ZERO_NAMES,
        templates,
        "cpu",
        amp=False,
    )

    got = [found[k] for k in ("acc1", "acc5", "mean_per_class_recall")]
    ZERO.assert_close(f"{ensemble}.metrics", np.array(got))


def test_zero_shot_by_the_pipeline_of_transformers(model):
    """The model has the same weights, so features and probabilities are equal."""
    pixels = torch.from_numpy(ZERO.inputs["images"])
    transformer = zero_shot.transformers_model(model.module)
    with torch.no_grad():
        ZERO.assert_close(
            "image_features", transformer.get_image_features(pixel_values=pixels).pooler_output
        )
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    found = zero_shot.pipeline_of(model.module, model.tokenizer.inner)(
        images, candidate_labels=ZERO_NAMES, hypothesis_template="a photo of a {}."
    )

    weights = zero_shot.classifier(
        model.module, model.tokenizer.inner, ZERO_NAMES, ["a photo of a {}."]
    )
    expected = zero_shot.scores(
        model.module, weights, [(torch.stack([model.preprocess()(p) for p in images]), None)]
    )
    expected *= model.logit_scale / zero_shot.LOGIT_SCALE
    by_name = [{each["label"]: each["score"] for each in row} for row in found]
    got = np.array([[row[name] for name in ZERO_NAMES] for row in by_name])
    np.testing.assert_allclose(got, softmax(expected.numpy()), atol=1e-4)
