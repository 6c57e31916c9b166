"""Image files: found in folders, decoded to RGB when asked for, told apart by their bytes."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from clipadapt.core._files import sha256_file
from clipadapt.core._given import user_path
from clipadapt.core.errors import DataError, did_you_mean
from clipadapt.core.hardware import cpu_count
from clipadapt.core.labelled import split_by_hash
from clipadapt.core.sheet import Thumbnail

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator

    from clipadapt.core.protocols import SplitName

SHARES: dict[SplitName, float] = {"train": 0.6, "val": 0.2, "test": 0.2}
"""Of one folder of classes, split by the hash of each file's bytes."""
EXTENSIONS: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# Named one by one: Pillow would else try every plug-in, among them one that starts Ghostscript. It does not
# load the plug-in of a format that is named, so they are loaded here, before any thread asks. (JPEG covers the
# MPO of cameras.)
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
for _plugin in ("Jpeg", "Mpo", "Png", "WebP", "Gif", "Bmp", "Tiff"):
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")
DECODE_VERSION: Final = 1
"""Raised when the same bytes come to decode to other pixels; part of every digest."""

THUMBNAIL: Final = 224
"""Longer side of a small picture, in pixels."""
THUMBNAILS_AT_ONCE: Final = 64

MEND: Final = "mend or remove the file, or leave unreadable images out with --on-bad-image skip"
# What Pillow raises on broken bytes: the first three and the last seen by cutting and flipping files of every
# format, the others by reading its decoders.
_BROKEN: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

T = TypeVar("T")
R = TypeVar("R")


def load_rgb(source: Path | str | bytes, *, name: str = "") -> Image.Image:
    """Decode an image to 8-bit RGB, upright, what is transparent on white.

    Grey of 16 bits is scaled by 1/257, not clipped; of several frames or pages the first is taken;
    EXIF orientation is applied.

    Args:
        source: A file, or the bytes of one.
        name: What errors call it; the path where there is one.

    Raises:
        DataError: If the bytes are no whole image of a known format; the message names the file and why.
    """
    name = name or ("an image in memory" if isinstance(source, bytes) else str(source))
    try:
        file = io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes())
    except OSError as err:
        raise DataError(f"cannot read the file '{name}': {err.strerror or err}") from err
    try:
        with Image.open(file, formats=FORMATS) as opened:
            opened.load()
            return to_rgb(_upright(opened))
    except UnidentifiedImageError:
        raise DataError(
            f"'{name}' is not an image: {_what_it_is(file.getvalue())}; accepted: {', '.join(FORMATS)}",
            hint=MEND,
        ) from None
    except _BROKEN as err:
        raise DataError(f"cannot decode the image '{name}': {err}", hint=MEND) from err


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image  # broken metadata do not make a broken picture


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as 8-bit RGB, what is transparent on white; see :func:`load_rgb`.

    Raises:
        ValueError: If its pixels have no range that their mode states.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.size and not 0 <= int(wide.min()) <= int(wide.max()) <= 65535:
            raise ValueError(f"pixels of mode {image.mode} lie outside the 16-bit range")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, whose range no file states")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        return Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("RGB")


def _what_it_is(data: bytes) -> str:
    if not data:
        return "the file is empty"
    head = data[:64]
    if b"\0" not in head and all(b >= 32 or b in b"\t\r\n" for b in head):
        return f"it begins like text, {head[:20].decode('utf-8', 'replace')!r}"
    return f"its first bytes are {head[:8].hex(' ')}"


class ImageFiles(Sequence[Image.Image]):
    """Images decoded when asked for; safe to read from several threads.

    A file's hash is remembered: one that changes while the set is open keeps its first.

    Args:
        root: Folder that the names are relative to.
        names: One POSIX path per image.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = tuple(names)
        self._contents: list[str | None] = [None] * len(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ImageFiles(self.root, self.names[index])
        return load_rgb(self.root / self.names[index])

    def content(self, index: int) -> str:
        """Return the sha256 of the file's bytes, in hexadecimal digits.

        Raises:
            DataError: If the file cannot be read.
        """
        known = self._contents[index]
        if known is None:
            path = self.root / self.names[index]
            try:
                known = self._contents[index] = sha256_file(path)
            except OSError as err:
                raise DataError(f"cannot read the file '{path}': {err.strerror or err}") from err
        return known

    def digest(self, index: int) -> bytes:
        """Return the sha256 over the file's bytes and the version of the decoding."""
        return decoded_digest(self.content(index))


def decoded_digest(content: str) -> bytes:
    """Return the sha256 over the sha256 of a file's bytes and the version of the decoding."""
    return hashlib.sha256(f"file\0{DECODE_VERSION}\0{content}".encode()).digest()


