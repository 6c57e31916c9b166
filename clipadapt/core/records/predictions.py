"""The predictions of a run: scores of every evaluated example, and their file format ``predictions.npz``."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import DamagedError
from clipadapt.core.records.reading import RERUN
from clipadapt.core.scoring.scores import LabelledScores

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray


MAX_SCORES: Final = 10_000_000
"""Above this number of scores, only the highest ones of each example are stored."""
KEPT_SCORES: Final = 20


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Scores of every evaluated example, in full or in a short form.

    Attributes:
        ids: ``n`` unique ids.
        labels: Class indices, shape ``(n,)``, int64.
        scores: Shape ``(n, C)``, float32; in the short form the ``k`` highest of each example, descending.
        classes: Short form only: class of each score, shape ``(n, k)``, int32.
        label_scores: Short form only: score of the label, shape ``(n,)``.
        logsumexp: Short form only: logsumexp over all ``C`` scores, shape ``(n,)``.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32] | None = None
    label_scores: NDArray[np.float32] | None = None
    logsumexp: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        if len(set(self.ids)) != n:
            raise ValueError("ids are not unique")
        if self.labels.shape != (n,) or self.labels.dtype != np.int64:
            raise ValueError(
                f"labels must be int64 ({n},), got {self.labels.dtype} {self.labels.shape}"
            )
        if self.scores.ndim != 2 or len(self.scores) != n or self.scores.dtype != np.float32:
            raise ValueError(
                f"scores must be float32 ({n}, C), got {self.scores.dtype} {self.scores.shape}"
            )

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Class of the highest score, the first of equal ones, shape ``(n,)``."""
        return self.scored().predicted

    def scored(self, temperature: float = 1.0, *, sigmoid: bool = False) -> LabelledScores:
        """Return the scores as metrics read them, with probabilities at a temperature: a softmax, or sigmoids."""
        return LabelledScores(
            self.labels,
            self.scores,
            temperature,
            self.classes,
            self.label_scores,
            self.logsumexp,
            sigmoid,
        )

    def confusions(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the non-zero cells of the confusion matrix: true classes, predicted classes and counts.

        Sparse, because the dense matrix of 20,000 classes has 400 million cells.
        """
        predicted = self.predicted
        width = int(max(predicted.max(initial=0), self.labels.max(initial=0))) + 1
        cells, counts = np.unique(self.labels * width + predicted, return_counts=True)
        return cells // width, cells % width, counts

    def shortened(self, most: int = MAX_SCORES, keep: int = KEPT_SCORES) -> Predictions:
        """Return the short form if there are more than ``most`` scores, else these predictions.

        Args:
            most: Largest number of scores (examples times classes) that is stored in full.
            keep: Scores per example in the short form; ties are in the order of their classes.
        """
        if self.classes is not None or self.scores.size <= most or self.scores.shape[1] <= keep:
            return self
        from scipy.special import logsumexp

        n, n_classes = self.scores.shape
        classes = np.empty((n, keep), dtype=np.int32)
        sums = np.empty(n, dtype=np.float32)
        step = max(1, 1_000_000 // n_classes)  # bounds the memory of the sort
        for i in range(0, n, step):
            block = self.scores[i : i + step]
            classes[i : i + step] = np.argsort(-block, axis=1, kind="stable")[:, :keep]
            sums[i : i + step] = logsumexp(block.astype(np.float64), axis=1)
        return Predictions(
            self.ids,
            self.labels,
            np.take_along_axis(self.scores, classes.astype(np.int64), axis=1),
            classes,
            self.scores[np.arange(n), self.labels],
            sums,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays as stored, little-endian."""
        out: dict[str, NDArray[Any]] = {
            "ids": np.asarray(self.ids, dtype=np.str_),
            "labels": self.labels,
            "scores": self.scores,
        }
        for name in ("classes", "label_scores", "logsumexp"):
            value = getattr(self, name)
            if value is not None:
                out[name] = value
        return {k: np.ascontiguousarray(v, v.dtype.newbyteorder("<")) for k, v in out.items()}

    def sha256(self) -> str:
        """Return the hash of the content: names, dtypes, shapes and bytes of the arrays."""
        total = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            total.update(array.tobytes())
        return total.hexdigest()

    def write(self, path: Path) -> None:
        """Write an ``.npz`` file; equal content gives equal bytes, as it holds no time stamps."""
        write_arrays(path, self.arrays())

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Predictions:
        """Return the predictions in the content of a file that :meth:`write` wrote; ``path`` is for messages only.

        Raises:
            DamagedError: If the content is not such a file.
        """
        try:
            arrays = arrays_in(content)
            return cls(tuple(arrays.pop("ids").tolist()), **arrays)
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as err:
            raise DamagedError(f"{path} is damaged: {err}", hint=RERUN) from err


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to an ``.npz`` file without time stamps."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in sorted(arrays.items()):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            # Ids are padded to the longest; compressing scores takes seconds and saves little.
            entry.compress_type = zipfile.ZIP_DEFLATED if name == "ids" else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def arrays_in(content: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file; no array is allocated larger than its bytes in the file.

    Raises:
        ValueError: If a header claims a size that its entry does not have, or an object dtype.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            # Deflate compresses to a thousandth at most.
            if entry.file_size > 1100 * entry.compress_size + 1024:
                raise ValueError(f"{entry.filename} claims {entry.file_size} bytes")
            data = _stored(content, entry) or archive.read(entry)
            if len(data) != entry.file_size or len(data) < max(_BEGIN.values()):
                raise ValueError(f"{entry.filename} claims {entry.file_size} bytes")
            begin = _BEGIN[data[6]] + int.from_bytes(data[8 : _BEGIN[data[6]]], "little")
            shape, by_columns, dtype = _header(bytes(data[:begin]))
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or min(shape, default=0) < 0:
                raise ValueError(f"{entry.filename} holds {dtype} {shape}")
            if size != len(data) - begin:
                raise ValueError(
                    f"{entry.filename} claims {dtype} {shape}, {size} bytes, and has {len(data) - begin}"
                )
            flat = np.frombuffer(bytearray(data[begin:]), dtype)
            arrays[entry.filename.removesuffix(".npy")] = flat.reshape(
                shape, order="F" if by_columns else "C"
            )
    return arrays


_BEGIN: Final = {1: 10, 2: 12}
"""Where the text of an array's header begins, by its version."""
_LOCAL: Final = 30
"""Bytes of an entry's own header before its name."""


def _stored(content: bytes, entry: zipfile.ZipInfo) -> memoryview | None:
    """Return an entry that is not compressed, without a copy; its bytes are part of the file's sha256."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return None
    at = entry.header_offset
    name, extra = (int.from_bytes(content[at + i : at + i + 2], "little") for i in (26, 28))
    begin = at + _LOCAL + name + extra
    return memoryview(content)[begin : begin + entry.file_size]


@lru_cache(
    64
)  # those of most runs are equal, and numpy takes as long for one as for reading all arrays
def _header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and dtype of an array, from the bytes before its data."""
    file = io.BytesIO(header)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    return read(file)
