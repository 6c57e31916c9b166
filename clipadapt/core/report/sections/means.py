"""Mean over datasets: the mean accuracy of each method that has a figure on every dataset, with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.report.means import NOTE, mean_cells
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from clipadapt.core.report.section import Page

TEMPLATE: Final = """\
<p class="lede">{{ note }}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Mean over datasets">
<table>
<thead><tr>
{% for c in columns %}
<th{% if not c.text %} class="figure"{% endif %}>{{ c.title }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr>
{% for cell in row %}
<td{% if not columns[loop.index0].text %} class="figure"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
"""


@section("Mean over datasets", nav="Means", order=35, template=TEMPLATE)
def means(page: Page) -> dict[str, Any] | None:
    """Return a row of cells for each kind of row that has a mean."""
    if not page.summary.means:
        return None
    columns, rows = mean_cells(page.summary.means)
    return {"note": NOTE, "columns": columns, "rows": rows}
