"""All there is to say of a set of runs on one page: figures, classes, paired tests, published numbers.

Runs that compete (same data, split, protocol and shots) make one block; a zero-shot run joins every block of its
data. Accuracies carry 95 % intervals over test examples and seeds together. A pair of methods is tested on the
examples both were judged on, joined by id: McNemar's exact test for one seed each, else the crossed model of
:func:`~clipadapt.core.scoring.statistics.crossed_interval` on the differences; its p-value is the cautious one, as the
interval alone would mark too many differences that are chance. (The bootstrap shows too little of the spread of two
or three seeds, which is what most runs have.) Holm's method adjusts the p-values of a block. The best accuracy is
bold only where it beats the runner-up.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import RecordError, unknown
from clipadapt.core.records.history import accuracy_gap, loss_rise, read_epochs, run_folder
from clipadapt.core.report.answers import LEVEL, join, read_answers, shared
from clipadapt.core.report.tables import (
    CHANGED_METRICS,
    NOTHING,
    Column,
    conditions,
    escape_html,
    escape_markdown,
    failure_note,
    figure,
    group_records,
    html_grid,
    markdown_grid,
    method_title,
    pairs_of_classes,
    refuse_unlike,
    several_states,
    split_title,
    state_of,
)
from clipadapt.core.scoring.scores import class_counts, class_figures
from clipadapt.core.scoring.statistics import (
    crossed_p_value,
    difference_interval,
    examples_needed,
    fraction_interval,
    harmonic_interval,
    holm,
    letters_of_ties,
    mcnemar_exact,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.records.history import Epoch
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.answers import Answers
    from clipadapt.core.report.references import Reference
    from clipadapt.core.report.tables import Group
    from clipadapt.core.scoring.statistics import Interval

    _Heading = Callable[[int, str], str]
    _Grid = Callable[[Sequence[Column], Sequence[Sequence[str]], Collection[tuple[int, int]]], str]

MOST_CLASSES: Final = 30
"""With more classes than that only the hardest are printed; JSON holds all."""
HARDEST: Final = 20


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A published number beside ours.

    Attributes:
        val_accuracy: Published accuracy on val, or None.
        test_accuracy: Published accuracy on test, or None.
        n_trainable_params: Published number of parameters learnt, or None.
        source: Paper and table, or repository and file.
        not_comparable: What differs; empty where the numbers may be compared.
        deviations: What our recipe does otherwise on purpose.
    """

    val_accuracy: float | None
    test_accuracy: float | None
    n_trainable_params: int | None
    source: str
    not_comparable: tuple[str, ...]
    deviations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class on the judged split, means over seeds.

    Attributes:
        name: Class name.
        support: Examples of the class.
        precision: Share of right ones among those given this class, 0 where there are none.
        recall: Share found of those that are of this class, 0 where there are none.
        f1: Harmonic mean of both.
    """

    name: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method: the seeds of one group. Means over seeds, unless said otherwise; None is unknown.

    Attributes:
        label: Name that tells it apart in its block.
        method: Registered name.
        recipe: Recipe, or None.
        model: Backbone, or None.
        seeds: Seeds of the runs that are ok.
        failed: Runs that failed.
        accuracy: On the judged split.
        val_accuracy: On val, where the same fits were judged there too.
        macro_f1: On the judged split; so are the following.
        weighted_precision: Weighted by support.
        weighted_recall: Weighted by support.
        n_trainable_params: Parameters learnt.
        n_total_params: Parameters of the whole classifier.
        fit_seconds: Without encoding.
        encode_seconds: Encoding of the frozen features used, learnt from and judged.
        examples_per_second: Scoring alone: examples judged by seconds of predicting, without ``encode_seconds``.
        peak_memory_bytes: The largest.
        saved_bytes: The largest.
        epochs: Epoch chosen by each seed.
        loss_rise: Val loss of the last epoch minus the best one's.
        accuracy_gap: Train minus val accuracy at the epoch chosen.
        flags: Flags of any run.
        best: Whether it beats the runner-up after Holm.
        letters: Methods of a block that share a letter are not told apart at 5 % after Holm.
        run_ids: Runs of the row, failed ones too, by seed.
        classes: Figures by class.
        published: Published numbers.
    """

    label: str
    method: str
    recipe: str | None
    model: str | None
    seeds: tuple[int, ...]
    failed: int
    accuracy: Interval | None
    val_accuracy: Interval | None
    macro_f1: float | None
    weighted_precision: float | None
    weighted_recall: float | None
    n_trainable_params: int | None
    n_total_params: int | None
    fit_seconds: float | None
    encode_seconds: float | None
    examples_per_second: float | None
    peak_memory_bytes: int | None
    saved_bytes: int | None
    epochs: tuple[int | None, ...]
    loss_rise: float | None
    accuracy_gap: float | None
    flags: tuple[str, ...]
    best: bool
    run_ids: tuple[str, ...]
    classes: tuple[ClassFigures, ...]
    published: tuple[PublishedRow, ...]
    letters: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two methods on the same examples.

    Attributes:
        first: Label of the better one.
        second: Label of the other.
        difference: Accuracy of the first minus that of the second.
        p_value: Two-sided.
        p_adjusted: The same after Holm over the block.
        test: ``McNemar`` or ``crossed``, and over which seeds.
        n_examples: Examples that both were judged on.
        n_needed: Examples with which a difference of this size would be found at 5 % four times out of five; None
            where there is no difference, or where seeds, not examples, are what is lacking.
    """

    first: str
    second: str
    difference: Interval
    p_value: float
    p_adjusted: float
    test: str
    n_examples: int
    n_needed: int | None = None


@dataclass(frozen=True, slots=True)
class BaseToNew:
    """One method on base and on new classes.

    Attributes:
        dataset: Data set.
        shots: Training examples per class, None for all.
        label: Label of the method.
        base: Accuracy on the base classes.
        new: Accuracy on the new classes.
        harmonic: Harmonic mean of both.
    """

    dataset: str
    shots: int | None
    label: str
    base: Interval
    new: Interval
    harmonic: Interval


@dataclass(frozen=True, slots=True)
class Block:
    """Methods that compete.

    Attributes:
        dataset: Data set judged on.
        state: Begin of the data's fingerprint where the runs know them in more than one state, else empty.
        split: Split judged on.
        protocol: Rules.
        classes: ``all`` classes, the ``base`` or the ``new`` ones.
        shots: Training examples per class, None for all.
        methods: Best first.
        comparisons: Every pair that can be tested.
    """

    dataset: str
    state: str
    split: str
    protocol: str
    classes: str
    shots: int | None
    methods: tuple[MethodSummary, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def title(self) -> str:
        """Data, split and what else tells the block apart."""
        parts = [self.dataset, split_title(self.split, self.classes)]
        if self.state:
            parts.insert(1, self.state)
        if self.shots is not None:
            parts.append(f"{self.shots} shot" + ("" if self.shots == 1 else "s"))
        if self.protocol != "standard":
            parts.append(self.protocol)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Summary:
    """Every block of a store.

    Attributes:
        blocks: In order of their names.
        notes: Lines below them.
        reference: Whether published numbers were asked for.
        base_to_new: One row per method and data set judged on base and on new classes.
        left_out: Runs, or histories of runs, that cannot be read; they are named in the notes, too.
    """

    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    reference: bool
    base_to_new: tuple[BaseToNew, ...] = ()
    left_out: tuple[str, ...] = ()


def build_summary(
    store: RunStore, *, reference: bool = False, records: Sequence[RunRecord] | None = None
) -> Summary:
    """Summarise the runs of a store.

    A record judged on val that shares its fit with one judged elsewhere gives the val accuracy of that one's row. A
    run whose predictions cannot be read is left out, and a note names it.

    Args:
        store: Where the runs lie; their predictions and histories are read.
        reference: Set published numbers beside ours.
        records: Records of the store to summarise, None for all.

    Raises:
        RecordError: If there is no run, or unlike runs would be averaged.
    """
    found = store.load_all() if records is None else records
    records = list({r.run_id: r for r in found}.values())
    if not records:
        raise RecordError(
            f"there are no records in '{store.root}'", hint="run an experiment first, or a sweep"
        )
    read, faults = _read(store, records)
    records = [r for r in records if r.status == "failed" or r.run_id in read]
    on_val = _companions(records)
    companions = {r.run_id for r in on_val.values()}
    groups = group_records(r for r in records if r.run_id not in companions)
    entries = [
        _Entry.of(store, group, on_val, read, faults, reference=reference) for group in groups
    ]
    blocks = tuple(_block(key, members) for key, members in _competitors(entries))
    failed = [r for r in records if r.status == "failed"]
    left_out = tuple(f"left out: {fault}" for fault in dict.fromkeys(faults))
    notes = [
        *(f"L{text[1:]}." for text in left_out),
        *_notes(blocks, failed, reference=reference),
        conditions(records),
    ]
    return Summary(blocks, tuple(notes), reference, tuple(_base_to_new(entries)), left_out)


def render_summary(summary: Summary, format: str = "markdown") -> str:  # noqa: A002  named as the option is
    """Return the summary as text, ending in a line end.

    Args:
        summary: The summary.
        format: ``markdown``, ``html`` (a fragment, everything escaped) or ``json`` (fractions, seconds, bytes).

    Raises:
        UnknownNameError: If there is no such format.
    """
    if format == "json":
        return json.dumps(dataclasses.asdict(summary), indent=2, allow_nan=False) + "\n"
    if format == "markdown":
        return _paged(summary, lambda n, text: f"{'#' * n} {escape_markdown(text)}\n",
                      markdown_grid, lambda text: f"{escape_markdown(text)}\n")  # fmt: skip
    if format == "html":
        return _paged(summary, lambda n, text: f"<h{n}>{escape_html(text)}</h{n}>\n",
                      html_grid, lambda text: f"<p>{escape_html(text)}</p>\n")  # fmt: skip
    raise unknown("summary format", format, ["markdown", "html", "json"])


# ---------------------------------------------------------------- from records


_Read = dict[str, "Answers"]  # by run_id


def _read(store: RunStore, records: Iterable[RunRecord]) -> tuple[_Read, list[str]]:
    """Read what each run that is ok got on each example, and what is wrong with those that cannot be read."""
    found: _Read = {}
    faults = []
    ids: dict[bytes, NDArray[np.str_]] = {}  # runs judged on the same examples share their ids
    for record in records:
        if record.status != "ok":
            continue
        try:
            answers = read_answers(store, record)
        except RecordError as err:
            faults.append(err.problem)
            continue
        if answers is not None:
            key = hashlib.sha256(answers.ids.tobytes()).digest()
            found[record.run_id] = dataclasses.replace(
                answers, ids=ids.setdefault(key, answers.ids)
            )
    return found, faults


def _without_copies(*tables: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return one row of each table where its seeds never differ: then they tell nothing about chance."""
    if all((table == table[0]).all() for table in tables):
        return [table[:1] for table in tables]
    return list(tables)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A group with what was read of its runs."""

    group: Group
    answers: Answers | None
    summary: MethodSummary

    @classmethod
    def of(
        cls,
        store: RunStore,
        group: Group,
        on_val: dict[_Fitted, RunRecord],
        read: _Read,
        faults: list[str],
        *,
        reference: bool,
    ) -> _Entry:
        first, ok = group.first, group.ok
        refuse_unlike(ok, "accuracy")
        answers = join([read[r.run_id] for r in ok]) if ok else None
        val = [on_val[key] for r in ok if (key := _fitted(r)) in on_val]
        val_answers = join([read[r.run_id] for r in val]) if val else None
        epochs = [r.selection.epoch if r.selection else None for r in ok]
        logged = [_epochs_of(store, r, faults) for r in ok]
        rates = [r.data.n_test / r.cost.predict_seconds for r in ok if r.cost.predict_seconds > 0]
        totals = [r.n_total_params for r in ok if r.n_total_params is not None]
        peaks = [r.cost.peak_memory_bytes for r in ok if r.cost.peak_memory_bytes is not None]

        def metric(name: str) -> float | None:
            if name in CHANGED_METRICS and len({r.metrics_version for r in ok}) > 1:
                return None  # figures of two meanings have no mean
            return _mean([r.metrics[name].value for r in ok if name in r.metrics])

        summary = MethodSummary(
            label=", ".join([
                method_title(first.method.name, first.method.recipe),
                *group.settings,
            ]),
            method=first.method.name,
            recipe=first.method.recipe,
            model=first.model.name if first.model else None,
            seeds=tuple(r.seed for r in ok),
            failed=len(group.records) - len(ok),
            accuracy=answers.interval if answers else None,
            val_accuracy=val_answers.interval if val_answers else None,
            macro_f1=metric("macro_f1"),
            weighted_precision=metric("weighted_precision"),
            weighted_recall=metric("weighted_recall"),
            n_trainable_params=_rounded([r.n_trainable_params for r in ok]),
            n_total_params=_rounded(totals),
            fit_seconds=_mean([r.cost.fit_seconds for r in ok]),
            encode_seconds=_mean([r.cost.encode_seconds for r in ok]),
            examples_per_second=_mean(rates),
            peak_memory_bytes=max(peaks, default=None),
            saved_bytes=max((r.cost.saved_bytes for r in ok), default=None),
            epochs=tuple(epochs),
            loss_rise=_mean([x for e in logged if (x := loss_rise(e)) is not None]),
            accuracy_gap=_mean([
                x
                for e, chosen in zip(logged, epochs, strict=True)
                if (x := accuracy_gap(e, chosen)) is not None
            ]),
            flags=tuple(sorted({flag for r in ok for flag in r.flags})),
            best=False,
            run_ids=tuple(r.run_id for r in group.records),
            classes=_classes(ok, [read[r.run_id] for r in ok]),
            published=tuple(_published(group)) if reference else (),
        )
        return cls(group, answers, summary)


def _epochs_of(store: RunStore, record: RunRecord, faults: list[str]) -> tuple[Epoch, ...]:
    try:
        return read_epochs(run_folder(store, record), record)
    except RecordError as err:
        faults.append(err.problem)
        return ()


_Fitted = tuple[str, str, str]


def _fitted(record: RunRecord) -> _Fitted:
    return record.fit_id, record.evaluation.dataset, record.evaluation.classes


def _companions(records: Sequence[RunRecord]) -> dict[_Fitted, RunRecord]:
    """Return, by fit, data set and classes, the records judged on val beside one of the same fit judged elsewhere."""
    elsewhere = {_fitted(r) for r in records if r.evaluation.split != "val"}
    return {
        key: r
        for r in records
        if r.status == "ok" and r.evaluation.split == "val" and (key := _fitted(r)) in elsewhere
    }


def _classes(records: Sequence[RunRecord], answers: Sequence[Answers]) -> tuple[ClassFigures, ...]:
    facts = next((r.per_class for r in records if r.per_class is not None), None)
    if facts is None:
        return ()
    names: Any = facts["classnames"]
    counts = [class_counts(a.predicted[0], a.labels, len(names)) for a in answers]
    figures = np.mean([class_figures(*c) for c in counts], axis=0)  # (3, C)
    support = np.mean([c[0] for c in counts], axis=0)
    return tuple(
        ClassFigures(str(name), round(float(n)), float(precision), float(recall), float(f1))
        for name, n, (recall, precision, f1) in zip(names, support, figures.T, strict=True)
    )


def _published(group: Group) -> Iterable[PublishedRow]:
    from clipadapt.core.report.references import caveats, differences, nearest_references

    first = group.first

    def unlike(reference: Reference) -> tuple[str, ...]:
        of_runs = [words for r in group.records for words in caveats(r, reference)]
        return tuple(dict.fromkeys([*differences(first, reference), *of_runs]))

    for reference in nearest_references(first):
        yield PublishedRow(
            val_accuracy=reference.value("accuracy", "val"),
            test_accuracy=reference.value("accuracy", "test"),
            n_trainable_params=reference.n_trainable_params,
            source=reference.cited,
            not_comparable=unlike(reference),
            deviations=first.method.deviations,
        )


def _base_to_new(entries: Sequence[_Entry]) -> Iterable[BaseToNew]:
    for i, j in pairs_of_classes([e.group for e in entries]):
        base, new = entries[i].answers, entries[j].answers
        if base is None or new is None:
            continue
        seeds = [s for s in base.seeds if s in new.seeds]
        right = [a.values[[a.seeds.index(s) for s in seeds]] for a in (base, new)]
        first = entries[i].group.first
        yield BaseToNew(
            first.evaluation.dataset,
            first.data.shots,
            entries[i].summary.label,
            fraction_interval(right[0], LEVEL),
            fraction_interval(right[1], LEVEL),
            harmonic_interval(right[0], right[1], LEVEL),
        )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _rounded(values: Sequence[int]) -> int | None:
    return round(fmean(values)) if values else None


# ---------------------------------------------------------------- comparisons

_Key = tuple[str, str, str, str, str, int | None]


def _competitors(entries: Sequence[_Entry]) -> list[tuple[_Key, list[_Entry]]]:
    """Return the members of every block; who learns nothing stands in all blocks of its data."""
    blocks: dict[_Key, list[_Entry]] = {}
    several = several_states(e.group.first for e in entries)
    unlearnt: list[_Entry] = []
    for entry in entries:
        first = entry.group.first
        if _unlearnt(entry):
            unlearnt.append(entry)
        else:
            blocks.setdefault(_key(first, several), []).append(entry)
    taught = list(blocks)
    for entry in unlearnt:
        own = _key(entry.group.first, several)
        same = entry.summary.label, entry.summary.model
        shared = [key for key in taught if key[:-1] == own[:-1]]
        for key in shared or [own]:
            members = blocks.setdefault(key, [])
            # The same zero-shot run, recorded under other shots, stands there once.
            if all((e.summary.label, e.summary.model) != same for e in members):
                members.append(entry)
    return sorted(blocks.items(), key=lambda b: (*b[0][:-1], b[0][-1] or float("inf")))


def _key(record: RunRecord, several: Collection[tuple[str, ...]]) -> _Key:
    judged, data = record.evaluation, record.data
    state = ", ".join(f"{key} {sha}" for key, sha in state_of(record, several).items())
    return judged.dataset, state, judged.split, judged.protocol, judged.classes, data.shots


def _block(key: _Key, entries: Sequence[_Entry]) -> Block:
    models = {e.summary.model for e in entries}
    named = [
        (e, _with_model(e.summary) if len(models) > 1 else e.summary)
        for e in sorted(entries, key=_descending)
    ]
    comparisons = _compare([(s.label, e) for e, s in named])
    best = _best([s for _, s in named if s.accuracy is not None], comparisons)
    labels = [s.label for _, s in named if s.accuracy is not None]
    alike = {(c.first, c.second) for c in comparisons if c.p_adjusted >= 1 - LEVEL}
    told = {pair for pair in combinations(labels, 2) if pair not in alike}
    letters = dict(zip(labels, letters_of_ties(labels, told), strict=True))
    methods = tuple(
        dataclasses.replace(s, best=s.label == best, letters=letters.get(s.label, ""))
        for _, s in named
    )
    return Block(*key, methods, comparisons)


def _with_model(summary: MethodSummary) -> MethodSummary:
    return dataclasses.replace(summary, label=f"{summary.label} on {summary.model or 'no model'}")


def _descending(entry: _Entry) -> tuple[bool, float, str]:
    accuracy = entry.summary.accuracy
    return accuracy is None, -accuracy.value if accuracy else 0.0, entry.summary.label


def _compare(entries: Sequence[tuple[str, _Entry]]) -> tuple[Comparison, ...]:
    """Test every pair that shares seeds and examples; who learns nothing shares every seed."""
    found = []
    for (first, one), (second, two) in combinations(entries, 2):
        a, b = one.answers, two.answers
        if a is None or b is None:
            continue
        of_a, of_b = shared(a, b)
        rows = _seed_pairs(a.seeds, b.seeds, unlearnt=_unlearnt(one) or _unlearnt(two))
        if not of_a.size or not rows:
            continue
        right_a = a.values[[i for i, _ in rows]][:, of_a]  # (S, n)
        right_b = b.values[[j for _, j in rows]][:, of_b]
        difference = right_a.astype(np.float64) - right_b
        right_a, right_b = _without_copies(right_a, right_b)
        if len(right_a) == 1:
            test, p_value = "McNemar", mcnemar_exact(right_a[0], right_b[0]).p_value
        else:
            test = f"crossed, {len(rows)} seeds"
            p_value = crossed_p_value(difference, cautious=True)
            if min(len(a.seeds), len(b.seeds)) == 1:
                test += ", the other's one"
        interval = difference_interval(difference, LEVEL)
        needed = examples_needed(difference[: len(right_a)], LEVEL)
        found.append(Comparison(first, second, interval, p_value, p_value, test, of_a.size, needed))
    adjusted = holm([c.p_value for c in found])
    return tuple(
        dataclasses.replace(c, p_adjusted=float(p)) for c, p in zip(found, adjusted, strict=True)
    )


def _unlearnt(entry: _Entry) -> bool:
    return entry.group.first.method.name.endswith("/zero_shot")


def _seed_pairs(
    a: Sequence[int], b: Sequence[int], *, unlearnt: bool = False
) -> list[tuple[int, int]]:
    """Return rows to be compared: the seeds both have, for a seed decides what is drawn.

    A method with one seed that the other has too, or one that learns nothing, meets every seed of the other.
    """
    if min(len(a), len(b)) == 1 and (unlearnt or set(a) & set(b)):
        return [
            (i if len(a) > 1 else 0, i if len(b) > 1 else 0) for i in range(max(len(a), len(b)))
        ]
    return [(i, b.index(seed)) for i, seed in enumerate(a) if seed in b]


def _best(methods: Sequence[MethodSummary], comparisons: Sequence[Comparison]) -> str | None:
    """Return the label of the method that beats the runner-up, or None."""
    if len(methods) < 2:
        return None
    pair = {methods[0].label, methods[1].label}
    won = any(
        {c.first, c.second} == pair and c.p_adjusted < 1 - LEVEL and c.difference.value > 0
        for c in comparisons
    )
    return methods[0].label if won else None


# ---------------------------------------------------------------- for people


def _notes(
    blocks: Sequence[Block], failed: Sequence[RunRecord], *, reference: bool
) -> Iterable[str]:
    methods = [m for b in blocks for m in b.methods]
    if failed:
        yield failure_note(failed)
    yield (
        "Intervals are 95 %: of an accuracy over examples and seeds together (Wilson's for one seed). "
        "n: test examples. Other figures are means over seeds; memory and saved size are the largest."
    )
    yield (
        "Bold: better than the runner-up at 5 % after Holm over the pairs of its block. McNemar: exact, one seed "
        "each (or seeds that never differ). Crossed: seeds and examples both count as random, and p is more cautious "
        "than the interval, which few seeds leave uncertain; a method with one seed meets every seed of the other, "
        "and its own seeds' spread is then not counted."
    )
    yield (
        "Methods that share a letter were compared and are not told apart at 5 % after Holm; methods without a common "
        "seed or common examples are not compared and share none. Examples needed: with so many, a true "
        "difference as large as the one seen is found at 5 % (one test, no Holm) four times out of five; without a "
        "number more seeds are needed, or there is no difference to find."
    )
    yield (
        "Examples/s: scoring alone. Seconds of encoding frozen features, over all splits used, stand in their own "
        "column and are not in the rate."
    )
    if any(m.val_accuracy for m in methods):
        yield "Val may have chosen the epoch or a setting; its accuracy is then too high."
    if any(m.accuracy and not m.val_accuracy for m in methods):
        yield (
            "Without val accuracy: not judged on val. To add it: "
            "--set 'evaluation.also=[{split: val}]'."
        )
    if any(m.loss_rise is not None or m.accuracy_gap is not None for m in methods):
        yield (
            "Overfitting: val loss rise is the last epoch's minus the best one's; train - val is the accuracy on "
            "train minus that on val, in points, at the epoch chosen."
        )
    if reference and not any(m.published for m in methods):
        yield "No published number is known for these methods on these data."


def _paged(
    summary: Summary, heading: _Heading, grid: _Grid, paragraph: Callable[[str], str]
) -> str:
    parts = []
    for block in summary.blocks:
        parts += [heading(2, block.title), _methods_grid(block, grid)]
        hardest, left_out = _shown_classes(block)
        if hardest:
            parts += [heading(3, "By class"), _classes_grid(block, hardest, grid)]
        if left_out:
            parts.append(paragraph(f"{left_out} classes with a higher F1 are left out."))
        if block.comparisons:
            parts += [heading(3, "Pairs of methods"), _comparisons_grid(block, grid)]
        if any(m.published for m in block.methods):
            parts += [heading(3, "Published numbers"), _published_grid(block, grid)]
    if summary.base_to_new:
        parts += [heading(2, "Base to new"), _base_to_new_grid(summary.base_to_new, grid)]
    return "\n".join([*parts, *(paragraph(note) for note in summary.notes)])


def _base_to_new_grid(rows: Sequence[BaseToNew], grid: _Grid) -> str:
    columns = [
        Column("dataset", text=True),
        Column("shots"),
        Column("method", text=True),
        Column("base accuracy, %"),
        Column("new accuracy, %"),
        Column("H, %"),
        Column("n"),
    ]
    return grid(columns, list(map(base_to_new_cells, rows)), ())


def base_to_new_cells(row: BaseToNew) -> list[str]:
    """Return data set, shots, method, the accuracies on base, on new, and H, in percent, and the test examples."""
    accuracies = map(interval_cell, (row.base, row.new, row.harmonic))
    n = f"{row.base.n:,} + {row.new.n:,}"
    return [row.dataset, str(row.shots or "all"), row.label, *accuracies, n]


def _methods_grid(block: Block, grid: _Grid) -> str:
    columns: list[tuple[Column, Callable[[MethodSummary], str]]] = [
        (Column("method", text=True), lambda m: m.label),
        (Column("seeds"), _seeds),
        (Column(f"{block.split} accuracy, %"), lambda m: interval_cell(m.accuracy)),
        (Column("n"), lambda m: _count(m.accuracy.n if m.accuracy else None)),
        (Column("not told apart", text=True), lambda m: m.letters),
        (Column("val accuracy, %"), lambda m: interval_cell(m.val_accuracy)),
        (Column("macro F1, %"), lambda m: figure(m.macro_f1, "fraction")),
        (Column("weighted precision, %"), lambda m: figure(m.weighted_precision, "fraction")),
        (Column("weighted recall, %"), lambda m: figure(m.weighted_recall, "fraction")),
        (Column("trainable parameters"), lambda m: _count(m.n_trainable_params)),
        (Column("of all, %"), _share),
        (Column("fit, s"), lambda m: figure(m.fit_seconds, "seconds")),
        (Column("encode, s"), lambda m: figure(m.encode_seconds, "seconds")),
        (Column("examples/s, scoring alone"), lambda m: _rate(m.examples_per_second)),
        (Column("peak memory, MiB"), lambda m: figure(m.peak_memory_bytes, "bytes")),
        (Column("saved, MiB"), lambda m: _mebibytes(m.saved_bytes)),
        (Column("epoch chosen"), _epochs),
        (Column("val loss rise"), lambda m: _signed(m.loss_rise, 1, 3)),
        (Column("train - val, points"), lambda m: _signed(m.accuracy_gap, 100, 1)),
        (Column("flags", text=True), lambda m: ", ".join(m.flags)),
    ]
    rows = [[cell(m) for _, cell in columns] for m in block.methods]
    bold = {(i, 2) for i, m in enumerate(block.methods) if m.best}
    return grid([column for column, _ in columns], rows, bold)


def _shown_classes(block: Block) -> tuple[list[str], int]:
    """Return the classes to print, in their order, and how many are left out."""
    f1: dict[str, list[float]] = {}
    for method in block.methods:
        for c in method.classes:
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
    rows = []
    for name in names:
        for method in block.methods:
            for c in method.classes:
                if c.name == name:
                    figures = (figure(x, "fraction") for x in (c.precision, c.recall, c.f1))
                    rows.append([name, f"{c.support:,}", method.label, *figures])
    return grid(columns, rows, ())


def _comparisons_grid(block: Block, grid: _Grid) -> str:
    columns = [
        Column("method", text=True),
        Column("against", text=True),
        Column("difference, points"),
        Column("p"),
        Column("p, Holm"),
        Column("test", text=True),
        Column("examples"),
        Column("examples needed"),
    ]
    rows = [
        [
            c.first,
            c.second,
            _difference(c.difference),
            _p(c.p_value),
            _p(c.p_adjusted),
            c.test,
            f"{c.n_examples:,}",
            _count(c.n_needed),
        ]
        for c in block.comparisons
    ]
    bold = {(i, 4) for i, c in enumerate(block.comparisons) if c.p_adjusted < 1 - LEVEL}
    return grid(columns, rows, bold)


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
    rows = []
    for m in block.methods:
        for p in m.published:
            of_split = p.test_accuracy if block.split == "test" else p.val_accuracy
            rows.append([
                m.label,
                interval_cell(m.val_accuracy),
                _beside(p.val_accuracy, p),
                interval_cell(m.accuracy),
                _beside(of_split, p),
                _count(m.n_trainable_params),
                _count(p.n_trainable_params),
                _comparable(p),
                p.source,
            ])
    return grid(columns, rows, ())


def interval_cell(interval: Interval | None) -> str:
    """Return a proportion in percent with its bounds, as tables show it."""
    if interval is None:
        return NOTHING
    value = figure(interval.value, "fraction")
    if interval.low is None or interval.high is None:
        return value
    return f"{value} [{figure(interval.low, 'fraction')}, {figure(interval.high, 'fraction')}]"


def _beside(value: float | None, row: PublishedRow) -> str:
    if value is None:
        return NOTHING
    return figure(value, "fraction") + (" (not comparable)" if row.not_comparable else "")


def _comparable(row: PublishedRow) -> str:
    if row.not_comparable:
        return f"no: {'; '.join(row.not_comparable)}"
    if row.deviations:
        plural = "" if len(row.deviations) == 1 else "s"
        return f"yes; our recipe has {len(row.deviations)} deviation{plural}"
    return "yes"


def _seeds(m: MethodSummary) -> str:
    return str(len(m.seeds)) + (f" ({m.failed} failed)" if m.failed else "")


def _share(m: MethodSummary) -> str:
    if m.n_trainable_params is None or not m.n_total_params:
        return NOTHING
    return f"{100 * m.n_trainable_params / m.n_total_params:.3g}"


def _epochs(m: MethodSummary) -> str:
    shown = [NOTHING if e is None else str(e) for e in m.epochs]
    return ", ".join(shown if len(set(shown)) > 1 else shown[:1]) or NOTHING


def _count(n: int | None) -> str:
    return NOTHING if n is None else f"{n:,}"


def _rate(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.{0 if value >= 10 else 1}f}"


def _mebibytes(n: int | None) -> str:
    return NOTHING if n is None else f"{n / 2**20:,.{0 if n >= 10 << 20 else 2}f}"


def _signed(value: float | None, factor: float, digits: int) -> str:
    return NOTHING if value is None else f"{factor * value:+.{digits}f}"


def _difference(interval: Interval) -> str:
    value = _signed(interval.value, 100, 1)
    if interval.low is None or interval.high is None:
        return value
    return f"{value} [{_signed(interval.low, 100, 1)}, {_signed(interval.high, 100, 1)}]"


def _p(value: float) -> str:
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}"
