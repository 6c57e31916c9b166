"""Image files: found in folders, decoded lazily to RGB, identified by the hash of their bytes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import struct
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from clipadapt.core.api.errors import DataError, did_you_mean
from clipadapt.core.api.user_input import user_path
from clipadapt.core.data.labelled import split_by_hash
from clipadapt.core.files.checksums import sha256_file
from clipadapt.core.files.folders import require_regular
from clipadapt.core.files.hardware import cpu_count
from clipadapt.core.records.run_store import RECORD

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from clipadapt.core.api.data import SplitName

SHARES: dict[SplitName, float] = {"train": 0.6, "val": 0.2, "test": 0.2}
"""Shares of the splits if a dataset has none: the hash of each file's bytes decides."""
# An explicit list, because Pillow would otherwise try every plugin, including one that starts Ghostscript and some that
# cannot decode. Pillow does not load the plugins of an explicit list, so they are loaded here, before any thread uses
# them. (JPEG includes the MPO files of cameras.)
_OTHERS: Final = (
    "Ico",
    "Cur",
    "Icns",
    "Pcx",
    "Qoi",
    "Sgi",
    "Sun",
    "Dds",
    "Psd",
    "Msp",
    "Xbm",
    "Xpm",
    "Tga",
)
_PLUGINS: Final = {
    form: plugin
    for form, plugin, feature in [
        ("JPEG", "Jpeg", "jpg"),
        ("PNG", "Png", "zlib"),
        ("WEBP", "WebP", "webp"),
        ("GIF", "Gif", None),
        ("BMP", "Bmp", None),
        ("DIB", "Bmp", None),
        ("TIFF", "Tiff", None),
        ("PPM", "Ppm", None),
        ("AVIF", "Avif", "avif"),
        ("JPEG2000", "Jpeg2K", "jpg_2000"),
        *((name.upper(), name, None) for name in _OTHERS),
    ]
    if feature is None or features.check(feature)
}
for _plugin in ("Mpo", *_PLUGINS.values()):
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")
FORMATS: Final = tuple(_PLUGINS)
"""Supported image formats."""
EXTENSIONS: Final = tuple(
    ending for form in FORMATS for ending, its in Image.EXTENSION.items() if its == form
)
"""Extensions of image files; files with other extensions are recognized by :func:`_looks_like_an_image`."""
_UNREAD: Final = (
    "heic heif hif jxl svg svgz eps ps ai wmf emf fits fit exr hdr raw dng cr2 cr3 nef arw orf rw2 raf pef srw dcm xcf "
    "blp djvu"
)
UNREAD: Final = frozenset(f".{ending}" for ending in _UNREAD.split(" "))
"""Extensions of image formats that are not supported."""
OTHER_FILES: Final = "other files"
UNREADABLE: Final = "unreadable images"
# Files that archives and desktops leave next to images; hidden files are always ignored.
_JUNK: Final = frozenset({
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    "$RECYCLE.BIN",
    "System Volume Information",
})
DECODE_VERSION: Final = 1
"""Increased when the same bytes are decoded to different pixels; part of every digest."""

THUMBNAIL: Final = 224
"""Longer side of a thumbnail in pixels."""
THUMBNAILS_AT_ONCE: Final = 64

