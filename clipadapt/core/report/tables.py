"""One table of one metric: a line for each row of runs, its interval, its cost and its flags; then means over datasets.

Failed runs are counted, never averaged. Markdown, LaTeX and HTML are for readers (see
:mod:`~clipadapt.core.report.formats`); CSV holds raw values in their own units, and no means over datasets. A terminal
has a form of its own, see :mod:`~clipadapt.core.report.terminal`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import RecordError, unknown
from clipadapt.core.files.hardware import without_collection
from clipadapt.core.report.base_to_new import base_to_new
from clipadapt.core.report.formats import (
    NOTHING,
    Column,
    csv_grid,
    escape_html,
    escape_latex,
    escape_markdown,
    format_count,
    format_interval,
    format_value,
    html_grid,
    latex_grid,
    markdown_grid,
    method_title,
    metric_title,
    split_title,
)
from clipadapt.core.report.grouping import CHANGED_METRICS, group_records
from clipadapt.core.report.means import dataset_means, shots_title
from clipadapt.core.report.notes import (
    ENCODING,
    INTERVALS,
    conditions,
    failure_note,
    probability_notes,
    setting_notes,
)
from clipadapt.core.report.rows import Row
from clipadapt.core.report.run_files import RunFiles
from clipadapt.core.scoring.metrics import METRICS_VERSION, of_val
from clipadapt.core.scoring.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.means import DatasetMean
    from clipadapt.core.scoring.statistics import Interval

NONE_FITS: Final = "No published number matches a row in protocol, split, model, method, shots, templates and settings."
DRAWS: Final = (
    "Published numbers are of other seeds and few-shot draws than yours, and usually of fp16."
)


@dataclass(frozen=True, slots=True)
class PublishedCell:
    """A published number next to a line.

    Attributes:
        value: The number, in the metric's unit.
        source: Where it was published.
        number: Number of the source in the notes, from 1.
    """

    value: float
    source: str
    number: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table.

    Attributes:
        row: Runs and their figures.
        interval: The metric, None if no run has it.
        classes: ``all`` classes, the ``base`` or the ``new`` ones; ``H`` is the harmonic mean of the last two.
        seeds: Runs behind the metric.
        published: Published numbers that match the row, if they were asked for.
    """

    row: Row
    interval: Interval | None
    classes: str
    seeds: int
    published: tuple[PublishedCell, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table of one metric.

    Attributes:
        metric: Name of the metric.
        unit: Its unit, as in :class:`~clipadapt.core.scoring.metrics.MetricValue`.
        higher_is_better: Its direction.
        lines: One per row, sorted by their names.
        notes: Notes below the table.
        reference: Whether published numbers have a column.
        means: Means over datasets, below the lines; CSV does not have them.
    """

    metric: str
    unit: str
    higher_is_better: bool
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    reference: bool = False
    means: tuple[DatasetMean, ...] = ()


def build_table(
    records: Sequence[RunRecord],
    *,
    metric: str = "accuracy",
    reference: bool = False,
    store: RunStore | None = None,
) -> Table:
    """Group records into rows and average each over its seeds.

    Args:
        records: Records of any kind; copies (the same ``run_id``) count once.
        metric: Name of the metric.
        reference: Add published numbers next to the rows that they match, with their sources in the notes, and note
            how the nearest differs where none matches.
        store: Where the predictions are; without it a mean over seeds has no interval.

    Raises:
        RecordError: If there is no record, or runs of one row differ in more than their seed.
        UnknownNameError: If no record has the metric; the message lists those available.
    """
    if not records:
        raise RecordError(
            "there are no records to make a table of",
            hint="run an experiment first; 'run --help' shows an example",
        )
    distinct = list({r.run_id: r for r in records}.values())
    ok = [r for r in distinct if r.status == "ok"]
    present = sorted({name for r in ok for name in r.metrics})
    if present and metric not in present:
        raise unknown("metric", metric, present, hint="name one of them with --metric NAME")
    value = next((r.metrics[metric] for r in ok if metric in r.metrics), None)
    files = RunFiles(store) if store else None
    rows = _rows(distinct, files, metric)
    with without_collection():
        lines, faults = _lines(rows, metric)
        means, of_means = dataset_means(rows, metric)
    if files is not None:
        files.remember()
    if value and value.unit == "fraction" and value.higher_is_better:
        lines = _with_harmonic_means(lines, metric, faults)
    citations = _Citations(metric, value.unit if value else "")
    if reference:
        lines = [replace(line, published=citations.of(line)) for line in lines]
    return Table(
        metric=metric,
        unit=value.unit if value else "",
        higher_is_better=value.higher_is_better if value else True,
        lines=tuple(lines),
        notes=(
            *_notes(distinct, len(records) - len(distinct), metric),
            *dict.fromkeys(faults),
            *of_means,
            *([ENCODING] if any(row.encode_seconds for row in rows) else ()),
            *([conditions(ok)] if ok else ()),
            *(citations.notes() if reference else ()),
        ),
        reference=reference,
        means=tuple(means),
    )


def _rows(records: Sequence[RunRecord], files: RunFiles | None, metric: str) -> list[Row]:
    """Return the rows of a table; the answers that their intervals need are read together."""
    with without_collection():
        rows = _once([Row(group, files) for group in group_records(records)], metric)
    if files is not None:
        several = [row.ok for row in rows if len(row.ok) > 1]
        files.read_ahead((r for runs in several for r in runs if metric in r.metrics), metric)
    return rows


def _lines(rows: Sequence[Row], metric: str) -> tuple[list[Line], list[str]]:
    """Return a line for each row, and notes of predictions that cannot be read."""
    lines, faults = [], []
    for row in rows:
        interval, fault = row.measure(metric)
        if fault:
            faults.append(f"{fault}: the mean has no interval.")
        lines.append(Line(row, interval, row.first.evaluation.classes, len(row.ok)))
    return lines, faults


def _once(rows: Sequence[Row], metric: str) -> list[Row]:
    """Return rows without those that repeat a method without training for another number of shots.

    A metric that is calibrated on val differs between them, because the shots also determine val.
    """
    if of_val(metric):
        return list(rows)
    kept: dict[Any, Row] = {}
    for row in sorted(
        rows, key=lambda r: -len(r.ok)
    ):  # stable: the row with the most runs, else the first
        first = row.first
        where = first.evaluation
        own = (
            where.dataset,
            where.split,
            where.protocol,
            where.classes,
            row.model,
            row.setting,
            row.label,
        )
        kept.setdefault(id(row) if first.method.uses_train else own, row)
    there = {id(row) for row in kept.values()}
    return [row for row in rows if id(row) in there]


def _with_harmonic_means(lines: Sequence[Line], metric: str, faults: list[str]) -> list[Line]:
    """Return the lines with H below each pair of base and new; notes are added to ``faults``."""
    place = {id(line.row): i for i, line in enumerate(lines)}
    below: dict[int, Line] = {}
    for pair in base_to_new([line.row for line in lines], metric):
        if pair.fault:
            faults.append(f"{pair.fault}: H has no interval.")
        last = max(place[id(pair.base_row)], place[id(pair.new_row)])
        below[last] = Line(pair.base_row, pair.harmonic, "H", pair.n_fits)
    return [x for i, line in enumerate(lines) for x in (line, below.get(i)) if x is not None]


class _Citations:
    """Published numbers of one metric; their sources are numbered in the order in which they are cited.

    Numbers that are not comparable have no cell. One note lists those of a method that differ in the same way.
    """

    def __init__(self, metric: str, unit: str) -> None:
        self.metric = metric
        self.unit = unit
        self.sources: dict[str, int] = {}
        self._near: dict[tuple[str, str, str], dict[str, str]] = {}

    def of(self, line: Line) -> tuple[PublishedCell, ...]:
        """Return the numbers that match a line; if there are none, note how the nearest differs."""
        row, evaluation = line.row, line.row.first.evaluation
        found = []
        for p in row.published:
            value = p.reference.value(self.metric, evaluation.split, line.classes)
            if value is not None and not p.not_comparable:
                cited = p.reference.cited
                number = self.sources.setdefault(cited, len(self.sources) + 1)
                found.append(PublishedCell(value, cited, number))
        if not found:
            self._note_nearest(row)
        return tuple(found)

    def _note_nearest(self, row: Row) -> None:
        """Note the first number that is not comparable with a row, and why not."""
        first = row.first
        title = method_title(first.method.name, first.method.recipe)
        for p in row.published:
            values = p.reference.values(self.metric, first.evaluation.split)
            if values and p.not_comparable:
                figures = ", ".join(
                    f"{'' if classes == 'all' else f'{classes} '}{format_value(value, self.unit)}"
                    for classes, value in values.items()
                )
                key = title, "; ".join(p.not_comparable), p.reference.cited
                self._near.setdefault(key, {})[first.evaluation.dataset] = figures
                return

    def notes(self) -> Iterable[str]:
        """Yield the sources, then the numbers that are not comparable, by what differs."""
        if self.sources:
            yield DRAWS
        for cited, number in self.sources.items():
            yield f"Published ({number}): {cited}."
        if not self.sources:
            yield NONE_FITS
        for (title, differs, cited), figures in self._near.items():
            listed = "; ".join(f"{dataset} {figure}" for dataset, figure in figures.items())
            yield f"Not comparable with {title}: published {listed}. What differs: {differs}. Source: {cited}."


def _notes(distinct: Sequence[RunRecord], repeated: int, metric: str) -> Iterable[str]:
    ok = [r for r in distinct if r.status == "ok"]
    failed = [r for r in distinct if r.status == "failed"]
    if failed:
        yield failure_note(failed)
    if repeated:
        yield f"Copies of a record (same run_id) count once: {repeated} left out."
    if ok:
        yield INTERVALS
    yield from setting_notes(distinct)
    yield from probability_notes([r for r in ok if metric in r.metrics], [metric])
    old = sum(r.metrics_version < METRICS_VERSION and metric in r.metrics for r in ok)
    if metric in CHANGED_METRICS and old:
        yield (
            f"{old} of these records were written by an earlier version, in which {metric} counted classes that do "
            "not occur as 0. To recompute it, remove their folders and run the experiments again."
        )


# ---------------------------------------------------------------- formats


def render(table: Table, format: str = "markdown") -> str:  # noqa: A002  named like the option
    """Return the table as text, ending with a newline.

    Args:
        table: The table.
        format: ``markdown``, ``csv``, ``latex`` (needs the booktabs package) or ``html``.

    Raises:
        UnknownNameError: If there is no such format.
    """
    if format not in _RENDERERS:
        raise unknown("table format", format, list(_RENDERERS))
    return _RENDERERS[format](table)


def _columns(
    table: Table,
) -> list[tuple[Column, Callable[[Line], str], Callable[[DatasetMean], str]]]:
    """Return heading, cell of a line and cell of a mean over datasets of each column for readers."""
    metric = metric_title(table.metric, table.unit)
    if not table.higher_is_better:
        metric += " (lower is better)"
    columns: list[tuple[Column, Callable[[Line], str], Callable[[DatasetMean], str]]] = [
        (_given("dataset"), lambda x: x.row.first.evaluation.dataset, lambda m: m.title),
        (_given("split"), lambda x: split_title(x.row.first.evaluation.split, x.classes),
         lambda m: split_title(m.split, m.classes)),
        (_given("protocol"), lambda x: x.row.first.evaluation.protocol, lambda m: _of(m).evaluation.protocol),
        (_given("model"), lambda x: x.row.model or NOTHING, lambda m: m.rows[0].model or NOTHING),
        (Column("method", text=True), lambda x: _method(x.row), lambda m: _method(m.rows[0])),
        (_given("setting"), lambda x: x.row.setting, lambda m: m.rows[0].setting),
        (_given("settings"), lambda x: ", ".join(x.row.group.settings),
         lambda m: ", ".join(m.rows[0].group.settings)),
        (_given("probabilities"), lambda x: x.row.probabilities, lambda m: m.rows[0].probabilities),
        (Column("shots", given=True), lambda x: shots_title(x.row, table.metric),
         lambda m: shots_title(m.rows[0], table.metric)),
        (Column("seeds", rank=1), lambda x: str(x.seeds), lambda m: str(m.seeds or NOTHING)),
        (Column(metric, figure=True), lambda x: format_interval(x.interval, table.unit),
         lambda m: format_interval(m.interval, table.unit)),
        (Column("n", rank=2), lambda x: format_count(x.interval.n if x.interval else None),
         lambda m: format_count(m.interval.n)),
        (Column("published"), lambda x: _published(x, table.unit), _nothing),
        (Column("parameters", rank=3), lambda x: format_count(x.row.n_trainable_params), _nothing),
        (Column("fit, s", rank=4), lambda x: format_value(x.row.fit_seconds, "seconds"), _nothing),
        (Column("encode, s", rank=5), lambda x: format_value(x.row.encode_seconds, "seconds"), _nothing),
        (Column("predict, s", rank=7), lambda x: format_value(x.row.predict_seconds, "seconds"), _nothing),
        (Column("peak memory, MiB", rank=6), lambda x: format_value(x.row.peak_memory_bytes, "bytes"), _nothing),
        (Column("flags", text=True), _flags, lambda _: ""),
    ]  # fmt: skip
    hidden = set() if table.reference else {"published"}
    if len({line.row.first.evaluation.protocol for line in table.lines}) < 2:
        hidden.add("protocol")
    if all(line.row.setting == "inductive" for line in table.lines):
        hidden.add("setting")
    measured = [r for line in table.lines for r in line.row.ok if table.metric in r.metrics]
    if not probability_notes(measured, [table.metric]):
        hidden.add("probabilities")
    if not any(line.row.group.settings for line in table.lines):
        hidden.add("settings")
    return [c for c in columns if c[0].title not in hidden]


def _given(title: str) -> Column:
    return Column(title, text=True, given=True)


def _of(mean: DatasetMean) -> RunRecord:
    return mean.rows[0].first


def _nothing(_: DatasetMean) -> str:
    return NOTHING


def _method(row: Row) -> str:
    return method_title(row.first.method.name, row.first.method.recipe)


def _published(line: Line, unit: str) -> str:
    return (
        "; ".join(f"{format_value(p.value, unit)} ({p.number})" for p in line.published) or NOTHING
    )


def _flags(line: Line) -> str:
    return ", ".join(
        flag if times == line.seeds else f"{flag} ({times} of {line.seeds})"
        for flag, times in line.row.flags.items()
    )


def cells_of(table: Table) -> tuple[list[Column], list[list[str]], int]:
    """Return the columns for readers, the cells of each row, and the number of means at the end."""
    columns = _columns(table)
    cells = [[cell(line) for _, cell, _ in columns] for line in table.lines]
    cells += [[cell(mean) for _, _, cell in columns] for mean in table.means]
    return [column for column, _, _ in columns], cells, len(table.means)


def _markdown(table: Table) -> str:
    columns, cells, _ = cells_of(table)
    return markdown_grid(columns, cells) + "".join(
        f"\n{escape_markdown(note)}\n" for note in table.notes
    )


def _latex(table: Table) -> str:
    columns, cells, n_means = cells_of(table)
    notes = "".join(f"\\par {escape_latex(note)}\n" for note in table.notes)
    return latex_grid(columns, cells, n_last=n_means) + notes


def _html(table: Table) -> str:
    columns, cells, _ = cells_of(table)
    return html_grid(columns, cells) + "".join(f"<p>{escape_html(x)}</p>\n" for x in table.notes)


_CSV: Final = (
    "dataset", "split", "protocol", "model", "method", "recipe", "shots", "seeds", "failed", "n", "metric", "unit",
    "value", "low", "high", "n_trainable_params", "fit_seconds", "encode_seconds", "predict_seconds",
    "peak_memory_bytes", "flags", "settings", "classes", "templates", "classnames_sha256", "setting", "probabilities",
)  # fmt: skip


def _csv(table: Table) -> str:
    header = [*_CSV, *(("published", "published_source") if table.reference else ())]
    return csv_grid(header, [_csv_cells(table, line) for line in table.lines])


def _csv_cells(table: Table, line: Line) -> list[Any]:
    row, interval, evaluation = line.row, line.interval, line.row.first.evaluation
    value, low, high, n = (
        (interval.value, interval.low, interval.high, interval.n) if interval else (None,) * 4
    )
    cells = [
        evaluation.dataset, evaluation.split, evaluation.protocol, row.model, row.first.method.name,
        row.first.method.recipe, row.first.data.shots, line.seeds, len(row.failed), n, table.metric, table.unit,
        value, low, high, row.n_trainable_params, row.fit_seconds, row.encode_seconds, row.predict_seconds,
        row.peak_memory_bytes, ";".join(row.flags), ";".join(row.group.settings), line.classes,
        ";".join(evaluation.templates), evaluation.classnames_sha256, row.setting,
        row.probabilities,
    ]  # fmt: skip
    if table.reference:
        cells.append(";".join(str(p.value) for p in line.published))
        cells.append(";".join(p.source for p in line.published))
    return cells


_RENDERERS: Final[Mapping[str, Callable[[Table], str]]] = {
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "html": _html,
}


def render_per_class(record: RunRecord, predictions: Predictions) -> str:
    """Return a Markdown table of one record's recall per class; see :func:`per_class_cells`."""
    return markdown_grid(*per_class_cells(record, predictions))


def per_class_cells(
    record: RunRecord, predictions: Predictions
) -> tuple[list[Column], list[list[str]]]:
    """Return columns and cells of one record's recall per class, with 95 % Wilson intervals.

    Raises:
        RecordError: If the record does not list the classes.
    """
    if record.per_class is None:
        raise RecordError(f"the record {record.run_id} has no figures per class")
    names: Any = record.per_class["classnames"]
    predicted: list[dict[int, int]] = [{} for _ in names]  # counts, for each true class
    for c, k, times in zip(*(a.tolist() for a in predictions.confusions()), strict=True):
        predicted[c][k] = times
    rows = []
    for c, (name, counts) in enumerate(zip(names, predicted, strict=True)):
        n = sum(counts.values())
        wrong = max((k for k in counts if k != c), key=counts.__getitem__, default=None)
        recall = format_interval(wilson(counts.get(c, 0), n)) if n else NOTHING
        rows.append([name, str(n), recall, NOTHING if wrong is None else names[wrong]])
    columns = [
        Column("class", text=True, figure=True),
        Column("n"),
        Column("recall, %", figure=True),
        Column("most often predicted as", text=True),
    ]
    return columns, rows
