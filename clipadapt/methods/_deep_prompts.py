"""Prompts in both towers: training and the classifier of the methods that replace prompt tokens at each block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple

import numpy as np
from pydantic import PositiveFloat

from clipadapt.core.api.errors import ConfigError, ModelError
from clipadapt.core.api.limits import BatchSize, Epochs, Examples
from clipadapt.core.files import saved
from clipadapt.methods import _export, _training
from clipadapt.methods._images import FrozenFeatures, TunedImages, TunedTower, tensor
from clipadapt.methods._text import in_chunks, leading, texts_at_once, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, ScoreKind
    from clipadapt.models import DeepPromptTunable, Tower

INIT_STD: Final = 0.02
FIRST: Final = 1
"""Unit of the image tower whose input the first prompt is added to: the first block."""
FACTS: Final = ("classnames", "n_trainable_params", "selection")


class DeepPromptConfig(TrainingConfig):
    """Hyperparameters shared by the methods with prompts in both towers.

    Attributes:
        ctx_init: Words before the class name. The embeddings of their first tokens initialize the text prompt of the
            first block; the other words stay fixed. None draws the prompt from N(0, 0.02²).
        drop_last: Drop the last batch of an epoch if it is incomplete, as the official code does.
        class_chunk: Number of classes that are encoded at a time, with their activations recomputed in the backward
            pass to save memory; None encodes up to 8,192 positions at a time, or more
            on a GPU with much memory.
        precision: Precision of both frozen towers; the prompts are float32.
    """

    ctx_init: str | None = "a photo of a"
    lr: PositiveFloat = 3.5e-3
    epochs: Epochs = 5
    batch_size: BatchSize = 4
    drop_last: bool = True
    class_chunk: Examples | None = None
    precision: Literal["fp32", "bf16"] = "fp32"


class Prompts(NamedTuple):
    """Prompts of both towers, by block, input side first.

    Attributes:
        text: Shape ``(P, W)`` each; at least one.
        vision: Shape ``(P, W)`` each; none leaves the image tower as it is.
    """

    text: Sequence[torch.Tensor]
    vision: Sequence[torch.Tensor]


class Step(NamedTuple):
    """What the loss of a step may read.

    Attributes:
        rows: Rows of train, ``b`` of them.
        states: Input of the first block of the image tower, or None without prompts there.
        image: Unit-norm image features, shape ``(b, D)``.
        text: Unit-norm text features, shape ``(C, D)``.
        logits: Shape ``(b, C)``.
        loss: Cross-entropy.
    """

    rows: NDArray[np.int64]
    states: torch.Tensor | None
    image: torch.Tensor
    text: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor


def widths(
    model: DeepPromptTunable, method: str, depths: Mapping[Tower, tuple[int, str]]
) -> dict[Tower, int]:
    """Return the width of the prompts of each tower.

    Args:
        model: The model.
        method: Name of the method, for messages.
        depths: By tower: number of blocks that get a prompt, and the name of that setting.

    Raises:
        ModelError: If a tower cannot take prompts.
        ConfigError: If a tower has fewer blocks.
    """
    found = {}
    for tower in depths:
        try:
            found[tower] = model.prompt_blocks(tower)
        except ModelError as err:
            raise ModelError(
                f"{method} adds prompts to the {tower} tower, but {err.problem}",
                hint="use a model whose towers are transformers, such as ViT-B-16-quickgelu/openai, or a method that "
                "leaves the image tower as it is, such as coop or the recipe ivlp-language_only",
            ) from err
    for tower, (depth, key) in depths.items():
        blocks = found[tower][0]
        if depth > blocks:
            raise ConfigError(
                f"method.{key} is {depth}, but the {tower} tower of '{model.name}' has {blocks} blocks",
                hint=f"set method.{key} to {blocks} or less",
            )
    return {tower: wide for tower, (_, wide) in found.items()}


def drawn(ctx: RunContext, stream: str, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return a prompt drawn from N(0, 0.02²)."""
    values = ctx.rng(f"{stream}.{name}").normal(0.0, INIT_STD, shape)
    return np.asarray(values, dtype=np.float32)