FIX_HINT: Final = (
    "fix or remove the file, or leave unreadable images out with --on-bad-image skip "
    "(run: --set data.on_bad_image=skip)"
)
_PNG: Final = b"\x89PNG\r\n\x1a\n"
# Exceptions that Pillow raises on corrupt bytes: the first three and the last were found by truncating and altering
# files of every format, the others by reading its decoders.
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
    """Decode an image to 8-bit RGB, upright, with transparent areas on white.

    16-bit grayscale is scaled by 1/257, not clipped; the first frame or page is used; EXIF orientation is applied.

    Args:
        source: A file, or the bytes of one.
        name: Name of the image in error messages; by default the path.

    Raises:
        DataError: If the bytes are not a complete image in a supported format; the message names the file and the
            reason.
    """
    name = name or ("an image in memory" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _bytes_of(Path(source), name)
    try:
        return _decoded(data)
    except UnidentifiedImageError:
        raise DataError(
            f"'{name}' is not an image: {_what_it_is(data)}; accepted: {', '.join(FORMATS)}",
            hint=FIX_HINT,
        ) from None
    except _BROKEN as err:
        raise DataError(f"cannot decode the image '{name}': {err}", hint=FIX_HINT) from err


def _decoded(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            return _upright_rgb(opened)
    except ValueError:
        # Pillow rejects a PNG with a large text or colour profile, although its pixels are valid.
        plain = _without_text(data)
        if plain == data:
            raise
        with Image.open(io.BytesIO(plain), formats=("PNG",)) as opened:
            return _upright_rgb(opened)


def _without_text(data: bytes) -> bytes:
    """Return a PNG without its text and colour profile chunks; other bytes are returned unchanged."""
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _bytes_of(path: Path, name: str) -> bytes:
    try:
        require_regular(path)
        return path.read_bytes()
    except OSError as err:
        raise _cannot_read(name, err) from err


def _cannot_read(name: str, err: OSError) -> DataError:
    return DataError(f"cannot read the file '{name}': {err.strerror or err}", hint=FIX_HINT)


def opened_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert an opened image as :func:`load_rgb` does: 8-bit RGB, upright, with transparent areas on white.

    Raises:
        DataError: If it cannot be decoded; the message gives ``name`` and the reason.
    """
    try:
        return _upright_rgb(image)
    except _BROKEN as err:
        raise DataError(f"cannot decode the image '{name}': {err}", hint=FIX_HINT) from err


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    with contextlib.suppress(*_BROKEN):  # the pixels are valid even if the metadata are not
        image = ImageOps.exif_transpose(image)
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB.

    Raises:
        ValueError: If the range of its pixel values is unknown.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.size and not 0 <= int(wide.min()) <= int(wide.max()) <= 65535:
            raise ValueError(f"pixels of mode {image.mode} are outside the 16-bit range")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range")
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
        return f"it starts like text, {head[:20].decode('utf-8', 'replace')!r}"
    return f"its first bytes are {head[:8].hex(' ')}"


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
        self._contents: list[str | None] = [None] * len(self.names)

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
        known = self._contents[index]
        if known is None:
            path = self.root / self.names[index]
            try:
                require_regular(path)
                known = self._contents[index] = sha256_file(path)
            except OSError as err:
                raise _cannot_read(str(path), err) from err
        return known

    def digest(self, index: int) -> bytes:
        """Return the sha256 over the file's bytes and the version of the decoding."""
        return decoded_digest(self.content(index))


def decoded_digest(content: str) -> bytes:
    """Return the sha256 over the sha256 of a file's bytes and the version of the decoding."""
    return hashlib.sha256(f"file\0{DECODE_VERSION}\0{content}".encode()).digest()


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
            raise _missing(name, path, "file or folder", _names_in)
        if not is_folder:
            found.append(_as_text(str(path)))
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


def list_images(folder: Path, ignored: Counter[str], *, deep: bool = True) -> list[str]:
    """Return the image files below ``folder`` as sorted relative POSIX paths.

    Links to folders are followed once, except links to a parent. Hidden files, files left by archives and desktops, and
    run folders are skipped.

    Args:
        folder: The folder to search.
        ignored: Counter of files that are not images, or that have an unsupported format.
        deep: Whether to search subfolders.

    Raises:
        DataError: If a folder cannot be listed, or a name is not valid UTF-8 and so cannot be stored in a record.
    """
    found = []
    for entry in _files_below(folder, deep=deep):
        ending = Path(entry.name).suffix.lower()
        if ending in EXTENSIONS or (ending not in UNREAD and _looks_like_an_image(entry.path)):
            found.append(_as_text(Path(entry.path).relative_to(folder).as_posix()))
        elif ending in UNREAD:
            ignored[f"images in an unsupported format ({ending})"] += 1
        else:
            ignored[f"{OTHER_FILES} ({ending or 'no extension'})"] += 1
    return sorted(found)


def counts_text(left_out: Mapping[str, int]) -> str:
    """Return a readable list of what was left out."""
    return ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n) or "nothing"


def _files_below(folder: Path, *, deep: bool) -> Iterator[os.DirEntry[str]]:
    """Yield the files in ``folder`` and below; links to folders come last, and each folder is visited once."""
    seen = {_identity(p) for p in folder.resolve().parents}
    stack, links = [folder], deque[Path]()
    while stack or links:
        here = stack.pop() if stack else links.popleft()
        if (identity := _identity(here)) in seen:
            continue
        seen.add(identity)
        entries = _entries(here)
        if any(entry.name == RECORD for entry in entries):
            continue  # a run folder, because --out is below the images
        below = []
        for entry in entries:
            if _is_folder(entry):
                below.append(entry)
            else:
                yield entry
        if deep:
            links += [Path(entry.path) for entry in below if entry.is_symlink()]
            stack += [Path(entry.path) for entry in reversed(below) if not entry.is_symlink()]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not ignored, sorted by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (e for e in found if not e.name.startswith(".") and e.name not in _JUNK),
                key=lambda entry: entry.name,
            )
    except OSError as err:
        raise DataError(
            f"cannot list the folder '{folder}': {err.strerror or err}",
            hint="make it readable, or move it elsewhere",
        ) from err


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A circular link is not a folder; entry.is_dir() would raise for it.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())


