"""``clip/lora`` against CLIP-LoRA: features, loss, gradients and whole trainings, through ``fit`` itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.methods.lora import LoRA, LoRAConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("clip_lora")
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
SIZE = DATA.spec["hyperparameters"]["batch_size"]
TEMPLATES = (DATA.spec["template"],)
TRAJECTORIES = [n for n in DATA.spec["trajectories"] if not n.startswith("quirk")]
ROLES = {"q": "q", "k": "k", "v": "v", "o": "out"}
TOWERS = {"visual": "visual.transformer", "text": "transformer"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def layer_of(name: str) -> str:
    """Return the method's name of a matrix of the fixture such as ``visual.0.q.A``."""
    tower, block, role, kind = name.split(".")
    return f"{TOWERS[tower]}.resblocks.{block}.attn.{ROLES[role]}.{kind}"


def matrices(prefix: str, source: dict[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    """Return the fixture's matrices with a prefix, by the method's names: ``{ours: (theirs, value)}``."""
    found = [n for n in source if n.startswith(f"{prefix}.") and n.split(".")[-1] in {"A", "B"}]
    return {layer_of(n.removeprefix(f"{prefix}.")): (n, source[n]) for n in found}


def config(spec: dict[str, Any], **more: Any) -> LoRAConfig:
    encoder = {"vision": "image"}.get(spec["encoder"], spec["encoder"])
    settings: dict[str, Any] = {
        "encoder": encoder,
        "roles": [ROLES[p] for p in spec["params"]],
        "r": spec["r"],
        "lora_alpha": spec["alpha"],
        "lora_dropout": 0.0,
        "batch_size": SIZE,
        "augment": "none",
        "steps_per_shot": None,
    }
    return LoRAConfig(**settings | more)


@pytest.mark.parametrize("name", DATA.spec["variants"])
def test_forward_loss_and_gradients(name, model, tmp_path):
    seen = tinyclip.Seen()
    spec = DATA.spec["variants"][name]
    split = tinyclip.split_of(DATA.inputs["images"][:SIZE], DATA.inputs["labels"][:SIZE], NAMES)
    start = {ours: value for ours, (_, value) in matrices(name, DATA.inputs).items()}
    task = Task(NAMES, TEMPLATES, split)

    LoRA(config(spec, epochs=1)).fit(
        model, task, tinyclip.context(tmp_path, start=start, observe=seen)
    )
    fitted = LoRA(config(spec, epochs=0)).fit(model, task, tinyclip.context(tmp_path, start=start))

    assert set(fitted.adapted.parameters) == set(start)
    DATA.assert_close(f"{name}.text_features", fitted.weights)
    DATA.assert_close(f"{name}.image_features", fitted.adapted.image_features(split.inputs))
    DATA.assert_close(f"{name}.logits", fitted.predict_scores(split.inputs))
    DATA.assert_close(f"{name}.loss", np.float64(seen.values["loss"][0]))
    gradients = matrices(f"{name}.grad", DATA.expected)
    assert set(gradients) == set(start)
    for ours, (theirs, _) in gradients.items():
        DATA.assert_close(theirs, seen.values["grad"][0][ours])


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_training(name, model, tmp_path):
    seen = tinyclip.Seen()
    spec = DATA.spec["trajectories"][name]
    split = tinyclip.split_of(DATA.inputs["images"], DATA.inputs["labels"], NAMES)
    start = {o: v for o, (_, v) in matrices(f"{name}.init", DATA.inputs).items()}

    fitted = LoRA(config(spec, lr=spec["lr"], epochs=2)).fit(
        model,
        Task(NAMES, TEMPLATES, split),
        tinyclip.context(tmp_path, start=start, observe=seen),
    )

    DATA.assert_close(f"{name}.lr_per_step64", np.array(seen.values["lr"]))
    DATA.assert_close(f"{name}.loss_per_step", np.array(seen.values["loss"]))
    for ours, (theirs, _) in matrices(f"{name}.final", DATA.expected).items():
        DATA.assert_close(theirs, fitted.adapted.parameters[ours])
    test = tinyclip.split_of(DATA.inputs["test_images"], DATA.inputs["test_labels"], NAMES)
    DATA.assert_close(f"{name}.test_logits_final", fitted.predict_scores(test.inputs))


def test_the_defaults_are_the_papers():
    default, spec = LoRAConfig(), DATA.spec["trajectories"]["traj_both"]

    assert (default.encoder, default.roles) == (spec["encoder"], tuple(spec["params"]))
    assert (default.r, default.lora_alpha, default.lora_dropout) == (2, 1, 0.25)
    assert (default.lr, default.weight_decay, default.min_lr) == (spec["lr"], 1e-2, 1e-6)
    assert (default.steps_per_shot, default.batch_size) == (500, 32)
    assert default.use_rslora
    assert default.logit_scale == 100
