"""HTML of what a run says of a few inputs: one card each with classes, set and nearest training examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.report.album import LETTERS, jpeg
from clipadapt.core.report.formats import (
    escape_html,
    format_interval,
    method_title,
    split_title,
)
from clipadapt.core.scoring.statistics import Interval

if TYPE_CHECKING:
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.trial import Answer, Result

SIDE: Final = 448
"""Longer side of a picture in pixels, twice the width on the page."""
SMALL: Final = 160
"""The same of a training example."""
MOST_MEMBERS: Final = 20
"""Classes of a set that are named."""
STYLE: Final = """
.trial { --ink: #1b1f24; --soft: #57606a; --card: #fff; --line: #d8dee4; --bar: #b6d4f5; --in: #dcefe0;
  --warn: #9a3412; color: var(--ink); font: 0.95rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
.dark .trial { --ink: #e6e9ec; --soft: #a3adb7; --card: #1c2126; --line: #3a424a; --bar: #27506f; --in: #23432f;
  --warn: #fdba74; }
.trial h3 { margin: 0.9rem 0 0.35rem; font-size: 0.8rem; font-weight: 600; color: var(--soft); }
.trial p { margin: 0.2rem 0; }
.trial .notes { margin: 0 0 0.8rem; color: var(--soft); font-size: 0.85rem; }
.trial .notes p { color: inherit; font-size: inherit; }
.trial .card { display: grid; grid-template-columns: minmax(7rem, 14rem) 1fr; gap: 1rem; margin-bottom: 1rem;
  padding: 1rem; border: 1px solid var(--line); border-radius: 0.5rem; background: var(--card); }
.trial .given img { display: block; width: 100%; height: auto; border-radius: 0.3rem; }
.trial .given small { display: block; margin-top: 0.35rem; color: var(--soft); }
.trial .card.text { grid-template-columns: 1fr; gap: 0.25rem; }
.trial .said { grid-column: 1 / -1; font-size: 1.05rem; }
.trial .answer { margin: 0 0 0.5rem; font-size: 1.15rem; font-weight: 600; }
.trial .answer span { font-weight: 400; color: var(--soft); }
.trial ol, .trial ul { list-style: none; margin: 0; padding: 0; }
.trial ol li { display: flex; justify-content: space-between; gap: 0.5rem; margin-bottom: 3px;
  padding: 0.1rem 0.4rem; border-radius: 0.25rem;
  background: linear-gradient(var(--bar), var(--bar)) 0 / var(--p) 100% no-repeat; }
.trial ol li span:last-child { white-space: nowrap; font-variant-numeric: tabular-nums; }
.trial .set { display: flex; flex-wrap: wrap; gap: 0.3rem; }
.trial .set li { padding: 0.05rem 0.5rem; border-radius: 1rem; background: var(--in); }
.trial .set li.none { background: none; padding: 0; color: var(--soft); }
.trial .near { display: grid; gap: 0.5rem; grid-template-columns: repeat(auto-fill, minmax(3.6rem, 1fr)); }
.trial .near.texts { grid-template-columns: 1fr; }
.trial .near.texts small { display: inline; margin-right: 0.5rem; }
.trial .near img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 0.3rem; }
.trial .near small { display: block; line-height: 1.3; font-size: 0.8rem; }
.trial .near small + small { color: var(--soft); font-variant-numeric: tabular-nums; }
.trial .error { color: var(--warn); font-weight: 600; }
.trial .empty { padding: 2rem 1rem; border: 1px dashed var(--line); border-radius: 0.5rem; color: var(--soft);
  text-align: center; }
@media (max-width: 640px) {
  .trial .card { grid-template-columns: 1fr; padding: 0.75rem; }
  .trial .given img { max-width: 14rem; }
}
"""


def about(record: RunRecord) -> str:
    """Return what a run is, as HTML: method, model, data and accuracy."""
    title = method_title(record.method.name, record.method.recipe)
    model = f" on {record.model.name}" if record.model else ""
    verb = "trained" if record.method.uses_train else "evaluated"
    shots = f", {record.data.shots} shots" if record.data.shots else ""
    text = f"{title}{model}, {verb} on {record.data.name}{shots}, seed {record.seed}."
    found, e = record.metrics.get("accuracy"), record.evaluation
    if found is not None:
        interval = Interval(found.value, found.low, found.high, 0.95, found.n)
        text += f" Accuracy on {e.dataset} ({split_title(e.split, e.classes)}): {format_interval(interval)} %."
    return note(text)


def cards(answer: Answer) -> str:
    """Return the HTML of an answer: the notes, then a card for each input."""
    notes = "".join(f"<p>{escape_html(note)}</p>" for note in answer.notes)
    return _page(
        "".join(map(_card, answer.results)) + (f'<div class="notes">{notes}</div>' if notes else "")
    )


def note(text: str) -> str:
    """Return the HTML of a remark beside the controls."""
    return _page(f'<p class="notes">{escape_html(text)}</p>')


def message(text: str, *, error: bool = False) -> str:
    """Return the HTML of one message in place of the cards."""
    role = ' role="alert"' if error else ""
    return _page(f'<p class="{"error" if error else "empty"}"{role}>{escape_html(text)}</p>')


def _page(html: str) -> str:
    return f'<div class="trial">{html}</div>'


def _card(result: Result) -> str:
    if result.error:
        return (
            f'<article class="card"><div class="said"><p class="error" role="alert">'
            f"{escape_html(result.error)}</p><p>{escape_html(result.name)}</p></div></article>"
        )
    kind = " text" if isinstance(result.example, str) else ""
    label, p = result.top[0]
    answer = "none of these" if result.none_of_these else label
    most = f"<span>{_percent(p)}</span>"
    if result.none_of_these:
        most = f"<span>(most probable: {escape_html(label)}, {_percent(p)})</span>"
    return (
        f'<article class="card{kind}">{_given(result)}<div><p class="answer">{escape_html(answer)} {most}</p>'
        f"<ol>{''.join(_bar(*one) for one in result.top)}</ol>{_members(result)}{_near(result)}</div></article>"
    )


def _given(result: Result) -> str:
    if isinstance(result.example, str):
        return f'<div class="said"><q>{escape_html(_short(result.example))}</q></div>'
    name = escape_html(result.name)
    return (
        f'<div class="given"><img alt="{name}" src="{_source(result.example, SIDE)}">'
        f"<small>{name}</small></div>"
    )


def _bar(label: str, p: float) -> str:
    return (
        f'<li style="--p:{p:.1%}"><span>{escape_html(label)}</span><span>{_percent(p)}</span></li>'
    )


def _members(result: Result) -> str:
    if result.members is None:
        return ""
    shown = [f"<li>{escape_html(name)}</li>" for name in result.members[:MOST_MEMBERS]]
    more = len(result.members) - MOST_MEMBERS
    if more > 0:
        shown.append(f'<li class="none">and {more} more</li>')
    if not shown:
        shown = ['<li class="none">empty: no class is plausible at this coverage</li>']
    return f'<h3>Prediction set</h3><ul class="set">{"".join(shown)}</ul>'


def _near(result: Result) -> str:
    if not result.neighbours:
        return ""
    texts = any(isinstance(example, str) for _, example in result.neighbours)
    items = "".join(
        f"<li>{_neighbour(example)} <small>{escape_html(one.label)}</small>"
        f"<small>{one.similarity:.3f}</small></li>"
        for one, example in result.neighbours
    )
    kind = "near texts" if texts else "near"
    return f'<h3>Nearest training examples, with the cosine</h3><ul class="{kind}">{items}</ul>'


def _neighbour(example: Any) -> str:
    if isinstance(example, str):
        return f"<q>{escape_html(_short(example))}</q>"
    return f'<img alt="" src="{_source(example, SMALL)}">'


def _source(image: Any, side: int) -> str:
    return f"data:image/jpeg;base64,{jpeg(image, side)}"


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def _percent(p: float) -> str:
    return f"{p:.1%}"
