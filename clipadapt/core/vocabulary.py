"""The files of a tokenizer: which there may be, and how a tokenizer that lacks its vocabulary is found out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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
WORDS: Final = (
    *("a", "the", "of", "and", "it", "dog", "cat", "red", "blue", "film", "good", "bad"),
    *("house", "water"),
)


def has_vocabulary(names: Iterable[str]) -> bool:
    """Tell whether one of the sets of files that hold a vocabulary is among these names."""
    there = set(names)
    return any(there.issuperset(some) for some in VOCABULARIES)


def files_of(folder: Path) -> tuple[Path, ...]:
    """Return the files that decide how text is tokenized; none where the folder holds no vocabulary."""
    there = [folder / name for name in sorted(FILES) if (folder / name).is_file()]
    return tuple(there) if has_vocabulary(p.name for p in there) else ()


def check(tokens: Callable[[str], Any], shown: str) -> None:
    """Refuse a tokenizer to which plain English words are all the same.

    A tokenizer whose vocabulary was not found still works: every word is unknown to it.

    Args:
        tokens: Returns the token ids of a text.
        shown: Name of the model.

    Raises:
        ModelError: If most of :data:`WORDS` have the tokens of another one.
    """
    different = {tuple(tokens(word)) for word in WORDS}
    if len(different) < len(WORDS) // 2:
        raise ModelError(
            f"the tokenizer of '{shown}' gives {len(different)} different results for {len(WORDS)} plain English "
            f"words ({', '.join(WORDS[-4:])}, ...): its vocabulary is missing or is not an English one",
            hint="get its files again, or save the tokenizer with tokenizer.save_pretrained(folder)",
        )
