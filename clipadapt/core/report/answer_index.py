"""Answers of runs that are remembered between commands, so that predictions that did not change are not read again.

The index of a folder of runs is one file in the cache folder. For each run it has the predicted class of every example,
with size, times and inode of the predictions and their sha256 at the time they were read. An entry counts only if the
file still has all of them and the record, which is always read, names the same sha256; otherwise the predictions are
read and checked. The index is derived: without it every table is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from clipadapt.core.files.atomic import write_bytes
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.files.identity import TICK_NS
from clipadapt.core.files.locks import locked
from clipadapt.core.records.run_store import PREDICTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.records.schema import RunRecord

SCHEMA: Final = "clipadapt answers 1"
INDEXED: Final = "accuracy"
"""The metric that predicted classes determine and that is remembered."""
MOST_BYTES: Final = 256 << 20
"""Predicted classes that an index holds at most; runs beyond it are read each time."""
WORTH_BYTES: Final = 16 << 20
"""An index is written when at least so many bytes of predictions had to be read."""


class Stamp(NamedTuple):
    """The stat of a file. A change of its content changes the last entry, whatever else is restored."""

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int


class Examples(NamedTuple):
    """What runs on the same examples share: their sorted ids, and their labels."""

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]

    def key(self) -> str:
        """Return the sha256 of both."""
        total = hashlib.sha256(f"{self.ids.dtype.str} {self.ids.shape}\n".encode())
        total.update(self.ids.tobytes())
        total.update(self.labels.tobytes())
        return total.hexdigest()


class _Entry(NamedTuple):
    stamp: Stamp
    sha256: str
    examples: str
    predicted: bytes


def stamp_of(folder: Path) -> Stamp | None:
    """Return the stamp of the predictions in the folder of a run, None if there are none."""
    try:
        now = os.stat(os.path.join(folder, PREDICTIONS))  # noqa: PTH116, PTH118  a path takes twice the time
    except OSError:
        return None
    return Stamp(now.st_size, now.st_mtime_ns, now.st_ino, now.st_ctime_ns)


class AnswerIndex:
    """Predicted classes of the runs below a folder, by the folder of the run.

    Args:
        root: Folder of the runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = str(root / "x")[:-1]
        self._known: dict[str, _Entry] | None = None
        self._new: dict[str, _Entry] = {}
        self._examples: dict[str, Examples] = {}

    def find(self, folder: Path, record: RunRecord) -> tuple[str, Examples, NDArray[Any]] | None:
        """Return the examples of a run, with their key, and the predicted classes; None if they have to be read.

        Args:
            folder: Folder of the run.
            record: Its record, as it is now.
        """
        if self._known is None:
            self._known = self._read()
        entry = self._known.get(self._name(folder))
        if (
            entry is None
            or entry.sha256 != record.files.get(PREDICTIONS)
            or entry.stamp != stamp_of(folder)
        ):
            return None
        examples = self._examples[entry.examples]
        return entry.examples, examples, _unpacked(entry.predicted, len(examples.labels))

    def add(
        self,
        folder: Path,
        record: RunRecord,
        stamp: Stamp | None,
        examples: tuple[str, Examples],
        predicted: NDArray[np.int64],
    ) -> None:
        """Take in what was read.

        Args:
            folder: Folder of the run.
            record: Its record; the predictions matched it.
            stamp: Stamp of the predictions before they were read.
            examples: The examples with their key.
            predicted: Predicted classes in the order of the ids.
        """
        sha256 = record.files.get(PREDICTIONS)
        if stamp is None or sha256 is None:
            return
        if time.time_ns() - max(stamp.mtime_ns, stamp.ctime_ns) < TICK_NS:
            return  # it may change once more without a new stamp
        key, self._examples[key] = examples
        self._new[self._name(folder)] = _Entry(stamp, sha256, key, _packed(predicted))

    def write(self) -> None:
        """Write what is new, if reading it took a while; a cache folder that cannot be written is no error."""
        if sum(entry.stamp.size for entry in self._new.values()) < WORTH_BYTES:
            return
        path = _file(self.root)
        with contextlib.suppress(OSError), locked(path.with_suffix(".lock")):
            there = self._read()  # another process may have written meanwhile
            entries = {k: e for k, e in there.items() if e.stamp == stamp_of(self.root / k)}
            entries |= self._new
            write_bytes(path, _sealed(_bounded(entries), self._examples))
            self._new = {}

    def _name(self, folder: Path) -> str:
        return str(folder).removeprefix(self._prefix)

    def _read(self) -> dict[str, _Entry]:
        """Return the entries of the file; none if there is no file, or it is damaged."""
        try:
            content = _file(self.root).read_bytes()
        except OSError:
            return {}
        body = content[_HEAD:]
        if content[:_HEAD] != _head(body):
            return {}
        entries, examples = _parsed(body)
        self._examples = examples | self._examples
        return entries


