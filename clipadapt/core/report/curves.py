"""Learning curves as PNG: train and val loss, val accuracy, by epoch."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import ClipAdaptError, RecordError
from clipadapt.core.api.user_input import visible
from clipadapt.core.files.atomic import write_bytes
from clipadapt.core.records.history import read_epochs, run_folder
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.records.schema import slug
from clipadapt.core.report.formats import method_title
from clipadapt.core.report.grouping import group_records

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipadapt.core.records.history import Epoch
    from clipadapt.core.records.schema import RunRecord

log = logging.getLogger(__name__)

PICTURE: Final = "curves.png"
INCHES: Final = (11.0, 4.2)
DPI: Final = 120
LEGEND_COLUMNS: Final = 3
# Okabe and Ito's colours, which colour-blind readers can distinguish, without yellow, which is too pale for a line.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS: Final = "osD^vPX"


@dataclass(frozen=True, slots=True)
class Curve:
    """One run.

    Attributes:
        label: Method, recipe, settings and model.
        seed: Seed of the run.
        epochs: What it logged.
        chosen: Selected epoch, or None.
    """

    label: str
    seed: int
    epochs: tuple[Epoch, ...]
    chosen: int | None


def plot_curves(runs: RunStore | Sequence[Path], out_dir: Path) -> list[Path]:
    """Draw the learning curves of runs, one picture for each dataset and number of shots.

    Runs that logged no epochs are left out. Several evaluations of one fit are one line.

    Args:
        runs: A run store, or the folders of runs.
        out_dir: Folder of the pictures ``curves-<dataset>[-<shots>-shots].png``.

    Returns:
        The pictures; none if no run logged an epoch.

    Raises:
        ClipAdaptError: If matplotlib is not installed.
        RecordError: If a record or a history in a named folder is damaged; in a run store it is skipped.
    """
    pictures: dict[tuple[str, int | None], list[Curve]] = {}
    found = _read(runs)
    for group in group_records(record for record, _ in found.values()):
        for record in group.ok:
            epochs = found[record.fit_id][1]
            if epochs:
                key = (record.data.name, record.data.shots)
                pictures.setdefault(key, []).append(curve_of(group.label, record, epochs))
    paths = []
    for (dataset, shots), curves in pictures.items():
        path = out_dir / f"curves-{slug(dataset)}{'' if shots is None else f'-{shots}-shots'}.png"
        write_bytes(path, _png(_draw(_title(dataset, shots), curves)))
        paths.append(path)
    return paths


def plot_run(run_dir: Path) -> Path | None:
    """Draw the learning curve of one run into its folder, if it is not there yet.

    Args:
        run_dir: Folder of a run that is ok.

    Returns:
        The picture, or None if the run logged fewer than two epochs.

    Raises:
        ClipAdaptError: If matplotlib is not installed.
        RecordError: If the record or the history is damaged.
    """
    record = RunStore.load(run_dir)
    epochs = read_epochs(run_dir, record)
    if len(epochs) < 2:
        return None
    path = run_dir / PICTURE
    if not path.is_file():  # running it again replaces the whole folder
        curve = curve_of(method_title(record.method.name, record.method.recipe), record, epochs)
        write_bytes(path, _png(_draw(_title(record.data.name, record.data.shots), [curve])))
    return path


def curve_of(label: str, record: RunRecord, epochs: tuple[Epoch, ...]) -> Curve:
    """Return the curve of a run."""
    if record.model is not None:
        label += f" on {record.model.name}"
    chosen = record.selection.epoch if record.selection else None
    return Curve(label, record.seed, epochs, chosen)


def _title(dataset: str, shots: int | None) -> str:
    return dataset if shots is None else f"{dataset}, {shots} shots"


def _read(runs: RunStore | Sequence[Path]) -> dict[str, tuple[RunRecord, tuple[Epoch, ...]]]:
    """Return one record of each successful fit with its epochs, the one on its own test split if it has several."""
    if isinstance(runs, RunStore):
        pairs = [(record, run_folder(runs, record)) for record in runs.load_all()]
    else:
        pairs = [(RunStore.load(folder), folder) for folder in runs]
    pairs = [(record, folder) for record, folder in pairs if record.status == "ok"]
    pairs.sort(key=lambda pair: _aside(pair[0]))
    found: dict[str, tuple[RunRecord, tuple[Epoch, ...]]] = {}
    for record, folder in pairs:
        if record.fit_id in found:
            continue
        try:
            found[record.fit_id] = record, read_epochs(folder, record)
        except RecordError as err:
            if not isinstance(runs, RunStore):
                raise
            log.warning("warning: no curve: %s", err.problem)
    return found


def _aside(record: RunRecord) -> tuple[bool, bool]:
    """Sort further evaluations of a fit after the one on its own data."""
    return record.evaluation.dataset != record.data.name, record.evaluation.split == "val"


def require_matplotlib(what: str) -> None:
    """Check that matplotlib is installed.

    Raises:
        ClipAdaptError: If it is not; the message names what needs it, in the plural.
    """
    try:
        import matplotlib.figure  # noqa: F401  its absence is reported here
    except ImportError:
        raise ClipAdaptError(
            f"{what} need matplotlib, which is not installed",
            hint='pip install "clipadapt[report]"',
        ) from None


def label_epochs(axes: Axes, name: str) -> None:
    """Label the axes of a learning curve: whole epochs, and the name of the value."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)


