from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest

from dreamgym.data.image_decoding import decode_image
from dreamgym.errors import DatasetError

Image = pytest.importorskip("PIL.Image")


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(9, 7, 3), (9, 7)])
def test_png_is_decoded_as_it_is(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(pixels, "PNG")), pixels)


@pytest.mark.parametrize("side", [8, 64, 1000])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_emptiest_images_are_within_the_bound(kind: str, side: int) -> None:
    assert decode_image(encoded(np.zeros((side, side), np.uint8), kind)).shape == (side, side)


def test_the_mode_can_be_chosen() -> None:
    grey = encoded(np.full((4, 4), 90, np.uint8), "PNG")
    assert decode_image(grey, "RGB").shape == (4, 4, 3)
    assert decode_image(encoded(np.zeros((4, 4, 3), np.uint8), "PNG"), "L").shape == (4, 4)


def test_depth_of_16_bits_is_not_cut_to_bytes() -> None:
    depth = encoded(np.arange(16, dtype=np.uint16).reshape(4, 4) * 1000, "PNG")
    with pytest.raises(DatasetError, match=r"more than 8 bits a channel.*--key"):
        decode_image(depth)


def jpeg_that_claims(side: int) -> bytes:
    data = bytearray(encoded(np.zeros((8, 8), np.uint8), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def png_that_claims(side: int) -> bytes:
    data = bytearray(encoded(np.zeros((8, 8), np.uint8), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("make", [jpeg_that_claims, png_that_claims])
@pytest.mark.parametrize("side", [4_000, 9_000, 65_000])
def test_a_claim_that_the_bytes_cannot_hold_is_refused(make, side: int) -> None:
    with pytest.raises(DatasetError, match="pixels"):
        decode_image(make(side))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", bytes(100), b"GIF89a" + bytes(20)])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DatasetError, match="not a JPEG or PNG"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_image_is_refused(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    with pytest.raises(DatasetError):
        decode_image(encoded(pixels, kind)[:-400])
