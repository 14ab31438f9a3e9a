"""Draw coarse characters: labelled images that need no photographs and only Pillow's own font."""

from __future__ import annotations

import math
import string
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray[Any, Any]
CHARACTERS = string.digits + string.ascii_letters


def draw_glyphs(count: int, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw characters, warp them, coarsen them to 7 to 20 px and enlarge them.

    Returns images (count, size, size, 3) uint8 and their indices in CHARACTERS (count,).
    """
    labels = rng.integers(0, len(CHARACTERS), count)
    images = np.empty((count, size, size, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        canvas = Image.new("L", (64, 64))
        font = ImageFont.load_default(float(rng.uniform(36, 84)))
        stroke = int(rng.integers(0, 4))
        centre = tuple(rng.uniform(29, 35, 2))
        ImageDraw.Draw(canvas).text(
            centre, CHARACTERS[label], 255, font, anchor="mm", stroke_width=stroke
        )
        angle, shear = rng.uniform(-0.3, 0.3), rng.uniform(-0.35, 0.35)
        scale = np.diag(rng.uniform(0.75, 1.3, 2))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = scale @ turn @ np.array([[1, shear], [0, 1]])
        corners = np.stack(np.meshgrid(*[np.linspace(0, 64, 4)] * 2, indexing="ij"), -1)
        source = (corners - 32) @ matrix.T + 32 + rng.normal(0, 2.5, corners.shape)
        mesh = [
            (
                tuple(np.concatenate([corners[i, j], corners[i + 1, j + 1]]).round().astype(int)),
                tuple(source[[i, i, i + 1, i + 1], [j, j + 1, j + 1, j]].ravel()),
            )
            for i in range(3)
            for j in range(3)
        ]
        canvas = canvas.transform((64, 64), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
        coarse = int(rng.integers(7, 21))
        canvas = canvas.resize((coarse, coarse), Image.Resampling.BOX)
        canvas = canvas.resize((size, size), Image.Resampling.BILINEAR)
        ink = np.asarray(canvas, np.float32)[..., None] / 255
        ink = np.clip(ink * rng.uniform(1, 1.6), 0, 1)
        plain = rng.random() < 0.5
        front, back = (255, 0) if plain else rng.integers(0, 256, (2, 3))
        image[:] = ink * front + (1 - ink) * back
    return images, labels
