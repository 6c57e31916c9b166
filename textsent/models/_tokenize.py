"""From texts to token ids: truncated to a limit, cached, and reported when many texts are truncated."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from clipadapt.core.api.context import Services

MAX_CACHED: Final = 200_000
"""Maximum number of texts whose token ids are cached."""
MANY_TRUNCATED: Final = 0.01
"""Share of truncated texts from which a run is flagged."""


class CachedTokenizer:
    """A tokenizer that tokenizes each text once.

    Attributes:
        inner: The tokenizer of transformers.
        max_length: Maximum number of tokens that the model reads, special ones included.
        digest: Text that differs between two tokenizers that may give other token ids.
    """

    def __init__(self, inner: PreTrainedTokenizerBase, name: str, max_length: int) -> None:
        self.inner = inner
        self.max_length = max_length
        self.digest = tokenizer_digest(inner)
        self._name = name
        self._n_special = inner.num_special_tokens_to_add()
        self._ids: dict[tuple[str, int], list[int]] = {}
        self._n_tokens: dict[str, int] = {}  # before truncation

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return int(self.inner.pad_token_id or 0)

    def limit(self, max_length: int | None) -> int:
        """Return how many tokens are read if a user asks for ``max_length``; None means the model's maximum.

        Raises:
            ModelError: If the model cannot read ``max_length`` tokens, or it leaves no room for text.
        """
        most = self.max_length
        if max_length is None:
            return most
        if max_length > most:
            raise ModelError(
                f"'{self._name}' reads at most {most} tokens, got max_length {max_length}",
                hint=f"use max_length {most} or less",
            )
        if max_length <= self._n_special:
            raise ModelError(
                f"max_length {max_length} leaves no room for text beside the {self._n_special} special tokens",
                hint=f"use max_length {self._n_special + 1} to {most}",
            )
        return max_length

    def __call__(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """Return the token ids of each text, truncated to ``limit`` tokens."""
        new = list(dict.fromkeys(t for t in texts if (t, limit) not in self._ids))
        if new:
            if len(self._ids) + len(new) > MAX_CACHED:
                self._ids.clear()
                new = list(dict.fromkeys(texts))
            found = self.inner(
                new,
                truncation=True,
                max_length=limit,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            self._ids.update(zip(((t, limit) for t in new), found, strict=True))
        return [list(self._ids[t, limit]) for t in texts]

    def report_truncated(self, texts: Sequence[str], limit: int, services: Services) -> None:
        """Warn about texts that have more than ``limit`` tokens; flag the run if many do."""
        # A token covers at least one byte, so most short texts need not be tokenized to be counted.
        long = [t for t in texts if len(t.encode()) + self._n_special >= limit]
        full = [t for t, row in zip(long, self(long, limit), strict=True) if len(row) == limit]
        new = [t for t in dict.fromkeys(full) if t not in self._n_tokens]
        if new:
            rows = self.inner(
                new, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )["input_ids"]
            self._n_tokens.update(zip(new, map(len, rows), strict=True))
        n = sum(self._n_tokens[t] > limit for t in full)
        if n:
            share = n / len(texts)
            most = self.max_length
            remedy = (
                f"; this model reads up to {most}: --set method.max_length={most}"
                if limit < most
                else ", the most that this model reads"
            )
            services.report(
                "texts_cut",
                f"{n} of {len(texts)} texts ({share:.1%}) are truncated to {limit} tokens{remedy}",
                record=share >= MANY_TRUNCATED,
            )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Describe a tokenizer, so that two that may give other token ids differ.

    The truncation and padding of its last call are left out: each call sets them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = repr(sorted(tokenizer.get_vocab().items()))
    else:
        content = json.dumps(
            {**json.loads(backend.to_str()), "truncation": None, "padding": None}, sort_keys=True
        )
    return (
        f"{type(tokenizer).__name__} {tokenizer.truncation_side} "
        f"{hashlib.sha256(content.encode()).hexdigest()[:32]}"
    )
