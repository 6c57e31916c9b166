"""The files of a tokenizer: which there may be, and how a tokenizer that lacks its vocabulary is found out."""

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
"""Any of these sets of files holds a vocabulary."""
SETTINGS: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FILES: Final = frozenset({*SETTINGS, *(name for names in VOCABULARIES for name in names)})


def has_vocabulary(names: Iterable[str]) -> bool:
    """Tell whether one of the sets of files that hold a vocabulary is among these names."""
    there = set(names)
    return any(there.issuperset(some) for some in VOCABULARIES)


def files_of(folder: Path) -> tuple[Path, ...]:
    """Return the files that decide how text is tokenized; none where the folder holds no vocabulary."""
    there = [folder / name for name in sorted(FILES) if (folder / name).is_file()]
    return tuple(there) if has_vocabulary(p.name for p in there) else ()


def check(tokenizer: Any, shown: str) -> None:
    """Refuse a tokenizer that knows its special tokens and nothing else.

    A tokenizer whose vocabulary was not found still works: every word is unknown to it.

    Args:
        tokenizer: A tokenizer of transformers.
        shown: Name of the model.

    Raises:
        ModelError: If it knows fewer than two tokens beside the special ones.
    """
    tokens = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if len(tokens) < 2:
        raise ModelError(
            f"the tokenizer of '{shown}' knows {len(tokens)} tokens beside its special ones: its vocabulary is missing",
            hint="get its files again, or save the tokenizer with tokenizer.save_pretrained(folder)",
        )
