"""``wds:PATH``: a dataset in the webdataset layout of CLIP_benchmark, read without unpacking.

The folder contains::

    PATH/classnames.txt                              # one name per line, in label order
    PATH/zeroshot_classification_templates.txt       # one template per line, with {c} for the class name; optional
    PATH/test/0.tar, PATH/test/1.tar, ...            # s0000000.webp (or png, jpg) and s0000000.cls with the label
    PATH/test/nshards.txt                            # number of tar files
    PATH/train/...                                   # the same; any of train, val and test

The first template is the single one; ``--templates clip`` uses them all, as CLIP_benchmark does. The datasets at
``huggingface.co/clip-benchmark`` have this layout. A missing val is a fixed tenth of train, a published val without a
test is ``test``, and a lone train is split 60/20/20, each by the hash of an image's key.

References:
    https://github.com/LAION-AI/CLIP_benchmark, ``build_wds_dataset`` in ``clip_benchmark/datasets/builder.py``
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.user_input import read_text, shown
from clipadapt.core.data.labelled import LabelledSet, make_split, natural_key, split_named
from clipadapt.core.data.published_draws import first_few
from clipadapt.core.data.templates import MAX_LIST_BYTES
from clipadapt.datasets._folders import existing_folder, subfolders
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.datasets._published import arranged, without_unreadable
from clipadapt.datasets._report import Report
from clipadapt.datasets._shards import ShardImages, read_index

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName
    from clipadapt.datasets._shards import Sample

HINT: Final = "wds:PATH takes PATH/classnames.txt and PATH/test/0.tar, PATH/test/1.tar, ... (also train and val)"
CLASSNAMES: Final = "classnames.txt"
TEMPLATES: Final = "zeroshot_classification_templates.txt"
UNLABELLED: Final = "images without a label"
NUMBER: Final = re.compile(r"[0-9]{1,9}")


def open_wds(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open a folder of tar files; their headers and labels are read, and no image.

    Args:
        argument: The folder.
        options: With ``on_bad_image="skip"`` images without a label are left out, and every image is decoded once, to
            find the unreadable ones.

    Raises:
        DataError: If files are missing, a tar file is not complete, or a label is missing or not a class.
    """
    if "://" in argument:
        raise DataError(
            f"wds: reads a folder, not an address: {shown(argument)}",
            hint="download its files, for example with 'hf download --repo-type dataset', and write wds:PATH",
        )
    root = existing_folder(argument, "wds", archive=HINT)
    folders = _split_folders(root)
    _require_labels(root)
    classnames = _classnames(root)
    templates = _templates(root)
    left_out: Counter[str] = Counter()
    published: dict[SplitName, Split[Image]] = {}
    for split, folder in folders.items():
        part = _part(folder, split, classnames, options, left_out)
        published[split] = without_unreadable(part, options, left_out)
    train = published.get("train")
    keys = () if train is None else train.inputs.ids
    served = arranged(published, {k: hashlib.sha256(k.encode()).hexdigest() for k in keys})
    report = Report()
    report.classes(classnames, served.parts)
    if not templates:
        report.notes.append(f"there is no {TEMPLATES}; the template is '{PHOTO_TEMPLATES[0]}'")
    data = LabelledSet(
        name=f"wds:{root.resolve().name}",
        classnames=classnames,
        templates=templates[:1] or PHOTO_TEMPLATES,
        template_sets={"clip": templates} if templates else {},
        licence="unknown (see the source of the files)",
        citation="none (see the source of the files)",
        source=f"the folder '{root.resolve().name}'",
        parts=served.parts,
        aliases=served.aliases,
        flags=served.flags,
    )
    return report.attached(data, left_out)


def _split_folders(root: Path) -> dict[SplitName, Path]:
    """Return the folder of each split.

    Raises:
        DataError: If there is none, or two for one split.
    """
    found: dict[SplitName, Path] = {}
    inside = subfolders(root)
    for name in inside:
        split = split_named(name)
        if split is None or not any((root / name).glob("*.tar")):
            continue
        if split in found:
            raise DataError(
                f"'{root}' has more than one folder for the split '{split}': {found[split].name}, {name}",
                hint="move one of them elsewhere",
            )
        found[split] = root / name
    if not found:
        raise DataError(
            f"'{root}' has no folder train, val or test with tar files; its folders: {', '.join(inside[:8]) or 'none'}",
            hint=HINT,
        )
    return found


