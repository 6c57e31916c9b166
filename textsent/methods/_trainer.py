"""Training with Hugging Face's Trainer: its arguments, checkpoints, progress and history.

Imports torch and transformers: import it where work begins, not where a method is defined.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from sklearn.metrics import accuracy_score
from transformers import (
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import ParallelMode

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.processes import launched
from clipadapt.core.files.atomic import remove, scratch_folder
from clipadapt.core.files.pacing import Pacing
from clipadapt.tensor import ranks
from clipadapt.tensor.batching import PAD_TO
from clipadapt.tensor.devices import report_resumed
from textsent.methods import _checkpoints
from textsent.methods._packed import PackedClassifier, fast_dropout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.data import Dataset
    from transformers import (
        EvalPrediction,
        PreTrainedTokenizerBase,
        TrainerControl,
        TrainerState,
    )

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.progress import Tracker
    from textsent.methods._task import TrainingConfig

Rows = list[dict[str, Any]]

LOG_EVERY = 10  # steps between two values of the training loss


def token_rows(ids: Sequence[list[int]], labels: NDArray[np.int64]) -> Rows:
    """Return the Trainer's rows of tokenized texts."""
    return [{"input_ids": i, "labels": int(y)} for i, y in zip(ids, labels, strict=True)]


def state_rows(states: NDArray[np.float32], labels: NDArray[np.int64]) -> Rows:
    """Return the Trainer's rows of first states, shape ``(n, D)``, for :func:`~textsent.methods._network.head_of`."""
    first = torch.from_numpy(states).unsqueeze(1)  # (n, 1, D)
    return [{"inputs_embeds": s, "labels": int(y)} for s, y in zip(first, labels, strict=True)]


