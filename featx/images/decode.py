"""From the bytes of an image file to RGB pixels: one explicit policy for every kind of file.

The rules, version 1 (`featx.spec.ImagePolicy.decoder`): EXIF orientation is applied; transparency
(alpha channels, palettes, a transparent colour) lies over white; greyscale, 1-bit, palette, CMYK
and YCbCr become RGB without their colour profile; 16-bit greyscale is divided by 257 and rounded;
an animation gives its first frame, a multi-page TIFF its first page. 16-bit colour keeps the high
byte. A JPEG of more than `MAX_PIXELS` is decoded at the largest fraction, 1/2, 1/4 or 1/8, that has
no more. What is truncated, damaged, or takes too much memory or time (`featx.images.limits`) fails
with a reason. All functions may be called from many threads; no warning of Pillow's reaches the
caller.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.exceptions import ImageError
from featx.images.containers import Container, exif_orientation, inspect
from featx.images.keys import array_key, file_key
from featx.images.limits import MOST_PIXELS as MAX_PIXELS
from featx.images.limits import budget, check_array, check_pixels, check_work
from featx.images.opening import (
    open_image,
    pixel_limit,
    short_failures,
)
from featx.images.pixels import array_to_rgb, sixteen_to_eight
from featx.images.target import AnyTarget, Target, as_targets
from featx.images.views import Box, View, change_look, draw_view
from featx.spec import ImagePolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_VERSION = 1
_BAND_PX = 1 << 22
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
# Pillow loads an image once, and not from two threads at a time.
_loading = threading.Lock()


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
    with short_failures():
        container = inspect(data)
        image = _header(container)
        scale = _scale(container, image, draft_px)
        need = check_work(container, image, file_bytes=len(data), scales=[scale], widths=[])
        with budget().hold(need):
            return np.array(_pixels(container, image or open_image(container), scale))


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
    data: bytes, targets: Sequence[AnyTarget], *, key: bytes | None = None
) -> list[NDArray[np.uint8]]:
    """Decode an image file once and bring it to several sizes and views.

    Every result equals that for its target alone; the file is decoded a second time only where
    ``draft`` of the policy lets targets start from different scales.

    Parameters
    ----------
    data : bytes
        A whole image file.
    targets : sequence of Target, or of ((height, width), ImagePolicy)
        The sizes asked for, in pixels.
    key : bytes or None, default None
        The key of the image, from which views are drawn; made from `data` where it is needed.

    Returns
    -------
    list of ndarray of shape (h, w, 3), uint8
        One a target; equal targets share one array.

    Raises
    ------
    ImageError
        As `decode_rgb` does.
    """
    with short_failures():
        wanted = _drawn(as_targets(targets), key, lambda: file_key(data))
        container = inspect(data)
        header = _header(container)
        opened = [] if header is None else [header]
        scales = [
            _scale(container, header, _least_px(target, view) if target.image.draft else None)
            for target, view in wanted
        ]
        if not scales:
            return []
        need = check_work(
            container,
            header,
            file_bytes=len(data),
            scales=scales,
            widths=[target.size_px[1] for target, _ in wanted],
        )
        # Nobody else may keep the picture: it is let go of as soon as its RGB is there.
        del header
        out: dict[tuple[Any, ...], NDArray[np.uint8]] = {}
        with budget().hold(need):
            for scale in dict.fromkeys(scales):
                rgb = _pixels(container, opened.pop() if opened else open_image(container), scale)
                for (target, view), own in zip(wanted, scales, strict=True):
                    if own == scale and (target, scale) not in out:
                        out[target, scale] = _finish(rgb, target, view)
                del rgb
        return [out[target, scale] for (target, _), scale in zip(wanted, scales, strict=True)]


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

    with short_failures():
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
    array: NDArray[Any], targets: Sequence[AnyTarget], *, key: bytes | None = None
) -> list[NDArray[np.uint8]]:
    """Turn an array image into RGB of several sizes and views, as `decode_sizes` does a file."""
    from PIL import Image

    wanted = _drawn(as_targets(targets), key, lambda: array_key(array))
    need = check_array(array, [target.size_px[1] for target, _ in wanted])
    with short_failures(), budget().hold(need):
        image = Image.fromarray(np.ascontiguousarray(array_to_rgb(array)))
        return [_finish(image, target, view) for target, view in wanted]


def picture_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return upright RGB of a PIL image, by the rules for files.

    Parameters
    ----------
    image : PIL.Image.Image
        An image in memory, or one of the pages of a file.

    Returns
    -------
    ndarray of shape (h, w, 3), uint8

    Raises
    ------
    ImageError
        With a short reason, if it is too large, damaged, or has pixels of no known range.
    """
    with short_failures():
        check_pixels("", (image.height, image.width), pixel_limit())
        with budget().hold(7 * image.width * image.height):
            with _loading:
                image.load()
            return np.array(_upright(image, _orientation(image)))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a PIL image; as in files, XMP does not count."""
    if image.info.keys() & {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}:
        return exif_orientation(image.info.get("exif") or b"")
    return int(image.getexif().get(0x0112, 1))


def _drawn(
    targets: list[Target], key: bytes | None, make_key: Callable[[], bytes]
) -> list[tuple[Target, View | None]]:
    """Return the targets with what their views do to this image."""
    if key is None and any(target.view is not None for target in targets):
        key = make_key()
    return [
        (target, None if target.view is None or key is None else draw_view(target.view, key))
        for target in targets
    ]


def _least_px(target: Target, view: View | None) -> tuple[int, int]:
    """Return the size that a draft must have: what is cut out keeps twice the size asked for."""
    height, width = target.size_px
    if view is None or view.box is None:
        return 2 * height, 2 * width
    return math.ceil(2 * height / view.box.height), math.ceil(2 * width / view.box.width)


def _finish(image: Image.Image, target: Target, view: View | None) -> NDArray[np.uint8]:
    if view is None:
        return np.array(_resize(image, target.size_px, target.image))
    small = _resize(image, target.size_px, target.image, view.box)
    return np.array(change_look(small, view))


def _header(container: Container) -> Image.Image | None:
    """Return the image with its header read; None where that would allocate the picture."""
    if container.kind != "WEBP":
        return open_image(container)
    check_pixels("WEBP", container.size_px or (0, 0), pixel_limit())
    return None


def _scale(
    container: Container, image: Image.Image | None, least_px: tuple[int, int] | None
) -> int:
    """Return the factor by which a JPEG shrinks.

    With `least_px` it is the largest that leaves it at least as large, without it 1; a picture of
    too many pixels shrinks until it has no more.
    """
    if container.kind != "JPEG" or image is None:
        return 1
    room = 1
    if least_px is not None:
        height, width = least_px if container.orientation < 5 else least_px[::-1]
        room = min(image.height // max(1, height), image.width // max(1, width))
    too_large = (s for s in (2, 4, 8) if image.height * image.width > MAX_PIXELS * (s // 2) ** 2)
    return max([1, *(s for s in (2, 4, 8) if room >= s), *too_large])


def _pixels(container: Container, image: Image.Image, scale: int) -> Image.Image:
    """Decode at 1/scale; return upright RGB."""
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    orientation = container.orientation
    if container.kind == "AVIF":
        # Pillow states the turn that the item properties ask for in terms of EXIF.
        orientation = exif_orientation(image.info.get("exif", b""))
    image.load()
    return _upright(image, orientation)


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
    image: Image.Image,
    size_px: tuple[int, int],
    policy: ImagePolicy,
    part: Box | None = None,
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
        left, top = (image.width - w) // 2, (image.height - h) // 2
        box = (left, top, left + w, top + h)
    if part is not None:
        box = _part_of(box or (0, 0, *image.size), part)
    resample = PILImage.Resampling[policy.interpolation.upper()]
    return image.resize((width, height), resample, box=box)


def _part_of(
    box: tuple[float, float, float, float], part: Box
) -> tuple[float, float, float, float]:
    """Return a part of what would be resized; a view shows nothing else than the picture does."""
    left, top, right, bottom = box
    x = left + part.left * (right - left)
    y = top + part.top * (bottom - top)
    return (
        x,
        y,
        min(right, x + part.width * (right - left)),
        min(bottom, y + part.height * (bottom - top)),
    )
