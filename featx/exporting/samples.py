"""Images for an export: those that it is verified on, and those that int8 ranges come from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.layout import CacheLayout
from featx.cache.manifest import find_manifest
from featx.exceptions import CacheFormatError, DatasetError
from featx.images.dataset import ImageDataset
from featx.images.loader import load_images
from featx.images.target import Target
from featx.named_data import dataset_of, find_named
from featx.spec import FeatureSpec

__all__ = ["calibration_pixels", "decode_rows", "find_images", "training_images"]

_CALIBRATED = 100
_TRIED = 50


def find_images(data: Any, cache: str | os.PathLike[str] | None) -> ImageDataset:
    """Return the images that `data` stands for: anything that `featx.extract` takes.

    Raises
    ------
    DatasetError
        If there are none.
    """
    if isinstance(data, ImageDataset):
        found = data
    else:
        named = find_named(CacheLayout.at(cache), data)
        found = ImageDataset.from_any(data) if named is None else dataset_of(named)
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
        return dataset_of(find_manifest(layout, name))
    except (DatasetError, CacheFormatError):
        return None


def decode_rows(
    images: ImageDataset, rows: Sequence[int], spec: FeatureSpec
) -> dict[int, NDArray[np.uint8]]:
    """Decode images from disk under a specification's own rules.

    Parameters
    ----------
    images : ImageDataset
    rows : sequence of int
    spec : FeatureSpec

    Returns
    -------
    pixels : dict of int to ndarray of shape (h, w, 3), uint8
        By row; those that cannot be read are left out.
    """
    target = Target(spec.input_size_px, spec.image)
    loaded = load_images(images, list(rows), [target])
    return {one.index: one.pixels[0] for one in loaded if one.status == "decoded"}


def calibration_pixels(images: ImageDataset, spec: FeatureSpec) -> NDArray[np.uint8]:
    """Return up to 100 images, drawn with a fixed seed, from all classes alike where there are any.

    Returns
    -------
    pixels : ndarray of shape (m, h, w, 3), uint8

    Raises
    ------
    DatasetError
        If none can be read.
    """
    order = np.random.default_rng(0).permutation(len(images))
    if images.y is not None:
        order = _alternating(order, images.y)
    pixels: list[NDArray[np.uint8]] = []
    for start in range(0, len(order), _TRIED):
        found = decode_rows(images, order[start : start + _TRIED].tolist(), spec)
        pixels += [found[row] for row in sorted(found)]
        if len(pixels) >= _CALIBRATED:
            break
    if not pixels:
        raise DatasetError(
            f"none of the {len(images)} images of {images.name!r} could be read: int8 needs images "
            "to take its ranges from"
        )
    return np.stack(pixels[:_CALIBRATED])


def _alternating(order: NDArray[np.intp], y: NDArray[Any]) -> NDArray[np.intp]:
    """Take one of each class in turn, so that the first few hundred have them all."""
    codes = np.unique(y[order], return_inverse=True)[1]
    turn = np.empty(len(order), np.intp)
    for code in range(int(codes.max()) + 1):
        members = np.flatnonzero(codes == code)
        turn[members] = np.arange(len(members))
    return order[np.argsort(turn, kind="stable")]
