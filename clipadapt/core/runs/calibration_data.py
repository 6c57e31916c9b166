"""Labelled examples that a user gives to calibrate the prediction sets of a run."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.api.data import DatasetOptions, Split
from clipadapt.core.api.errors import ClipAdaptError, DataError, did_you_mean
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import DATASETS, track_of, tracks
from clipadapt.core.data.draws import joined
from clipadapt.core.data.labelled import class_key
from clipadapt.core.data.leakage import find_copies, find_exact_copies
from clipadapt.core.runs.reuse import training_split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clipadapt.core.api.data import Dataset, Inputs, OnBadImage
    from clipadapt.core.runs.inference import LoadedRun


def open_labelled(run: LoadedRun, name: str) -> tuple[Split[Any], tuple[str, ...]]:
    """Return the labelled examples of a dataset, with labels that count the classes of a run, and their caveats.

    Of a dataset with splits these are val; of one without they are all.

    Raises:
        DataError: If there are no such examples, a class is not one of the run, or the run is trained or evaluated
            on one of them.
    """
    track = track_of(run.record.method.name)
    resolved = DATASETS.resolve(_with_scheme(name, track), track)
    dataset = resolved.provider(resolved.argument, DatasetOptions())
    if dataset.fingerprint == run.record.data.sha256:
        raise DataError(
            f"'{name}' is the run's own dataset",
            hint="leave out --calibrate-on to use its val split, or give other examples",
        )
    parts = [dataset.split(s) for s in dataset.splits]
    if getattr(dataset, "own_splits", True) and "split_by_hash" not in dataset.flags:
        if "val" not in dataset.splits:
            raise DataError(
                f"'{name}' has the splits {', '.join(dataset.splits)}; sets are calibrated on val, never on test",
                hint="give the folder or file with the calibration examples alone",
            )
        parts = [dataset.split("val")]
    own = {class_key(c): i for i, c in enumerate(run.classifier.classnames)}
    unknown = [c for c in dataset.classnames if class_key(c) not in own]
    if unknown:
        known = run.classifier.classnames
        raise DataError(
            f"'{name}' has the class '{unknown[0]}', which the run does not know"
            f"{did_you_mean(unknown[0], known)}",
            hint=f"name the classes like those of the run: {', '.join(known[:10])}"
            f"{' ...' if len(known) > 10 else ''}",
        )
    columns = np.array([own[class_key(c)] for c in dataset.classnames])
    whole = reduce(joined, parts)
    caveats = _check_copies(run, name, whole.inputs)
    return Split(whole.inputs, columns[whole.labels], tuple(run.classifier.classnames)), caveats


def _check_copies(run: LoadedRun, name: str, inputs: Inputs[Any]) -> tuple[str, ...]:
    """Look for examples that a run is trained or evaluated on, by content, and return the caveats.

    Raises:
        DataError: If there is one.
    """
    near, unchecked = False, False
    for held_out in _evaluated(run):
        if held_out is None:
            unchecked = True
            continue
        found = find_copies(held_out, inputs)
        equal = np.flatnonzero(found.exact >= 0)
        if equal.size:
            own, given = held_out.ids[found.exact[equal[0]]], inputs.ids[equal[0]]
            raise DataError(
                f"{equal.size} of the {len(inputs)} examples of '{name}' are examples that the run is evaluated on "
                f"('{given}' is '{own}'); sets are calibrated on val, never on test",
                hint="give other examples, or leave out --calibrate-on to use the run's val split",
            )
        near = near or (found.near is not None and bool((found.near >= 0).any()))
    unchecked = not _require_untrained(run, name, inputs) or unchecked
    return (*(["copies"] if near else []), *(["unchecked"] if unchecked else []))


def _require_untrained(run: LoadedRun, name: str, inputs: Inputs[Any]) -> bool:
    """Check that a run is not trained on an example; return False if its training examples are not here.

    Raises:
        DataError: If it is. Its confidence in these examples is higher than in others, so sets would be too small.
    """
    data: Any = run.record.config["data"]
    if not run.record.method.uses_train:
        return True
    if not _may_open(run, str(data["name"])):
        return False
    try:
        train = training_split(run.record, Silent()).inputs
    except ClipAdaptError:
        return False
    equal = find_exact_copies(train, inputs)
    found = np.flatnonzero(equal >= 0)
    if found.size:
        own, given = train.ids[equal[found[0]]], inputs.ids[found[0]]
        raise DataError(
            f"{found.size} of the {len(inputs)} examples of '{name}' are examples that the run is trained on "
            f"('{given}' is '{own}'); sets calibrated on them are too small for new inputs",
            hint="give other examples, or leave out --calibrate-on to use the run's val split",
        )
    return True


def _evaluated(run: LoadedRun) -> Iterator[Inputs[Any] | None]:
    """Yield the examples on which a run and others of its fit are evaluated; None for data that are not here."""
    record = run.record
    config: Any = record.config
    evaluation = config.get("evaluation", {})
    asked = [("", evaluation.get("split", "test")), ("", "test"), ("", record.evaluation.split)]
    asked += [(a.get("dataset") or "", a.get("split", "test")) for a in evaluation.get("also", ())]
    home = str(config["data"]["name"])
    opened: dict[str, Dataset[Any] | None] = {}
    for dataset, split in dict.fromkeys(asked):
        name = dataset or home
        if name not in opened:
            opened[name] = _open_again(run, name, config["data"].get("on_bad_image", "error"))
            data = opened[name]
            if data is None or (name == home and data.fingerprint != record.data.sha256):
                yield None
        data = opened[name]
        whole = split == "all" and data is not None and getattr(data, "whole", None) is not None
        if data is None or (name == home and split in {"train", "val"} and split != asked[0][1]):
            continue
        if whole or split in data.splits:
            yield data.split(split).inputs


def _may_open(run: LoadedRun, name: str) -> bool:
    """Return whether a dataset of a run may be opened: nothing is downloaded for a run from elsewhere."""
    if run.folder.name == run.record.run_id:
        return True
    try:
        argument = DATASETS.resolve(name, track_of(run.record.method.name)).argument
    except ClipAdaptError:
        return False
    return bool(argument) and Path(argument.partition("?")[0]).expanduser().exists()


def _open_again(run: LoadedRun, name: str, on_bad: OnBadImage) -> Dataset[Any] | None:
    """Return a dataset of a run, None if it is not here."""
    if not _may_open(run, name):
        return None
    try:
        resolved = DATASETS.resolve(name, track_of(run.record.method.name))
        found: Dataset[Any] = resolved.provider(resolved.argument, DatasetOptions(on_bad))
    except ClipAdaptError:
        return None
    return found


def _with_scheme(name: str, track: str) -> str:
    """Return a dataset's name; a path alone is a folder of images, or a table.

    Raises:
        DataError: If a path does not exist.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return f"{tracks()[track].own_folder}:{name}"
    if path.is_file():
        return f"{tracks()[track].own_file}:{name}"
    if "/" in name and ":" not in name:
        raise DataError(
            f"there is no file or folder '{name}'", hint="give labelled examples to --calibrate-on"
        )
    return name
