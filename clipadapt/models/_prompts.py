"""Prompts with room for learnt vectors, found from the tokens themselves: no tokenizer's layout is assumed.

K. Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, section 3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from clipadapt.core.api.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PLACEHOLDER: Final = "X"


def slots(
    tokenize: Callable[[Sequence[str]], torch.Tensor],
    classnames: Sequence[str],
    n_ctx: int,
    position: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens ``(C, context)`` of ``"X ... X name."`` and the slots ``(C, n_ctx)`` of the X's.

    For ``middle`` and ``front`` the tokens of the name move: before the second half of the slots, or before all.

    Raises:
        ModelError: If the tokenizer does not keep the slots apart.
    """
    names = [name.replace("_", " ") for name in classnames]
    tokens = tokenize(texts(classnames, n_ctx))  # (C, L)
    mark, before = _mark(tokenize)
    first = before + torch.arange(n_ctx)
    if not (tokens[:, first] == mark).all():
        raise ModelError(
            f"the tokenizer does not give the {n_ctx} context slots a token each",
            hint="take fewer context vectors, or a model with another tokenizer",
        )
    places = first.expand(len(names), n_ctx).clone()
    if position == "end":
        return tokens, places
    ahead = n_ctx // 2 if position == "middle" else 0
    for row, name in enumerate(names):
        # Without its full stop, as the official code counts.
        length = len(words_of(tokenize, name))
        begin = before + n_ctx
        moved = tokens[row, begin : begin + length].clone()
        tokens[row, before + ahead : begin + length] = mark
        tokens[row, before + ahead : before + ahead + length] = moved
        places[row, ahead:] += length
    return tokens, places


def texts(classnames: Sequence[str], n_ctx: int) -> list[str]:
    """Return the prompts as text, a placeholder for each vector."""
    marks = " ".join([PLACEHOLDER] * n_ctx)
    return [f"{marks} {name.replace('_', ' ')}." for name in classnames]


def words_of(tokenize: Callable[[Sequence[str]], torch.Tensor], text: str) -> torch.Tensor:
    """Return the token ids of a text without the special tokens round it."""
    _, before = _mark(tokenize)
    # The text stands before a mark, which shows where it ends; marks and text are parted by a blank.
    alone, longer = tokenize([text, f"{text} {PLACEHOLDER}"])
    differs = torch.nonzero(alone != longer)[:, 0]
    return alone[before : int(differs[0])]


def piece(tokenizer: Any, token: int) -> str:
    """Return a vocabulary piece as text."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None:
        return str(inner.convert_ids_to_tokens(token))
    return str(tokenizer.decoder.get(token, "?")).removesuffix("</w>")


def _mark(tokenize: Callable[[Sequence[str]], torch.Tensor]) -> tuple[int, int]:
    """Return the placeholder's token id and how many special tokens stand before a text."""
    one, two = tokenize([PLACEHOLDER, f"{PLACEHOLDER} {PLACEHOLDER}"])
    same = torch.nonzero(one != two)[:, 0]
    # "X" and "X X" are equal up to the end of the first.
    first = int(same[0]) - 1 if len(same) else -1
    if first < 0 or two[first] != two[first + 1]:
        raise ModelError(
            "the tokenizer does not give the context placeholder a token of its own",
            hint="take a model with another tokenizer",
        )
    return int(two[first]), first