def find_images(names: Sequence[str], ignored: Counter[str]) -> ImageFiles:
    """Return the images a user named: files as they are, of a folder all images below it, sorted.

    The name of each is the user's own, or begins with it.

    Args:
        names: Files and folders.
        ignored: Counts the extensions of other files in the folders.

    Raises:
        DataError: If there is no such file or folder, or a folder holds no images.
    """
    found: list[str] = []
    for name in names:
        path = user_path(name)
        try:
            is_folder, is_there = path.is_dir(), path.exists()
        except OSError as err:
            raise DataError(f"cannot open '{name}': {err.strerror or err}") from err
        if not name.strip() or not is_there:
            raise _missing(name, path, "file or folder", _entries)
        if not is_folder:
            found.append(_as_text(str(path)))
            continue
        below = list_images(path, ignored)
        if not below:
            raise DataError(
                f"the folder '{name}' holds no images; accepted: {', '.join(EXTENSIONS)}",
                hint="name images, or a folder with images in it or below it",
            )
        found += [str(path / image) for image in below]
    return ImageFiles(Path(), found)


def thumbnails(files: ImageFiles) -> Iterator[Thumbnail]:
    """Yield a small picture of every file, in order; a few are held at a time."""

    def make(index: int) -> Thumbnail:
        image = files[index]
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=80)
        return Thumbnail(out.getvalue(), *image.size)

    for begin in range(0, len(files), THUMBNAILS_AT_ONCE):
        yield from in_threads(make, range(begin, min(begin + THUMBNAILS_AT_ONCE, len(files))))


def readable(files: Sequence[Image.Image]) -> list[bool]:
    """Tell of every image whether it decodes; each is decoded once, in threads."""

    def decodes(index: int) -> bool:
        try:
            files[index]
        except DataError:
            return False
        return True

    return in_threads(decodes, range(len(files)))


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``[function(item) for item in items]``, made by as many threads as there are processors."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(function, items))


def list_images(folder: Path, ignored: Counter[str]) -> list[str]:
    """Return the image files below ``folder`` as sorted relative POSIX paths.

    Hidden files and folders are passed over; the extensions of other files are counted in ``ignored``.

    Raises:
        DataError: If a folder cannot be listed or a name is not UTF-8, which no record could hold.
    """
    found = []
    for where, folders, files in os.walk(folder, onerror=_stop):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            path = Path(where, name)
            if path.suffix.lower() in EXTENSIONS:
                found.append(_as_text(path.relative_to(folder).as_posix()))
            else:
                ignored[path.suffix.lower() or name] += 1
    return sorted(found)


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder`` that are not hidden, sorted.

    Raises:
        DataError: If it cannot be listed.
    """
    try:
        names = [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError as err:
        raise _cannot_list(err) from err
    return sorted(map(_as_text, names))


def existing_folder(argument: str, scheme: str) -> Path:
    """Return the folder a user named after ``scheme:``.

    Raises:
        DataError: If there is none; the message offers its nearest siblings.
    """
    if not argument.strip():
        raise DataError(f"'{scheme}:' names no folder", hint=f"write {scheme}:PATH")
    path = user_path(argument)
    try:
        if path.is_dir():
            return path
        is_file = path.exists()
    except OSError as err:
        raise DataError(f"cannot open the folder '{argument}': {err.strerror or err}") from err
    if is_file:
        raise DataError(
            f"'{argument}' is a file, not a folder", hint=f"try {scheme}:{path.parent.as_posix()}"
        )
    raise _missing(argument, path, "folder", subfolders)


def _missing(
    argument: str, path: Path, what: str, names_in: Callable[[Path], list[str]]
) -> DataError:
    """Return the error for a path that is not there; it offers the names nearest to it."""
    if not argument.strip():
        return DataError(f"an empty name is no {what}")
    whole = path.resolve()
    base = next(p for p in whole.parents if p.is_dir())
    missing = whole.relative_to(base).parts[0]
    names = names_in(base)
    near = did_you_mean(missing, names)
    if not near:
        near = f"; it holds: {', '.join(names[:8]) or f'no {what}'}{', ...' if names[8:] else ''}"
    return DataError(f"there is no {what} '{argument}': '{base}' has no '{missing}'{near}")


def _entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def _as_text(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {name!r} is not valid UTF-8", hint="rename it") from None
    return name


def _cannot_list(err: OSError) -> DataError:
    return DataError(f"cannot list the folder '{err.filename}': {err.strerror or err}")


def _stop(err: OSError) -> None:
    raise _cannot_list(err) from err


def hash_split(sha256: str) -> SplitName:
    """Return the split that a file's hash alone decides, by :data:`SHARES`; it stays when files are added."""
    return split_by_hash(bytes.fromhex(sha256[:16]), SHARES)
