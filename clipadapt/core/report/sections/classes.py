"""Classes and confusion: precision, recall and F1 by class and the confusion matrix, one card per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.report import svg
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.report.page_rows import PageRow
    from clipadapt.core.report.rows import ClassFigures
    from clipadapt.core.report.section import Page

MOST_CLASSES: Final = 30
"""With more classes, only the hardest are listed."""
HARDEST: Final = 20
CONFUSIONS: Final = 8
MOST_SHADED: Final = 2000
"""With more classes, the confusion matrix is not drawn; its picture would have millions of pixels."""
TEMPLATE: Final = """\
<p class="lede">Means over seeds. Rows of the matrix are true classes, columns predicted classes; the shade is the
share of the row.</p>
<div class="list">
{% for c in cards %}
<details class="card item"{{ attributes(c.row.data) }}{% if loop.first %} open{% endif %}>
<summary>{{ key(c.row.style) }}{{ of_row(c.row) }}</summary>
<div class="side">
<div class="scroll" tabindex="0" role="region" aria-label="Classes of {{ c.row.title }}">
<table class="small sortable" data-plain>
<thead><tr>
{% for name in ("class", "n", "precision, %", "recall, %", "F1, %") %}
<th scope="col" class="{{ 'text' if loop.first else 'figure' }}" aria-sort="none">
<button type="button">{{ name }}</button>
</th>
{% endfor %}
</tr></thead>
<tbody>
{% for k in c.classes %}
<tr>
<th scope="row">{{ k.name }}</th>
<td class="figure">{{ k.support }}</td>
<td class="figure">{{ percent(k.precision) }}</td>
<td class="figure meter" style="--share:{{ "%.2f"|format(k.recall) }}">{{ percent(k.recall) }}</td>
<td class="figure">{{ percent(k.f1) }}</td>
</tr>
{% endfor %}
</tbody>
</table>
{% if c.left_out %}
<p class="where">The {{ c.classes|length }} classes with the lowest recall; {{ c.left_out }} others are left out.</p>
{% endif %}
</div>
<div>
{% if c.heat %}{{ svg(c.heat) }}{% else %}<p class="where">Too many classes to draw the confusion matrix.</p>{% endif %}
{% if c.confusions %}
<h3>Most frequent confusions</h3>
<ol class="plain">
{% for n, label, predicted in c.confusions %}<li><b>{{ n }}</b> {{ label }} → {{ predicted }}</li>{% endfor %}
</ol>
{% endif %}
</div>
</div>
</details>
{% endfor %}
</div>
"""


@dataclass(frozen=True, slots=True)
class Card:
    """Figures by class and the confusion matrix, means over seeds."""

    row: PageRow
    classes: Sequence[ClassFigures]
    left_out: int
    heat: str  # empty for very many classes
    confusions: Sequence[tuple[str, str, str]]


@section("Classes and confusion", nav="Classes", order=70, template=TEMPLATE, details=True)
def classes(page: Page) -> dict[str, Any] | None:
    """Return a card for each row whose records name the classes."""
    cards = [_card(r) for r in page.detailed if r.row.classnames]
    return {"cards": cards} if cards else None


def _card(r: PageRow) -> Card:
    names, found = r.row.classnames, list(r.row.classes)
    true, predicted, counts = r.row.confusions
    left_out = 0
    if len(found) > MOST_CLASSES:
        found = sorted(found, key=lambda c: (c.recall, c.name))[:HARDEST]
        left_out = len(names) - HARDEST
    heat = ""
    if len(names) <= MOST_SHADED:
        matrix = np.zeros((len(names), len(names)))
        matrix[true, predicted] = counts
        heat = svg.heat(f"Confusion matrix of {r.title}", names, matrix)
    wrong = np.flatnonzero(true != predicted)
    most = wrong[np.argsort(-counts[wrong], kind="stable")[:CONFUSIONS]]
    confusions = [
        (svg.short_count(float(counts[k])), names[true[k]], names[predicted[k]]) for k in most
    ]
    return Card(r, found, left_out, heat, confusions)
