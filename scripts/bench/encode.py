"""Extraction of features: ours in one process and with Ray workers, and a DataLoader loop with open_clip.

    python scripts/bench/encode.py [--arch ViT-B-32] [--images 128] [--workers 2] [--device auto]

Generated JPEGs are read from a folder, from tar files (``wds:``) and from a hub on this machine (``hf:``). The time is
from opening the dataset to the last write, with loading the model and starting Ray, without imports. Both sides save
float32 features of the same weights, and these are compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from _common import (
    SEED,
    Bench,
    class_names,
    figure,
    measured,
    table,
    times,
    use_threads,
    write_images,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

REPO: Final = "bench/pictures"
FILES: Final = 4
"""Tar files, and files of the repository."""
STAGES: Final = ("reading", "decoding", "model", "writing")
CLOSE: Final = 1e-4
"""Largest difference of two unit-norm features in float32 that have the same weights and pixels."""


# ---------------------------------------------------------------- measurements


def by_ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure ``clipadapt encode``: what the command does, without reading its words and printing."""
    import open_clip  # noqa: F401  as the other side has imported it

    from clipadapt.core.api.progress import Silent
    from clipadapt.core.features.cache import FeatureCache
    from clipadapt.core.runs.extraction import Here, extract
    from clipadapt.core.runs.extraction_plan import Asked, plan_extraction
    from clipadapt.core.runs.extraction_ray import Actors

    to_hub(settings)
    given = ["model.precision=fp32", *settings["set"]]
    given += [f"threads={settings['threads']}"] if settings["threads"] else []
    asked = Asked({"name": settings["dataset"]}, settings["model"], ("test",), (), given)
    workers = settings["workers"]

    def work() -> Any:
        plan = plan_extraction(asked, "clip", Silent(), 1 if workers else None)
        place = Actors(plan, workers) if workers else Here(plan, Silent())
        spaces = place.open
        kept: list[Any] = []

        def opened() -> Any:
            kept.extend(spaces())
            return list(kept)

        place.open = opened  # type: ignore[method-assign]
        return plan, kept, extract(plan, place, Silent())

    (plan, spaces, found), seconds, memory = measured(work, settings["device"])
    digests = plan.parts[0].inputs.digests()
    rows = FeatureCache().get_or_compute(spaces[0], digests, _nothing).rows
    save(settings["target"], digests, rows)
    return {
        "seconds": seconds,
        "memory": memory,
        "ready": seconds - found.seconds,
        "encoding": found.seconds,
        **{name: found.stages.get(name, 0.0) for name in STAGES},
    }


