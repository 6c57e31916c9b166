"""Image files: decoded lazily to RGB, identified by the hash of their bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from PIL import Image

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.user_input import user_path
from clipadapt.core.files.checksums import sha256_file
from clipadapt.core.files.folders import require_regular
from clipadapt.core.files.hardware import cpu_count
from clipadapt.datasets._decode import FORMATS, Contents, cannot_read, decoded_digest, load_rgb
from clipadapt.datasets._folders import as_text, counts_text, list_images, missing, names_in

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator

UNREADABLE: Final = "unreadable images"
THUMBNAIL: Final = 224
"""Longer side of a thumbnail in pixels."""
THUMBNAILS_AT_ONCE: Final = 64

T = TypeVar("T")
R = TypeVar("R")


class ImageFiles(Sequence[Image.Image]):
    """Lazily decoded images; safe to read from several threads.

    The hash of a file is cached: a file that changes while the dataset is open keeps its first hash.

    Args:
        root: Folder that the names are relative to.
        names: One POSIX path per image.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = tuple(names)
        self._contents = Contents(len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ImageFiles(self.root, self.names[index])
        return load_rgb(self.root / self.names[index])

    def content(self, index: int) -> str:
        """Return the hexadecimal sha256 of the file's bytes.

        Raises:
            DataError: If the file cannot be read.
        """
        return self._contents.get(index, self._hashed)

    def _hashed(self, index: int) -> str:
        path = self.root / self.names[index]
        try:
            require_regular(path)
            return sha256_file(path)
        except OSError as err:
            raise cannot_read(str(path), err) from err

    def digest(self, index: int) -> bytes:
        """Return the sha256 over the file's bytes and the version of the decoding."""
        return decoded_digest(self.content(index))


def find_images(names: Sequence[str], ignored: Counter[str]) -> ImageFiles:
    """Return the given image files, and all images below the given folders, sorted per folder.

    The name of each image is the given path, or starts with it.

    Args:
        names: Files and folders.
        ignored: Counter of the other files in the folders, see :func:`list_images`.

    Raises:
        DataError: If a file or folder does not exist, or a folder contains no images.
    """
    found: list[str] = []
    for name in names:
        path = user_path(name)
        try:
            is_folder, is_there = path.is_dir(), path.exists()
        except OSError as err:
            raise DataError(f"cannot open '{name}': {err.strerror or err}") from err
        if not name.strip() or not is_there:
            raise missing(name, path, "file or folder", names_in)
        if not is_folder:
            found.append(as_text(str(path)))
            continue
        below = list_images(path, ignored)
        if not below:
            raise DataError(
                f"the folder '{name}' contains no images ({counts_text(ignored)}); accepted: {', '.join(FORMATS)}",
                hint="give image files, or a folder with images in it or below it",
            )
        found += [str(path / image) for image in below]
    return ImageFiles(Path(), found)


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A thumbnail: JPEG bytes, width and height."""

    jpeg: bytes
    width: int
    height: int


def thumbnails(files: ImageFiles) -> Iterator[Thumbnail]:
    """Yield a thumbnail of every file, in order; only a few are in memory at a time."""

    def make(index: int) -> Thumbnail:
        image = files[index]
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=80)
        return Thumbnail(out.getvalue(), *image.size)

    for begin in range(0, len(files), THUMBNAILS_AT_ONCE):
        yield from in_threads(make, range(begin, min(begin + THUMBNAILS_AT_ONCE, len(files))))


def readable(files: Sequence[Image.Image]) -> list[bool]:
    """Return for each image whether it can be decoded; the images are decoded in threads."""

    def decodes(index: int) -> bool:
        try:
            files[index]
        except DataError:
            return False
        return True

    return in_threads(decodes, range(len(files)))


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``[function(item) for item in items]``, computed with one thread per CPU."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(function, items))
