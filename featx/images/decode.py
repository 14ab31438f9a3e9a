"""From the bytes of an image file to RGB pixels: one explicit policy for every kind of file.

The rules, version 1 (`featx.spec.ImagePolicy.decoder`): EXIF orientation is applied; transparency
(alpha channels, palettes, a transparent colour) lies over white; greyscale, 1-bit, palette, CMYK
and YCbCr become RGB without their colour profile; 16-bit greyscale is divided by 257 and rounded;
an animation gives its first frame, a multi-page TIFF its first page. 16-bit colour keeps the high
byte. What is truncated, damaged or larger than `MAX_PIXELS` fails with a reason. All functions may
be called from many threads; no warning of Pillow's reaches the caller.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.exceptions import ImageError, MissingExtraError
from featx.images.containers import Container, exif_orientation, inspect
from featx.images.pixels import array_to_rgb, sixteen_to_eight
from featx.spec import ImagePolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = [
    "MAX_PIXELS",
    "array_to_rgb",
    "check_truncation_setting",
    "decode_image",
    "decode_rgb",
    "decode_sizes",
    "fit_array",
    "fit_sizes",
    "resize_rgb",
]

MAX_PIXELS = 89_478_485
"""Most pixels of an image that is decoded; a stricter ``PIL.Image.MAX_IMAGE_PIXELS`` is heeded."""

_VERSION = 1
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


def decode_rgb(data: bytes, *, draft_px: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    r"""Decode an image file at its own size.

    Parameters
    ----------
    data : bytes
        A whole image file: JPEG, PNG, GIF, BMP, TIFF, WebP, PPM, JPEG 2000, AVIF, or HEIF with
        the extra ``heif``.
    draft_px : tuple of (height, width) or None, default None
        Let the JPEG decoder shrink by 2, 4 or 8, never below this size in either direction.

    Returns
    -------
    ndarray of shape (h, w, 3), uint8

    Raises
    ------
    ImageError
        With a short reason, if the bytes are no image, truncated, damaged, or too large.

    Examples
    --------
    >>> decode_rgb(b"P5 2 1 255 \x00\xff")
    array([[[  0,   0,   0],
            [255, 255, 255]]], dtype=uint8)
    """
    with _failures():
        container = inspect(data)
        image = _open(container)
        scale = 1 if draft_px is None else _draft_scale(container, image, draft_px)
        return np.array(_pixels(container, image, scale))


def decode_image(data: bytes, size_px: tuple[int, int], policy: ImagePolicy) -> NDArray[np.uint8]:
    """Decode an image file and bring it to one size.

    Parameters
    ----------
    data : bytes
        A whole image file.
    size_px : tuple of (height, width)
        The size asked for.
    policy : ImagePolicy
        How to decode and resize.

    Returns
    -------
    ndarray of shape (h, w, 3), uint8

    Raises
    ------
    ImageError
        As `decode_rgb` does.
    """
    return decode_sizes(data, [(size_px, policy)])[0]


def decode_sizes(
    data: bytes, targets: Sequence[tuple[tuple[int, int], ImagePolicy]]
) -> list[NDArray[np.uint8]]:
    """Decode an image file once and bring it to several sizes.

    Every result equals that of `decode_image` for its target alone; the file is decoded a second
    time only where ``policy.draft`` lets targets start from different scales.

    Parameters
    ----------
    data : bytes
        A whole image file.
    targets : sequence of ((height, width), ImagePolicy)
        The sizes asked for, in pixels.

    Returns
    -------
    list of ndarray of shape (h, w, 3), uint8
        One a target; equal targets share one array.

    Raises
    ------
    ImageError
        As `decode_rgb` does.
    """
    with _failures():
        container = inspect(data)
        opened = _open(container)
        scales = [
            _draft_scale(container, opened, (2 * h, 2 * w)) if policy.draft else 1
            for (h, w), policy in targets
        ]
        out: dict[tuple[Any, ...], NDArray[np.uint8]] = {}
        for number, scale in enumerate(dict.fromkeys(scales)):
            rgb = _pixels(container, _open(container) if number else opened, scale)
            for (size, policy), own in zip(targets, scales, strict=True):
                if own == scale and (size, policy, scale) not in out:
                    out[size, policy, scale] = np.array(_resize(rgb, size, policy))
        return [out[size, policy, s] for (size, policy), s in zip(targets, scales, strict=True)]


def resize_rgb(
    rgb: NDArray[np.uint8], size_px: tuple[int, int], policy: ImagePolicy
) -> NDArray[np.uint8]:
    """Bring RGB pixels to one size with Pillow.

    ``stretch`` equals Keras's ``load_img(target_size=...)``, ``crop`` its
    ``keep_aspect_ratio=True``, with the same interpolation.

    Parameters
    ----------
    rgb : ndarray of shape (h0, w0, 3), uint8
        Pixels.
    size_px : tuple of (height, width)
        The size asked for.
    policy : ImagePolicy
        How to resize.

    Returns
    -------
    ndarray of shape (h, w, 3), uint8
    """
    from PIL import Image

    with _failures():
        return np.array(_resize(Image.fromarray(np.ascontiguousarray(rgb)), size_px, policy))


def fit_array(
    array: NDArray[Any], size_px: tuple[int, int], policy: ImagePolicy
) -> NDArray[np.uint8]:
    """Turn an array image into RGB of one size: `array_to_rgb`, then `resize_rgb`.

    Examples
    --------
    >>> fit_array(np.eye(8) > 0, (2, 2), ImagePolicy()).shape
    (2, 2, 3)
    """
    return fit_sizes(array, [(size_px, policy)])[0]


def fit_sizes(
    array: NDArray[Any], targets: Sequence[tuple[tuple[int, int], ImagePolicy]]
) -> list[NDArray[np.uint8]]:
    """Turn an array image into RGB of several sizes, as `decode_sizes` does a file."""
    rgb = array_to_rgb(array)
    return [resize_rgb(rgb, size, policy) for size, policy in targets]


@contextmanager
def _failures() -> Iterator[None]:
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
def _plugin(kind: str) -> Any:
    """Return Pillow's class for a format; found by hand, as `Image.open` tries all and warns."""
    module, name = _PLUGINS[kind]
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    if kind == "HEIF":
        missing = MissingExtraError("pillow-heif", extra="heif", purpose="reading HEIF images")
        raise ImageError(str(missing))
    raise ImageError(f"this Pillow cannot read {kind}: pip install --upgrade pillow")


