"""The one training loop of the CLIP methods: schedules, selection on val, history, and resuming after an interruption.

A method passes :func:`train` an :class:`Objective`: named tensors and the loss of a batch of rows. Random numbers
(batch order, dropout) come from named streams or from a generator stored in the checkpoint, so a resumed fit is
bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator

from clipadapt.core.api import limits
from clipadapt.core.api.errors import ConfigError, DivergedError
from clipadapt.core.api.limits import BatchSize, Epochs, WarmupSteps
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files.atomic import write_bytes
from clipadapt.core.files.pacing import Pacing
from clipadapt.core.files.resume import resume_key
from clipadapt.core.scoring.scores import nll, topk_accuracy
from clipadapt.methods import _checkpoint
from clipadapt.tensor.devices import report_resumed
from clipadapt.tensor.moves import placed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Split, Task
    from clipadapt.core.api.model import Backbone

Gradients = tuple["torch.Tensor", ...]
CHECKPOINT: Final = "checkpoint.safetensors"
READ_STEPS: Final = 16
"""Steps between readings of the loss on a GPU: reading it makes the host wait for the device."""
VAL_TIMES: Final = 20
"""Evaluations on val per fit, unless the best epoch is selected by val."""


class TrainingConfig(MethodConfig):
    """Hyperparameters shared by all trained methods; each method sets the defaults of its paper.

    Attributes:
        optimizer: ``sgd`` (momentum, no dampening), ``adam`` (L2 in the gradient) or ``adamw``.
        lr: Peak learning rate.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        eps: Term added to Adam's denominator.
        schedule: ``dassl``: per epoch, ``warmup_epochs`` at ``warmup_lr``, then a cosine decay that begins at ``lr``
            and does not reach zero. ``dassl_step``: per step, ``warmup_lr``, a linear warm-up, then the same cosine.
            ``cosine``: per step, down to ``min_lr``. ``constant``.
        warmup_epochs: Epochs at ``warmup_lr`` (dassl).
        warmup_lr: Learning rate of the warm-up epochs (dassl) or of the first step (dassl_step).
        warmup_steps: Steps of linear warm-up (all but dassl); below 1, a fraction of all steps.
        min_lr: Final learning rate of the cosine schedule.
        epochs: Passes over train; 0 keeps the initial values.
        batch_size: Images per step.
        drop_last: Drop the last batch of an epoch if it is incomplete.
        clip_norm: Maximum norm of the gradient, or None.
        keep: ``last`` step, or ``best`` epoch by val accuracy (the earliest on ties; the last without val).
        augment: ``none`` reads cached features if a step needs nothing else; ``crop_flip`` draws a new random
            resized crop and flip each epoch.
        smallest_crop: Minimum fraction of the image area in a crop.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 2e-3
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 5e-4
    eps: PositiveFloat = 1e-8
    schedule: Literal["dassl", "dassl_step", "cosine", "constant"] = "dassl"
    warmup_epochs: Epochs = 1
    warmup_lr: PositiveFloat = 1e-5
    warmup_steps: WarmupSteps = 0
    min_lr: NonNegativeFloat = 0.0
    epochs: Epochs = 200
    batch_size: BatchSize = 32
    drop_last: bool = False
    clip_norm: PositiveFloat | None = None
    keep: Literal["last", "best"] = "last"
    augment: Literal["none", "crop_flip"] = "crop_flip"
    smallest_crop: float = Field(default=0.08, gt=0, le=1)

    @field_validator("lr", "warmup_lr", "min_lr", "weight_decay", "eps")
    @classmethod
    def _fits_float32(cls, value: float) -> float:
        return limits.fits_float32(value)

    def examples_for(self, train: Split[Any]) -> int:
        """Return the number of examples in an epoch; a method that trains on several crops at once has more."""
        return len(train)

    def steps_for(self, train: Split[Any]) -> int:
        """Return the number of training steps."""
        whole, rest = divmod(self.examples_for(train), self.batch_size)
        return self.epochs * (whole + bool(rest and not (self.drop_last and whole)))

    def images_for(self, train: Split[Any]) -> int:
        """Return the number of images that the training steps read."""
        per_epoch, rest = len(train), len(train) % self.batch_size
        if self.drop_last and rest < per_epoch:
            per_epoch -= rest
        return self.epochs * per_epoch

    def check(self, task: Task[Any]) -> None:
        """Check that the warm-up ends before training does."""
        if not self.epochs or task.train is None or not len(task.train):
            return
        if self.schedule != "dassl":
            limits.check_warmup(self.warmup_steps, self.steps_for(task.train))
        elif self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"the schedule has {self.epochs} epochs but {self.warmup_epochs} warm-up epochs: the learning rate "
                f"would stay at method.warmup_lr",
                hint=f"increase method.epochs, or set method.warmup_epochs to {self.epochs - 1} or less",
            )


