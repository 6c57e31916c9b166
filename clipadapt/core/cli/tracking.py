"""``--tracker``: log the runs of a command to other programs."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.trackers import Tracking


@contextlib.contextmanager
def tracking(
    names: Sequence[str] | None, out: Path
) -> Iterator[Callable[[Sequence[RunRecord]], None] | None]:
    """Open trackers before the first fit; yield what logs records, or None without trackers.

    At the end, also after an error, the report page is logged and a line per tracker is printed.

    Raises:
        ConfigError: If a tracker cannot be used.
    """
    if not names:
        yield None
        return
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs.trackers import Tracking

    found = Tracking(names, out, on_stderr())
    try:
        yield found.log
    finally:
        _log_page(found, out)
        for line in found.summaries():
            say(line, err=True)


def _log_page(found: Tracking, out: Path) -> None:
    """Log the page of all runs in the output folder; without the extra ``report`` there is none."""
    if not any(found.logged.values()):
        return
    from clipadapt.core.report.page import write_report

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        try:
            write_report(out, page, examples=False)
        except ClipAdaptError as err:
            say(f"no page for the trackers: {err.problem}", err=True)
            return
        found.log_page(page)
