"""Zero-shot classification: the class whose prompt embedding is nearest to the image embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat

from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.methods import _export
from clipadapt.methods._text import cosine_scores, zero_shot_weights
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, ScoreKind


class ZeroShotConfig(MethodConfig):
    """Hyperparameters of ``clip/zero_shot``.

    Attributes:
        logit_scale: Scale of the cosine; None uses the scale and bias of the model. CLIP_benchmark uses 100. The
            ranking of the classes does not depend on it.
    """

    logit_scale: PositiveFloat | None = None


class ZeroShot:
    """Normalize the embedding of each prompt, average over templates, normalize again.

    References:
        A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
        ICML 2021, section 3.1.4. arXiv:2103.00020
    """

    Config: ClassVar[type[MethodConfig]] = ZeroShotConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    uses_train: ClassVar[bool] = False

    def __init__(self, config: ZeroShotConfig) -> None:
        self.config = config

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> ZeroShotClassifier:  # noqa: ARG002
        """Embed the class names; no example is used."""
        weights = zero_shot_weights(backbone, task.classnames, task.templates)
        return ZeroShotClassifier(backbone, task.classnames, weights, self.config.logit_scale)

    def load(self, directory: Path, backbone: ImageTextModel) -> ZeroShotClassifier:
        """Return the classifier saved in ``directory``."""
        facts = saved.load_facts(directory, ("classnames", "logit_scale"))
        arrays = saved.load_arrays(directory, {"weights": (None, backbone.embed_dim)})
        names = tuple(facts["classnames"])
        return ZeroShotClassifier(backbone, names, arrays["weights"], facts["logit_scale"])


@dataclass(frozen=True, slots=True)
class ZeroShotClassifier:
    """Cosine similarity to one text embedding per class.

    Attributes:
        model: The backbone that encodes images.
        classnames: ``C`` class names.
        weights: Unit-norm text embeddings, shape ``(C, D)``.
        logit_scale: Scale of the cosine, or None for that of the model.
        n_trainable_params: Always 0.
        score_kind: The scores are logits.
        export_formats: ``classifier`` (a weight matrix) alone, or ``openclip`` together with the model.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    weights: NDArray[np.float32]
    logit_scale: float | None = None
    n_trainable_params: ClassVar[int] = 0
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.weights, self.logit_scale)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> ZeroShotClassifier:
        """Return a zero-shot classifier for other classes."""
        weights = zero_shot_weights(self.model, classnames, templates)
        return ZeroShotClassifier(self.model, classnames, weights, self.logit_scale)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the text embeddings as a weight matrix, alone or with the model; see :func:`_export.export`."""
        own = (self.model.logit_scale, self.model.logit_bias)
        scale, bias = own if self.logit_scale is None else (self.logit_scale, 0.0)
        arrays = _export.cosine_arrays(self.weights, scale, bias)
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
        """Write the text embeddings and the class names."""
        facts = {"classnames": self.classnames, "logit_scale": self.logit_scale}
        saved.save(directory, {"weights": self.weights}, facts)


METHOD = ZeroShot
