"""Fine-tuning of the image tower, with a head initialized from the zero-shot classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field, PositiveFloat

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.limits import BatchSize, Epochs, Units, WarmupSteps
from clipadapt.core.files import saved
from clipadapt.methods import _export, _training
from clipadapt.methods._images import TunedImages, TunedTower, tensor
from clipadapt.methods._text import cosine_scores, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, ScoreKind
    from clipadapt.models import ImageTextModel

HEAD: Final = ("head.weight", "head.bias")


class FinetuneConfig(TrainingConfig):
    """Hyperparameters of fine-tuning; the defaults are WiSE-FT's.

    Attributes:
        blocks: Number of units at the end of the image tower to train; None trains all. The output of the frozen
            units is computed once.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 3e-5
    weight_decay: float = Field(default=0.1, ge=0)
    schedule: Literal["dassl", "cosine", "constant"] = "cosine"
    warmup_steps: WarmupSteps = 500
    epochs: Epochs = 10
    batch_size: BatchSize = 512
    clip_norm: PositiveFloat | None = 1.0
    smallest_crop: float = Field(default=0.9, gt=0, le=1)
    blocks: Units | None = None


def check_units(model: ImageTextModel, blocks: int | None) -> None:
    """Check that an image tower has as many units as are to be trained.

    Raises:
        ConfigError: If it has fewer.
    """
    n = len(model.image_units())
    if blocks is not None and blocks > n:
        raise ConfigError(
            f"method.blocks is {blocks}; the image tower of '{model.name}' has {n} units",
            hint=f"choose a value from 1 to {n}, or leave it out to train all",
        )


