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
from featx.images.limits import MOST_PIXELS, check_pixels

if TYPE_CHECKING:
    from PIL import Image

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
    """Read the header only; nothing of the picture's size is allocated but the canvas of a WebP."""
    from PIL import features

    check_truncation_setting()
    kind = container.kind
    plugin = _plugin(kind)
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        raise ImageError(f"this Pillow was built without {kind}: pip install --upgrade pillow")
    if container.size_px is not None:
        check_pixels(kind, container.size_px, pixel_limit())
    image: Image.Image = plugin(io.BytesIO(container.data))
    check_pixels(kind, (image.height, image.width), pixel_limit())
    return image


def is_known_format(name: str | None) -> bool:
    """Return whether featx decodes a format of Pillow's; an MPO is a JPEG with more behind it."""
    return name in _PLUGINS or name == "MPO"


def pixel_limit() -> int:
    """Return the most pixels of an image; a stricter ``PIL.Image.MAX_IMAGE_PIXELS`` is heeded."""
    from PIL import Image

    return min(MOST_PIXELS, Image.MAX_IMAGE_PIXELS or MOST_PIXELS)


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
