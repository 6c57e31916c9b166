"""The prompt audit as text, Markdown or for a terminal, and as one HTML file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.user_input import shortened
from clipadapt.core.files.atomic import atomic_file
from clipadapt.core.report.formats import (
    MARKDOWN,
    NOTHING,
    Column,
    escape_html,
    format_difference,
    format_interval,
    format_p_value,
    format_value,
    html_grid,
)
from clipadapt.prompts import MOST_CHARACTERS

if TYPE_CHECKING:
    from pathlib import Path

    from clipadapt.core.report.formats import Form
    from clipadapt.prompts import Audit

Section = tuple[str, str, list[Column], list[list[str]]]
"""Title, explanation, columns and rows."""

MOST_ROWS: Final = 20
"""Maximum number of rows of a table in the terminal."""

HEAD: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #57606a; --line: #d8dee4; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #14171a; --text: #e6e9ec; --soft: #9aa4ae; --line: #343b42;
  }} }}
body {{ margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 0.95rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ margin: 0 0 0.25rem; font-size: 1.3rem; }}
h2 {{ margin: 1.6rem 0 0.25rem; font-size: 1.05rem; }}
p {{ margin: 0.2rem 0 0.6rem; color: var(--soft); }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.25rem 0.7rem 0.25rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }}
</style>
</head>
<body>
"""


def render(audit: Audit, form: Form = MARKDOWN) -> str:
    """Return the audit as text in a form; only the first and last rows of long tables.

    Sentences are not escaped in Markdown, because they quote templates that a reader copies.
    """
    if form is MARKDOWN:
        form = replace(
            MARKDOWN,
            paragraph=lambda text: f"{text}\n",
            items=lambda texts: "".join(f"- {text}\n" for text in texts),
        )
    parts = [form.paragraph(_title(audit))]
    half = MOST_ROWS // 2
    for title, about, columns, rows in _sections(audit):
        shown = rows
        if len(rows) > 2 * half:
            shown = rows[:half] + rows[-half:]
        parts += [form.heading(2, title), form.paragraph(about), form.grid(columns, shown, ())]
        if len(shown) < len(rows):
            more = f"The first and last {half} of {len(rows)} rows; --html and --json have all."
            parts.append(form.paragraph(more))
    return "\n".join([*parts, form.heading(2, "Suggestions"), form.items(_suggestions(audit))])


def write_page(path: Path, audit: Audit) -> None:
    """Write the audit as one self-contained HTML file, atomically.

    Raises:
        OSError: If the file cannot be written.
    """
    title = escape_html(_title(audit))
    parts = [HEAD.format(title=title), f"<h1>{title}</h1>\n"]
    items = "".join(f"<li>{escape_html(s)}</li>\n" for s in _suggestions(audit))
    parts.append(f"<h2>Suggestions</h2>\n<ul>\n{items}</ul>\n")
    for name, about, columns, rows in _sections(audit):
        grid = html_grid(columns, rows)
        parts.append(f"<h2>{name}</h2>\n<p>{escape_html(about)}</p>\n<div>{grid}</div>\n")
    with atomic_file(path) as file:
        file.write("".join([*parts, "</body>\n</html>\n"]).encode("utf-8", "xmlcharrefreplace"))


def _title(audit: Audit) -> str:
    return f"Prompts of {audit.dataset} ({audit.n_classes} classes) with {audit.model} in {audit.precision}"


def _suggestions(audit: Audit) -> tuple[str, ...]:
    return audit.suggestions or ("nothing to change: no template, class name or prompt stands out",)


def _sections(audit: Audit) -> list[Section]:
    split, n = audit.ensembles[0].split, audit.ensembles[0].n
    found = [_ensembles(audit), _templates(audit, split, n), _selection(audit, split)]
    if audit.pairs:
        found.append(_pairs(audit, split))
    if audit.long_prompts:
        rows = [[_short(p.prompt), p.problem] for p in audit.long_prompts]
        about = "They are longer than the context, so their templates were left out."
        found.append(("Prompts that do not fit", about, [_text("prompt"), _text("problem")], rows))
    return found


def _ensembles(audit: Audit) -> Section:
    figures = ("all templates", "selected", "dataset's own", "selected - all", "selected - own")
    columns = [_text("split"), Column("n", rank=1), *(Column(x, figure=True) for x in figures)]
    rows = [
        [
            e.split,
            str(e.n),
            format_interval(e.all),
            format_interval(e.selected),
            format_interval(e.own),
            format_difference(e.selected_minus_all),
            NOTHING if e.selected_minus_own is None else format_difference(e.selected_minus_own),
        ]
        for e in audit.ensembles
    ]
    about = (
        f"Accuracy in percent with 95 % intervals; differences are paired by example. The templates were selected on "
        f"{audit.ensembles[0].split}, where the selected ones look better than they are. "
        f"{_own(audit)}"
    )
    return "Ensembles", about, columns, rows


def _own(audit: Audit) -> str:
    """Return which templates are the dataset's own."""
    if audit.ensembles[0].own is None:
        return "Not all of the dataset's own templates fit into the context." if audit.own else ""
    some = f"'{_short(audit.own[0])}'"
    n = len(audit.own)
    return (
        f"The dataset's own: {some if n == 1 else f'the mean of {n} templates, the first {some}'}."
    )


def _templates(audit: Audit, split: str, n: int) -> Section:
    order = sorted(audit.templates, key=lambda g: -g.gain.value)
    columns = [_text("template"), Column("alone", figure=True), Column("gain", figure=True)]
    columns.append(Column("p (Holm)"))
    rows = [
        [
            _short(g.template),
            format_value(g.accuracy, "fraction"),
            format_difference(g.gain),
            format_p_value(g.p_value),
        ]
        for g in order
    ]
    about = (
        f"Gain: accuracy of all templates minus their accuracy without this one, in points, on {n:,} examples of "
        f"{split}."
    )
    return "Templates", about, columns, rows


def _selection(audit: Audit, split: str) -> Section:
    columns = [
        Column("step"),
        _text("added"),
        Column("accuracy", figure=True),
        Column("nll", figure=True),
    ]
    rows = [
        [str(i), _short(s.template), format_value(s.accuracy, "fraction"), f"{s.nll:.4f}"]
        for i, s in enumerate(audit.selection, start=1)
    ]
    about = f"At each step the template that raises the accuracy on {split} most; it ends when none does."
    if audit.probabilities == "sigmoid":
        about += " The nll is that of one sigmoid per class, summed over the classes."
    return "Greedy selection", about, columns, rows


def _pairs(audit: Audit, split: str) -> Section:
    columns = [_text("class"), _text("class"), Column("cosine"), Column(f"confused on {split}")]
    columns.append(Column("in percent", figure=True))
    rows = [
        [p.first, p.second, f"{p.cosine:.3f}", f"{p.confused} of {p.n}", format_interval(p.share)]
        for p in audit.pairs
    ]
    about = (
        f"Closest class names in the text tower; the median cosine of all pairs is {audit.median_cosine:.3f}. The "
        "intervals hold for all of these pairs together with 95 %."
    )
    return "Class names that are close", about, columns, rows


def _short(text: str) -> str:
    return shortened(text, MOST_CHARACTERS)


def _text(title: str) -> Column:
    return Column(title, text=True)
