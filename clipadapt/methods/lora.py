"""CLIP-LoRA: low-rank updates of the attention projections of one or both towers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

import numpy as np
from pydantic import Field, PositiveFloat

from clipadapt.core.api.errors import ConfigError, ModelError
from clipadapt.core.api.limits import Rank, Steps, Units, check_rank
from clipadapt.core.api.method import require_format
from clipadapt.core.data.templates import prompts_of
from clipadapt.core.files import saved
from clipadapt.methods import _export, _training
from clipadapt.methods._images import FrozenFeatures, TunedImages, TunedTower, tensor
from clipadapt.methods._lora_layers import short_name, targets_of
from clipadapt.methods._text import cosine_scores, leading, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.models import AdapterTunable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.method import Exported, MethodConfig, ScoreKind

Role = Literal["q", "k", "v", "out", "mlp", "pointwise", "auto"]
ADAPTER: Final = "default"  # PEFT's name for the only adapter
AS_OPENCLIP: Final = "export with --format openclip, which contains the merged weights"


class LoRAConfig(TrainingConfig):
    """Hyperparameters of ``clip/lora``; names are PEFT's.

    Attributes:
        encoder: Towers that get adapters.
        roles: Layers that get adapters: ``q``, ``k``, ``v``, ``out`` of the attention, ``mlp``; ``pointwise`` (1x1
            convolutions); ``auto`` is ``q``, ``k``, ``v`` of a tower with attention, else ``pointwise``.
        blocks: Number of units at the end of the image tower, and of blocks at the end of the text tower, that get
            adapters; None adapts all. The input of the first adapted unit of the image tower is computed once.
        r: Rank of the updates.
        lora_alpha: Updates are scaled by ``lora_alpha / sqrt(r)``, or ``lora_alpha / r`` without ``use_rslora``.
        lora_dropout: Dropout on the input of the updates.
        use_rslora: Rank-stabilized scaling, as in the official code.
        use_dora: Train magnitude and direction separately (DoRA).
        logit_scale: Scale of the cosine; None uses the scale and bias of the model.
        steps_per_shot: Steps per example of the largest class; None trains for ``epochs``. On full data the total
            must be confirmed with ``steps``.
        steps: Total number of steps, instead of ``steps_per_shot`` and ``epochs``.
        precision: Precision of the frozen weights; the adapters are float32.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 2e-4
    weight_decay: float = Field(default=1e-2, ge=0)
    schedule: Literal["dassl", "cosine", "constant"] = "cosine"
    min_lr: float = Field(default=1e-6, ge=0)
    encoder: Literal["image", "text", "both"] = "both"
    roles: tuple[Role, ...] = Field(default=("q", "k", "v"), min_length=1)
    blocks: Units | None = None
    r: Rank = 2
    lora_alpha: PositiveFloat = 1
    lora_dropout: float = Field(default=0.25, ge=0, lt=1)
    use_rslora: bool = True
    use_dora: bool = False
    logit_scale: PositiveFloat | None = 100.0
    steps_per_shot: Steps | None = 500
    steps: Steps | None = None
    precision: Literal["fp32", "bf16"] = "fp32"

    def steps_for(self, train: Split[Any]) -> int:
        """Return the number of training steps."""
        if self.steps is not None:
            return self.steps
        if self.steps_per_shot is None:
            return super().steps_for(train)
        return self.steps_per_shot * int(np.bincount(train.labels).max())

    def check(self, task: Task[Any]) -> None:
        """Check that ``steps_per_shot``, a few-shot rule, is not applied to full data without confirmation.

        Raises:
            ConfigError: If it is, or if training ends before the warm-up.
        """
        by_shots = self.steps is None and self.steps_per_shot is not None
        if by_shots and task.train is not None and len(task.train) and not task.few_shot:
            steps = self.steps_for(task.train)
            most = steps // cast("int", self.steps_per_shot)
            raise ConfigError(
                f"lora would train for {steps:,} steps: {self.steps_per_shot} for each of the {most} examples of the "
                f"largest class, a few-shot rule, and data.shots is not set",
                hint=f"draw examples with --set data.shots=16, train for epochs with --set method.steps_per_shot=null "
                f"--set method.epochs=10, or confirm the number with --set method.steps={steps}",
            )
        super().check(task)


