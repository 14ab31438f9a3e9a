"""From the bytes of an image file, or an array, to RGB pixels: one policy for every kind of image.

The rules, version 1 (`featx.spec.ImagePolicy.decoder`): EXIF orientation is applied; transparency
(alpha channels, palettes, a transparent colour) lies over white; greyscale, 1-bit, palette, CMYK
and YCbCr become RGB without their colour profile; 16-bit greyscale is divided by 257 and rounded;
an animation gives its first frame, a multi-page TIFF its first page. 16-bit colour keeps the high
byte. A JPEG or JPEG 2000 of more than `MOST_PIXELS` is decoded at the largest fraction, 1/2, 1/4
and so on, that has no more. Arrays are uint8, bool, uint16 or floats in [0, 1].

With a window, samples of more than 8 bits, whatever their range, are mapped linearly from it to 0
to 255, clipped and rounded, before all else: greyscale of any format, 16-bit colour of PNG and
TIFF, and arrays. They are counted as in the file, also where its format scales them.

What is truncated, damaged, or takes too much memory or time (`featx.images.limits`) fails with a
reason. All functions may be called from many threads; no warning of Pillow's reaches the caller.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ImageError, MissingExtraError
from featx.images.containers import AS_IN_FILE, Container, Samples, exif_orientation, inspect
from featx.images.files import AnyArray, ImageData, image_key, why_failed
from featx.images.limits import (
    BAND_PX,
    MOST_PIXELS,
    budget,
    check_array,
    check_canvas,
    check_memory,
    check_pixels,
    check_work,
)
from featx.spec import AUGMENTATIONS, ImagePolicy, ViewPolicy, Window

if TYPE_CHECKING:
    from PIL import Image

Rgb: TypeAlias = NDArray[np.uint8]
Plugin: TypeAlias = "Callable[[IO[bytes]], Image.Image]"
_VERSION = 1
# Room for rounding in a float image; what lies within is clipped.
_SLACK = 1e-3
# Names of PIL.Image.Transpose by EXIF orientation.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# Rec. 601 luma, as Pillow's conversion to greyscale has it.
_LUMA = (0.299, 0.587, 0.114)
_NUMBERS = 8


# Pillow loads an image once, and not from two threads at a time.
_loading = threading.Lock()


class Target(NamedTuple):
    """One array of pixels to be made of every image: (height, width), and how to get there."""

    size_px: tuple[int, int]
    image: ImagePolicy
    view: ViewPolicy | None = None


Start: TypeAlias = tuple[int, Window | None]
"""What a picture is decoded with: the factor by which it shrinks, and its window."""
AnyTarget: TypeAlias = Target | tuple[tuple[int, int], ImagePolicy]
"""A `Target`, or the pair of its first two parts."""


def as_targets(targets: Iterable[AnyTarget]) -> list[Target]:
    """Return targets in full."""
    return [Target(*target) for target in targets]


class Extent(NamedTuple):
    """Lowest and highest sample of a picture of more than 8 bits, and the largest possible one."""

    low: float
    high: float
    full: float


class Decoded(NamedTuple):
    """Pixels, one array a target; none, and why, when it cannot be decoded.

    `extent` is that of a deep picture that was decoded without a window.
    """

    pixels: list[Rgb]
    reason: str
    decode_s: float
    extent: Extent | None = None


def decode_targets(data: ImageData, targets: Sequence[Target], key: bytes) -> Decoded:
    """Return the pixels of an image for all targets, or why there are none."""
    start = time.perf_counter()
    try:
        pixels, extent = _decode(data, targets, key)
    except Exception as error:
        return Decoded([], why_failed(error), time.perf_counter() - start)
    return Decoded(pixels, "", time.perf_counter() - start, extent)


def decode_sizes(
    data: ImageData, targets: Sequence[AnyTarget], *, key: bytes | None = None
) -> list[Rgb]:
    """Return the pixels of an image, decoded once for all targets; equal ones share one array.

    Every result equals that for its target alone; a file is decoded a second time only where
    policies have targets start from different scales or windows. Views are drawn from the key of
    the image, which is made where it is needed and not given.
    """
    return _decode(data, targets, key)[0]


def _decode(
    data: ImageData, targets: Sequence[AnyTarget], key: bytes | None
) -> tuple[list[Rgb], Extent | None]:
    with short_failures():
        drawn: list[tuple[Target, View]] = []
        for target in as_targets(targets):
            view = UNCHANGED
            if target.view is not None:
                key = key or image_key(data)
                view = draw_view(target.view, key)
            drawn.append((target, view))
        widths = [target.size_px[1] for target, _ in drawn]
        picture: Callable[[int, Window | None], tuple[Image.Image, Extent | None]]
        windows = [target.image.window for target, _ in drawn]
        if isinstance(data, bytes):
            file = _File(data)
            if not drawn:
                return [], None
            scales = [
                file.scale(_least_px(target.size_px, view) if target.image.draft else None)
                for target, view in drawn
            ]
            starts = list(zip(scales, windows, strict=True))
            need, picture = file.check(list(dict.fromkeys(starts)), widths), file.rgb
        else:
            starts = [(1, window) for window in windows]
            need, picture = check_array(np.shape(data), widths), partial(_array_picture, data)
        pixels: dict[tuple[Target, int], Rgb] = {}
        extent = None
        with budget().hold(need):
            for start in dict.fromkeys(starts):
                rgb, its_extent = picture(*start)
                extent = extent or its_extent
                for (target, view), its_start in zip(drawn, starts, strict=True):
                    if its_start == start and (target, start[0]) not in pixels:
                        small = _resize(rgb, target.size_px, target.image, view.box)
                        pixels[target, start[0]] = np.array(change_look(small, view))
                del rgb
        made = [
            pixels[target, scale] for (target, _), (scale, _) in zip(drawn, starts, strict=True)
        ]
        return made, extent


def _least_px(size_px: tuple[int, int], view: View) -> tuple[int, int]:
    """Return the size that a draft must have: what is cut out keeps twice the size of a target."""
    height, width = size_px
    box = view.box or Box(0, 0, 1, 1)
    return math.ceil(2 * height / box.height), math.ceil(2 * width / box.width)


def decode_image(data: ImageData, size_px: tuple[int, int], policy: ImagePolicy) -> Rgb:
    """Return the pixels of an image at one size (height, width)."""
    return decode_sizes(data, [(size_px, policy)])[0]


def decode_rgb(data: bytes, *, draft_px: tuple[int, int] | None = None) -> Rgb:
    """Return an image file at its own size; a JPEG may be smaller by 2, 4 or 8 to `draft_px`."""
    with short_failures():
        file = _File(data)
        start = (file.scale(draft_px), None)
        with budget().hold(file.check([start], [])):
            return np.array(file.rgb(*start)[0])


def size_of(data: bytes) -> tuple[int, int]:
    """Return height and width of an upright image file, from its header."""
    with short_failures():
        return _File(data).size_px


class _File:
    """The bytes of an image file, of which Pillow has read no more than the header."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._container = inspect(data)
        self._header: Image.Image | None = None
        if self._container.kind == "WEBP":
            # To read its header would allocate the picture.
            check_pixels(self._container.size_px or (0, 0))
        else:
            self._header = open_image(self._container)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the upright image; zeros where the header does not tell."""
        height, width = self._container.size_px or (0, 0)
        if self._header is not None:
            width, height = self._header.size
        return (height, width) if self._container.orientation < 5 else (width, height)

    def scale(self, least_px: tuple[int, int] | None) -> int:
        """Return the factor by which a JPEG or a JPEG 2000 shrinks.

        With `least_px` it is the largest that leaves a JPEG at least as large, without it 1; a
        picture of too many pixels shrinks until it has no more.
        """
        kind, image, coded = self._container.kind, self._header, self._container.coded
        if image is None or kind not in MOST_PIXELS:
            return 1
        width, height = image.size
        room, steps = 1, (2, 4, 8)
        if coded is not None:
            # One that misstates itself is not worth the risk.
            same = coded.size_px == (height, width)
            steps = tuple(2**level for level in range(1, coded.levels + 1)) if same else ()
        elif least_px is not None:
            down, across = least_px if self._container.orientation < 5 else least_px[::-1]
            room = min(height // max(1, down), width // max(1, across))
        too_large = (s for s in steps if height * width > MOST_PIXELS[kind] * (s // 2) ** 2)
        return max([1, *(s for s in steps if room >= s), *too_large])

    def check(self, starts: Sequence[Start], widths: Sequence[int]) -> int:
        """Return the bytes that decoding takes at most; refuse what takes too much."""
        return check_work(
            self._container,
            self._header,
            self._data,
            scales=[scale for scale, _ in starts],
            widths=widths,
            deep=self._header is not None and _is_deep_colour(self._header),
            windowed=any(window is not None for _, window in starts),
        )

    def rgb(self, scale: int, window: Window | None) -> tuple[Image.Image, Extent | None]:
        """Return upright RGB at 1/scale, and the extent of deep samples without a window."""
        # Nobody else may keep the picture: it is let go of as soon as its RGB is there.
        image, self._header = self._header or open_image(self._container), None
        deep_colour = _is_deep_colour(image)
        samples, low_bytes = self._container.samples, None
        if self._container.kind == "TIFF":
            samples = Samples(unsigned=getattr(image, "tag_v2", {}).get(339, (1,)) == (1,))
        if deep_colour and window is not None:
            low_bytes = open_image(self._container)
            low_bytes = self._loaded(low_bytes, scale) if _take_low_bytes(low_bytes) else None
        orientation = self._container.orientation
        if self._container.kind == "AVIF":
            # Pillow states the turn that the item properties ask for in terms of EXIF.
            orientation = exif_orientation(image.info.get("exif", b""))
        image = self._loaded(image, scale)
        if deep_colour:
            image, extent = _deep_colour_to_rgb(image, low_bytes, window)
        else:
            image, extent = _to_rgb(image, window, samples)
        return _turned(image, orientation), extent

    def _loaded(self, image: Image.Image, scale: int) -> Image.Image:
        """Return an opened image with its pixels."""
        from PIL import Image as PILImage

        if self._container.kind == "JPEG2000":
            image.reduce = scale.bit_length() - 1  # type: ignore[assignment,method-assign]
        elif scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        tile_size = getattr(image, "_tile_size", None)
        if tile_size and image.width * image.height > (PILImage.MAX_IMAGE_PIXELS or math.inf):
            # Pillow would warn of a TIFF whose canvas it makes itself.
            core: Any = getattr(PILImage, "core")  # noqa: B009
            image.im = core.new(image.mode, tile_size)
        image.load()
        return image


def picture_data(image: Image.Image) -> ImageData:
    """Return a PIL image, in memory or a page of a file, as upright RGB by the rules for files.

    One of deep samples is a TIFF file, so that a window applies to them.
    """
    with short_failures():
        check_pixels((image.height, image.width))
        need = 7 * image.width * image.height
        check_memory(f"{image.width}x{image.height} pixels", need)
        with budget().hold(need):
            with _loading:
                image.load()
            # As in files, an orientation in XMP does not count.
            if image.info.keys() & {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}:
                orientation = exif_orientation(image.info.get("exif") or b"")
            else:
                orientation = int(image.getexif().get(0x0112, 1))
            if _is_deep_grey(image) and "transparency" not in image.info:
                return _as_tiff(_turned(image, orientation))
            return np.array(_turned(_to_rgb(image)[0], orientation))


def _as_tiff(image: Image.Image) -> bytes:
    """Return the samples of an image as the bytes of a TIFF file without metadata."""
    from PIL import Image as PILImage

    file = io.BytesIO()
    PILImage.fromarray(np.asarray(image)).save(file, "TIFF")
    return file.getvalue()


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image turned as an EXIF orientation says."""
    from PIL import Image as PILImage

    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(PILImage.Transpose[turn])


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Return an image a band of rows at a time, each with its top row; all of a small one."""
    rows = max(1, BAND_PX // max(1, image.width))
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _joined(size: tuple[int, int], bands: Iterable[tuple[int, Image.Image]]) -> Image.Image:
    """Return bands of RGB as one image."""
    from PIL import Image as PILImage

    rgb = None
    for top, band in bands:
        if band.size == size:
            return band
        rgb = rgb or PILImage.new("RGB", size)
        rgb.paste(band, (0, top))
    assert rgb is not None
    return rgb


def _to_rgb(
    image: Image.Image, window: Window | None = None, samples: Samples = AS_IN_FILE
) -> tuple[Image.Image, Extent | None]:
    """Return RGB, and the extent of deep samples that no window was given for.

    It is made a band of rows at a time where intermediate copies would take much.
    """
    if _is_deep_grey(image):
        return _deep_grey_to_rgb(image, window, samples)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image, None
    return _joined(image.size, ((top, _flat(band)) for top, band in _bands(image))), None


def _flat(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits as RGB, over white where it is transparent."""
    from PIL import Image as PILImage

    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        white = PILImage.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey_to_rgb(
    image: Image.Image, window: Window | None, samples: Samples
) -> tuple[Image.Image, Extent | None]:
    """Map a window, or else 16 bits, to 0 to 255; mode I is 32 bits wide and often holds 16."""
    from PIL import Image as PILImage

    if image.mode == "F" and window is None:
        raise ImageError(
            "pixels of mode 'F' (32-bit floating point) have no known range: expected 8 or 16 bits "
            "a channel, save the image as 8-bit, or state the range, --window MIN:MAX "
            "(ImagePolicy(window=...))"
        )
    clear = image.info.get("transparency")

    def values(band: Image.Image) -> AnyArray:
        array: AnyArray = np.asarray(band)
        return array.view(np.uint32) if samples.unsigned and array.dtype == np.int32 else array

    low, high = _extremes(values(band) for _, band in _bands(image))
    ends = _ends(window, low, high, samples)
    if ends is None and (low < 0 or high > 65535):
        raise ImageError(
            f"pixels of mode {image.mode!r} (32-bit integers) range from {low:.0f} to {high:.0f}: "
            "expected 0 to 65535, save the image as 8 or 16-bit, or state a range, --window "
            "MIN:MAX (ImagePolicy(window=...))"
        )

    def rgb(band: Image.Image) -> Image.Image:
        array = values(band)
        grey = sixteen_to_eight(array) if ends is None else _windowed(array, *ends)
        if isinstance(clear, int):
            grey = np.where(array == clear, np.uint8(255), grey)
        return PILImage.fromarray(grey).convert("RGB")

    extent = None
    if window is None:
        in_file = (value / samples.scale - samples.zero for value in (low, high, 65535))
        extent = Extent(*in_file)
    return _joined(image.size, ((top, rgb(band)) for top, band in _bands(image))), extent


