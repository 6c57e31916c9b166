"""Recipes: the source of each method's settings, and its deviations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.records.schema import canonical_json
from clipadapt.core.report.formats import method_title
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.section import Page

TEMPLATE: Final = """\
<p class="lede">The source of each method's settings, and deliberate deviations from it.</p>
<div class="list">
{% for r in recipes %}
<div class="card recipe">
<h3>{{ r.title }}
<span class="where">version {{ r.version }}, {{ r.n_runs }} run{{ '' if r.n_runs == 1 else 's' }}</span></h3>
{% if r.source %}<p>{{ r.source }}</p>{% endif %}
{% if r.deviations %}
<ul>{% for d in r.deviations %}<li>{{ d }}</li>{% endfor %}</ul>
{% else %}
<p class="where">No deviations are recorded.</p>
{% endif %}
{% if r.settings %}
<details>
<summary>{{ r.settings|length }} setting{{ '' if r.settings|length == 1 else 's' }}</summary>
<dl class="pairs">{% for k, v in r.settings %}<dt>{{ k }}</dt><dd>{{ v }}</dd>{% endfor %}</dl>
</details>
{% endif %}
</div>
{% endfor %}
</div>
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method with its settings."""

    title: str
    version: int
    source: str
    deviations: tuple[str, ...]
    settings: Sequence[tuple[str, str]]
    n_runs: int


@section("Recipes", order=100, template=TEMPLATE)
def recipes(page: Page) -> dict[str, Any]:
    """Return every method with different settings."""
    found: dict[str, list[RunRecord]] = {}
    for row in page.rows:
        for r in row.row.group.records:
            own = {"m": r.method.model_dump(mode="json"), "s": r.config.get("method")}
            found.setdefault(canonical_json(own), []).append(r)
    return {"recipes": sorted(map(_recipe, found.values()), key=lambda r: r.title)}


def _recipe(records: Sequence[RunRecord]) -> Recipe:
    first = records[0]
    recipe: Any = first.config.get("recipe") or {}
    settings: Any = first.config.get("method") or {}
    return Recipe(
        title=method_title(first.method.name, first.method.recipe),
        version=first.method.version,
        source=str(recipe.get("source") or ""),
        deviations=first.method.deviations,
        settings=[(str(k), str(v)) for k, v in settings.items() if k != "name"],
        n_runs=len(records),
    )
