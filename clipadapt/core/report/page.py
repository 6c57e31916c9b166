"""The report page of a folder of runs: one self-contained HTML file that makes no network request.

The page is a list of sections, one file each in :mod:`clipadapt.core.report.sections`. Names and paths are escaped by
the template, which escapes everything except the charts of :mod:`clipadapt.core.report.svg`. A
Content-Security-Policy allows the page's one script by its hash, and no request.
"""

from __future__ import annotations

import base64
import hashlib
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from clipadapt.core.api.errors import ClipAdaptError, RecordError
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.user_input import visible
from clipadapt.core.files.atomic import write_text
from clipadapt.core.files.folders import output_file
from clipadapt.core.records.history import run_folder
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import svg
from clipadapt.core.report.album import Album
from clipadapt.core.report.formats import format_signed, format_value
from clipadapt.core.report.page_rows import filters, page_rows
from clipadapt.core.report.section import Page, all_sections
from clipadapt.core.report.summary import build_summary

if TYPE_CHECKING:
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.records.schema import RunRecord
_BETWEEN: Final = "\0"
"""No text of the page holds it: it is not allowed in HTML."""


def write_report(
    directory: Path,
    output: Path,
    *,
    examples: bool = True,
    detail: int | None = None,
    progress: Progress | None = None,
) -> Page:
    """Write the page of the runs in a folder; return what it shows.

    Args:
        directory: Folder of the records.
        output: The HTML file; an existing file is replaced, and a link to one is written through.
        examples: Show pictures and texts; their datasets are opened by name.
        detail: Rows of each block, from the best, that have charts and tables of their own; None chooses by the
            size of the page, see :data:`~clipadapt.core.report.section.ROWS_WITH_DETAILS`.
        progress: Where notes go.

    Raises:
        RecordError: If there is no record, one cannot be read, the runs of a row differ in more than their seed, or
            ``output`` cannot be written.
        ClipAdaptError: If jinja2 is not installed.
    """
    if not directory.is_dir():
        raise RecordError(
            f"there is no folder '{directory}'",
            hint="name the folder given as --out when the experiments were run",
        )
    target = output_file(output, "--output")
    html, page = build_report(
        directory, examples=examples, detail=detail, progress=progress, at=target.parent
    )
    try:
        write_text(target, html)
    except OSError as err:
        raise RecordError(
            f"cannot write '{output}': {err.strerror or err}",
            hint="name another file with --output FILE",
        ) from err
    return page


def build_report(
    directory: Path,
    *,
    examples: bool = True,
    detail: int | None = None,
    progress: Progress | None = None,
    at: Path | None = None,
) -> tuple[str, Page]:
    """Return the page as HTML and what it shows; see :func:`write_report`.

    The page links to the folders of the runs if ``at``, the folder where it will lie, is given.
    """
    environment = _environment()
    store = RunStore(directory)
    progress = progress or Silent()
    problems: list[str] = []

    def note(text: str) -> None:
        problems.append(text)
        progress.note(text)

    records = list({r.run_id: r for r in store.load_all(note)}.values())
    if not records:
        raise RecordError(
            f"there are no records in '{directory}'" + (" that can be read" if problems else ""),
            hint="run an experiment or a sweep first; records are written into the folder given as --out",
        )
    summary = build_summary(store, records=records)
    album = Album(progress, wanted=examples)

    def link(record: RunRecord) -> str:
        return "" if at is None else _address(run_folder(store, record), at)

    page = Page(records, summary, page_rows(summary), album, link, detail)
    problems = [*(text.removeprefix("warning: ") for text in problems), *summary.left_out]
    return _render(environment, page, problems), page


def _render(environment: Any, page: Page, problems: list[str]) -> str:
    """Return the page as HTML; ``problems`` are shown at its top."""
    markup = environment.globals["svg"]
    sections, bodies = [], []
    for section in all_sections():
        variables = section.build(page)
        if variables is not None:
            bodies.append(environment.from_string(section.template).render(variables))
            sections.append(section)
    together, shared = svg.shared(_BETWEEN.join(bodies))
    shown = list(zip(sections, map(markup, together.split(_BETWEEN)), strict=True))
    days = [r.started_at for r in page.records]
    script, style = _resource("script.js"), _resource("style.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html: str = environment.get_template("page.html").render(
        page=page,
        sections=shown,
        shared=markup(shared),
        problems=problems,
        filters=filters(page.rows),
        n_failed=sum(r.status == "failed" for r in page.records),
        first_day=min(days).date().isoformat(),
        last_day=max(days).date().isoformat(),
        thumbnails=markup(page.album.style()),
        script=markup(script),
        script_hash=digest,
        style=markup(style),
    )
    return html


def _address(folder: Path, at: Path) -> str:
    """Return the address of a folder relative to another; empty if there is none, as between drives."""
    try:
        relative = Path(os.path.relpath(folder, at)).as_posix()
    except ValueError:
        return ""
    return f"./{quote(relative)}/"


def _environment() -> Any:
    """Return the Jinja environment with what every template may use."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise ClipAdaptError(
            "the report needs jinja2, which is not installed",
            hint='pip install "clipadapt[report]"',
        ) from None
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_resource),
        finalize=lambda value: (
            visible(value, lines=True)
            if isinstance(value, str) and not isinstance(value, Markup)
            else value
        ),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        svg=Markup,  # charts escape their own texts
        key=lambda style, dashed=False: Markup(svg.key(style, dashed=dashed)),  # noqa: S704
        percent=lambda value: format_value(value, "fraction"),
        points=lambda value: format_signed(value, 100, 1),
        attributes=lambda data: Markup(svg.attributes(data)),  # noqa: S704
    )
    macros: Any = environment.get_template("macros.html").module
    environment.globals.update(legend=macros.legend, of_row=macros.of_row)
    return environment


def _resource(name: str) -> str:
    return files("clipadapt.core.report").joinpath("page_files", name).read_text(encoding="utf-8")
