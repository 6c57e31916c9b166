"""Findings: the leader of each block, and whether its lead is significant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.report.comparisons import SIGNIFICANT
from clipadapt.core.report.page_rows import place
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.report.comparisons import Comparison, RankedRow
    from clipadapt.core.report.section import Page
    from clipadapt.core.report.summary import Block

TEMPLATE: Final = """\
<p class="lede">The method with the highest accuracy in each block (same data, protocol and shots), and whether its lead
is significant. The two best methods are compared on the same examples. The interval of a difference is of that pair
alone; p is adjusted over all pairs of the block.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Findings">
<table>
<thead><tr>
<th>data and shots</th><th>best method</th><th class="figure">accuracy, %</th><th>against the runner-up</th>
<th class="figure">difference, points</th><th class="figure">p</th>
</tr></thead>
<tbody>
{% for f in findings %}
<tr class="item"{{ attributes(f.data) }}>
<th scope="row">{{ f.block.title }}</th>
{% if f.lead %}
<td>{% if f.lead.best %}<b>{{ f.lead.label }}</b>{% else %}{{ f.lead.label }}{% endif %}</td>
<td class="figure">{{ "%.1f"|format(100 * f.lead.row.accuracy.value) }}</td>
{% if f.second %}
<td>
<span class="{{ 'yes' if f.lead.best else 'open' }}">{{ f.verdict }}</span><br>
<span class="where">{{ f.second.second if f.second.first == f.lead.label else f.second.first }}</span>
</td>
<td class="figure">{{ points(f.second.difference.value) }}
{%- if f.second.difference.low is not none %}<br>
<span class="where">[{{ points(f.second.difference.low) }}, {{ points(f.second.difference.high) }}]</span>
{%- endif %}</td>
<td class="figure">{{ "<0.0001" if f.second.p_adjusted < 0.0001 else "%.4f"|format(f.second.p_adjusted) }}</td>
{% else %}
<td><span class="where">{{ f.verdict }}</span></td>
<td class="figure">-</td><td class="figure">-</td>
{% endif %}
{% else %}
<td colspan="5">{{ f.verdict }}</td>
{% endif %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% for f in findings if f.block.comparisons|length > 1 %}
<details class="item"{{ attributes(f.data) }}>
<summary>
{% if f.pairs|length < f.block.comparisons|length %}
{{ f.pairs|length }} of {{ f.block.comparisons|length }} pairs of {{ f.block.title }}: those of its best {{ best }} rows
{% else %}
All {{ f.block.comparisons|length }} pairs of {{ f.block.title }}
{% endif %}
</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Pairs of {{ f.block.title }}">
<table>
<thead><tr>
<th>method</th><th>against</th><th class="figure">difference, points</th>
<th class="figure">p</th><th class="figure">p adjusted</th><th>test</th><th class="figure">examples</th>
<th class="figure" title="with this many, a true difference of this size is significant at 5 % in four of five
experiments">examples needed</th>
</tr></thead>
<tbody>
{% for c in f.pairs %}
<tr>
<td>{{ c.first }}</td>
<td>{{ c.second }}</td>
<td class="figure">{{ points(c.difference.value) }}
{%- if c.difference.low is not none %}
 <span class="where">[{{ points(c.difference.low) }}, {{ points(c.difference.high) }}]</span>
{%- endif %}</td>
<td class="figure">{{ "%.4f"|format(c.p_value) }}</td>
<td class="figure">{{ "%.4f"|format(c.p_adjusted) }}</td>
<td>{{ c.test }}</td>
<td class="figure">{{ c.n_examples }}</td>
<td class="figure">{{ "-" if c.n_needed is none else "{:,}".format(c.n_needed) }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
{% endfor %}
"""
MOST_PAIRED: Final = 6
"""Rows of a block whose pairs are listed on a page with too many rows for all details."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The leader of a block, and its comparison with the runner-up."""

    block: Block
    data: Mapping[str, str]
    verdict: str
    lead: RankedRow | None
    second: Comparison | None
    pairs: Sequence[Comparison]


@section("Findings", order=10, template=TEMPLATE)
def findings(page: Page) -> dict[str, Any]:
    """Return a finding for each block."""
    most = None if page.n_detailed is None else max(page.n_detailed, MOST_PAIRED)
    return {"findings": [_finding(b, most) for b in page.summary.blocks], "best": most}


def _finding(block: Block, most: int | None) -> Finding:
    ranked = [r for r in block.rows if r.row.accuracy]
    lead = ranked[0] if ranked else None
    pair = {r.label for r in ranked[:2]}
    second = next((c for c in block.comparisons if {c.first, c.second} == pair), None)
    if lead is None:
        verdict = "every run failed"
    elif len(ranked) < 2:
        verdict = "the only method"
    elif lead.best:
        verdict = "significantly better"
    elif second is None:
        verdict = "not compared: no common seed or example"
    elif second.p_value < SIGNIFICANT:
        verdict = (
            f"better in this pair alone, but not after Holm over {len(block.comparisons)} pairs"
        )
    else:
        verdict = "not significantly better"
    data = {"data": place(block)}
    if block.shots is not None or any(r.row.first.method.uses_train for r in block.rows):
        data["shots"] = "all" if block.shots is None else str(block.shots)
    best = {r.label for r in block.rows[:most]}
    pairs = [c for c in block.comparisons if c.first in best and c.second in best]
    return Finding(block, data, verdict, lead, second, pairs)
