"""What a set of labelled texts holds: sizes, balance, lengths, truncation and duplicates, as data and as a picture."""

from __future__ import annotations

import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement, product
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipadapt.core.api.data import SplitName
from clipadapt.core.api.errors import ClipAdaptError, DataError
from clipadapt.core.api.user_input import visible
from clipadapt.core.data.duplicates import NEAR, comparisons, near_duplicates
from clipadapt.core.files.atomic import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from clipadapt.core.api.data import Dataset

Tokenize = Callable[[Sequence[str], int | None], Mapping[str, Sequence[Sequence[int]]]]
"""From texts and a maximum length (None cuts nothing) to a tokenizer's columns, one row per text."""
Lengths = Mapping[SplitName, Mapping[str, NDArray[np.int64]]]

REQUIRED_COLUMNS: Final = ("text", "label", "input_ids", "attention_mask")
UNITS: Final = {
    "characters": "characters",
    "words": "words",
    "pieces": "pieces, special ones included",
}
MAX_COMPARISONS: Final = 50_000_000
"""Pairs of texts compared in the search for near-duplicates, half a minute's worth."""
N_EXAMPLES: Final = 3
BINS: Final = 40
SHOWN: Final = 100
"""Characters of an example that :func:`render` shows."""
COLOURS: Final = {"train": "#4c72b0", "val": "#dd8452", "test": "#2a7f3e"}
LINES: Final = {"train": "-", "val": "--", "test": "-"}


def text_lengths(dataset: Dataset[str], tokenize: Tokenize | None = None) -> Lengths:
    """Return the length of every text by split and unit.

    Args:
        dataset: Labelled texts.
        tokenize: Tokenizer; without one there are no pieces.

    Returns:
        Per split ``characters`` (code points), ``words`` (parted by white space) and ``pieces`` (special ones
        included, nothing cut), each of shape ``(n,)``.

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
            rows["pieces"] = [len(ids) for ids in tokenize(texts, None)["input_ids"]]
        found[split] = {unit: np.asarray(row, dtype=np.int64) for unit, row in rows.items()}
    return found


def explore(
    dataset: Dataset[str],
    *,
    tokenize: Tokenize | None = None,
    max_length: int | None = None,
    lengths: Lengths | None = None,
) -> dict[str, Any]:
    """Describe a data set in full.

    Args:
        dataset: Labelled texts.
        tokenize: Tokenizer; without one nothing is said of pieces and columns.
        max_length: Pieces at which texts are cut; None cuts nothing.
        lengths: What :func:`text_lengths` gave, where it was called already.

    Returns:
        JSON-ready data: provenance, ``features`` (column -> type), ``splits`` (size, classes, lengths, truncation,
        columns and first examples of each) and ``duplicates``.

    Raises:
        DataError: If a split is empty, or a tokenised split lacks one of :data:`REQUIRED_COLUMNS`.
    """
    lengths = text_lengths(dataset, tokenize) if lengths is None else lengths
    classes = ", ".join(f"{i} {name}" for i, name in enumerate(dataset.classnames))
    features = {"id": "string", "text": "string", "label": f"class label ({classes})"}
    splits: dict[str, Any] = {}
    for split in dataset.splits:
        part = dataset.split(split)
        counts = np.bincount(part.labels, minlength=len(dataset.classnames))
        facts: dict[str, Any] = {
            "size": len(part),
            "classes": {
                name: {"count": int(n), "share": float(n / len(part))}
                for name, n in zip(dataset.classnames, counts, strict=True)
            },
            "lengths": {unit: _statistics(values) for unit, values in lengths[split].items()},
        }
        if tokenize is not None:
            texts = list(part.inputs.examples)
            columns = {
                "text": texts,
                "label": part.labels.tolist(),
                **tokenize(texts, max_length),
            }
            check_columns(columns, f"{dataset.name}, split {split}")
            facts["columns"] = list(columns)
            features |= {name: "list of int" for name in columns if name not in features}
            if max_length is not None:
                cut = int((lengths[split]["pieces"] > max_length).sum())
                facts["truncation"] = {
                    "max_length": max_length,
                    "count": cut,
                    "share": cut / len(part),
                }
        facts["examples"] = [
            {
                "id": part.inputs.ids[i],
                "text": part.inputs.examples[i],
                "label": dataset.classnames[part.labels[i]],
            }
            for i in range(min(N_EXAMPLES, len(part)))
        ]
        splits[split] = facts
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


def check_columns(columns: Mapping[str, Sequence[Any]], origin: str) -> None:
    """Check that a tokenised split is ready for a model.

    Args:
        columns: Column -> one value per text.
        origin: Name of the split, for messages.

    Raises:
        DataError: If one of :data:`REQUIRED_COLUMNS` is missing, columns differ in length, a text has no piece,
            or its mask is not as long as its pieces.
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise DataError(
            f"{origin}: tokenised, it lacks {', '.join(missing)}; it has {', '.join(columns)}",
            hint="take a model whose tokenizer returns input_ids and attention_mask",
        )
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {n}" for name, n in sizes.items())
        raise DataError(f"{origin}: tokenised, its columns differ in length: {shown}")
    pairs = zip(columns["input_ids"], columns["attention_mask"], strict=True)
    for i, (ids, mask) in enumerate(pairs):
        if not len(ids) or len(ids) != len(mask):
            raise DataError(
                f"{origin}, row {i + 1}: {len(ids)} pieces and a mask of {len(mask)}; "
                "both must be equal and at least 1",
                hint="take a model whose tokenizer knows these texts",
            )


