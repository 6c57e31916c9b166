"""Registry of the sections of the report page.

A section is one file in :mod:`clipadapt.core.report.sections`: a Jinja template and a function, decorated with
:func:`section`, that returns what the template needs. The page shows every file there, by ``order``.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.album import Album
    from clipadapt.core.report.page_rows import PageRow
    from clipadapt.core.report.summary import Summary

    Build = Callable[["Page"], Mapping[str, Any] | None]

PACKAGE: Final = "clipadapt.core.report.sections"
ROWS_WITH_DETAILS: Final = 120
"""With more rows, about as many have charts and tables of their own: the best of each block."""
LEAST_DETAILED: Final = 2
"""The best row and the runner-up, which are also compared example by example."""


@dataclass(frozen=True)
class Page:
    """What sections read.

    Attributes:
        records: Every run once.
        summary: Blocks of rows that compete.
        rows: Rows of the leaderboard.
        album: Pictures and texts of examples.
        link: Returns the address of a run's folder, as seen from the page.
        detail: Rows of each block, from the best, that have details; None for all of a small page, see
            :data:`ROWS_WITH_DETAILS`.
    """

    records: Sequence[RunRecord]
    summary: Summary
    rows: Sequence[PageRow]
    album: Album
    link: Callable[[RunRecord], str] = lambda _: ""
    detail: int | None = None

    @cached_property
    def finished(self) -> list[PageRow]:
        """Rows with at least one run that did not fail."""
        return [r for r in self.rows if r.row.ok]

    @cached_property
    def n_detailed(self) -> int | None:
        """Rows of each block that have details, None if all have."""
        blocks = self.summary.blocks
        if self.detail is None and len(self.finished) > ROWS_WITH_DETAILS:
            return max(LEAST_DETAILED, ROWS_WITH_DETAILS // len(blocks))
        most = max((len(b.rows) for b in blocks), default=0)
        return self.detail if self.detail is not None and self.detail < most else None

    @cached_property
    def detailed(self) -> list[PageRow]:
        """Finished rows that have details: all, or the best of each block."""
        best = {r.row.run_ids for b in self.summary.blocks for r in b.rows[: self.n_detailed]}
        return [r for r in self.finished if r.row.run_ids in best]

    @cached_property
    def sources(self) -> list[list[RunRecord]]:
        """Records by what they were evaluated on: dataset, split, data, templates and examples."""
        found: dict[tuple[Any, ...], list[RunRecord]] = {}
        for r in self.records:
            e = r.evaluation
            key = e.dataset, e.split, r.data.sha256, e.templates, r.data.n_test
            found.setdefault(key, []).append(r)
        return [members for _, members in sorted(found.items())]


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the page.

    Attributes:
        id: Anchor of the section.
        title: Heading.
        nav: Name in the list of sections.
        order: Sections are shown in ascending order.
        template: Jinja template of everything below the heading.
        build: Returns the variables of the template, or None to leave the section out.
        details: Whether it shows only the rows that have details.
    """

    id: str
    title: str
    nav: str
    order: int
    template: str
    build: Build
    details: bool = False


SECTIONS: Final[dict[str, Section]] = {}


def section(
    title: str, *, order: int, template: str, nav: str = "", details: bool = False
) -> Callable[[Build], Build]:
    """Register the decorated function as a section; its name is the anchor. See :class:`Section`."""

    def register(build: Build) -> Build:
        name = build.__name__.replace("_", "-")
        SECTIONS[name] = Section(name, title, nav or title, order, template, build, details)
        return build

    return register


def all_sections() -> list[Section]:
    """Import every file of :data:`PACKAGE` and return the sections in the order of the page."""
    for module in pkgutil.iter_modules(import_module(PACKAGE).__path__):
        import_module(f"{PACKAGE}.{module.name}")
    return sorted(SECTIONS.values(), key=lambda s: s.order)
