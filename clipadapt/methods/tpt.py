"""TPT: a context tuned for each test image alone, so that its confident random crops agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator

from clipadapt.core.api import limits
from clipadapt.core.api.limits import Examples
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.methods import _prompts, _test_views
from clipadapt.methods._images import tensor
from clipadapt.methods._passes import Passes
from clipadapt.methods._prompts import Prompts
from clipadapt.methods._text import cosine_scores, zero_shot_weights
from clipadapt.models import PromptTunable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import ScoreKind


class TPTConfig(MethodConfig):
    """Hyperparameters of ``clip/tpt``.

    Attributes:
        ctx_init: Words whose embeddings are the context before tuning.
        views: Number of views of each test image: the image itself and random crops.
        selection_p: Share of the views, those of lowest entropy, that the context is tuned on.
        steps: AdamW steps per image.
        lr: Learning rate.
        weight_decay: Weight decay of AdamW.
        eps: Term added to AdamW's denominator.
        smallest_crop: Minimum fraction of the image area in a crop.
        class_chunk: Number of prompts that are encoded at a time; None encodes up to 8,192 positions at a time, or more
            on a GPU with much memory.
        precision: Precision of the frozen text tower; the context is float32.
    """

    ctx_init: str = "a photo of a"
    views: int = Field(default=64, gt=0, le=10_000)
    selection_p: float = Field(default=0.1, gt=0, le=1)
    steps: int = Field(default=1, ge=0, le=10_000)
    lr: PositiveFloat = 5e-3
    weight_decay: NonNegativeFloat = 0.01
    eps: PositiveFloat = 1e-8
    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    class_chunk: Examples | None = None
    precision: Literal["fp32", "bf16"] = "fp32"

    @field_validator("lr", "weight_decay", "eps")
    @classmethod
    def _fits_float32(cls, value: float) -> float:
        return limits.fits_float32(value)

    def check(self, task: Task[Any]) -> None:  # noqa: ARG002
        """Check that at least one view is selected."""
        _test_views.n_confident(self.views, self.selection_p, "selection_p")


class TPT:
    """Test-time prompt tuning: minimize the entropy of the mean prediction of an image's confident views.

    Every image starts from the same context with a new optimizer, so the order of the images has no effect.

    References:
        M. Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022,
        section 3.2. arXiv:2209.07511
    """

    Config: ClassVar[type[MethodConfig]] = TPTConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = PromptTunable
    uses_train: ClassVar[bool] = False

    def __init__(self, config: TPTConfig) -> None:
        self.config = config

    def fit(self, backbone: PromptTunable, task: Task[Any], ctx: RunContext) -> TPTClassifier:
        """Embed the initial context; no example is used.

        Raises:
            ConfigError: If no view would be selected, or ``ctx_init`` has no words.
            ModelError: If a prompt is longer than the model's context length.
        """
        self.config.check(task)
        model = backbone.in_dtype(self.config.precision)
        words = _prompts.words_of(model, self.config.ctx_init)
        Prompts(model, task.classnames, len(words))  # checks the length of the prompts
        context = ctx.initial("ctx", model.embed_tokens(words).cpu().numpy())  # (n_ctx, W)
        start = zero_shot_weights(backbone, task.classnames, task.templates)
        return TPTClassifier(backbone, task.classnames, context, start, self.config)

    def load(self, directory: Path, backbone: PromptTunable) -> TPTClassifier:
        """Return the classifier saved in ``directory``."""
        facts = saved.load_facts(directory, ("classnames",))
        shapes = {"ctx": (None, None), "start": (None, backbone.embed_dim)}
        arrays = saved.load_arrays(directory, shapes)
        names = tuple(facts["classnames"])
        return TPTClassifier(backbone, names, arrays["ctx"], arrays["start"], self.config)


@dataclass(frozen=True, slots=True)
class TPTClassifier:
    """Prompts that are tuned anew for each image.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        context: Context before tuning, shape ``(n_ctx, W)``.
        start: Text features of the hand-written prompts, for comparison.
        config: How the context is tuned.
        score_kind: The scores are logits.
        export_reason: Why it has no export formats.
    """

    model: PromptTunable
    classnames: tuple[str, ...]
    context: NDArray[np.float32]
    start: NDArray[np.float32]
    config: TPTConfig
    score_kind: ClassVar[ScoreKind] = "logit"
    export_reason: ClassVar[str] = "it trains a prompt on each image, and a graph cannot train"

    @property
    def n_trainable_params(self) -> int:
        """Number of elements in the context, which is tuned for each image alone."""
        return self.context.size

    def prompts(self) -> Prompts:
        """Return the prompts of the classes."""
        model = self.model.in_dtype(self.config.precision)
        return Prompts(
            model, self.classnames, len(self.context), class_chunk=self.config.class_chunk
        )

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Tune the context for each image and return the logits of the image, shape ``(n, C)``."""
        config, C, n = self.config, len(self.classnames), len(inputs)
        prompts, progress = self.prompts(), self.model.services.progress
        out = np.zeros((n, C), dtype=np.float32)
        each = 2 * config.steps + 1
        cost = Passes(progress, "tpt: prediction", n, C, each)
        views = config.views, config.smallest_crop
        size = prompts.images_at_once()
        with progress.track("tune prompts", n, "images") as bar:
            for rows, features in _test_views.blocks(self.model, inputs, *views, C):
                for begin in range(0, len(features), size):
                    group = features[begin : begin + size]
                    cost.begin(len(group) * C * each)
                    place = slice(rows.start + begin, rows.start + begin + len(group))
                    out[place] = self.tune(group, prompts)
                    bar.advance(len(group))
        return out

    def tune(
        self,
        features: NDArray[np.float32],
        prompts: Prompts,
        observe: Callable[[str, Any], None] | None = None,
    ) -> NDArray[np.float32]:
        """Tune a context for each of some images; the losses are independent, so one backward pass serves all.

        Args:
            features: Unit-norm features of all views, shape ``(b, V, D)``; view 0 is the image without a crop.
            prompts: The prompts of the classes.
            observe: For reference tests: called with the name and value of ``view_logits`` before tuning ``(b, V, C)``,
                the ``selected`` views ``(b, k)``, ``loss`` ``(b,)`` and ``grad`` ``(b, n_ctx, W)`` of each step, and
                the tuned ``contexts`` ``(b, n_ctx, W)``.

        Returns:
            Logits of the images without crops, shape ``(b, C)``.
        """
        import torch

        config, model = self.config, self.model
        views = tensor(features, model.device)  # (b, V, D)
        first = tensor(self.context, model.device)
        with torch.no_grad():
            logits = self._logits(views, prompts.encode(first).expand(len(views), -1, -1))
            view_logits = logits.cpu().numpy()  # (b, V, C)
        kept = _test_views.n_confident(features.shape[1], config.selection_p, "selection_p")
        entropy = _test_views.entropy(_test_views.log_softmax(view_logits))
        selected = np.argsort(entropy, axis=1, kind="stable")[:, :kept]  # (b, k)
        rows = torch.arange(len(views)).unsqueeze(1)
        chosen = views[rows, torch.from_numpy(selected)]  # (b, k, D)
        contexts = first.expand(len(views), *first.shape).clone().requires_grad_()
        # AdamW works element by element, so one state serves all images.
        optimizer = torch.optim.AdamW(
            [contexts], lr=config.lr, eps=config.eps, weight_decay=config.weight_decay
        )
        if observe:
            observe("view_logits", view_logits)
            observe("selected", selected)
        for _ in range(config.steps):
            with torch.enable_grad():
                loss = mean_entropy(self._logits(chosen, prompts.encode_each(contexts)))  # (b,)
                (contexts.grad,) = torch.autograd.grad(loss.sum(), contexts)
            if observe:
                observe("loss", loss.detach())
                observe("grad", contexts.grad)
            optimizer.step()
        if observe:
            observe("contexts", contexts.detach())
        with torch.no_grad():
            scores = self._logits(views[:, :1], prompts.encode_each(contexts))[:, 0]
        tuned: NDArray[np.float32] = scores.cpu().numpy()
        return tuned

    def _logits(self, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(b, v, C)`` of features ``(b, v, D)`` with text features ``(b, C, D)``."""
        cosine = images @ text.transpose(1, 2)
        return self.model.logit_scale * cosine + self.model.logit_bias

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the hand-written prompts, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.start)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> TPTClassifier:
        """Return a classifier for other classes."""
        start = zero_shot_weights(self.model, classnames, templates)
        return TPTClassifier(self.model, tuple(classnames), self.context, start, self.config)

    def save(self, directory: Path) -> None:
        """Write the initial context, text features and class names."""
        arrays = {"ctx": self.context, "start": self.start}
        saved.save(directory, arrays, {"classnames": self.classnames})


def mean_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats of the mean softmax over the views of ``(b, k, C)``, shape ``(b,)``."""
    import math

    log_p = logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(logits.shape[1])  # (b, C)
    return -(log_p.exp() * log_p).sum(dim=1)


METHOD = TPT