def by_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the plain way."""
    from baselines import encode

    from clipadapt.datasets._decode import decoded_digest

    use_threads(settings)
    to_hub(settings)
    kind, _, place = settings["dataset"].partition(":")
    target = Path(settings["target"]).with_suffix(".plain.npy")
    device = settings["device"]
    (names, stages), seconds, memory = measured(
        lambda: encode.extracted(settings["model"], kind, place, device, target), device
    )
    contents = raw_images(kind, place)
    digests = [decoded_digest(hashlib.sha256(contents[name]).hexdigest()) for name in names]
    found = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    save(settings["target"], found, np.load(target))
    return {
        "seconds": seconds,
        "memory": memory,
        "encoding": seconds - stages["ready"],
        "reading": 0.0,
        **stages,
    }


def _nothing(rows: NDArray[np.int64]) -> Any:
    raise RuntimeError(f"{len(rows)} features were not stored")


def raw_images(kind: str, place: str) -> dict[str, bytes]:
    """Return the bytes of each image by the name that the plain way gives it."""
    from baselines import encode

    if kind == "folder":
        return {str(path): path.read_bytes() for path in Path(place, "test").glob("*/*.jpg")}
    if kind == "wds":
        files = Path(place, "test").glob("*.tar")
        return dict(pair for file in files for pair in encode.of_tar(file))
    files = encode.downloaded(place).rglob("*.parquet")
    return dict(pair for file in files for pair in encode.of_parquet(file))


def to_hub(settings: dict[str, Any]) -> None:
    """Redirect this process to the hub of the script, with an empty cache."""
    if "hub" in settings:
        import tempfile

        from huggingface_hub import constants

        cache = tempfile.mkdtemp(dir=settings["scratch"])
        for name, value in {**settings["hub"], "HF_HUB_CACHE": cache}.items():
            setattr(constants, name, value)


def save(target: str, digests: NDArray[np.uint8], rows: NDArray[Any]) -> None:
    """Save features in the order of the hashes of their images."""
    order = np.argsort(np.ascontiguousarray(digests).view("S32").reshape(-1))
    np.save(target, rows[order])


# ---------------------------------------------------------------- data and model


def write_model(folder: Path, arch: str) -> str:
    """Write an architecture of open_clip with random weights; return its name."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    net = open_clip.create_model(arch)
    folder.mkdir()
    state = {name: tensor.contiguous().clone() for name, tensor in net.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": open_clip.get_model_config(arch),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"local-dir:{folder}"


def write_tars(folder: Path, images: Sequence[Path], names: Sequence[str]) -> None:
    """Write images as ``folder/test/NUMBER.tar``, with labels."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    for number in range(FILES):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for i, image in list(enumerate(images))[number::FILES]:
                label = str(names.index(image.parent.name)).encode()
                for ending, content in (("jpg", image.read_bytes()), ("cls", label)):
                    info = tarfile.TarInfo(f"s{i:07}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def write_repository(folder: Path, images: Sequence[Path]) -> None:
    """Write images as parquet files of a repository's test split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    (folder / ".gitattributes").write_text("", encoding="utf-8")
    for number in range(FILES):
        own = images[number::FILES]
        rows = [{"bytes": p.read_bytes(), "path": None} for p in own]
        columns = pa.table({"image": rows, "label": [p.parent.name for p in own]})
        pq.write_table(columns, folder / f"test-{number:05}-of-{FILES:05}.parquet")


@contextlib.contextmanager
def hub(root: Path) -> Iterator[dict[str, Any] | None]:
    """Run the hub of the tests on a folder and yield how to reach it; None if the tests are not here."""
    sys.path.append(str(Path(__file__).parents[2]))
    try:
        from tests.hub.hubserver import Hub
    except ModuleNotFoundError:
        yield None
        return

    with Hub(root) as server:
        yield server.constants(root)


# ---------------------------------------------------------------- the table

WAYS: Final = {"plain": "DataLoader and open_clip", "ours": "`encode`", "ray": "`encode`, Ray"}


def rows_of(bench: Bench, name: str, common: dict[str, Any]) -> list[list[str]]:
    """Measure all ways for one dataset and return the table's rows."""
    o, n = bench.o, bench.o.images
    files = {way: str(bench.folder / f"{way}.npy") for way in WAYS}
    variants = {
        "plain": ("loop", common | {"target": files["plain"]}),
        "ours": ("ours", common | {"target": files["ours"], "workers": 0}),
    }
    if importlib.util.find_spec("ray") is not None and o.workers:
        variants["ray"] = ("ours", common | {"target": files["ray"], "workers": o.workers})
    runs = bench.alternate(variants)
    expected = np.load(files["plain"])
    rows = []
    for way, found in runs.items():
        difference = float(np.abs(np.load(files[way]) - expected).max())
        if len(expected) != n or difference > CLOSE:
            raise RuntimeError(f"{way}: features differ from the plain way by {difference}")
        spent = {stage: found.of(stage) for stage in STAGES}
        shares = [f"{seconds / sum(spent.values()):.0%}" for seconds in spent.values()]
        rows.append([
            name,
            f"{WAYS[way]}, {o.workers} workers" if way == "ray" else WAYS[way],
            figure(found.of()),
            figure(found.of("ready")),
            figure(n / found.of("encoding")),
            figure(n / found.of()),
            times(runs["plain"].of(), found.of()),
            *shares,
            found.memory,
            "" if way == "plain" else f"{difference:.0e}",
        ])
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("encode", __doc__ or "", {"ours": by_ours, "loop": by_loop})
    add = bench.parser.add_argument
    add("--arch", default="ViT-B-32", help="architecture of open_clip, with random weights")
    add("--images", type=int, default=128)
    add("--size", type=int, default=384, help="side of the images in pixels")
    add("--workers", type=int, default=2, help="Ray workers; 0 leaves Ray out")
    bench.parser.set_defaults(repeats=2)
    quick = {"arch": "", "images": 24, "size": 48, "workers": 0}
    o = bench.parse(argv, quick)
    rows: list[list[str]] = []
    with bench.scratch() as folder:
        names = class_names(8)
        write_images(folder / "images", "test", o.images, o.size, names)
        images = sorted((folder / "images").rglob("*.jpg"))
        write_tars(folder / "tars", images, names)
        write_repository(folder / "hub" / "datasets" / REPO / "main", images)
        if o.arch:
            model = write_model(folder / "model", o.arch)
        else:
            from _common import tiny_model

            model = tiny_model(folder / "model")
        common = {"model": model, "scratch": str(folder)}
        rows += rows_of(bench, "folder", common | {"dataset": f"folder:{folder}/images"})
        rows += rows_of(bench, "tar files", common | {"dataset": f"wds:{folder}/tars"})
        with hub(folder / "hub") as there:
            if there is not None:
                rows += rows_of(bench, "hub", common | {"dataset": f"hf:{REPO}", "hub": there})
    head = ["images from", "way", "seconds", "before the first image", "images/s, encoding"]
    head += ["images/s, all", "times the plain way", *("read", "decode", "model", "write")]
    head += ["peak memory, MiB", "largest difference"]
    notes = [
        f"{o.images} JPEGs of {o.size} pixels, {o.arch or 'a tiny model'} with random weights, float32, unit norm.",
        "`read`, `decode` (the wait for pixels), `model` and `write` are shares of the time of all stages, of all",
        "workers. `encode` hashes the files when it opens the dataset, the plain way reads them while it decodes.",
        "Before the first image: opening the dataset, loading the model and starting workers. Memory is that of the",
        "process itself, without its loaders and workers.",
        *([] if there else ["The hub is left out: its server is in `tests`, which is not here."]),
    ]
    bench.write("Extraction of features", table(head, rows), notes)


if __name__ == "__main__":
    main()
