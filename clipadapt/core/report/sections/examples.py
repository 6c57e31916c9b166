"""Examples that one method of a pair predicts correctly and the other does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.report.page_rows import place
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.report.album import Album
    from clipadapt.core.report.page_rows import PageRow
    from clipadapt.core.report.section import Page
    from clipadapt.core.report.summary import Block

MOST_RIVALS: Final = 6
"""With more rows in a block, only the pairs with the best row are shown."""
SAMPLES: Final = 8
FEW_SAMPLES: Final = 3
"""Examples of each kind on a page with too many rows for all details."""
TEMPLATE: Final = """\
{% macro samples(list) %}
<ul class="samples">
{% for s in list %}
<li>
{% if s.picture %}
<span class="thumb {{ s.picture }}" role="img" aria-label="{{ s.id }}" title="{{ s.id }}"></span>
{% endif %}
<span class="said">
{% if s.text %}<q>{{ s.text }}</q>{% elif not s.picture %}<code>{{ s.id }}</code>{% endif %}
<span><b>{{ s.label }}</b></span>
<span class="where">1: {{ s.first }} &nbsp; 2: {{ s.second }}</span>
</span>
</li>
{% endfor %}
</ul>
{% endmacro %}
<p class="lede">Examples that most seeds of one method predict correctly and most seeds of the other do not. Bold: the
label; below it, the two predictions. At most {{ most }} of each kind are shown, from as many classes as possible.</p>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
<div class="list">
{% for p in pairs %}
<details class="card item"{{ attributes(p.data) }}{% if loop.first %} open{% endif %}>
<summary><span class="of">1 {{ p.first }}</span> against <span class="of">2 {{ p.second }}</span>
<span class="where">{{ p.title }}: {{ p.n_fixed }} fixed, {{ p.n_broken }} broken of {{ p.n }}</span></summary>
<div class="halves">
<div><h3>Only 1 is correct ({{ p.n_fixed }})</h3>{{ samples(p.fixed) }}</div>
<div><h3>Only 2 is correct ({{ p.n_broken }})</h3>{{ samples(p.broken) }}</div>
</div>
</details>
{% endfor %}
</div>
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One example that two methods predict differently."""

    id: str
    label: str
    first: str
    second: str
    picture: str
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two methods, with examples that only the first predicts correctly (fixed) and only the second (broken)."""

    title: str
    first: str
    second: str
    data: Mapping[str, str]
    n_fixed: int
    n_broken: int
    n: int
    fixed: Sequence[Sample]
    broken: Sequence[Sample]


@section(
    "What one method fixes and another breaks",
    nav="Examples",
    order=80,
    template=TEMPLATE,
    details=True,
)
def examples(page: Page) -> dict[str, Any] | None:
    """Return the pairs of every block."""
    by_runs = {r.row.run_ids: r for r in page.detailed}
    most = SAMPLES if page.n_detailed is None else FEW_SAMPLES
    pairs = [p for b in page.summary.blocks for p in _pairs(b, by_runs, page.album, most)]
    if not pairs:
        return None
    return {"pairs": pairs, "most": most, "notes": page.album.notes}


def _pairs(
    block: Block, by_runs: Mapping[tuple[str, ...], PageRow], album: Album, most: int
) -> Iterator[Pair]:
    rows = [by_runs[r.row.run_ids] for r in block.rows if r.row.run_ids in by_runs]
    several = len({r.row.model for r in rows if r.row.model}) > 1
    for i, a in enumerate(rows):
        if len(rows) > MOST_RIVALS and i > 0:
            return
        for b in rows[i + 1 :]:
            names = [r.label_with_model if several else r.label for r in (a, b)]
            pair = _pair(block, names, a, b, album, most)
            if pair is not None:
                yield pair


def _pair(
    block: Block, titles: Sequence[str], a: PageRow, b: PageRow, album: Album, most: int
) -> Pair | None:
    """Compare two rows on the examples that both were evaluated on; None without any."""
    ids, of_a, of_b = np.intersect1d(
        a.votes.ids, b.votes.ids, assume_unique=True, return_indices=True
    )
    if not len(ids):
        return None
    labels, names = a.votes.labels[of_a], a.row.classnames
    correct_a, correct_b = a.votes.correct[of_a], b.votes.correct[of_b]
    predicted_a, predicted_b = a.votes.predicted[of_a], b.votes.predicted[of_b]
    fixed = np.flatnonzero((correct_a > 0.5) & (correct_b < 0.5))
    broken = np.flatnonzero((correct_a < 0.5) & (correct_b > 0.5))

    def samples(where: NDArray[np.int64], gain: NDArray[np.float64]) -> list[Sample]:
        chosen = _varied(where, labels[where], gain[where])[:most]
        return [
            Sample(str(ids[k]), names[labels[k]], names[predicted_a[k]], names[predicted_b[k]],
                   *album.show(a.row.first, str(ids[k])))
            for k in chosen
        ]  # fmt: skip

    data = {"data": place(block), "method": a.label, "method2": b.label}
    if a.trained or b.trained:
        data["shots"] = "all" if block.shots is None else str(block.shots)
    first, second = titles
    return Pair(
        title=block.title,
        first=first,
        second=second,
        data=data,
        n_fixed=len(fixed),
        n_broken=len(broken),
        n=len(ids),
        fixed=samples(fixed, correct_a - correct_b),
        broken=samples(broken, correct_b - correct_a),
    )


def _varied(
    where: NDArray[np.int64], labels: NDArray[np.int64], gain: NDArray[np.float64]
) -> list[int]:
    """Return examples in the order to show them: by gain, with one of every class before a second."""
    seen: Counter[int] = Counter()
    ranked = []
    for k in np.argsort(-gain, kind="stable"):
        ranked.append((seen[int(labels[k])], -float(gain[k]), int(where[k])))
        seen[int(labels[k])] += 1
    return [index for _, _, index in sorted(ranked)]
