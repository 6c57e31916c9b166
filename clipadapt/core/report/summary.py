"""Summary of a set of runs: figures, classes, paired tests and published numbers, in one block per competition.

Runs that compete (same data, split, protocol, setting and shots) make one block; a zero-shot run is in every block of
its data and setting.
The best accuracy is bold only if it is significantly better than the runner-up; see
:mod:`~clipadapt.core.report.comparisons`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import RecordError, unknown
from clipadapt.core.report.answers import LEVEL
from clipadapt.core.report.base_to_new import base_to_new, base_to_new_cells
from clipadapt.core.report.comparisons import rank
from clipadapt.core.report.formats import (
    HTML,
    MARKDOWN,
    NOTHING,
    Column,
    format_count,
    format_difference,
    format_interval,
    format_mebibytes,
    format_p_value,
    format_rate,
    format_signed,
    format_value,
    metric_title,
    split_title,
)
from clipadapt.core.report.grouping import group_records, several_states, state_of
from clipadapt.core.report.means import dataset_means, mean_cells
from clipadapt.core.report.notes import INTERVALS, conditions, failure_note, setting_notes
from clipadapt.core.report.rows import Row
from clipadapt.core.report.run_files import RunFiles
from clipadapt.core.scoring.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from clipadapt.core.api.method import Setting
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.base_to_new import BaseToNew
    from clipadapt.core.report.comparisons import Comparison, RankedRow
    from clipadapt.core.report.formats import Form
    from clipadapt.core.report.means import DatasetMean
    from clipadapt.core.report.references import Published

    _Grid = Callable[[Sequence[Column], Sequence[Sequence[str]], Collection[tuple[int, int]]], str]

MOST_CLASSES: Final = 30
"""With more classes, only the classes with the lowest F1 are printed; JSON has all."""
HARDEST: Final = 20
METRICS_SHOWN: Final = tuple(m.name for m in METRICS.values() if m.summary)
"""Metrics with a column, after the accuracy."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that compete.

    Attributes:
        dataset: Dataset evaluated.
        state: Shortened fingerprint of the data if the runs contain more than one state of it, else empty.
        split: Split evaluated.
        protocol: Evaluation protocol.
        classes: ``all`` classes, the ``base`` or the ``new`` ones.
        setting: Whether the methods are inductive, transductive or online.
        shots: Training examples per class, None for all.
        rows: Best first.
        comparisons: Every pair that can be tested.
    """

    dataset: str
    state: str
    split: str
    protocol: str
    classes: str
    setting: Setting
    shots: int | None
    rows: tuple[RankedRow, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def title(self) -> str:
        """Data, split and whatever else distinguishes the block."""
        parts = [self.dataset, split_title(self.split, self.classes)]
        if self.state:
            parts.insert(1, self.state)
        if self.shots is not None:
            parts.append(f"{self.shots} shot" + ("" if self.shots == 1 else "s"))
        if self.protocol != "standard":
            parts.append(self.protocol)
        if self.setting != "inductive":
            parts.append(self.setting)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Summary:
    """Every block of a run store.

    Attributes:
        blocks: Sorted by their names.
        notes: Notes below them.
        reference: Whether published numbers were asked for.
        base_to_new: One per method and dataset evaluated on base and on new classes.
        left_out: Runs, or histories of runs, that cannot be read; the notes name them too.
        means: Mean accuracies over datasets.
    """

    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    reference: bool
    base_to_new: tuple[BaseToNew, ...] = ()
    left_out: tuple[str, ...] = ()
    means: tuple[DatasetMean, ...] = ()


def build_summary(
    store: RunStore, *, reference: bool = False, records: Sequence[RunRecord] | None = None
) -> Summary:
    """Summarise the runs of a store.

    A record on val gives the val accuracy of the row whose fit it shares. A run whose predictions cannot be read is
    left out, and a note names it.

    Args:
        store: Where the runs are; their predictions and histories are read.
        reference: Add published numbers.
        records: Records of the store to summarise, None for all.

    Raises:
        RecordError: If there is no run, or runs of one row differ in more than their seed.
    """
    found = store.load_all() if records is None else records
    records = list({r.run_id: r for r in found}.values())
    if not records:
        raise RecordError(
            f"there are no records in '{store.root}'", hint="run an experiment first, or a sweep"
        )
    files = RunFiles(store)
    unread = files.read_ahead(records)
    files.remember()
    records = [r for r in records if r.run_id not in unread]
    rows = _rows(records, files)
    for row in rows:
        row.check_answers()
    blocks = tuple(_block(key, members) for key, members in _competitors(rows))
    faults = [*unread.values(), *(fault for row in rows for fault in row.history_faults)]
    left_out = tuple(f"left out: {fault}" for fault in dict.fromkeys(faults))
    means, of_means = dataset_means(rows, "accuracy")
    notes = (
        *(f"L{text[1:]}." for text in left_out),
        *_notes(blocks, [r for r in records if r.status == "failed"], reference=reference),
        *of_means,
        conditions(records),
    )
    pairs = tuple(base_to_new(rows))
    return Summary(blocks, notes, reference, pairs, left_out, tuple(means))


# ---------------------------------------------------------------- blocks


def _rows(records: Sequence[RunRecord], files: RunFiles) -> list[Row]:
    """Return a row for each group; a record on val joins the row of its fit if that has one elsewhere."""

    def fit(record: RunRecord) -> tuple[str, str, str]:
        return record.fit_id, record.evaluation.dataset, record.evaluation.classes

    elsewhere = {fit(r) for r in records if r.evaluation.split != "val"}
    on_val = {
        fit(r): r
        for r in records
        if r.status == "ok" and r.evaluation.split == "val" and fit(r) in elsewhere
    }
    companions = {r.run_id for r in on_val.values()}
    return [
        Row(group, files, tuple(on_val[fit(r)] for r in group.ok if fit(r) in on_val))
        for group in group_records(r for r in records if r.run_id not in companions)
    ]


_Key = tuple[str, str, str, str, str, "Setting", int | None]


def _competitors(rows: Sequence[Row]) -> list[tuple[_Key, list[Row]]]:
    """Return the members of every block; zero-shot is in all blocks of its data and setting."""
    several = several_states(row.first for row in rows)
    blocks: dict[_Key, list[Row]] = {}
    zero_shot = []
    for row in rows:
        if row.first.method.uses_train:
            blocks.setdefault(_key(row.first, several), []).append(row)
        else:
            zero_shot.append(row)
    trained = list(blocks)
    for row in zero_shot:
        own = _key(row.first, several)
        for key in [key for key in trained if key[:-1] == own[:-1]] or [own]:
            members = blocks.setdefault(key, [])
            # The same zero-shot run may be recorded with different shots; it joins a block once.
            if all((m.label, m.model) != (row.label, row.model) for m in members):
                members.append(row)
    return sorted(blocks.items(), key=lambda b: (*b[0][:-1], b[0][-1] or float("inf")))


def _key(record: RunRecord, several: Collection[tuple[str, ...]]) -> _Key:
    evaluation, shots = record.evaluation, record.data.shots
    state = ", ".join(f"{key} {sha}" for key, sha in state_of(record, several).items())
    return (
        evaluation.dataset, state, evaluation.split, evaluation.protocol, evaluation.classes,
        record.method.setting, shots,
    )  # fmt: skip


def _block(key: _Key, rows: Sequence[Row]) -> Block:
    return Block(*key, *rank(rows))


def _notes(
    blocks: Sequence[Block], failed: Sequence[RunRecord], *, reference: bool
) -> Iterable[str]:
    rows = [r.row for b in blocks for r in b.rows]
    if failed:
        yield failure_note(failed)
    yield (
        f"{INTERVALS} Other figures are means over seeds; memory and saved size are the largest."
    )
    yield (
        "Bold: significantly better than the runner-up at 5 % after Holm over the pairs of its block. McNemar: exact, "
        "one seed each (or seeds that never differ). Crossed: seeds and examples both count as random; the interval "
        "of a difference is of that pair alone, before Holm. A method with one seed is compared with every seed of the "
        "other, without the variation between its own seeds."
    )
    yield (
        "Methods that share a letter were compared and are not significantly different at 5 % after Holm; methods "
        "without a common seed or common examples are not compared and share none. Examples needed: with this many, a "
        "true difference of the observed size is significant at 5 % (one test, no Holm) in four of five experiments; "
        "without a number, more seeds are needed, or there is no difference."
    )
    yield (
        "Examples/s: scoring alone. The seconds of encoding frozen features, over all splits used, are in their own "
        "column and not in the rate."
    )
    yield from setting_notes([row.first for row in rows])
    if any(row.val_accuracy for row in rows):
        yield "If the epoch or a setting was selected on val, the val accuracy is too high."
    if any(row.accuracy and not row.val_accuracy for row in rows):
        yield (
            "Without val accuracy: not evaluated on val. To add it: "
            "--set 'evaluation.also=[{split: val}]'."
        )
    if any(row.loss_rise is not None or row.accuracy_gap is not None for row in rows):
        yield (
            "Overfitting: val loss rise is the val loss of the last epoch minus that of the best; train - val is the "
            "accuracy on train minus that on val, in points, at the selected epoch."
        )
    if reference and not any(row.published for row in rows):
        yield "No published number is known for these methods on these datasets."


# ---------------------------------------------------------------- formats


def render_summary(summary: Summary, format: str = "markdown") -> str:  # noqa: A002  named like the option
    """Return the summary as text, ending with a newline.

    Args:
        summary: The summary.
        format: ``markdown``, ``html`` (a fragment) or ``json`` (fractions, seconds, bytes).

    Raises:
        UnknownNameError: If there is no such format.
    """
    if format == "json":
        return json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n"
    if format == "markdown":
        return document(summary, MARKDOWN)
    if format == "html":
        return document(summary, HTML)
    raise unknown("summary format", format, ["markdown", "html", "json"])


def document(summary: Summary, form: Form) -> str:
    """Return the summary as text in a form."""
    parts = []
    heading, grid, paragraph = form.heading, form.grid, form.paragraph
    for block in summary.blocks:
        parts += [heading(2, block.title), _rows_grid(block, grid)]
        hardest, left_out = _shown_classes(block)
        if hardest:
            parts += [heading(3, "By class"), _classes_grid(block, hardest, grid)]
        if left_out:
            parts.append(paragraph(f"{left_out} classes with a higher F1 are left out."))
        if block.comparisons:
            parts += [heading(3, "Pairs of methods"), _comparisons_grid(block, grid)]
        if summary.reference and any(r.row.published for r in block.rows):
            parts += [heading(3, "Published numbers"), _published_grid(block, grid)]
    if summary.base_to_new:
        parts += [heading(2, "Base to new"), _base_to_new_grid(summary.base_to_new, grid)]
    if summary.means:
        parts += [heading(2, "Mean over datasets"), grid(*mean_cells(summary.means), ())]
    return "\n".join([*parts, *(paragraph(note) for note in summary.notes)])


def _rows_grid(block: Block, grid: _Grid) -> str:
    columns: list[tuple[Column, Callable[[RankedRow], str]]] = [
        (Column("method", text=True), lambda r: r.label),
        (Column("seeds", rank=1), _seeds),
        (Column(f"{block.split} accuracy, %", figure=True), lambda r: format_interval(r.row.accuracy)),
        (Column("n", rank=2), lambda r: format_count(r.row.accuracy.n if r.row.accuracy else None)),
        (Column("ties", text=True), lambda r: r.letters),
        (Column("val accuracy, %", rank=2), lambda r: format_interval(r.row.val_accuracy)),
        *(_metric_column(name) for name in METRICS_SHOWN),
        (Column("trainable parameters", rank=3), lambda r: format_count(r.row.n_trainable_params)),
        (Column("of all, %", rank=11), _share),
        (Column("fit, s", rank=4), lambda r: format_value(r.row.fit_seconds, "seconds")),
        (Column("encode, s", rank=5), lambda r: format_value(r.row.encode_seconds, "seconds")),
        (Column("examples/s, scoring alone", rank=10), lambda r: format_rate(r.row.examples_per_second)),
        (Column("peak memory, MiB", rank=9), lambda r: format_value(r.row.peak_memory_bytes, "bytes")),
        (Column("saved, MiB", rank=8), lambda r: format_mebibytes(r.row.saved_bytes)),
        (Column("selected epoch", rank=7), _epochs),
        (Column("val loss rise", rank=6), lambda r: format_signed(r.row.loss_rise, 1, 3)),
        (Column("train - val, points", rank=6), lambda r: format_signed(r.row.accuracy_gap, 100, 1)),
        (Column("flags", text=True), lambda r: ", ".join(r.row.flags)),
    ]  # fmt: skip
    rows = [[cell(r) for _, cell in columns] for r in block.rows]
    bold = {(i, 2) for i, r in enumerate(block.rows) if r.best}
    return grid([column for column, _ in columns], rows, bold)


def _metric_column(name: str) -> tuple[Column, Callable[[RankedRow], str]]:
    return Column(metric_title(name), rank=2), lambda r: format_value(
        r.row.mean(name), METRICS[name].unit
    )


def _seeds(ranked: RankedRow) -> str:
    failed = len(ranked.row.failed)
    return str(len(ranked.row.ok)) + (f" ({failed} failed)" if failed else "")


def _share(ranked: RankedRow) -> str:
    trainable, total = ranked.row.n_trainable_params, ranked.row.n_total_params
    return NOTHING if trainable is None or not total else f"{100 * trainable / total:.3g}"


def _epochs(ranked: RankedRow) -> str:
    shown = [NOTHING if e is None else str(e) for e in ranked.row.chosen_epochs]
    return ", ".join(shown if len(set(shown)) > 1 else shown[:1]) or NOTHING


def _shown_classes(block: Block) -> tuple[list[str], int]:
    """Return the classes to print, in their order, and the number of classes left out."""
    f1: dict[str, list[float]] = {}
    for ranked in block.rows:
        for c in ranked.row.classes:
            f1.setdefault(c.name, []).append(c.f1)
    if len(f1) <= MOST_CLASSES:
        return list(f1), 0
    hardest = set(sorted(f1, key=lambda name: fmean(f1[name]))[:HARDEST])
    return [name for name in f1 if name in hardest], len(f1) - HARDEST


def _classes_grid(block: Block, names: Sequence[str], grid: _Grid) -> str:
    columns = [
        Column("class", text=True),
        Column("examples"),
        Column("method", text=True),
        Column("precision, %"),
        Column("recall, %"),
        Column("F1, %"),
    ]
    rows = [
        [name, f"{c.support:,}", ranked.label]
        + [format_value(x, "fraction") for x in (c.precision, c.recall, c.f1)]
        for name in names
        for ranked in block.rows
        for c in ranked.row.classes
        if c.name == name
    ]
    return grid(columns, rows, ())


def _comparisons_grid(block: Block, grid: _Grid) -> str:
    columns: list[tuple[Column, Callable[[Comparison], str]]] = [
        (Column("method", text=True), lambda c: c.first),
        (Column("against", text=True), lambda c: c.second),
        (Column("difference, points"), lambda c: format_difference(c.difference)),
        (Column("p"), lambda c: format_p_value(c.p_value)),
        (Column("p, Holm"), lambda c: format_p_value(c.p_adjusted)),
        (Column("test", text=True), lambda c: c.test),
        (Column("examples"), lambda c: f"{c.n_examples:,}"),
        (Column("examples needed"), lambda c: format_count(c.n_needed)),
    ]
    rows = [[cell(c) for _, cell in columns] for c in block.comparisons]
    bold = {(i, 4) for i, c in enumerate(block.comparisons) if c.p_adjusted < 1 - LEVEL}
    return grid([column for column, _ in columns], rows, bold)


def _published_grid(block: Block, grid: _Grid) -> str:
    columns = [
        Column("method", text=True),
        Column("val accuracy, %"),
        Column("published"),
        Column(f"{block.split} accuracy, %"),
        Column("published"),
        Column("trainable parameters"),
        Column("published"),
        Column("comparable", text=True),
        Column("source", text=True),
    ]
    split = "test" if block.split == "test" else "val"
    rows = [
        [
            ranked.label,
            format_interval(ranked.row.val_accuracy),
            _published(p, "val", ranked.row),
            format_interval(ranked.row.accuracy),
            _published(p, split, ranked.row),
            format_count(ranked.row.n_trainable_params),
            format_count(p.reference.n_trainable_params),
            _comparable(p, ranked.row),
            p.reference.cited,
        ]
        for ranked in block.rows
        for p in ranked.row.published
    ]
    return grid(columns, rows, ())


def _published(p: Published, split: str, row: Row) -> str:
    value = p.reference.value("accuracy", split, row.first.evaluation.classes)
    if value is None:
        return NOTHING
    return format_value(value, "fraction") + (" (not comparable)" if p.not_comparable else "")


def _comparable(p: Published, row: Row) -> str:
    if p.not_comparable:
        return f"no: {'; '.join(p.not_comparable)}"
    n = len(row.first.method.deviations)
    return f"yes; our recipe has {n} deviation{'' if n == 1 else 's'}" if n else "yes"


def _base_to_new_grid(pairs: Sequence[BaseToNew], grid: _Grid) -> str:
    columns = [
        Column("dataset", text=True),
        Column("shots"),
        Column("method", text=True),
        Column("base accuracy, %"),
        Column("new accuracy, %"),
        Column("H, %"),
        Column("n"),
    ]
    return grid(columns, list(map(base_to_new_cells, pairs)), ())


# ---------------------------------------------------------------- JSON


def _plain(summary: Summary) -> dict[str, Any]:
    return {
        "blocks": [
            {
                "dataset": b.dataset,
                "state": b.state,
                "split": b.split,
                "protocol": b.protocol,
                "classes": b.classes,
                "setting": b.setting,
                "shots": b.shots,
                "methods": [_plain_row(r, reference=summary.reference) for r in b.rows],
                "comparisons": [dataclasses.asdict(c) for c in b.comparisons],
            }
            for b in summary.blocks
        ],
        "notes": summary.notes,
        "reference": summary.reference,
        "base_to_new": [
            {
                "dataset": pair.base_row.first.evaluation.dataset,
                "shots": pair.base_row.first.data.shots,
                "label": pair.base_row.label,
                "base": dataclasses.asdict(pair.base),
                "new": dataclasses.asdict(pair.new),
                "harmonic": dataclasses.asdict(pair.harmonic),
            }
            for pair in summary.base_to_new
        ],
        "left_out": summary.left_out,
        "means": [mean.plain() for mean in summary.means],
    }


def _plain_row(ranked: RankedRow, *, reference: bool) -> dict[str, Any]:
    row, first = ranked.row, ranked.row.first
    return {
        "label": ranked.label,
        "method": first.method.name,
        "recipe": first.method.recipe,
        "setting": row.setting,
        "model": row.model,
        "seeds": [r.seed for r in row.ok],
        "failed": len(row.failed),
        "accuracy": dataclasses.asdict(row.accuracy) if row.accuracy else None,
        "val_accuracy": dataclasses.asdict(row.val_accuracy) if row.val_accuracy else None,
        **{name: row.mean(name) for name in METRICS_SHOWN},
        "n_trainable_params": row.n_trainable_params,
        "n_total_params": row.n_total_params,
        "fit_seconds": row.fit_seconds,
        "encode_seconds": row.encode_seconds,
        "examples_per_second": row.examples_per_second,
        "peak_memory_bytes": row.peak_memory_bytes,
        "saved_bytes": row.saved_bytes,
        "epochs": row.chosen_epochs,
        "loss_rise": row.loss_rise,
        "accuracy_gap": row.accuracy_gap,
        "flags": list(row.flags),
        "best": ranked.best,
        "run_ids": row.run_ids,
        "classes": [dataclasses.asdict(c) for c in row.classes],
        "published": [_plain_published(p, row) for p in row.published] if reference else [],
        "letters": ranked.letters,
    }


def _plain_published(p: Published, row: Row) -> dict[str, Any]:
    classes = row.first.evaluation.classes
    return {
        "val_accuracy": p.reference.value("accuracy", "val", classes),
        "test_accuracy": p.reference.value("accuracy", "test", classes),
        "n_trainable_params": p.reference.n_trainable_params,
        "source": p.reference.cited,
        "not_comparable": p.not_comparable,
        "deviations": row.first.method.deviations,
    }
