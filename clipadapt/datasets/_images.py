"""Image files: found in folders, decoded to RGB when asked for, told apart by their bytes."""

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
"""Of one folder of classes, split by the hash of each file's bytes."""
# Named one by one: Pillow would else try every plug-in, among them one that starts Ghostscript and some that decode
# nothing. It does not load the plug-in of a format that is named, so they are loaded here, before any thread asks.
# (JPEG covers the MPO of cameras.)
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
"""The formats that are read."""
EXTENSIONS: Final = tuple(
    ending for form in FORMATS for ending, its in Image.EXTENSION.items() if its == form
)
"""Of files that are images; others are by their first bytes, see :func:`_looks_like_an_image`."""
_UNREAD: Final = (
    "heic heif hif jxl svg svgz eps ps ai wmf emf fits fit exr hdr raw dng cr2 cr3 nef arw orf rw2 raf pef srw dcm xcf "
    "blp djvu"
)
UNREAD: Final = frozenset(f".{ending}" for ending in _UNREAD.split(" "))
"""Images of formats that are not read."""
OTHER_FILES: Final = "other files"
UNREADABLE: Final = "unreadable images"
# What archives, desktops and notebooks leave beside images; hidden names need no mention.
_JUNK: Final = frozenset({
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    "$RECYCLE.BIN",
    "System Volume Information",
})
DECODE_VERSION: Final = 1
"""Raised when the same bytes come to decode to other pixels; part of every digest."""

THUMBNAIL: Final = 224
"""Longer side of a small picture, in pixels."""
THUMBNAILS_AT_ONCE: Final = 64

MEND: Final = (
    "fix or remove the file, or leave unreadable images out with --on-bad-image skip "
    "(run: --set data.on_bad_image=skip)"
)
_PNG: Final = b"\x89PNG\r\n\x1a\n"
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
    data = source if isinstance(source, bytes) else _bytes_of(Path(source), name)
    try:
        return _decoded(data)
    except UnidentifiedImageError:
        raise DataError(
            f"'{name}' is not an image: {_what_it_is(data)}; accepted: {', '.join(FORMATS)}",
            hint=MEND,
        ) from None
    except _BROKEN as err:
        raise DataError(f"cannot decode the image '{name}': {err}", hint=MEND) from err


def _decoded(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            return _upright_rgb(opened)
    except ValueError:
        # Pillow refuses a PNG whose text or colour profile is large; its pixels are whole all the same.
        plain = _without_text(data)
        if plain == data:
            raise
        with Image.open(io.BytesIO(plain), formats=("PNG",)) as opened:
            return _upright_rgb(opened)


def _without_text(data: bytes) -> bytes:
    """Return a PNG without its chunks of text and colour profile, other bytes as they are."""
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
    return DataError(f"cannot read the file '{name}': {err.strerror or err}", hint=MEND)


def opened_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an opened picture as :func:`load_rgb` returns its file: upright, 8-bit RGB, what is transparent on white.

    Raises:
        DataError: If it cannot be decoded; the message gives ``name`` and why.
    """
    try:
        return _upright_rgb(image)
    except _BROKEN as err:
        raise DataError(f"cannot decode the image '{name}': {err}", hint=MEND) from err


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    with contextlib.suppress(*_BROKEN):  # broken metadata do not make a broken picture
        image = ImageOps.exif_transpose(image)
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as 8-bit RGB.

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
    """Return the images a user named: files as they are, of a folder all images below it, sorted.

    The name of each is the user's own, or begins with it.

    Args:
        names: Files and folders.
        ignored: Counts other files in the folders, see :func:`list_images`.

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
            raise _missing(name, path, "file or folder", _names_in)
        if not is_folder:
            found.append(_as_text(str(path)))
            continue
        below = list_images(path, ignored)
        if not below:
            raise DataError(
                f"the folder '{name}' holds no images ({listed(ignored)}); accepted: {', '.join(FORMATS)}",
                hint="name images, or a folder with images in it or below it",
            )
        found += [str(path / image) for image in below]
    return ImageFiles(Path(), found)


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture: JPEG bytes, width and height."""

    jpeg: bytes
    width: int
    height: int


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


def list_images(folder: Path, ignored: Counter[str], *, deep: bool = True) -> list[str]:
    """Return the image files below ``folder`` as sorted relative POSIX paths.

    Linked folders are followed, each once and none that leads back. Hidden files and folders, what archives and
    desktops leave behind, and folders of runs are passed over.

    Args:
        folder: Where to look.
        ignored: Counts what is no image or of a format that is not read.
        deep: Whether to look below its folders.

    Raises:
        DataError: If a folder cannot be listed or a name is not UTF-8, which no record could hold.
    """
    found = []
    for entry in _files_below(folder, deep=deep):
        ending = Path(entry.name).suffix.lower()
        if ending in EXTENSIONS or (ending not in UNREAD and _looks_like_an_image(entry.path)):
            found.append(_as_text(Path(entry.path).relative_to(folder).as_posix()))
        elif ending in UNREAD:
            ignored[f"images of a format that is not read ({ending})"] += 1
        else:
            ignored[f"{OTHER_FILES} ({ending or 'no ending'})"] += 1
    return sorted(found)


def listed(left_out: Mapping[str, int]) -> str:
    """Return what was left out, for people."""
    return ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n) or "nothing"


def _files_below(folder: Path, *, deep: bool) -> Iterator[os.DirEntry[str]]:
    """Yield the files in ``folder``, and those below it: linked folders after the others, each folder once."""
    seen = {_identity(p) for p in folder.resolve().parents}
    stack, links = [folder], deque[Path]()
    while stack or links:
        here = stack.pop() if stack else links.popleft()
        if (identity := _identity(here)) in seen:
            continue
        seen.add(identity)
        entries = _entries(here)
        if any(entry.name == RECORD for entry in entries):
            continue  # --out lies among the images
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
    """Return what lies in a folder and counts, sorted by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (e for e in found if not e.name.startswith(".") and e.name not in _JUNK),
                key=lambda entry: entry.name,
            )
    except OSError as err:
        raise DataError(
            f"cannot list the folder '{folder}': {err.strerror or err}",
            hint="make it readable, or move it away",
        ) from err


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link in a loop is no folder, where entry.is_dir() alone raises.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())


def _looks_like_an_image(path: str) -> bool:
    """Tell by its first bytes whether a file of another ending is an image all the same."""
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
    """Return the names of the folders in ``folder`` that count, sorted; a link to itself or above it does not.

    Raises:
        DataError: If it cannot be listed.
    """
    above = {_identity(p) for p in (folder, *folder.resolve().parents)}
    return [
        _as_text(entry.name)
        for entry in _entries(folder)
        if _is_folder(entry) and not (entry.is_symlink() and _identity(Path(entry.path)) in above)
    ]


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
            hint=f"unpack it and name the folder that it gives: {scheme}:DIR",
        )
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


def _names_in(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder)]


def _as_text(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {name!r} is not valid UTF-8", hint="rename it") from None
    return name


def hash_split(sha256: str) -> SplitName:
    """Return the split that a file's hash alone decides, by :data:`SHARES`; it stays when files are added."""
    return split_by_hash(bytes.fromhex(sha256[:16]), SHARES)