class Tuned:
    """An image tower and a head in training.

    Attributes:
        backbone: The model.
        tower: The image tower: frozen units of the model, then trainable copies.
        head: Weight ``(C, D)`` and bias ``(C,)``.
        parameters: Trainable parameters by name.
    """

    def __init__(
        self,
        backbone: ImageTextModel,
        blocks: int | None,
        head: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """Copy the model and make the last ``blocks`` units of the copy's image tower trainable.

        Raises:
            ConfigError: If the tower has fewer units.
        """
        check_units(backbone, blocks)
        base = backbone.in_dtype("fp32")
        units = base.image_units()
        first = 0 if blocks is None else len(units) - blocks
        model = base.clone()
        begins = tuple(name for unit in units[first:] for name in unit)
        trained = {n: p for n, p in model.module.named_parameters() if n.startswith(begins)}
        for p in trained.values():
            p.requires_grad_()
        self.backbone, self.head = backbone, head
        self.tower = TunedTower(base, model, first)
        self.parameters = {**trained, **dict(zip(HEAD, head, strict=True))}

    def start_from(self, ctx: RunContext) -> None:
        """Replace the tower's initial values by those of the context, see :meth:`RunContext.initial`."""
        import torch

        with torch.no_grad():
            for name, p in self.parameters.items():
                if name not in HEAD:
                    given = ctx.initial(name, p.detach().cpu().numpy())
                    p.copy_(torch.from_numpy(np.asarray(given, dtype=np.float32)))

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the trainable parameters."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def put(self, state: dict[str, torch.Tensor]) -> None:
        """Set the trainable parameters."""
        import torch

        with torch.no_grad():
            for name, value in state.items():
                self.parameters[name].copy_(value)

    def scores(
        self, inputs: Inputs[Any], stored: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return logits for the current parameters, shape ``(n, C)``; see :meth:`TunedTower.features`."""
        weight, bias = (p.detach().cpu().numpy() for p in self.head)
        logits: NDArray[np.float32] = self.tower.features(inputs, stored) @ weight.T + bias
        return logits


def fit(
    name: str,
    config: FinetuneConfig,
    backbone: ImageTextModel,
    task: Task[Any],
    ctx: RunContext,
) -> tuple[Tuned, NDArray[np.float32], dict[str, torch.Tensor], dict[str, Any] | None]:
    """Fine-tune end to end with cross-entropy.

    Returns:
        The trained tower and head, the zero-shot text features ``(C, D)``, the initial parameters, and what was
        selected on val.

    References:
        M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 4. arXiv:2109.01903
    """
    train = task.require_train(name)
    config.check(task)
    val = _training.nonempty(task.val)
    text = zero_shot_weights(backbone, task.classnames, task.templates)
    zero_shot = np.float32(backbone.logit_scale) * text
    bias = np.full(len(text), backbone.logit_bias, dtype=np.float32)
    head = (
        _training.parameter(ctx, HEAD[0], zero_shot, backbone.device),
        _training.parameter(ctx, HEAD[1], bias, backbone.device),
    )
    tuned = Tuned(backbone, config.blocks, head)
    initial = (tensor(array, backbone.device) for array in (zero_shot, bias))
    start = tuned.state() | dict(zip(HEAD, initial, strict=True))
    tuned.start_from(ctx)
    images = TunedImages(tuned.tower, train.inputs, config)
    val_states = None if val is None else tuned.tower.stored(val.inputs)

    def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
        weight, bias = head
        features = images(rows, view)  # (b, D), unit norm
        logits = features @ weight.T + bias
        return _training.cross_entropy(logits, train.labels, rows)

    val_scores = None if val is None else lambda: tuned.scores(val.inputs, val_states)
    objective = Objective.of(name, tuned.parameters, loss, val_scores, backbone, task)
    selection = _training.train(objective, config, ctx)
    return tuned, text, start, selection


@dataclass(frozen=True, slots=True)
class FinetunedClassifier:
    """A fine-tuned image tower and its head.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        tuned: Tower and head.
        start: Text features of the zero-shot classifier, shape ``(C, D)``.
        blocks: Number of trained units of the tower, or None for all.
        selection: What was selected on val, or None.
        score_kind: The scores are logits.
        export_formats: An open_clip checkpoint together with the head, or both as ONNX.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    tuned: Tuned
    start: NDArray[np.float32]
    blocks: int | None
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = ("openclip", "onnx")

    @property
    def n_trainable_params(self) -> int:
        """Number of parameters of the trained units and the head."""
        return sum(p.numel() for p in self.tuned.parameters.values())

    @property
    def n_total_params(self) -> int:
        """Number of parameters of the model and the head."""
        return self.model.n_params + sum(p.numel() for p in self.tuned.head)

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return self.tuned.scores(inputs)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the zero-shot classifier, shape ``(n, C)``."""
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
        """Write the model with the trained tower as an open_clip folder, and the head next to it."""
        weight, bias = (p.detach().cpu().numpy() for p in self.tuned.head)
        trained = self.tuned.tower.model
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            {"weight": weight, "bias": bias},
            _export.LINEAR,
            temperature=temperature,
            output=output,
            formats=self.export_formats,
            dtype=trained.dtype,
            network=trained,
        )

    def save(self, directory: Path) -> None:
        """Write the trained parameters, the zero-shot text features and the class names."""
        arrays = {n: p.detach().cpu().numpy() for n, p in self.tuned.parameters.items()}
        facts = {
            "classnames": self.classnames,
            "blocks": self.blocks,
            "selection": self.selection,
        }
        saved.save(directory, {**arrays, "start": self.start}, facts)


def load(directory: Path, backbone: ImageTextModel) -> FinetunedClassifier:
    """Return the classifier saved in ``directory``."""
    import torch

    facts = saved.load_facts(directory, ("classnames", "blocks", "selection"))
    names = tuple(facts["classnames"])
    C, D = len(names), backbone.embed_dim
    tuned = Tuned(backbone, facts["blocks"], (torch.zeros(C, D), torch.zeros(C)))
    shapes = {name: tuple(p.shape) for name, p in tuned.parameters.items()}
    arrays = saved.load_arrays(directory, {**shapes, "start": (C, D)})
    tuned.put({name: torch.from_numpy(arrays[name]) for name in shapes})
    return FinetunedClassifier(
        backbone, names, tuned, arrays["start"], facts["blocks"], facts["selection"]
    )
