"""CoOp: learned context vectors in the prompt; both towers are frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.api.limits import Examples
from clipadapt.core.files import saved
from clipadapt.methods import _export, _training
from clipadapt.methods._images import FrozenFeatures, tensor
from clipadapt.methods._text import cosine_scores, leading, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.models import PromptTunable

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, MethodConfig, ScoreKind

INIT_STD = 0.02
NEAREST = 5
POSITIONS_AT_ONCE = 8192


class CoOpConfig(TrainingConfig):
    """Hyperparameters of ``clip/coop``.

    Attributes:
        n_ctx: Number of context vectors, M in the paper; with ``ctx_init``, the number of its tokens.
        ctx_init: Words whose embeddings initialize the context; None draws it from N(0, 0.02²).
        class_token_position: Position of the class name: after the context, in the middle of it, or before it.
        CSC: Class-specific context: every class has its own vectors.
        drop_last: Drop the last batch of an epoch if it is incomplete, as the official code does.
        class_chunk: Number of classes that are encoded at a time, with their activations recomputed in the backward
            pass to save memory; None encodes up to 8,192 positions at a time.
        precision: Precision of the frozen text tower; the context is float32.
    """

    n_ctx: int = Field(default=16, gt=0, le=1000)
    ctx_init: str | None = None
    class_token_position: Literal["end", "middle", "front"] = "end"  # noqa: S105
    CSC: bool = False
    drop_last: bool = True
    class_chunk: Examples | None = None
    precision: Literal["fp32", "bf16"] = "fp32"


class CoOp:
    """Context Optimization: a prompt is ``[V]_1 ... [V]_M name.``, and V is trained with cross-entropy.

    References:
        K. Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, section 3.2. arXiv:2109.01134
    """

    Config: ClassVar[type[MethodConfig]] = CoOpConfig
    version: ClassVar[int] = 2
    requires: ClassVar[type | None] = PromptTunable

    def __init__(self, config: CoOpConfig) -> None:
        self.config = config

    def fit(self, backbone: PromptTunable, task: Task[Any], ctx: RunContext) -> CoOpClassifier:
        """Train the context on ``task.train``; ``task.val`` is monitored, and selects the epoch with ``keep: best``.

        Raises:
            ConfigError: If ``ctx_init`` has no words, or is combined with class-specific context.
            ModelError: If a prompt is longer than the model's context length.
        """
        config = self.config
        train = task.require_train("coop")
        config.check(task)
        val = _training.nonempty(task.val)
        model = backbone.in_dtype(config.precision)  # gradients flow through this model
        prompts = Prompts(model, task.classnames, self._n_ctx(model), config)
        context = _training.parameter(ctx, "ctx", self._start(model, prompts, ctx))
        features = FrozenFeatures(backbone, train.inputs, config, "output")
        val_features = None
        if val is not None and config.epochs:
            val_features = tensor(backbone.encode(val.inputs, "image"), model.device)

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            text = prompts.encode(context.to(model.device))  # (C, D)
            logits = model.logits(features(rows, view), text)  # (b, C)
            return _training.cross_entropy(logits, train.labels, rows)

        def val_scores() -> NDArray[np.float32]:
            import torch

            assert val_features is not None
            with torch.no_grad():
                text = prompts.encode(context.to(model.device))
                scores: NDArray[np.float32] = model.logits(val_features, text).cpu().numpy()
            return scores

        evaluate = None if val_features is None else val_scores
        objective = Objective.of("coop", {"ctx": context}, loss, evaluate, backbone, task)
        selection = _training.train(objective, config, ctx)
        return self._classifier(
            backbone,
            prompts,
            context.detach().numpy(),
            zero_shot_weights(backbone, task.classnames, task.templates),
            selection,
        )

    def load(self, directory: Path, backbone: PromptTunable) -> CoOpClassifier:
        """Return the classifier saved in ``directory``."""
        facts = saved.load_facts(directory, ("classnames", "selection"))
        D = backbone.embed_dim
        context = (None, None, None) if self.config.CSC else (None, None)
        arrays = saved.load_arrays(
            directory, {"ctx": context, "weights": (None, D), "start": (None, D)}
        )
        return CoOpClassifier(
            backbone,
            tuple(facts["classnames"]),
            arrays["ctx"],
            arrays["weights"],
            arrays["start"],
            self.config,
            facts["selection"],
        )

    def _n_ctx(self, model: PromptTunable) -> int:
        config = self.config
        if config.ctx_init is None:
            return config.n_ctx
        if config.CSC:
            raise ConfigError(
                f"ctx_init '{config.ctx_init}' initializes a shared context, but CSC is on",
                hint="leave out ctx_init or set method.CSC=false",
            )
        n_ctx = len(model.context_tokens(config.ctx_init.replace("_", " ")))
        if n_ctx == 0:
            raise ConfigError(
                f"method.ctx_init '{config.ctx_init}' contains no words",
                hint="give initial words, or leave it out for a random context",
            )
        return n_ctx

    def _start(
        self, model: PromptTunable, prompts: Prompts, ctx: RunContext
    ) -> NDArray[np.float32]:
        config = self.config
        if config.ctx_init is not None:
            words = model.context_tokens(config.ctx_init.replace("_", " "))
            return model.embed_tokens(words).cpu().numpy()  # (n_ctx, W)
        n_ctx, width = prompts.slots.shape[1], prompts.base.shape[2]
        shape = (len(prompts.slots), n_ctx, width) if config.CSC else (n_ctx, width)
        drawn = ctx.rng("coop.ctx").normal(0.0, INIT_STD, shape)
        return np.asarray(drawn, dtype=np.float32)

    def _classifier(
        self,
        backbone: PromptTunable,
        prompts: Prompts,
        context: NDArray[np.float32],
        start: NDArray[np.float32],
        selection: dict[str, Any] | None,
    ) -> CoOpClassifier:
        return CoOpClassifier(
            backbone,
            prompts.classnames,
            context,
            prompts.weights(context),
            start,
            self.config,
            selection,
        )


class Prompts:
    """Prompts of some classes with slots for context vectors."""

    def __init__(
        self, model: PromptTunable, classnames: tuple[str, ...], n_ctx: int, config: CoOpConfig
    ) -> None:
        self.model, self.classnames, self.config = model, classnames, config
        self.tokens, self.slots = model.prompt_slots(
            classnames, n_ctx, config.class_token_position
        )  # (C, L), (C, n_ctx)
        self.base = model.embed_tokens(self.tokens)  # (C, L, W)
        # Number of leading positions that all prompts share; class-specific context ends the shared part.
        first = int(self.slots.min()) if config.CSC else self.tokens.shape[1]
        self.shared = min(leading(self.tokens), first)

    def encode(self, context: torch.Tensor) -> torch.Tensor:
        """Return unit-norm text features ``(C, D)``; the context is ``(n_ctx, W)``, or ``(C, n_ctx, W)`` with CSC."""
        import torch
        from torch.utils.checkpoint import checkpoint

        C = len(self.tokens)
        every = self.config.class_chunk or max(1, POSITIONS_AT_ONCE // self.tokens.shape[1])
        whole = context if context.dim() == 3 else context.expand(C, *context.shape)
        parts = []
        for begin in range(0, C, every):
            part = slice(begin, begin + every)
            if every < C and torch.is_grad_enabled():
                parts.append(checkpoint(self._encode, whole[part], part, use_reentrant=False))
            else:
                parts.append(self._encode(whole[part], part))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _encode(self, context: torch.Tensor, part: slice) -> torch.Tensor:
        slots = self.slots[part].unsqueeze(-1).expand(-1, -1, context.shape[-1])
        filled = self.base[part].scatter(1, slots, context)  # (c, L, W)
        return self.model.encode_token_embeddings(filled, self.tokens[part], shared=self.shared)

    def weights(self, context: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the text classifier of a trained context, shape ``(C, D)``."""
        import torch

        with torch.no_grad():
            given = torch.from_numpy(context).to(self.model.device)
            features: NDArray[np.float32] = self.encode(given).cpu().numpy()
        return features


