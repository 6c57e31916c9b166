"""Statistics of a dataset of labelled texts: sizes, class balance, lengths, truncation and duplicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from clipadapt.core.api.data import SplitName
from clipadapt.core.api.errors import DataError
from textsent.datasets._repeated import duplicates

if TYPE_CHECKING:
    from clipadapt.core.api.data import Dataset, Split

Tokenize = Callable[[Sequence[str], int | None], Mapping[str, Sequence[Sequence[int]]]]
"""Maps texts and a maximum length (None does not truncate) to a tokenizer's columns, one row per text."""
Lengths = Mapping[SplitName, Mapping[str, NDArray[np.int64]]]

REQUIRED_COLUMNS: Final = ("text", "label", "input_ids", "attention_mask")
N_EXAMPLES: Final = 3


def text_lengths(dataset: Dataset[str], tokenize: Tokenize | None = None) -> Lengths:
    """Return the length of every text by split and unit.

    Args:
        dataset: Labelled texts.
        tokenize: Tokenizer; without it tokens are not counted.

    Returns:
        Per split ``characters`` (code points), ``words`` (separated by white space) and ``tokens`` (special tokens
        included, not truncated), each of shape ``(n,)``.

    Raises:
        DataError: If a split is empty.
    """
    found: dict[SplitName, dict[str, NDArray[np.int64]]] = {}
    for split in dataset.splits:
        texts = list(dataset.split(split).inputs.examples)
        if not texts:
            raise DataError(f"the split '{split}' of {dataset.name} is empty")
        rows: dict[str, list[int]] = {
            "characters": [len(t) for t in texts],
            "words": [len(t.split()) for t in texts],
        }
        if tokenize is not None:
            rows["tokens"] = [len(ids) for ids in tokenize(texts, None)["input_ids"]]
        found[split] = {unit: np.asarray(row, dtype=np.int64) for unit, row in rows.items()}
    return found


def explore(
    dataset: Dataset[str],
    *,
    tokenize: Tokenize | None = None,
    max_length: int | None = None,
    lengths: Lengths | None = None,
) -> dict[str, Any]:
    """Return statistics of a dataset.

    Args:
        dataset: Labelled texts.
        tokenize: Tokenizer; without it there are no tokens and columns.
        max_length: Number of tokens at which texts are truncated; None does not truncate.
        lengths: Result of :func:`text_lengths`, if it has been called already.

    Returns:
        JSON-ready data: provenance, ``features`` (column -> type), ``splits`` (size, classes, lengths, truncation,
        columns and first examples of each) and ``duplicates``.

    Raises:
        DataError: If a split is empty, or a tokenized split lacks one of :data:`REQUIRED_COLUMNS`.
    """
    lengths = text_lengths(dataset, tokenize) if lengths is None else lengths
    classes = ", ".join(f"{i} {name}" for i, name in enumerate(dataset.classnames))
    features = {"id": "string", "text": "string", "label": f"class label ({classes})"}
    splits: dict[str, Any] = {}
    for name in dataset.splits:
        part = dataset.split(name)
        facts = _split_facts(part, dataset.classnames, lengths[name])
        if tokenize is not None:
            origin = f"{dataset.name}, split {name}"
            facts |= _tokenized(part, tokenize, max_length, lengths[name]["tokens"], origin)
            features |= {c: "list of int" for c in facts["columns"] if c not in features}
        facts["examples"] = _first_examples(part, dataset.classnames)
        splits[name] = facts
    return {
        "dataset": dataset.name,
        "source": dataset.source,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "fingerprint": dataset.fingerprint,
        "flags": list(dataset.flags),
        "notes": list(getattr(dataset, "notes", ())),
        "skipped": dataset.skipped,
        "classnames": list(dataset.classnames),
        "features": features,
        "splits": splits,
        "duplicates": duplicates(dataset),
    }


def _split_facts(
    part: Split[str], classnames: Sequence[str], lengths: Mapping[str, NDArray[np.int64]]
) -> dict[str, Any]:
    """Return size, class balance and length statistics of a split."""
    counts = np.bincount(part.labels, minlength=len(classnames))
    return {
        "size": len(part),
        "classes": {
            name: {"count": int(n), "share": float(n / len(part))}
            for name, n in zip(classnames, counts, strict=True)
        },
        "lengths": {unit: _statistics(values) for unit, values in lengths.items()},
    }


def _tokenized(
    part: Split[str],
    tokenize: Tokenize,
    max_length: int | None,
    lengths: NDArray[np.int64],
    origin: str,
) -> dict[str, Any]:
    """Return the checked columns of a tokenized split, and how many of its texts are truncated."""
    texts = list(part.inputs.examples)
    columns = {"text": texts, "label": part.labels.tolist(), **tokenize(texts, max_length)}
    check_columns(columns, origin)
    facts: dict[str, Any] = {"columns": list(columns)}
    if max_length is not None:
        longer = int((lengths > max_length).sum())
        facts["truncation"] = {
            "max_length": max_length,
            "count": longer,
            "share": longer / len(part),
        }
    return facts


def _first_examples(part: Split[str], classnames: Sequence[str]) -> list[dict[str, str]]:
    return [
        {
            "id": part.inputs.ids[i],
            "text": part.inputs.examples[i],
            "label": classnames[part.labels[i]],
        }
        for i in range(min(N_EXAMPLES, len(part)))
    ]


def check_columns(columns: Mapping[str, Sequence[Any]], origin: str) -> None:
    """Check that a model can read a tokenized split.

    Args:
        columns: Column -> one value per text.
        origin: Name of the split, for messages.

    Raises:
        DataError: If one of :data:`REQUIRED_COLUMNS` is missing, columns differ in length, a text has no token,
            or its mask and its tokens differ in length.
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise DataError(
            f"{origin}: the tokenized split has no {', '.join(missing)}; it has {', '.join(columns)}",
            hint="use a model whose tokenizer returns input_ids and attention_mask",
        )
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {n}" for name, n in sizes.items())
        raise DataError(f"{origin}: the columns of the tokenized split differ in length: {shown}")
    pairs = zip(columns["input_ids"], columns["attention_mask"], strict=True)
    for i, (ids, mask) in enumerate(pairs):
        if not len(ids) or len(ids) != len(mask):
            raise DataError(
                f"{origin}, row {i + 1}: {len(ids)} tokens and a mask of length {len(mask)}; "
                "they must be equal and at least 1",
                hint="use a model whose tokenizer can read these texts",
            )


def _statistics(values: NDArray[np.int64]) -> dict[str, float | int]:
    """Return statistics of ``n`` lengths; quantiles are interpolated linearly."""
    median, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99]).tolist()
    return {
        "min": int(values.min()),
        "mean": float(values.mean()),
        "median": median,
        "p90": p90,
        "p95": p95,
        "p99": p99,
        "max": int(values.max()),
    }
