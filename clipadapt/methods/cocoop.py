"""CoCoOp: context vectors that a small network shifts for each image; both towers are frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from clipadapt.core.api.limits import BatchSize, Epochs, Examples
from clipadapt.core.files import saved
from clipadapt.methods import _prompts, _training
from clipadapt.methods._images import FrozenFeatures, tensor
from clipadapt.methods._passes import Passes
from clipadapt.methods._prompts import Prompts
from clipadapt.methods._text import cosine_scores, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.models import PromptTunable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import MethodConfig, ScoreKind

REDUCTION = 16
SHAPES: dict[str, tuple[int | None, ...]] = {
    "ctx": (None, None),
    "meta_net.linear1.weight": (None, None),
    "meta_net.linear1.bias": (None,),
    "meta_net.linear2.weight": (None, None),
    "meta_net.linear2.bias": (None,),
}


class CoCoOpConfig(TrainingConfig):
    """Hyperparameters of ``clip/cocoop``.

    Attributes:
        n_ctx: Number of context vectors, M in the paper; with ``ctx_init``, the number of its tokens.
        ctx_init: Words whose embeddings initialize the context; None draws it from N(0, 0.02²).
        batch_size: Images per step; each needs all prompts of its own.
        drop_last: Drop the last batch of an epoch if it is incomplete, as the official code does.
        keep: With ``best``, every epoch is evaluated on val, which runs the text tower for each of its images.
        class_chunk: Number of prompts that are encoded at a time, with their activations recomputed in the backward
            pass to save memory; None encodes up to 8,192 positions at a time, or more
            on a GPU with much memory.
        precision: Precision of the frozen text tower; the trained parameters are float32.
    """

    n_ctx: int = Field(default=4, gt=0, le=1000)
    ctx_init: str | None = "a photo of a"
    epochs: Epochs = 10
    batch_size: BatchSize = 1
    drop_last: bool = True
    class_chunk: Examples | None = None
    precision: Literal["fp32", "bf16"] = "fp32"


class CoCoOp:
    """Conditional Context Optimization: the context of an image is ``ctx + meta_net(image feature)``.

    References:
        K. Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, section 3.2.
        arXiv:2203.05557
    """

    Config: ClassVar[type[MethodConfig]] = CoCoOpConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = PromptTunable

    def __init__(self, config: CoCoOpConfig) -> None:
        self.config = config

    def fit(self, backbone: PromptTunable, task: Task[Any], ctx: RunContext) -> CoCoOpClassifier:
        """Train context and meta-net on ``task.train``; with ``keep: best``, ``task.val`` selects the epoch.

        Raises:
            ConfigError: If ``ctx_init`` has no words.
            ModelError: If a prompt is longer than the model's context length.
        """
        config = self.config
        train = task.require_train("cocoop")
        config.check(task)
        val = _training.nonempty(task.val) if config.keep == "best" and config.epochs else None
        model = backbone.in_dtype(config.precision)  # gradients flow through this model
        prompts = self._prompts(model, task.classnames)
        initial = self._initial(model, prompts, backbone.embed_dim, ctx)
        parameters = {
            name: _training.parameter(ctx, name, a, model.device) for name, a in initial.items()
        }
        features = FrozenFeatures(backbone, train.inputs, config, "output")
        val_features = None if val is None else backbone.encode(val.inputs, "image")
        C, cost, val_cost = len(task.classnames), None, None
        if config.epochs:
            cost = Passes(ctx.progress, "cocoop: training", config.images_for(train), C)
        if val is not None:
            each = "cocoop: evaluation on val after each epoch"
            val_cost = Passes(ctx.progress, each, config.epochs * len(val), C)

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            assert cost is not None
            cost.begin(len(rows) * C)
            logits = conditional_logits(prompts, parameters, features(rows, view))  # (b, C)
            return _training.cross_entropy(logits, train.labels, rows)

        def val_scores() -> NDArray[np.float32]:
            assert val_features is not None
            assert cost is not None
            cost.end()
            own = {n: p.detach() for n, p in parameters.items()}
            return scores_of(prompts, own, val_features, val_cost)

        evaluate = None if val_features is None else val_scores
        objective = Objective.of("cocoop", parameters, loss, evaluate, backbone, task)
        selection = _training.train(objective, config, ctx)
        return CoCoOpClassifier(
            backbone,
            task.classnames,
            {name: p.detach().cpu().numpy() for name, p in parameters.items()},
            zero_shot_weights(backbone, task.classnames, task.templates),
            config,
            selection,
        )

    def load(self, directory: Path, backbone: PromptTunable) -> CoCoOpClassifier:
        """Return the classifier saved in ``directory``."""
        facts = saved.load_facts(directory, ("classnames", "selection"))
        arrays = saved.load_arrays(directory, {**SHAPES, "start": (None, backbone.embed_dim)})
        return CoCoOpClassifier(
            backbone,
            tuple(facts["classnames"]),
            {name: arrays[name] for name in SHAPES},
            arrays["start"],
            self.config,
            facts["selection"],
        )

    def _prompts(self, model: PromptTunable, classnames: tuple[str, ...]) -> Prompts:
        config = self.config
        n_ctx = config.n_ctx
        if config.ctx_init is not None:
            n_ctx = len(_prompts.words_of(model, config.ctx_init))
        return Prompts(model, classnames, n_ctx, class_chunk=config.class_chunk)

    def _initial(
        self, model: PromptTunable, prompts: Prompts, embed_dim: int, ctx: RunContext
    ) -> dict[str, NDArray[np.float32]]:
        """Return the context and a meta-net with the initialization of PyTorch's linear layers."""
        context = _prompts.initial_context("cocoop", model, prompts, ctx, self.config.ctx_init)
        hidden, rng = max(1, embed_dim // REDUCTION), ctx.rng("cocoop.meta_net")
        out = {"ctx": context}
        for layer, rows, columns in (
            ("linear1", hidden, embed_dim),
            ("linear2", prompts.width, hidden),
        ):
            out[f"meta_net.{layer}.weight"] = _training.linear_start(rng, (rows, columns), columns)
            out[f"meta_net.{layer}.bias"] = _training.linear_start(rng, (rows,), columns)
        return out


def meta_net(parameters: Mapping[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """Return the shift of the context for unit-norm image features ``(b, D)``, shape ``(b, W)``."""
    import torch.nn.functional as F

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(
            x, parameters[f"meta_net.{name}.weight"], parameters[f"meta_net.{name}.bias"]
        )

    return linear(F.relu(linear(features, "linear1")), "linear2")


def conditional_logits(
    prompts: Prompts, parameters: Mapping[str, torch.Tensor], features: torch.Tensor
) -> torch.Tensor:
    """Return the logits ``(b, C)`` of unit-norm image features ``(b, D)``, each with prompts of its own."""
    shift = meta_net(parameters, features)  # (b, W)
    contexts = parameters["ctx"] + shift.unsqueeze(1)  # (b, n_ctx, W)
    text = prompts.encode_each(contexts)  # (b, C, D)
    cosine = (text @ features.unsqueeze(2)).squeeze(2)  # (b, C)
    return prompts.model.logit_scale * cosine + prompts.model.logit_bias


def scores_of(
    prompts: Prompts,
    parameters: Mapping[str, torch.Tensor],
    features: NDArray[np.float32],
    cost: Passes | None = None,
) -> NDArray[np.float32]:
    """Return the logits ``(n, C)`` of image features ``(n, D)``, some images at a time.

    Args:
        prompts: Prompts of ``C`` classes.
        parameters: Context and meta-net.
        features: Unit-norm image features.
        cost: Where the estimated time is reported.
    """
    import torch

    device = prompts.model.device
    own = {name: p.to(device) for name, p in parameters.items()}
    n, C, size = len(features), len(prompts.classnames), prompts.images_at_once()
    out = np.zeros((n, C), dtype=np.float32)
    with torch.no_grad(), prompts.model.services.progress.track("prompts", n, "images") as bar:
        for begin in range(0, n, size):
            part = features[begin : begin + size]
            if cost is not None:
                cost.begin(len(part) * C)
            logits = conditional_logits(prompts, own, tensor(part, device))
            out[begin : begin + size] = logits.cpu().numpy()
            if cost is not None:
                cost.end()
            bar.advance(len(part))
    return out


@dataclass(frozen=True, slots=True)
class CoCoOpClassifier:
    """Cosine to the text features of prompts that depend on the image.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        parameters: Context ``(n_ctx, W)``, and weights and biases of the meta-net.
        start: Text features of the hand-written prompts, for comparison.
        config: How the prompts are built.
        selection: The epoch selected on val, or None.
        score_kind: The loss is a softmax cross-entropy, also on a model with a sigmoid loss.
        export_reason: Why it has no export formats.
    """

    model: PromptTunable
    classnames: tuple[str, ...]
    parameters: Mapping[str, NDArray[np.float32]]
    start: NDArray[np.float32]
    config: CoCoOpConfig
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_reason: ClassVar[str] = (
        "its prompts depend on the image, so the text tower runs once per image and class"
    )

    @property
    def n_trainable_params(self) -> int:
        """Number of elements in the context and the meta-net."""
        return sum(array.size for array in self.parameters.values())

    def prompts(self) -> Prompts:
        """Return the prompts of the classes."""
        return Prompts(
            self.model.in_dtype(self.config.precision),
            self.classnames,
            len(self.parameters["ctx"]),
            class_chunk=self.config.class_chunk,
        )

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``; the text tower runs once per image and class."""
        progress, C = self.model.services.progress, len(self.classnames)
        cost = Passes(progress, "cocoop: prediction", len(inputs), C)
        features = self.model.encode(inputs, "image")
        own = {name: tensor(array) for name, array in self.parameters.items()}
        return scores_of(self.prompts(), own, features, cost)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the hand-written prompts, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.start)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> CoCoOpClassifier:
        """Return a classifier for other classes."""
        return CoCoOpClassifier(
            self.model,
            tuple(classnames),
            self.parameters,
            zero_shot_weights(self.model, tuple(classnames), templates),
            self.config,
            self.selection,
        )

    def inspect(self) -> dict[str, Any]:
        """Return the vocabulary tokens nearest to each context vector, before the shift of an image."""
        return {"context": _prompts.nearest_words(self.model, self.parameters["ctx"])}

    def save(self, directory: Path) -> None:
        """Write context, meta-net, text features and class names."""
        facts = {"classnames": self.classnames, "selection": self.selection}
        saved.save(directory, {**self.parameters, "start": self.start}, facts)


METHOD = CoCoOp
