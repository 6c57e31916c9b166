"""Images and labels in tar files in the layout of webdataset, read in place."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from clipadapt.core.api.data import Subset
from clipadapt.core.api.errors import DataError
from clipadapt.core.files.folders import require_regular
from clipadapt.datasets._decode import EXTENSIONS, Contents, cannot_read, decoded_digest, load_rgb

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK: Final = 512
MAX_LABEL_BYTES: Final = 100
AGAIN: Final = "copy or download it again"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image in a tar file.

    Attributes:
        key: Path in the tar file without extensions, as webdataset groups files.
        member: Path of the image in the tar file.
        offset: Position of its first byte in the tar file.
        size: Its number of bytes.
        label: Content of the label's file; None if there is none.
    """

    key: str
    member: str
    offset: int
    size: int
    label: bytes | None


class ShardImages(Sequence[Image.Image]):
    """Lazily decoded images in tar files; safe to read from several threads and processes.

    The index (position and size of each image) is in memory; each image is read by its position, with no open file in
    between.

    Args:
        paths: ``S`` tar files.
        shards: Tar file of each image, shape ``(n,)``.
        samples: ``n`` images.
    """

    def __init__(
        self, paths: Sequence[Path], shards: NDArray[np.int32], samples: Sequence[Sample]
    ) -> None:
        self._paths = tuple(paths)
        self._shards = shards
        self._offsets = np.array([s.offset for s in samples], dtype=np.int64)
        self._sizes = np.array([s.size for s in samples], dtype=np.int64)
        self._members = tuple(s.member for s in samples)
        self._contents = Contents(len(samples))

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        return load_rgb(self._raw(index), name=self._name(index))

    def content(self, index: int) -> str:
        """Return the hexadecimal sha256 of the image's bytes.

        Raises:
            DataError: If the tar file cannot be read.
        """
        return self._contents.get(index, lambda i: hashlib.sha256(self._raw(i)).hexdigest())

    def digest(self, index: int) -> bytes:
        """Return the sha256 over the image's bytes and the version of the decoding."""
        return decoded_digest(self.content(index))

    def _name(self, index: int) -> str:
        return f"{self._paths[self._shards[index]]}, member {self._members[index]}"

    def _raw(self, index: int) -> bytes:
        path, size = self._paths[self._shards[index]], int(self._sizes[index])
        try:
            with path.open("rb") as file:
                file.seek(int(self._offsets[index]))
                raw: bytes = file.read(size)
        except OSError as err:
            raise cannot_read(str(path), err) from err
        if len(raw) < size:
            raise DataError(
                f"'{self._name(index)}' is incomplete: the file has become shorter", hint=AGAIN
            )
        return raw


def read_index(path: Path) -> list[Sample]:
    """Return the images in a tar file, in its order.

    Raises:
        DataError: If it is not a complete tar file, or two images have the same key.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, bytes] = {}
    try:
        require_regular(path)
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    continue
                key, extension = _split_name(member.name)
                if extension == "cls":
                    labels[key] = _read(file, member)
                elif f".{extension}" in EXTENSIONS and key in images:
                    raise DataError(
                        f"'{path}' has two images of the key '{key}': {images[key][0]} and {member.name}",
                        hint="give each image a key of its own",
                    )
                elif f".{extension}" in EXTENSIONS:
                    images[key] = (member.name, member.offset_data, member.size)
            _require_end(file, tar)
    except OSError as err:
        raise cannot_read(str(path), err) from err
    except (tarfile.TarError, EOFError) as err:
        raise DataError(f"'{path}' is not a complete tar file: {err}", hint=AGAIN) from None
    lonely = [key for key in labels if key not in images]
    if lonely:
        raise DataError(
            f"'{path}' has a label but no image of the key '{lonely[0]}' (cases: {len(lonely)})",
            hint="images are files of the same name that end in webp, png or jpg",
        )
    return [Sample(key, *image, labels.get(key)) for key, image in images.items()]


def _split_name(name: str) -> tuple[str, str]:
    """Return key and extension of a member: webdataset splits its file name at the first dot."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _read(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_LABEL_BYTES:
        raise tarfile.ReadError(f"the label {member.name} has {member.size:,} bytes")
    at = file.tell()
    file.seek(member.offset_data)
    content: bytes = file.read(member.size)
    file.seek(at)
    return content


def _require_end(file: IO[bytes], tar: tarfile.TarFile) -> None:
    """Raise if the block of zeros is missing that ends a tar file; tarfile accepts that."""
    file.seek(tar.offset)
    if file.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError(
            f"it ends after {len(tar.getmembers()):,} members without an end mark"
        )