@dataclass(frozen=True, slots=True)
class CoOpClassifier:
    """Cosine to the text features of learned prompts.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        context: Learned context vectors, ``(n_ctx, W)`` or ``(C, n_ctx, W)``.
        weights: Unit-norm text features of the learned prompts, shape ``(C, D)``.
        start: Text features of the hand-written prompts, for comparison.
        config: How the prompts are built.
        selection: The epoch selected on val, or None.
        score_kind: The scores are logits.
    """

    model: PromptTunable
    classnames: tuple[str, ...]
    context: NDArray[np.float32]
    weights: NDArray[np.float32]
    start: NDArray[np.float32]
    config: CoOpConfig
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
    ) -> CoOpClassifier:
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
        prompts = Prompts(
            self.model.in_dtype(self.config.precision),
            tuple(classnames),
            context.shape[-2],
            self.config,
        )
        return CoOpClassifier(
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
        import torch

        model = self.model.in_dtype("fp32")

        def words(context: NDArray[np.float32]) -> list[dict[str, Any]]:
            found = model.nearest_tokens(torch.from_numpy(context).to(model.device), NEAREST)
            return [
                {
                    "vector": i + 1,
                    "nearest": [{"word": w, "distance": round(d, 4)} for w, d in near],
                }
                for i, near in enumerate(found)
            ]

        if self.config.CSC:
            per_class = zip(self.classnames, self.context, strict=True)
            return {"context": [{"class": n, "vectors": words(c)} for n, c in per_class]}
        return {"context": words(self.context)}

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


METHOD = CoOp
