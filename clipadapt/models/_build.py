"""Build the network of a model with open_clip: architecture, weights, device and dtype."""

from __future__ import annotations

import copy
import warnings
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, cast

import open_clip
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from clipadapt.core.api.errors import ModelError
from clipadapt.models import _checkpoints
from clipadapt.tensor.devices import torch_dtype
from clipadapt.tensor.seeding import seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clipadapt.models._sources import Source

RANDOM_SEED: Final = 20210226
"""Seed of random weights."""


def build(source: Source, shown: str) -> torch.nn.Module:
    """Build the network in float32 on the CPU, frozen, in evaluation mode, with its weights.

    Without a checkpoint the weights are random and the same at every call; nothing pretrained is downloaded.

    Args:
        source: Config and weights.
        shown: Name of the model, for messages.

    Raises:
        ModelError: If open_clip cannot build the architecture, or the weights do not fit it.
    """
    module: Any = _made(_constructor(source), shown)
    module.float().eval().requires_grad_(False)
    if source.checkpoint is not None:
        _load_weights(module, source, shown)
    elif isinstance(module, CoCa):
        # open_clip leaves this tensor as the memory was; no feature depends on it, the hash of the weights does.
        torch.nn.init.zeros_(module.text_decoder.text_projection)
    preprocess = merge_preprocess_dict(PreprocessCfg(), source.preprocess_cfg)
    preprocess["size"] = module.visual.image_size
    set_model_preprocess_cfg(module, preprocess)
    _freeze_batch_norm(module)
    return cast("torch.nn.Module", module)


def _constructor(source: Source) -> Callable[[], torch.nn.Module]:
    """Return the call that builds the architecture of ``source`` without pretrained weights."""
    cfg = copy.deepcopy(source.model_cfg)
    text_cfg = cfg["text_cfg"]
    custom = bool(cfg.pop("custom_text", False)) or "hf_model_name" in text_cfg
    if cfg["vision_cfg"].get("timm_model_name"):
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    if text_cfg.get("hf_model_name"):
        text_cfg |= {"hf_model_pretrained": False, "hf_model_name": str(source.tower)}
    if custom and "multimodal_cfg" in cfg:
        return partial(CoCa, **cfg)
    return partial(CustomTextCLIP if custom else CLIP, **cfg)


def _made(make: Callable[[], torch.nn.Module], shown: str) -> torch.nn.Module:
    try:
        with seeded(RANDOM_SEED), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return make()
    except (TypeError, KeyError, ValueError, AssertionError, RuntimeError, OSError) as err:
        raise ModelError(
            f"open_clip cannot build '{shown}': {type(err).__name__}: {err}",
            hint=f"the config is not valid for open_clip {open_clip.__version__}",
        ) from err


def _load_weights(module: Any, source: Source, shown: str) -> None:
    path = source.checkpoint
    assert path is not None
    state = _checkpoints.read(path)
    try:
        state = _checkpoints.for_module(state, module)
        module.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError, ValueError, AssertionError, AttributeError, IndexError) as err:
        raise ModelError(
            f"the weights '{path}' do not fit '{source.arch or shown}': {_misfit(module, state, err)}",
            hint="name the architecture that the weights were saved from",
        ) from err
    for name, weights in module.named_parameters():
        if name in state and not state[name].is_floating_point():
            raise ModelError(
                f"the weights '{path}' are quantised: tensor '{name}' is {state[name].dtype}",
                hint="save them in float32 or float16",
            )
        if not torch.isfinite(weights).all():
            raise ModelError(
                f"the weights '{path}' hold NaN or infinite values: tensor '{name}'",
                hint="training diverged, or the weights overflowed float16: use an earlier checkpoint",
            )


def _misfit(module: torch.nn.Module, state: Mapping[str, torch.Tensor], err: BaseException) -> str:
    """Describe the first tensor that has another shape, is missing or is not part of the network."""
    got = {k: tuple(v.shape) for k, v in state.items()}
    expected = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    for name, shape in expected.items():
        if name in got and got[name] != shape:
            return f"tensor '{name}' has shape {got[name]}, expected {shape}"
    missing = [n for n in expected if n not in got]
    if missing:
        name = missing[0]
        return f"tensor '{name}' of shape {expected[name]} is missing ({len(missing)} of {len(expected)} are)"
    extra = [n for n in got if n not in expected]
    if extra:
        return f"tensor '{extra[0]}' of shape {got[extra[0]]} is not part of the network ({len(extra)} are not)"
    return str(err).strip().splitlines()[0]


@cache
def _frozen_class(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    def train(self: torch.nn.Module, mode: bool = True) -> torch.nn.Module:  # noqa: ARG001
        return kind.train(self, False)

    return type(f"Frozen{kind.__name__}", (kind,), {"train": train})


def _freeze_batch_norm(module: Any) -> None:
    """Keep ``train()`` of this module, or of a copy, from changing the statistics of a BatchNorm."""
    for child in module.modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
            layer: Any = child
            layer.__class__ = _frozen_class(cast("Any", type(layer)))


def cast_weights(module: Any, device: str, dtype: str) -> torch.nn.Module:
    """Move the network to a device and cast its weights; logit scale and bias stay float32.

    Raises:
        ModelError: If the device does not compute in that dtype.
    """
    if dtype == "fp16" and device == "cpu":
        _require_half()
    scale = module.logit_scale.detach().clone()
    bias = module.logit_bias.detach().clone() if module.logit_bias is not None else None
    module = module.to(device=device, dtype=torch_dtype(dtype))
    module.logit_scale = torch.nn.Parameter(scale.to(device), requires_grad=False)
    if bias is not None:
        module.logit_bias = torch.nn.Parameter(bias.to(device), requires_grad=False)
    if any(
        isinstance(m, torch.nn.Conv2d) and m.kernel_size != m.stride
        for m in module.visual.modules()
    ):
        module.visual.to(memory_format=torch.channels_last)
    return cast("torch.nn.Module", module)


def _require_half() -> None:
    x = torch.ones(1, 4, 4, 4, dtype=torch.float16)
    try:
        F.layer_norm(F.conv2d(x, torch.ones(4, 4, 1, 1, dtype=torch.float16)), (4,))
        F.gelu(x[0, 0] @ x[0, 1])
    except RuntimeError as err:
        raise ModelError(
            f"torch does not compute in fp16 on this CPU: {err}", hint="use precision bf16 or fp32"
        ) from err
