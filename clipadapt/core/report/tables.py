"""From records to a table.

Records are grouped by what was evaluated and how (data set and its state, split, protocol, model, method, recipe,
shots, and every setting); the seeds of a group make one row, and rows that would look alike say which setting they
differ in. A group whose records differ in weights or code is refused: an average over unlike runs means nothing.
Failed runs are counted, never averaged.

Percent: a record holds an accuracy as a fraction in [0, 1]. Markdown, LaTeX and HTML show it times one hundred
with one decimal, the 95 % interval behind it in the same unit: ``72.3 [68.1, 76.0]``. CSV keeps the fraction.
Figures of other units (nats, seconds, bytes) are never percent.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import RecordError, unknown
from clipadapt.core.api.user_input import visible
from clipadapt.core.records.environment import LIBRARIES
from clipadapt.core.records.schema import canonical_json
from clipadapt.core.report import answers
from clipadapt.core.scoring.metrics import METRICS, METRICS_VERSION
from clipadapt.core.scoring.statistics import harmonic, harmonic_interval, wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.scoring.statistics import Interval

NOTHING: Final = "-"
CHANGED_METRICS: Final = {m.name for m in METRICS.values() if m.version > 1}
"""Metrics whose meaning changed with :data:`~clipadapt.core.scoring.metrics.METRICS_VERSION`."""
NONE_FITS: Final = "No published number fits a row in data, model, method, shots and settings."

# Settings that change no result, or that stand in the record by what they led to (hashes, effective dtype).
_SETTINGS_ASIDE: Final = {
    "seeds", "workers", "store", "out", "progress", "data.name", "data.manifest", "data.classnames",
    "data.templates", "data.shots", "model", "model.name", "model.precision", "model.device", "recipe.source",
    "recipe.deviations", "method.name", "evaluation.split", "evaluation.protocol", "evaluation.also",
    "data.classes", "threads",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure beside a row.

    Attributes:
        value: The figure, in the metric's unit.
        source: Where it was published; where it is not comparable, why not.
        number: Number of the source in the notes, from 1.
        comparable: Whether all that decides it is the same.
    """

    value: float
    source: str
    number: int
    comparable: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the seeds of one group.

    Attributes:
        dataset: Data set evaluated.
        split: Split evaluated.
        protocol: Rules of the evaluation.
        model: Backbone, or None.
        method: Method.
        recipe: Recipe of the method, or None.
        shots: Training examples per class, None for all.
        settings: What tells the row apart from those that look alike, as ``key=value``.
        seeds: Runs that are ok.
        failed: Runs that failed.
        n: Examples the metric was computed on, None where no run has it.
        value: Mean of the metric in its own unit, None where no run has it.
        low: Lower bound of the 95 % interval, or None.
        high: Upper bound, or None.
        n_trainable_params: Parameters learnt, mean over seeds.
        fit_seconds: Mean over seeds, without encoding.
        encode_seconds: Mean over seeds.
        predict_seconds: Mean over seeds.
        peak_memory_bytes: The largest of the seeds, None where none was measured.
        flags: Flag -> runs that carry it.
        published: Published figures that fit the row, where they were asked for.
        classes: ``all`` classes, the ``base`` or the ``new`` ones; ``H`` is the harmonic mean of the last two.
        templates: Prompt templates.
        classnames_sha256: Hash of the class names in their order.
    """

    dataset: str
    split: str
    protocol: str
    model: str | None
    method: str
    recipe: str | None
    shots: int | None
    settings: tuple[str, ...]
    seeds: int
    failed: int
    n: int | None
    value: float | None
    low: float | None
    high: float | None
    n_trainable_params: int | None
    fit_seconds: float | None
    encode_seconds: float | None
    predict_seconds: float | None
    peak_memory_bytes: int | None
    flags: Mapping[str, int]
    published: tuple[Published, ...] = ()
    classes: str = "all"
    templates: tuple[str, ...] = ()
    classnames_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of one metric.

    Attributes:
        metric: Name of the metric.
        unit: Its unit, as in :class:`~clipadapt.core.scoring.metrics.MetricValue`.
        higher_is_better: Its direction.
        rows: One per group, in order of their names.
        notes: Lines below the table.
        reference: Whether published figures have a column.
    """

    metric: str
    unit: str
    higher_is_better: bool
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    reference: bool = False