@dataclass(frozen=True, slots=True)
class Objective:
    """The parameters that :func:`train` optimizes, their loss, and their evaluation on val.

    Attributes:
        name: Name of the method, for random streams and messages.
        parameters: Trainable tensors by name; float32 leaves that require a gradient.
        loss: Maps rows of train and the view of the epoch (0 without augmentation) to the loss.
        n: Number of training examples.
        val_scores: Returns the scores on val for the current parameters, shape ``(m, C)``; None without val.
        val: Labels of val.
        key: Hash of everything else that affects the result, see :func:`key_of`; a checkpoint with a different key is
            ignored.
        state: Other tensors that ``loss`` or ``after_epoch`` changes in place; they belong to the checkpoint and to the
            best epoch.
        after_epoch: Called with the index of an epoch after its last step, before the evaluation on val.
        every: Number of steps between evaluations on val, the first after step 1; None evaluates after epochs.
        max_batches: Maximum number of batches per epoch; None for all.
        prefer_last: Whether ``keep: best`` keeps the latest of several equally good evaluations.
        combine: For a loss that is a tensor of several losses: makes the gradients of the parameters from those of
            each loss, all in the order of ``parameters``. The first loss is the one that is reported.
    """

    name: str
    parameters: Mapping[str, torch.Tensor]
    loss: Callable[[NDArray[np.int64], int], torch.Tensor]
    n: int
    val_scores: Callable[[], NDArray[np.float32]] | None = None
    val: NDArray[np.int64] | None = None
    key: str = ""
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    after_epoch: Callable[[int], None] | None = None
    every: int | None = None
    max_batches: int | None = None
    prefer_last: bool = False
    combine: Callable[[list[Gradients]], Gradients] | None = None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and state."""
        return {**self.parameters, **self.state}

    @classmethod
    def of(
        cls,
        name: str,
        parameters: Mapping[str, torch.Tensor],
        loss: Callable[[NDArray[np.int64], int], torch.Tensor],
        val_scores: Callable[[], NDArray[np.float32]] | None,
        backbone: Backbone,
        task: Task[Any],
        **more: Any,
    ) -> Objective:
        """Return the objective of a method that trains on ``task.train`` and evaluates on ``task.val``."""
        assert task.train is not None
        val = None if task.val is None else task.val.labels
        key = key_of(backbone, task)
        return cls(name, parameters, loss, len(task.train), val_scores, val, key, **more)


@dataclass(slots=True)
class _State:
    """Progress of a fit; part of the checkpoint."""

    epoch: int = 0
    index: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    objective: Objective, config: TrainingConfig, ctx: RunContext, *, steps: int | None = None
) -> dict[str, Any] | None:
    """Train ``objective.parameters`` in place.

    Args:
        objective: Parameters and loss.
        config: Hyperparameters.
        ctx: Batch order, checkpoint folder, history and progress.
        steps: Number of training steps; None trains for ``config.epochs``.

    Returns:
        The epoch selected on val and its accuracy, or None.

    Raises:
        DivergedError: If the loss or a score on val is not finite.
    """
    import torch

    with torch.random.fork_rng(devices=_gpus(objective.parameters)):
        torch.manual_seed(int(ctx.rng(f"{objective.name}.torch").integers(2**62)))
        return _Loop(objective, config, ctx, steps).run()


def learning_rate(config: TrainingConfig, epoch: int, step: int, epochs: int, steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        config: The schedule.
        epoch: Index of the epoch, from 0.
        step: Index of the step over all epochs, from 0.
        epochs: Number of epochs.
        steps: Number of steps over all epochs.
    """
    if config.schedule == "dassl":
        if epoch < config.warmup_epochs:
            return config.warmup_lr
        return 0.5 * config.lr * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / epochs))
    warm = warmup_of(config.warmup_steps, steps)
    if config.schedule == "dassl_step":
        if step < warm:
            return config.lr * step / warm if step else config.warmup_lr
        return 0.5 * config.lr * (1 + math.cos(math.pi * (step - warm) / steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    done = (step - warm) / max(steps - warm, 1)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * done))


