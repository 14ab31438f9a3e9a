"""Image files as bytes, before Pillow sees them: format, completeness, size, orientation.

Pillow reports oddities of a file (corrupt EXIF, a malformed animation, an oversized picture) with
warnings, and Python's warning filters cannot be changed for one thread alone. So whatever Pillow
would warn of is taken out of the bytes or refused here: metadata is dropped, the orientation is
read by `exif_orientation`, and what is cut short fails. Only segments that decide pixels remain.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import numpy as np

from featx.exceptions import ImageError

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIF_BRANDS = frozenset(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
)
# Parts (chunks, segments, blocks, strips) that a file may have: each costs a turn of a loop.
_MOST_PARTS = 250_000
_JPEG_MARKER = re.compile(rb"\xff[^\xff]")
# In the data of a scan, where 0xFF stands before 0 and before restart markers too.
_AFTER_A_SCAN = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF_ITEM = re.compile(rb"(infe\x02\0\0[\0\1].{4})Exif", re.DOTALL)


class Samples(NamedTuple):
    """How Pillow gives the samples of a deep grey picture: v of the file as (v + zero) * scale.

    Those of 32 bits come as signed ones, also where they are `unsigned`.
    """

    scale: float = 1.0
    zero: float = 0.0
    unsigned: bool = False


AS_IN_FILE = Samples()


class Coded(NamedTuple):
    """What a JPEG 2000 codestream is made of, which its outer header may misstate."""

    size_px: tuple[int, int]
    pixels: int
    levels: int
    channels: int
    tiles: int
    parts: int
    progress_bytes: int


@dataclass(frozen=True, slots=True)
class Container:
    """An image file without its metadata, whole as far as its container tells.

    `size_px` (height, width) is set where Pillow would allocate the canvas while it reads the
    header, `scans` is 2 or more where a JPEG is kept from scan to scan.
    """

    kind: str
    data: bytes
    orientation: int = 1
    size_px: tuple[int, int] | None = None
    scans: int = 1
    coded: Coded | None = None
    samples: Samples = AS_IN_FILE


def sniff(data: bytes) -> str:
    """Return the format that the first bytes announce, ``""`` when it is no image format."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), len(data), 256)
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, end - 3, 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        return "HEIF" if brands & _HEIF_BRANDS else ""
    return "PPM" if re.match(rb"P[1-6][\s#]", data) else ""


def inspect(data: bytes) -> Container:
    """Return what Pillow may decode: refused where it is cut short, without its metadata."""
    if not data:
        raise ImageError("empty file (0 bytes)")
    kind = sniff(data)
    if not kind:
        raise ImageError(f"not an image (starts with {data[:16]!r})")
    return _INSPECTORS[kind](data) if kind in _INSPECTORS else Container(kind, data)


# Types of TIFF that Pillow reads as integers.
_INTEGERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q"}


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in a block of EXIF, perhaps damaged; 1 (upright) for none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, start)
    for pos in range(start + 2, min(start + 2 + 12 * count, len(exif) - 9), 12):
        tag, kind, n = struct.unpack_from(order + "HHI", exif, pos)
        if tag != 0x0112 or kind not in _INTEGERS or not n:
            continue
        form, entry = order + _INTEGERS[kind], exif[pos : pos + 12].ljust(12, b"\0")
        size, values = n * struct.calcsize(form), entry[8:]
        if size > 4:
            (at,) = struct.unpack_from(order + "I", entry, 8)
            values = exif[at : at + size]
            if len(values) < size:
                continue
        # Of several the first one counts.
        (value,) = struct.unpack_from(form, values)
        return int(value) if 1 <= value <= 8 else 1
    return 1


def _truncated(what: str) -> NoReturn:
    raise ImageError(f"truncated: {what}")


def _parts(what: str) -> Iterator[None]:
    """Count the turns of a loop, and refuse too many."""
    for count in itertools.count():
        _check_parts(count, what)
        yield


def _check_parts(count: int, what: str) -> None:
    if count > _MOST_PARTS:
        raise ImageError(f"too much work: more than {_MOST_PARTS:,} {what}: save the image anew")


