"""``csv:PATH``: your own images, listed with their labels in a .csv, .tsv, .parquet or .jsonl.

``PATH`` is one table with the columns ``path`` and ``label``, or a folder with ``train.csv``, ``val.csv`` and
``test.csv`` (any of the three). Paths are relative to the folder of the table, or absolute. A table is split by its
column ``split``, or by another column that only contains names of splits. Without such a column it is split 60/20/20 by
the hash of each file's bytes, as ``folder:`` does.

The columns are found by their usual names or given as ``csv:PATH?image=COL&label=COL``. Further options are
``split=COL``, ``encoding=NAME``, ``sep=CHARACTER`` and ``quote=none``, as in textsent. Classes are in natural order (1,
2, 10) and named as in ``folder:``.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.labelled import LabelledSet, make_split, split_evenly
from clipadapt.core.data.published_draws import first_few
from clipadapt.core.data.table_rows import assemble
from clipadapt.core.data.table_splits import Columns, read_rows
from clipadapt.datasets._hub import LABEL_COLUMNS
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.datasets._images import ImageFiles, in_threads
from clipadapt.datasets._published import SHARES, by_split, without_unreadable
from clipadapt.datasets._report import Report
from clipadapt.datasets._wnid import prompt_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName
    from clipadapt.core.data.table_rows import Row
    from clipadapt.core.data.table_splits import LabelledRows

IMAGES: Final = Columns(
    "image",
    (
        *("path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path"),
        *("img_path", "image_file", "image_name", "img", "images", "picture", "photo"),
    ),
    LABEL_COLUMNS,
)
INCOMPLETE: Final = "rows without an image or label"
MISSING: Final = "missing images"
JOINED: Final = "rows joined to others by quotation marks"


def open_csv(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open a table of images, or a folder of tables; every file is hashed once.

    Args:
        argument: ``PATH``, or ``PATH?image=COL&label=COL`` with the options above.
        options: With ``on_bad_image="skip"`` rows without an image or label, missing files and unreadable images are
            left out; every image is decoded once.

    Raises:
        DataError: If a file, column, image or label is missing or invalid; the message says where.
    """
    skip = options.on_bad_image == "skip"
    read = read_rows(argument, IMAGES, skip=skip)
    table = read.path.resolve()  # so that "." has a name
    root, names = _located(read)
    rows, missing = _present(read, root, names, skip=skip)
    assembled = assemble(rows, what="image", natural=True, max_distinct=1)
    classnames = prompt_names(assembled.classnames)
    left_out = Counter({INCOMPLETE: read.n_skipped, MISSING: missing, JOINED: read.n_joined})
    parts: dict[SplitName, Split[Image]] = {}
    contents: dict[str, str] = {}
    for split, part in assembled.parts.items():
        paths = [names[key] for key in part.inputs.ids]
        files = ImageFiles(root, paths)
        whole = make_split(files, paths, part.labels, classnames)
        parts[split] = without_unreadable(whole, options, left_out)
        contents |= zip(paths, in_threads(files.content, range(len(files))), strict=True)
    parts = {split: part for split, part in parts.items() if len(part)}
    if not parts:
        raise DataError(f"none of the {len(contents)} images in '{read.path.name}' can be decoded")
    kept = parts["train"] if read.whole else None
    if kept is not None:
        where = split_evenly([contents[key] for key in kept.inputs.ids], kept.labels, SHARES)
        parts = by_split(kept, where)
    report = Report(notes=[*read.notes, *assembled.notes])
    report.classes(assembled.classnames, parts)
    report.duplicates(
        (contents[key], split, key, int(label))
        for split, part in parts.items()
        for key, label in zip(part.inputs.ids, part.labels, strict=True)
    )
    if read.whole:
        report.empty_splits(parts)
    data = LabelledSet(
        name=f"csv:{table.name}",
        classnames=classnames,
        templates=PHOTO_TEMPLATES,
        licence="unknown (the user's own images)",
        citation="none (the user's own images)",
        source=f"'{table.name}'",
        parts=parts,
        keys=assembled.classnames,
        flags=("split_by_hash",) if read.whole else (),
        whole=kept,
    )
    return report.attached(data, left_out)


def _located(read: LabelledRows) -> tuple[Path, dict[str, str]]:
    """Return a folder that contains all images, and the path of each row's image below it.

    The folder is that of the table, unless a path leads out of it.

    Raises:
        DataError: If an image is listed twice.
    """
    base = Path(os.path.normpath(Path.cwd() / _folder(read)))
    rows = [row for found in read.rows.values() for row in found]
    paths = [Path(os.path.normpath(base / _plain(row.value))) for row in rows]
    first: dict[Path, Row] = {}
    twice = [
        (first[path], row)
        for path, row in zip(paths, rows, strict=True)
        if first.setdefault(path, row) is not row
    ]
    if twice:
        one, other = twice[0]
        raise DataError(
            f"'{one.value}' is listed twice: {one.where}, and {other.where} (cases: {len(twice)})",
            hint="list each image once, with one label and in one split",
        )
    root = base
    if not all(path.is_relative_to(base) for path in paths):
        root = Path(os.path.commonpath([base, *(path.parent for path in paths)]))
    named = (path.relative_to(root).as_posix() for path in paths)
    return root, {row.key: name for row, name in zip(rows, named, strict=True)}


def _folder(read: LabelledRows) -> Path:
    return read.path if read.path.is_dir() else read.path.parent


def _plain(path: str) -> str:
    """Return a path as this system writes it: tables from Windows have backslashes."""
    path = path.strip()
    return path if os.sep == "\\" or "/" in path else path.replace("\\", "/")


def _present(
    read: LabelledRows, root: Path, names: Mapping[str, str], *, skip: bool
) -> tuple[dict[SplitName, list[Row]], int]:
    """Return the rows whose images exist, and the number of others.

    Raises:
        DataError: If images are missing and are not to be skipped, or all are missing.
    """
    rows = [row for found in read.rows.values() for row in found]
    there = in_threads(lambda row: _is_file(root / names[row.key]), rows)
    absent = [row for row, is_there in zip(rows, there, strict=True) if not is_there]
    if absent and (not skip or len(absent) == len(rows)):
        raise DataError(
            f"{len(absent):,} of the {len(rows):,} images in '{read.path.name}' do not exist: "
            f"{first_few([row.value for row in absent])} (the first: {absent[0].where})",
            hint=f"paths are relative to the folder of the table, '{_folder(read)}', or absolute; leave missing images "
            "out with --on-bad-image skip (run: --set data.on_bad_image=skip)",
        )
    gone = {row.key for row in absent}
    kept = {split: [r for r in found if r.key not in gone] for split, found in read.rows.items()}
    return kept, len(absent)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name that is too long
        return False


DATASET = open_csv
