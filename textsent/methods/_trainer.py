"""The one set-up of Hugging Face's Trainer, the forward passes outside it, and the export.

Imports the framework: to be imported where work begins, not where a method is defined.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.trainer_callback import PrinterCallback, TrainerState
from transformers.trainer_pt_utils import safe_globals

from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.method import Exported
from clipadapt.core.files.atomic import remove, write_text
from clipadapt.core.files.checksums import (
    checksums,
    first_changed,
    read_sealed_json,
    write_sealed_json,
)
from clipadapt.tensor.batching import PAD_TO, n_filler, padded_batches
from textsent.models._build import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from transformers import (
        EvalPrediction,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerControl,
    )

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.progress import Tracker
    from textsent.methods._task import TrainingConfig
    from textsent.models import TextEncoder

Rows = list[dict[str, Any]]

LOG_EVERY = 10  # steps between two values of the training loss
PREDICT_BATCH = 64
TOLERANCE = 1e-5  # between the logits of the whole model and those of its head on the first state
CHECKSUMS = "checksums.json"  # written last: a checkpoint without it is not whole
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


# ---------------------------------------------------------------- training


def piece_rows(ids: Sequence[list[int]], labels: NDArray[np.int64]) -> Rows:
    """Return the rows of a data set of tokenised texts."""
    return [{"input_ids": i, "labels": int(y)} for i, y in zip(ids, labels, strict=True)]


def state_rows(states: NDArray[np.float32], labels: NDArray[np.int64]) -> Rows:
    """Return the rows of a data set of first states, shape ``(n, D)``, for :func:`head_of`."""
    first = torch.from_numpy(states).unsqueeze(1)  # (n, 1, D)
    return [{"inputs_embeds": s, "labels": int(y)} for s, y in zip(first, labels, strict=True)]


@dataclass
class _Arguments(TrainingArguments):
    """The Trainer's arguments for one device, which the Trainer would else choose itself.

    Attributes:
        on: The device: ``cpu``, ``cuda:1``, ``mps``.
    """

    on: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        inherited: Any = TrainingArguments.__dict__["_setup_devices"]
        inherited.func(self)  # builds the library's shared state
        device = torch.device(self.on)
        self._n_gpu = min(
            self._n_gpu, 1
        )  # with several the batch would be multiplied by their number
        self.distributed_state.device = device
        return device


def _current(device: str) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU the current one for a while: its random numbers are those that checkpoints hold."""
    on_cuda = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.device(device) if on_cuda else contextlib.nullcontext()


