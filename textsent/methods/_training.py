"""What the methods that train a network share: hyperparameters, the fit, and the fitted object.

The framework is imported where work begins: ``_trainer.py`` holds the one set-up of the Trainer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from clipadapt.core.api.errors import unknown
from clipadapt.core.files import saved
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
DRAWN = "drawn."  # before the names of those arrays
LIBRARIES = ("accelerate", "peft", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class SequenceClassifier:
    """A sequence classifier of Hugging Face's, trained in whole or in part.

    Attributes:
        encoder: The encoder it was made from; tokenises, and encodes where the head alone was trained.
        model: Encoder and head, in evaluation mode; a copy of its own.
        classnames: ``C`` class names.
        learnt: Names of the parameters that were trained, as the model names them.
        drawn: Parameters of the encoder that its checkpoint lacks (a pooler's) and that were not trained.
        max_length: Pieces read of a text.
        from_features: Whether the head reads the frozen encoder's features (through the feature store).
        settings: What ``load`` needs beside the encoder to build the model again.
        selection: The epoch chosen on val, or None.
        score_kind: The scores are logits.
    """

    encoder: TextEncoder
    model: PreTrainedModel
    classnames: tuple[str, ...]
    learnt: tuple[str, ...]
    drawn: dict[str, NDArray[np.float32]]
    max_length: int
    from_features: bool
    settings: dict[str, Any]
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"

    @property
    def n_trainable_params(self) -> int:
        """Parameters that were trained, as PEFT counts them: adapters and head."""
        sizes = {name: p.numel() for name, p in self.model.named_parameters()}
        return sum(sizes[name] for name in self.learnt)

    @property
    def n_total_params(self) -> int:
        """All parameters of encoder, adapters and head, as PEFT counts them."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def export_formats(self) -> tuple[str, ...]:
        """``hf`` (one model, adapters merged), and ``peft`` for adapters."""
        return ("hf", "peft") if hasattr(self.model, "peft_config") else ("hf",)

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``, computed in float32."""
        from textsent.methods import _trainer

        if self.from_features:
            states = self.encoder.encode(inputs, -1, "cls", self.max_length)  # (n, D)
            return _trainer.head_logits(self.model, states)
        ids = self.encoder.tokenize(list(inputs.examples), self.max_length)
        return _trainer.logits(self.model, self.encoder.tokenizer, ids, self.max_length)

    def save(self, directory: Path) -> None:
        """Write the trained parameters as safetensors, the settings as JSON."""
        tensors = self.model.state_dict()
        arrays = {name: tensors[name].cpu().numpy() for name in self.learnt}
        arrays |= {DRAWN + name: array for name, array in self.drawn.items()}
        facts = {
            "drawn": tuple(self.drawn),
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
        """Write model and tokenizer as Hugging Face's libraries load them, the temperature in the last layer.

        Raises:
            UnknownNameError: If there is no such format.
            ModelError: If the temperature cannot be put into the model.
        """
        from textsent.methods import _trainer

        if form not in self.export_formats:
            raise unknown("export format", form, self.export_formats)
        return _trainer.export(
            self.model, self.encoder, self.max_length, form, path, tuple(self.drawn), temperature
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

    The process's random numbers are as they were afterwards. A fit that was killed goes on from the last
    whole epoch in ``ctx.work_dir`` and ends equal.

    Args:
        method: Name of the method, for messages.
        config: Hyperparameters.
        backbone: Encoder; stays as it is.
        task: What is learnt from.
        ctx: Seed, folder for checkpoints, progress and history.
        choose: Takes the classifier with its new head; returns it with ``requires_grad`` set on what
            is to be trained, or a PEFT model of it.
        settings: What ``load`` needs to build the model again.
        head_only: The encoder is frozen: its features are read once, if the head needs no more.

    Raises:
        ConfigError: If the warm-up never ends.
        DataError: If train has one class only.
        ModelError: If the model cannot read ``config.max_length`` pieces.
    """
    train, val = _task.labelled(task, method)
    config.check(task)
    length = _task.pieces(backbone, config.max_length)
    backbone.tokenize(
        [], length
    )  # a length the model cannot read is refused before the model is copied
    from textsent.methods import _trainer

    with isolated(ctx.seed, ctx.threads):
        model = backbone.classifier(task.classnames, ctx.seed)
        drawn = _trainer.drawn(model, backbone.module)
        model = choose(model)
        learnt = tuple(name for name, p in model.named_parameters() if p.requires_grad)
        cached = head_only and _trainer.reads_first_state(model, backbone)

        def rows(split: Split[str] | None) -> list[dict[str, Any]] | None:
            if split is None:
                return None
            if cached:
                states = backbone.encode(split.inputs, -1, "cls", length)  # (n, D)
                return _trainer.state_rows(states, split.labels)
            ids = backbone.tokenize(list(split.inputs.examples), length)
            return _trainer.piece_rows(ids, split.labels)

        train_rows = rows(train)
        assert train_rows is not None
        selection = _trainer.train(
            _trainer.head_of(model) if cached else model,
            train_rows,
            rows(val),
            config,
            ctx,
            tokenizer=None if cached else backbone.tokenizer,
            device=backbone.device,
            name=method,
            key=_fit_key(method, config, backbone, train, val, ctx),
        )
    return SequenceClassifier(
        backbone,
        model.eval(),
        task.classnames,
        learnt,
        {name: array for name, array in drawn.items() if name not in learnt},
        length,
        cached,
        settings or {},
        selection,
    )


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
        choose: As in :func:`fit`; is given the saved facts too.
        settings: Keys of the facts that ``choose`` needs.

    Raises:
        RecordError: If a file is missing or damaged, or does not fit the encoder.
    """
    from textsent.methods import _trainer

    facts = saved.load_facts(directory, (*SAVED_FACTS, *settings))
    classnames = tuple(facts["classnames"])
    with isolated(0, None):  # what is drawn here is overwritten
        model = backbone.classifier(classnames, 0)
        plain = dict(model.named_parameters())
        model = choose(model, facts)
    learnt = {name: p for name, p in model.named_parameters() if p.requires_grad}
    own = learnt | {DRAWN + name: plain[name] for name in facts["drawn"] if name in plain}
    arrays = saved.load_arrays(directory, {name: tuple(p.shape) for name, p in own.items()})
    _trainer.overwrite(own, arrays)
    return SequenceClassifier(
        backbone,
        model.eval(),
        classnames,
        tuple(learnt),
        {name: arrays[DRAWN + name] for name in facts["drawn"]},
        facts["max_length"],
        facts["from_features"],
        {k: facts[k] for k in settings},
        facts["selection"],
    )


@contextlib.contextmanager
def isolated(seed: int, threads: int | None) -> Iterator[None]:
    """Seed every random stream of the process, set its threads, hush the libraries; put all back at the end."""
    import torch
    from transformers import set_seed

    from textsent.models._build import quiet

    python, legacy, before = random.getstate(), np.random.get_state(), torch.get_num_threads()  # noqa: NPY002
    with torch.random.fork_rng(), quiet(), warnings.catch_warnings():
        # One library calls what another deprecates: nothing a user could mend.
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
    """Freeze all but the head: what stands outside the encoder (a pooler is part of the encoder)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = in_head(model, name)
    return model


def in_head(model: PreTrainedModel, name: str) -> bool:
    """Tell whether a parameter of a sequence classifier belongs to its head."""
    return not name.startswith(f"{model.base_model_prefix}.")


def _fit_key(
    method: str,
    config: TrainingConfig,
    backbone: TextEncoder,
    train: Split[str],
    val: Split[str] | None,
    ctx: RunContext,
) -> str:
    """Return the hash of all a fit depends on: only an equal fit may go on from a checkpoint."""
    facts = {
        "method": method,
        "config": config.model_dump(mode="json"),
        "seed": ctx.seed,
        "threads": ctx.threads,
        "weights": backbone.weights_sha256,
        "classnames": train.classnames,
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for split in (train, val):
        if split is not None:
            key.update(split.inputs.digests().tobytes() + split.labels.tobytes() + b"\0")
    return key.hexdigest()