def style_axes(axes: Axes) -> None:
    """Give axes the grid and the open frame that all charts share."""
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw(title: str, curves: Sequence[Curve]) -> Figure:
    require_matplotlib("learning curves")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    labels = list(dict.fromkeys(c.label for c in curves))
    # Without pyplot there is no global state, and saving a PNG needs no display.
    entries = len(labels) + 3
    extra = 0.24 * -(-entries // LEGEND_COLUMNS)
    figure = Figure(
        figsize=(INCHES[0], INCHES[1] + extra), dpi=DPI, layout=ConstrainedLayoutEngine(wspace=0.06)
    )
    losses, accuracies = figure.subplots(1, 2)
    for curve in curves:
        at = labels.index(curve.label)
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        draw_line(losses, curve, "train_loss", colour, marker, dashed=True)
        draw_line(losses, curve, "val_loss", colour, marker)
        draw_line(accuracies, curve, "val_accuracy", colour, marker, factor=100)
    for axes, name in ((losses, "loss, nats"), (accuracies, "val accuracy, %")):
        label_epochs(axes, name)
        if not axes.lines:
            axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes)
    # Without parse_math, a name with two dollar signs is not a formula.
    figure.suptitle(visible(title), parse_math=False)
    seeds = {label: [c.seed for c in curves if c.label == label] for label in labels}
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)],
               markersize=4, label=_named(label, seeds[label]))
        for i, label in enumerate(labels)
    ]  # fmt: skip
    handles += [
        Line2D([], [], color="#666666", linestyle="--", label="train loss (dashed)"),
        Line2D([], [], color="#666666", label="val (solid)"),
        Line2D([], [], color="#666666", linestyle="", marker="o", markersize=10,
               markerfacecolor="none", label="selected epoch"),
    ]  # fmt: skip
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def draw_line(
    axes: Axes,
    curve: Curve,
    field: str,
    colour: str,
    marker: str,
    *,
    dashed: bool = False,
    factor: float = 1.0,
) -> None:
    """Draw one value of a run by epoch, and a ring at the selected epoch; nothing if the value was not logged."""
    points = [
        (e.epoch, factor * value) for e in curve.epochs if (value := getattr(e, field)) is not None
    ]
    if not points:
        return
    x, y = zip(*points, strict=True)
    axes.plot(
        x,
        y,
        color=colour,
        linestyle="--" if dashed else "-",
        linewidth=1.2,
        marker=marker,
        markersize=3,
        alpha=0.6 if dashed else 0.9,
    )
    kept = [p for p in points if p[0] == curve.chosen]
    if kept and not dashed:
        axes.plot(*kept[0], marker="o", markersize=10, markerfacecolor="none", color=colour)


def _named(label: str, seeds: Sequence[int]) -> str:
    plural = "seed" if len(seeds) == 1 else "seeds"
    return f"{visible(label)}, {plural} {', '.join(map(str, seeds))}"


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})  # equal curves, equal bytes
    return out.getvalue()