def train(
    model: PreTrainedModel,
    train_rows: Rows,
    val_rows: Rows | None,
    config: TrainingConfig,
    ctx: RunContext,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    device: str,
    name: str,
    key: str,
) -> dict[str, Any] | None:
    """Train ``model`` in place; return the epoch chosen on val, or None where nothing is chosen.

    Checkpoints are written at the end of each epoch to ``ctx.work_dir``, whence an equal fit goes on. The
    history is written to ``ctx`` in whole, also that of epochs before a kill.

    Args:
        model: What is trained; ``requires_grad`` says which parameters.
        train_rows: Rows of train.
        val_rows: Rows of val, or None.
        config: Hyperparameters.
        ctx: Seed, folder, progress and history.
        tokenizer: Pads the rows; None where they are of one length.
        device: Device of the encoder.
        name: Shown beside the bar.
        key: What tells an equal fit; checkpoints of another are removed.
    """
    folder = ctx.work_dir.resolve() / "trainer"
    checkpoint = last_whole_checkpoint(folder, key, ctx.progress.note)
    best = val_rows is not None and config.keep == "best"
    arguments = _Arguments(
        on=device,
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        learning_rate=config.lr,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        bf16=config.precision == "bf16",
        train_sampling_strategy="group_by_length"
        if config.group_by_length and tokenizer is not None
        else "random",
        eval_strategy="no" if val_rows is None else "epoch",
        save_strategy="epoch",
        load_best_model_at_end=best,
        metric_for_best_model="accuracy" if best else None,
        greater_is_better=True if best else None,
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,  # a loss that is not finite belongs in the history
        seed=ctx.seed % 2**32,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    steps = config.steps_for(len(train_rows))
    with ctx.progress.track(name, steps, "steps") as bar, _current(device):
        trainer = _Trainer(
            model,
            arguments,
            data_collator=default_data_collator
            if tokenizer is None
            else DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_TO),
            train_dataset=cast("Any", train_rows),
            eval_dataset=cast("Any", val_rows),
            compute_metrics=_accuracy,
            callbacks=[_Watch(bar)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints on stdout
        trainer.key, trainer.note = key, ctx.progress.note
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trainer.take_best()
    epochs = history(trainer.state.log_history)
    for epoch in epochs:
        ctx.log(**epoch)
    if not best:
        return None
    chosen = max(
        epochs, key=lambda e: e["val_accuracy"]
    )  # the first of equals, as the Trainer has it
    return {"epoch": chosen["epoch"], "by": "val accuracy", "value": chosen["val_accuracy"]}


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


def last_whole_checkpoint(folder: Path, key: str, note: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint whose every file is as it was written, or None.

    Removed are newer ones, each named with its damage, and without a word those of a fit with another key.
    """
    damaged: list[str] = []
    chosen = None
    for checkpoint in _newest_first(folder):
        try:
            if _made_by(checkpoint) == key:
                _check(checkpoint, key)
                chosen = checkpoint
                break
        except _DamagedError as err:
            damaged.append(f"{checkpoint} ({err})")
        remove(checkpoint)
    if damaged:
        then = "starts from the beginning" if chosen is None else f"resumes from {chosen.name}"
        note(
            f"warning: damaged or unfinished checkpoints are ignored: {', '.join(damaged)}; the fit {then}"
        )
    return chosen


class _DamagedError(Exception):
    """A checkpoint that is not what was written; says why."""


def _newest_first(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)


def _seal(checkpoint: Path, key: str) -> None:
    """Write the checksums of a checkpoint's files."""
    write_sealed_json(checkpoint / CHECKSUMS, {"key": key, "files": checksums(checkpoint)})


def _made_by(checkpoint: Path) -> str:
    """Return the key of the fit that wrote a checkpoint, its files compared with their checksums.

    Raises:
        _DamagedError: If one differs.
    """
    try:
        facts = read_sealed_json(checkpoint / CHECKSUMS)
    except FileNotFoundError:
        raise _DamagedError(f"it has no {CHECKSUMS}") from None
    except (OSError, ValueError):
        raise _DamagedError(CHECKSUMS) from None
    changed = first_changed(checkpoint, facts["files"], CHECKSUMS)
    if changed:
        raise _DamagedError(changed)
    return str(facts["key"])


def _check(checkpoint: Path, key: str) -> None:
    """Check that the Trainer can read it all, the best epoch's weights included; nothing that it holds is run.

    Raises:
        _DamagedError: If not.
    """
    try:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = checkpoint.parent / f"checkpoint-{state.best_global_step or state.global_step}"
        moved = state.best_global_step and Path(str(state.best_model_checkpoint)) != best
        with safe_globals():
            for name in PICKLED:
                torch.load(checkpoint / name, map_location="cpu", weights_only=True, mmap=True)
        for place in (checkpoint, best):
            (weights,) = (place / name for name in WEIGHTS if (place / name).is_file())
            with safe_open(weights, framework="numpy"):
                pass
    except Exception as err:  # whatever such a file makes a library raise
        raise _DamagedError(f"{type(err).__name__}: {str(err).partition(chr(10))[0]}") from err
    if moved:
        raise _DamagedError("its folder was moved, and its best epoch is known by the old place")
    if best != checkpoint and _made_by(best) != key:
        raise _DamagedError(f"{best.name} is of another fit")


class _Trainer(Trainer):
    """Keeps the last checkpoint and the best, with checksums; that one cannot be written does not end the fit."""

    key: str
    note: Callable[[str], None]
    unsaved: dict[str, torch.Tensor] | None = None  # the best epoch's, where its checkpoint is not
    warned = False

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        state = self.state
        is_best = state.best_global_step == state.global_step
        if self.unsaved is not None and not is_best:
            return  # no fit could go on from it: the best epoch's weights are not there
        checkpoint = Path(str(self.args.output_dir), f"checkpoint-{state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
            _seal(checkpoint, self.key)
        # Of a full disk torch and safetensors make errors of their own.
        except (OSError, RuntimeError, SafetensorError) as err:
            with contextlib.suppress(OSError):
                remove(checkpoint)
            if is_best:
                self.unsaved = {n: p.detach().clone() for n, p in _trainable(self.model)}
            if not self.warned:
                self.note(
                    f"warning: cannot write the checkpoint {checkpoint} ({err}); the fit continues; "
                    "after a kill it would resume from an earlier one"
                )
            self.warned = True
            return
        self.unsaved = None
        for other in _newest_first(checkpoint.parent):
            if other.name not in {checkpoint.name, f"checkpoint-{state.best_global_step}"}:
                remove(other)

    def take_best(self) -> None:
        """Put the best epoch's weights in the model where no checkpoint holds them."""
        if self.unsaved is not None:
            with torch.no_grad():
                for name, parameter in _trainable(self.model):
                    parameter.copy_(self.unsaved[name])


def _trainable(model: Any) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _accuracy(predicted: EvalPrediction) -> dict[str, float]:
    logits = predicted.predictions
    if isinstance(logits, tuple):  # some architectures return states beside the logits
        logits = logits[0]
    return {"accuracy": float(accuracy_score(predicted.label_ids, logits.argmax(axis=-1)))}


class _Watch(TrainerCallback):
    """Shows steps, loss and val accuracy; has the loss logged at the end of each epoch too."""

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
        self.bar.advance(state.global_step)  # of the run before the kill

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
        control.should_log = True  # else a resumed run would have lost the last steps' loss
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


# ---------------------------------------------------------------- forward passes


def logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    longest: int,
) -> NDArray[np.float32]:
    """Return logits of tokenised texts, shape ``(n, C)``; those of a text do not depend on its company."""
    out = np.zeros((len(ids), int(model.config.num_labels or 0)), dtype=np.float32)
    device = next(model.parameters()).device
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    for rows, length in padded_batches(lengths, longest, PREDICT_BATCH):
        texts = [{"input_ids": ids[i]} for i in rows]
        texts += texts[:1] * n_filler(len(texts), PREDICT_BATCH)
        pad = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=length)
        batch: Any = pad(texts)
        with torch.inference_mode():
            scores = model(**batch.to(device)).logits  # (b, C)
        out[rows] = scores[: len(rows)].float().cpu().numpy()
    return out


def head_logits(model: PreTrainedModel, states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the head's logits of first states of shape ``(n, D)``, shape ``(n, C)``."""
    device = next(model.parameters()).device
    embeds = torch.from_numpy(states).unsqueeze(1).to(device)  # (n, 1, D)
    with torch.inference_mode():
        scores = head_of(model)(inputs_embeds=embeds).logits.float().cpu().numpy()
    return cast("NDArray[np.float32]", scores)


def head_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with a stand-in for its encoder, which hands on given states of the first piece.

    Parameters are shared: what is learnt by the head is learnt by the model. A pooler still runs.
    """
    body = model.base_model
    head = copy.copy(model)
    head._modules = {
        **model._modules,
        model.base_model_prefix: _Given(getattr(body, "pooler", None)),
    }
    head.main_input_name = "inputs_embeds"
    return head


class _Given(nn.Module):
    """Returns the states it is given, as an encoder would."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(
        self, *_: Any, inputs_embeds: torch.Tensor, **__: Any
    ) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(inputs_embeds)
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


def reads_first_state(model: PreTrainedModel, encoder: TextEncoder) -> bool:
    """Tell whether the head, given the last layer's first state alone, returns the model's own logits."""
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        return False
    model.eval()
    device = next(model.parameters()).device
    ids = encoder.tokenize(["a", "a longer text of other words"])
    batch: Any = DataCollatorWithPadding(encoder.tokenizer)([{"input_ids": row} for row in ids])
    batch = batch.to(device)
    with torch.inference_mode():
        whole = model(**batch).logits
        states = model.base_model(**batch)[0][:, :1]  # (2, 1, D)
        try:
            alone = head_of(model)(inputs_embeds=states).logits
        except (AttributeError, TypeError):  # it asks its encoder for more than states
            return False
    return whole.shape == alone.shape and bool(torch.allclose(whole, alone, atol=TOLERANCE))


# ---------------------------------------------------------------- saved and exported


def drawn(model: PreTrainedModel, encoder: PreTrainedModel) -> dict[str, NDArray[np.float32]]:
    """Return the parameters of a classifier's encoder that are not those of ``encoder``.

    They were drawn anew because the checkpoint lacks them: a saved classifier must hold them.
    """
    stored = encoder.state_dict()
    found = {}
    for name, parameter in model.base_model.named_parameters(prefix=model.base_model_prefix):
        known = stored.get(name.partition(".")[2])
        if known is None or not torch.equal(known.to(parameter), parameter):
            found[name] = parameter.detach().cpu().numpy().copy()
    return found


def overwrite(
    parameters: Mapping[str, nn.Parameter], arrays: Mapping[str, NDArray[np.float32]]
) -> None:
    """Put saved values in the place of parameters; names and shapes were checked."""
    with torch.no_grad():
        for name, array in arrays.items():
            parameters[name].copy_(torch.from_numpy(array))


def export(
    model: PreTrainedModel,
    encoder: TextEncoder,
    max_length: int,
    form: str,
    path: Path,
    drawn: Sequence[str],
    temperature: float | None,
) -> Exported:
    """Write a folder for ``from_pretrained`` (``hf``), or an adapter (``peft``), with the tokenizer.

    Args:
        model: Encoder and head.
        encoder: The encoder it was made from.
        max_length: Tokens read of a text.
        form: ``hf`` or ``peft``.
        path: The folder.
        drawn: Parameters that the encoder's checkpoint lacks, which go with an adapter.
        temperature: Divides the logits, so that the softmax of the export is calibrated.

    Raises:
        ModelError: If the temperature cannot be put into the last layer.
    """
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.model_max_length = max_length  # other libraries cut texts where training did
    copied: Any = copy.deepcopy(model)
    if temperature is not None:
        _divide_logits(copied, encoder, temperature)
    with quiet():
        if form == "peft":
            base, _, revision = encoder.name.partition("@")
            settings = copied.peft_config["default"]
            settings.base_model_name_or_path = base
            settings.revision = revision or None
            copied.save_pretrained(path, save_embedding_layers=False)
            _add_to_adapter(path, copied, drawn)
        elif hasattr(copied, "peft_config"):
            copied.merge_and_unload().save_pretrained(path)
        else:
            copied.save_pretrained(path)
        tokenizer.save_pretrained(path)
    divided = "divided by the temperature in the last layer: their softmax is calibrated"
    facts = {
        "Tokens read of a text": str(max_length),
        "Logits": "as trained" if temperature is None else divided,
    }
    if form == "hf":
        return Exported(HF_SNIPPET, (), facts)
    labels = {i: str(name) for i, name in copied.config.id2label.items()}
    return Exported(*_peft_snippet(encoder.name, labels), facts)


def _divide_logits(model: Any, encoder: TextEncoder, temperature: float) -> None:
    """Divide weight and bias of the last layer, in place; prove on two texts that the logits are divided.

    Raises:
        ModelError: If they are not.
    """
    ids = encoder.tokenize(["a", "a longer text of other words"])
    padded: Any = DataCollatorWithPadding(encoder.tokenizer)([{"input_ids": row} for row in ids])
    batch = padded.to(next(model.parameters()).device)
    with torch.inference_mode():
        before = model(**batch).logits
    *_, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        last.weight.div_(temperature)
        if last.bias is not None:
            last.bias.div_(temperature)
    with torch.inference_mode():
        after = model(**batch).logits
    if not torch.allclose(after * temperature, before, rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"the temperature of the run cannot be put into the last layer of a {type(model).__name__}",
            hint="export a run that fitted none: --set evaluation.calibrate=false",
        )


def _add_to_adapter(path: Path, model: Any, names: Sequence[str]) -> None:
    """Save further parameters with an adapter, as PEFT saves modules that are trained in full."""
    if not names:
        return
    weights, config = path / "adapter_model.safetensors", path / "adapter_config.json"
    modules = {name.rpartition(".")[0] for name in names}
    more = {
        f"base_model.model.{name}": parameter.detach().cpu().contiguous()
        for name, parameter in model.get_base_model().named_parameters()
        if name.rpartition(".")[0] in modules  # PEFT wants all of a module
    }
    save_file({**load_file(weights), **more}, weights, metadata={"format": "pt"})
    settings = json.loads(config.read_text(encoding="utf-8"))
    # PEFT matches names by their ends.
    ends = sorted(module.partition(".")[2] for module in modules)
    settings["modules_to_save"] = [*(settings["modules_to_save"] or ()), *ends]
    write_text(config, json.dumps(settings, indent=2, sort_keys=True) + "\n")


HF_SNIPPET = """
from transformers import pipeline

FOLDER = "."  # this folder
TEXTS = ["a fine film", "a dull one"]

classify = pipeline("text-classification", model=FOLDER, tokenizer=FOLDER, top_k=None)
found = classify(TEXTS, truncation=True)
for text, ranked in zip(TEXTS, found):
    print(text, ranked[0]["label"], f"{ranked[0]['score']:.4f}")
"""


def _peft_snippet(name: str, labels: dict[int, str]) -> tuple[str, tuple[str, ...]]:
    """Return code that puts an adapter onto its base model, and what has to be known about it."""
    base, _, revision = name.partition("@")
    known = ":" not in base and base != "minilm"  # an id of the hub
    where = repr(base) if known else f"\"base\"  # the folder of '{name}'"
    note = (
        f"the base model, '{base}'" + (f" at the revision {revision}" if revision else "")
        if known
        else f"the base model: BASE stands for the folder of '{name}' (config.json and model.safetensors); "
        "--format hf writes one whole model"
    )
    at = f", revision={revision!r}" if known and revision else ""
    return (
        f"""
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

FOLDER = "."  # this folder
BASE = {where}
LABELS = {labels!r}
TEXTS = ["a fine film", "a dull one"]

base = AutoModelForSequenceClassification.from_pretrained(
    BASE, num_labels=len(LABELS), id2label=LABELS{at}
)
model = PeftModel.from_pretrained(base, FOLDER).eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
tokens = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    probabilities = model(tokens["input_ids"], tokens["attention_mask"]).logits.softmax(dim=-1)
for text, row in zip(TEXTS, probabilities.tolist()):
    print(text, LABELS[row.index(max(row))], f"{{max(row):.4f}}")
""",
        (note,),
    )
