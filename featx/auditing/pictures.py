"""What pixels say of images: tiny, nearly black or white, blurred, very wide or tall."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.auditing.near_duplicates import SIDE, Greys
from featx.cache.features import Features
from featx.exceptions import DatasetError, ImageError
from featx.extraction.job import images_of
from featx.images.decode import Rgb, Target, size_of
from featx.images.loader import load_images
from featx.spec import ImagePolicy

Numbers: TypeAlias = NDArray[np.intp]
Doubles: TypeAlias = NDArray[np.float64]

_DETAIL_PX = 192
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Of grey values from 0 to 255.
_BLACK, _WHITE, _ONE_COLOUR = 16.0, 239.0, 2.0
_LONGEST = 4.0  # a side, in lengths of the other
_ROBUST = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
_MOST_BLURRED = 3.5


@dataclass
class Pictures:
    """What was seen of the images of rows.

    Parameters
    ----------
    seen : ndarray of bool, shape (n,)
        Whether the original was there, could be read, and is the image that the features are of.
    brightness, contrast, detail : ndarray of shape (n,)
        Mean and standard deviation of grey from 0 to 255; logarithm of the strength of edges.
    size_px : ndarray of shape (n, 2)
        Height and width.
    greys : dict
        Grey pictures (64, 64) by row, of the rows asked for.
    """

    seen: NDArray[np.bool_]
    brightness: Doubles
    contrast: Doubles
    detail: Doubles
    size_px: NDArray[np.int64]
    greys: dict[int, NDArray[np.uint8]]


def look_at(features: Features, keep: Sequence[int]) -> Pictures | None:
    """Look at the originals of all rows, each once; None where none is there.

    Grey pictures stay of the rows to `keep`.
    """
    try:
        images = images_of(features.manifest)
    except DatasetError:  # made from arrays, which are gone
        return None
    n, kept = len(features), set(keep)
    pictures = Pictures(
        np.zeros(n, np.bool_), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros((n, 2), np.int64), {}
    )
    row_of = {int(number): row for row, number in enumerate(features.rows)}
    keys = features.keys
    policy = ImagePolicy(window=features.window)
    targets = [Target((side, side), policy) for side in (SIDE, _DETAIL_PX)]
    for loaded in load_images(images, list(row_of), targets):
        row = row_of[loaded.index]
        if loaded.status != "decoded" or loaded.key != keys[row].tobytes():
            continue
        small, large = map(_grey, loaded.pixels)
        pictures.seen[row] = True
        pictures.brightness[row], pictures.contrast[row] = small.mean(), large.std()
        pictures.detail[row] = _sharpness(large)
        with suppress(ImageError, OSError):
            # From the bytes that were read just now, which the system still has in memory.
            pictures.size_px[row] = size_of(images.read(loaded.index))
        if row in kept:
            pictures.greys[row] = np.rint(small).astype(np.uint8)
    return pictures if pictures.seen.any() else None


def _grey(pixels: Rgb) -> NDArray[np.float32]:
    grey: NDArray[np.float32] = pixels @ _LUMA
    return grey


def _sharpness(grey: NDArray[np.float32]) -> float:
    """Return the logarithm of the share of an image's variance that its finest details have."""
    edges = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2]
    edges -= grey[1:-1, 2:]
    return float(np.log((edges.var() + 1e-3) / (grey.var() + 1.0)))


def greys_of(pictures: Pictures, rows: Numbers) -> Greys:
    """Return the pictures of rows that were kept, shape (m, 64, 64)."""
    return np.stack([pictures.greys[row] for row in rows.tolist()])


def doubtful_pictures(pictures: Pictures, least_px: int) -> dict[str, list[tuple[int, float, str]]]:
    """Return the rows of each kind of doubtful picture, with how bad each is and the evidence.

    `least_px` is the side below which the network sees less than it could.
    """
    rows = np.flatnonzero(pictures.seen)
    findings: dict[str, list[tuple[int, float, str]]] = {}

    def add(kind: str, row: int, score: float, evidence: str) -> None:
        findings.setdefault(kind, []).append((row, min(1.0, max(0.0, score)), evidence))

    blurred = _unusually_blurred(pictures, rows)
    for row in rows.tolist():
        grey, contrast = pictures.brightness[row], pictures.contrast[row]
        height, width = pictures.size_px[row].tolist()
        if contrast < _ONE_COLOUR:
            add("blank", row, 1 - contrast / _ONE_COLOUR,
                f"its grey values vary by {contrast:.1f} of 255")  # fmt: skip
        elif grey < _BLACK:
            add("dark", row, 1 - grey / _BLACK, f"its mean grey is {grey:.0f} of 255")
        elif grey > _WHITE:
            add(
                "bright",
                row,
                (grey - _WHITE) / (255 - _WHITE),
                f"its mean grey is {grey:.0f} of 255",
            )
        elif row in blurred:
            add("blurred", row, blurred[row] / 10,
                f"it has {blurred[row]:.1f} standard deviations less detail than most")  # fmt: skip
        if 0 < min(height, width) < least_px:
            add("tiny", row, 1 - min(height, width) / least_px,
                f"it has {width} x {height} pixels, the network sees {least_px}")  # fmt: skip
        if min(height, width) and max(height, width) / min(height, width) > _LONGEST:
            ratio = max(height, width) / min(height, width)
            evidence = f"it has {width} x {height} pixels, one side {ratio:.1f} times the other"
            add("aspect", row, 1 - _LONGEST / ratio, evidence)
    return findings


def _unusually_blurred(pictures: Pictures, rows: Numbers) -> dict[int, float]:
    """Return rows with far less detail than most, and by how many standard deviations."""
    if len(rows) < 20:
        return {}
    detail: Any = pictures.detail[rows]
    middle = np.median(detail)
    spread = _ROBUST * np.median(np.abs(detail - middle))
    z = (middle - detail) / max(spread, 0.05)
    return {
        int(row): float(value) for row, value in zip(rows, z, strict=True) if value > _MOST_BLURRED
    }
