"""Pictures and texts of examples on the page, looked up by id in the dataset that the record names."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import ClipAdaptError, RecordError
from clipadapt.core.api.registry import DATASETS, track_of

if TYPE_CHECKING:
    from clipadapt.core.api.data import Split
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.records.schema import RunRecord

MOST_BYTES: Final = 6 << 20
"""Size of all pictures of a page."""
PIXELS: Final = 96
"""Side of a picture; the page shows it smaller, for sharp screens."""
LETTERS: Final = 320


class Album:
    """Examples by id; each picture is embedded in the page once."""

    def __init__(self, progress: Progress, *, wanted: bool) -> None:
        self.progress = progress
        self.wanted = wanted
        self.notes: list[str] = []
        self._splits: dict[tuple[str, str], tuple[Split[Any], dict[str, int]] | None] = {}
        self._bytes = 0
        self._pictures: dict[tuple[str, str], tuple[str, str]] = {}

    def show(self, record: RunRecord, key: str) -> tuple[str, str]:
        """Return the CSS class of an example's picture and its text; either may be empty."""
        if not self.wanted:
            return "", ""
        where = record.evaluation.dataset, record.evaluation.split
        if where not in self._splits:
            self._splits[where] = self._open(record)
        found = self._splits[where]
        if found is None or key not in found[1]:
            return "", ""
        try:
            example = found[0].inputs.examples[found[1][key]]
        except ClipAdaptError as err:
            self.notes.append(err.problem)
            return "", ""
        if isinstance(example, str):
            return "", example if len(example) <= LETTERS else f"{example[: LETTERS - 1]}…"
        return self._picture((where[0], key), example), ""

    def style(self) -> str:
        """Return a style sheet with every picture once."""
        return "".join(
            f".{name}{{background-image:url(data:image/jpeg;base64,{data})}}\n"
            for name, data in self._pictures.values()
        )

    def _picture(self, key: tuple[str, str], image: Any) -> str:
        if key not in self._pictures:
            if self._bytes >= MOST_BYTES or not hasattr(image, "thumbnail"):
                return ""
            data = jpeg(image, PIXELS, quality=60)
            self._pictures[key] = f"t{len(self._pictures)}", data
            self._bytes += len(data)
        return self._pictures[key][0]

    def _open(self, record: RunRecord) -> tuple[Split[Any], dict[str, int]] | None:
        """Return the evaluated split of a record and the index of each id; None, with a note, if it is not there."""
        evaluated = record.evaluation
        try:
            for name in _names_given(record):
                resolved = DATASETS.resolve(name, track_of(record.method.name))
                options: Any = record.config.get("data")
                skip = isinstance(options, dict) and options.get("on_bad_image") == "skip"
                dataset = resolved.provider(
                    resolved.argument, DatasetOptions("skip" if skip else "error")
                )
                if dataset.name != evaluated.dataset:
                    continue
                if dataset.name == record.data.name and dataset.fingerprint != record.data.sha256:
                    raise RecordError("it has changed since the run")
                split = dataset.split(evaluated.split)  # type: ignore[arg-type]
                return split, {key: i for i, key in enumerate(split.inputs.ids)}
            raise RecordError("the record names no dataset of that name")
        except (ClipAdaptError, OSError, ImportError) as err:
            problem = err.problem if isinstance(err, ClipAdaptError) else str(err)
            note = f"{evaluated.dataset} cannot be opened here, its examples are named by id: {problem}"
            self.notes.append(note)
            self.progress.note(f"note: {note}")
            return None


def jpeg(image: Any, side: int, quality: int = 70) -> str:
    """Return a thumbnail of an image, at most ``side`` pixels wide and high, as base64."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=quality)
    return base64.b64encode(out.getvalue()).decode()


def _names_given(record: RunRecord) -> list[str]:
    """Return the datasets that a record's config names, as ``--dataset`` takes them."""
    given: Any = record.config
    names = [given.get("data", {}).get("name")]
    names += [also.get("dataset") for also in given.get("evaluation", {}).get("also", ())]
    return [n for n in names if isinstance(n, str)]
