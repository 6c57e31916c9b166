"""Prompts with slots for trained context vectors. The slots are found in the tokens; no tokenizer's layout is assumed.

K. Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, section 3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.user_input import shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.models import PromptPosition
    from clipadapt.models._tokenize import Tokenizer

PLACEHOLDER: Final = "X"


def slots(
    tokenizer: Tokenizer, classnames: Sequence[str], n_ctx: int, position: PromptPosition
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids ``(C, context)`` of ``"X ... X name."`` and the positions ``(C, n_ctx)`` of the X's.

    For ``middle`` and ``front`` the tokens of the name move before the second half of the slots, or before all slots.

    Raises:
        ModelError: If slots and name are longer than the context, or a slot is not one token.
    """
    names = [name.replace("_", " ") for name in classnames]
    prompts = [f"{' '.join([PLACEHOLDER] * n_ctx)} {name}." for name in names]
    for name, prompt in zip(classnames, prompts, strict=True):
        n = tokenizer.n_tokens(prompt)
        if n > tokenizer.context_length:
            raise ModelError(
                f"{n_ctx} context vectors and the class name '{shortened(name)}' are {n} tokens, longer than "
                f"the {tokenizer.context_length} that '{tokenizer.shown}' reads",
                hint="lower method.n_ctx, use fewer words in method.ctx_init, or shorten the class name",
            )
    tokens = tokenizer(prompts)  # (C, L)
    mark, before = _mark(tokenizer)
    first = before + torch.arange(n_ctx)
    if not (tokens[:, first] == mark).all():
        raise ModelError(
            f"the tokenizer does not give the {n_ctx} context slots a token each",
            hint="use fewer context vectors, or a model with another tokenizer",
        )
    places = first.expand(len(names), n_ctx).clone()
    if position == "end":
        return tokens, places
    ahead = n_ctx // 2 if position == "middle" else 0
    for row, name in enumerate(names):
        # Without its full stop, as the official code counts.
        length = len(_plain(tokenizer, name))
        begin = before + n_ctx
        moved = tokens[row, begin : begin + length].clone()
        tokens[row, before + ahead : begin + length] = mark
        tokens[row, before + ahead : before + ahead + length] = moved
        places[row, ahead:] += length
    return tokens, places


def context_tokens(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    """Return the token ids of a text that context vectors start from, without special tokens.

    Raises:
        ModelError: If they leave no room for a class name.
    """
    n = tokenizer.n_tokens(text)
    if n >= tokenizer.context_length:
        raise ModelError(
            f"the words '{shortened(text)}' are {n} tokens and leave no room for a class name: "
            f"'{tokenizer.shown}' reads {tokenizer.context_length}",
            hint="use fewer words in method.ctx_init",
        )
    return _plain(tokenizer, text)


def nearest_tokens(
    tokenizer: Tokenizer, embedding: Any, vectors: torch.Tensor, k: int
) -> list[list[tuple[str, float]]]:
    """Return per vector ``(n, W)`` the ``k`` tokens of smallest Euclidean distance, with the distances."""
    table = embedding.weight.detach().float()  # (V, W)
    exact = "donot_use_mm_for_euclid_dist"
    distances, ids = torch.cdist(vectors.float(), table, compute_mode=exact).topk(k, largest=False)
    words = [tokenizer.token(int(i)) for i in ids.flatten()]
    rows = iter(zip(words, distances.flatten().tolist(), strict=True))
    return [[next(rows) for _ in range(k)] for _ in vectors]


def _plain(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    """Return the token ids of a text without the special tokens around it."""
    _, before = _mark(tokenizer)
    # Compared with the same text before a placeholder, which shows where the text ends.
    alone, longer = tokenizer([text, f"{text} {PLACEHOLDER}"])
    differs = torch.nonzero(alone != longer)[:, 0]
    return alone[before : int(differs[0])]


def _mark(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the placeholder's token id and the number of special tokens before a text."""
    one, two = tokenizer([PLACEHOLDER, f"{PLACEHOLDER} {PLACEHOLDER}"])
    same = torch.nonzero(one != two)[:, 0]
    # "X" and "X X" are equal up to the end of the first X.
    first = int(same[0]) - 1 if len(same) else -1
    if first < 0 or two[first] != two[first + 1]:
        raise ModelError(
            "the tokenizer does not give the context placeholder a token of its own",
            hint="use a model with another tokenizer",
        )
    return int(two[first]), first
