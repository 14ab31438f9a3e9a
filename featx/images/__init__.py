"""Images: datasets of files and arrays, one decode policy, views, an ordered parallel loader.

Names are imported when they are first used, so that a process which only decodes starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.images.dataset import ImageDataset
    from featx.images.decode import (
        MAX_PIXELS,
        array_to_rgb,
        decode_image,
        decode_rgb,
        decode_sizes,
        fit_array,
        resize_rgb,
    )
    from featx.images.files import IMAGE_EXTENSIONS, hash_file
    from featx.images.keys import array_key
    from featx.images.loader import Loaded, load_images
    from featx.images.target import Target

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "ImageDataset",
    "Loaded",
    "Target",
    "array_key",
    "array_to_rgb",
    "decode_image",
    "decode_rgb",
    "decode_sizes",
    "fit_array",
    "hash_file",
    "load_images",
    "resize_rgb",
]

_HOMES = {
    "IMAGE_EXTENSIONS": "files",
    "ImageDataset": "dataset",
    "Loaded": "loader",
    "Target": "target",
    "array_key": "keys",
    "hash_file": "files",
    "load_images": "loader",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'featx.images' has no attribute {name!r}")
    value = getattr(import_module(f"featx.images.{_HOMES.get(name, 'decode')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
