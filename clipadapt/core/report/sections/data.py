"""Data and flags: evaluated splits, leakage, flags with their meaning, and failed runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.flags import FLAGS
from clipadapt.core.report.formats import method_title
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.section import Page

TEMPLATE: Final = """\
<div class="scroll" tabindex="0" role="region" aria-label="Data">
<table>
<thead><tr>
<th>dataset</th><th>split</th><th class="figure">examples</th><th class="figure">classes</th><th>templates</th>
<th class="figure">skipped</th><th class="figure">runs</th><th>training data, sha256</th>
</tr></thead>
<tbody>
{% for r, n in sources %}
<tr>
<th scope="row">{{ r.evaluation.dataset }}</th>
<td>{{ r.evaluation.split }}</td>
<td class="figure">{{ r.data.n_test }}</td>
<td class="figure">{{ r.data.n_classes }}</td>
<td>{{ r.evaluation.templates[0] if r.evaluation.templates|length == 1 else r.evaluation.templates|length or "-" }}</td>
<td class="figure">{{ r.data.skipped }}</td>
<td class="figure">{{ n }}</td>
<td><code>{{ r.data.sha256[:16] }}</code></td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
<h3>Leakage</h3>
{% if overlaps %}
<div class="scroll" tabindex="0" role="region" aria-label="Leakage">
<table>
<thead><tr>
<th>evaluated on</th><th>between</th><th class="figure">exact</th><th class="figure">near</th><th>compared by</th>
<th>first example</th>
</tr></thead>
<tbody>
{% for r, o in overlaps %}
<tr{% if o.found %} class="warn"{% endif %}>
<th scope="row">{{ r.evaluation.dataset }}</th>
<td>{{ o.trained }} and {{ o.evaluated }}</td>
<td class="figure">{{ o.exact }}</td>
<td class="figure">{{ "not searched" if o.near is none else o.near }}</td>
<td>{{ r.leakage.near_by or "content" }}</td>
<td>{% for a, b in o.examples[:1] %}<code>{{ a }}</code> ~ <code>{{ b }}</code>{% endfor %}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p class="where">Duplicates between the splits were not searched.</p>
{% endif %}
{% if flags %}
<h3>Flags</h3>
<div class="scroll" tabindex="0" role="region" aria-label="Flags">
<table>
<thead><tr><th>flag</th><th>meaning</th><th class="figure">runs</th><th>evaluated on</th></tr></thead>
<tbody>
{% for flag, meaning, n, where in flags %}
<tr>
<th scope="row"><code>{{ flag }}</code></th><td>{{ meaning }}</td><td class="figure">{{ n }}</td><td>{{ where }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% if failures %}
<h3 id="failures">Failed runs</h3>
<p class="lede">Failed runs are counted and never included in a mean.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Failed runs">
<table>
<thead><tr>
<th>method</th><th>data</th><th class="figure">seed</th><th class="figure">attempt</th><th>error</th>
</tr></thead>
<tbody>
{% for title, r in failures %}
<tr class="warn">
<th scope="row">{{ title }}</th>
<td>{{ r.evaluation.dataset }}, {{ r.evaluation.split }}</td>
<td class="figure">{{ r.seed }}</td>
<td class="figure">{{ r.attempt }}</td>
<td>{{ r.error }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
"""


@section("Data and flags", nav="Data", order=110, template=TEMPLATE)
def data(page: Page) -> dict[str, Any]:
    """Return the splits, overlaps, flags and failures of all runs."""
    return {
        "sources": [(members[0], len(members)) for members in page.sources],
        "overlaps": _overlaps(page.records),
        "flags": _flags(page.records),
        "failures": [
            (method_title(r.method.name, r.method.recipe), r)
            for r in page.records
            if r.status == "failed"
        ],
    }


def _overlaps(records: Sequence[RunRecord]) -> list[tuple[RunRecord, Any]]:
    """Return the overlaps that the leakage guard counted, once for each dataset and pair of splits."""
    found: dict[tuple[Any, ...], tuple[RunRecord, Any]] = {}
    for r in records:
        for overlap in r.leakage.overlaps if r.leakage else ():
            key = r.data.sha256, r.evaluation.dataset, overlap.trained, overlap.evaluated
            found.setdefault(key, (r, overlap))
    return list(found.values())


def _flags(records: Sequence[RunRecord]) -> list[tuple[str, str, int, str]]:
    """Return each flag with its meaning, the number of runs that carry it, and their datasets."""
    found = []
    for flag in sorted({flag for r in records for flag in r.flags}):
        carriers = [r for r in records if flag in r.flags]
        datasets = ", ".join(sorted({r.evaluation.dataset for r in carriers}))
        meaning = FLAGS[flag].meaning if flag in FLAGS else ""
        found.append((flag, meaning, len(carriers), datasets))
    return found
