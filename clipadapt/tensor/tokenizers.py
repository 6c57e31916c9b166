"""The files of a tokenizer, and the check that it has a vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

VOCABULARIES: Final = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("spm.model",),
    ("tokenizer.model",),
)
"""Each of these sets of files holds a vocabulary."""
SETTINGS: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FILES: Final = frozenset({*SETTINGS, *(name for names in VOCABULARIES for name in names)})


def select(names: Iterable[str]) -> list[str]:
    """Return the names that are files of a tokenizer; empty if no vocabulary is among them."""
    given = set(names)
    complete = any(given.issuperset(files) for files in VOCABULARIES)
    return sorted(FILES & given) if complete else []


def files_of(folder: Path) -> tuple[Path, ...]:
    """Return the files that decide how text is tokenized; empty if the folder holds no vocabulary."""
    return tuple(folder / n for n in select(n for n in FILES if (folder / n).is_file()))


def check(tokenizer: Any, shown: str) -> None:
    """Refuse a tokenizer that knows nothing but its special tokens.

    A tokenizer whose vocabulary was not found still works: every word is unknown to it.

    Args:
        tokenizer: A tokenizer of transformers.
        shown: Name of the model, for messages.

    Raises:
        ModelError: If it knows fewer than two tokens beside the special ones.
    """
    tokens = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if len(tokens) < 2:
        raise ModelError(
            f"the tokenizer of '{shown}' knows {len(tokens)} tokens beside its special ones: its vocabulary is missing",
            hint="download its files again, or save the tokenizer with tokenizer.save_pretrained(folder)",
        )