def _jpeg(data: bytes) -> Container:
    """Drop EXIF, XMP (both APP1), colour profiles, MPO indices (APP2), Photoshop data (APP13)."""
    pieces: list[bytes] = []
    orientation, pos, start = 1, 2, 0
    several, channels = False, 0
    for _ in _parts("JPEG segments"):
        match = _JPEG_MARKER.search(data, pos)
        if match is None or match.start() + 4 > len(data):
            _truncated("JPEG header without pixel data")
        mark = match.start()
        code = data[mark + 1]
        if code == 0xDA:
            break
        if code in (0x00, 0x01) or 0xD0 <= code <= 0xD8:
            pos = mark + 2
            continue
        end = mark + 2 + int.from_bytes(data[mark + 2 : mark + 4], "big")
        if end > len(data):
            _truncated("JPEG header ends beyond the file")
        if code in _START_OF_FRAME:
            several, channels = bool(code & 2), data[mark + 9] if mark + 9 < end else 0
        elif code in (0xE1, 0xE2, 0xED):
            if code == 0xE1 and orientation == 1 and data[mark + 4 : mark + 10] == b"Exif\0\0":
                orientation = exif_orientation(data[mark + 4 : end])
            pieces.append(data[start:mark])
            start = end
        pos = max(end, mark + 4)
    # A baseline picture whose first scan has all channels is done with it: nothing is kept.
    several = several or data[mark + 4 : mark + 5] != bytes([channels])
    scans = _jpeg_scans(data, mark) if several else 1
    if pieces:
        data = b"".join([*pieces, data[start:]])
    return Container("JPEG", data, orientation, scans=scans)


def _jpeg_scans(data: bytes, pos: int) -> int:
    """Return the number of scans from the first on; 2 at least, as the picture is kept."""
    scans = 0
    for _ in _parts("JPEG segments"):
        match = _AFTER_A_SCAN.search(data, pos)
        if match is None or data[match.end() - 1] == 0xD9:
            break
        scans += data[match.end() - 1] == 0xDA
        pos = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return max(scans, 2)


def _png(data: bytes) -> Container:
    """Keep the critical chunks and tRNS; every checksum must hold, IEND must be there."""
    # Views, as parts of a large file would be copies.
    whole = memoryview(data)
    pieces: list[bytes | memoryview] = [whole[:8]]
    orientation, pos, name = 1, 8, b""
    for _ in _parts("PNG chunks"):
        if name == b"IEND":
            break
        if pos + 12 > len(data):
            _truncated("PNG without its end chunk")
        length, name = struct.unpack_from(">I4s", data, pos)
        end = pos + 12 + length
        if end > len(data):
            _truncated(f"PNG chunk {name!r} ends beyond the file")
        if name == b"eXIf":
            orientation = exif_orientation(data[pos + 8 : end - 4])
        elif name == b"tRNS" or not name[0] & 0x20:
            chunk = whole[pos:end]
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise ImageError(f"damaged: the checksum of PNG chunk {name!r} does not match")
            pieces.append(_trns_of_8_bit(bytes(chunk), data) if name == b"tRNS" else chunk)
        pos = end
    if all(isinstance(piece, memoryview) for piece in pieces) and sum(map(len, pieces)) == pos:
        return Container("PNG", data, orientation)
    return Container("PNG", b"".join(pieces), orientation)