def render(found: Mapping[str, Any]) -> str:
    """Return what :func:`explore` found as text for people, tables aligned with blanks."""
    tables = [
        _provenance(found),
        _sizes(found),
        _length_table(found["splits"]),
        _tokenised(found["splits"]),
        *_duplicate_tables(found["duplicates"]),
        [
            ["first texts", "label", "text"],
            *(_example_row(e) for facts in found["splits"].values() for e in facts["examples"]),
        ],
    ]
    return "\n\n".join(_aligned(rows) for rows in tables if rows) + "\n"


def _provenance(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        ["data set", found["dataset"]],
        *([key, found[key]] for key in ("source", "licence", "citation")),
        ["flags", ", ".join(found["flags"]) or "none"],
        ["rows left out", str(found["skipped"])],
        *([f"column {name}", kind] for name, kind in found["features"].items()),
    ]


def _sizes(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["split", "texts", *found["classnames"]]]
    for split, facts in found["splits"].items():
        balance = [f"{c['count']:,} ({c['share']:.1%})" for c in facts["classes"].values()]
        rows.append([split, f"{facts['size']:,}", *balance])
    return rows


def _length_table(splits: Mapping[str, Any]) -> list[list[str]]:
    names = {"min": "min", "mean": "mean", "median": "median", "p90": "90 %", "p95": "95 %"}
    names |= {"p99": "99 %", "max": "max"}
    units = list(next(iter(splits.values()))["lengths"])
    rows = [["length in", "split", *names.values()]]
    for unit in units:
        for split, facts in splits.items():
            numbers = (facts["lengths"][unit][name] for name in names)
            rows.append([unit, split, *(f"{x:,.1f}".removesuffix(".0") for x in numbers)])
    return rows