def build_table(
    records: Sequence[RunRecord],
    *,
    metric: str = "accuracy",
    reference: bool = False,
    store: RunStore | None = None,
) -> Table:
    """Group records and average each group over its seeds.

    One seed keeps the interval of its record, over the test examples. Several seeds get that of the crossed model,
    over seeds and examples together, which needs their predictions; see :mod:`~clipadapt.core.report.answers`.

    Args:
        records: Records of any kind; one that occurs twice (the same ``run_id``) counts once.
        metric: Name of the metric.
        reference: Set published figures beside the rows they fit, with their sources in the notes.
        store: Where the predictions are. Without it a mean over seeds has no interval.

    Raises:
        RecordError: If there is no record, or one group holds unlike records.
        UnknownNameError: If no record has the metric; the message lists those there are.
    """
    if not records:
        raise RecordError(
            "there are no records to make a table of",
            hint="run an experiment first, for example "
            "'clipadapt run zero_shot --set data.name=synthetic --set model.name=stitched'",
        )
    distinct = list({r.run_id: r for r in records}.values())
    ok = [r for r in distinct if r.status == "ok"]
    failed = [r for r in distinct if r.status == "failed"]
    present = sorted({name for r in ok for name in r.metrics})
    if present and metric not in present:
        raise unknown("metric", metric, present, hint="name one of them with --metric NAME")
    values = [r.metrics[metric] for r in ok if metric in r.metrics]
    rows = []
    sources: dict[str, int] = {}
    groups = group_records(distinct)
    unread: list[str] = []
    near: list[str] = []
    for group in groups:
        row = _row(group, metric, store, unread)
        rows.append(
            replace(row, published=_published(group, metric, sources, near)) if reference else row
        )
    if values and values[0].unit == "fraction" and values[0].higher_is_better:
        rows = _with_harmonic_means(groups, rows, metric, store, unread)
    return Table(
        metric=metric,
        unit=values[0].unit if values else "",
        higher_is_better=values[0].higher_is_better if values else True,
        rows=tuple(rows),
        notes=(
            *_notes(failed, len(records) - len(distinct), ok, metric),
            *dict.fromkeys(unread),
            *([conditions(ok)] if ok else ()),
            *(f"Published ({number}): {cited}." for cited, number in sources.items()),
            *([NONE_FITS] if reference and not sources else ()),
            *dict.fromkeys(near),
        ),
        reference=reference,
    )


def render(table: Table, format: str = "markdown") -> str:  # noqa: A002  named as the option is
    """Return the table as text, ending in a line end.

    Args:
        table: The table.
        format: ``markdown``, ``csv``, ``latex`` (with the booktabs package) or ``html``.

    Raises:
        UnknownNameError: If there is no such format.
    """
    if format not in _RENDERERS:
        raise unknown("table format", format, list(_RENDERERS))
    return _RENDERERS[format](table)