def train(
    model: nn.Module,
    train_rows: Rows | Dataset[dict[str, Any]],
    val_rows: Rows | None,
    config: TrainingConfig,
    ctx: RunContext,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    device: str,
    name: str,
    key: str,
    collate: Callable[[Rows], dict[str, torch.Tensor]] | None = None,
) -> dict[str, Any] | None:
    """Train ``model`` in place; return the epoch selected on val, or None without selection.

    After an epoch a checkpoint is written to ``ctx.work_dir`` if one is due, see :mod:`clipadapt.core.files.pacing`; a
    fit with an equal key resumes from it. The history in ``ctx`` includes the epochs before an interruption. On a CPU
    texts are packed if the model allows it, see :mod:`~textsent.methods._packed`.

    Args:
        model: The model; ``requires_grad`` marks the trainable parameters.
        train_rows: Rows of train.
        val_rows: Rows of val, or None.
        config: Hyperparameters.
        ctx: Seed, folder, progress and history.
        tokenizer: Pads the rows; None if they have one length.
        device: Device of the encoder.
        name: Name of the progress bar.
        key: Identifies equal fits; checkpoints with a different key are removed.
        collate: Joins rows to a batch; None pads them with ``tokenizer``.
    """
    folder = ctx.work_dir.resolve() / "trainer"
    checkpoint, device = _resumed_from(folder, key, ctx), ranks.own_device(device)
    if checkpoint is not None:
        report_resumed(ctx.services, device, f"seed {ctx.seed} of {name}")
    validate, padded = val_rows is not None, tokenizer is not None
    arguments = _arguments(config, folder, device, ctx.seed, validate=validate, padded=padded)
    packs = collate is None and padded and device == "cpu" and ctx.services.fast
    collate = collate or _collator(tokenizer)
    packed = _packed_form(model, collate, train_rows, val_rows) if packs else None
    with (
        ctx.progress.track(name, config.steps_for(len(cast("Any", train_rows))), "steps") as bar,
        _current(device),
        contextlib.nullcontext() if packed is None else fast_dropout(model),
    ):
        trainer = _Trainer(
            cast("Any", model),
            arguments,
            data_collator=cast("Any", collate),
            train_dataset=cast("Any", train_rows),
            eval_dataset=cast("Any", val_rows),
            compute_metrics=_accuracy,
            callbacks=[_ProgressCallback(bar)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints on stdout
        trainer.key, trainer.note, trainer.packed = key, ctx.progress.note, packed
        trainer.pacing = Pacing(_checkpoint_bytes(model), ctx.services.meter)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trainer.restore_best()
    return _logged(trainer, ctx, best=bool(arguments.load_best_model_at_end))


def _logged(trainer: Trainer, ctx: RunContext, *, best: bool) -> dict[str, Any] | None:
    """Write the history to ``ctx``; return the epoch selected on val if the best one is kept."""
    epochs = history(trainer.state.log_history)
    for epoch in epochs:
        ctx.log(**epoch)
    return _selection(epochs) if best else None


def _collator(tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """Return what joins rows to a batch; rows without a tokenizer have one length."""
    if tokenizer is None:
        return default_data_collator
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_TO)


def _packed_form(
    model: nn.Module, collate: Callable[[Rows], Any], *parts: Any
) -> PackedClassifier | None:
    """Return the packed form of a model, checked on the shortest and the longest rows, or None if it has none.

    It has none in several processes: they add up gradients after a forward pass of their own, which packing avoids.
    """
    if ranks.count() > 1:
        return None
    checked = []
    for rows in filter(None, parts):
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        checked += [rows[order[0]], rows[order[-1]]]
    return PackedClassifier.of(model, collate(checked))


def _resumed_from(folder: Path, key: str, ctx: RunContext) -> Path | None:
    """Return the checkpoint to resume from, which the main process chooses for all.

    Raises:
        ConfigError: If several processes run a program that does not divide the fit between them.
    """
    launch = launched()
    if launch is not None and ranks.count() == 1:
        raise ConfigError(
            f"this fit was started in {launch.count} processes at once",
            hint="start the program without the launcher, or use torchrun --no-python textsent run",
        )
    newest = ranks.from_main(
        lambda: str(_checkpoints.newest_valid(folder, key, ctx.progress.note) or "")
    )
    return Path(newest) if newest else None


def _selection(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the epoch with the best val accuracy, the first of equal ones as in the Trainer."""
    chosen = max(epochs, key=lambda e: e["val_accuracy"])
    return {"epoch": chosen["epoch"], "by": "val accuracy", "value": chosen["val_accuracy"]}


def _arguments(
    config: TrainingConfig, folder: Path, device: str, seed: int, *, validate: bool, padded: bool
) -> _Arguments:
    """Return the Trainer's arguments.

    Args:
        config: Hyperparameters.
        folder: Folder of the checkpoints.
        device: Device of the encoder.
        seed: Seed of the run.
        validate: Whether there is a val split.
        padded: Whether the rows have different lengths.
    """
    best = validate and config.keep == "best"
    return _Arguments(
        on=device,
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size // ranks.count(),
        per_device_eval_batch_size=config.eval_batch_size,
        learning_rate=config.lr,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        bf16=config.precision == "bf16",
        train_sampling_strategy="group_by_length"
        if config.group_by_length and padded
        else "random",
        eval_strategy="epoch" if validate else "no",
        save_strategy="epoch",
        load_best_model_at_end=best,
        metric_for_best_model="accuracy" if best else None,
        greater_is_better=True if best else None,
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,  # the history shows a loss that is not finite
        average_tokens_across_devices=False,  # it multiplies a loss that is a mean by the number of processes
        seed=seed % 2**32,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        report_to="none",
        disable_tqdm=True,
    )


@dataclass
class _Arguments(TrainingArguments):
    """The Trainer's arguments with a given device, which the Trainer would otherwise choose itself.

    Attributes:
        on: The device: ``cpu``, ``cuda:1``, ``mps``.
        saves: Whether a checkpoint is being written, which the main process does without waiting for others.
    """

    on: str = "cpu"
    saves: bool = False

    @property
    def parallel_mode(self) -> ParallelMode:
        """How the Trainer uses several devices."""
        return ParallelMode.NOT_DISTRIBUTED if self.saves else super().parallel_mode

    @cached_property
    def _setup_devices(self) -> torch.device:
        inherited: Any = TrainingArguments.__dict__["_setup_devices"]
        inherited.func(self)  # builds the library's shared state
        device = torch.device(self.on)
        self._n_gpu = min(self._n_gpu, 1)  # the Trainer multiplies the batch by the number of GPUs
        self.distributed_state.device = device
        return device


def _current(device: str) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU the current one: checkpoints hold the random state of the current GPU."""
    on_cuda = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.device(device) if on_cuda else contextlib.nullcontext()


def history(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per epoch from what the Trainer logged every few steps and after each epoch."""
    epochs: dict[int, dict[str, Any]] = {}
    seen, losses = 0, [0.0]
    for entry in entries:
        number = math.ceil(entry["epoch"] - 1e-6)
        if number not in epochs and ("loss" in entry or "eval_loss" in entry):
            epochs[number], losses, begun = {"epoch": number}, [], seen
        if "loss" in entry:
            losses.append(entry["loss"] * (entry["step"] - seen))
            seen = entry["step"]
            epochs[number] |= {
                "step": seen,
                "train_loss": sum(losses) / (seen - begun),
                "learning_rate": entry["learning_rate"],
            }
        elif "eval_loss" in entry:
            epochs[number] |= {
                "val_loss": entry["eval_loss"],
                "val_accuracy": entry["eval_accuracy"],
            }
    return list(epochs.values())


class _Trainer(Trainer):
    """Keeps the last and the best checkpoint, with checksums; a fit continues if one cannot be written.

    The best epoch's parameters stay in memory until a checkpoint is due.
    """

    key: str
    note: Callable[[str], None]
    pacing: Pacing
    packed: PackedClassifier | None = None
    unsaved: dict[str, torch.Tensor] | None = None  # best parameters, if not in a checkpoint
    warned = False
    random_states: Sequence[bytes] = ()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss of a batch, and its logits on request."""
        if self.packed is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.accelerator.autocast():
            outputs = self.packed(inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.random_states = self._random_states()
        if not ranks.is_main():
            return
        if self.pacing.due():
            arguments = cast("_Arguments", self.args)
            arguments.saves = True
            with self.pacing.writing():
                self._write_checkpoint(model, trial)
            arguments.saves = False
        elif self._is_best():
            self._keep_best()

    def _random_states(self) -> list[bytes]:
        """Return the files of random states of all processes if there are several; all must take part."""
        if ranks.count() == 1:
            return []
        with scratch_folder() as folder:
            super()._save_rng_state(str(folder))
            (path,) = folder.iterdir()
            return ranks.gathered(path.read_bytes())

    def _save_rng_state(self, output_dir: str) -> None:
        if not self.random_states:
            super()._save_rng_state(output_dir)
        for rank, state in enumerate(self.random_states):
            Path(output_dir, f"rng_state_{rank}.pth").write_bytes(state)

    def _write_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the state of the fit, and the best epoch's parameters if no checkpoint holds them."""
        state = self.state
        folder = Path(str(self.args.output_dir))
        checkpoint = folder / f"checkpoint-{state.global_step}"
        best = folder / f"checkpoint-{state.best_global_step}"
        try:
            if self.unsaved is not None and not self._is_best():
                self._save(
                    str(best),
                    state_dict={**cast("nn.Module", self.model).state_dict(), **self.unsaved},
                )
                _checkpoints.seal(best, self.key)
            super()._save_checkpoint(model, trial)
            _checkpoints.seal(checkpoint, self.key)
        # On a full disk torch and safetensors raise errors of their own.
        except (OSError, RuntimeError, SafetensorError) as err:
            self._not_written(checkpoint, best, err)
            return
        self.unsaved = None
        for other in _checkpoints.newest_first(folder):
            if other not in {checkpoint, best}:
                remove(other)

    def _not_written(self, checkpoint: Path, best: Path, err: Exception) -> None:
        """Remove what was written of a checkpoint, keep the best parameters and warn once."""
        with contextlib.suppress(OSError):
            remove(checkpoint)
            if self.unsaved is not None:
                remove(best)
        if self._is_best():
            self._keep_best()
        if not self.warned:
            self.note(
                f"warning: cannot write the checkpoint {checkpoint} ({err}); the fit continues, but "
                "if it is interrupted it resumes from an earlier checkpoint"
            )
        self.warned = True

    def _is_best(self) -> bool:
        return self.state.best_global_step == self.state.global_step

    def _keep_best(self) -> None:
        self.unsaved = {n: p.detach().clone() for n, p in _trainable(self.model)}

    def restore_best(self) -> None:
        """Restore the best epoch's weights if no checkpoint holds them."""
        if self.unsaved is not None:
            with torch.no_grad():
                for name, parameter in _trainable(self.model):
                    parameter.copy_(self.unsaved[name])


def _checkpoint_bytes(model: Any) -> int:
    """Return about how large a checkpoint is: the weights, and two values of AdamW for each trainable one."""
    trained = sum(p.nbytes for _, p in _trainable(model))
    whole = sum(p.nbytes for p in model.parameters())
    return 2 * trained + (trained if hasattr(model, "peft_config") else whole)


def _trainable(model: Any) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _accuracy(predicted: EvalPrediction) -> dict[str, float]:
    logits = predicted.predictions
    if isinstance(logits, tuple):  # some architectures also return states
        logits = logits[0]
    return {"accuracy": float(accuracy_score(predicted.label_ids, logits.argmax(axis=-1)))}


class _ProgressCallback(TrainerCallback):
    """Shows steps, loss and val accuracy, and logs the loss at the end of each epoch too."""

    def __init__(self, bar: Tracker) -> None:
        self.bar = bar
        self.shown: dict[str, float] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self.bar.advance(state.global_step)  # steps before an interruption

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self.shown["epoch"] = math.ceil(state.epoch or 0)
        self.bar.advance(1, **self.shown)

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        control.should_log = True  # otherwise a resumed fit would lose the last steps' loss
        return control

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        for name, shown in (("loss", "loss"), ("eval_accuracy", "val_accuracy")):
            if name in logs:
                self.shown[shown] = logs[name]
