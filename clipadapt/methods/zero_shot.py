"""Zero-shot classification: the class whose prompt embedding is nearest to the image embedding.

Prompts are templates with the class name, or sentences in the forms of CuPL, DCLIP and WaffleCLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import PositiveFloat

from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.methods import _descriptions, _export
from clipadapt.methods._descriptions import PromptsConfig, Words
from clipadapt.methods._text import cosine_scores, score_kind, zero_shot_weights
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, ScoreKind


class ZeroShotConfig(MethodConfig):
    """Hyperparameters of ``clip/zero_shot``.

    Attributes:
        logit_scale: Scale of the cosine; None uses the scale and bias of the model. CLIP_benchmark uses 100. The
            ranking of the classes does not depend on it.
        prompts: Prompts in words instead of the templates.
    """

    logit_scale: PositiveFloat | None = None
    prompts: PromptsConfig | None = None

    def check(self, task: Task[Any]) -> None:
        """Check that there are descriptions of every class.

        Raises:
            ConfigError: Naming the classes without any.
        """
        if self.prompts is not None:
            Words.of(self.prompts).check(task.classnames)

    def in_run_id(self) -> dict[str, Any]:
        """Return the settings, the file of descriptions by its content."""
        found = self.model_dump(mode="json")
        if self.prompts is None:
            del found["prompts"]
        elif self.prompts.descriptions is not None:
            content = _descriptions.read(self.prompts.descriptions)
            found["prompts"]["descriptions"] = _descriptions.content_sha256(content)
        return found


class ZeroShot:
    """Normalize the embedding of each prompt, average over templates, normalize again.

    References:
        A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
        ICML 2021, section 3.1.4. arXiv:2103.00020
        S. Pratt et al., "What does a platypus look like? Generating customized prompts for zero-shot image
        classification", ICCV 2023 (CuPL). arXiv:2209.03320
        S. Menon and C. Vondrick, "Visual Classification via Description from Large Language Models", ICLR 2023
        (DCLIP). arXiv:2210.07183
        K. Roth et al., "Waffling around for Performance: Visual Classification with Random Words and Broad
        Concepts", ICCV 2023 (WaffleCLIP). arXiv:2306.07282
    """

    Config: ClassVar[type[MethodConfig]] = ZeroShotConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    uses_train: ClassVar[bool] = False

    def __init__(self, config: ZeroShotConfig) -> None:
        self.config = config
        words = config.prompts
        self.prompts = "" if words is None else f"prompts in words ({words.form})"
        self.uses_templates = words is None or words.with_templates

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> ZeroShotClassifier:
        """Embed the class names; no example is used.

        Raises:
            ConfigError: If a class has no descriptions.
        """
        config = self.config
        words = None
        if config.prompts is not None:
            words = Words.of(config.prompts).with_random(task.classnames, ctx)
        return _built(backbone, task.classnames, task.templates, config.logit_scale, words, ctx)

    def load(self, directory: Path, backbone: ImageTextModel) -> ZeroShotClassifier:
        """Return the classifier saved in ``directory``."""
        facts = saved.load_facts(directory, ("classnames", "logit_scale"))
        arrays = saved.load_arrays(directory, {"weights": (None, backbone.embed_dim)})
        words = Words.from_facts(facts["words"]) if facts.get("words") else None
        counts = tuple(facts["counts"]) if facts.get("counts") else None
        return ZeroShotClassifier(
            backbone,
            tuple(facts["classnames"]),
            arrays["weights"],
            facts["logit_scale"],
            words,
            counts,
        )


def _built(
    model: ImageTextModel,
    classnames: tuple[str, ...],
    templates: tuple[str, ...],
    logit_scale: float | None,
    words: Words | None,
    ctx: RunContext | None = None,
) -> ZeroShotClassifier:
    """Return the classifier of the templates, or of prompts in words."""
    if words is None:
        weights = zero_shot_weights(model, classnames, templates)
        return ZeroShotClassifier(model, classnames, weights, logit_scale)
    prompts, combine = words.prompts(classnames, templates, ctx), words.config.combined
    weights = _descriptions.class_weights(model, prompts, combine)
    counts = tuple(map(len, prompts)) if combine == "max" else None
    return ZeroShotClassifier(model, classnames, weights, logit_scale, words, counts)


@dataclass(frozen=True, slots=True)
class ZeroShotClassifier:
    """Cosine similarity to one text embedding per class, or the largest one to those of its prompts.

    Attributes:
        model: The backbone that encodes images.
        classnames: ``C`` class names.
        weights: Text embeddings, shape ``(C, D)``, of unit norm unless cosines are averaged; ``(P, D)`` with
            ``counts``.
        logit_scale: Scale of the cosine, or None for that of the model.
        words: What the prompts are made from; None for templates.
        counts: Number of prompts of each class, if the score is the largest one; else None.
        n_trainable_params: Always 0.
        export_formats: ``classifier`` (a weight matrix) alone, or ``openclip`` together with the model.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    weights: NDArray[np.float32]
    logit_scale: float | None = None
    words: Words | None = None
    counts: tuple[int, ...] | None = None
    n_trainable_params: ClassVar[int] = 0
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    @property
    def score_kind(self) -> ScoreKind:
        """``logit``, or ``sigmoid`` if the model was trained with a sigmoid loss."""
        return score_kind(self.model, self.logit_scale)

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        if self.counts is None:
            return cosine_scores(self.model, inputs, self.weights, self.logit_scale)
        starts, found = _descriptions.starts_of(self.counts), []
        for at in range(0, max(len(inputs), 1), _descriptions.ROWS):
            rows = inputs.take(np.arange(at, min(at + _descriptions.ROWS, len(inputs))))
            scores = cosine_scores(self.model, rows, self.weights, self.logit_scale)  # (n, P)
            found.append(np.maximum.reduceat(scores, starts, axis=1))  # (n, C)
        return np.concatenate(found)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> ZeroShotClassifier:
        """Return a zero-shot classifier for other classes.

        Raises:
            ConfigError: If the descriptions do not include one of them.
        """
        return _built(self.model, classnames, templates, self.logit_scale, self.words)

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
        if self.counts:
            arrays["prompts"] = _descriptions.rows_of(self.counts)
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            arrays,
            _export.LARGEST if self.counts else _export.COSINE,
            temperature=temperature,
            output=output,
            score_kind=self.score_kind,
        )

    def save(self, directory: Path) -> None:
        """Write the text embeddings, the class names, and the descriptions for other classes."""
        facts: dict[str, Any] = {"classnames": self.classnames, "logit_scale": self.logit_scale}
        if self.words is not None:
            facts |= {"words": self.words.facts(), "counts": self.counts}
        saved.save(directory, {"weights": self.weights}, facts)


METHOD = ZeroShot
