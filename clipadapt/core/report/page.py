"""One page of a folder of runs: self-contained HTML that asks no network for anything.

Rows, intervals and paired tests are those of :mod:`clipadapt.core.report.summary`, which refuses to average unlike
runs; what is drawn beside them comes from the stored predictions and histories. Names and paths are escaped by the
template, which escapes everything but the charts of :mod:`clipadapt.core.report.svg`; a Content-Security-Policy allows
the page's one script by its hash and no request.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import ClipAdaptError, RecordError
from clipadapt.core.api.flags import FLAGS
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import DATASETS, track_of
from clipadapt.core.api.user_input import visible
from clipadapt.core.files.atomic import write_text
from clipadapt.core.files.folders import output_file
from clipadapt.core.records.confidence import confidences, score_kind
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.records.schema import canonical_json
from clipadapt.core.report import svg as _svg
from clipadapt.core.report.base_to_new import base_to_new_cells
from clipadapt.core.report.formats import NOTHING, format_interval, format_value, method_title
from clipadapt.core.report.summary import build_summary
from clipadapt.core.scoring import calibration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Split
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.comparisons import Comparison, RankedRow
    from clipadapt.core.report.rows import ClassFigures, Row
    from clipadapt.core.report.summary import Block, Summary
    from clipadapt.core.report.svg import Axis, Point, Series

MOST_CLASSES: Final = 30
HARDEST: Final = 20
CONFUSIONS: Final = 8
MOST_SHADED: Final = 2000
"""With more classes than that the confusion matrix is not drawn; a picture of it would have millions of pixels."""
MOST_RIVALS: Final = 6
"""Of more methods in a block only the pairs with the best one are shown example by example."""
SAMPLES: Final = 8
MOST_THUMBNAILS: Final = 1500
PIXELS: Final = 72
LETTERS: Final = 320


@dataclass(frozen=True)
class Entry:
    """One row of the leaderboard.

    Attributes:
        number: Its place on the page.
        block: Where it competes.
        ranked: The row in that block.
        style: Number of its colour and shape.
    """

    number: int
    block: Block
    ranked: RankedRow
    style: int

    @property
    def row(self) -> Row:
        """Runs and their figures."""
        return self.ranked.row

    @property
    def trained(self) -> bool:
        """Whether the method trains; zero-shot is shown next to every number of shots."""
        return self.row.first.method.uses_train

    @property
    def label(self) -> str:
        """Method, recipe and settings, without the model: that has a column of its own."""
        return self.row.label

    @property
    def shots(self) -> str:
        """Shots as the page names them."""
        if not self.trained:
            return "zero-shot"
        shots = self.row.first.data.shots
        return "all" if shots is None else str(shots)

    @property
    def data(self) -> dict[str, str]:
        """Return the attributes by which the page's filters know it; a baseline passes where it has none."""
        found = {"data": place(self.block), "method": self.label}
        if self.row.model is not None:
            found["model"] = self.row.model
        if self.trained:
            found["shots"] = self.shots
        return found

    @property
    def title(self) -> str:
        """Return what a card is called."""
        counted = {"zero-shot": "", "all": ", all examples", "1": ", 1 shot"}
        return self.label + counted.get(self.shots, f", {self.shots} shots")

    @cached_property
    def answers(
        self,
    ) -> tuple[NDArray[np.str_], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Sorted ids, labels, the share of seeds that are right, and the class that most seeds gave."""
        first = self.row.predictions[0]
        order = np.argsort(np.asarray(first.ids, dtype=np.str_))
        ids = np.asarray(first.ids, dtype=np.str_)[order]
        given = []
        for found in self.row.predictions:
            own = np.asarray(found.ids, dtype=np.str_)
            given.append(found.predicted[np.argsort(own)])
        votes = np.stack(given)  # (S, n)
        labels = first.labels[order]
        share = (votes == labels).mean(axis=0)
        most = np.array([
            _most_given(column, None if part > 0.5 else label)
            for column, label, part in zip(votes.T, labels, share, strict=True)
        ])
        return ids, labels, share, most


def _most_given(answers: NDArray[np.int64], label: int | None) -> int:
    """Return the answer of most seeds; the most frequent wrong one where a label is given to pass over."""
    counts = Counter(int(a) for a in answers)
    wrong = Counter({a: n for a, n in counts.items() if a != label})
    return (wrong or counts).most_common(1)[0][0]


def write_report(
    directory: Path, output: Path, *, examples: bool = True, progress: Progress | None = None
) -> int:
    """Write the page of the runs in a folder; return how many runs it shows.

    Args:
        directory: Folder of the records.
        output: The HTML file; one that is there is replaced, and a link to one is written through.
        examples: Show pictures and texts; their data sets are opened by name.
        progress: Where notes go.

    Raises:
        RecordError: If there is no record, one cannot be read, unlike runs would be averaged, or ``output`` cannot
            be written.
        ClipAdaptError: If jinja2 is not installed.
    """
    if not directory.is_dir():
        raise RecordError(
            f"there is no folder '{directory}'",
            hint="name the folder given as --out when the experiments were run",
        )
    target = output_file(output, "--output")
    html, n = build_report(directory, examples=examples, progress=progress)
    try:
        write_text(target, html)
    except OSError as err:
        raise RecordError(
            f"cannot write '{output}': {err.strerror or err}",
            hint="name another file with --output FILE",
        ) from err
    return n


def build_report(
    directory: Path, *, examples: bool = True, progress: Progress | None = None
) -> tuple[str, int]:
    """Return the page as HTML and how many runs it shows; see :func:`write_report`."""
    template, markup = _template()
    store = RunStore(directory)
    progress = progress or Silent()
    left_out: list[str] = []

    def note(text: str) -> None:
        left_out.append(text)
        progress.note(text)

    records = list({r.run_id: r for r in store.load_all(note)}.values())
    if not records:
        raise RecordError(
            f"there are no records in '{directory}'" + (" that can be read" if left_out else ""),
            hint="run an experiment or a sweep first; records are written into the folder given as --out",
        )
    summary = build_summary(store, records=records)
    entries = _entries(summary)
    shown = [e for e in entries if e.row.ok]
    album = _Album(progress, wanted=examples)
    context = {
        "left_out": [*(text.removeprefix("warning: ") for text in left_out), *summary.left_out],
        "n_runs": len(records),
        "n_failed": sum(r.status == "failed" for r in records),
        "begun": min(r.started_at for r in records).date().isoformat(),
        "ended": max(r.started_at for r in records).date().isoformat(),
        "filters": _filters(entries),
        "findings": [_finding(b) for b in summary.blocks],
        "base_to_new": list(map(base_to_new_cells, summary.base_to_new)),
        "columns": COLUMNS,
        "rows": [(e, _cells(e)) for e in entries],
        "shots": _shots_panels(shown),
        "costs": _cost_panels(shown),
        "classes": [_class_card(e) for e in shown if e.row.classnames],
        "calibration": [_calibration_card(e) for e in shown],
        "exchanges": [x for b in summary.blocks for x in _exchanges(b, shown, album)],
        "curves": [c for e in shown if (c := _curve_card(e))],
        "recipes": _recipes(entries),
        "environments": _environments(records),
        "sources": _sources(records),
        "overlaps": _overlaps(records),
        "flags": _flags(records),
        "failures": [r for r in records if r.status == "failed"],
        "notes": summary.notes,
        "album": album,
        "most_samples": SAMPLES,
        "thumbnails": markup(album.style()),
        "title_of": lambda r: method_title(r.method.name, r.method.recipe),
        "short_count": _svg.short_count,
        "svg": markup,  # charts escape their own texts
        "key": lambda style, dashed=False: markup(_svg.key(style, dashed=dashed)),
        "attributes": lambda data: markup(_svg.attributes(data)),
    }
    script, style = _resource("script.js"), _resource("style.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = template.render(
        **context, script=markup(script), style=markup(style), script_hash=digest
    )
    return page, len(records)


def place(block: Block) -> str:
    """Return data, split, protocol and classes: what runs must share to stand in one chart."""
    parts = [block.dataset, block.split]
    if block.state:
        parts.insert(1, block.state)
    if block.protocol != "standard":
        parts.append(block.protocol)
    if block.classes != "all":
        parts.append(f"{block.classes} classes")
    return ", ".join(parts)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points no other beats: less costly and better, in the order of their cost.

    Args:
        points: Cost and accuracy of each.
    """
    best, front = -np.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def _template() -> tuple[Any, Any]:
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise ClipAdaptError(
            "the report needs jinja2, which is not installed",
            hint='pip install "clipadapt[report]"',
        ) from None
    environment = Environment(
        autoescape=True,
        finalize=lambda value: (
            visible(value, lines=True)
            if isinstance(value, str) and not isinstance(value, Markup)
            else value
        ),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(_resource("page.html")), Markup


def _resource(name: str) -> str:
    return files("clipadapt.core.report").joinpath("page_files", name).read_text(encoding="utf-8")


def _entries(summary: Summary) -> list[Entry]:
    looks = sorted({_look(r.row) for b in summary.blocks for r in b.rows})
    entries: list[Entry] = []
    seen: set[tuple[str, ...]] = set()
    for block in summary.blocks:
        for ranked in block.rows:
            if ranked.row.run_ids in seen:  # zero-shot stands in every block of its data
                continue
            seen.add(ranked.row.run_ids)
            style = looks.index(_look(ranked.row))
            entries.append(Entry(len(entries) + 1, block, ranked, style))
    return entries


def _look(row: Row) -> tuple[str, str]:
    """Return what has one colour and shape all over the page."""
    return row.label, row.model or ""


def _filters(entries: Sequence[Entry]) -> list[tuple[str, str, list[str]]]:
    """Return attribute, name and values of every filter."""
    found = []
    for key, name in (
        ("data", "Data"),
        ("model", "Model"),
        ("method", "Method"),
        ("shots", "Shots"),
    ):
        values = {e.data[key] for e in entries if key in e.data}
        found.append((key, name, sorted(values, key=_in_order)))
    return found


def _in_order(value: str) -> tuple[bool, int, str]:
    return not value.isdecimal(), int(value) if value.isdecimal() else 0, value


# ---------------------------------------------------------------- tables


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: what is shown, and what it is sorted by; None is always last."""

    text: str
    value: float | str | None
    small: str = ""


COLUMNS: Final = (
    ("method", "text", ""),
    ("accuracy, %", "figure", "with its 95 % interval over examples and seeds"),
    ("ties", "text", "rows of a block that share a letter are not told apart at 5 % after Holm"),
    ("data", "text", ""),
    ("model", "text", ""),
    ("shots", "figure", "training examples per class"),
    ("val, %", "figure", "accuracy on val, where it was judged"),
    ("macro F1, %", "figure", ""),
    ("NLL", "figure", "nats, of the scores as they are"),
    ("ECE, %", "figure", "15 bins of equal width, of the scores as they are"),
    ("ECE at T, %", "figure", "after the temperature fitted on val"),
    ("trainable", "figure", "parameters learnt"),
    ("fit, s", "figure", "without encoding"),
    ("encode, s", "figure", "of the features used, whoever paid"),
    ("memory, MiB", "figure", "peak of the process"),
    ("seeds", "figure", ""),
    ("n", "figure", "test examples"),
    ("flags", "text", ""),
)


def _cells(e: Entry) -> list[Cell]:
    m = e.row
    accuracy = format_interval(m.accuracy)
    value, _, interval = accuracy.partition(" ")
    shots = m.first.data.shots
    return [
        Cell(
            m.first.method.name,
            e.label,
            ", ".join([m.first.method.recipe or "no recipe", *m.group.settings]),
        ),
        Cell(value, m.accuracy.value if m.accuracy else None, interval),
        Cell(e.ranked.letters, e.ranked.letters or None),
        Cell(place(e.block), place(e.block)),
        Cell(m.model or NOTHING, m.model),
        Cell(e.shots, 0 if not e.trained else float(shots) if shots else 1e9),
        _fraction(m.val_accuracy.value if m.val_accuracy else None),
        _fraction(m.mean("macro_f1")),
        _figure(m.mean("nll"), "nats"),
        _fraction(m.mean("ece")),
        _fraction(m.mean("ece_calibrated")),
        Cell(
            NOTHING if m.n_trainable_params is None else f"{m.n_trainable_params:,}",
            m.n_trainable_params,
        ),
        _figure(m.fit_seconds, "seconds"),
        _figure(m.encode_seconds, "seconds"),
        _figure(m.peak_memory_bytes, "bytes"),
        Cell(f"{len(m.ok)}" + (f" ({len(m.failed)} failed)" if m.failed else ""), len(m.ok)),
        Cell(f"{m.accuracy.n:,}" if m.accuracy else NOTHING, m.accuracy.n if m.accuracy else None),
        Cell(", ".join(m.flags), ", ".join(m.flags) or None),
    ]


def _fraction(value: float | None) -> Cell:
    return _figure(value, "fraction")


def _figure(value: float | None, unit: str) -> Cell:
    return Cell(format_value(value, unit), value)


@dataclass(frozen=True, slots=True)
class Finding:
    """Who leads a block, and by how much."""

    block: Block
    data: Mapping[str, str]
    verdict: str
    comparisons: Sequence[Comparison]
    lead: RankedRow | None
    second: Comparison | None


def _finding(block: Block) -> Finding:
    ranked = [r for r in block.rows if r.row.accuracy]
    lead = ranked[0] if ranked else None
    rival = next(
        (
            c
            for c in block.comparisons
            if len(ranked) > 1 and {c.first, c.second} == {ranked[0].label, ranked[1].label}
        ),
        None,
    )
    if lead is None:
        verdict = "every run failed"
    elif len(ranked) < 2:
        verdict = "the only method"
    elif lead.best:
        verdict = "better than the runner-up"
    elif rival is None:
        verdict = "not compared with the runner-up: no seed or example in common"
    else:
        verdict = "not told apart from the runner-up"
    data = {"data": place(block)}
    if block.shots is not None or any(r.row.first.method.uses_train for r in block.rows):
        data["shots"] = "all" if block.shots is None else str(block.shots)
    return Finding(block, data, verdict, block.comparisons, lead, rival)


# ---------------------------------------------------------------- charts over methods


@dataclass(frozen=True, slots=True)
class Legend:
    """One line of a legend."""

    label: str
    style: int
    data: Mapping[str, str]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart with its heading and legend; ``kind`` tells charts apart that take turns."""

    title: str
    chart: str
    legend: Sequence[Legend]
    kind: str = ""


def _shots_panels(entries: Sequence[Entry]) -> list[Panel]:
    panels = []
    for title, members in _by_model(entries):
        taught = sorted((e for e in members if e.trained), key=lambda e: e.style)
        names = sorted({e.shots for e in taught}, key=_in_order)
        if len(names) < 2:
            continue
        lines = _grouped(taught, lambda e: (e.label,))
        series: list[Series] = []
        legend = []
        for (label,), line in lines.items():
            points = [
                _point(names.index(e.shots) + _aside(e, taught), e)
                for e in sorted(line, key=lambda e: _in_order(e.shots))
            ]
            data = {k: v for k, v in line[0].data.items() if k != "shots"}
            series.append(_svg.Series(line[0].style, points, data))
            legend.append(Legend(str(label), line[0].style, data))
        for e in (e for e in members if not e.trained and e.row.accuracy):
            level = _point(-0.5, e)
            ends = [level, _svg.Point(len(names) - 0.5, level.y)]
            series.append(_svg.Series(e.style, ends, e.data, dashed=True, marks=False))
            legend.append(Legend(e.label, e.style, e.data, dashed=True))
        panels.append(
            Panel(
                _joined(title),
                _svg.plot(
                    f"Accuracy against shots, {_joined(title)}",
                    _svg.step_axis("training examples per class", names),
                    _svg.linear_axis("accuracy, %", _heights(series), factor=100),
                    series,
                ),
                legend,
            )
        )
    return panels


def _aside(e: Entry, members: Sequence[Entry]) -> float:
    """Return how far a point stands aside, so that whiskers at one number of shots do not cover one another."""
    beside = [m.number for m in sorted(members, key=lambda m: m.style) if m.shots == e.shots]
    step = min(0.08, 0.6 / len(beside))
    return (beside.index(e.number) - (len(beside) - 1) / 2) * step


def _by_model(entries: Sequence[Entry]) -> list[tuple[tuple[str, str | None], list[Entry]]]:
    """Return the members of every chart; a method without a model stands in the charts of all models."""
    found: list[tuple[tuple[str, str | None], list[Entry]]] = []
    for (where,), members in _grouped(entries, lambda e: (place(e.block),)).items():
        models: list[str | None] = [*sorted({e.row.model for e in members if e.row.model})]
        found += [
            ((where, model), [e for e in members if e.row.model in {model, None}])
            for model in models or [None]
        ]
    return found


COSTS: Final = (
    ("parameters", "trainable parameters"),
    ("seconds", "seconds, from nothing to scores"),
    ("memory", "peak memory, MiB"),
)


def _cost(e: Entry, kind: str) -> float | None:
    if kind == "parameters":
        return e.row.n_trainable_params
    if kind == "seconds":
        return e.row.cold_seconds
    peak = e.row.peak_memory_bytes
    return None if peak is None else peak / 2**20


def _cost_panels(entries: Sequence[Entry]) -> list[Panel]:
    panels = []
    for title, members in _grouped(entries, lambda e: (place(e.block),)).items():
        for kind, name in COSTS:
            known = [
                (e, c) for e in members if (c := _cost(e, kind)) is not None and e.row.accuracy
            ]
            if len(known) < 2:
                continue
            several = len({e.row.model for e, _ in known if e.row.model}) > 1
            x, at = _svg.log_axis(name, [c for _, c in known])
            fronts = _fronts(known)
            on_front = {e.number for _, front in fronts for e, _ in front}
            series: list[Series] = [
                _svg.Series(
                    -1,
                    [
                        _svg.Point(
                            at[c], _accuracy(e), title=f"no method is better for less, {shots}"
                        )
                        for e, c in front
                    ],
                    {"data": place(front[0][0].block), "shots": shots},
                    dashed=True,
                    marks=False,
                )
                for shots, front in fronts
                if len(front) > 1
            ]
            legend: dict[str, Legend] = {}
            for e, c in known:
                cost = f"{c:,.0f}" if c >= 10 else f"{c:.3g}"
                point = _point(at[c], e, note=f"{cost} {name}", ring=e.number in on_front)
                series.append(_svg.Series(e.style, [point], e.data))
                data = {k: v for k, v in e.data.items() if k in {"method", "model"}}
                name_shown = f"{e.label} on {e.row.model}" if several and e.row.model else e.label
                legend.setdefault(name_shown, Legend(name_shown, e.style, data))
            y = _svg.linear_axis("accuracy, %", _heights(series), factor=100)
            label = f"Accuracy against {name}, {_joined(title)}"
            panels.append(
                Panel(_joined(title), _svg.plot(label, x, y, series), list(legend.values()), kind)
            )
    return panels


def _fronts(
    known: Sequence[tuple[Entry, float]],
) -> list[tuple[str, list[tuple[Entry, float]]]]:
    """Return the methods that no other beats, for every number of shots; zero-shot competes everywhere."""
    found = []
    for shots in sorted({e.shots for e, _ in known if e.trained}, key=_in_order):
        rivals = [(e, c) for e, c in known if not e.trained or e.shots == shots]
        front = [rivals[i] for i in pareto([(c, _accuracy(e)) for e, c in rivals])]
        found.append((shots, front))
    return found


def _point(x: float, e: Entry, *, note: str = "", ring: bool = False) -> Point:
    accuracy = e.row.accuracy
    low, high = (accuracy.low, accuracy.high) if accuracy else (None, None)
    model = f" on {e.row.model}" if e.row.model else ""
    title = f"{e.title}{model}: {format_interval(accuracy)} %" + (f"; {note}" if note else "")
    return _svg.Point(x, _accuracy(e), low, high, title, ring)


def _accuracy(e: Entry) -> float:
    return e.row.accuracy.value if e.row.accuracy else 0.0


def _heights(series: Iterable[Series]) -> list[float]:
    points = [p for s in series for p in s.points]
    return [v for p in points for v in (p.y, p.low, p.high) if v is not None]


# ---------------------------------------------------------------- cards, one for a row


@dataclass(frozen=True, slots=True)
class ClassCard:
    """Figures by class and the confusion matrix, means over seeds."""

    entry: Entry
    rows: Sequence[ClassFigures]
    left_out: int
    heat: str  # empty for very many classes
    confusions: Sequence[tuple[str, str, float]]


def _class_card(e: Entry) -> ClassCard:
    names = e.row.classnames
    true, given, counts = e.row.confusions
    rows = list(e.row.classes)
    left_out = 0
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda c: (c.recall, c.name))[:HARDEST]
        left_out = len(names) - HARDEST
    heat = ""
    if len(names) <= MOST_SHADED:
        matrix = np.zeros((len(names), len(names)))
        matrix[true, given] = counts
        heat = _svg.heat(f"Confusion matrix of {e.title}", names, matrix)
    wrong = np.flatnonzero(true != given)
    most = wrong[np.argsort(-counts[wrong], kind="stable")[:CONFUSIONS]]
    return ClassCard(
        e,
        rows,
        left_out,
        heat,
        [(names[true[k]], names[given[k]], float(counts[k])) for k in most],
    )


@dataclass(frozen=True, slots=True)
class CalibrationCard:
    """Reliability and selective accuracy of a row; without probabilities a note says why."""

    entry: Entry
    note: str
    reliability: str
    selective: str
    figures: Sequence[tuple[str, str, str]]
    temperatures: str


def _calibration_card(e: Entry) -> CalibrationCard:
    kind = score_kind(e.row.ok[0])
    temperatures = [r.calibration.temperature if r.calibration else None for r in e.row.ok]
    fitted = [t for t in temperatures if t is not None]
    stages: list[tuple[str, int, list[float | None]]] = []
    if kind == "logit":
        stages.append(("as scored", -1, [None] * len(e.row.ok)))
    if len(fitted) == len(e.row.ok):
        stages.append(("at the temperature of val", e.style, temperatures))
    note = (
        ""
        if kind == "logit"
        else "The scores are margins, not logits: as they are, they have no probabilities. "
    )
    curves, coverage, bars = [], [], []
    for name, style, values in stages:
        try:
            pairs = [
                confidences(p, kind=kind, temperature=t)
                for p, t in zip(e.row.predictions, values, strict=True)
            ]
        except RecordError as err:
            note += f"{err.problem}. "
            continue
        confidence, right = (np.concatenate(x) for x in zip(*pairs, strict=True))
        bins = calibration.reliability(confidence, right)
        curves.append(
            _svg.Series(style, [_bin_point(b, name) for b in bins if b.count], dashed=style < 0)
        )
        top = max(b.count for b in bins)
        bars = [
            (b.low, b.high, b.count / top, f"{b.count} examples, {name}") for b in bins if b.count
        ]
        answered = calibration.selective(confidence, right)
        points = [
            _svg.Point(c.coverage, c.accuracy, title=(
                f"{100 * c.coverage:.0f} % answered (confidence from {c.threshold:.3f}): "
                f"{100 * c.accuracy:.1f} % right, {name}"
            ))
            for c in answered
        ]  # fmt: skip
        coverage.append(_svg.Series(style, points, dashed=style < 0))
    if not curves and kind == "margin":
        note += "No temperature was fitted on val either, so there is no figure."
    unit = _svg.Axis("confidence", (0, 1), [(k / 5, f"{k / 5:.1f}") for k in range(6)])
    share = _svg.Axis("accuracy, %", (0, 1), [(k / 5, f"{20 * k}") for k in range(6)])
    answers = _svg.Axis(
        "answered, % (most confident first)", (0, 1.02), [(k / 5, f"{20 * k}") for k in range(6)]
    )
    return CalibrationCard(
        e,
        note.strip(),
        _svg.plot(f"Reliability of {e.title}", unit, share, curves, diagonal=True, bars=bars)
        if curves
        else "",
        _svg.plot(
            f"Selective accuracy of {e.title}",
            answers,
            _svg.linear_axis("accuracy, %", _heights(coverage), factor=100),
            coverage,
        )
        if coverage
        else "",
        [
            (
                name,
                format_value(e.row.mean(key), unit),
                format_value(e.row.mean(f"{key}_calibrated"), unit),
            )
            for name, key, unit in (
                ("ECE, equal width, %", "ece", "fraction"),
                ("ECE, equal mass, %", "ece_mass", "fraction"),
                ("NLL, nats", "nll", "nats"),
                ("Brier", "brier", "squared error"),
                ("AURC, %", "aurc", "fraction"),
            )
        ],
        ", ".join(f"{t:.3g}" for t in fitted),
    )


def _bin_point(b: calibration.Bin, name: str) -> Point:
    assert b.accuracy is not None
    assert b.confidence is not None
    title = f"confidence {b.confidence:.3f}, accuracy {100 * b.accuracy.value:.1f} %, {b.count} examples, {name}"
    return _svg.Point(b.confidence, b.accuracy.value, b.accuracy.low, b.accuracy.high, title)


@dataclass(frozen=True, slots=True)
class CurveCard:
    """Learning curves of a row."""

    entry: Entry
    loss: str
    accuracy: str


def _curve_card(e: Entry) -> CurveCard | None:
    if not any(e.row.epochs):
        return None

    def line(field: str, style: int, name: str, *, dashed: bool = False) -> list[Series]:
        found = []
        for record, epochs in zip(e.row.ok, e.row.epochs, strict=True):
            chosen = record.selection.epoch if record.selection else None
            points = [
                _svg.Point(
                    x.epoch, v, title=f"epoch {x.epoch:g}: {name} {v:.3f}, seed {record.seed}",
                    ring=x.epoch == chosen and not dashed,
                )
                for x in epochs
                if (v := getattr(x, field)) is not None
            ]  # fmt: skip
            if points:
                found.append(_svg.Series(style, points, dashed=dashed))
        return found

    losses = [
        *line("train_loss", -1, "train loss", dashed=True),
        *line("val_loss", e.style, "val loss"),
    ]
    right = [
        *line("train_accuracy", -1, "train accuracy", dashed=True),
        *line("val_accuracy", e.style, "val accuracy"),
    ]
    return CurveCard(
        e,
        _epoch_chart(f"Loss of {e.title}", "loss, nats", losses),
        _epoch_chart(f"Accuracy of {e.title}", "accuracy, %", right, factor=100),
    )


def _epoch_chart(label: str, title: str, series: Sequence[Series], *, factor: float = 1.0) -> str:
    if not series:
        return ""
    numbers = sorted({p.x for s in series for p in s.points})
    step = max(1, -(-len(numbers) // 8))
    low, high = numbers[0], numbers[-1]
    pad = max((high - low) * 0.04, 0.3)
    x: Axis = _svg.Axis("epoch", (low - pad, high + pad), [(n, f"{n:g}") for n in numbers[::step]])
    return _svg.plot(label, x, _svg.linear_axis(title, _heights(series), factor=factor), series)


# ---------------------------------------------------------------- what one method fixes and another breaks


@dataclass(frozen=True, slots=True)
class Sample:
    """One example that two methods answer differently."""

    id: str
    label: str
    first: str
    second: str
    picture: str
    text: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the first method gets right and the second does not, and the other way round."""

    title: str
    first: str
    second: str
    data: Mapping[str, str]
    fixed: int
    broken: int
    n: int
    fixes: Sequence[Sample]
    breaks: Sequence[Sample]


def _exchanges(block: Block, entries: Sequence[Entry], album: _Album) -> Iterable[Exchange]:
    by_runs = {e.row.run_ids: e for e in entries}
    ids = [r.row.run_ids for r in block.rows]
    members = [by_runs[i] for i in ids if i in by_runs]
    models = {e.row.model for e in members if e.row.model}
    rivals = [
        (f"{e.label} on {e.row.model}" if len(models) > 1 and e.row.model else e.label, e)
        for e in members
    ]
    for i, (name, a) in enumerate(rivals):
        if len(rivals) > MOST_RIVALS and i > 0:
            return
        for other, b in rivals[i + 1 :]:
            exchange = _exchange(block, (name, a), (other, b), album)
            if exchange is not None:
                yield exchange


def _exchange(
    block: Block, one: tuple[str, Entry], two: tuple[str, Entry], album: _Album
) -> Exchange | None:
    (name, a), (other, b) = one, two
    ids, of_a, of_b = np.intersect1d(
        a.answers[0], b.answers[0], assume_unique=True, return_indices=True
    )
    if not len(ids):
        return None
    labels, right_a, right_b = a.answers[1][of_a], a.answers[2][of_a], b.answers[2][of_b]
    given_a, given_b = a.answers[3][of_a], b.answers[3][of_b]
    fixed = np.flatnonzero((right_a > 0.5) & (right_b < 0.5))
    broken = np.flatnonzero((right_a < 0.5) & (right_b > 0.5))
    names = a.row.classnames

    def samples(rows: NDArray[np.int64], gain: NDArray[np.float64]) -> list[Sample]:
        chosen = _varied(rows, labels[rows], gain[rows])[:SAMPLES]
        return [
            Sample(str(ids[k]), names[labels[k]], names[given_a[k]], names[given_b[k]],
                   *album.show(a.row.first, str(ids[k])))
            for k in chosen
        ]  # fmt: skip

    data = {"data": place(block), "method": a.label, "method2": b.label}
    if a.trained or b.trained:
        data["shots"] = "all" if block.shots is None else str(block.shots)
    return Exchange(
        title=block.title,
        first=name,
        second=other,
        data=data,
        fixed=len(fixed),
        broken=len(broken),
        n=len(ids),
        fixes=samples(fixed, right_a - right_b),
        breaks=samples(broken, right_b - right_a),
    )


def _varied(
    rows: NDArray[np.int64], labels: NDArray[np.int64], gain: NDArray[np.float64]
) -> list[int]:
    """Return rows in the order to show them: the clearest first, and one of every class before a second."""
    seen: Counter[int] = Counter()
    ranked = []
    for k in np.argsort(-gain, kind="stable"):
        ranked.append((seen[int(labels[k])], -float(gain[k]), int(rows[k])))
        seen[int(labels[k])] += 1
    return [row for _, _, row in sorted(ranked)]


class _Album:
    """Examples by id: data sets are opened by the name in the record, and each picture stands on the page once."""

    def __init__(self, progress: Progress, *, wanted: bool) -> None:
        self.progress = progress
        self.wanted = wanted
        self.notes: list[str] = []
        self._splits: dict[tuple[str, str], tuple[Split[Any], dict[str, int]] | None] = {}
        self._pictures: dict[tuple[str, str], tuple[str, str]] = {}

    def show(self, record: RunRecord, key: str) -> tuple[str, str]:
        """Return the name of an example's picture and its text, empty where there is none."""
        if not self.wanted:
            return "", ""
        where = record.evaluation.dataset, record.evaluation.split
        if where not in self._splits:
            self._splits[where] = self._open(record)
        found = self._splits[where]
        if found is None or key not in found[1]:
            return "", ""
        try:
            example = found[0].inputs.examples[found[1][key]]
        except ClipAdaptError as err:
            self.notes.append(err.problem)
            return "", ""
        if isinstance(example, str):
            return "", example if len(example) <= LETTERS else f"{example[: LETTERS - 1]}…"
        return self._picture((where[0], key), example), ""

    def style(self) -> str:
        """Return a style sheet with every picture once."""
        return "".join(
            f".{name}{{background-image:url(data:image/jpeg;base64,{data})}}\n"
            for name, data in self._pictures.values()
        )

    def _picture(self, key: tuple[str, str], image: Any) -> str:
        if key not in self._pictures:
            if len(self._pictures) >= MOST_THUMBNAILS or not hasattr(image, "thumbnail"):
                return ""
            small = image.convert("RGB")
            small.thumbnail((PIXELS * 2, PIXELS * 2))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=70)
            data = base64.b64encode(out.getvalue()).decode()
            self._pictures[key] = f"t{len(self._pictures)}", data
        return self._pictures[key][0]

    def _open(self, record: RunRecord) -> tuple[Split[Any], dict[str, int]] | None:
        judged = record.evaluation
        try:
            for name in _names_given(record):
                resolved = DATASETS.resolve(name, track_of(record.method.name))
                options: Any = record.config.get("data")
                skip = isinstance(options, dict) and options.get("on_bad_image") == "skip"
                dataset = resolved.provider(
                    resolved.argument, DatasetOptions("skip" if skip else "error")
                )
                if dataset.name != judged.dataset:
                    continue
                if dataset.name == record.data.name and dataset.fingerprint != record.data.sha256:
                    raise RecordError("it has changed since the run")
                split = dataset.split(judged.split)  # type: ignore[arg-type]
                return split, {key: i for i, key in enumerate(split.inputs.ids)}
            raise RecordError("the record names no data set of that name")
        except (ClipAdaptError, OSError, ImportError) as err:
            problem = err.problem if isinstance(err, ClipAdaptError) else str(err)
            note = (
                f"{judged.dataset} cannot be opened here, its examples are named by id: {problem}"
            )
            self.notes.append(note)
            self.progress.note(f"note: {note}")
            return None


def _names_given(record: RunRecord) -> list[str]:
    """Return the data sets that a record's config names, as ``--dataset`` takes them."""
    given: Any = record.config
    names = [given.get("data", {}).get("name")]
    names += [also.get("dataset") for also in given.get("evaluation", {}).get("also", ())]
    return [n for n in names if isinstance(n, str)]


# ---------------------------------------------------------------- where the runs come from


@dataclass(frozen=True, slots=True)
class RecipeRow:
    """One way a method was set."""

    title: str
    version: int
    source: str
    deviations: tuple[str, ...]
    settings: Sequence[tuple[str, str]]
    runs: int


def _recipes(entries: Sequence[Entry]) -> list[RecipeRow]:
    found: dict[str, list[RunRecord]] = {}
    for e in entries:
        for r in (*e.row.ok, *e.row.failed):
            own = {"m": r.method.model_dump(mode="json"), "s": r.config.get("method")}
            found.setdefault(canonical_json(own), []).append(r)
    rows = []
    for records in found.values():
        first = records[0]
        recipe: Any = first.config.get("recipe") or {}
        settings: Any = first.config.get("method") or {}
        rows.append(
            RecipeRow(
                method_title(first.method.name, first.method.recipe),
                first.method.version,
                str(recipe.get("source") or ""),
                first.method.deviations,
                [(str(k), str(v)) for k, v in settings.items() if k != "name"],
                len(records),
            )
        )
    return sorted(rows, key=lambda r: r.title)


def _environments(records: Sequence[RunRecord]) -> list[tuple[Any, int]]:
    """Return every environment that runs took place in, with their number."""
    found: dict[str, list[RunRecord]] = {}
    for r in records:
        found.setdefault(r.environment.model_dump_json(exclude={"folder"}), []).append(r)
    rows = [(members[0].environment, len(members)) for members in found.values()]
    return sorted(rows, key=lambda row: -row[1])


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One split that was judged."""

    dataset: str
    split: str
    sha256: str
    n_test: int
    n_classes: int
    templates: tuple[str, ...]
    skipped: int
    runs: int


def _sources(records: Sequence[RunRecord]) -> list[SourceRow]:
    found: dict[tuple[Any, ...], list[RunRecord]] = {}
    for r in records:
        judged = r.evaluation
        key = judged.dataset, judged.split, r.data.sha256, judged.templates, r.data.n_test
        found.setdefault(key, []).append(r)
    return [
        SourceRow(
            key[0],
            key[1],
            key[2],
            first.data.n_test,
            first.data.n_classes,
            key[3],
            first.data.skipped,
            len(members),
        )
        for key, members in sorted(found.items())
        for first in members[:1]
    ]


def _overlaps(records: Sequence[RunRecord]) -> list[tuple[RunRecord, Any]]:
    """Return every overlap that the leakage guard counted, once for each data set and split."""
    found: dict[tuple[Any, ...], tuple[RunRecord, Any]] = {}
    for r in records:
        for overlap in r.leakage.overlaps if r.leakage else ():
            key = r.data.sha256, r.evaluation.dataset, overlap.trained, overlap.evaluated
            found.setdefault(key, (r, overlap))
    return list(found.values())


def _flags(records: Sequence[RunRecord]) -> list[tuple[str, str, int, list[str]]]:
    """Return each flag, its meaning, the runs that carry it and the data they were judged on."""
    carried = Counter(flag for r in records for flag in set(r.flags))
    return [
        (
            flag,
            FLAGS[flag].meaning if flag in FLAGS else "",
            n,
            sorted({r.evaluation.dataset for r in records if flag in r.flags}),
        )
        for flag, n in sorted(carried.items())
    ]


def _grouped(entries: Iterable[Entry], key: Any) -> dict[Any, list[Entry]]:
    found: dict[Any, list[Entry]] = {}
    for e in entries:
        found.setdefault(key(e), []).append(e)
    return found


def _joined(parts: Iterable[str | None]) -> str:
    return ", ".join(p for p in parts if p)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
