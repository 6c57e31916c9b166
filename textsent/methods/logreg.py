"""Logistic regression on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clipadapt.core.api.limits import Iterations, Penalty
from clipadapt.core.api.method import require_format
from clipadapt.core.files import saved
from clipadapt.core.scoring.scores import nll, topk_accuracy
from textsent.methods import _features, _logistic, _task
from textsent.methods._features import MAX_GRID, FeatureConfig, Reader, Scaler
from textsent.methods._logistic import Linear
from textsent.models import TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, MethodConfig, ScoreKind


class LogRegConfig(FeatureConfig):
    """Hyperparameters of ``text/logreg``; those of the features are shared with the other feature methods.

    Attributes:
        standardize: Scale every feature to mean 0 and variance 1, so that one grid of ``C`` fits every encoder.
        C_grid: Values tried on val; ``C`` is used if it is empty or there is no val.
        max_iter: Maximum number of iterations of L-BFGS.
    """

    standardize: bool = True
    C_grid: tuple[Penalty, ...] = Field(
        default=(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), max_length=MAX_GRID
    )
    max_iter: Iterations = 1000


class LogReg:
    """L2-penalised logistic regression (softmax for more than two classes); ``C`` is selected on val.

    References:
        G. Alain and Y. Bengio, "Understanding intermediate layers using linear classifier probes",
        2016. arXiv:1610.01644
    """

    Config: ClassVar[type[MethodConfig]] = LogRegConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = TextEncoder
    open_vocabulary: ClassVar[bool] = False
    uses_sample_weight: ClassVar[bool] = True

    def __init__(self, config: LogRegConfig) -> None:
        self.config = config

    def fit(self, backbone: TextEncoder, task: Task[str], ctx: RunContext) -> LogRegClassifier:
        """Fit on ``task.train``, select ``C`` on ``task.val``. The seed has no effect.

        Raises:
            DataError: If train has only one class.
            ModelError: If the model has no such layer, or cannot read ``max_length`` tokens.
        """
        config = self.config
        train, val = _task.labelled(task, "logreg")
        reader = Reader.of(backbone, config)
        x = reader(train.inputs)  # (n, D)
        scaler = Scaler.fitted(x, standardize=config.standardize)

        def fit(C: float) -> Linear:
            return _logistic.solve(
                x,
                train.labels,
                scaler,
                C,
                len(task.classnames),
                config.max_iter,
                ctx.progress.note,
                task.sample_weight,
            )

        def evaluate(layer: Linear) -> dict[str, float]:
            logits = layer(xv)
            accuracy = topk_accuracy(logits, yv, 1)
            return {"val_accuracy": accuracy, "val_loss": nll(logits, yv)}

        if val is None or not config.C_grid:
            return LogRegClassifier(reader, task.classnames, fit(config.C))
        xv, yv = reader(val.inputs), val.labels
        layer, selection = _features.search(config.C_grid, fit, evaluate, ctx)
        return LogRegClassifier(reader, task.classnames, layer, selection)

    def load(self, directory: Path, backbone: TextEncoder) -> LogRegClassifier:
        """Return the classifier saved in ``directory``.

        Raises:
            RecordError: If a file is missing or damaged, or the width of the encoder differs.
        """
        facts = saved.load_facts(directory, ("classnames", "selection", *_features.READER_FACTS))
        classnames = tuple(facts["classnames"])
        shapes = {"weight": (len(classnames), backbone.width), "bias": (len(classnames),)}
        arrays = saved.load_arrays(directory, shapes)
        layer = Linear(arrays["weight"], arrays["bias"])
        return LogRegClassifier(
            Reader.restored(backbone, facts), classnames, layer, facts["selection"]
        )


@dataclass(frozen=True, slots=True)
class LogRegClassifier:
    """A linear layer on frozen features.

    Attributes:
        reader: Source of the features.
        classnames: ``C`` class names.
        layer: The fitted layer.
        selection: The selection on val, or None.
        score_kind: The scores are logits.
        export_formats: The layer alone, with its encoder, or both as ONNX.
    """

    reader: Reader
    classnames: tuple[str, ...]
    layer: Linear
    selection: dict[str, Any] | None = None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _features.EXPORT_FORMATS

    @property
    def n_trainable_params(self) -> int:
        """Weights and biases."""
        return self.layer.weight.size + self.layer.bias.size

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return self.layer(self.reader(inputs))

    def save(self, directory: Path) -> None:
        """Write the layer as safetensors, the settings as JSON."""
        arrays = {"weight": self.layer.weight, "bias": self.layer.bias}
        facts = {"classnames": self.classnames, "selection": self.selection}
        saved.save(directory, arrays, {**facts, **self.reader.facts()})

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,  # noqa: ARG002
    ) -> Exported:
        """Write the layer as safetensors and JSON, with its encoder, or both as ONNX.

        Raises:
            UnknownNameError: If there is no such format.
            ModelError: If the encoder cannot be written as ONNX.
        """
        require_format(form, self.export_formats)
        from textsent.methods import _feature_export

        arrays, formula = self.layer.exported()
        return _feature_export.export(
            form, path, self.reader, self.classnames, arrays, formula, self.layer, temperature
        )


METHOD = LogReg
