"""Environment: the machines, devices and package versions of the runs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from clipadapt.core.report.section import Page

TEMPLATE: Final = """\
<div class="list">
{% for e, n in environments %}
<div class="card">
<h3>{{ n }} run{{ '' if n == 1 else 's' }}</h3>
<dl class="pairs">
<dt>code</dt>
<dd>
{% if e.git_commit %}
<code>{{ e.git_commit[:12] }}</code>{% if e.git_dirty %} with uncommitted changes{% endif %}
{% else %}
installed package
{% endif %}
</dd>
<dt>Python</dt><dd>{{ e.python }}</dd>
<dt>platform</dt><dd>{{ e.platform }}</dd>
<dt>device</dt>
<dd>
{{ e.device }}{% if e.gpu %} ({{ e.gpu }}){% endif %}, {{ e.threads }} thread{{ '' if e.threads == 1 else 's' -}}
{% if e.devices %}, {{ e.devices|length }} processes ({{ e.devices|join(", ") }}){% endif %}
</dd>
<dt>CPU</dt><dd>{{ e.cpu_flags|join(" ") or "-" }}</dd>
</dl>
<details>
<summary>{{ e.packages|length }} packages</summary>
<dl class="pairs">{% for k, v in e.packages.items() %}<dt>{{ k }}</dt><dd>{{ v }}</dd>{% endfor %}</dl>
</details>
</div>
{% endfor %}
</div>
"""


@section("Environment", order=120, template=TEMPLATE)
def environment(page: Page) -> dict[str, Any]:
    """Return every environment with its number of runs, the most common first."""
    environments = [r.environment.model_copy(update={"folder": None}) for r in page.records]
    counts = Counter(e.model_dump_json() for e in environments)
    by_json = {e.model_dump_json(): e for e in environments}
    return {"environments": [(by_json[key], n) for key, n in counts.most_common()]}
