"""EXIF orientation counts exactly as Pillow's `ImageOps.exif_transpose` reads it."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from featx.images.decode import decode_rgb
from tests.images.test_decode import PHOTO, encode

# BYTE, SHORT, LONG, SBYTE, SSHORT, SLONG, IFD, LONG8; UNDEFINED and ASCII beside them.
KINDS = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q"}
MARKS = {"<": b"II*\0", ">": b"MM\0*"}


def exif(kind, order, *values):
    """A block of EXIF with one entry; values of more than four bytes lie behind it."""
    value = struct.pack(f"{order}{len(values)}{KINDS[kind]}", *values)
    entry = struct.pack(order + "HHI", 0x0112, kind, len(values))
    entry += value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", 26)
    head = MARKS[order] + struct.pack(order + "IH", 8, 1)
    return head + entry + bytes(4) + (value if len(value) > 4 else b"")


def tiff(kind, order, orientation):
    """A small RGB TIFF whose orientation has some type."""
    pixels = np.asarray(PHOTO)
    height, width, _ = pixels.shape
    body = pixels.tobytes()
    value = struct.pack(order + KINDS[kind], orientation)
    entries = [(256, 4, width), (257, 4, height), (258, 3, None), (259, 3, 1), (262, 3, 2)]
    entries += [(273, 4, 24), (0x0112, kind, None), (277, 3, 3), (278, 4, height)]
    entries += [(279, 4, len(body)), (284, 3, 1)]
    page = struct.pack(order + "H", len(entries))
    for tag, type_, number in entries:
        count, packed = 1, b""
        if tag == 258:
            count, packed = 3, struct.pack(order + "I", 8)
        elif tag == 0x0112:
            packed = value if len(value) <= 4 else struct.pack(order + "I", 16)
        else:
            packed = struct.pack(order + ("H" if type_ == 3 else "I"), number)
        page += struct.pack(order + "HHI", tag, type_, count) + packed.ljust(4, b"\0")
    head = MARKS[order] + struct.pack(order + "I", 24 + len(body))
    return (
        head
        + struct.pack(order + "3H", 8, 8, 8)
        + bytes(2)
        + value.ljust(8, b"\0")
        + body
        + page
        + bytes(4)
    )


def upright(content):
    """What Pillow makes of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("file", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_type_is_read_as_pillow_does(file, order, kind):
    for orientation in (0, 1, 2, 5, 6, 8, 9):
        if file == "TIFF":
            content = tiff(kind, order, orientation)
        else:
            content = encode(PHOTO, file, exif=b"Exif\0\0" + exif(kind, order, orientation))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = decode_rgb(content)
        assert np.array_equal(got, upright(content)), orientation


@pytest.mark.parametrize("kind", [3, 4, 8, 16])
@pytest.mark.parametrize("count", [0, 2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_of_several_values_the_first_counts(order, count, kind):
    block = exif(kind, order, *(6, 3, 1)[:count])
    content = encode(PHOTO, "PNG", exif=b"Exif\0\0" + block)
    assert np.array_equal(decode_rgb(content), upright(content))
    # Values that lie beyond the block are none.
    content = encode(PHOTO, "PNG", exif=b"Exif\0\0" + block[:-1])
    assert np.array_equal(decode_rgb(content), upright(content))
