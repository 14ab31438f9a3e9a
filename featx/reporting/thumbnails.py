"""Small pictures of a dataset's images, as a page or a notebook shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from featx.cache.features import Features
from featx.exceptions import DatasetError
from featx.extraction.job import images_of
from featx.images.dataset import ImageDataset
from featx.images.decode import Rgb, Target
from featx.images.loader import load_images
from featx.spec import ImagePolicy

_POLICY = ImagePolicy(resize="crop")
_QUALITY = 60


def thumbnails(features: Features, rows: Sequence[int], *, side_px: int = 96) -> dict[int, str]:
    """Return pictures of rows as data URIs of square WebP images, by row.

    Originals are decoded in parallel by the rules of extraction. A row has no picture if its
    original is missing, cannot be read, or is no longer the image that the features are of.
    """
    try:
        images = images_of(features.manifest)
    except DatasetError:  # made from arrays, which are gone
        return {}
    window = features.window
    target = Target((side_px, side_px), replace(_POLICY, window=window))
    keys, numbers = features.keys, {int(features.rows[row]): int(row) for row in rows}
    return {
        row: uri
        for index, (key, uri) in _pictures(images, list(numbers), target).items()
        if key == keys[row := numbers[index]].tobytes()
    }


def file_thumbnails(paths: Sequence[str], *, side_px: int = 96) -> dict[str, str]:
    """Return pictures of image files, by path, as `thumbnails` does."""
    images = ImageDataset.from_paths(list(dict.fromkeys(paths))) if paths else None
    if images is None:
        return {}
    pictures = _pictures(images, range(len(images)), Target((side_px, side_px), _POLICY))
    return {images.paths[index]: uri for index, (_, uri) in pictures.items()}


def _pictures(
    images: ImageDataset, indices: Sequence[int], target: Target
) -> dict[int, tuple[bytes | None, str]]:
    """Return the key and the picture of each image that can be read, by its index."""
    return {
        loaded.index: (loaded.key, _data_uri(loaded.pixels[0]))
        for loaded in load_images(images, indices, [target])
        if loaded.status == "decoded"
    }


def _data_uri(pixels: Rgb) -> str:
    data = io.BytesIO()
    # The quickest method: a page has thousands.
    Image.fromarray(pixels).save(data, "webp", quality=_QUALITY, method=0)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
