"""Views: seeded augmentations, each a function of policy, seed, index and the key of an image.

What is drawn comes from SHAKE-256 of these four, by additions, multiplications, divisions and
square roots only, so that it is the same in every process, on every platform and with every
version of NumPy, and depends neither on the order of the images nor on the dataset they are in.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featx.spec import AUGMENTATIONS, ViewPolicy

if TYPE_CHECKING:
    from PIL import Image

# Rec. 601 luma, as Pillow's conversion to greyscale has it.
_LUMA = (0.299, 0.587, 0.114)
_NUMBERS = 8


class Box(NamedTuple):
    """A part of a picture, as fractions of its width and height."""

    left: float
    top: float
    width: float
    height: float


class View(NamedTuple):
    """What was drawn for one image: what is cut out (None for all), mirrored, factors of colour."""

    box: Box | None
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


UNCHANGED = View(None, flip=False)


def draw_view(policy: ViewPolicy, key: bytes) -> View:
    """Return the augmentation of the image with a key.

    Notes
    -----
    A part of the picture is cut out as in Inception's training (Szegedy et al. 2015, section 6):
    the area is uniform, the ratio of the sides as good as log-uniform, the place uniform.

    >>> draw_view(ViewPolicy(policy="flip-1"), bytes(32))
    View(box=None, flip=True, brightness=1.0, contrast=1.0, saturation=1.0)
    """
    rule = AUGMENTATIONS[policy.policy]
    head = f"featx-view {policy.policy} {policy.seed} {policy.index}\n".encode("ascii")
    stream = hashlib.shake_256(head + key).digest(8 * _NUMBERS)
    area, shape, left, top, flip, *colours = (
        (int.from_bytes(stream[i : i + 8], "little") >> 11) * 2.0**-53
        for i in range(0, 8 * _NUMBERS, 8)
    )
    box = None
    if rule.least_area < 1:
        share = rule.least_area + (1.0 - rule.least_area) * area
        # Neither side may be longer than the picture's.
        most = min(rule.most_stretch, 1.0 / share)
        # (1 + t) / (1 - t) is exp(2t) up to t**3: within [1/most, most], without a transcendental
        # function, whose last digit differs between platforms.
        t = (most - 1.0) / (most + 1.0) * (2.0 * shape - 1.0)
        stretch = (1.0 + t) / (1.0 - t)
        width, height = min(1.0, math.sqrt(share * stretch)), min(1.0, math.sqrt(share / stretch))
        box = Box(left * (1.0 - width), top * (1.0 - height), width, height)
    factors = [1.0 + rule.colour * (2.0 * colour - 1.0) for colour in colours]
    return View(box, flip < rule.flip, *factors)


def change_look(image: Image.Image, view: View) -> Image.Image:
    """Return an RGB image mirrored and with its colours changed, as drawn."""
    from PIL import Image as PILImage

    if view.flip:
        image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
    b, c, s = view.brightness, view.contrast, view.saturation
    if b == c == s == 1.0:
        return image
    # Brightness multiplies, contrast moves away from the mean grey, saturation from the grey of the
    # pixel, in this order; all three are one affine map, rounded once.
    mean = float(np.asarray(image.convert("L")).mean())
    offset = b * (1.0 - c) * mean
    matrix: list[float] = []
    for row in range(3):
        matrix += [b * c * ((1.0 - s) * _LUMA[i] + (s if i == row else 0.0)) for i in range(3)]
        matrix.append(offset)
    return image.convert("RGB", tuple(matrix))