class TextPrompts:
    """Texts of some classes with slots for prompt tokens."""

    def __init__(
        self,
        model: DeepPromptTunable,
        classnames: tuple[str, ...],
        n_ctx: int,
        config: DeepPromptConfig,
    ) -> None:
        """Tokenize ``ctx_init`` and the class names.

        Raises:
            ConfigError: If ``ctx_init`` has fewer tokens than ``n_ctx``.
            ModelError: If a text is longer than the model's context length.
        """
        self.model, self.classnames, self.config = model, classnames, config
        self.n_ctx, words = n_ctx, (config.ctx_init or "").replace("_", " ")
        self.words = None if config.ctx_init is None else model.context_tokens(words)
        if self.words is None:
            self.tokens, self.slots = model.prompt_slots(classnames, n_ctx)  # (C, L), (C, P)
        elif len(self.words) < n_ctx:
            raise ConfigError(
                f"method.ctx_init '{config.ctx_init}' has {len(self.words)} tokens, fewer than the {n_ctx} of the "
                "text prompt",
                hint="use more words or fewer prompt tokens, or set method.ctx_init=null for a random start",
            )
        else:
            texts = [f"{words} {name.replace('_', ' ')}." for name in classnames]
            self.tokens = model.trim(model.tokenize(texts))  # (C, L)
            # The first positions of a text are the same for every text.
            self.slots = model.prompt_slots(("X",), n_ctx)[1].expand(len(texts), -1)  # (C, P)
        self.base = model.embed_tokens(self.tokens)  # (C, L, W)
        self.shared = leading(self.tokens)

    def start(self, ctx: RunContext, stream: str) -> NDArray[np.float32]:
        """Return the initial prompt of the first block, shape ``(n_ctx, W)``."""
        if self.words is None:
            return drawn(ctx, stream, "text.ctx0", (self.n_ctx, self.base.shape[-1]))
        found: NDArray[np.float32] = self.model.embed_tokens(self.words[: self.n_ctx]).cpu().numpy()
        return found

    def encode(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return projected text features ``(C, D)``, not normalized."""

        def encode(part: slice) -> torch.Tensor:
            return self.model.encode_text_with_prompts(
                self.base[part],
                self.tokens[part],
                self.slots[part],
                prompts,
                "projected",
                self.shared,
            )

        every = self.config.class_chunk or texts_at_once(self.model, self.base)
        return in_chunks(encode, self.tokens, every)

    def weights(self, prompts: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Return unit-norm text features ``(C, D)``."""
        import torch
        import torch.nn.functional as F

        with torch.no_grad():
            features: NDArray[np.float32] = F.normalize(self.encode(prompts), dim=-1).cpu().numpy()
        return features


class Towers:
    """Both towers of a model with prompts, trained on the train split of a task."""

    def __init__(
        self,
        backbone: DeepPromptTunable,
        task: Task[Any],
        config: DeepPromptConfig,
        ctx: RunContext,
        *,
        n_ctx: int,
    ) -> None:
        """Tokenize the prompts of the task's classes.

        Args:
            backbone: The model.
            task: The task.
            config: Hyperparameters.
            ctx: The run.
            n_ctx: Number of prompt tokens in the text tower.
        """
        self.backbone, self.task, self.config, self.ctx = backbone, task, config, ctx
        self.model = backbone.in_dtype(config.precision)
        self.text = TextPrompts(self.model, task.classnames, n_ctx, config)
        if ctx.observe:
            ctx.observe("tokens", self.text.tokens)

    def parameter(self, name: str, default: NDArray[Any]) -> torch.Tensor:
        """Return a trainable tensor on the model's device."""
        return _training.parameter(self.ctx, name, default, self.model.device)

    def fit(
        self,
        name: str,
        parameters: Mapping[str, torch.Tensor],
        prompts: Callable[[], Prompts],
        penalty: Callable[[Step], torch.Tensor] | None = None,
        **objective: Any,
    ) -> PromptedClassifier:
        """Train the parameters with cross-entropy and a penalty; return the classifier.

        Args:
            name: Name of the method.
            parameters: Trainable tensors by name.
            prompts: Returns the prompts for the current parameters.
            penalty: Added to the cross-entropy of a step.
            objective: Further arguments of :class:`Objective`.
        """
        config, task = self.config, self.task
        train = task.require_train(name)
        features = self._features(train.inputs, prompted=bool(prompts().vision))

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            states, image, text = features(rows, view, prompts())
            step = self._step(rows, states, image, text, train.labels)
            return step.loss if penalty is None else step.loss + penalty(step)

        evaluate = self._evaluation(prompts)
        whole = Objective.of(name, parameters, loss, evaluate, self.backbone, task, **objective)
        selection = _training.train(whole, config, self.ctx)
        if self.ctx.observe:
            self.ctx.observe("parameters", {n: p.detach() for n, p in parameters.items()})
        return self._classifier(prompts(), sum(p.numel() for p in parameters.values()), selection)

    def _features(
        self, inputs: Inputs[Any], *, prompted: bool
    ) -> Callable[
        [NDArray[np.int64], int, Prompts], tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]
    ]:
        """Return a function from rows, view and prompts to states, image features and text features."""
        if prompted:
            images = TunedImages(TunedTower(self.model, self.model, FIRST), inputs, self.config)
        else:
            frozen = FrozenFeatures(self.model, inputs, self.config, "output")

        def features(
            rows: NDArray[np.int64], view: int, prompts: Prompts
        ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
            text = self.text.encode(prompts.text)  # (C, D)
            if not prompted:
                return None, frozen(rows, view), text
            states = images.states(rows, view)
            encode = self.model.encode_image_with_prompts
            return states, encode(states, prompts.vision, "projected"), text

        return features

    def _step(
        self,
        rows: NDArray[np.int64],
        states: torch.Tensor | None,
        image: torch.Tensor,
        text: torch.Tensor,
        labels: NDArray[np.int64],
    ) -> Step:
        import torch.nn.functional as F

        if self.ctx.observe:
            self.ctx.observe("features", (image.detach(), text.detach()))
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        logits = self.model.logits(image, text)  # (b, C)
        loss = _training.cross_entropy(logits, labels, rows)
        return Step(rows, states, image, text, logits, loss)

    def _evaluation(
        self, prompts: Callable[[], Prompts]
    ) -> Callable[[], NDArray[np.float32]] | None:
        val = _training.nonempty(self.task.val)
        if val is None or not self.config.epochs:
            return None
        stored = None
        if prompts().vision:
            stored = TunedTower(self.model, self.model, FIRST).stored(val.inputs)

        def scores() -> NDArray[np.float32]:
            import torch

            with torch.no_grad():
                now = prompts()
                weights = self.text.weights(now.text)
                features = image_features(self.model, val.inputs, now.vision, stored)
            return logits(self.model, features, weights)

        return scores

    def _classifier(
        self, prompts: Prompts, n_trainable_params: int, selection: dict[str, Any] | None
    ) -> PromptedClassifier:
        names, templates = self.task.classnames, self.task.templates
        return PromptedClassifier(
            self.backbone,
            names,
            stacked(prompts.text),
            stacked(prompts.vision),
            self.text.weights(prompts.text),
            zero_shot_weights(self.backbone, names, templates),
            self.config,
            n_trainable_params,
            selection,
        )


def image_features(
    model: DeepPromptTunable,
    inputs: Inputs[Any],
    prompts: Sequence[torch.Tensor],
    stored: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return unit-norm image features ``(n, D)``, in bounded memory.

    Args:
        model: The model.
        inputs: ``n`` images.
        prompts: Prompts of the image tower by block; none uses the features of the frozen tower.
        stored: Input of the first block for these images, if it is known already.
    """
    if not prompts:
        return model.encode(inputs, "image")
    run = partial(_prompted, model, prompts)
    return TunedTower(model, model, FIRST, run).features(inputs, stored)


def _prompted(
    model: DeepPromptTunable, prompts: Sequence[torch.Tensor], states: torch.Tensor
) -> torch.Tensor:
    return model.encode_image_with_prompts(states, prompts)


def logits(
    model: DeepPromptTunable, features: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the model's logits of unit-norm features, shape ``(n, C)``."""
    return np.float32(model.logit_scale) * (features @ weights.T) + np.float32(model.logit_bias)


def stacked(prompts: Sequence[torch.Tensor]) -> NDArray[np.float32]:
    """Return prompts as one array, shape ``(depth, P, W)``."""
    if not prompts:
        return np.zeros((0, 0, 0), dtype=np.float32)
    return np.stack([p.detach().float().cpu().numpy() for p in prompts])


@dataclass(frozen=True, slots=True)
class PromptedClassifier:
    """Cosine of image and text features, with trained prompts in both towers.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        text: Prompts of the text tower, shape ``(depth, P, W)``.
        vision: Prompts of the image tower, shape ``(depth, P, W)``; depth 0 if it has none.
        weights: Unit-norm text features with the prompts, shape ``(C, D)``.
        start: Text features of the hand-written prompts, for comparison.
        config: How the prompts are built.
        n_trainable_params: Number of trained parameters.
        selection: The epoch selected on val, or None.
        score_kind: The loss is a softmax cross-entropy, also on a model with a sigmoid loss.
    """

    model: DeepPromptTunable
    classnames: tuple[str, ...]
    text: NDArray[np.float32]
    vision: NDArray[np.float32]
    weights: NDArray[np.float32]
    start: NDArray[np.float32]
    config: DeepPromptConfig
    n_trainable_params: int
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        model = self._network()
        features = image_features(model, inputs, self._tensors(self.vision))
        return logits(model, features, self.weights)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the hand-written prompts without trained prompts, shape ``(n, C)``."""
        return logits(self.model, self.model.encode(inputs, "image"), self.start)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> PromptedClassifier:
        """Return a classifier for other classes."""
        names = tuple(classnames)
        prompts = TextPrompts(self._network(), names, self.text.shape[1], self.config)
        return PromptedClassifier(
            self.model,
            names,
            self.text,
            self.vision,
            prompts.weights(self._tensors(self.text)),
            zero_shot_weights(self.model, names, templates),
            self.config,
            self.n_trainable_params,
            self.selection,
        )

    @property
    def export_formats(self) -> tuple[str, ...]:
        """ONNX alone with prompts in the image tower, which open_clip does not have."""
        return ("onnx",) if len(self.vision) else _export.FORMATS

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the text features as a weight matrix, alone or with the model; see :func:`_export.export`."""
        prompts = self._tensors(self.vision)

        def encode(model: Any, pixels: torch.Tensor) -> torch.Tensor:
            states = model.encode_image(pixels, f"unit:{FIRST}")
            features: torch.Tensor = model.encode_image_with_prompts(states, prompts)
            return features

        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            _export.cosine_arrays(self.weights, self.model.logit_scale, self.model.logit_bias),
            _export.COSINE,
            temperature=temperature,
            output=output,
            formats=self.export_formats,
            dtype=self.config.precision if prompts else None,
            encode=encode if prompts else None,
        )

    def save(self, directory: Path) -> None:
        """Write prompts, text features and class names."""
        names = ("text", "vision", "weights", "start")
        arrays = {name: getattr(self, name) for name in names}
        saved.save(directory, arrays, {name: getattr(self, name) for name in FACTS})

    def _network(self) -> DeepPromptTunable:
        return self.model.in_dtype(self.config.precision)

    def _tensors(self, prompts: NDArray[np.float32]) -> list[torch.Tensor]:
        return [tensor(prompt, self.model.device) for prompt in prompts]


def load(
    directory: Path, backbone: DeepPromptTunable, config: DeepPromptConfig
) -> PromptedClassifier:
    """Return the classifier saved in ``directory``.

    Raises:
        RecordError: If it cannot be read, or belongs to a model of another width.
    """
    facts = saved.load_facts(directory, FACTS)
    names, D = tuple(facts["classnames"]), backbone.embed_dim
    prompts = (None, None, None)
    shapes = {
        "text": prompts,
        "vision": prompts,
        "weights": (len(names), D),
        "start": (len(names), D),
    }
    arrays = saved.load_arrays(directory, shapes)
    return PromptedClassifier(
        backbone,
        names,
        arrays["text"],
        arrays["vision"],
        arrays["weights"],
        arrays["start"],
        config,
        facts["n_trainable_params"],
        facts["selection"],
    )
