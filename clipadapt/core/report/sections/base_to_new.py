"""Base to new: accuracy on the base classes and on new ones, and their harmonic mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.report.base_to_new import base_to_new_cells
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from clipadapt.core.report.section import Page

TEMPLATE: Final = """\
<p class="lede">Trained on the base classes; evaluated on the base classes, and on new classes that were not in
training. H is the harmonic mean of both accuracies.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Base to new">
<table>
<thead><tr>
<th>data</th><th class="figure">shots</th><th>method</th>
<th class="figure">base, %</th><th class="figure">new, %</th><th class="figure">H, %</th><th class="figure">n</th>
</tr></thead>
<tbody>
{% for row in rows %}
<tr>
{% for cell in row %}
<td{% if loop.index0 not in (0, 2) %} class="figure"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
"""


@section("Base to new", order=30, template=TEMPLATE)
def base_to_new(page: Page) -> dict[str, Any] | None:
    """Return a row of cells for each method evaluated on both."""
    pairs = page.summary.base_to_new
    return {"rows": list(map(base_to_new_cells, pairs))} if pairs else None