def _open(container: Container) -> Image.Image:
    """Read the header only; nothing of the picture's size has been allocated yet."""
    from PIL import Image, features

    check_truncation_setting()
    kind = container.kind
    plugin = _plugin(kind)
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        raise ImageError(f"this Pillow was built without {kind}: pip install --upgrade pillow")
    limit = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if container.size_px is not None:
        _check_size(*container.size_px, limit)
    image: Image.Image = plugin(io.BytesIO(container.data))
    _check_size(image.height, image.width, limit)
    return image


def check_truncation_setting() -> None:
    """Refuse to decode while Pillow is told, for the whole process, to fill up truncated images.

    Raises
    ------
    ImageError
        If ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` is set.
    """
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so truncated images would "
            "pass for whole ones: set it to False"
        )


def _check_size(height: int, width: int, limit: int) -> None:
    if height * width > limit:
        raise ImageError(f"too large: {width}x{height} pixels, the limit is {limit} pixels")


def _draft_scale(container: Container, image: Image.Image, least_px: tuple[int, int]) -> int:
    """Return the factor by which a JPEG may shrink and stay at least as large as `least_px`."""
    if container.kind != "JPEG":
        return 1
    height, width = least_px if container.orientation < 5 else least_px[::-1]
    room = min(image.height // max(1, height), image.width // max(1, width))
    return next(s for s in (8, 4, 2, 1) if room >= s or s == 1)


def _pixels(container: Container, image: Image.Image, scale: int) -> Image.Image:
    """Decode at 1/scale; return upright RGB."""
    from PIL import Image as PILImage

    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    orientation = container.orientation
    if container.kind == "AVIF":
        # Pillow states the turn that the item properties ask for in terms of EXIF.
        orientation = exif_orientation(image.info.get("exif", b""))
    image.load()
    image = _to_rgb(image)
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(PILImage.Transpose[turn])


def _to_rgb(image: Image.Image) -> Image.Image:
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
        rgba = image.convert("RGBA")
        white = PILImage.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
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


def _resize(image: Image.Image, size_px: tuple[int, int], policy: ImagePolicy) -> Image.Image:
    from PIL import Image as PILImage

    if policy.decoder != _VERSION:
        raise ImageError(
            f"decoder rules of version {policy.decoder} are asked for, this featx has version "
            f"{_VERSION}: use the featx that made the features"
        )
    height, width = (int(n) for n in size_px)
    if height < 1 or width < 1:
        raise ImageError(f"expected a size of at least 1x1 pixels, received {size_px}")
    if image.size == (width, height):
        return image
    box: tuple[int, int, int, int] | None = None
    if policy.resize == "crop":
        w = max(1, min(image.width, image.height * width // height))
        h = max(1, min(image.height, image.width * height // width))
        left, top = (image.width - w) // 2, (image.height - h) // 2
        box = (left, top, left + w, top + h)
    resample = PILImage.Resampling[policy.interpolation.upper()]
    return image.resize((width, height), resample, box=box)