def _looks_like_an_image(path: str) -> bool:
    """Check by its first bytes whether a file with another extension is an image."""
    try:
        require_regular(Path(path))
        with Path(path).open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith((_PNG, b"\xff\xd8\xff", b"GIF87a", b"GIF89a")) or (
        head[:4] == b"RIFF" and head[8:] == b"WEBP"
    )


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the subfolders, without ignored ones and links to the folder itself or a parent.

    Raises:
        DataError: If the folder cannot be listed.
    """
    above = {_identity(p) for p in (folder, *folder.resolve().parents)}
    return [
        _as_text(entry.name)
        for entry in _entries(folder)
        if _is_folder(entry) and not (entry.is_symlink() and _identity(Path(entry.path)) in above)
    ]


def existing_folder(argument: str, scheme: str) -> Path:
    """Return the folder given after ``scheme:``.

    Raises:
        DataError: If it does not exist; the message suggests similar names.
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
    if is_file and path.suffix.lower() in {
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".7z",
        ".rar",
        ".bz2",
        ".xz",
    }:
        raise DataError(
            f"'{argument}' is an archive, not a folder",
            hint=f"unpack it and give the unpacked folder: {scheme}:DIR",
        )
    if is_file:
        raise DataError(
            f"'{argument}' is a file, not a folder", hint=f"try {scheme}:{path.parent.as_posix()}"
        )
    raise _missing(argument, path, "folder", subfolders)


def _missing(
    argument: str, path: Path, what: str, names_in: Callable[[Path], list[str]]
) -> DataError:
    """Return the error for a path that does not exist; it suggests similar names."""
    if not argument.strip():
        return DataError(f"an empty name is not a {what}")
    whole = path.resolve()
    base = next(p for p in whole.parents if p.is_dir())
    missing = whole.relative_to(base).parts[0]
    names = names_in(base)
    near = did_you_mean(missing, names)
    if not near:
        near = (
            f"; it contains: {', '.join(names[:8]) or f'no {what}'}{', ...' if names[8:] else ''}"
        )
    return DataError(f"there is no {what} '{argument}': '{base}' has no '{missing}'{near}")


def _names_in(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder)]


def _as_text(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {name!r} is not valid UTF-8", hint="rename it") from None
    return name


def hash_split(sha256: str) -> SplitName:
    """Return the split of a file by its hash and :data:`SHARES`; it does not change when files are added."""
    return split_by_hash(bytes.fromhex(sha256[:16]), SHARES)
