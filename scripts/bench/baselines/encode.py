"""The plain way to keep features: a DataLoader and ``encode_image`` of open_clip in float32, saved as one array."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.datasets import ImageFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BATCH: Final = 64
WORKERS: Final = 2
"""Loader processes, as many as the cores of a small machine."""


class Files(ImageFolder):
    """Images of a folder, with their path in the place of the label."""

    def __getitem__(self, index: int) -> tuple[Any, str]:
        return super().__getitem__(index)[0], self.samples[index][0]


class Streamed(IterableDataset[tuple[Any, str]]):
    """Images of several files that are read from front to back, each file by one loader process.

    Args:
        files: The files.
        read: Yields name and bytes of each image of a file.
        transform: Preprocessing.
    """

    def __init__(
        self,
        files: Sequence[Path],
        read: Callable[[Path], Iterator[tuple[str, bytes]]],
        transform: Callable[[Image.Image], torch.Tensor],
    ) -> None:
        self.files, self.read, self.transform = files, read, transform

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        info = get_worker_info()
        own = self.files if info is None else self.files[info.id :: info.num_workers]
        for file in own:
            for name, raw in self.read(file):
                yield self.transform(Image.open(io.BytesIO(raw)).convert("RGB")), name


def of_tar(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each image of a tar file."""
    with tarfile.open(file) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                content = tar.extractfile(member)
                assert content is not None
                yield f"{file.name}/{member.name}", content.read()


def of_parquet(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each image of a parquet file, a batch of rows at a time."""
    import pyarrow.parquet as pq

    at = 0
    for batch in pq.ParquetFile(file).iter_batches(BATCH, columns=["image"]):
        for row in batch.column("image").to_pylist():
            yield f"{file.name}/{at}", row["bytes"]
            at += 1


def data(kind: str, place: str, transform: Callable[[Any], torch.Tensor]) -> Any:
    """Return the images of a dataset: ``folder``, ``wds`` or ``hf``."""
    if kind == "folder":
        return Files(f"{place}/test", transform)
    if kind == "wds":
        return Streamed(sorted(Path(place, "test").glob("*.tar")), of_tar, transform)
    return Streamed(sorted(downloaded(place).rglob("*.parquet")), of_parquet, transform)


def downloaded(repo: str) -> Path:
    """Download a dataset of the hub, or return it from the hub's cache."""
    from huggingface_hub import constants, snapshot_download

    return Path(
        snapshot_download(
            repo, repo_type="dataset", endpoint=constants.ENDPOINT, cache_dir=constants.HF_HUB_CACHE
        )
    )


def extracted(
    model: str, kind: str, place: str, device: str, target: Path
) -> tuple[list[str], dict[str, float]]:
    """Encode a dataset and save ``target``; return the names of the images and the seconds by stage.

    Args:
        model: Model, as open_clip takes it.
        kind: ``folder``, ``wds`` or ``hf``.
        place: Folder or repository.
        device: Device of torch.
        target: File of the features, unit norm, in the order of the names.
    """
    begun = time.perf_counter()
    net, _, transform = open_clip.create_model_and_transforms(
        model, precision="fp32", device=device
    )
    net.eval()
    loader = DataLoader(data(kind, place, transform), BATCH, num_workers=WORKERS)
    ready = time.perf_counter()
    seconds = {"ready": ready - begun, "decoding": 0.0, "model": 0.0}
    found, names = [], []
    with torch.no_grad():
        for pixels, batch in loader:
            got = time.perf_counter()
            features = net.encode_image(pixels.to(device), normalize=True)
            found.append(features.cpu().numpy())
            names += batch
            seconds["decoding"] += got - ready
            ready = time.perf_counter()
            seconds["model"] += ready - got
    np.save(target, np.concatenate(found))
    seconds["writing"] = time.perf_counter() - ready
    return names, seconds
