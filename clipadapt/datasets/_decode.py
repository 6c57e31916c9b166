"""Decode image files to upright 8-bit RGB, with errors that name the file."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from clipadapt.core.api.errors import DataError
from clipadapt.core.files.folders import require_regular

if TYPE_CHECKING:
    from collections.abc import Callable

# An explicit list, because Pillow would otherwise try every plugin, including one that starts Ghostscript and some that
# cannot decode. Pillow does not load the plugins of an explicit list, so they are loaded here, before any thread uses
# them. (JPEG includes the MPO files of cameras.)
_OTHERS: Final = (
    "Ico", "Cur", "Icns", "Pcx", "Qoi", "Sgi", "Sun", "Dds", "Psd", "Msp", "Xbm", "Xpm", "Tga",
)  # fmt: skip
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
"""Extensions of image files; files with other extensions are recognized by :func:`starts_like_an_image`."""
DECODE_VERSION: Final = 1
"""Increased when the same bytes are decoded to different pixels; part of every digest."""
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
        raise cannot_read(name, err) from err


def cannot_read(name: str, err: OSError) -> DataError:
    """Return the error for a file that cannot be read."""
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


def starts_like_an_image(head: bytes) -> bool:
    """Return whether the first 12 bytes of a file are those of a common image format."""
    return head.startswith((_PNG, b"\xff\xd8\xff", b"GIF87a", b"GIF89a")) or (
        head[:4] == b"RIFF" and head[8:] == b"WEBP"
    )


def decoded_digest(content: str) -> bytes:
    """Return the sha256 over the sha256 of a file's bytes and the version of the decoding."""
    return hashlib.sha256(f"file\0{DECODE_VERSION}\0{content}".encode()).digest()


class Contents:
    """The sha256 of the bytes of ``n`` images, each computed once; safe to use from several threads.

    They are kept in one array. A copy in another process starts empty, because a file may differ on another machine.
    """

    def __init__(self, n: int) -> None:
        self._digests = np.zeros((n, 32), dtype=np.uint8)
        self._known = np.zeros(n, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._known)

    def __reduce__(self) -> tuple[type[Contents], tuple[int]]:
        return Contents, (len(self),)

    def get(self, index: int, compute: Callable[[int], str]) -> str:
        """Return the hexadecimal sha256 of an image; ``compute`` is called with its index if it is not known."""
        if self._known[index]:
            return bytes(self._digests[index]).hex()
        content = compute(index)
        self._digests[index] = np.frombuffer(bytes.fromhex(content), dtype=np.uint8)
        self._known[index] = True
        return content