class LoRA:
    """LoRA through PEFT on attention with separate projections; one template, cross-entropy.

    References:
        M. Zanella and I. Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPRW 2024,
        section 4. arXiv:2405.18541
        E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. arXiv:2106.09685
    """

    Config: ClassVar[type[MethodConfig]] = LoRAConfig
    # 3: other random numbers for dropout, none for the padding of texts
    version: ClassVar[int] = 3
    requires: ClassVar[type | None] = AdapterTunable

    def __init__(self, config: LoRAConfig) -> None:
        self.config = config

    def check_model(self, backbone: AdapterTunable) -> None:
        """Check that the towers have the layers; see :meth:`fit`."""
        targets_of(
            backbone.clone(split=True), self.config.encoder, self.config.roles, self.config.blocks
        )

    def fit(self, backbone: AdapterTunable, task: Task[Any], ctx: RunContext) -> LoRAClassifier:
        """Train adapters on a copy of the backbone with ``task.train``; ``task.val`` is only monitored by default.

        Raises:
            ModelError: If a tower has no layer of a requested role.
            ConfigError: If a tower has fewer than ``blocks`` blocks, the rank exceeds the width of a layer, training
                ends before the warm-up, or the number of steps must be confirmed.
        """
        config = self.config
        train = task.require_train("lora")
        config.check(task)
        val = _training.nonempty(task.val)
        adapted = Adapted.of(backbone, config, ctx)
        start = zero_shot_weights(backbone, task.classnames, task.templates)
        images: Callable[[NDArray[np.int64], int], torch.Tensor]
        if config.encoder == "text":
            images = FrozenFeatures(backbone, train.inputs, config, "output")
        else:
            images = TunedImages(adapted.images, train.inputs, config)
        text_of = adapted.text_features(task.classnames, task.templates, start)
        # Features that do not change are read once, not at every evaluation on val.
        val_of = None if val is None else adapted.features_of(val.inputs)

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            logits = adapted.logits(images(rows, view), text_of())
            return _training.cross_entropy(logits, train.labels, rows)

        def val_scores() -> NDArray[np.float32]:
            import torch

            assert val_of is not None
            adapted.dropout(active=False)
            with torch.no_grad():
                features = tensor(val_of(), backbone.device)
                scores: NDArray[np.float32] = adapted.logits(features, text_of()).cpu().numpy()
            adapted.dropout(active=True)
            return scores

        adapted.dropout(active=True)
        evaluate = None if val is None else val_scores
        objective = Objective.of("lora", adapted.parameters, loss, evaluate, backbone, task)
        selection = _training.train(objective, config, ctx, steps=config.steps_for(train))
        adapted.dropout(active=False)
        return LoRAClassifier(
            backbone,
            task.classnames,
            task.templates,
            adapted,
            adapted.text_weights(task.classnames, task.templates, start),
            start,
            selection,
        )

    def load(self, directory: Path, backbone: AdapterTunable) -> LoRAClassifier:
        """Return the classifier saved in ``directory``."""
        import torch

        facts = saved.load_facts(directory, ("classnames", "templates", "selection"))
        adapted = Adapted.of(backbone, self.config, None)
        D = (None, backbone.embed_dim)
        shapes = {name: tuple(p.shape) for name, p in adapted.parameters.items()}
        arrays = saved.load_arrays(directory, {**shapes, "weights": D, "start": D})
        with torch.no_grad():
            for name, parameter in adapted.parameters.items():
                parameter.copy_(torch.from_numpy(arrays[name]))
        return LoRAClassifier(
            backbone,
            tuple(facts["classnames"]),
            tuple(facts["templates"]),
            adapted,
            arrays["weights"],
            arrays["start"],
            facts["selection"],
        )


