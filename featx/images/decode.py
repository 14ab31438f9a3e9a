"""From the bytes of an image file, or an array, to RGB pixels: one policy for every kind of image.

The rules, version 1 (`featx.spec.ImagePolicy.decoder`): EXIF orientation is applied; transparency
(alpha channels, palettes, a transparent colour) lies over white; greyscale, 1-bit, palette, CMYK
and YCbCr become RGB without their colour profile; 16-bit greyscale is divided by 257 and rounded;
an animation gives its first frame, a multi-page TIFF its first page. 16-bit colour keeps the high
byte. A JPEG of more than `MOST_PIXELS` is decoded at the largest fraction, 1/2, 1/4 or 1/8, that
has no more. Arrays are uint8, bool, uint16 or floats in [0, 1]. What is truncated, damaged, or
takes too much memory or time (`featx.images.limits`) fails with a reason. All functions may be
called from many threads; no warning of Pillow's reaches the caller.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import IO, TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ImageError, MissingExtraError
from featx.images.containers import Container, exif_orientation, inspect
from featx.images.files import AnyArray, ImageData, image_key, why_failed
from featx.images.limits import MOST_PIXELS, budget, check_array, check_pixels, check_work
from featx.spec import AUGMENTATIONS, ImagePolicy, ViewPolicy

if TYPE_CHECKING:
    from PIL import Image

Rgb: TypeAlias = NDArray[np.uint8]
Plugin: TypeAlias = "Callable[[IO[bytes]], Image.Image]"
_VERSION = 1
_BAND_PX = 1 << 22
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


AnyTarget: TypeAlias = Target | tuple[tuple[int, int], ImagePolicy]
"""A `Target`, or the pair of its first two parts."""


def as_targets(targets: Iterable[AnyTarget]) -> list[Target]:
    """Return targets in full."""
    return [Target(*target) for target in targets]


class Decoded(NamedTuple):
    """Pixels, one array a target; none, and why, when it cannot be decoded."""

    pixels: list[Rgb]
    reason: str
    decode_s: float


def decode_targets(data: ImageData, targets: Sequence[Target], key: bytes) -> Decoded:
    """Return the pixels of an image for all targets, or why there are none."""
    start = time.perf_counter()
    try:
        pixels = decode_sizes(data, targets, key=key)
    except Exception as error:
        return Decoded([], why_failed(error), time.perf_counter() - start)
    return Decoded(pixels, "", time.perf_counter() - start)


def decode_sizes(
    data: ImageData, targets: Sequence[AnyTarget], *, key: bytes | None = None
) -> list[Rgb]:
    """Return the pixels of an image, decoded once for all targets; equal ones share one array.

    Every result equals that for its target alone; a file is decoded a second time only where
    ``draft`` of the policy lets targets start from different scales. Views are drawn from the key
    of the image, which is made where it is needed and not given.
    """
    with short_failures():
        drawn: list[tuple[Target, View]] = []
        for target in as_targets(targets):
            view = UNCHANGED
            if target.view is not None:
                key = key or image_key(data)
                view = draw_view(target.view, key)
            drawn.append((target, view))
        widths = [target.size_px[1] for target, _ in drawn]
        picture: Callable[[int], Image.Image]
        if isinstance(data, bytes):
            file = _File(data)
            if not drawn:
                return []
            scales = [
                file.scale(_least_px(target.size_px, view) if target.image.draft else None)
                for target, view in drawn
            ]
            need, picture = file.check(scales, widths), file.rgb
        else:
            scales = [1] * len(drawn)
            need, picture = check_array(data, widths), partial(_array_picture, data)
        pixels: dict[tuple[Target, int], Rgb] = {}
        with budget().hold(need):
            for scale in dict.fromkeys(scales):
                rgb = picture(scale)
                for (target, view), its_scale in zip(drawn, scales, strict=True):
                    if its_scale == scale and (target, scale) not in pixels:
                        small = _resize(rgb, target.size_px, target.image, view.box)
                        pixels[target, scale] = np.array(change_look(small, view))
                del rgb
        return [pixels[target, scale] for (target, _), scale in zip(drawn, scales, strict=True)]


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
        scale = file.scale(draft_px)
        with budget().hold(file.check([scale], [])):
            return np.array(file.rgb(scale))


def size_of(data: bytes) -> tuple[int, int]:
    """Return height and width of an upright image file, from its header."""
    with short_failures():
        return _File(data).size_px


class _File:
    """The bytes of an image file, of which Pillow has read no more than the header."""

    def __init__(self, data: bytes) -> None:
        self._bytes = len(data)
        self._container = inspect(data)
        self._header: Image.Image | None = None
        if self._container.kind == "WEBP":
            # To read its header would allocate the picture.
            check_pixels("WEBP", self._container.size_px or (0, 0))
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
        """Return the factor by which a JPEG shrinks.

        With `least_px` it is the largest that leaves it at least as large, without it 1; a picture
        of too many pixels shrinks until it has no more.
        """
        if self._container.kind != "JPEG" or self._header is None:
            return 1
        width, height = self._header.size
        room = 1
        if least_px is not None:
            down, across = least_px if self._container.orientation < 5 else least_px[::-1]
            room = min(height // max(1, down), width // max(1, across))
        too_large = (s for s in (2, 4, 8) if height * width > MOST_PIXELS * (s // 2) ** 2)
        return max([1, *(s for s in (2, 4, 8) if room >= s), *too_large])

    def check(self, scales: Sequence[int], widths: Sequence[int]) -> int:
        """Return the bytes that decoding takes at most; refuse what takes too much."""
        return check_work(
            self._container, self._header, file_bytes=self._bytes, scales=scales, widths=widths
        )

    def rgb(self, scale: int) -> Image.Image:
        """Return upright RGB at 1/scale."""
        # Nobody else may keep the picture: it is let go of as soon as its RGB is there.
        image, self._header = self._header or open_image(self._container), None
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        orientation = self._container.orientation
        if self._container.kind == "AVIF":
            # Pillow states the turn that the item properties ask for in terms of EXIF.
            orientation = exif_orientation(image.info.get("exif", b""))
        image.load()
        return _upright(image, orientation)


def picture_to_rgb(image: Image.Image) -> Rgb:
    """Return upright RGB of a PIL image, in memory or a page of a file, by the rules for files."""
    with short_failures():
        check_pixels("", (image.height, image.width))
        with budget().hold(7 * image.width * image.height):
            with _loading:
                image.load()
            # As in files, an orientation in XMP does not count.
            if image.info.keys() & {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}:
                orientation = exif_orientation(image.info.get("exif") or b"")
            else:
                orientation = int(image.getexif().get(0x0112, 1))
            return np.array(_upright(image, orientation))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return RGB, turned as an EXIF orientation says."""
    from PIL import Image as PILImage

    image = _to_rgb(image)
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(PILImage.Transpose[turn])


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return RGB, made a band of rows at a time where intermediate copies would take much."""
    from PIL import Image as PILImage

    rows = max(1, _BAND_PX // max(1, image.width))
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if rows >= image.height:
        return _band_to_rgb(image)
    rgb = PILImage.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_band_to_rgb(band), (0, top))
    return rgb


def _band_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image as PILImage

    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        return _deep_grey_to_rgb(image)
    if mode == "F":
        raise ImageError(
            "pixels of mode 'F' (32-bit floating point) have no known range: expected 8 or 16 bits "
            "a channel, save the image as 8-bit"
        )
    if image.has_transparency_data:
        rgba = image if mode == "RGBA" else image.convert("RGBA")
        white = PILImage.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba)
        return white
    return image if mode == "RGB" else image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Divide 16-bit greyscale by 257; mode I is 32 bits wide and often holds 16."""
    from PIL import Image as PILImage

    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"pixels of mode {image.mode!r} (32-bit integers) range from {low} to {high}: expected "
            "0 to 65535, save the image as 8 or 16-bit"
        )
    grey = sixteen_to_eight(values)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return PILImage.fromarray(grey).convert("RGB")


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