# The unpackers of Pillow that give the high bytes of 16-bit samples, and those that give the low
# ones of the same; N is the order of the machine.
_NATIVE, _FOREIGN = (";16L", ";16B") if sys.byteorder == "little" else (";16B", ";16L")
_LOW_BYTES = {
    f"{colours}{order}": f"{colours}{other}"
    for colours in ("RGB", "RGBX", "RGBA")
    for order, other in ((";16L", ";16B"), (";16B", ";16L"), (";16N", _FOREIGN))
}


def _raw_modes(image: Image.Image) -> set[str]:
    """Return in which layouts the samples of a file lie that Pillow has opened."""
    args = (tile[3] for tile in getattr(image, "tile", ()))
    return {str(arg[0]) if isinstance(arg, tuple) and arg else str(arg) for arg in args}


def _is_deep_colour(image: Image.Image) -> bool:
    """Return whether Pillow will drop the low bytes of an opened file's colours."""
    return image.mode in ("RGB", "RGBA") and any(";16" in mode for mode in _raw_modes(image))


def _take_low_bytes(image: Image.Image) -> bool:
    """Have Pillow decode the low bytes in place of the high ones; return whether it can."""
    tags = getattr(image, "tag_v2", {})
    if not _raw_modes(image) <= _LOW_BYTES.keys() or tags.get(284, 1) != 1:
        return False
    tiles: Any = image
    tiles.tile = [
        tile._replace(
            args=(_LOW_BYTES[tile.args[0]], *tile.args[1:])
            if isinstance(tile.args, tuple)
            else _LOW_BYTES[tile.args]
        )
        for tile in tiles.tile
    ]
    return True