def _tokenised(splits: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for split, facts in splits.items():
        if "columns" in facts:
            rows.append([f"columns of {split}", ", ".join(facts["columns"])])
    for split, facts in splits.items():
        if "truncation" in facts:
            cut = facts["truncation"]
            longer = f"{cut['count']:,} ({cut['share']:.1%}) longer than {cut['max_length']} pieces"
            rows.append([f"cut in {split}", longer])
    return rows


def _duplicate_tables(found: Mapping[str, Any]) -> list[list[list[str]]]:
    near = f"near-duplicate pairs (overlap >= {found['threshold']})"
    rows = [["duplicates", "equal texts", "with two labels", near, "with two labels"]]
    unknown = {"count": None, "conflicts": None}
    for exact, alike in zip(
        found["exact"], found["near"] or [unknown] * len(found["exact"]), strict=True
    ):
        counts = (exact["count"], exact["conflicts"], alike["count"], alike["conflicts"])
        shown = ("not searched" if n is None else f"{n:,}" for n in counts)
        rows.append([" and ".join(exact["splits"]), *shown])
    pairs = []
    for pair in found["examples"]:
        kind = "equal" if pair["kind"] == "exact" else f"overlap {pair['overlap']:.2f}"
        pairs.append([kind, *_example_row(pair["a"])])
        pairs.append(["", *_example_row(pair["b"])])
    return [rows, pairs]


def _example_row(example: Mapping[str, str]) -> list[str]:
    line = " ".join(example["text"].split())
    text = line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
    return [example["id"], example["label"], text]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


# ---------------------------------------------------------------- duplicates


class _Place(NamedTuple):
    """Where a text stands."""

    split: SplitName
    id: str
    label: int


def duplicates(dataset: Dataset[str], threshold: float = NEAR) -> dict[str, Any]:
    """Find texts that occur more than once, within a split and across splits.

    Args:
        dataset: Labelled texts.
        threshold: Jaccard overlap of the word sets from which two different texts count as near-duplicates.

    Returns:
        ``threshold``; ``exact`` and ``near``, one row per pair of splits with ``splits`` (a split's own pair is
        named once), ``count`` (distinct texts; for ``near`` pairs of distinct texts) and ``conflicts`` (how many
        of them carry more than one label); ``examples``, conflicts first. ``near`` is None where the search would
        take more than :data:`MAX_COMPARISONS`, and ``comparisons`` says how many.
    """
    places: dict[str, list[_Place]] = defaultdict(list)
    for split in dataset.splits:
        part = dataset.split(split)
        for text, key, label in zip(
            part.inputs.examples, part.inputs.ids, part.labels.tolist(), strict=True
        ):
            places[text].append(_Place(split, key, label))
    texts = list(places)
    regions = [
        tuple(dict.fromkeys(pair)) for pair in combinations_with_replacement(dataset.splits, 2)
    ]
    exact, near = _Tally(), _Tally()
    repeats: list[_Pair] = []
    likenesses: list[_Pair] = []

    for text, found in places.items():
        if len(found) < 2:
            continue
        conflict = len({p.label for p in found}) > 1
        where = Counter(p.split for p in found)
        within = [(split,) for split, n in where.items() if n > 1]
        across = [r for r in regions if len(r) == 2 and all(s in where for s in r)]
        exact.add([*within, *across], found)
        a, b = _apart(found, found)
        repeats.append(_Pair(1.0, conflict, text, a, text, b))

    # Equal texts are dealt with above: the pairs of n copies would be n squared.
    cost = comparisons(texts, threshold)
    searched = cost <= MAX_COMPARISONS
    for i, j, overlap in near_duplicates(texts, threshold) if searched else ():
        first, second = places[texts[i]], places[texts[j]]
        conflict = len({p.label for p in (*first, *second)}) > 1
        met = {
            frozenset(pair) for pair in product({p.split for p in first}, {p.split for p in second})
        }
        near.add([r for r in regions if frozenset(r) in met], (*first, *second))
        a, b = _apart(first, second)
        likenesses.append(_Pair(overlap, conflict, texts[i], a, texts[j], b))

    examples = [
        pair.described(kind, dataset.classnames)
        for kind, pairs in (("exact", repeats), ("near", likenesses))
        for pair in sorted(pairs, key=_Pair.rank)[:N_EXAMPLES]
    ]
    return {
        "threshold": threshold,
        "exact": [exact.row(region) for region in regions],
        "near": [near.row(region) for region in regions] if searched else None,
        "comparisons": cost,
        "examples": examples,
    }


class _Pair(NamedTuple):
    """Two places of one text, or of two that are alike."""

    overlap: float
    conflict: bool
    text_a: str
    a: _Place
    text_b: str
    b: _Place

    def rank(self) -> tuple[Any, ...]:
        """Conflicts first, then pairs across splits, then the most alike."""
        return not self.conflict, self.a.split == self.b.split, -self.overlap, self.a.id, self.b.id

    def described(self, kind: str, classnames: Sequence[str]) -> dict[str, Any]:
        """Return the pair as plain data."""
        sides = {
            name: {
                "split": place.split,
                "id": place.id,
                "label": classnames[place.label],
                "text": text,
            }
            for name, text, place in (("a", self.text_a, self.a), ("b", self.text_b, self.b))
        }
        return {
            "kind": kind,
            "overlap": float(self.overlap),
            "conflict": self.conflict,
            **sides,
        }


class _Tally:
    """Counts per split, or pair of splits."""

    def __init__(self) -> None:
        self.count: Counter[tuple[SplitName, ...]] = Counter()
        self.conflicts: Counter[tuple[SplitName, ...]] = Counter()

    def add(self, regions: Sequence[tuple[SplitName, ...]], places: Sequence[_Place]) -> None:
        self.count.update(regions)
        self.conflicts.update(
            region for region in regions if len({p.label for p in places if p.split in region}) > 1
        )

    def row(self, region: tuple[SplitName, ...]) -> dict[str, Any]:
        return {
            "splits": list(region),
            "count": self.count[region],
            "conflicts": self.conflicts[region],
        }


def _apart(first: Sequence[_Place], second: Sequence[_Place]) -> tuple[_Place, _Place]:
    """Return two places that show most: of two labels, else of two splits, else the first ones."""
    pairs = [(a, b) for a, b in product(_few(first), _few(second)) if a != b]
    return max(pairs, key=lambda p: (p[0].label != p[1].label, p[0].split != p[1].split))


def _few(places: Sequence[_Place]) -> list[_Place]:
    """Return two places at most of each split and label: a text may occur thousands of times."""
    seen: Counter[tuple[SplitName, int]] = Counter()
    kept = []
    for place in places:
        seen[place.split, place.label] += 1
        if seen[place.split, place.label] <= 2:
            kept.append(place)
    return kept


# ---------------------------------------------------------------- lengths


def _statistics(values: NDArray[np.int64]) -> dict[str, float | int]:
    """Return what is told of ``n`` lengths; quantiles are interpolated linearly."""
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


def histogram_png(
    path: Path, lengths: Lengths, *, title: str, max_length: int | None = None
) -> None:
    """Draw the lengths of every split, one panel per unit, and write the picture atomically.

    The height is the share of a split's texts, so that splits of different sizes can be compared. Where a few
    texts are far longer than the rest, the last bin holds them.

    Args:
        path: PNG file.
        lengths: What :func:`text_lengths` gave.
        title: Title of the picture.
        max_length: Pieces at which texts are cut, drawn as a line; None draws none.

    Raises:
        ClipAdaptError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ClipAdaptError(
            "the histogram needs matplotlib, which is not installed",
            hint="pip install 'clipadapt[report]'",
        ) from None

    units = list(next(iter(lengths.values())))
    figure = Figure(figsize=(5 * len(units), 4.2), layout="constrained")
    axes = figure.subplots(1, len(units), squeeze=False, sharey=False)[0]
    for ax, unit in zip(axes, units, strict=True):
        width, upper, clipped = _bins(np.concatenate([of[unit] for of in lengths.values()]))
        edges = np.arange(0, upper + width, width)
        for split, of in lengths.items():
            values = of[unit]
            counts = np.bincount(np.minimum(values, upper - 1) // width, minlength=len(edges) - 1)
            ax.stairs(
                100 * counts / len(values),
                edges,
                label=f"{split} (n = {len(values):,})",
                fill=split == "train",
                alpha=0.35 if split == "train" else 1.0,
                color=COLOURS[split],
                linestyle=LINES[split],
                linewidth=1.6,
            )
        if unit == "pieces" and max_length is not None and max_length <= upper:
            longer = sum(int((of[unit] > max_length).sum()) for of in lengths.values())
            ax.axvline(
                max_length,
                color="black",
                linestyle=":",
                label=f"max length {max_length} ({longer:,} cut)",
            )
        tail = f"; the last bin holds all of {upper - width} and more" if clipped else ""
        ax.set_xlabel(f"length in {UNITS[unit]}{tail}")
        ax.set_ylabel(f"texts of the split, % per {width} {unit if width > 1 else unit[:-1]}")
        ax.set_xlim(0, upper)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(framealpha=0.9, edgecolor="none")
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def _bins(values: NDArray[np.int64]) -> tuple[int, int, bool]:
    """Return the width of a bin, the upper end of the last, and whether longer texts are counted in it."""
    longest, usual = int(values.max()), float(np.percentile(values, 99))
    clipped = longest > max(2 * usual, BINS)
    width = max(1, math.ceil((1.25 * usual if clipped else longest + 1) / BINS))
    upper = width * math.ceil((1.25 * usual if clipped else longest + 1) / width)
    return width, upper, clipped