def render_per_class(record: RunRecord, predictions: Predictions) -> str:
    """Return a Markdown table of one record's recall per class, with 95 % Wilson intervals.

    Raises:
        RecordError: If the record does not name the classes.
    """
    if record.per_class is None:
        raise RecordError(f"the record {record.run_id} has no figures per class")
    names: Any = record.per_class["classnames"]
    given: list[dict[int, int]] = [{} for _ in names]  # of each true class
    for c, k, times in zip(*(a.tolist() for a in predictions.confusions()), strict=True):
        given[c][k] = times
    lines = ["| class | n | recall, % | most taken for |", "| --- | ---: | ---: | --- |"]
    for c, (name, counts) in enumerate(zip(names, given, strict=True)):
        n = sum(counts.values())
        wrong = max((k for k in counts if k != c), key=counts.__getitem__, default=None)
        other = NOTHING if wrong is None else escape_markdown(names[wrong])
        if n:
            recall = wilson(counts.get(c, 0), n)
            low, high = figure(recall.low, "fraction"), figure(recall.high, "fraction")
            shown = f"{figure(recall.value, 'fraction')} [{low}, {high}]"
        else:
            shown = NOTHING
        lines.append(f"| {escape_markdown(name)} | {n} | {shown} | {other} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- groups


@dataclass(frozen=True, slots=True)
class Group:
    """Records that differ in nothing but the seed.

    Attributes:
        records: One or more, failed ones too, by seed.
        settings: What tells the group apart from those that look alike, as ``key=value``.
    """

    records: tuple[RunRecord, ...]
    settings: tuple[str, ...]

    @property
    def first(self) -> RunRecord:
        """Return a record that stands for the others in everything a row is grouped by."""
        return self.records[0]

    @property
    def ok(self) -> tuple[RunRecord, ...]:
        """Return the records that did not fail."""
        return tuple(r for r in self.records if r.status == "ok")


def group_records(records: Iterable[RunRecord]) -> list[Group]:
    """Group distinct records by what was evaluated and how, in order of their names."""
    members: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in records:
        members.setdefault(_group(record), []).append(record)
    alike: dict[tuple[Any, ...], list[RunRecord]] = {}
    for key, group in members.items():
        alike.setdefault(key[:-1], []).append(group[0])
    several = several_states(group[0] for group in members.values())
    return [
        Group(
            tuple(sorted(members[key], key=lambda r: (r.seed, r.run_id))),
            _told_apart(members[key][0], alike[key[:-1]], several),
        )
        for key in sorted(members, key=_sortable)
    ]


def several_states(records: Iterable[RunRecord]) -> set[tuple[str, ...]]:
    """Return the data sets that the records know in more than one state: judged and learnt from, or judged alone."""
    states: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        for names, state in _states(record).values():
            states.setdefault(names, set()).add(state)
    return {names for names, found in states.items() if len(found) > 1}


def state_of(record: RunRecord, several: Collection[tuple[str, ...]]) -> dict[str, str]:
    """Return the begin of the fingerprints of a record's data, where they are known in several states."""
    return {key: state for key, (names, state) in _states(record).items() if names in several}


def _states(record: RunRecord) -> dict[str, tuple[tuple[str, ...], str]]:
    judged, data = record.evaluation, record.data
    found: dict[str, tuple[tuple[str, ...], str]] = {
        "data": ((judged.dataset, data.name), data.sha256[:8])
    }
    if judged.dataset != data.name and judged.sha256 is not None:
        found["evaluation data"] = ((judged.dataset,), judged.sha256[:8])
    return found


def _group(record: RunRecord) -> tuple[Any, ...]:
    judged, model, method = record.evaluation, record.model, record.method
    return (
        judged.dataset, judged.split, judged.protocol, model.name if model else None, judged.classes,
        record.data.shots, method.name, method.recipe, canonical_json(_settings(record)),
    )  # fmt: skip


def _settings(record: RunRecord) -> dict[str, Any]:
    """Return every setting that may change the result and is in no column of its own."""
    judged = record.evaluation
    given = record.config.get("data")
    manifest = given.get("manifest") if isinstance(given, Mapping) else None
    return {
        **{key: state for key, (_, state) in _states(record).items()},
        "learnt from": record.data.name if record.data.name != judged.dataset else None,
        "learnt classes": given.get("classes", "all") if isinstance(given, Mapping) else "all",
        "dtype": record.model.dtype if record.model else None,
        "device": record.environment.device.partition(":")[0],
        "threads": record.environment.threads,
        "templates": list(judged.templates),
        "classnames": judged.classnames_sha256[:8],
        "manifest": (record.data.manifest_sha256 or "")[:8] if manifest else None,
        **{
            k: v
            for k, v in _flatten(record.config)
            if k not in _SETTINGS_ASIDE
            and not k.startswith("resources.")
            and (k, v) != ("compile", "off")  # records from before the setting lack it
        },
    }


def _told_apart(
    record: RunRecord, alike: Sequence[RunRecord], several: Collection[tuple[str, ...]]
) -> tuple[str, ...]:
    """Return the settings of a row that differ among those that look like it, and those that always stand there.

    A limit of the data does, and the state of data that the table knows in more than one.
    """
    own = _settings(record)
    others = [_settings(r) for r in alike if r is not record]
    always = {key for key in ("data.limit",) if own.get(key) is not None}
    always |= state_of(record, several).keys()
    return tuple(
        f"{key}={_short(key, own.get(key))}"
        for key in dict.fromkeys(k for settings in (own, *others) for k in settings)
        if key in always or (key != "data" and any(o.get(key) != own.get(key) for o in others))
    )


def _short(key: str, value: Any) -> str:
    if key == "templates" and len(value) != 1:
        return str(len(value))
    text = str(value[0]) if key == "templates" else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _sortable(group: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((value is not None, value) if value is not None else (False,) for value in group)


def _row(group: Group, metric: str, store: RunStore | None, unread: list[str]) -> Row:
    """Return the row of a group; notes of predictions that cannot be read are added to ``unread``."""
    first, ok = group.first, group.ok
    refuse_unlike(ok, metric)
    interval, notes = answers.cell(ok, metric, store)
    unread += notes
    peaks = [p for r in ok if (p := r.cost.peak_memory_bytes) is not None]
    return Row(
        dataset=first.evaluation.dataset,
        split=first.evaluation.split,
        protocol=first.evaluation.protocol,
        model=first.model.name if first.model else None,
        method=first.method.name,
        recipe=first.method.recipe,
        shots=first.data.shots,
        settings=group.settings,
        seeds=len(ok),
        failed=len(group.records) - len(ok),
        n=interval.n if interval else None,
        value=interval.value if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        n_trainable_params=round(fmean(r.n_trainable_params for r in ok)) if ok else None,
        fit_seconds=fmean(r.cost.fit_seconds for r in ok) if ok else None,
        encode_seconds=fmean(r.cost.encode_seconds for r in ok) if ok else None,
        predict_seconds=fmean(r.cost.predict_seconds for r in ok) if ok else None,
        peak_memory_bytes=max(peaks, default=None),
        flags=dict(sorted(Counter(f for r in ok for f in set(r.flags)).items())),
        classes=first.evaluation.classes,
        templates=first.evaluation.templates,
        classnames_sha256=first.evaluation.classnames_sha256,
    )


def pairs_of_classes(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """Return the places of groups that judge the same fits on base and on new classes."""

    def key(group: Group) -> tuple[Any, ...]:
        judged = group.first.evaluation
        return judged.dataset, judged.split, judged.protocol, {r.fit_id for r in group.ok}

    return [
        (i, j)
        for i, base in enumerate(groups)
        for j, new in enumerate(groups)
        if (base.first.evaluation.classes, new.first.evaluation.classes) == ("base", "new")
        and key(base)[:3] == key(new)[:3]
        and key(base)[3] & key(new)[3]
    ]


def _with_harmonic_means(
    groups: Sequence[Group],
    rows: Sequence[Row],
    metric: str,
    store: RunStore | None,
    unread: list[str],
) -> list[Row]:
    """Return the rows with H, the harmonic mean of base and new, behind each pair; as published, of the two means."""
    after: dict[int, Row] = {}
    for i, j in pairs_of_classes(groups):
        of_new = {r.fit_id: r for r in groups[j].ok if metric in r.metrics}
        both = [
            (r, of_new[r.fit_id])
            for r in groups[i].ok
            if r.fit_id in of_new and metric in r.metrics
        ]
        if not both:
            continue
        base, new = (fmean(pair[k].metrics[metric].value for pair in both) for k in (0, 1))
        interval = None
        if store is not None:
            try:
                interval = interval_of_h(store, both, metric)
            except RecordError as err:
                unread.append(f"{err.problem}: H has no interval.")
        after[max(i, j)] = replace(
            rows[i],
            classes="H",
            seeds=len(both),
            n=sum(r.metrics[metric].n for r in both[0]),
            value=interval.value if interval else harmonic(base, new),
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            published=(),
        )
    return [r for i, row in enumerate(rows) for r in (row, after.get(i)) if r is not None]


def interval_of_h(
    store: RunStore, pairs: Sequence[tuple[RunRecord, RunRecord]], metric: str = "accuracy"
) -> Interval | None:
    """Return the harmonic mean over runs of the same fits on base and on new classes, None where there is none.

    Raises:
        RecordError: If predictions cannot be read.
    """
    found = [
        [answers.read_answers(store, r, metric) for r in side] for side in zip(*pairs, strict=True)
    ]
    sides = [answers.join([a for a in side if a is not None]) for side in found if None not in side]
    if len(sides) < 2:
        return None
    base, new = sides
    return harmonic_interval(base.values, new.values, weights=(base.weight, new.weight))


def split_title(split: str, classes: str) -> str:
    """Return a split with its classes, as tables show it."""
    if classes == "H":
        return f"{split}, H of base and new"
    return split if classes == "all" else f"{split}, {classes} classes"


def conditions(records: Sequence[RunRecord]) -> str:
    """Return one line that says by which rules, templates and class names each data set was judged."""
    found: dict[str, list[str]] = {}
    for record in records:
        judged = record.evaluation
        where = f"{judged.dataset} ({split_title(judged.split, judged.classes)})"
        parts = [f"protocol {judged.protocol}"]
        if judged.templates:
            some = f'"{judged.templates[0]}"'
            n = len(judged.templates)
            parts.append(f"template {some}" if n == 1 else f"{n} templates, the first {some}")
        parts.append(f"class names {judged.classnames_sha256[:8]}")
        text = ", ".join(parts)
        if text not in found.setdefault(where, []):
            found[where].append(text)
    return "Judged: " + "; ".join(f"{k}: {' or '.join(v)}" for k, v in found.items()) + "."


def _published(
    group: Group, metric: str, sources: dict[str, int], near: list[str]
) -> tuple[Published, ...]:
    """Return the published figures that fit a group; new sources are numbered, and what nearly fits is noted."""
    from clipadapt.core.report.references import (
        caveats,
        differences,
        nearest_references,
        references_for,
    )

    first = group.first
    split = first.evaluation.split
    found = []
    for reference in references_for(first):
        value = reference.value(metric, split)
        if value is not None:
            unlike = {words: None for r in group.records for words in caveats(r, reference)}
            cited = reference.cited + (f"; not comparable: {'; '.join(unlike)}" if unlike else "")
            number = sources.setdefault(cited, len(sources) + 1)
            found.append(Published(value, cited, number, comparable=not unlike))
    if not found:
        for reference in nearest_references(first):
            unfit = differences(first, reference)
            if reference.value(metric, split) is not None and unfit:
                title = method_title(first.method.name, first.method.recipe)
                near.append(
                    f"The nearest published number does not fit {title} on {first.evaluation.dataset}: "
                    f"{'; '.join(unfit)} ({reference.cited})."
                )
    return tuple(found)


def refuse_unlike(records: Sequence[RunRecord], metric: str) -> None:
    """Raise where records that would be averaged differ in more than the seed.

    Raises:
        RecordError: Naming the field and both values.
    """
    if not records:
        return
    first = records[0]
    reference = _facts(first, metric)
    for other in records[1:]:
        facts = _facts(other, metric)
        absent = object()
        unlike = [
            f"{name}: {_shown(reference.get(name, absent), absent)} in {first.run_id}, "
            f"{_shown(facts.get(name, absent), absent)} in {other.run_id}"
            for name in [*reference, *(f for f in facts if f not in reference)]
            if reference.get(name, absent) != facts.get(name, absent)
        ]
        if unlike:
            unlike += _commits(first, other)
            raise RecordError(
                f"runs of {method_title(first.method.name, first.method.recipe)} on "
                f"{first.evaluation.dataset} (seeds {first.seed} and {other.seed}) are not alike "
                "and have no mean:\n  " + "\n  ".join(unlike),
                hint="move the folders of one of them elsewhere, or run all seeds again with another --out DIR",
            )
    seeds = Counter(r.seed for r in records)
    seed, times = seeds.most_common(1)[0]
    if times > 1:
        ids = ", ".join(r.run_id for r in records if r.seed == seed)
        raise RecordError(
            f"{times} runs of {method_title(first.method.name, first.method.recipe)} on "
            f"{first.evaluation.dataset} have the same seed {seed}: {ids}",
            hint="remove the runs that are out of date",
        )


def _facts(record: RunRecord, metric: str) -> dict[str, Any]:
    """Return everything that must be equal within one cell, by the field's name."""
    model, value = record.model, record.metrics.get(metric)
    installed = record.environment.packages
    return {
        "data.n_test": record.data.n_test,
        "model.weights_sha256": model.weights_sha256 if model else None,
        "method.version": record.method.version,
        f"metrics.{metric}.unit": value.unit if value else None,
        **({"metrics_version": record.metrics_version} if metric in CHANGED_METRICS else {}),
        **{f"environment.packages.{name}": installed.get(name) for name in LIBRARIES},
    }


def _commits(first: RunRecord, other: RunRecord) -> list[str]:
    """Return the commits of model and data that two records name, where they differ."""
    pairs = {
        "model.revision": (
            first.model and first.model.revision,
            other.model and other.model.revision,
        ),
        "data.revision": (first.data.revision, other.data.revision),
    }
    return [
        f"{name}: commit {a or 'none'} in {first.run_id}, commit {b or 'none'} in {other.run_id}"
        for name, (a, b) in pairs.items()
        if a != b
    ]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any, absent: object) -> str:
    if value is absent:
        return "absent"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def failure_note(failed: Sequence[RunRecord]) -> str:
    """Return a line that counts failed runs and names the first of them."""
    which = "; ".join(
        f"{method_title(r.method.name, r.method.recipe)} on {r.evaluation.dataset}, seed {r.seed}: "
        + (r.error or "").partition("\n")[0]
        for r in failed[:5]
    )
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    plural = "run" if len(failed) == 1 else "runs"
    return f"{len(failed)} failed {plural}, in no mean: {which}{more}."


def _notes(
    failed: Sequence[RunRecord], repeated: int, ok: Sequence[RunRecord], metric: str
) -> Iterable[str]:
    if failed:
        yield failure_note(failed)
    if repeated:
        yield f"Copies of a record (same run_id), each counted once: {repeated} left out."
    if ok:
        yield (
            "Intervals are 95 %: over test examples (Wilson's) for one seed, over seeds and examples together for "
            "several. n: test examples."
        )
    old = sum(r.metrics_version < METRICS_VERSION and metric in r.metrics for r in ok)
    if metric in CHANGED_METRICS and old:
        yield (
            f"{old} of these records were written by an earlier version, in which {metric} counted classes that do "
            "not occur as 0. To recompute it, remove their folders and run the experiments again."
        )


# ---------------------------------------------------------------- formats


def method_title(name: str, recipe: str | None) -> str:
    """Return a method with its recipe, as tables show it."""
    return f"{name} ({recipe})" if recipe else name


def _metric_title(table: Table) -> str:
    unit = {"fraction": ", %", "bytes": ", MiB", "": ""}.get(table.unit, f", {table.unit}")
    return f"{table.metric}{unit}" + ("" if table.higher_is_better else " (lower is better)")


def figure(value: float | None, unit: str) -> str:
    """Return a figure as tables show it: percent of a fraction, MiB of bytes, ``-`` of None."""
    if value is None:
        return NOTHING
    if unit == "fraction":
        return f"{100 * value:.1f}"
    if unit == "bytes":
        return f"{value / 2**20:.0f}"
    if unit == "seconds":
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:.3f}"


def _row_figure(row: Row, unit: str) -> str:
    if row.low is None or row.high is None:
        return figure(row.value, unit)
    return f"{figure(row.value, unit)} [{figure(row.low, unit)}, {figure(row.high, unit)}]"


def _published_cell(row: Row, unit: str) -> str:
    return (
        "; ".join(
            f"{figure(p.value, unit)} ({p.number}{'' if p.comparable else ', not comparable'})"
            for p in row.published
        )
        or NOTHING
    )


def _shots(row: Row) -> str:
    if row.shots is not None:
        return str(row.shots)
    return "all" if row.n_trainable_params else NOTHING


def _flags(row: Row) -> str:
    return ", ".join(
        flag if times == row.seeds else f"{flag} ({times} of {row.seeds})"
        for flag, times in row.flags.items()
    )


def _columns(table: Table) -> list[tuple[str, bool, Callable[[Row], str]]]:
    """Return title, whether it is text (to be escaped, flush left), and cell of each column for people."""
    columns: list[tuple[str, bool, Callable[[Row], str]]] = [
        ("dataset", True, lambda r: r.dataset),
        ("split", True, lambda r: split_title(r.split, r.classes)),
        ("protocol", True, lambda r: r.protocol),
        ("model", True, lambda r: r.model or NOTHING),
        ("method", True, lambda r: method_title(r.method, r.recipe)),
        ("settings", True, lambda r: ", ".join(r.settings)),
        ("shots", False, _shots),
        ("seeds", False, lambda r: str(r.seeds)),
        (_metric_title(table), False, lambda r: _row_figure(r, table.unit)),
        ("n", False, lambda r: NOTHING if r.n is None else f"{r.n:,}"),
        ("published", False, lambda r: _published_cell(r, table.unit)),
        (
            "parameters",
            False,
            lambda r: NOTHING if r.n_trainable_params is None else f"{r.n_trainable_params:,}",
        ),
        ("fit, s", False, lambda r: figure(r.fit_seconds, "seconds")),
        ("encode, s", False, lambda r: figure(r.encode_seconds, "seconds")),
        ("predict, s", False, lambda r: figure(r.predict_seconds, "seconds")),
        ("peak memory, MiB", False, lambda r: figure(r.peak_memory_bytes, "bytes")),
        ("flags", True, _flags),
    ]
    aside = set() if table.reference else {"published"}
    if len({r.protocol for r in table.rows}) < 2:
        aside.add("protocol")
    if not any(r.settings for r in table.rows):
        aside.add("settings")
    return [c for c in columns if c[0] not in aside]


def _cells(table: Table) -> tuple[list[Column], list[list[str]]]:
    columns = _columns(table)
    return (
        [Column(title, text=text) for title, text, _ in columns],
        [[cell(row) for _, _, cell in columns] for row in table.rows],
    )


@dataclass(frozen=True, slots=True)
class Column:
    """Title of a column, and whether it holds text: escaped and flush left, where figures are flush right."""

    title: str
    text: bool = False


def markdown_grid(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    bold: Collection[tuple[int, int]] = (),
) -> str:
    """Return a Markdown table.

    Args:
        columns: One for each cell of a row.
        rows: Cells as people read them; text is escaped here.
        bold: Row and column of cells set in bold.
    """
    lines = [
        [escape_markdown(c.title) for c in columns],
        ["---" if c.text else "---:" for c in columns],
    ]
    for i, row in enumerate(rows):
        cells = [
            escape_markdown(cell) if c.text else cell for cell, c in zip(row, columns, strict=True)
        ]
        lines.append([f"**{cell}**" if (i, j) in bold else cell for j, cell in enumerate(cells)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def html_grid(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    bold: Collection[tuple[int, int]] = (),
) -> str:
    """Return an HTML table; see :func:`markdown_grid`. Every cell is escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        joined = "".join(
            f"<{tag}>{cell}</{tag}>"
            if c.text
            else f'<{tag} style="text-align:right">{cell}</{tag}>'
            for cell, c in zip(cells, columns, strict=True)
        )
        return f"<tr>{joined}</tr>"

    body = []
    for i, row in enumerate(rows):
        cells = [escape_html(cell) for cell in row]
        marked = [
            f"<strong>{cell}</strong>" if (i, j) in bold else cell for j, cell in enumerate(cells)
        ]
        body.append(line("td", marked))
    head = line("th", [escape_html(c.title) for c in columns])
    lines = ["<table>", f"<thead>{head}</thead>", "<tbody>", *body, "</tbody>", "</table>"]
    return "\n".join(lines) + "\n"


def _markdown(table: Table) -> str:
    notes = "".join(f"\n{escape_markdown(note)}\n" for note in table.notes)
    return markdown_grid(*_cells(table)) + notes


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    text = (
        visible(" ".join(text.split()))
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", text)


def escape_html(text: str) -> str:
    """Return text that HTML shows as it is, in an element or an attribute."""
    return html.escape(visible(text, lines=True))


def _latex(table: Table) -> str:
    columns, rows = _cells(table)
    escaped = [
        [_escape_latex(cell) if c.text else cell for cell, c in zip(row, columns, strict=True)]
        for row in rows
    ]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{''.join('l' if c.text else 'r' for c in columns)}}}",
        "\\toprule",
        " & ".join(_escape_latex(c.title) for c in columns) + r" \\",
        "\\midrule",
        *(" & ".join(cells) + r" \\" for cells in escaped),
        "\\bottomrule",
        "\\end{tabular}",
        *(f"\\par {_escape_latex(note)}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line end it would begin that line end's option
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in visible(" ".join(text.split())))


def _html(table: Table) -> str:
    return html_grid(*_cells(table)) + "".join(f"<p>{escape_html(n)}</p>\n" for n in table.notes)


def _csv(table: Table) -> str:
    """Write raw figures in their own units; what is unknown is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "dataset", "split", "protocol", "model", "method", "recipe", "shots", "seeds", "failed", "n", "metric",
            "unit", "value", "low", "high", "n_trainable_params", "fit_seconds", "encode_seconds",
            "predict_seconds", "peak_memory_bytes", "flags", "settings", "classes", "templates", "classnames_sha256",
            *(("published", "published_source") if table.reference else ()),
        ]
    )  # fmt: skip
    for r in table.rows:
        writer.writerow(
            _inert(cell) for cell in [
                r.dataset, r.split, r.protocol, r.model, r.method, r.recipe, r.shots, r.seeds, r.failed, r.n,
                table.metric, table.unit, r.value, r.low, r.high, r.n_trainable_params, r.fit_seconds,
                r.encode_seconds, r.predict_seconds, r.peak_memory_bytes, ";".join(r.flags), ";".join(r.settings),
                r.classes, ";".join(r.templates), r.classnames_sha256,
                *_csv_published(table, r),
            ]
        )  # fmt: skip
    return out.getvalue()


def _inert(cell: Any) -> Any:
    """Return text that no spreadsheet takes for a formula and no terminal obeys; numbers stay numbers."""
    if not isinstance(cell, str):
        return cell
    text = visible(cell, lines=True)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv_published(table: Table, row: Row) -> tuple[str, ...]:
    if not table.reference:
        return ()
    return (
        ";".join(str(p.value) for p in row.published),
        ";".join(p.source for p in row.published),
    )


_RENDERERS: Final[Mapping[str, Callable[[Table], str]]] = {
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "html": _html,
}
