"""Fit, save and load the methods that train a network: a Hugging Face sequence classifier on a text encoder.

torch and transformers are imported inside the functions: :mod:`~textsent.methods._trainer` is the training loop,
:mod:`~textsent.methods._network` holds the forward passes, :mod:`~textsent.methods._export` the export.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from clipadapt.core.api.method import require_format
from clipadapt.core.files import saved
from clipadapt.core.files.resume import resume_key
from textsent.methods import _task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.method import Exported, ScoreKind
    from textsent.methods._task import TrainingConfig
    from textsent.models import TextEncoder

SAVED_FACTS = ("classnames", "drawn", "max_length", "from_features", "selection")
INITIALIZED = "drawn."  # prefix of the saved arrays of newly initialized parameters
LIBRARIES = ("accelerate", "peft", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class SequenceClassifier:
    """A Hugging Face sequence classifier, fully or partly trained.

    Attributes:
        encoder: The encoder it was made from; it tokenizes, and encodes if only the head was trained.
        model: Encoder and head, in evaluation mode; a copy of its own.
        classnames: ``C`` class names.
        trained: Names of the trained parameters in ``model``.
        initialized: Untrained parameters of the encoder that its checkpoint lacks, such as a pooler's.
        max_length: Tokens read of a text.
        from_features: Whether the head reads cached features of the frozen encoder.
        settings: What ``load`` needs to rebuild the model, besides the encoder.
        selection: The epoch selected on val, or None.
        score_kind: The scores are logits.
    """

    encoder: TextEncoder
    model: PreTrainedModel
    classnames: tuple[str, ...]
    trained: tuple[str, ...]
    initialized: dict[str, NDArray[np.float32]]
    max_length: int
    from_features: bool
    settings: dict[str, Any]
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"

    @property
    def n_trainable_params(self) -> int:
        """Trainable parameters, adapters and head included, as PEFT counts them."""
        sizes = {name: p.numel() for name, p in self.model.named_parameters()}
        return sum(sizes[name] for name in self.trained)

    @property
    def n_total_params(self) -> int:
        """All parameters of encoder, adapters and head, as PEFT counts them."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def export_formats(self) -> tuple[str, ...]:
        """``hf`` and ``onnx`` (one model, adapters merged), and ``peft`` for adapters."""
        return ("hf", "peft", "onnx") if hasattr(self.model, "peft_config") else ("hf", "onnx")

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``, computed in float32."""
        from textsent.methods import _network

        if self.from_features:
            states = self.encoder.encode(inputs, -1, "cls", self.max_length)  # (n, D)
            return _network.head_logits(self.model, states)
        ids = self.encoder.tokenize(list(inputs.examples), self.max_length)
        return _network.logits(self.model, self.encoder.tokenizer, ids, self.max_length)

    def save(self, directory: Path) -> None:
        """Write the trained parameters as safetensors, the settings as JSON."""
        tensors = self.model.state_dict()
        arrays = {name: tensors[name].cpu().numpy() for name in self.trained}
        arrays |= {INITIALIZED + name: array for name, array in self.initialized.items()}
        facts = {
            "drawn": tuple(self.initialized),
            "classnames": self.classnames,
            "max_length": self.max_length,
            "from_features": self.from_features,
            "selection": self.selection,
        }
        saved.save(directory, arrays, {**facts, **self.settings})

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,  # noqa: ARG002
    ) -> Exported:
        """Write model and tokenizer for the Hugging Face libraries, or as ONNX; the temperature is included.

        Raises:
            UnknownNameError: If there is no such format.
            ModelError: If the temperature cannot be folded into the model, or the model cannot be written as ONNX.
        """
        from textsent.methods import _export

        require_format(form, self.export_formats)
        if form == "onnx":
            return _export.as_onnx(
                self.model, self.encoder, self.classnames, self.max_length, path, temperature
            )
        return _export.export(
            self.model,
            self.encoder,
            self.max_length,
            form,
            path,
            tuple(self.initialized),
            temperature,
        )


def fit(
    method: str,
    config: TrainingConfig,
    backbone: TextEncoder,
    task: Task[str],
    ctx: RunContext,
    choose: Callable[[PreTrainedModel], PreTrainedModel],
    settings: dict[str, Any] | None = None,
    *,
    head_only: bool = False,
) -> SequenceClassifier:
    """Train a classifier on a copy of ``backbone``.

    The random state of the process is restored afterwards. An interrupted fit resumes from the last complete epoch in
    ``ctx.work_dir`` and gives the same result.

    Args:
        method: Name of the method, for messages.
        config: Hyperparameters.
        backbone: Encoder; it is not changed.
        task: Training and validation data.
        ctx: Seed, folder for checkpoints, progress and history.
        choose: Maps the classifier with its new head to one with ``requires_grad`` set on the parameters to
            train, or to a PEFT model of it.
        settings: What ``load`` needs to rebuild the model.
        head_only: The encoder is frozen; its features are cached if the head needs nothing else.

    Raises:
        ConfigError: If the warm-up is longer than the training.
        DataError: If train has only one class.
        ModelError: If the model cannot read ``config.max_length`` tokens.
    """
    train, val = _task.labelled(task, method)
    config.check(task)
    length = _task.token_limit(backbone, config.max_length)
    backbone.tokenize([], length)  # rejects an invalid length before the model is copied
    from textsent.methods import _network, _trainer

    with isolated(ctx.seed, ctx.threads, backbone.device):
        model = backbone.classifier(task.classnames, ctx.seed)
        initialized = _network.initialized(model, backbone.module)
        model = choose(model)
        trained = tuple(name for name, p in model.named_parameters() if p.requires_grad)
        cached = head_only and _network.reads_first_state(model, backbone)
        selection = _trainer.train(
            _network.head_of(model) if cached else model,
            _rows(backbone, train, length, cached=cached),
            None if val is None else _rows(backbone, val, length, cached=cached),
            config.with_precision(backbone.dtype),
            ctx,
            tokenizer=None if cached else backbone.tokenizer,
            device=backbone.device,
            name=method,
            key=fit_key(method, config, backbone, train, val, ctx),
        )
    model.eval()
    kept = {name: array for name, array in initialized.items() if name not in trained}
    return SequenceClassifier(
        backbone, model, task.classnames, trained, kept, length, cached, settings or {}, selection
    )


def _rows(
    backbone: TextEncoder, split: Split[str], length: int, *, cached: bool
) -> list[dict[str, Any]]:
    """Return the Trainer's rows of a split: token ids, or the encoder's cached first states."""
    from textsent.methods import _trainer

    if cached:
        states = backbone.encode(split.inputs, -1, "cls", length)  # (n, D)
        return _trainer.state_rows(states, split.labels)
    return _trainer.token_rows(backbone.tokenize(list(split.inputs.examples), length), split.labels)


def fit_key(
    method: str,
    config: TrainingConfig,
    backbone: TextEncoder,
    train: Split[str],
    val: Split[str] | None,
    ctx: RunContext,
) -> str:
    """Return the key of a fit's checkpoints; equal fits have equal keys."""
    facts = {
        "method": method,
        "config": config.model_dump(mode="json"),
        "seed": ctx.seed,
        "threads": ctx.threads,
        "fast": ctx.services.fast,
        "weights": backbone.weights_sha256,
        "classnames": train.classnames,
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return resume_key(facts, (train, val))


def load(
    directory: Path,
    backbone: TextEncoder,
    choose: Callable[[PreTrainedModel, dict[str, Any]], PreTrainedModel],
    settings: tuple[str, ...] = (),
) -> SequenceClassifier:
    """Return the classifier saved in ``directory``.

    Args:
        directory: Folder that :meth:`SequenceClassifier.save` wrote.
        backbone: The encoder it was made from.
        choose: As in :func:`fit`, with the saved facts as second argument.
        settings: Keys of the facts that ``choose`` needs.

    Raises:
        RecordError: If a file is missing or damaged, or does not match the encoder.
    """
    from textsent.methods import _network

    facts = saved.load_facts(directory, (*SAVED_FACTS, *settings))
    classnames = tuple(facts["classnames"])
    with isolated(0, None, backbone.device):  # newly initialized parameters are overwritten below
        model = backbone.classifier(classnames, 0)
        plain = dict(model.named_parameters())
        model = choose(model, facts)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    own = trained | {INITIALIZED + name: plain[name] for name in facts["drawn"] if name in plain}
    arrays = saved.load_arrays(directory, {name: tuple(p.shape) for name, p in own.items()})
    _network.overwrite(own, arrays)
    return SequenceClassifier(
        backbone,
        model.eval(),
        classnames,
        tuple(trained),
        {name: arrays[INITIALIZED + name] for name in facts["drawn"]},
        facts["max_length"],
        facts["from_features"],
        {k: facts[k] for k in settings},
        facts["selection"],
    )


@contextlib.contextmanager
def isolated(seed: int, threads: int | None, device: str) -> Iterator[None]:
    """Seed all random states of the process, set its threads, silence the libraries; restore everything afterwards.

    Args:
        seed: The seed.
        threads: Threads of torch; None leaves them.
        device: Device of the fit. The random state of another GPU is not restored.

    Raises:
        LostProcessError: If another process of the fit has ended.
    """
    import torch
    from transformers import set_seed

    from clipadapt.tensor.ranks import together
    from textsent.models._build import quiet

    python, legacy, before = random.getstate(), np.random.get_state(), torch.get_num_threads()  # noqa: NPY002
    gpus = [device] if device.startswith("cuda") and torch.cuda.is_available() else []
    with together(), torch.random.fork_rng(gpus), quiet(), warnings.catch_warnings():
        # The libraries use deprecated parts of each other; a user cannot fix that.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            set_seed(seed % 2**32)
            yield
        finally:
            torch.set_num_threads(before)
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def train_head(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze everything but the head; a pooler is part of the encoder."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = in_head(model, name)
    return model


def in_head(model: PreTrainedModel, name: str) -> bool:
    """Return whether a parameter of a sequence classifier belongs to its head."""
    return not name.startswith(f"{model.base_model_prefix}.")
