"""The tokenizer of a model: open_clip's own BPE, or one in the format of Hugging Face."""

from __future__ import annotations

import functools
import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

from clipadapt.core.api.errors import ModelError, first_line
from clipadapt.core.api.user_input import shortened
from clipadapt.models import _preflight
from clipadapt.tensor import tokenizers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from clipadapt.models._sources import Source


class Tokenizer:
    """A tokenizer of open_clip that refuses texts longer than the context.

    Attributes:
        inner: open_clip's tokenizer.
        shown: Name of the model, for messages.
    """

    def __init__(self, inner: Any, shown: str) -> None:
        self.inner = inner
        self.shown = shown

    @classmethod
    def of(cls, source: Source, shown: str) -> Tokenizer:
        """Load the tokenizer of a model.

        Raises:
            ModelError: If its files cannot be read, or hold no vocabulary.
        """
        text_cfg = source.model_cfg["text_cfg"]
        context = int(text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH))
        kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
        if not text_cfg.get("hf_tokenizer_name"):
            own = cls(_simple(context, json.dumps(kwargs, sort_keys=True)), shown)
            _preflight.check_tokenizer(own, source.model_cfg)
            return own
        kwargs["tokenizer_mode"] = text_cfg.get("tokenizer_mode")
        try:
            inner = HFTokenizer(
                str(source.tokenizer), context_length=context, local_files_only=True, **kwargs
            )
        except (
            Exception
        ) as err:  # transformers and tokenizers raise many types of exceptions for unreadable files
            raise ModelError(
                f"the tokenizer of '{shown}' in '{source.tokenizer}' cannot be read: {first_line(err)}",
                hint="save it again with tokenizer.save_pretrained(folder)",
            ) from err
        tokenizers.check(inner.tokenizer, shown)
        given = cls(inner, shown)
        _preflight.check_tokenizer(given, source.model_cfg)
        _ = given.description  # before it is used
        return given

    @property
    def context_length(self) -> int:
        """Tokens of each row that :meth:`__call__` returns."""
        return int(self.inner.context_length)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return token ids, shape ``(n, context_length)``, int64.

        Raises:
            ModelError: If a text is longer than the context; no text is truncated silently.
        """
        for text in texts:
            # A token has at least one byte, so most texts need no count.
            if len(text.encode()) + 2 > self.context_length:
                n = self.n_tokens(text)
                if n > self.context_length:
                    raise ModelError(
                        f"a text of {n} tokens is longer than the {self.context_length} that "
                        f"'{self.shown}' reads: '{shortened(text)}'",
                        hint="shorten the class name or the template",
                    )
        tokens: torch.Tensor = self.inner(list(texts))
        return tokens

    def n_tokens(self, text: str) -> int:
        """Return the number of tokens of a text before truncation, special tokens included."""
        if isinstance(self.inner, SimpleTokenizer):
            return len(self.inner.encode(text)) + 2
        return len(self.inner.tokenizer(self._clean(text)).input_ids)

    def plain_ids(self, text: str) -> list[int]:
        """Return all token ids of a text, without special tokens."""
        if isinstance(self.inner, SimpleTokenizer):
            return list(self.inner.encode(text))
        return list(self.inner.tokenizer(self._clean(text), add_special_tokens=False).input_ids)

    def _clean(self, text: str) -> str:
        clean = getattr(self.inner, "clean_fn", None)
        return clean(text) if clean else text

    @property
    def unknown_id(self) -> int | None:
        """Id of the unknown token; None for a tokenizer that works on bytes and needs none."""
        inner = getattr(self.inner, "tokenizer", None)
        return None if inner is None else getattr(inner, "unk_token_id", None)

    def token(self, token_id: int) -> str:
        """Return a token of the vocabulary as text."""
        inner = getattr(self.inner, "tokenizer", None)
        if inner is not None:
            return str(inner.convert_ids_to_tokens(token_id))
        return str(self.inner.decoder.get(token_id, "?")).removesuffix("</w>")

    @cached_property
    def description(self) -> str:
        """Text that differs between two tokenizers that may give other token ids.

        It is made once, before the tokenizer is used: a call leaves its padding and truncation in the backend.
        """
        inner = self.inner
        clean = getattr(getattr(inner, "clean_fn", None), "__name__", "")
        if isinstance(inner, SimpleTokenizer):
            content = f"{inner.vocab_size} {sorted(inner.all_special_ids)}"
        else:
            backend = getattr(inner.tokenizer, "backend_tokenizer", None)
            content = (
                backend.to_str()
                if backend is not None
                else repr(sorted(inner.tokenizer.get_vocab().items()))
            )
        digest = hashlib.sha256(content.encode()).hexdigest()[:32]
        return f"{type(inner).__name__} {clean} context={inner.context_length} {digest}"


@functools.lru_cache(maxsize=8)
def _simple(context: int, kwargs: str) -> SimpleTokenizer:
    """Return open_clip's own tokenizer; models with equal settings share one, as building it takes 0.1 s."""
    return SimpleTokenizer(context_length=context, **json.loads(kwargs))