def _deep_colour_to_rgb(
    high_bytes: Image.Image, low_bytes: Image.Image | None, window: Window | None
) -> tuple[Image.Image, Extent | None]:
    """Return RGB of 16-bit colour, from its high bytes alone where no window asks for more."""
    from PIL import Image as PILImage

    if window is None:
        ends = np.array([band.getextrema()[:3] for _, band in _bands(high_bytes)])
        extent = Extent(257.0 * ends.min(), 257.0 * ends.max(), 65535.0)
        return _to_rgb(high_bytes)[0], extent

    def values(top: int, band: Image.Image) -> AnyArray:
        high = np.asarray(band).astype(np.uint16)
        low = band if low_bytes is None else low_bytes.crop((0, top, band.width, top + band.height))
        samples: AnyArray = high << 8 | np.asarray(low)
        return samples

    extremes = _extremes(values(*band)[..., :3] for band in _bands(high_bytes))
    black_and_white = _ends(window, *extremes)
    clear = high_bytes.info.get("transparency")

    def rgb(top: int, band: Image.Image) -> Image.Image:
        pixels = _array_band_to_rgb(values(top, band), black_and_white)
        if isinstance(clear, tuple):
            pixels[(np.asarray(band) == clear).all(axis=2)] = 255
        return PILImage.fromarray(pixels)

    bands = ((top, rgb(top, band)) for top, band in _bands(high_bytes))
    return _joined(high_bytes.size, bands), None


