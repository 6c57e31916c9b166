"""Lookup in the feature cache: time, memory, bytes read and Python objects, up to a million stored rows.

Each measurement opens the cache in a new process, as a run does, and looks up made-up examples. Beside the time it
counts what must not grow: the bytes read from the files for each stored byte (1.00 if no row is read twice), and the
Python objects that the lookup leaves (those of the imports and a few for each segment, none for a row).
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from _common import Bench, figure, made_up_digests, table
from _device import AnonymousMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

CHUNK: Final = 2000
FEW: Final = 1000


def fill(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure storing ``n`` rows."""
    digests = made_up_digests(settings["n"])
    begun = time.perf_counter()
    computed = _get(settings, digests).computed
    if computed != len(digests):
        raise RuntimeError(f"{computed} of {len(digests)} rows were stored")
    return {"seconds": time.perf_counter() - begun, "bytes": 0, "objects": 0, "own": 0}


def look_up(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure one lookup of ``what`` in a cache of ``n`` rows."""
    digests = made_up_digests(settings["n"])
    rng = np.random.default_rng(1)
    wanted = {
        "index": lambda: digests,
        "all": lambda: digests,
        "shuffled": lambda: digests[rng.permutation(len(digests))],
        "few": lambda: digests[rng.choice(len(digests), min(FEW, len(digests)), replace=False)],
        "consecutive": lambda: digests[len(digests) // 2 :][:FEW],
    }[settings["what"]]()
    with _BytesRead() as read:
        gc.collect()
        before = sys.getallocatedblocks()
        with AnonymousMemory() as own:
            begun = time.perf_counter()
            kept = (
                _indexed(settings, wanted)
                if settings["what"] == "index"
                else _get(settings, wanted)
            )
            seconds = time.perf_counter() - begun
        gc.collect()
        objects = sys.getallocatedblocks() - before
    del kept
    return {"seconds": seconds, "bytes": read.count, "objects": objects, "own": own.growth}


def _space() -> Any:
    from clipadapt.core.api.features import Space

    return Space("made up", "gelu", "output", "none", "fp16", 0, "image")


def _indexed(settings: dict[str, Any], wanted: NDArray[np.uint8]) -> Any:
    """Ask which examples are stored, as ``encode`` does when it resumes."""
    from clipadapt.core.features.cache import FeatureCache

    stored = FeatureCache(Path(settings["store"])).open(_space()).stored()
    if not stored.contains(wanted).all():
        raise RuntimeError("some rows are not stored")
    return stored


def _get(settings: dict[str, Any], wanted: NDArray[np.uint8]) -> Any:
    from clipadapt.core.features.cache import FeatureCache

    rows = np.random.default_rng(0).normal(size=(CHUNK, settings["width"])).astype(np.float16)

    def compute(missing: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        for begin in range(0, len(missing), CHUNK):
            part = missing[begin : begin + CHUNK]
            yield part, rows[: len(part)]

    cache = FeatureCache(Path(settings["store"]), max_bytes=1 << 40)
    got = cache.get_or_compute(_space(), wanted, compute)
    if settings["what"] != "fill" and got.computed:
        raise RuntimeError(f"{got.computed} rows were computed again")
    return got


class _BytesRead:
    """Counts the bytes that are read from segments; use it as a context manager.

    Attributes:
        count: Bytes read.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> _BytesRead:
        from clipadapt.core.features import segment

        self._plain: Callable[..., bytearray] = segment._read

        def counted(file: Any, size: int) -> bytearray:
            self.count += size
            return self._plain(file, size)

        segment._read = counted
        return self

    def __exit__(self, *_: object) -> None:
        from clipadapt.core.features import segment

        segment._read = self._plain


MEASUREMENTS: Final = {"fill": fill, "look up": look_up}
WORK: Final = {
    "index": "which rows are stored",
    "all": "read every row",
    "shuffled": "read every row, shuffled",
    "consecutive": f"read {FEW:,} consecutive rows",
    "few": f"read {FEW:,} random rows",
}


def rows_of(bench: Bench, n: int) -> list[list[str]]:
    """Fill a cache with ``n`` rows and return the table's rows about it."""
    store = bench.folder / f"store-{n}"
    common = {"n": n, "width": bench.o.width, "store": str(store)}
    written = bench.measure("fill", common | {"what": "fill"})
    stored = sum(p.stat().st_size for p in store.rglob("*.safetensors"))
    head = ["store every row", f"{n:,}", figure(written["seconds"])]
    found = [[*head, figure(1e6 * written["seconds"] / n), "", "", ""]]
    variants = {what: ("look up", common | {"what": what}) for what in WORK}
    for what, runs in bench.alternate(variants).items():
        looked_up = min(FEW, n) if what in {"few", "consecutive"} else n
        found.append([
            WORK[what],
            f"{n:,}",
            figure(runs.of()),
            figure(1e6 * runs.of() / looked_up),
            f"{runs.of('bytes') / stored:.2f}",
            f"{runs.of('own') / 2**20:,.0f}",
            f"{runs.of('objects'):,.0f}",
        ])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("store", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    add("--width", type=int, default=512)
    o = bench.parse(argv, {"rows": [50, 100], "width": 16})
    with bench.scratch():
        rows = [row for n in o.rows for row in rows_of(bench, n)]
    head = ["work", "rows stored", "seconds", "microseconds per row looked up"]
    head += ["bytes read / bytes stored", "own memory, MiB", "Python objects left"]
    notes = [
        f"Rows of {o.width} float16 values with keys of 32 bytes. Every lookup opens the cache anew: it reads the keys",
        "of all segments and the blocks of about 1 MiB that contain a wanted row, once each, and verifies them. So",
        "random rows cost a block each. `which rows are stored` reads keys only. Results above 256 MiB are mapped",
        "from a file and are not own memory.",
    ]
    bench.write("Lookup in the feature cache", table(head, rows), notes)


if __name__ == "__main__":
    main()
