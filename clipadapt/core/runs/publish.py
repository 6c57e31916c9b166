"""What of a run is published: its record and its classifier, without paths of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files.checksums import checksums, sealed
from clipadapt.core.records.reading import read_file
from clipadapt.core.records.run_store import CALIBRATION, CLASSIFIER, RECORD, record_text
from clipadapt.core.records.schema import RunRecord
from clipadapt.core.runs.find import find_run
from clipadapt.core.runs.inference import load_run, record_of, saved_classifier

if TYPE_CHECKING:
    from clipadapt.core.api.progress import Progress

CLASSNAMES: Final = "classnames.json"
_PICKLED: Final = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt", ".npy"})
_TEXT: Final = frozenset({".json", ".jsonl", ".txt", ".yaml", ".yml", ".md"})
_ABSOLUTE: Final = r"(?:~|[A-Za-z]:)?[/\\](?![/\\])"
# In a sentence: at the start, or after a space, quote, bracket or the colon of a scheme; not a URL.
_PATH: Final = re.compile(
    rf"(?<![^\s:'\"=(,\[]){_ABSOLUTE}[^\s'\",)\]]*[/\\]([^/\\\s'\",)\]]+)[/\\]?"
)
_WHOLE: Final = re.compile(rf"((?:[\w-]+:)?){_ABSOLUTE}.*[^/\\\s][/\\]?")


@dataclass(frozen=True, slots=True)
class Publication:
    """The files of a run to publish.

    Attributes:
        record: The record as it is published.
        classnames: ``C`` class names, in the order of the scores.
        files: Content, or the path of a local file, by published path; the card is not among them.
    """

    record: RunRecord
    classnames: tuple[str, ...]
    files: dict[str, bytes | Path]


def prepare(run_dir: Path, *, track: str, progress: Progress | None = None) -> Publication:
    """Return what of a run is published.

    The record keeps its run id; paths of this machine become names, and the examples and their predictions stay here.

    Args:
        run_dir: Folder of the run.
        track: Refuse runs of other tracks.
        progress: Where bars are shown.

    Raises:
        RecordError: If there is no such run, it failed, its classifier is missing or damaged, its model is a folder or
            file that others do not have, or a file would disclose a path of this machine.
        ConfigError: If it is of another track.
    """
    run_dir = find_run(run_dir, progress)
    record = record_of(run_dir, track)
    _refuse_local_model(record, run_dir)
    folder, owner = saved_classifier(record, run_dir)
    files: dict[str, bytes | Path] = {}
    for name in checksums(folder):
        if Path(name).suffix.lower() in _PICKLED:
            raise RecordError(
                f"the classifier in '{run_dir}' has a file that may be a pickle, which is not published: {name}",
                hint="let the method save arrays as safetensors and facts as JSON",
            )
        files[f"{CLASSIFIER}/{name}"] = folder / name
    names = _classnames(record, run_dir, progress)
    listed = (json.dumps(names, ensure_ascii=False, indent=1) + "\n").encode()
    files[CLASSNAMES] = listed
    hashes = {f"{CLASSIFIER}/{name}": digest for name, digest in checksums(folder).items()}
    hashes[CLASSNAMES] = hashlib.sha256(listed).hexdigest()
    calibration = read_file(folder.parent, owner, CALIBRATION)
    if calibration is not None:  # probabilities by class, without the examples' names
        files[CALIBRATION] = calibration
        hashes[CALIBRATION] = hashlib.sha256(calibration).hexdigest()
    published = without_paths(record).model_copy(update={"files": hashes})
    files[RECORD] = sealed(record_text(published))
    _refuse_paths(files, record, run_dir)
    return Publication(published, names, files)


def without_paths(record: RunRecord) -> RunRecord:
    """Return a record in which every absolute path is reduced to the name of its file or folder."""
    plain: dict[str, Any] = record.model_dump(mode="json")
    plain["environment"]["folder"] = None
    kept = {"per_class", "evaluation"}  # class names and templates are not paths
    return RunRecord.model_validate({k: v if k in kept else _scrub(v) for k, v in plain.items()})


def _scrub(value: Any) -> Any:
    if isinstance(value, dict):
        return {_scrub(key): _scrub(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_scrub(inner) for inner in value]
    if not isinstance(value, str):
        return value
    whole = _WHOLE.fullmatch(value)
    if whole and not re.search(r"\s/", value):
        return whole[1] + re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return _PATH.sub(r"\1", value)


def _refuse_local_model(record: RunRecord, run_dir: Path) -> None:
    """Refuse a run whose model is a folder or file of this machine: nobody else could load it.

    Raises:
        RecordError: Naming the model.
    """
    if record.model is None or record.model.revision is not None:
        return
    config: Any = record.config
    name = str(config["model"]["name"])
    start = Path(record.environment.folder or ".")
    rest, file = name.partition(":")[2] or name, name.partition("/")[2]
    here = (start / rest).is_dir() or (bool(file) and (start / file).is_file())
    if here or rest.startswith(("/", "~", "./", "../")) or file.startswith(("/", "~")):
        raise RecordError(
            f"the model of the run in '{run_dir}' is on this machine alone: '{record.model.name}'",
            hint="push the model to the hub, and run the experiment with its name there",
        )


def _classnames(record: RunRecord, run_dir: Path, progress: Progress | None) -> tuple[str, ...]:
    facts: Any = record.per_class
    if facts:
        return tuple(map(str, facts["classnames"]))
    return tuple(load_run(run_dir, progress).classifier.classnames)


def _refuse_paths(files: dict[str, bytes | Path], record: RunRecord, run_dir: Path) -> None:
    """Refuse files that hold a path of this machine.

    Raises:
        RecordError: Naming the file.
    """
    private = {str(Path.home()), str(run_dir.resolve()), record.environment.folder or ""}
    marks = [os.fsencode(p.rstrip("/") + "/") for p in private if len(p) > 1]
    for name, content in files.items():
        if isinstance(content, Path):
            if content.suffix not in _TEXT:
                continue
            content = content.read_bytes()
        found = next((mark for mark in marks if mark in content), None)
        if found is not None:
            raise RecordError(
                f"the file {name} of the run in '{run_dir}' holds a path of this machine ({os.fsdecode(found)}...), "
                "which would be published",
                hint="run the experiment with relative paths or names",
            )
