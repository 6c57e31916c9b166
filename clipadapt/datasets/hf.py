"""``hf:REPO[@REVISION]``: any image classification dataset of the Hugging Face Hub.

The image and label columns are found by their type and by common names, or given by the user:
``hf:ORG/NAME?image=COL&label=COL``; ``config=NAME`` selects one of several configurations. With ``HF_HUB_OFFLINE=1``,
only the hub cache is used. Class names are those declared by the label column, with ``_`` replaced by a space (WordNet
ids become ImageNet's class names), or else the values in the column.

=========================  ============================================================================
published                  used
=========================  ============================================================================
train, val and test        unchanged
train and test             val is a fixed tenth of train
train and val              test is the published val, val a fixed tenth of train
one split, not val, test   60/20/20, as ``folder:`` does
test, or val and test      unchanged; val alone is test too
=========================  ============================================================================

New splits are made by the hash of each image's bytes, so identical images are in the same split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.columns import split_hub_name
from clipadapt.core.data.labelled import (
    LabelledSet,
    make_split,
    match_splits,
    natural_key,
    split_named,
)
from clipadapt.core.files import hub_datasets
from clipadapt.datasets import _hub
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.datasets._images import in_threads, readable
from clipadapt.datasets._published import arranged
from clipadapt.datasets._report import Report
from clipadapt.datasets._wnid import prompt_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName

OPTIONS: Final = ("image", "label", "config")
WAY_OUT: Final = (
    "without a network, use your own images with folder:PATH, or openmoji:color or openmoji:line"
)


def open_hf(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open a dataset of the hub; every image is hashed once.

    Args:
        argument: ``ORG/NAME`` or ``ORG/NAME@REVISION``, optionally with ``?image=COL&label=COL&config=NAME``.
        options: With ``on_bad_image="skip"``, unreadable images and rows without a label are left out.

    Raises:
        DataError: If the dataset is not available or cannot be read, or has no usable images and labels.
    """
    repo, revision, title, query = split_hub_name(argument, OPTIONS)
    files = hub_datasets.dataset(
        repo, revision, _hub.PATTERNS, way_out=WAY_OUT, config=query.get("config")
    )
    tables = _hub.read(files.folder, title, **query)
    report = Report(notes=[files.note] if files.note else [])
    published, unknown = match_splits(
        title,
        {
            found: not split.labels or any(v is not None for v in split.labels)
            for found, split in tables.splits.items()
        },
    )
    report.notes += unknown
    classes = tables.declared or _values(title, tables, published.values())
    parts, contents = _parts(title, tables, published, classes, options)
    served = arranged(parts, contents)
    report.classes(prompt_names(classes), served.parts)
    report.duplicates(
        (contents[key], split, key, int(label))
        for split, part in served.parts.items()
        if split not in served.aliases
        for key, label in zip(part.inputs.ids, part.labels, strict=True)
    )
    n_rows = sum(len(tables.splits[found].labels) for found in published.values())
    skipped = n_rows - sum(map(len, parts.values()))
    data = LabelledSet(
        name=title,
        classnames=prompt_names(classes),
        templates=PHOTO_TEMPLATES,
        licence=hub_datasets.licence_of(files),
        citation=files.see,
        revision=files.revision,
        source=files.source,
        parts=served.parts,
        aliases=served.aliases,
        skipped=skipped,
        keys=classes,
        flags=served.flags,
    )
    return report.attached(data, {"unreadable images or rows without a label": skipped})


def _parts(
    title: str,
    tables: _hub.HubTables,
    published: Mapping[SplitName, str],
    classes: tuple[str, ...],
    options: DatasetOptions,
) -> tuple[dict[SplitName, Split[Image]], dict[str, str]]:
    """Return the published splits that are not empty, and the hash of each image's bytes by id."""
    parts: dict[SplitName, Split[Image]] = {}
    contents: dict[str, str] = {}
    for split, found in published.items():
        part, hashes = _rows(tables.splits[found], found, title, classes, options)
        contents |= hashes
        if len(part):
            parts[split] = part
    if not parts:
        raise DataError(f"{title} has no usable image")
    return parts, contents


def _values(title: str, tables: _hub.HubTables, used: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct values of a label column that declares no names, numbers in numerical order."""
    values = [v for found in used for v in tables.splits[found].labels if v is not None]
    distinct = set(map(_text, values))
    if len(distinct) > 10 and len(distinct) > len(values) / 2:
        raise DataError(
            f"{title}: column '{tables.label}' has {len(distinct)} distinct values in {len(values)} rows; "
            "these are not classes",
            hint="name the right column by adding ?label=COLUMN to the dataset's name",
        )
    if len(distinct) < 2:
        raise DataError(
            f"{title}: all {len(values)} rows have the same label in column '{tables.label}', '{min(distinct)}'; "
            "at least two classes are needed"
        )
    if all(isinstance(v, int) for v in values):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct, key=natural_key))


def _text(value: Any) -> str:
    return str(int(value) if isinstance(value, bool) else value).strip()


def _rows(
    table: _hub.HubSplit,
    found: str,
    title: str,
    classes: tuple[str, ...],
    options: DatasetOptions,
) -> tuple[Split[Image], dict[str, str]]:
    """Return the usable rows of a published split, and the hash of each image's bytes by id."""
    prefix = split_named(found) or found
    index = {name: i for i, name in enumerate(classes)}
    missing = [i for i, value in enumerate(table.labels) if value is None]
    keep = np.ones(len(table.labels), dtype=bool)
    if options.on_bad_image == "skip":
        keep[:] = readable(table.images)
        keep[missing] = False
    elif missing:
        raise DataError(
            f"{title}, split {found}, row {missing[0] + 1}: there is no label "
            f"(cases: {len(missing)} of {len(table.labels)})",
            hint="leave such rows out with --on-bad-image skip",
        )
    rows = np.flatnonzero(keep)
    labels = [0 if v is None else index[v if v in index else _text(v)] for v in table.labels]
    ids = [f"{prefix}/{i:06d}" for i in range(len(labels))]
    part = make_split(table.images, ids, labels, prompt_names(classes)).take(rows)
    hashes = in_threads(table.images.content, rows.tolist())
    return part, dict(zip(part.inputs.ids, hashes, strict=True))


DATASET = open_hf
