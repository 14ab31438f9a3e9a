"""What decoding an image will take, told from its header, and the memory that all decoders share.

A small file can announce a picture that takes gibibytes or minutes. So memory and time are
estimated before a decoder starts, and what would take too much fails. Images that take much are
decoded a few at a time, however many threads and processes there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from featx.exceptions import DatasetError, HeadError, ImageError
from featx.images.containers import Container
from featx.memory import as_bytes

if TYPE_CHECKING:
    from PIL import Image

# Part of the rules for pixels, so that no setting changes them.
MOST_PIXELS = {"JPEG": 89_478_485, "JPEG2000": 44_739_242}
"""Pixels above which formats that allow it are decoded at a fraction of their size."""
MOST_DECODE_BYTES = 1 << 30
"""Most memory that decoding one image may take, its file included, unless it is set."""
DECODE_MEMORY = "FEATX_DECODE_MEMORY"
"""The environment variable that sets it."""
_PILLOWS_PIXELS = 89_478_485

# Images that take less are not counted, as asking for it would cost more than it saves.
_LIGHT_BYTES = 64 << 20
_MOST_SHARED_BYTES = 1 << 30
# A dense file may take longer than a sparse one, in which every second is an attack.
_MOST_S, _MOST_S_A_BYTE, _MOST_S_AT_ALL = 4.0, 150e-9, 12.0


class _Cost(NamedTuple):
    """What a decoder takes beside the picture that it fills."""

    bytes_a_pixel: float
    ns_a_pixel: float
    ns_a_byte: float


# Measured with Pillow 13 on pictures of 24 million pixels, of one colour and of noise. The lower
# half goes by Pillow's name of a decoder that is much slower or quicker than others of its format.
_COSTS = {
    "AVIF": _Cost(10, 25, 250),
    "BMP": _Cost(0, 12, 1),
    "GIF": _Cost(2, 20, 25),
    "HEIF": _Cost(10, 25, 250),
    "JPEG": _Cost(0, 15, 25),
    "JPEG2000": _Cost(18, 60, 220),
    "PNG": _Cost(0, 30, 30),
    "PPM": _Cost(0, 12, 1),
    "TIFF": _Cost(0, 25, 20),
    "WEBP": _Cost(13, 30, 30),
    "bmp_rle": _Cost(2, 240, 600),
    "ppm_plain": _Cost(8, 60, 500),
    "raw": _Cost(0, 12, 1),
}
# Buffers that decoders have for pictures of any size.
_ANY_BYTES = 4 << 20
_NS_A_BLOCK = 20
_NS_A_TILE = 50_000
# Blocks and precincts of a JPEG 2000.
_BYTES_A_PART, _PARTS_A_TILE = 400, 25
BAND_PX = 1 << 22
"""Pixels that are brought to RGB at once, where copies in between take many times their size."""
# Rows are addresses of 8 bytes each; pictures are turned upright, and flattened, in a copy.
_BYTES_A_ROW = 8
_BYTES_A_BAND_PIXEL = {"8 bits": 12, "grey": 28, "colour": 64}
_BYTES_A_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}


_most_bytes: int | None = None


def most_decode_bytes() -> int:
    """Return the most memory that decoding one image may take; the environment is read once."""
    if _most_bytes is None:
        text = os.environ.get(DECODE_MEMORY)
        try:
            set_most_decode_bytes(as_bytes(text, name=DECODE_MEMORY) if text else MOST_DECODE_BYTES)
        except HeadError as error:
            raise DatasetError(str(error)) from error
    assert _most_bytes is not None
    return _most_bytes


def set_most_decode_bytes(count: int | None) -> None:
    """Set that limit; None has the environment read again."""
    global _most_bytes
    _most_bytes = count


def check_pixels(size_px: tuple[int, int]) -> None:
    """Refuse a picture (height, width) of more pixels than the user allows Pillow."""
    from PIL import Image

    height, width = size_px
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and limit < _PILLOWS_PIXELS and height * width > limit:
        raise ImageError(
            f"too large: {width}x{height} pixels, the limit is {limit} pixels: make it smaller"
        )


def check_canvas(kind: str, size_px: tuple[int, int]) -> None:
    """Refuse a picture whose pixels alone take too much, before its canvas is allocated."""
    height, width = size_px
    check_memory(f"{width}x{height} pixels of {kind}", 4 * height * width)


def check_memory(what: str, need_bytes: int) -> None:
    """Refuse what takes too much memory, and say how to allow it."""
    if need_bytes > most_decode_bytes():
        needed = -(-need_bytes // 10**9)
        raise ImageError(
            f"too large: {what} take about {need_bytes >> 20:,} MiB of memory to decode, the limit "
            f"is {most_decode_bytes() >> 20:,} MiB: make the image smaller, or set "
            f"{DECODE_MEMORY}={needed}GB"
        )


def check_work(
    container: Container,
    image: Image.Image | None,
    file: bytes,
    *,
    scales: Sequence[int],
    widths: Sequence[int],
    deep: bool = False,
    windowed: bool = False,
) -> int:
    """Return the bytes that decoding takes at most; refuse what takes too much of them or of time.

    `file` is what was read; it is decoded once at each of the `scales`, and brought to the
    `widths`. Colour that is `deep` is decoded for its low bytes too where it is `windowed`.
    """
    file_bytes = len(file)
    kind = container.kind
    if image is None:  # to read its header would allocate it
        (height, width), mode = container.size_px or (0, 0), "RGBA"
        codec = kind
    else:
        width, height = image.size
        mode = image.mode
        tiles = getattr(image, "tile", ())
        codec = str(tiles[0][0]) if tiles else kind
    cost = _COSTS.get(codec, _COSTS[kind])
    pixels = width * height
    scaled = pixels // min(scales) ** 2
    rows = height // min(scales)
    copies = file_bytes + (0 if container.data is file else len(container.data))
    picture = scaled * _BYTES_A_PIXEL.get(mode, 4) + rows * _BYTES_A_ROW
    rgb = scaled * 4 + rows * _BYTES_A_ROW
    decoding = picture + int(pixels * cost.bytes_a_pixel)
    blocks = parts = 0
    if kind == "JPEG" and image is not None:
        pixels = scaled
        # The blocks that all scans visit, which are kept from scan to scan.
        layers: list[tuple[int, int, int, int]] = getattr(image, "layer", [])
        across = 8 * max((h for _, h, _, _ in layers), default=1)
        down = 8 * max((v for _, _, v, _ in layers), default=1)
        columns, lines = -(-width // across), -(-height // down)
        in_a_scan = sum(columns * h * lines * v for _, h, v, _ in layers)
        blocks = container.scans * in_a_scan
        decoding += 128 * in_a_scan if container.scans > 1 else 0
    elif kind == "TIFF" and image is not None:
        if codec == "libtiff":
            decoding += _tiff_buffer(image)
    elif kind == "JPEG2000":
        coded = container.coded
        assert coded is not None
        pixels = max(pixels, coded.pixels) // min(scales) ** 2
        decoding = picture + coded.progress_bytes + coded.parts * _BYTES_A_PART
        decoding += int(pixels * max(cost.bytes_a_pixel, 6 * coded.channels))
        parts = coded.tiles + coded.parts // _PARTS_A_TILE
    # A picture is turned before its colours are made, by Pillow, or afterwards.
    if getattr(image, "tag_v2", {}).get(274, 1) != 1:
        decoding = max(decoding, 2 * picture)
    turned = container.orientation > 1 or kind == "AVIF"
    flattened, twice = (1 + turned) * rgb, deep and windowed
    if mode != "RGB" or deep:
        samples = "colour" if twice else "grey" if mode[0] in "IF" else "8 bits"
        flattened += min(scaled, BAND_PX) * _BYTES_A_BAND_PIXEL[samples]
        flattened += (2 if twice else mode != "RGB") * picture
    resized = rgb + max((4 * target * rows for target in widths), default=3 * scaled)
    need = _ANY_BYTES + copies + max(decoding, flattened, resized)
    size = f"{width}x{height} pixels of {kind}"
    check_memory(size, need)
    spent_ns = pixels * cost.ns_a_pixel + file_bytes * cost.ns_a_byte
    spent_ns += blocks * _NS_A_BLOCK + parts * _NS_A_TILE
    seconds = 1e-9 * len(scales) * (1 + twice) * spent_ns
    limit = min(_MOST_S_AT_ALL, _MOST_S + _MOST_S_A_BYTE * file_bytes)
    if seconds > limit:
        raise ImageError(
            f"too much work: {size} in a file of {file_bytes:,} bytes take about {seconds:.0f} s "
            f"to decode, the limit for it is {limit:.0f} s: save the image anew, in another format"
        )
    return need


def check_array(shape: tuple[int, ...], widths: Sequence[int]) -> int:
    """Return the bytes that bringing an array image to these widths takes; refuse too many."""
    height, width = shape[:2] if len(shape) > 1 else (1, 1)
    need: int = 7 * height * width + height * (4 * max(widths, default=0) + _BYTES_A_ROW)
    check_memory(f"{width}x{height} pixels of an array", need)
    return need


def _tiff_buffer(image: Image.Image) -> int:
    """Return the size of a strip or tile of a TIFF, uncompressed."""
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(258, (8,)))
    samples = int(tags.get(277, 1))
    width = int(tags.get(322, image.width))
    rows = int(tags.get(323, min(int(tags.get(278, image.height)), image.height)))
    return int(width * rows * max(1, samples) * max(8, bits) // 8)


class Budget:
    """Memory that all who decode large images at the same time share."""

    def __init__(self, total_bytes: int = _MOST_SHARED_BYTES) -> None:
        self._total = total_bytes
        self._used = 0
        self._turn = threading.Lock()
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, need_bytes: int) -> Iterator[None]:
        """Wait until there is room for an image, and keep it for as long as the context lasts."""
        if need_bytes <= _LIGHT_BYTES:
            yield
            return
        self.take(need_bytes)
        try:
            yield
        finally:
            self.give_back(need_bytes)

    def take(self, need_bytes: int) -> None:
        """Wait for room; one that takes more than there is waits until it is alone."""
        # In turns: an image that takes much is not put off for ever by those that take less.
        with self._turn, self._freed:
            self._freed.wait_for(lambda: not self._used or self._used + need_bytes <= self._total)
            self._used += need_bytes

    def give_back(self, need_bytes: int) -> None:
        """Give room back that was taken."""
        with self._freed:
            self._used -= need_bytes
            self._freed.notify_all()


_budget = Budget()


def budget() -> Budget:
    """Return the budget of this process."""
    return _budget


def set_budget(other: Budget) -> None:
    """Put another in its place: a process that decodes for another one asks that one."""
    global _budget
    _budget = other


if hasattr(os, "register_at_fork"):
    # A process that was forked off has none of the threads that hold something.
    os.register_at_fork(after_in_child=lambda: set_budget(Budget()))