def warmup_of(warmup_steps: float, steps: int) -> int:
    """Return the number of warm-up steps, counted as Hugging Face's Trainer counts them."""
    return int(warmup_steps) if warmup_steps >= 1 else math.ceil(warmup_steps * steps)


def view_of(config: TrainingConfig, epoch: int, seed: int) -> int:
    """Return the augmented view for an epoch and seed; 0 is the image without augmentation."""
    return 0 if config.augment == "none" else 1 + epoch + (abs(seed) << 24)


class _Loop:
    def __init__(
        self, objective: Objective, config: TrainingConfig, ctx: RunContext, steps: int | None
    ) -> None:
        import torch

        self.objective, self.config, self.ctx = objective, config, ctx
        self.per_epoch = len(self._batches(0)) if config.epochs or steps else 0
        self.steps = config.epochs * self.per_epoch if steps is None else steps
        self.epochs = math.ceil(self.steps / self.per_epoch) if self.per_epoch else 0
        self.parameters = list(objective.parameters.values())
        self.optimizer = _optimizer(torch, self.parameters, config)
        self.state = _State()
        self.best: dict[str, torch.Tensor] = {}
        self.key = fit_key(objective, config, ctx, self.steps)  # it covers the initial values
        # Parameters, best parameters, and at most two more values of each in the optimizer.
        size = 4 * sum(t.nbytes for t in objective.tensors.values())
        self.pacing = Pacing(size, ctx.services.meter)
        self.warned = False  # whether the user was warned that checkpoints cannot be written
        self.unread: list[tuple[int, torch.Tensor]] = []  # steps, and their losses on the device
        on_host = all(p.device.type == "cpu" for p in self.parameters)
        self.read_every = 1 if on_host or ctx.observe else READ_STEPS

    def run(self) -> dict[str, Any] | None:
        self._resume()
        state = self.state
        with self.ctx.progress.track(self.objective.name, self.steps, "steps") as bar:
            bar.advance(state.step)
            shown: dict[str, float] = {}
            while state.step < self.steps:
                batches = self._batches(state.epoch)
                for rows in batches[state.index :]:
                    self._step(rows)
                    if state.losses:
                        shown["loss"] = state.losses[-1]
                    self._evaluate_if_due(shown)
                    bar.advance(1, epoch=state.epoch + 1, **shown)
                    if state.step == self.steps:
                        break
                    self._save_if_due()
                self._read()
                shown["loss"] = state.losses[-1]
                self._end_epoch(shown)
        for line in state.history:
            self.ctx.log(**line)
        return self._selected()

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        own, config = self.objective, self.config
        batches = self.ctx.batches(
            own.name, own.n, config.batch_size, epoch, drop_last=config.drop_last
        )
        return batches[: own.max_batches]

    def _step(self, rows: NDArray[np.int64]) -> None:
        """Take one optimizer step; on a GPU the loss before it is read some steps later."""
        import torch

        config, state = self.config, self.state
        lr = learning_rate(config, state.epoch, state.step, self.epochs, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(rows, view_of(config, state.epoch, self.ctx.seed))
        self.unread.append((state.step + 1, self._backward(loss)))
        if len(self.unread) >= self.read_every:
            self._read()
        if self.ctx.observe:
            self.ctx.observe("lr", lr)
            self.ctx.observe("loss", state.losses[-1])
            self.ctx.observe("grad", {n: p.grad for n, p in self.objective.parameters.items()})
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()
        state.step += 1
        state.index += 1

    def _read(self) -> None:
        """Add the losses on the device to those of the epoch.

        Raises:
            DivergedError: If one is not finite.
        """
        import torch

        if not self.unread:
            return
        values = torch.stack([loss for _, loss in self.unread]).cpu().tolist()
        for (step, _), value in zip(self.unread, values, strict=True):
            if not math.isfinite(value):
                raise self._diverged("the loss is", step)
        self.unread.clear()
        self.state.losses += values

    def _backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Set the gradients of the parameters; return the loss, the first of several."""
        import torch

        if self.objective.combine is None:
            loss.backward()
            return loss.detach()
        each = [
            torch.autograd.grad(one, self.parameters, retain_graph=i + 1 < len(loss))
            for i, one in enumerate(loss)
        ]
        for parameter, gradient in zip(self.parameters, self.objective.combine(each), strict=True):
            parameter.grad = gradient
        return loss[0].detach()

    def _diverged(self, what: str, step: int) -> DivergedError:
        return DivergedError(
            f"{self.objective.name}: {what} not finite at step {step} of {self.steps}",
            hint="lower the learning rate: --set method.lr=...",
        )

    def _end_epoch(self, shown: dict[str, float]) -> None:
        """Log the epoch, and evaluate on val if due."""
        state, config = self.state, self.config
        if self.objective.after_epoch is not None:
            self.objective.after_epoch(state.epoch)
        line: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "train_loss": float(np.mean(state.losses)),
            # Not read from the optimizer, which has not taken a step yet after a resume.
            "learning_rate": learning_rate(
                config, state.epoch, state.step - 1, self.epochs, self.steps
            ),
        }
        if self.objective.every is None and self._due(last=state.step == self.steps):
            line |= self._evaluate(shown)
        if self.ctx.observe:
            self.ctx.observe("epoch", state.epoch)
        state.history.append(line)
        state.epoch, state.index, state.losses = state.epoch + 1, 0, []

    def _evaluate_if_due(self, shown: dict[str, float]) -> None:
        """Evaluate on val and log it, if the objective is evaluated every few steps."""
        every, state = self.objective.every, self.state
        if every is None or (state.step - 1) % every:
            return
        self._read()
        found = self._evaluate(shown)
        if found:
            state.history.append({"epoch": state.epoch + 1, "step": state.step, **found})

    def _evaluate(self, shown: dict[str, float]) -> dict[str, float]:
        """Evaluate on val and keep the best parameters; return accuracy and loss, or nothing without val."""
        state, own = self.state, self.objective
        if own.val_scores is None or own.val is None:
            return {}
        scores = own.val_scores()
        if not np.isfinite(scores).all():
            raise self._diverged("the scores on val are", state.step)
        accuracy = topk_accuracy(scores, own.val, 1)
        shown["val_accuracy"] = accuracy
        if self.config.keep == "best" and self._is_better(accuracy):
            by = "val accuracy" if own.every is None else f"val accuracy (step={state.step})"
            state.best = {"epoch": state.epoch + 1, "by": by, "value": accuracy}
            self.best = {n: t.detach().clone() for n, t in own.tensors.items()}
        return {"val_accuracy": accuracy, "val_loss": nll(scores, own.val)}

    def _is_better(self, accuracy: float) -> bool:
        best = self.state.best
        if best is None or accuracy > best["value"]:
            return True
        return self.objective.prefer_last and accuracy == best["value"]

    def _due(self, *, last: bool) -> bool:
        every = max(1, self.epochs // VAL_TIMES)
        return self.config.keep == "best" or last or (self.state.epoch + 1) % every == 0

    def _selected(self) -> dict[str, Any] | None:
        import torch

        if self.state.best is None:
            return None
        with torch.no_grad():
            for name, tensor in self.best.items():
                self.objective.tensors[name].copy_(tensor)
        return self.state.best

    # ------------------------------------------------------------ checkpoints

    def _path(self) -> Path:
        return self.ctx.work_dir / CHECKPOINT

    def _save_if_due(self) -> None:
        if self.pacing.due():
            self._read()
            with self.pacing.writing():
                self._save()

    def _save(self) -> None:
        import torch

        tensors = {f"parameter.{n}": t.detach() for n, t in self.objective.tensors.items()}
        tensors |= {f"best.{n}": t for n, t in self.best.items()}
        tensors["rng"] = torch.get_rng_state()
        for i, gpu in enumerate(_gpus(self.objective.parameters)):
            tensors[f"rng.{i}"] = torch.cuda.get_rng_state(gpu)
        for i, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{i}.{name}"] = value
        content = _checkpoint.packed(tensors, self.key, json.dumps(dataclasses.asdict(self.state)))
        try:
            self.ctx.work_dir.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path(), content)
        except OSError as err:  # training does not depend on the checkpoint
            if not self.warned:
                self.ctx.progress.note(
                    f"warning: {self.objective.name}: cannot write the checkpoint {self._path()} "
                    f"({err.strerror or err}); the fit continues, but cannot be resumed after a kill"
                )
            self.warned = True

    def _resume(self) -> None:
        """Restore the checkpoint of an interrupted fit with the same key, if there is a valid one."""
        import torch

        path = self._path()
        found = _checkpoint.read(path)
        if isinstance(found, str):
            self.ctx.progress.note(
                f"warning: {self.objective.name}: the checkpoint {path} is damaged and ignored "
                f"({found}); the fit starts from the beginning"
            )
        if found is None or isinstance(found, str) or found.key != self.key:
            return
        tensors = found.tensors
        self.state = _State(**json.loads(found.state))
        with torch.no_grad():
            for name, tensor in self.objective.tensors.items():
                tensor.copy_(tensors[f"parameter.{name}"])
        self.best = {
            n.removeprefix("best."): t.to(self.parameters[0].device)
            for n, t in tensors.items()
            if n.startswith("best.")
        }
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, i, entry = name.split(".", 2)
                parameter = self.parameters[int(i)]
                place = value if entry == "step" else value.to(parameter.device)
                self.optimizer.state[parameter][entry] = place
        torch.set_rng_state(tensors["rng"])
        for number, gpu in enumerate(_gpus(self.objective.parameters)):
            torch.cuda.set_rng_state(tensors[f"rng.{number}"], gpu)
        self.ctx.progress.note(f"{self.objective.name}: resumed after step {self.state.step}")
        device = str(self.parameters[0].device)
        report_resumed(self.ctx.services, device, f"seed {self.ctx.seed} of {self.objective.name}")


def _gpus(parameters: Mapping[str, torch.Tensor]) -> list[int]:
    """Return the indices of the GPUs that hold parameters; dropout uses their random generators."""
    import torch

    if not torch.cuda.is_initialized():
        return []
    places = {p.device for p in parameters.values() if p.device.type == "cuda"}
    return sorted(p.index or 0 for p in places)


def fit_key(
    objective: Objective, config: TrainingConfig, ctx: RunContext, steps: int | None
) -> str:
    """Return a hash of everything that a fit depends on, with the current values as the initial ones."""
    import torch

    own = objective
    facts = [own.name, config.model_dump(mode="json"), ctx.seed, steps, own.n]
    shapes = [(n, tuple(p.shape)) for n, p in own.tensors.items()]
    starts = _checkpoint.fingerprint({n: p.detach().cpu() for n, p in own.tensors.items()})
    more = [own.every, own.max_batches, own.prefer_last]
    whole = [*facts, *more, shapes, starts, own.key, str(torch.__version__)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def key_of(model: Backbone, task: Task[Any]) -> str:
    """Return a hash of a fit's inputs: the model's weights, class names, templates, examples and labels."""
    facts = {
        "classnames": task.classnames,
        "templates": task.templates,
        "weights": model.weights_sha256,
        "dtype": model.dtype,
    }
    return resume_key(facts, (task.train, task.val))


def _optimizer(torch: Any, parameters: list[Any], config: TrainingConfig) -> Any:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, eps=config.eps, weight_decay=config.weight_decay)


def nonempty(val: Split[Any] | None) -> Split[Any] | None:
    """Return val, or None if it is empty."""
    return None if val is None or not len(val) else val


def parameter(
    ctx: RunContext, name: str, default: NDArray[Any], device: str = "cpu"
) -> torch.Tensor:
    """Return a trainable float32 tensor whose value is :meth:`RunContext.initial` of ``default``."""
    import torch

    value = np.array(ctx.initial(name, default), dtype=np.float32)
    return torch.from_numpy(value).to(device).requires_grad_()


def linear_start(
    rng: np.random.Generator, shape: tuple[int, ...], fan_in: int
) -> NDArray[np.float32]:
    """Draw the initial weight or bias of a linear layer with ``fan_in`` inputs as ``torch.nn.Linear`` does."""
    bound = fan_in**-0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def cross_entropy(
    logits: torch.Tensor, labels: NDArray[np.int64], rows: NDArray[np.int64]
) -> torch.Tensor:
    """Return the mean cross-entropy of logits ``(b, C)`` with the labels of ``rows``."""
    import torch.nn.functional as F

    return F.cross_entropy(logits, placed(labels[rows], logits.device))
