"""Read weights as training code saves them: in wrappers, with prefixes, beside other values, with other names."""

from __future__ import annotations

import argparse
import pathlib
import types
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy._core import multiarray
from open_clip.convert import convert_state_dict
from open_clip.model import (
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from clipadapt.core.api.errors import ModelError
from clipadapt.models import _transformers_clip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

State = dict[str, torch.Tensor]

# Classes that training code saves beside weights; unpickling them runs no code of the file.
HARMLESS: Final[list[Any]] = [
    argparse.Namespace,
    types.SimpleNamespace,
    Counter,
    defaultdict,
    dict,
    set,
    pathlib.PurePosixPath,
    pathlib.PosixPath,
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
    np.ndarray,
    np.dtype,
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    multiarray.scalar,
    multiarray._reconstruct,
    *(getattr(np.dtypes, n) for n in np.dtypes.__all__ if n.endswith("DType")),
]
DEEPEST: Final = 3
"""Greatest depth at which wrapped weights are searched."""
MARK: Final = "logit_scale"
"""A tensor that every CLIP has: the text before its name is the prefix of all names."""


def read(path: Path) -> State:
    """Return the weights in a file, without the wrappers and the prefix that they were saved in.

    Raises:
        ModelError: If it cannot be read as plain tensors, or it is unclear which tensors are the weights.
    """
    if path.suffix == ".safetensors":
        try:
            found: Any = load_file(path)
        except (OSError, SafetensorError) as err:
            raise ModelError(
                f"'{path}' cannot be read as safetensors: {err}", hint="download or save it again"
            ) from err
    else:
        found = _unpickled(path)
    return _without_prefix(path, *_unwrapped(path, found))


def _unpickled(path: Path) -> Any:
    """Read a file of ``torch.save`` without running any code in it.

    Raises:
        ModelError: If it holds objects other than plain values, or is damaged.
    """
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # noqa: BLE001  torch raises many types for a file that it cannot read
        text, failure = str(err), err
    if "TorchScript" in text or "torch.jit" in text:
        raise ModelError(
            f"'{path}' is a TorchScript archive, which is a program and not plain tensors",
            hint="if you trust it: torch.save(torch.jit.load(FILE).state_dict(), 'plain.pt')",
        ) from failure
    strange = _strange(path)
    if strange:
        raise ModelError(
            f"'{path}' contains objects of {', '.join(strange[:3])} besides its weights; loading them could run code, "
            "so the file was not loaded",
            hint="if you trust it, save only the weights: found = torch.load(FILE, weights_only=False), then "
            "torch.save(found['state_dict'], 'plain.pt'), or found.state_dict() if it holds a whole model",
        ) from failure
    first = text.strip().splitlines()[0] if text.strip() else type(failure).__name__
    if "weights_only" in first:  # torch advises to run the code in the file
        with path.open("rb") as file:
            first = f"it is not a file of torch.save; it begins with {file.read(24)!r}"
    raise ModelError(
        f"'{path}' cannot be read as plain tensors: {first}",
        hint="it is damaged or not a file of torch.save; save the state dict as .safetensors",
    ) from failure


def _strange(path: Path) -> list[str]:
    """Return the names of the classes and functions in a pickle that are refused."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001  not the zip format, or damaged: no list is available
        return []


def _unwrapped(path: Path, found: Any) -> tuple[str, State]:
    """Return the keys that lead to the only mapping with the weights of a CLIP, and that mapping.

    Raises:
        ModelError: If there is no such mapping, or more than one.
    """
    mappings = list(_mappings(found, "", DEEPEST))
    fits = [(where, state) for where, state in mappings if _prefixes(state)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        names = " and ".join(f"'{where}'" for where, _ in fits)
        raise ModelError(
            f"'{path}' holds the weights of more than one model: {names}",
            hint="save the one you want in a separate file",
        )
    if (
        len(mappings) == 1
    ):  # not a CLIP; the comparison with the architecture gives a better message
        return mappings[0]
    what = [f"'{where or 'the file itself'}' ({len(state)} tensors)" for where, state in mappings]
    raise ModelError(
        f"'{path}' holds no weights of a CLIP"
        + (f"; tensors are in {', '.join(what)}" if what else f", only a {type(found).__name__}"),
        hint="save the state dict of the whole model",
    )


def _mappings(found: Any, where: str, depth: int) -> Iterator[tuple[str, State]]:
    """Yield every mapping with tensors, after the keys that lead to it."""
    if not isinstance(found, Mapping):
        return
    state = {k: v for k, v in found.items() if isinstance(k, str) and torch.is_tensor(v)}
    if state:
        yield where, state
    if depth:
        for key, value in found.items():
            if isinstance(key, str):
                yield from _mappings(value, f"{where}.{key}" if where else key, depth - 1)


def _prefixes(state: State) -> list[str]:
    return [k.removesuffix(MARK) for k in state if k == MARK or k.endswith(f".{MARK}")]


def _without_prefix(path: Path, where: str, state: State) -> State:
    """Remove the common prefix of all names.

    Raises:
        ModelError: If only some names have the prefix, or there are prefixes of several models.
    """
    prefixes = _prefixes(state)
    inside = f" in '{where}'" if where else ""
    if len(prefixes) > 1:
        names = " and ".join(f"'{p}'" for p in prefixes)
        raise ModelError(
            f"'{path}' holds the weights of more than one model{inside}, with the prefixes {names}",
            hint="save the one you want in a separate file",
        )
    prefix = prefixes[0] if prefixes else ""
    # A counter beside the weights (n_averaged of averaged weights) is not a weight.
    counts = {k for k, t in state.items() if t.ndim == 0 and "." not in k and k[:6] != "logit_"}
    state = {name: tensor for name, tensor in state.items() if name not in counts}
    others = [name for name in state if not name.startswith(prefix)]
    if others:
        raise ModelError(
            f"'{path}' holds {len(others)} tensors{inside} beside the CLIP with the prefix '{prefix}', "
            f"such as '{others[0]}'",
            hint="save only the state dict of the CLIP",
        )
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _refuse_other_training(state: State, module: Any) -> None:
    """Refuse weights that open_clip would complete or resize without a word.

    Raises:
        ModelError: If the architecture adds a bias to its logits and the weights have none, or its text feature is
            read at the last position and the weights have another number of positions.
    """
    if MARK in state and "logit_bias" not in state and module.logit_bias is not None:
        raise ModelError(
            "the weights have no logit_bias, and the architecture has one (init_logit_bias): its probabilities are "
            "sigmoids, and these weights were trained with a softmax",
            hint="use the architecture that the weights were saved from",
        )
    text = getattr(module, "text", None)
    given = state.get("text.positional_embedding")
    own = getattr(text, "positional_embedding", None)
    if getattr(text, "pool_type", "") != "last" or given is None or own is None:
        return
    if len(given) != len(own):
        raise ModelError(
            f"the weights were trained with texts of {len(given)} positions, padding included, and the config has "
            f"context_length {len(own)}",
            hint=f"set context_length to {len(given)}",
        )


def for_module(state: State, module: Any) -> State:
    """Rename tensors to the names in ``module``, as :func:`open_clip.load_checkpoint` does."""
    if _transformers_clip.is_state(state):
        state = _transformers_clip.convert(state)
    state = convert_state_dict(module, state)
    if "positional_embedding" in state and not hasattr(module, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in (MARK, "logit_bias"):  # a number, or a vector of one
        own = getattr(module, name, None)
        if name in state and own is not None and own.ndim != state[name].ndim:
            state[name] = state[name].reshape(own.shape)
    _refuse_other_training(state, module)
    ids = "text.transformer.embeddings.position_ids"
    if ids in state and not hasattr(module, ids):
        del state[ids]
    for extra in ("input_resolution", "context_length", "vocab_size"):  # of OpenAI's archives
        state.pop(extra, None)
    if "visual.positional_embedding" in state or "positional_embedding" in state:
        resize_pos_embed(state, module)
    resize_text_pos_embed(state, module)
    return state
