"""A linear classifier on frozen image features: the fitted object of the methods that train or compute one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from clipadapt.core.files import saved
from clipadapt.methods import _export
from clipadapt.methods._text import cosine_scores

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.method import Exported, ScoreKind
    from clipadapt.models import ImageTextModel, Layer

FACTS: Final = ("classnames", "scale", "layer", "n_trainable_params", "selection")


@dataclass(frozen=True, slots=True)
class LinearHead:
    """``scores = scale * f @ weights.T + bias``.

    Attributes:
        model: The backbone that encodes images.
        classnames: ``C`` class names.
        weights: One weight vector per class, shape ``(C, D)``, float32.
        bias: Shape ``(C,)``, float32; zeros if the method has none.
        start: Unit-norm text features of the prompts, shape ``(C, D)``, for comparison with zero-shot.
        scale: Factor of the product of features and weights.
        n_trainable_params: Number of trained parameters; 0 for a closed form.
        selection: What was selected on val, or None.
        layer: Layer of the image features; at ``output`` they have unit norm.
        score_kind: The scores are logits.
        export_formats: ``classifier`` alone, or ``openclip`` together with the model.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    start: NDArray[np.float32]
    scale: float
    n_trainable_params: int
    selection: dict[str, Any] | None = None
    layer: Layer = "output"
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        features = self.model.encode(inputs, "image", self.layer)  # (n, D)
        return np.float32(self.scale) * (features @ self.weights.T) + self.bias

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the prompts without training, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.start)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the weights, alone or with the model; see :func:`_export.export`."""
        arrays = {
            "weight": self.weights,
            "logit_scale": np.array(self.scale, dtype=np.float32),
            "logit_bias": self.bias,
        }
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            arrays,
            _export.COSINE,
            temperature=temperature,
            output=output,
            layer=self.layer,
        )

    def save(self, directory: Path) -> None:
        """Write the weights, the text features and the class names."""
        arrays = {"weights": self.weights, "bias": self.bias, "start": self.start}
        saved.save(directory, arrays, {name: getattr(self, name) for name in FACTS})


def load(directory: Path, backbone: ImageTextModel) -> LinearHead:
    """Return the classifier saved in ``directory``.

    Raises:
        RecordError: If it cannot be read, or belongs to a model of another width.
    """
    facts = saved.load_facts(directory, FACTS)
    classnames = tuple(facts.pop("classnames"))
    C, D = len(classnames), backbone.embed_dim
    shapes = {"weights": (C, None), "bias": (C,), "start": (C, D)}
    arrays = saved.load_arrays(directory, shapes)
    return LinearHead(
        backbone, classnames, arrays["weights"], arrays["bias"], arrays["start"], **facts
    )
