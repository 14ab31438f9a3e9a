"""What a model was trained on, small enough to go with it.

Of the images it is the first 8 bytes of each key. Of more than `MOST_KEYS` images only the smallest
are kept: keys are digests, so these are a random sample, and an image with a smaller key than the
largest of them is known to be in it or not.

Notes
-----
Such a sample is a bottom-k sketch: Cohen and Kaplan, "Summarizing data using bottom-k sketches",
PODC 2007.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.files.identity import whole_keys
from featx.files.safe_json import Json

MOST_KEYS = 1 << 17


def encode_keys(keys: NDArray[np.uint8]) -> str:
    """Return keys of shape (n, 32) as base64 of sorted 64-bit numbers, 1.4 MB at most."""
    prefixes = np.unique(_prefixes(keys))[:MOST_KEYS]
    return base64.b64encode(prefixes.astype("<u8").tobytes()).decode("ascii")


def describe_training(features: Features, y: NDArray[np.generic], rows: NDArray[np.intp]) -> Json:
    """Return what a model was trained on: name, number of images, keys and labels in short."""
    digest = hashlib.sha256()
    keys = np.ascontiguousarray(features.keys[rows])
    names, codes = np.unique(y[rows].astype(str), return_inverse=True)
    labels = [str(name).encode("utf-8", "surrogateescape") + b"\0" for name in names]
    for row in np.lexsort((codes, whole_keys(keys))):
        digest.update(keys[row].data)
        digest.update(labels[codes[row]])
    return {
        "dataset": features.name,
        "images": len(rows),
        "sha256": digest.hexdigest(),
        "keys": encode_keys(keys),
        "failed": len(features.failed),
    }


def encode_answers(keys: NDArray[np.uint8], right: NDArray[np.bool_]) -> Json:
    """Return which scored images were answered rightly, as short as `encode_keys` has the keys."""
    prefixes, rows = np.unique(_prefixes(keys), return_index=True)
    prefixes, rows = prefixes[:MOST_KEYS], rows[:MOST_KEYS]
    bits = np.packbits(right[rows])
    return {
        "keys": base64.b64encode(prefixes.astype("<u8").tobytes()).decode("ascii"),
        "right": base64.b64encode(bits.tobytes()).decode("ascii"),
    }


def answers_before(
    training: object, keys: NDArray[np.uint8]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]] | None:
    """Return which of some rows were scored before, each image once, and whether rightly."""
    stated: Any = training.get("scored") if isinstance(training, dict) else None
    try:
        known = np.frombuffer(base64.b64decode(stated["keys"], validate=True), "<u8")
        bits = np.frombuffer(base64.b64decode(stated["right"], validate=True), np.uint8)
        right = np.unpackbits(bits)[: len(known)].astype(np.bool_)
    except (binascii.Error, KeyError, TypeError, ValueError):
        return None
    if len(right) != len(known) or not len(known) or (np.diff(known.astype(float)) < 0).any():
        return None
    prefixes, rows = np.unique(_prefixes(keys), return_index=True)
    places = np.minimum(np.searchsorted(known, prefixes), len(known) - 1)
    same = known[places] == prefixes
    return rows[same], right[places[same]]


def count_training_images(training: object, keys: NDArray[np.uint8]) -> dict[str, int] | None:
    """Return how many images a model was trained on."""
    known = images_in_training(training, keys)
    if known is None:
        return None
    compared, seen = known
    return {
        "images": len(keys),
        "compared": int(compared.sum()),
        "in_training": int(seen.sum()),
    }


def images_in_training(
    training: object, keys: NDArray[np.uint8]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Return which images can be looked up, and which of them a model was trained on, (n,) each."""
    stated = training.get("keys") if isinstance(training, dict) else None
    if not isinstance(stated, str):
        return None
    try:
        data = base64.b64decode(stated, validate=True)
        known = np.sort(np.frombuffer(data, "<u8"))
    except (binascii.Error, ValueError):
        return None
    prefixes = _prefixes(keys)
    compared = np.ones(len(prefixes), np.bool_)
    if len(known) >= MOST_KEYS:
        compared = prefixes <= known[-1]
    return compared, compared & np.isin(prefixes, known)


def overlap_note(overlap: dict[str, int] | None) -> str:
    """Return what a reader of scores has to know of images that were trained on, if anything."""
    if not overlap or not overlap["in_training"]:
        return ""
    compared = f"{overlap['compared']:,} of {overlap['images']:,} images were looked up: "
    looked_up = "" if overlap["compared"] == overlap["images"] else compared
    return (
        f"{looked_up}{overlap['in_training']:,} of {overlap['compared']:,} images were used in "
        "training: this is not a measure of accuracy"
    )


def _prefixes(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, :8]).view("<u8").ravel()