def _array_picture(array: AnyArray, scale: int) -> Image.Image:
    """Return an array image as RGB; it does not shrink."""
    from PIL import Image as PILImage

    return PILImage.fromarray(np.ascontiguousarray(array_to_rgb(array)))


def array_to_rgb(array: AnyArray) -> Rgb:
    """Return an array image (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) as RGB uint8 (h, w, 3).

    A fourth channel is alpha, and lies over white.
    """
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
    if array.dtype.kind == "f":
        check_float_range(array)
    rows = max(1, _BAND_PX // array.shape[1])
    if rows >= len(array) or (array.dtype == np.uint8 and array.shape[2:] == (3,)):
        return _array_band_to_rgb(array)
    # Large ones a band of rows at a time, as the copies in between take many times their size.
    rgb = np.empty((*array.shape[:2], 3), np.uint8)
    for top in range(0, len(array), rows):
        rgb[top : top + rows] = _array_band_to_rgb(array[top : top + rows])
    return rgb


def _array_band_to_rgb(array: AnyArray) -> Rgb:
    values = _eight_bit(array)
    if values.ndim == 2:
        values = values[:, :, np.newaxis]
    if values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    if values.shape[2] == 4:
        wide = values.astype(np.uint32)
        alpha = wide[:, :, 3:]
        return ((wide[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return values


def sixteen_to_eight(values: AnyArray) -> Rgb:
    """Return integers from 0 to 65535 divided by 257 and rounded to the nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def check_float_range(values: AnyArray) -> None:
    """Refuse float images that are not in [0, 1], naming the range and what to do."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("float pixels must be finite, received NaN or infinity")
    if low >= -_SLACK and high <= 1 + _SLACK:
        return
    if low < 0:
        todo = "map them to [0, 1] first, with the same offset and factor for all images"
    else:
        full = 255 if 16 < high <= 255 else f"{high:g}"
        todo = f"divide all images by their largest possible value (perhaps {full})"
    raise ImageError(
        f"float pixels must lie in [0, 1], received {low:g} to {high:g} ({values.dtype}): {todo}"
    )


def _eight_bit(array: AnyArray) -> Rgb:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return sixteen_to_eight(array)
    if array.dtype.kind == "f":
        scaled: AnyArray = np.rint(np.clip(array.astype(np.float64), 0, 1) * 255)
        return scaled.astype(np.uint8)
    seen = ""
    if array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        todo = ".astype('uint8')" if 0 <= low <= high <= 255 else "map them to 0..255 first"
        seen = f" with values {low} to {high}: {todo}"
    raise ImageError(
        f"expected pixels of uint8, bool, uint16 or floats in [0, 1], received {array.dtype}{seen}"
    )


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
        check_pixels(kind, container.size_px)
    image = plugin(io.BytesIO(container.data))
    check_pixels(kind, (image.height, image.width))
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
