"""Open an image file with Pillow: by its format, within limits, its errors in few words."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from featx.exceptions import ImageError, MissingExtraError
from featx.images.containers import Container

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_PIXELS", "check_truncation_setting", "open_image", "short_failures"]

MAX_PIXELS = 89_478_485
"""Most pixels of an image that is decoded; a stricter ``PIL.Image.MAX_IMAGE_PIXELS`` is heeded."""

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


def open_image(container: Container) -> Image.Image:
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