def _file(root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:32]
    return cache_dir() / "answers" / f"{name}.arrow"


def _head(body: bytes) -> bytes:
    return f"{SCHEMA} {hashlib.sha256(body).hexdigest()}\n".encode()


_HEAD: Final = len(_head(b""))


def _bounded(entries: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """Return the entries that fit, the latest first."""
    kept, room = {}, MOST_BYTES
    for name, entry in sorted(entries.items(), key=lambda x: -x[1].stamp.mtime_ns):
        room -= len(entry.predicted)
        if room < 0:
            break
        kept[name] = entry
    return kept


def _sealed(entries: Mapping[str, _Entry], examples: Mapping[str, Examples]) -> bytes:
    """Return the content of an index: its sha256, then an Arrow stream."""
    import pyarrow as pa

    keys = list(dict.fromkeys(entry.examples for entry in entries.values()))
    place = {key: i for i, key in enumerate(keys)}
    of_entry = pa.array([place[e.examples] for e in entries.values()], pa.int32())

    def shared(values: list[bytes]) -> Any:
        return pa.DictionaryArray.from_arrays(of_entry, pa.array(values, pa.large_binary()))

    kinds = pa.int64(), pa.int64(), pa.uint64(), pa.int64()
    # ASCII escapes, because ids may hold bytes that are not valid UTF-8; so may names of folders.
    table = pa.table({
        "folder": pa.array([json.dumps(name) for name in entries], pa.string()),
        **{
            name: pa.array([getattr(e.stamp, name) for e in entries.values()], kind)
            for name, kind in zip(Stamp._fields, kinds, strict=True)
        },
        "sha256": pa.array([e.sha256 for e in entries.values()], pa.string()),
        "predicted": pa.array([e.predicted for e in entries.values()], pa.large_binary()),
        "examples": shared([k.encode() for k in keys]),
        "ids": shared([json.dumps(examples[k].ids.tolist()).encode() for k in keys]),
        "labels": shared([examples[k].labels.astype("<i8").tobytes() for k in keys]),
    })
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return _head(body) + body


def _parsed(body: bytes) -> tuple[dict[str, _Entry], dict[str, Examples]]:
    """Return what :func:`_sealed` was given; the sha256 of the content has been compared."""
    import pyarrow as pa

    table = pa.ipc.open_stream(body).read_all().combine_chunks()

    def values(name: str) -> list[Any]:
        found: list[Any] = table.column(name).to_pylist()
        return found

    def distinct(name: str) -> list[bytes]:
        column = table.column(name)
        return list(column.chunk(0).dictionary.to_pylist()) if column.num_chunks else []

    keys = [key.decode() for key in distinct("examples")]
    examples = {
        key: Examples(
            np.asarray(json.loads(ids), dtype=np.str_),
            np.frombuffer(labels, "<i8").astype(np.int64),
        )
        for key, ids, labels in zip(keys, distinct("ids"), distinct("labels"), strict=True)
    }
    stamps = map(Stamp, *map(values, Stamp._fields))
    of_entry = [key.decode() for key in values("examples")]
    rows = zip(stamps, values("sha256"), of_entry, values("predicted"), strict=True)
    return dict(
        zip(map(json.loads, values("folder")), map(_Entry._make, rows), strict=True)
    ), examples


def _packed(predicted: NDArray[np.int64]) -> bytes:
    kind = np.min_scalar_type(int(predicted.max(initial=0)))
    return predicted.astype(kind.newbyteorder("<")).tobytes()


def _unpacked(content: bytes, n: int) -> NDArray[np.int64]:
    width = len(content) // n if n else 1
    return np.frombuffer(content, f"<u{width}").astype(np.int64)