def _trns_of_8_bit(chunk: bytes, data: bytes) -> bytes:
    """Put a transparent colour on the scale of the 8-bit pixels that Pillow makes of the file."""
    depth, colour_type = data[24], data[25]
    values = [v for (v,) in struct.iter_unpack(">H", chunk[8 : 8 + (len(chunk) - 12) // 2 * 2])]
    if colour_type == 0 and depth in (2, 4):
        values = [v * 255 // (2**depth - 1) for v in values]
    elif colour_type == 2 and depth == 16:
        values = [v >> 8 for v in values]
    else:
        return chunk
    body = b"tRNS" + struct.pack(f">{len(values)}H", *values)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _webp(data: bytes) -> Container:
    size = int.from_bytes(data[4:8], "little") + 8
    if size > len(data) or len(data) < 30:
        _truncated(f"WebP of {size} bytes, {len(data)} are there")
    orientation = 1
    if data[12:16] == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        pos = 12
        for _ in _parts("WebP chunks"):
            if pos + 8 > size:
                break
            end = pos + 8 + int.from_bytes(data[pos + 4 : pos + 8], "little")
            if data[pos : pos + 4] == b"EXIF":
                orientation = exif_orientation(data[pos + 8 : end])
            pos = end + end % 2
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (26, 28))
    return Container("WEBP", data, orientation, (height, width))


def _gif(data: bytes) -> Container:
    """Drop comments and application data before the first frame, and find the canvas.

    The canvas is widened where the first frame overlaps it, as Pillow would with a warning. What
    becomes of a frame when the next one comes is left out.
    """
    if len(data) < 13:
        _truncated("GIF header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    pos = head = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control, count = b"", 0
    while data[pos : pos + 1] == b"!":
        start = pos
        pos += 2
        while pos < len(data) and data[pos]:
            pos += 1 + data[pos]
            count += 1
        pos += 1
        count += 1
        _check_parts(count, "GIF blocks before the first frame")
        if data[start + 1 : start + 2] == b"\xf9":
            kept = bytes(flags & ~0x1C for flags in data[start + 3 : start + 4])
            control = data[start : start + 3] + kept + data[start + 4 : pos]
    if data[pos : pos + 1] == b"," and pos + 9 <= len(data):
        left, top, w, h = struct.unpack_from("<4H", data, pos + 1)
        width, height = max(width, left + w), max(height, top + h)
        canvas = struct.pack("<HH", min(width, 65535), min(height, 65535))
        data = b"".join([data[:6], canvas, data[10:head], control, data[pos:]])
    return Container("GIF", data, size_px=(height, width))


def _ppm(data: bytes) -> Container:
    """Scale binary samples to 255, or grey ones of 16 bits to 65535, as Pillow does one by one."""
    sep = rb"(?:\s|#[^\r\n]*[\r\n])+"
    number = sep + rb"(\d{1,10})"
    start = re.match(rb"P([1-6])" + 2 * number, data[:4096])
    if start is None:
        raise ImageError("damaged: PPM without its size in the first 4,096 bytes")
    kind, width, height = (int(part) for part in start.groups())
    most = re.compile(number + rb"\s").match(data, start.end(), 4096)
    full = 255 if kind in (1, 4) or most is None else int(most[1])
    samples = Samples(65535 / full) if 255 < full < 65536 else Samples()
    done = full == 255 or not 0 < full < 65536 or (kind == 5 and full == 65535)
    if kind not in (5, 6) or most is None or done:
        return Container("PPM", data, samples=samples)
    wide, deep = full > 255, full > 255 and kind == 5
    count = width * height * (3 if kind == 6 else 1)
    if len(data) - most.end() < count * (1 + wide):
        _truncated(f"PPM of {width}x{height} pixels")
    values = np.frombuffer(data, ">u2" if wide else np.uint8, count, most.end())
    to = 65535 if deep else 255
    scaled = np.minimum(np.rint(np.arange(65536 if wide else 256) / full * to), to)
    table = scaled.astype(">u2" if deep else np.uint8)
    head = b"P%d %d %d %d\n" % (kind, width, height, to)
    return Container("PPM", head + table[values].tobytes(), samples=samples)


def _jpeg2000(data: bytes) -> Container:
    """Find out from the codestream what decoding takes."""
    if b"\xff\xd9" not in data:
        _truncated("JPEG 2000 without its end marker")
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or start + 43 > len(data):
        raise ImageError("damaged: JPEG 2000 without a codestream")
    # Boxes come before it; Pillow reads those of a header one by one.
    _check_parts(start // 8, "boxes of a JPEG 2000")
    x1, y1, x0, y0, tile_w, tile_h, tx, ty, channels = struct.unpack_from(">8IH", data, start + 8)
    if not (x0 < x1 and y0 < y1 and tile_w and tile_h):
        raise ImageError("damaged: JPEG 2000 of no size")
    size_px, pixels = (y1 - y0, x1 - x0), (x1 - x0) * (y1 - y0)
    depth, signed = (data[start + 42] & 127) + 1, data[start + 42] >> 7
    tiles = -(-(x1 - tx) // tile_w) * -(-(y1 - ty) // tile_h)
    parts = progress = 0
    least_levels = 32
    pos = start + 4 + int.from_bytes(data[start + 4 : start + 6], "big")
    for _ in _parts("segments of a JPEG 2000"):
        code = data[pos : pos + 2]
        if code[:1] != b"\xff" or code == b"\xff\x90":
            break
        length = int.from_bytes(data[pos + 2 : pos + 4], "big")
        body = data[pos + 4 : pos + 2 + length]
        if code in (b"\xff\x52", b"\xff\x53"):
            # Style, layers (of COD only), then levels, size of blocks, and sizes of precincts.
            at = 5 if code == b"\xff\x52" else 2 if channels < 257 else 3
            layers = int.from_bytes(body[2:4], "big") if at == 5 else 1
            if len(body) < at + 5:
                raise ImageError("damaged: JPEG 2000 with a short segment")
            styled = body[0 if at == 5 else at - 1] & 1
            levels, block_w, block_h = body[at], (body[at + 1] & 15) + 2, (body[at + 2] & 15) + 2
            least_levels = min(least_levels, levels)
            sizes = body[at + 5 :] if styled else b"\xff"
            across = min((size & 15 for size in sizes), default=15)
            down = min((size >> 4 for size in sizes), default=15)
            blocks = pixels >> min(block_w, across) + min(block_h, down)
            precincts = pixels >> across + down
            parts = max(parts, channels * (blocks + precincts))
            a_tile = precincts // max(1, tiles) + 1
            progress = max(progress, 2 * layers * channels * (levels + 1) * a_tile)
        pos += 2 + length
    coded = Coded(size_px, pixels, least_levels, channels, tiles, parts, progress)
    # Pillow shifts samples of 9 to 16 bits up to 16, and signed ones to zero and above.
    samples = Samples(2.0 ** (16 - depth), signed << depth - 1) if 8 < depth <= 16 else Samples()
    return Container("JPEG2000", data, coded=coded, samples=samples)


# Tags that decide pixels; the others are left out. Those of the first line have one value.
_TIFF_SINGLE = frozenset((254, 256, 257, 259, 262, 266, 274, 277, 278, 284, 317, 322, 323))
_TIFF_OTHERS = frozenset((258, 273, 279, 292, 293, 320, 324, 325, 338, 339, 347, *range(512, 533)))
_TIFF_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
}


def _tiff(data: bytes) -> Container:
    """Keep the first page and the tags that decide its pixels; Pillow applies the orientation."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    word, count_type, entry_bytes = ("Q", "Q", 20) if big else ("I", "H", 12)
    word_bytes = struct.calcsize(word)
    try:
        (start,) = struct.unpack_from(order + word, data, word_bytes)
        (count,) = struct.unpack_from(order + count_type, data, start)
        _check_parts(count, "TIFF tags")
        first = start + struct.calcsize(count_type)
        kept: list[bytes] = []
        for at in range(first, first + entry_bytes * count, entry_bytes):
            tag, kind, n, value = struct.unpack_from(f"{order}HH{word}{word}", data, at)
            if tag in _TIFF_SINGLE and n != 1:
                raise ImageError(f"damaged: TIFF tag {tag} has {n} values, expected 1")
            if (
                tag == 277
                and (value if order == "<" or kind != 3 else value >> 8 * (word_bytes - 2)) > 6
            ):
                raise ImageError("TIFF of more than 6 channels: expected greyscale, RGB or CMYK")
            if tag in _TIFF_SINGLE or tag in _TIFF_OTHERS:
                _check_parts(n, "strips or tiles of a TIFF")
                size = n * _TIFF_TYPE_BYTES.get(kind, 8)
                if size > word_bytes and value + size > len(data):
                    _truncated(f"the values of TIFF tag {tag} lie beyond the file")
                kept.append(data[at : at + entry_bytes])
        struct.unpack_from(order + word, data, first + entry_bytes * count)
    except struct.error as error:
        raise ImageError(f"truncated: TIFF directory ({error})") from error
    page = struct.pack(order + count_type, len(kept)) + b"".join(kept) + bytes(word_bytes)
    # Views, as parts of a large file would be copies.
    whole, end = memoryview(data), start + len(page)
    if whole[start:end] != page:
        data = b"".join([whole[:start], page, whole[end:]])
    return Container("TIFF", data)


def _avif_or_heif(data: bytes) -> Container:
    """Drop EXIF: these formats turn the picture by item properties."""
    head = _EXIF_ITEM.sub(rb"\1free", data[:65536])
    return Container(sniff(data), data if head == data[:65536] else head + data[65536:])


_INSPECTORS: dict[str, Callable[[bytes], Container]] = {
    "AVIF": _avif_or_heif,
    "GIF": _gif,
    "HEIF": _avif_or_heif,
    "JPEG": _jpeg,
    "JPEG2000": _jpeg2000,
    "PNG": _png,
    "PPM": _ppm,
    "TIFF": _tiff,
    "WEBP": _webp,
}
