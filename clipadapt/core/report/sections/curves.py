"""Learning curves: loss and accuracy on train and val by epoch, one card per row."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.report import svg
from clipadapt.core.report.charts import heights
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.report.page_rows import PageRow
    from clipadapt.core.report.section import Page

TEMPLATE: Final = """\
<p class="lede">Dashed: train; colour: val; one line per seed. Rings: the selected epoch.</p>
<div class="list">
{% for c in cards %}
<details class="card item"{{ attributes(c.row.data) }}{% if loop.index <= 2 %} open{% endif %}>
<summary>{{ key(c.row.style) }}{{ of_row(c.row) }}</summary>
<div class="side">
{% if c.loss %}<div>{{ svg(c.loss) }}</div>{% endif %}
{% if c.accuracy %}<div>{{ svg(c.accuracy) }}</div>{% endif %}
</div>
</details>
{% endfor %}
</div>
"""
MOST_MARKED: Final = 12
"""A line with more epochs has a mark at the selected epoch only."""


@dataclass(frozen=True, slots=True)
class Card:
    """Charts of a row; either may be empty."""

    row: PageRow
    loss: str
    accuracy: str


@section("Learning curves", order=90, template=TEMPLATE, details=True)
def curves(page: Page) -> dict[str, Any] | None:
    """Return a card for each row whose runs logged epochs."""
    cards = [_card(r) for r in page.detailed if any(r.row.epochs)]
    return {"cards": cards} if cards else None


def _card(r: PageRow) -> Card:
    loss = [
        *_lines(r, "train_loss", "train loss", dashed=True),
        *_lines(r, "val_loss", "val loss"),
    ]
    accuracy = [
        *_lines(r, "train_accuracy", "train accuracy", dashed=True),
        *_lines(r, "val_accuracy", "val accuracy"),
    ]
    return Card(
        r,
        _chart(f"Loss of {r.title}", "loss, nats", loss),
        _chart(f"Accuracy of {r.title}", "accuracy, %", accuracy, factor=100),
    )


def _lines(r: PageRow, field: str, name: str, *, dashed: bool = False) -> list[svg.Series]:
    """Return one line per seed, with a ring at the selected epoch."""
    style, found = -1 if dashed else r.style, []
    for record, epochs, chosen in zip(r.row.ok, r.row.epochs, r.row.chosen_epochs, strict=True):
        points = [
            svg.Point(
                x.epoch, v, title=f"epoch {x.epoch:g}: {name} {v:.3f}, seed {record.seed}",
                ring=x.epoch == chosen and not dashed,
            )
            for x in epochs
            if (v := getattr(x, field)) is not None
        ]  # fmt: skip
        if len(points) > MOST_MARKED:
            # A mark for each epoch would take most of the page; the line has a tooltip of its own.
            last = points[-1]
            end = dataclasses.replace(
                last, title=f"seed {record.seed}: {name} {last.y:.3f} at the end"
            )
            found.append(svg.Series(style, [end, *points[-2::-1]], dashed=dashed, marks=False))
            points = [p for p in points if p.ring]
        if points:
            found.append(svg.Series(style, points, dashed=dashed))
    return found


def _chart(label: str, title: str, series: Sequence[svg.Series], *, factor: float = 1.0) -> str:
    if not series:
        return ""
    numbers = sorted({p.x for s in series for p in s.points})
    step = max(1, -(-len(numbers) // 8))
    low, high = numbers[0], numbers[-1]
    pad = max((high - low) * 0.04, 0.3)
    x = svg.Axis("epoch", (low - pad, high + pad), [(n, f"{n:g}") for n in numbers[::step]])
    return svg.plot(label, x, svg.linear_axis(title, heights(series), factor=factor), series)
