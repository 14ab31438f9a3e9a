"""Images for an export: those that it is verified on, and those that int8 ranges come from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.layout import CacheLayout
from featx.cache.manifest import find_manifest
from featx.exceptions import CacheFormatError, DatasetError
from featx.extraction.job import find_named, images_of
from featx.images.dataset import ImageDataset
from featx.images.decode import Target
from featx.images.loader import load_images
from featx.spec import FeatureSpec

_CALIBRATED = 100
_TRIED = 50
# Where nearly all are measured on, the few others are not looked for among millions.
_MOST_TRIED = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Images that ranges of int8 are taken from.

    Parameters
    ----------
    name : str
        Of the dataset.
    pixels : ndarray of shape (m, h, w, 3), uint8
    keys : tuple of bytes
        Of the images, 32 bytes each.
    """

    name: str
    pixels: NDArray[np.uint8]
    keys: tuple[bytes, ...]

    def describe(self) -> dict[str, Any]:
        """Return what lies beside the export, so that a measurement leaves these images out."""
        keys = sorted(short_key(key) for key in self.keys)
        return {"dataset": self.name, "images": len(self.pixels), "keys": keys}


def short_key(key: bytes) -> str:
    """Return the first 16 hexadecimal digits of an image's key."""
    return key[:8].hex()


def find_images(data: Any, cache: str | os.PathLike[str] | None) -> ImageDataset:
    """Return the images that `data` stands for: anything that `featx.extract` takes."""
    if isinstance(data, ImageDataset):
        found = data
    else:
        named = find_named(CacheLayout.at(cache), data)
        found = ImageDataset.from_any(data) if named is None else images_of(named)
    if not len(found):
        raise DatasetError(f"expected images in {data!r}, received none: name a folder with some")
    return found


def training_images(
    training: dict[str, Any], cache: str | os.PathLike[str] | None
) -> ImageDataset | None:
    """Return the images that a model was trained on, where the cache still knows their paths."""
    name = training.get("dataset")
    if not isinstance(name, str) or cache is None:
        return None
    layout = CacheLayout.at(cache)
    if not layout.dataset(name).is_file():
        return None
    try:
        return images_of(find_manifest(layout, name))
    except (DatasetError, CacheFormatError):
        return None


def decode_rows(
    images: ImageDataset, rows: Sequence[int], spec: FeatureSpec
) -> dict[int, NDArray[np.uint8]]:
    """Decode images from disk under a specification's own rules."""
    target = Target(spec.input_size_px, spec.image)
    loaded = load_images(images, list(rows), [target])
    return {one.index: one.pixels[0] for one in loaded if one.status == "decoded"}


def calibration_images(
    images: ImageDataset, spec: FeatureSpec, measured: ImageDataset | None = None
) -> Calibration:
    """Return up to 100 images drawn with a fixed seed, as many of each class as there are."""
    order = np.random.default_rng(0).permutation(len(images))
    if images.y is not None:
        order = _alternating(order, images.y)
    keys = set() if measured is None else _keys(measured)
    target = Target(spec.input_size_px, spec.image)
    chosen: dict[bytes, NDArray[np.uint8]] = {}
    shared: dict[bytes, int] = {}
    for start in range(0, min(len(order), _MOST_TRIED), _TRIED):
        rows = order[start : start + _TRIED].tolist()
        loaded = list(load_images(images, rows, [target], known=keys.__contains__))
        places = {row: place for place, row in enumerate(rows)}
        for one in sorted(loaded, key=lambda one: places[one.index]):
            if one.key is not None and one.status == "decoded":
                chosen.setdefault(one.key, one.pixels[0])
            elif one.key is not None and one.status == "known":
                shared.setdefault(one.key, one.index)
        if len(chosen) >= _CALIBRATED:
            break
    spare = min(_CALIBRATED - len(chosen), len(keys) // 2)
    for key, row in shared.items():
        if spare <= 0:
            break
        for pixels in decode_rows(images, [row], spec).values():
            chosen[key] = pixels
            spare -= 1
    if not chosen:
        only = " other than the one to measure on" if shared else ""
        raise DatasetError(
            f"none of the {len(images)} images of {images.name!r}{only} could be read: int8 needs "
            "images to take its ranges from, name some with --calibrate DATA (calibrate=...)"
        )
    first = dict(list(chosen.items())[:_CALIBRATED])
    return Calibration(images.name, np.stack(list(first.values())), tuple(first))


def _keys(images: ImageDataset) -> set[bytes]:
    """Return the keys of all images that can be read."""
    loaded = load_images(images, range(len(images)), [], known=lambda _: True, isolate=False)
    return {one.key for one in loaded if one.key is not None}


def _alternating(order: NDArray[np.intp], y: NDArray[Any]) -> NDArray[np.intp]:
    """Take one of each class in turn, so that the first few hundred have them all."""
    codes = np.unique(y[order], return_inverse=True)[1]
    turn = np.empty(len(order), np.intp)
    for code in range(int(codes.max()) + 1):
        members = np.flatnonzero(codes == code)
        turn[members] = np.arange(len(members))
    return order[np.argsort(turn, kind="stable")]
