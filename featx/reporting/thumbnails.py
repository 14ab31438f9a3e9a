"""Small pictures of a dataset's images, as a page or a notebook shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from featx.cache.features import Features
from featx.exceptions import DatasetError
from featx.extraction.job import images_of
from featx.images.decode import Rgb, Target
from featx.images.loader import load_images
from featx.spec import ImagePolicy

_POLICY = ImagePolicy(resize="crop", draft=True)
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
    keys, numbers = features.keys, {int(features.rows[row]): int(row) for row in rows}
    pictures: dict[int, str] = {}
    for loaded in load_images(images, list(numbers), [Target((side_px, side_px), _POLICY)]):
        row = numbers[loaded.index]
        if loaded.status == "decoded" and loaded.key == keys[row].tobytes():
            pictures[row] = _data_uri(loaded.pixels[0])
    return pictures


def _data_uri(pixels: Rgb) -> str:
    data = io.BytesIO()
    # The quickest method: a page has thousands.
    Image.fromarray(pixels).save(data, "webp", quality=_QUALITY, method=0)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
