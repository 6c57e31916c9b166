"""Text features of prompts: one unit-norm classifier weight per class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.data import Inputs
from clipadapt.core.data.templates import prompts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.method import ScoreKind
    from clipadapt.models import ImageTextModel


POSITIONS_AT_ONCE: Final = 8192
"""Positions of texts that are encoded at a time with gradients."""
POSITIONS_OF_A_GPU: Final = 32_768
"""At most so many on a GPU with much memory. The prompts of 1,000 classes are one chunk then, which takes half the time
because nothing is computed again in the backward pass."""
POSITION_BYTES: Final = 300
"""Memory of a position for each number of the tower's width, in numbers: three times what ViT-B/16 took."""
SHARE: Final = 8
"""The part of a GPU's memory that they may take: one in so many."""


def zero_shot_weights(
    model: ImageTextModel, classnames: tuple[str, ...], templates: tuple[str, ...]
) -> NDArray[np.float32]:
    """Build one text classifier per class: embed every template, average, normalize again.

    Args:
        model: Dual encoder of joint width ``D``.
        classnames: ``C`` class names.
        templates: ``T`` templates, each with one ``{}``.

    Returns:
        Unit-norm weights of shape ``(C, D)``.

    Raises:
        ValueError: If there is no template, or one has no ``{}``.

    References:
        A. Radford et al., "Learning Transferable Visual Models From Natural Language
        Supervision", ICML 2021, section 3.1.4. arXiv:2103.00020
    """
    prompts = prompts_of(classnames, templates)
    ids = tuple(str(i) for i in range(len(prompts)))
    features = model.encode(Inputs(prompts, ids), "text")  # (C * T, D), unit norm
    mean = features.reshape(len(classnames), len(templates), -1).mean(axis=1)  # (C, D)
    weights = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return np.ascontiguousarray(weights, dtype=np.float32)


def mean_text_features(
    model: ImageTextModel, classnames: tuple[str, ...], templates: tuple[str, ...]
) -> NDArray[np.float32]:
    """Average the projected, unnormalized text features of each class over templates, shape ``(C, D)``.

    Raises:
        ValueError: If there is no template, or one has no ``{}``.
    """
    mean = text_features(model, classnames, templates).mean(axis=1)
    return np.ascontiguousarray(mean, dtype=np.float32)


def text_features(
    model: ImageTextModel, classnames: tuple[str, ...], templates: tuple[str, ...]
) -> NDArray[np.float32]:
    """Return the projected, unnormalized features of ``T`` prompts per class, shape ``(C, T, D)``.

    Raises:
        ValueError: If there is no template, or one has no ``{}``.
    """
    prompts = prompts_of(classnames, templates)
    ids = tuple(str(i) for i in range(len(prompts)))
    features = model.encode(Inputs(prompts, ids), "text", "projected")  # (C * T, D)
    return features.reshape(len(classnames), len(templates), -1)


def cosine_scores(
    model: ImageTextModel,
    inputs: Inputs[Any],
    weights: NDArray[np.float32],
    logit_scale: float | None = None,
) -> NDArray[np.float32]:
    """Return the logits of frozen image features and unit-norm text features.

    Args:
        model: Dual encoder of joint width ``D``.
        inputs: ``n`` images.
        weights: Text features, shape ``(C, D)``.
        logit_scale: Scale of the cosine; None uses the scale and bias of the model.

    Returns:
        Shape ``(n, C)``.
    """
    cosine = model.encode(inputs, "image") @ weights.T  # (n, C)
    if logit_scale is not None:
        return np.float32(logit_scale) * cosine
    return np.float32(model.logit_scale) * cosine + np.float32(model.logit_bias)


def score_kind(model: ImageTextModel, logit_scale: float | None = None) -> ScoreKind:
    """Return what :func:`cosine_scores` without training are.

    They are ``sigmoid`` with the scale and bias of a model that was trained with a sigmoid loss. Every method that
    trains or adapts has its own loss or rule, which is a softmax over the classes, and does not ask here.
    """
    return "sigmoid" if model.logit_bias and logit_scale is None else "logit"


def leading(tokens: torch.Tensor) -> int:
    """Return the number of leading columns of token ids ``(n, L)`` that are equal in all rows."""
    if len(tokens) < 2:
        return 0
    same = (tokens == tokens[:1]).all(dim=0)
    return int(same.int().cumprod(0).sum())


def texts_at_once(model: ImageTextModel, embeddings: torch.Tensor) -> int:
    """Return how many texts of token embeddings ``(C, L, W)`` are encoded at a time with gradients.

    A GPU takes more of them; its memory decides how many, whether it is free or not, because sums in another order have
    other last bits.
    """
    import torch

    _, length, width = embeddings.shape
    positions = POSITIONS_AT_ONCE
    if model.device.startswith("cuda") and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(model.device).total_memory // SHARE
        number = 4 if model.dtype == "fp32" else 2
        room = int(memory // (POSITION_BYTES * width * number))
        positions = min(max(room, POSITIONS_AT_ONCE), POSITIONS_OF_A_GPU)
    return max(1, positions // length)


def in_chunks(
    encode: Callable[[slice], torch.Tensor],
    tokens: torch.Tensor,
    chunk: int,
    *,
    dim: int = 0,
    recompute: bool = False,
) -> torch.Tensor:
    """Encode the prompts of all classes, some at a time; with several chunks, activations are recomputed for gradients.

    Args:
        encode: Maps a slice of the ``C`` classes to their features; it is called again in the backward pass.
        tokens: Token ids, shape ``(C, L)``.
        chunk: Classes at a time, see :func:`texts_at_once`.
        dim: Dimension of the classes in the features.
        recompute: Recompute the activations of a single chunk too.

    Returns:
        The features of all classes.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    C, parts = len(tokens), []
    for begin in range(0, C, chunk):
        part = slice(begin, begin + chunk)
        if (recompute or chunk < C) and torch.is_grad_enabled():
            parts.append(checkpoint(encode, part, use_reentrant=False))
        else:
            parts.append(encode(part))
    return torch.cat(parts, dim=dim) if len(parts) > 1 else parts[0]
