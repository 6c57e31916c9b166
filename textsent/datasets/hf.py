"""``hf:REPO[@REVISION]``: any text classification set of the Hugging Face hub.

The columns of text and label are found by their usual names, or named: ``hf:ORG/NAME?text=COL&label=COL``;
``config=NAME`` chooses among several configurations. With ``HF_HUB_OFFLINE=1`` the hub cache serves. A set with
one split only is split 80/10/10 by a hash of each text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.columns import split_query
from clipadapt.core.data.labelled import LabelledSet, many_left_out, match_splits, split_named
from clipadapt.core.files import hub_datasets
from textsent.datasets import _hub
from textsent.datasets._rows import assemble, rows_of
from textsent.datasets._splits import split_rows

if TYPE_CHECKING:
    from clipadapt.core.api.data import DatasetOptions, SplitName
    from textsent.datasets._rows import Row

OPTIONS = ("text", "label", "config")
WAY_OUT = "without a network take rotten_tomatoes:offline, or one's own file with csv:PATH"


def open_hf(argument: str, options: DatasetOptions, /) -> LabelledSet[str]:
    """Open a data set of the hub.

    Args:
        argument: ``ORG/NAME``, ``ORG/NAME@REVISION``, with ``?text=COL&label=COL&config=NAME`` where needed.
        options: With ``on_bad_image="skip"`` rows without a text or label are left out and counted.

    Raises:
        DataError: If the data set cannot be had or read, or has no usable texts and labels.
    """
    name, query = split_query(argument, OPTIONS)
    repo, _, given = name.partition("@")
    revision = None if given in {"", "main"} else given
    if not repo:
        raise DataError("hf: names no data set", hint="write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    title = f"hf:{name}" + (f"?config={query['config']}" if "config" in query else "")
    files = hub_datasets.dataset(
        repo, revision, hub_datasets.TABLES, way_out=WAY_OUT, config=query.get("config")
    )
    tables, text, label, classnames = _hub.read(
        files.folder,
        title,
        text=query.get("text"),
        label=query.get("label"),
        config=query.get("config"),
    )
    published, left_out = match_splits(
        title,
        {
            name: not table.columns[label] or any(v is not None for v in table.columns[label])
            for name, table in tables.items()
        },
    )
    rows: dict[SplitName, list[Row]] = {}
    notes = [files.note] if files.note else []
    notes += left_out
    flags: tuple[str, ...] = ()
    skipped = 0
    for split, found in published.items():
        checked, without = rows_of(
            tables[found],
            text,
            label,
            prefix=split_named(found) or found,
            skip=options.on_bad_image == "skip",
        )
        rows[split] = [row for row in checked if row is not None]
        skipped += without
    if len(tables) == 1:
        (whole,) = rows.values()
        rows = split_rows(whole)
        flags = ("split_by_hash",)
    assembled = assemble(rows, classnames)
    if skipped:
        notes.append(f"{skipped} rows without a text or label are left out")
    return LabelledSet(
        name=title,
        classnames=assembled.classnames,
        licence=hub_datasets.licence_of(files),
        citation=files.see,
        revision=files.revision,
        source=files.source,
        parts=assembled.parts,
        skipped=skipped,
        flags=(*flags, *assembled.flags, *many_left_out(sum(map(len, rows.values())), skipped)),
        notes=tuple(f"{title}: {note}" for note in (*notes, *assembled.notes)),
        found=sum(map(len, rows.values())) + skipped,
        left_out={"without a text or label": skipped},
    )


DATASET = open_hf