class Adapted:
    """A copy of a model with adapters on the chosen layers.

    Attributes:
        base: The original model.
        model: The copy; all of it except the adapters is frozen.
        config: Hyperparameters of the method.
        peft: PEFT's wrapper of the copy's network.
        parameters: The adapters' tensors, by layer and matrix.
        images: The adapted image tower.
        drops: Whether dropout is active.
    """

    def __init__(
        self,
        base: AdapterTunable,
        model: AdapterTunable,
        config: LoRAConfig,
        peft: Any,
        first_unit: int,
    ) -> None:
        self.base, self.model, self.config, self.peft = base, model, config, peft
        self.images = TunedTower(base.in_dtype(config.precision), model, first_unit)
        self.drops = False
        self.parameters = {short_name(n): p for n, p in peft.named_parameters() if ".lora_" in n}

    @classmethod
    def of(cls, base: AdapterTunable, config: LoRAConfig, ctx: RunContext | None) -> Adapted:
        """Copy a model and add adapters to it, initialized from the seed of the context.

        Raises:
            ModelError: If a tower has no layer of a requested role.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        from clipadapt.methods import _low_rank
        from clipadapt.tensor.seeding import seeded

        model = base.in_dtype(config.precision).clone(split=True)
        names, first_unit = targets_of(model, config.encoder, config.roles, config.blocks)
        layers: dict[str, Any] = {name: model.module.get_submodule(name) for name in names}
        widths = {name: min(layer.weight.shape[:2]) for name, layer in layers.items()}
        check_rank(config.r, widths, model.name)
        settings = LoraConfig(
            r=config.r,
            lora_alpha=cast("int", config.lora_alpha),  # PEFT accepts any number
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            # A regular expression, because a list matches suffixes: the names in CLIP's text tower are suffixes of
            # those in the image tower.
            target_modules="|".join(re.escape(name) for name in names),
            bias="none",
        )
        with seeded(None if ctx is None else int(ctx.rng("lora.init").integers(2**62))):
            peft: Any = get_peft_model(model.module, settings)
        _low_rank.prepare(peft, ADAPTER, config.lora_dropout, fast=base.services.fast)
        model.module.eval()
        adapted = cls(base, model, config, peft, first_unit)
        for name, parameter in adapted.parameters.items():
            if ctx is not None:
                given = ctx.initial(name, parameter.detach().cpu().numpy())
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(np.asarray(given)))
        return adapted

    def dropout(self, *, active: bool) -> None:
        """Turn the dropout of the adapters on or off; the rest of the network is always in evaluation mode."""
        self.drops = active and self.config.lora_dropout > 0
        for name, module in self.peft.named_modules():
            if name.endswith(f".lora_dropout.{ADAPTER}"):
                module.train(active)

    def logits(self, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the logits of unit-norm features, shape ``(n, C)``."""
        if self.config.logit_scale is None:
            return self.model.logits(images, text)
        return self.config.logit_scale * images @ text.T

    def text_features(
        self,
        classnames: tuple[str, ...],
        templates: tuple[str, ...],
        start: NDArray[np.float32],
    ) -> Callable[[], torch.Tensor]:
        """Return a function that computes the text features ``(C, D)`` for the current adapters.

        Args:
            classnames: ``C`` class names.
            templates: Templates; several are averaged.
            start: Features of the frozen tower, used if the text tower has no adapters.
        """
        import torch.nn.functional as F

        if self.config.encoder == "image":
            frozen = tensor(start, self.model.device)
            return lambda: frozen
        tokens = self.model.trim(self.model.tokenize(prompts_of(classnames, templates)))  # (C T, L)
        embeddings, alike = self.model.embed_tokens(tokens), leading(tokens)

        def features() -> torch.Tensor:
            # Dropout is drawn for each text separately, so the shared prefix is used only without it.
            shared = 0 if self.drops else alike
            each = self.model.encode_token_embeddings(embeddings, tokens, shared=shared)
            if len(templates) == 1:
                return each
            mean = each.view(len(classnames), len(templates), -1).mean(dim=1)
            return F.normalize(mean, dim=-1)

        return features

    def text_weights(
        self, classnames: tuple[str, ...], templates: tuple[str, ...], start: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the text classifier for the current adapters, shape ``(C, D)``."""
        import torch

        with torch.no_grad():
            out: NDArray[np.float32] = (
                self.text_features(classnames, templates, start)().cpu().numpy()
            )
        return out

    def features_of(self, inputs: Inputs[Any]) -> Callable[[], NDArray[np.float32]]:
        """Return a function that computes the unit-norm image features ``(n, D)`` for the current adapters.

        They come from the adapted tower, or from the original model if the image tower has no adapters.
        """
        if self.config.encoder == "text":
            frozen = self.base.encode(inputs, "image")
            return lambda: frozen
        stored = self.images.stored(inputs)
        return lambda: self.images.features(inputs, stored)

    def image_features(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the unit-norm image features ``(n, D)`` for the current adapters."""
        return self.features_of(inputs)()

    def merged(self) -> dict[str, torch.Tensor]:
        """Return the weights of the model with merged adapters, under the names of the model."""
        import copy

        import torch

        if self.config.precision == "fp32":
            return self.model.fused_state(copy.deepcopy(self.peft).merge_and_unload())
        # Merge into the float32 weights: in bfloat16, most of an update would be lost to rounding.
        whole = Adapted.of(self.base, self.config.model_copy(update={"precision": "fp32"}), None)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                whole.parameters[name].copy_(parameter)
        return whole.merged()

    def save_peft(self, path: Path) -> None:
        """Write PEFT adapters for the network as open_clip builds it; the scaling is part of the matrices.

        open_clip's attention is one module: the three updates of rank ``r`` become one update of rank ``3 r`` with a
        block-diagonal second matrix.

        Raises:
            ModelError: If PEFT does not support such an adapter.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        config, fused = self.config, self._fused()
        ranks = {
            re.escape(name): len(parts["A"])
            for name, parts in fused.items()
            if not name.endswith(".out_proj")  # part of nn.MultiheadAttention
        }
        network = self.base.in_dtype("fp32").clone().module
        settings = LoraConfig(
            r=config.r,
            lora_alpha=config.r,
            rank_pattern=ranks,
            alpha_pattern=ranks,  # a scaling of 1
            use_dora=config.use_dora,
            target_modules="|".join(ranks),
            bias="none",
        )
        try:
            peft: Any = get_peft_model(network, settings)
        except ValueError as err:
            raise ModelError(
                f"PEFT has no such adapter for '{self.base.name}': {err}", hint=AS_OPENCLIP
            ) from None
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if ".lora_" in name:
                    layer, _, kind = short_name(name).rpartition(".")
                    found = fused[layer.replace(".base_layer.out_proj", ".out_proj")][kind]
                    # A magnitude that was not trained keeps the value that PEFT computes from the weights.
                    parameter.copy_(torch.where(found.isnan(), parameter, found))
        peft.peft_config[ADAPTER].base_model_name_or_path = self.base.name
        peft.save_pretrained(path, save_embedding_layers=False)

    def _fused(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the scaled updates per module of the network as open_clip builds it.

        Raises:
            ModelError: If PEFT would apply one of them incorrectly.
        """
        config = self.config
        scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        updates: dict[str, dict[str, torch.Tensor]] = {}
        for name, parameter in self.parameters.items():
            layer, _, kind = name.rpartition(".")
            factor = scaling if kind == "B" else 1
            updates.setdefault(layer, {})[kind] = parameter.detach().cpu() * factor
        fused = self.model.fused_adapters(updates)
        if "out" in config.roles and any(name.endswith(".out_proj") for name in fused):
            raise ModelError(
                f"PEFT cannot adapt the role 'out' of '{self.base.name}' correctly: for torch's attention module it "
                "adds the update of the output projection twice",
                hint=AS_OPENCLIP,
            )
        return fused


@dataclass(frozen=True, slots=True)
class LoRAClassifier:
    """Cosine of the features of adapted towers.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        templates: Templates of the prompts.
        adapted: The adapted copy of the backbone.
        weights: Unit-norm text features of the adapted tower, shape ``(C, D)``.
        start: Unit-norm text features of the backbone, shape ``(C, D)``.
        selection: The epoch selected on val, or None.
        score_kind: The scores are logits.
        export_formats: A merged open_clip checkpoint, a PEFT adapter, or ONNX.
    """

    model: AdapterTunable
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    adapted: Adapted
    weights: NDArray[np.float32]
    start: NDArray[np.float32]
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = ("openclip", "peft", "onnx")

    @property
    def n_trainable_params(self) -> int:
        """Number of parameters in the adapters."""
        return sum(p.numel() for p in self.adapted.parameters.values())

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        scale, bias = self._scale()
        features = self.adapted.image_features(inputs)  # (n, D)
        return np.float32(scale) * (features @ self.weights.T) + np.float32(bias)

    def _scale(self) -> tuple[float, float]:
        given = self.adapted.config.logit_scale
        own = (self.model.logit_scale, self.model.logit_bias)
        return own if given is None else (given, 0.0)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the backbone, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.start)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> LoRAClassifier:
        """Return a classifier for other classes, whose names the adapted text tower encodes."""
        names, templates = tuple(classnames), tuple(templates)
        start = zero_shot_weights(self.model, names, templates)
        weights = self.adapted.text_weights(names, templates, start)
        return LoRAClassifier(
            self.model, names, templates, self.adapted, weights, start, self.selection
        )

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write a merged open_clip folder, or a PEFT adapter for open_clip's model, and the text features.

        Raises:
            ModelError: If PEFT does not support the adapter for the model's attention.
        """
        require_format(form, self.export_formats)
        path.mkdir(parents=True, exist_ok=True)
        scale, bias = self._scale()
        state = None
        if form == "peft":
            self.adapted.save_peft(path)
        else:
            state = _scaled(self.adapted.merged(), scale, bias)
        tuned = self.adapted.config.encoder != "text"
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            _export.cosine_arrays(self.weights, scale, bias),
            _export.COSINE,
            temperature=temperature,
            output=output,
            formats=self.export_formats,
            dtype=self.adapted.config.precision if tuned else None,
            state=state,
        )

    def save(self, directory: Path) -> None:
        """Write the adapters, text features and class names."""
        arrays = {n: p.detach().cpu().numpy() for n, p in self.adapted.parameters.items()}
        arrays |= {"weights": self.weights, "start": self.start}
        facts = {
            "classnames": self.classnames,
            "templates": self.templates,
            "selection": self.selection,
        }
        saved.save(directory, arrays, facts)


def _scaled(state: dict[str, torch.Tensor], scale: float, bias: float) -> dict[str, torch.Tensor]:
    """Return the weights with the logit scale and bias of the run."""
    import torch

    own = {"logit_scale": math.log(scale), "logit_bias": bias}
    return state | {n: torch.full_like(state[n], v) for n, v in own.items() if n in state}


METHOD = LoRA
