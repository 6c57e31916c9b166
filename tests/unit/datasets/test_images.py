"""Decoding: every supported format gives the right pixels; errors name the unreadable files."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from clipadapt.core.api.data import digest
from clipadapt.core.api.errors import DataError
from clipadapt.datasets import _decode
from clipadapt.datasets._decode import load_rgb, opened_rgb
from clipadapt.datasets._folders import list_images
from clipadapt.datasets._images import ImageFiles, readable


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(size: int = 32) -> Image.Image:
    """Return an image whose left half is red and right half is blue."""
    image = Image.new("RGB", (size, size), (200, 30, 30))
    image.paste((30, 30, 200), (size // 2, 0, size, size))
    return image


def gradient(size: int = 64) -> Image.Image:
    ramp = np.tile(np.linspace(0, 255, size).astype(np.uint8), (size, 1))
    return Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], axis=-1))


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 12),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("GIF", {}, 8),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
    ],
)
def test_every_format_decodes_to_the_same_image(kind, options, tolerance):
    image = two_halves()

    out = load_rgb(encoded(image, kind, **options))

    assert out.mode == "RGB"
    assert out.size == image.size
    difference = np.abs(np.asarray(out, dtype=int) - np.asarray(image, dtype=int))
    assert np.median(difference) <= tolerance


def test_an_rgb_png_is_bit_exact():
    np.testing.assert_array_equal(np.asarray(load_rgb(encoded(gradient(), "PNG"))), gradient())


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind):
    out = np.asarray(load_rgb(encoded(two_halves().convert("CMYK"), kind)))

    left, right = out[16, 4], out[16, 28]
    assert left[0] > 150
    assert left[2] < 90
    assert right[2] > 150
    assert right[0] < 90


def test_transparent_palette_is_on_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    image.paste(1, (4, 0, 8, 8))

    out = np.asarray(load_rgb(encoded(image, "PNG", transparency=0)))

    assert out[0, 0].tolist() == [255, 255, 255]
    assert out[0, 6].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("mode", "value"), [("RGBA", (10, 20, 30, 0)), ("LA", (7, 0))])
def test_alpha_is_on_white(mode, value):
    out = load_rgb(encoded(Image.new(mode, (4, 4), value), "PNG"))
    assert np.asarray(out).min() == 255


def test_half_transparent_is_half_white():
    out = load_rgb(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    assert np.asarray(out)[0, 0].tolist() == [127, 127, 127]


def test_transparent_rgb_colour_is_on_white():
    out = np.asarray(load_rgb(encoded(two_halves(), "PNG", transparency=(200, 30, 30))))
    assert out[0, 0].tolist() == [255, 255, 255]
    assert out[0, 31].tolist() == [30, 30, 200]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)

    out = np.asarray(load_rgb(encoded(Image.fromarray(values), kind)))

    assert out[0, :, 0].tolist() == [0, 1, 100, 255]
    assert (out[..., 0] == out[..., 2]).all()


def test_32_bit_integers_in_the_16_bit_range_are_scaled():
    fits = np.array([[0, 65535]], dtype=np.int32)
    assert np.asarray(load_rgb(encoded(Image.fromarray(fits), "TIFF")))[0, :, 1].tolist() == [
        0,
        255,
    ]
    with pytest.raises(DataError, match="16-bit range"):
        load_rgb(encoded(Image.fromarray(fits * 2), "TIFF"))


def test_float_pixels_are_an_error():
    with pytest.raises(DataError, match="floating-point"):
        load_rgb(encoded(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_black_and_white(mode):
    out = np.asarray(load_rgb(encoded(Image.new("L", (4, 4), 255).convert(mode), "PNG")))
    assert out.shape == (4, 4, 3)
    assert out.min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    image = two_halves().crop((0, 0, 32, 16))

    out = load_rgb(encoded(image, kind, exif=exif))

    assert out.size == (16, 32)
    pixels = np.asarray(out, dtype=int)
    assert pixels[4, 8, 0] > 150  # red was left, is now above
    assert pixels[28, 8, 2] > 150


def test_first_frame_or_page_is_used():
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("GIF", "TIFF", "WEBP"):
        out = load_rgb(encoded(red, kind, save_all=True, append_images=[blue]))
        assert np.asarray(out)[4, 4, 0] > 240
        assert np.asarray(out)[4, 4, 2] < 20


def test_mpo_is_read():
    assert load_rgb(
        encoded(two_halves(), "MPO", save_all=True, append_images=[two_halves()])
    ).size == (32, 32)


def test_truncated_jpeg_is_an_error_with_its_name(tmp_path):
    path = tmp_path / "cut.jpg"
    data = encoded(gradient(256), "JPEG")
    path.write_bytes(data[: len(data) // 2])

    with pytest.raises(DataError) as caught:
        load_rgb(path)

    assert caught.value.problem.startswith(
        f"cannot decode the image '{path}': image file is truncated"
    )
    assert "--on-bad-image skip" in caught.value.hint


def test_text_file_named_jpg_is_an_error(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("these are notes, not pixels")

    with pytest.raises(
        DataError, match=r"notes\.jpg' is not an image: it starts like text, 'these are notes"
    ):
        load_rgb(path)


def test_an_empty_and_a_missing_file(tmp_path):
    (tmp_path / "none.png").touch()
    with pytest.raises(DataError, match=r"none\.png' is not an image: the file is empty"):
        load_rgb(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"cannot read the file '.*gone\.png': No such file"):
        load_rgb(tmp_path / "gone.png")


def test_other_formats_are_recognized_by_their_first_bytes():
    with pytest.raises(DataError, match=r"it starts like text, '%!PS.*accepted: JPEG"):
        load_rgb(encoded(two_halves(), "EPS"))
    with pytest.raises(DataError, match=r"its first bytes are 00 01 02 03.*accepted: JPEG"):
        load_rgb(bytes(range(64)))


def png_with(kind: bytes, size: int) -> bytes:
    """Return a PNG with compressed text that is much larger when decompressed."""
    data = encoded(two_halves(), "PNG")
    body = {b"zTXt": b"Comment\0\0", b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0", b"iCCP": b"p\0\0"}[
        kind
    ]
    body += zlib.compress(b"x" * size)
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_png_with_large_text_is_read(kind):
    data = png_with(kind, 8 << 20)
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(np.asarray(load_rgb(data)), np.asarray(two_halves()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: encoded(two_halves(), "JPEG", exif=turned()),
        lambda: encoded(two_halves().convert("CMYK"), "JPEG"),
        lambda: encoded(Image.new("LA", (4, 4), (7, 0)), "PNG"),
        lambda: encoded(Image.fromarray(np.array([[0, 25700, 65535]], dtype=np.uint16)), "PNG"),
        lambda: encoded(two_halves().convert("P"), "PNG", transparency=0),
        lambda: encoded(two_halves().convert("L"), "PNG"),
    ],
)
def test_opened_image_equals_the_image_of_its_file(make):
    data = make()
    opened = opened_rgb(Image.open(io.BytesIO(data)), "image 0")
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(load_rgb(data)))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def test_truncated_opened_image_is_an_error_with_its_name():
    data = encoded(gradient(256), "JPEG")
    with pytest.raises(
        DataError, match="cannot decode the image 'image 3': image file is truncated"
    ):
        opened_rgb(Image.open(io.BytesIO(data[: len(data) // 2])), "image 3")


def test_decompression_bomb_is_an_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="decompression bomb"):
        load_rgb(encoded(two_halves(), "PNG"), name="big.png")


def test_corrupt_bytes_only_raise_data_errors():
    rng = random.Random(0)
    outcomes: Counter[str] = Counter()
    for kind, mode in [
        ("JPEG", "RGB"),
        ("PNG", "P"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
    ]:
        whole = encoded(gradient().convert(mode), kind)
        for turn in range(60):
            data = bytearray(whole)
            if turn % 2:
                del data[rng.randrange(len(data)) :]
            else:
                data[rng.randrange(min(len(data), 200))] ^= 1 << rng.randrange(8)
            try:
                load_rgb(bytes(data))
                outcomes["decoded"] += 1
            except DataError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 100


def make_files(folder, n=6):
    names = [f"{i}.png" for i in range(n)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(encoded(Image.new("RGB", (5, 5), (i, 0, 0)), "PNG"))
    return ImageFiles(folder, names)


def test_files_load_lazily_by_index_slice_and_thread(tmp_path):
    files = make_files(tmp_path)

    with ThreadPoolExecutor(4) as pool:
        reds = [np.asarray(image)[0, 0, 0] for image in pool.map(files.__getitem__, range(6))]

    assert reds == list(range(6))
    assert np.asarray(files[2:4][1])[0, 0, 0] == 3
    assert np.asarray(files[-1])[0, 0, 0] == 5


def test_digest_depends_on_the_bytes_and_the_decoding_version(tmp_path, monkeypatch):
    files = make_files(tmp_path)
    first = digest(files, 0)
    assert len(first) == 32
    assert first != digest(files, 1)
    assert first == digest(ImageFiles(tmp_path, ["0.png"]), 0)

    monkeypatch.setattr(_decode, "DECODE_VERSION", 99)
    assert digest(files, 0) != first


def test_readable_finds_unreadable_images(tmp_path):
    files = make_files(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no")
    assert readable(files) == [True, True, True, False, True, True]


def test_listing_skips_hidden_files_and_counts_others(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    for name in [
        "z.JPG",
        "b/deep/a.tiff",
        ".hidden.png",
        ".cache/x.png",
        "notes.txt",
        "more.txt",
        "README",
    ]:
        (tmp_path / name).touch()
    ignored: Counter[str] = Counter()

    assert list_images(tmp_path, ignored) == ["b/deep/a.tiff", "z.JPG"]
    assert ignored == {"other files (.txt)": 2, "other files (no extension)": 1}


def test_sixteen_bit_big_endian_tiff():
    values = np.array([[0, 65535]], dtype=">u2")
    info = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"MM")
    image = Image.frombytes("I;16B", (2, 1), values.tobytes())
    assert np.asarray(load_rgb(encoded(image, "TIFF", tiffinfo=info)))[0, :, 0].tolist() == [0, 255]
