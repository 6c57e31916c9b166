"""Prompts with trained context vectors, and what the methods that train them share; both towers are frozen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.api.limits import Examples
from clipadapt.core.files import saved
from clipadapt.methods import _export, _training
from clipadapt.methods._images import FrozenFeatures, tensor
from clipadapt.methods._text import (
    cosine_scores,
    in_chunks,
    leading,
    texts_at_once,
    zero_shot_weights,
)
from clipadapt.methods._training import Objective, TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.method import Exported, ScoreKind
    from clipadapt.models import PromptPosition, PromptTunable

INIT_STD: Final = 0.02
NEAREST: Final = 5
POSITIONS_IN_CACHE: Final = 2048
"""Positions of texts whose activations fit into the cache of a CPU: a third faster than 8,192."""
ALONE: Final = 64
"""From this number of classes on, contexts are encoded one at a time: their shared positions are then computed once."""


class PromptConfig(TrainingConfig):
    """Hyperparameters of methods that train one context for all images.

    Attributes:
        n_ctx: Number of context vectors, M in the paper; with ``ctx_init``, the number of its tokens.
        ctx_init: Words whose embeddings initialize the context; None draws it from N(0, 0.02²).
        class_token_position: Position of the class name: after the context, in the middle of it, or before it.
        CSC: Class-specific context: every class has its own vectors.
        drop_last: Drop the last batch of an epoch if it is incomplete, as the official code does.
        class_chunk: Number of classes that are encoded at a time, with their activations recomputed in the backward
            pass to save memory; None encodes up to 8,192 positions at a time, or more
            on a GPU with much memory.
        precision: Precision of the frozen text tower; the context is float32.
    """

    n_ctx: int = Field(default=16, gt=0, le=1000)
    ctx_init: str | None = None
    class_token_position: Literal["end", "middle", "front"] = "end"  # noqa: S105
    CSC: bool = False
    drop_last: bool = True
    class_chunk: Examples | None = None
    precision: Literal["fp32", "bf16"] = "fp32"


class Prompts:
    """Prompts of some classes with slots for context vectors."""

    def __init__(
        self,
        model: PromptTunable,
        classnames: tuple[str, ...],
        n_ctx: int,
        position: PromptPosition = "end",
        *,
        CSC: bool = False,
        class_chunk: int | None = None,
    ) -> None:
        """Tokenize the prompts.

        Args:
            model: Model of text width ``W``.
            classnames: ``C`` class names.
            n_ctx: Slots per prompt.
            position: Position of the class name.
            CSC: Whether every class has its own context.
            class_chunk: Texts encoded at a time; None for up to 8,192 positions, or more on a
                GPU with much memory.

        Raises:
            ModelError: If slots and name are longer than the context length.
        """
        self.model, self.classnames = model, classnames
        self.tokens, self.slots = model.prompt_slots(
            classnames, n_ctx, position
        )  # (C, L), (C, n_ctx)
        self.base = model.embed_tokens(self.tokens)  # (C, L, W)
        self.places = self.slots.to(self.base.device)
        self.n_ctx, self.width = n_ctx, int(self.base.shape[2])
        self.every = class_chunk or texts_at_once(model, self.base)
        # Number of leading positions that all prompts share; class-specific context ends the shared part.
        self.before = min(leading(self.tokens), int(self.slots.min()))
        self.shared = self.before if CSC else leading(self.tokens)

    def encode(self, context: torch.Tensor) -> torch.Tensor:
        """Return unit-norm text features ``(C, D)`` of a context ``(n_ctx, W)``, or ``(C, n_ctx, W)`` with CSC."""
        C = len(self.tokens)
        whole = context if context.dim() == 3 else context.expand(C, *context.shape)

        def encode(part: slice) -> torch.Tensor:
            return self._encode(whole[part].unsqueeze(0), part, self.shared)

        return in_chunks(encode, self.tokens, self.every, dim=1)[0]

    def at_once(self) -> int:
        """Return the number of contexts whose prompts are encoded together by :meth:`encode_each`."""
        C = len(self.tokens)
        return 1 if C >= ALONE else max(1, self.every // C)

    def images_at_once(self) -> int:
        """Return the number of images, each with a context of its own, to process together.

        It is smaller than :meth:`at_once` on a CPU, whose cache does not hold the activations of more.
        """
        if not self.model.device.startswith("cpu"):
            return self.at_once()
        return min(self.at_once(), max(1, POSITIONS_IN_CACHE // self.tokens.numel()))

    def encode_each(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return unit-norm text features ``(b, C, D)`` of ``b`` contexts ``(b, n_ctx, W)``, each for all classes.

        At most ``class_chunk`` texts are encoded at a time.
        """
        import torch

        groups = []
        for group in contexts.split(self.at_once()):
            encode = partial(self._encode_group, group)
            several = len(group) < len(contexts)
            groups.append(in_chunks(encode, self.tokens, self.every, dim=1, recompute=several))
        return torch.cat(groups) if len(groups) > 1 else groups[0]

    def _encode_group(self, contexts: torch.Tensor, part: slice) -> torch.Tensor:
        """Return the features ``(g, c, D)`` of contexts ``(g, n_ctx, W)``, each for a chunk of ``c`` classes."""
        g, c = len(contexts), len(self.tokens[part])
        filled = contexts.unsqueeze(1).expand(g, c, *contexts.shape[1:])  # (g, c, n_ctx, W)
        return self._encode(filled, part, self.shared if g == 1 else self.before)

    def _encode(self, contexts: torch.Tensor, part: slice, shared: int) -> torch.Tensor:
        """Return the features ``(g, c, D)`` of contexts ``(g, c, n_ctx, W)`` for a chunk of ``c`` classes."""
        g, c, n_ctx, width = contexts.shape
        base, tokens = self.base[part], self.tokens[part]
        slots = self.places[part].unsqueeze(-1).expand(-1, -1, width)
        filled = base.expand(g, *base.shape).scatter(
            2, slots.expand(g, c, n_ctx, width), contexts
        )  # (g, c, L, W)
        features = self.model.encode_token_embeddings(
            filled.flatten(0, 1), tokens.repeat(g, 1), shared=shared
        )  # (g * c, D)
        out: torch.Tensor = features.unflatten(0, (g, c))
        return out

    def weights(self, context: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the text classifier of a trained context, shape ``(C, D)``."""
        import torch

        with torch.no_grad():
            given = torch.from_numpy(context).to(self.model.device)
            features: NDArray[np.float32] = self.encode(given).cpu().numpy()
        return features


def prompts_of(
    model: PromptTunable, classnames: tuple[str, ...], n_ctx: int, config: PromptConfig
) -> Prompts:
    """Return the prompts of some classes as the settings say."""
    return Prompts(
        model,
        classnames,
        n_ctx,
        config.class_token_position,
        CSC=config.CSC,
        class_chunk=config.class_chunk,
    )


def words_of(model: PromptTunable, ctx_init: str) -> torch.Tensor:
    """Return the token ids of the words that initialize a context.

    Raises:
        ConfigError: If there are none.
        ModelError: If they leave no room for a class name.
    """
    tokens = model.context_tokens(ctx_init.replace("_", " "))
    if not len(tokens):
        raise ConfigError(
            f"method.ctx_init '{ctx_init}' contains no words",
            hint="give initial words, or leave it out for a random context",
        )
    return tokens


def number_of_vectors(model: PromptTunable, config: PromptConfig) -> int:
    """Return ``n_ctx``, which ``ctx_init`` overrides.

    Raises:
        ConfigError: If ``ctx_init`` contains no words, or is combined with class-specific context.
    """
    if config.ctx_init is None:
        return config.n_ctx
    if config.CSC:
        raise ConfigError(
            f"ctx_init '{config.ctx_init}' initializes a shared context, but CSC is on",
            hint="leave out ctx_init or set method.CSC=false",
        )
    return len(words_of(model, config.ctx_init))


def initial_context(
    name: str,
    model: PromptTunable,
    prompts: Prompts,
    ctx: RunContext,
    ctx_init: str | None,
    *,
    CSC: bool = False,
) -> NDArray[np.float32]:
    """Return the embeddings of ``ctx_init``, or vectors drawn from N(0, 0.02²).

    Args:
        name: Name of the method, for its random stream.
        model: The model.
        prompts: Prompts of ``C`` classes.
        ctx: The random stream.
        ctx_init: Words, or None.
        CSC: Whether every class has its own vectors.
    """
    if ctx_init is not None:
        return model.embed_tokens(words_of(model, ctx_init)).cpu().numpy()  # (n_ctx, W)
    shape: tuple[int, ...] = (prompts.n_ctx, prompts.width)
    if CSC:
        shape = (len(prompts.classnames), *shape)
    drawn = ctx.rng(f"{name}.ctx").normal(0.0, INIT_STD, shape)
    return np.asarray(drawn, dtype=np.float32)


class ContextTraining:
    """One context for all images in training: its prompts, the image features, and the evaluation on val.

    Attributes:
        train: The training split.
        prompts: Prompts of the classes.
        context: The trained vectors, ``(n_ctx, W)`` or ``(C, n_ctx, W)``.
        start: Text features of the hand-written prompts, shape ``(C, D)``.
    """

    def __init__(
        self,
        name: str,
        config: PromptConfig,
        backbone: PromptTunable,
        task: Task[Any],
        ctx: RunContext,
        initial: Callable[[PromptTunable, Prompts], NDArray[np.float32]] | None = None,
    ) -> None:
        """Prepare the training.

        Args:
            name: Name of the method.
            config: Its hyperparameters.
            backbone: The model.
            task: Train, and val if there is one.
            ctx: Random streams and progress.
            initial: Returns the initial context; None for :func:`initial_context`.

        Raises:
            ConfigError: If ``ctx_init`` has no words, or is combined with class-specific context.
            ModelError: If a prompt is longer than the model's context length.
        """
        from clipadapt.tensor.graphs import Repeated

        self.name, self.config, self.backbone, self.task, self.ctx = (
            name,
            config,
            backbone,
            task,
            ctx,
        )
        self.train: Split[Any] = task.require_train(name)
        config.check(task)
        val = _training.nonempty(task.val)
        # Gradients flow through this model.
        self.model: PromptTunable = backbone.in_dtype(config.precision)
        n_ctx = number_of_vectors(self.model, config)
        self.prompts = prompts_of(self.model, task.classnames, n_ctx, config)
        if initial is None:
            start = initial_context(
                name, self.model, self.prompts, ctx, config.ctx_init, CSC=config.CSC
            )
        else:
            start = initial(self.model, self.prompts)
        self.context = _training.parameter(ctx, "ctx", start, self.model.device)
        self.features = FrozenFeatures(backbone, self.train.inputs, config, "output")
        self.val_features = None
        if val is not None and config.epochs:
            self.val_features = tensor(backbone.encode(val.inputs, "image"), self.model.device)
        self.start = zero_shot_weights(backbone, task.classnames, task.templates)
        steps = config.steps_for(self.train)
        self._encode = Repeated(self.prompts.encode, backbone.services, self.model.device, steps)

    def text(self) -> torch.Tensor:
        """Return the text features ``(C, D)`` of the current context."""
        return self._encode(self.context)

    def observe(self, name: str, value: Any) -> None:
        """Pass a value to the observer of a reference test."""
        if self.ctx.observe:
            self.ctx.observe(name, value.detach() if hasattr(value, "detach") else value)

    def fitted(
        self, loss: Callable[[NDArray[np.int64], int], torch.Tensor], **more: Any
    ) -> PromptClassifier:
        """Train the context and return the classifier.

        Args:
            loss: Loss of some rows and a view.
            more: Further arguments of :class:`_training.Objective`.
        """
        evaluate = None if self.val_features is None else self._val_scores
        objective = Objective.of(
            self.name, {"ctx": self.context}, loss, evaluate, self.backbone, self.task, **more
        )
        selection = _training.train(objective, self.config, self.ctx)
        context = self.context.detach().cpu().numpy()
        return PromptClassifier(
            self.backbone,
            self.prompts.classnames,
            context,
            self.prompts.weights(context),
            self.start,
            self.config,
            selection,
        )

    def _val_scores(self) -> NDArray[np.float32]:
        import torch

        assert self.val_features is not None
        with torch.no_grad():
            logits = self.model.logits(self.val_features, self.text())
            scores: NDArray[np.float32] = logits.cpu().numpy()
        return scores


def load(directory: Path, backbone: PromptTunable, config: PromptConfig) -> PromptClassifier:
    """Return the classifier saved in ``directory``."""
    facts = saved.load_facts(directory, ("classnames", "selection"))
    D = backbone.embed_dim
    context = (None, None, None) if config.CSC else (None, None)
    arrays = saved.load_arrays(
        directory, {"ctx": context, "weights": (None, D), "start": (None, D)}
    )
    return PromptClassifier(
        backbone,
        tuple(facts["classnames"]),
        arrays["ctx"],
        arrays["weights"],
        arrays["start"],
        config,
        facts["selection"],
    )


@dataclass(frozen=True, slots=True)
class PromptClassifier:
    """Cosine to the text features of learned prompts.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        context: Learned context vectors, ``(n_ctx, W)`` or ``(C, n_ctx, W)``.
        weights: Unit-norm text features of the learned prompts, shape ``(C, D)``.
        start: Text features of the hand-written prompts, for comparison.
        config: How the prompts are built.
        selection: The epoch selected on val, or None.
        score_kind: The loss is a softmax cross-entropy, also on a model with a sigmoid loss.
    """

    model: PromptTunable
    classnames: tuple[str, ...]
    context: NDArray[np.float32]
    weights: NDArray[np.float32]
    start: NDArray[np.float32]
    config: PromptConfig
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    @property
    def n_trainable_params(self) -> int:
        """Number of elements in the context vectors."""
        return self.context.size

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.weights)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the hand-written prompts, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.start)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> PromptClassifier:
        """Return a classifier for other classes; class-specific context only supports the trained classes.

        Raises:
            DataError: If class-specific context was not trained for a class.
        """
        context = self.context
        if self.config.CSC:
            index = {name: i for i, name in enumerate(self.classnames)}
            untrained = [name for name in classnames if name not in index]
            if untrained:
                raise DataError(
                    f"class-specific context was not trained for {', '.join(untrained[:5])}",
                    hint="set method.CSC=false: a shared context transfers to other classes",
                )
            context = np.ascontiguousarray(context[[index[name] for name in classnames]])
        model = self.model.in_dtype(self.config.precision)
        prompts = prompts_of(model, tuple(classnames), context.shape[-2], self.config)
        return PromptClassifier(
            self.model,
            prompts.classnames,
            context,
            prompts.weights(context),
            zero_shot_weights(self.model, tuple(classnames), templates),
            self.config,
            self.selection,
        )

    def inspect(self) -> dict[str, Any]:
        """Return the vocabulary tokens nearest to each context vector, with Euclidean distances.

        References:
            K. Zhou et al., IJCV 2022, section 4.3, table 4.
        """
        if self.config.CSC:
            per_class = zip(self.classnames, self.context, strict=True)
            return {
                "context": [
                    {"class": n, "vectors": nearest_words(self.model, c)} for n, c in per_class
                ]
            }
        return {"context": nearest_words(self.model, self.context)}

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the learned prompts as a weight matrix, alone or with the model; see :func:`_export.export`."""
        arrays = _export.cosine_arrays(self.weights, self.model.logit_scale, self.model.logit_bias)
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            arrays,
            _export.COSINE,
            temperature=temperature,
            output=output,
        )

    def save(self, directory: Path) -> None:
        """Write context, text features and class names."""
        arrays = {"ctx": self.context, "weights": self.weights, "start": self.start}
        saved.save(directory, arrays, {"classnames": self.classnames, "selection": self.selection})


def nearest_words(model: PromptTunable, context: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return for each context vector ``(n_ctx, W)`` the nearest vocabulary tokens with their Euclidean distances."""
    import torch

    exact = model.in_dtype("fp32")
    found = exact.nearest_tokens(torch.from_numpy(context).to(model.device), NEAREST)
    return [
        {"vector": i + 1, "nearest": [{"word": w, "distance": round(d, 4)} for w, d in near]}
        for i, near in enumerate(found)
    ]