def _resize(
    image: Image.Image, size_px: tuple[int, int], policy: ImagePolicy, part: Box | None
) -> Image.Image:
    from PIL import Image as PILImage

    if policy.decoder != _VERSION:
        raise ImageError(
            f"decoder rules of version {policy.decoder} are asked for, this featx has version "
            f"{_VERSION}: use the featx that made the features"
        )
    height, width = (int(n) for n in size_px)
    if height < 1 or width < 1:
        raise ImageError(f"expected a size of at least 1x1 pixels, received {size_px}")
    if image.size == (width, height) and part is None:
        return image
    box: tuple[float, float, float, float] | None = None
    if policy.resize == "crop":
        w = max(1, min(image.width, image.height * width // height))
        h = max(1, min(image.height, image.width * height // width))
        x, y = (image.width - w) // 2, (image.height - h) // 2
        box = (x, y, x + w, y + h)
    if part is not None:
        left, top, right, bottom = box or (0.0, 0.0, *image.size)
        across, down = right - left, bottom - top
        left += part.left * across
        top += part.top * down
        # A view shows nothing else than the picture does.
        right, bottom = (
            min(right, left + part.width * across),
            min(bottom, top + part.height * down),
        )
        box = (left, top, right, bottom)
    resample = PILImage.Resampling[policy.interpolation.upper()]
    return image.resize((width, height), resample, box=box)


# Arrays


def _array_picture(
    array: AnyArray, scale: int, window: Window | None
) -> tuple[Image.Image, Extent | None]:
    """Return an array image as RGB, and the extent of deep samples; it does not shrink."""
    from PIL import Image as PILImage

    rgb, extent = _array_to_rgb(array, window)
    return PILImage.fromarray(np.ascontiguousarray(rgb)), extent


def array_to_rgb(array: AnyArray, window: Window | None = None) -> Rgb:
    """Return an array image (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) as RGB uint8 (h, w, 3).

    A fourth channel is alpha, and lies over white. A window applies to all but uint8 and bool.
    """
    return _array_to_rgb(array, window)[0]


def _array_to_rgb(array: AnyArray, window: Window | None) -> tuple[Rgb, Extent | None]:
    array = np.asarray(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = ": channels come last here, use array.transpose(1, 2, 0)"
        raise ImageError(
            "expected an image of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), received "
            f"{array.shape}{hint}"
        )
    if 0 in array.shape:
        raise ImageError(f"an image without pixels: shape {array.shape}")
    ends, extent = None, None
    rows = max(1, BAND_PX // array.shape[1])
    bands = [array[top : top + rows] for top in range(0, len(array), rows)]
    if array.dtype not in (np.uint8, np.bool_) and array.dtype.kind in "iuf":
        colours = (band[..., :3] if band.ndim == 3 else band for band in bands)
        if window is not None:
            ends = _ends(window, *_extremes(colours))
        elif array.dtype.kind == "f":
            extent = Extent(*check_float_range(array), 1.0)
        elif array.dtype == np.uint16:
            extent = Extent(*_extremes(colours), 65535.0)
        else:
            low, high = _extremes(bands)
            todo = ".astype('uint8')" if 0 <= low <= high <= 255 else "map them to 0..255 first"
            raise ImageError(
                f"expected pixels of {_PLAIN_TYPES}, received {array.dtype} with values {low:.0f} "
                f"to {high:.0f}: {todo}, or state a window, --window MIN:MAX "
                "(ImagePolicy(window=...))"
            )
    elif array.dtype not in (np.uint8, np.bool_):
        raise ImageError(f"expected pixels of {_PLAIN_TYPES}, received {array.dtype}")
    if len(bands) == 1 or (array.dtype == np.uint8 and array.shape[2:] == (3,)):
        return _array_band_to_rgb(array, ends), extent
    # Large ones a band of rows at a time, as the copies in between take many times their size.
    rgb = np.empty((*array.shape[:2], 3), np.uint8)
    for number, band in enumerate(bands):
        rgb[number * rows : (number + 1) * rows] = _array_band_to_rgb(band, ends)
    return rgb, extent


def _array_band_to_rgb(array: AnyArray, ends: tuple[float, float] | None) -> Rgb:
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    values = _eight_bit(array[..., :3], ends)
    if values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    if array.shape[2] == 4:
        whole = None if array.dtype.kind not in "iu" else (0.0, float(np.iinfo(array.dtype).max))
        alpha = _eight_bit(array[..., 3:], ends and whole).astype(np.uint32)
        wide = values.astype(np.uint32)
        return ((wide * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return values


def sixteen_to_eight(values: AnyArray) -> Rgb:
    """Return integers from 0 to 65535 divided by 257 and rounded to the nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _extremes(bands: Iterable[AnyArray]) -> tuple[float, float]:
    """Return the lowest and the highest value of all bands; NaN and infinity are refused."""
    ends = [(float(band.min()), float(band.max())) for band in bands]
    low, high = float(np.min(ends)), float(np.max(ends))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("float pixels must be finite, received NaN or infinity: replace them")
    return low, high


def _ends(
    window: Window | None, low: float, high: float, samples: Samples = AS_IN_FILE
) -> tuple[float, float] | None:
    """Return what becomes black and white of decoded samples, which go from `low` to `high`."""
    if window is None or window == "image":
        return None if window is None else (low, high)
    lower, upper = ((end + samples.zero) * samples.scale for end in window)
    return lower, upper


def _windowed(values: AnyArray, low: float, high: float) -> Rgb:
    """Map `low` to `high` linearly to 0 to 255, clipped and rounded; equal ends become black."""
    if low == high:
        return np.zeros(values.shape, np.uint8)
    scaled = values.astype(np.float64)
    scaled -= low
    scaled *= 255
    scaled /= high - low
    return np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)


_PLAIN_TYPES = "uint8, bool, uint16 or floats in [0, 1]"


def check_values(images: AnyArray) -> None:
    """Refuse a type or scale that is wrong in all of some array images without a window."""
    check_type(images.dtype)
    if images.dtype.kind == "f":
        check_float_range(images)


def check_type(dtype: np.dtype[np.generic]) -> None:
    """Refuse a type of pixels that needs a window."""
    if dtype.kind != "f" and dtype not in (np.uint8, np.bool_, np.uint16):
        raise ImageError(
            f"expected pixels of {_PLAIN_TYPES}, received {dtype}; convert 0 to 255 with "
            ".astype('uint8'), or state a window, --window MIN:MAX (ImagePolicy(window=...))"
        )


def check_float_range(values: AnyArray) -> tuple[float, float]:
    """Return the extremes of float images; refuse others than [0, 1], and say what to do."""
    low, high = _extremes([values])
    if low >= -_SLACK and high <= 1 + _SLACK:
        return low, high
    if low < 0:
        todo = "map them to [0, 1] first, with the same offset and factor for all images"
    else:
        full = 255 if 16 < high <= 255 else f"{high:g}"
        todo = f"divide all images by their largest possible value (perhaps {full})"
    raise ImageError(
        f"float pixels must lie in [0, 1], received {low:g} to {high:g} ({values.dtype}): {todo}, "
        "or state a window, --window MIN:MAX (ImagePolicy(window=...))"
    )


def _eight_bit(array: AnyArray, ends: tuple[float, float] | None) -> Rgb:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if ends is not None:
        return _windowed(array, *ends)
    if array.dtype == np.uint16:
        return sixteen_to_eight(array)
    scaled: AnyArray = np.rint(np.clip(array.astype(np.float64), 0, 1) * 255)
    return scaled.astype(np.uint8)


# Files, opened by Pillow

_PLUGINS = {
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "HEIF": ("pillow_heif", "HeifImageFile"),
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "PPM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
}


@contextmanager
def short_failures() -> Iterator[None]:
    """Turn whatever Pillow raises into an `ImageError` with a short reason."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        if type(error).__name__.startswith("DecompressionBomb"):
            raise ImageError(f"too large: {text}") from error
        short = isinstance(error, EOFError) or isinstance(error.__cause__, EOFError)
        if short or "truncated" in text.lower():
            raise ImageError(f"truncated: {text}") from error
        raise ImageError(f"damaged: {text}") from error


@cache
def _plugin(kind: str) -> Plugin:
    """Return Pillow's class for a format; found by hand, as `Image.open` tries all and warns."""
    module, name = _PLUGINS[kind]
    try:
        plugin: Plugin = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    else:
        return plugin
    if kind == "HEIF":
        missing = MissingExtraError("pillow-heif", extra="heif", purpose="reading HEIF images")
        raise ImageError(str(missing))
    raise ImageError(f"this Pillow cannot read {kind}: pip install --upgrade pillow")


def open_image(container: Container) -> Image.Image:
    """Read the header only; nothing of the picture's size is allocated but the canvas of a WebP."""
    from PIL import features

    check_truncation_setting()
    kind = container.kind
    plugin = _plugin(kind)
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        raise ImageError(f"this Pillow was built without {kind}: pip install --upgrade pillow")
    if container.size_px is not None:
        check_pixels(container.size_px)
        check_canvas(kind, container.size_px)
    image = plugin(io.BytesIO(container.data))
    check_pixels((image.height, image.width))
    return image


def is_known_format(name: str | None) -> bool:
    """Return whether featx decodes a format of Pillow's; an MPO is a JPEG with more behind it."""
    return name in _PLUGINS or name == "MPO"


def check_truncation_setting() -> None:
    """Refuse to decode while Pillow is told, for the whole process, to fill up truncated images."""
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so truncated images would "
            "pass for whole ones: set it to False"
        )


# Views: seeded augmentations, each a function of policy, seed, index and the key of an image. What
# is drawn comes from SHAKE-256 of these four, by additions, multiplications, divisions and square
# roots only, so that it is the same in every process, on every platform and with every version of
# NumPy, and depends neither on the order of the images nor on the dataset they are in.


class Box(NamedTuple):
    """A part of a picture, as fractions of its width and height."""

    left: float
    top: float
    width: float
    height: float


class View(NamedTuple):
    """What was drawn for one image: what is cut out (None for all), mirrored, factors of colour."""

    box: Box | None
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


UNCHANGED = View(None, flip=False)


def draw_view(policy: ViewPolicy, key: bytes) -> View:
    """Return the augmentation of the image with a key.

    Notes
    -----
    A part of the picture is cut out as in Inception's training (Szegedy et al. 2015, section 6):
    the area is uniform, the ratio of the sides as good as log-uniform, the place uniform.

    >>> draw_view(ViewPolicy(policy="flip-1"), bytes(32))
    View(box=None, flip=True, brightness=1.0, contrast=1.0, saturation=1.0)
    """
    rule = AUGMENTATIONS[policy.policy]
    head = f"featx-view {policy.policy} {policy.seed} {policy.index}\n".encode("ascii")
    stream = hashlib.shake_256(head + key).digest(8 * _NUMBERS)
    area, shape, left, top, flip, *colours = (
        (int.from_bytes(stream[i : i + 8], "little") >> 11) * 2.0**-53
        for i in range(0, 8 * _NUMBERS, 8)
    )
    box = None
    if rule.least_area < 1:
        share = rule.least_area + (1.0 - rule.least_area) * area
        # Neither side may be longer than the picture's.
        most = min(rule.most_stretch, 1.0 / share)
        # (1 + t) / (1 - t) is exp(2t) up to t**3: within [1/most, most], without a transcendental
        # function, whose last digit differs between platforms.
        t = (most - 1.0) / (most + 1.0) * (2.0 * shape - 1.0)
        stretch = (1.0 + t) / (1.0 - t)
        width, height = min(1.0, math.sqrt(share * stretch)), min(1.0, math.sqrt(share / stretch))
        box = Box(left * (1.0 - width), top * (1.0 - height), width, height)
    factors = [1.0 + rule.colour * (2.0 * colour - 1.0) for colour in colours]
    return View(box, flip < rule.flip, *factors)


def change_look(image: Image.Image, view: View) -> Image.Image:
    """Return an RGB image mirrored and with its colours changed, as drawn."""
    from PIL import Image as PILImage

    if view.flip:
        image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
    b, c, s = view.brightness, view.contrast, view.saturation
    if b == c == s == 1.0:
        return image
    # Brightness multiplies, contrast moves away from the mean grey, saturation from the grey of the
    # pixel, in this order; all three are one affine map, rounded once.
    mean = float(np.asarray(image.convert("L")).mean())
    offset = b * (1.0 - c) * mean
    matrix: list[float] = []
    for row in range(3):
        matrix += [b * c * ((1.0 - s) * _LUMA[i] + (s if i == row else 0.0)) for i in range(3)]
        matrix.append(offset)
    return image.convert("RGB", tuple(matrix))
