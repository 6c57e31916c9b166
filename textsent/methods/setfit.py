"""SetFit: an encoder trained on pairs of texts, then logistic regression on its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat

from clipadapt.core.api.limits import (
    MAX_EPOCHS,
    BatchSize,
    Iterations,
    Penalty,
    WarmupSteps,
    check_warmup,
)
from clipadapt.core.api.method import require_format
from clipadapt.core.files import saved
from textsent.methods import _logistic, _task, _training
from textsent.methods._features import Reader, Scaler
from textsent.methods._logistic import Linear
from textsent.methods._task import TrainingConfig
from textsent.models import Pooling, TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.method import Exported, MethodConfig, ScoreKind

BODY = "body."  # prefix of the saved parameters of the encoder
UNUSED = "pooler."  # neither the mean over tokens nor the first state reads it


class SetFitConfig(TrainingConfig):
    """Hyperparameters of ``text/setfit``.

    Attributes:
        num_iterations: Pairs of each kind, equal and different classes, drawn for each text.
        epochs: Passes over the pairs.
        batch_size: Pairs per step.
        lr: Peak learning rate of the encoder.
        warmup_steps: Steps of linear warm-up; below 1 a fraction of all steps.
        keep: The last step: nothing is selected on val.
        max_length: Tokens read of a text.
        pooling: ``mean`` over the tokens, or ``cls``, the state of the first token.
        C: Inverse strength of the penalty of the logistic regression.
        max_iter: Maximum number of iterations of L-BFGS.
    """

    num_iterations: int = Field(default=20, ge=1, le=10_000)
    epochs: int = Field(default=1, gt=0, le=MAX_EPOCHS)
    batch_size: BatchSize = 16
    lr: PositiveFloat = 2e-5
    warmup_steps: WarmupSteps = 0.1
    keep: Literal["last"] = "last"
    max_length: int | None = Field(default=256, ge=3, le=1_000_000)
    pooling: Pooling = "mean"
    C: Penalty = 1.0
    max_iter: Iterations = 1000

    def check(self, task: Task[str]) -> None:
        """Reject a warm-up that is longer than the training."""
        if task.train is not None and len(task.train):
            check_warmup(self.warmup_steps, self.steps_for(self.n_pairs(len(task.train))))

    def n_pairs(self, n: int) -> int:
        """Return the number of pairs of ``n`` texts."""
        return 2 * self.num_iterations * n


class SetFit:
    """Contrastive training of the encoder on few labelled texts, then a linear head.

    Texts of one class are pulled together and texts of different classes apart, so ``n`` texts give
    ``2 num_iterations n`` training pairs.

    References:
        L. Tunstall et al., "Efficient Few-Shot Learning Without Prompts", 2022, section 3. arXiv:2209.11055
    """

    Config: ClassVar[type[MethodConfig]] = SetFitConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = TextEncoder
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: SetFitConfig) -> None:
        self.config = config

    def fit(self, backbone: TextEncoder, task: Task[str], ctx: RunContext) -> SetFitClassifier:
        """Train encoder and head on ``task.train``; ``task.val`` is not used.

        An interrupted fit resumes from the last complete epoch in ``ctx.work_dir``.

        Raises:
            ConfigError: If the warm-up is longer than the training.
            DataError: If train has only one class.
            ModelError: If the model cannot read ``max_length`` tokens.
        """
        train, _ = _task.labelled(task, "setfit")
        self.config.check(task)
        length = self._length(backbone)
        encoder = self._trained(backbone, train, length, ctx)
        x = _features(encoder, train.inputs, self.config.pooling, length)  # (n, D)
        head = _logistic.solve(
            x,
            train.labels,
            Scaler.fitted(x, standardize=False),
            self.config.C,
            len(task.classnames),
            self.config.max_iter,
            ctx.progress.note,
        )
        return SetFitClassifier(encoder, task.classnames, head, self.config.pooling, length)

    def load(self, directory: Path, backbone: TextEncoder) -> SetFitClassifier:
        """Return the classifier saved in ``directory``.

        Raises:
            RecordError: If a file is missing or damaged, or does not match the encoder.
        """
        from textsent.methods import _network

        facts = saved.load_facts(directory, ("classnames", "pooling", "max_length"))
        classnames = tuple(facts["classnames"])
        encoder: TextEncoder = backbone.clone()
        own = {BODY + name: p for name, p in _trainable(encoder).items()}
        shapes = {name: tuple(p.shape) for name, p in own.items()}
        shapes |= {"weight": (len(classnames), backbone.width), "bias": (len(classnames),)}
        arrays = saved.load_arrays(directory, shapes)
        _network.overwrite(own, {name: arrays[name] for name in own})
        head = Linear(arrays["weight"], arrays["bias"])
        return SetFitClassifier(encoder, classnames, head, facts["pooling"], facts["max_length"])

    def _length(self, backbone: TextEncoder) -> int:
        """Return how many tokens of a text are read; a short model reads as many as it can."""
        limit = _task.token_limit(backbone, self.config.max_length)
        return min(limit, backbone.max_length)

    def _trained(
        self, backbone: TextEncoder, train: Split[str], length: int, ctx: RunContext
    ) -> TextEncoder:
        """Return a copy of the encoder that is trained on pairs."""
        config = self.config
        ids = backbone.tokenize(list(train.inputs.examples), length)
        from textsent.methods import _contrastive, _trainer

        partners = draw_partners(train.labels, config.num_iterations, ctx)
        with _training.isolated(ctx.seed, ctx.threads, backbone.device):
            encoder: TextEncoder = backbone.clone()
            trainable = _trainable(encoder)
            for name, parameter in encoder.module.named_parameters():
                parameter.requires_grad = name in trainable
            _trainer.train(
                _contrastive.PairModel(encoder.module, config.pooling),
                _contrastive.PairRows(ids, partners),
                None,
                config.with_precision(backbone.dtype),
                ctx,
                tokenizer=backbone.tokenizer,
                device=backbone.device,
                name="setfit",
                key=_training.fit_key("setfit", config, backbone, train, None, ctx),
                collate=_contrastive.PairCollator(backbone.tokenizer),
            )
        encoder.module.eval()
        return encoder


def draw_partners(
    labels: NDArray[np.int64], num_iterations: int, ctx: RunContext
) -> NDArray[np.int32]:
    """Draw for each text ``num_iterations`` partners of its class and as many of other classes.

    A partner of the same class may be the text itself, as in the official code. The draw takes four bytes per pair,
    and no list of the pairs is made.

    Args:
        labels: Labels of ``n`` texts of at least two classes.
        num_iterations: Partners of each kind per text.
        ctx: Source of the random numbers.

    Returns:
        Row numbers of shape ``(num_iterations, n, 2)``: a partner of the same class, then one of another class.
    """
    rng, n = ctx.rng("setfit.pairs"), len(labels)
    by_class = {y: np.flatnonzero(labels == y).astype(np.int32) for y in np.unique(labels).tolist()}
    sizes = np.bincount(labels)[labels]
    high = np.stack([sizes, n - sizes], axis=1)  # (n, 2)
    partners = np.empty((num_iterations, n, 2), dtype=np.int32)
    for drawn in partners:
        drawn[:] = rng.integers(0, high)  # the drawn-th text of the class, and of all others
        for y, own in by_class.items():
            of_class = labels == y
            same, other = drawn[of_class].T
            # The k-th text of the others comes after as many of the class as precede it.
            before = np.searchsorted(own - np.arange(len(own)), other, side="right")
            drawn[of_class] = np.stack([own[same], other + before], axis=1)
    return partners


@dataclass(frozen=True, slots=True)
class SetFitClassifier:
    """A trained encoder and a linear layer on its features.

    Attributes:
        encoder: The trained encoder, a copy of its own.
        classnames: ``C`` class names.
        head: The linear layer.
        pooling: How the states of a text are pooled.
        max_length: Tokens read of a text.
        score_kind: The scores are logits.
        export_formats: Encoder and layer, or both as ONNX.
    """

    encoder: TextEncoder
    classnames: tuple[str, ...]
    head: Linear
    pooling: Pooling
    max_length: int
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = ("hf", "onnx")

    @property
    def n_trainable_params(self) -> int:
        """Trained parameters of the encoder, and the linear layer."""
        body = sum(int(p.numel()) for p in _trainable(self.encoder).values())
        return body + int(self.head.weight.size) + int(self.head.bias.size)

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return self.head(_features(self.encoder, inputs, self.pooling, self.max_length))

    def save(self, directory: Path) -> None:
        """Write encoder and head as safetensors, the settings as JSON."""
        own = _trainable(self.encoder)
        arrays = {BODY + name: p.detach().cpu().numpy() for name, p in own.items()}
        arrays |= {"weight": self.head.weight, "bias": self.head.bias}
        facts = {
            "classnames": self.classnames,
            "pooling": self.pooling,
            "max_length": self.max_length,
        }
        saved.save(directory, arrays, facts)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,  # noqa: ARG002
    ) -> Exported:
        """Write the encoder as a Hugging Face folder with the layer as safetensors and JSON, or both as ONNX.

        Raises:
            UnknownNameError: If there is no such format.
            ModelError: If the encoder cannot be written as ONNX.
        """
        require_format(form, self.export_formats)
        from textsent.methods import _feature_export

        reader = Reader(self.encoder, -1, self.pooling, self.max_length)
        arrays, formula = self.head.exported()
        return _feature_export.export(
            form, path, reader, self.classnames, arrays, formula, self.head, temperature
        )


def _features(
    encoder: TextEncoder, inputs: Inputs[str], pooling: Pooling, length: int
) -> NDArray[np.float64]:
    return encoder.encode(inputs, -1, pooling, length).astype(np.float64)


def _trainable(encoder: TextEncoder) -> dict[str, Any]:
    """Return the parameters of an encoder that its features depend on, by name."""
    named = encoder.module.named_parameters()
    return {name: p for name, p in named if not name.startswith(UNUSED)}


METHOD = SetFit