def _require_labels(root: Path) -> None:
    """Raise if the dataset is not one of images with one label each.

    Raises:
        DataError: If ``dataset_type.txt`` states another type.
    """
    path = root / "dataset_type.txt"
    kind = _text(path).strip().lower() if path.is_file() else "classification"
    if kind != "classification":
        raise DataError(
            f"'{root}' is a dataset of the type {shown(kind)}; accepted: classification",
            hint="use a dataset that has one class per image",
        )


def _text(path: Path) -> str:
    return read_text(path, path.name, MAX_LIST_BYTES)


def _classnames(root: Path) -> tuple[str, ...]:
    """Return the class names in label order.

    Raises:
        DataError: If the file is missing, or a line is empty.
    """
    path = root / CLASSNAMES
    if not path.is_file():
        raise DataError(
            f"'{root}' has no {CLASSNAMES}", hint="write one class name per line, in label order"
        )
    names = tuple(line.strip() for line in _text(path).rstrip().split("\n"))
    if "" in names:
        raise DataError(
            f"line {names.index('') + 1} of '{path}' is empty",
            hint="write one class name per line, in label order",
        )
    return names


def _templates(root: Path) -> tuple[str, ...]:
    """Return the templates with ``{}`` for the class name, or none.

    Raises:
        DataError: If one does not have exactly one ``{c}``.
    """
    path = root / TEMPLATES
    if not path.is_file():
        return ()
    lines = [line.strip() for line in _text(path).split("\n") if line.strip()]
    templates = tuple(line.replace("{c}", "{}") for line in lines)
    for line, template in zip(lines, templates, strict=True):
        if template.count("{}") != 1:
            raise DataError(
                f"the template {shown(line)} in '{path}' needs exactly one '{{c}}' for the class name",
                hint="for example 'a photo of a {c}.'",
            )
    return templates


def _shards(folder: Path) -> list[Path]:
    """Return the tar files of a split.

    Raises:
        DataError: If some of those that ``nshards.txt`` counts are missing.
    """
    paths = sorted(folder.glob("*.tar"), key=lambda path: natural_key(path.name))
    count = folder / "nshards.txt"
    if not count.is_file():
        return paths
    stated = _text(count).strip()
    if not NUMBER.fullmatch(stated):
        raise DataError(f"'{count}' contains {shown(stated)}, not a number of tar files")
    n, there = int(stated), {path.name for path in paths}
    # Four more than there are suffice to find the first that are missing, whatever the number says.
    missing = [f"{i}.tar" for i in range(min(n, len(there) + 4)) if f"{i}.tar" not in there]
    if missing:
        n_missing = len(missing) + max(0, n - len(there) - 4)
        raise DataError(
            f"{n_missing} of the {n} tar files that '{count}' counts are not there: {first_few(missing)}",
            hint="download them, or correct the number",
        )
    return [folder / f"{i}.tar" for i in range(n)]


def _part(
    folder: Path,
    split: SplitName,
    classnames: tuple[str, ...],
    options: DatasetOptions,
    left_out: Counter[str],
) -> Split[Image]:
    paths = _shards(folder)
    samples: list[Sample] = []
    shards: list[int] = []
    ids: list[str] = []
    labels: list[int] = []
    for number, path in enumerate(paths):
        found = read_index(path)
        bare = [sample.member for sample in found if sample.label is None]
        if bare and options.on_bad_image == "error":
            raise DataError(
                f"{len(bare)} of the {len(found)} images in '{path}' have no label (.cls): {first_few(bare)}",
                hint="add the labels, or leave such images out with --on-bad-image skip",
            )
        left_out[UNLABELLED] += len(bare)
        for sample in found:
            if sample.label is not None:
                samples.append(sample)
                shards.append(number)
                ids.append(f"{split}/{path.stem}/{sample.key}")
                labels.append(_label(sample, path, classnames))
    if not samples:
        raise DataError(f"the tar files in '{folder}' contain no labelled image")
    images = ShardImages(paths, np.asarray(shards, dtype=np.int32), samples)
    return make_split(images, ids, labels, classnames)


def _label(sample: Sample, path: Path, classnames: tuple[str, ...]) -> int:
    """Return the label of an image.

    Raises:
        DataError: If it is not one of the classes.
    """
    text = (sample.label or b"").decode(errors="replace").strip()
    if not NUMBER.fullmatch(text) or int(text) >= len(classnames):
        raise DataError(
            f"the label of '{sample.key}' in '{path}' is {shown(text)}; accepted: 0 to {len(classnames) - 1}, because "
            f"{CLASSNAMES} has {len(classnames)} names",
            hint=f"correct the label, or {CLASSNAMES}",
        )
    return int(text)


DATASET = open_wds
