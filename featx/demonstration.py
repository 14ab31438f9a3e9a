"""The data of `featx demo`: scans of handwritten digits, written out as a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_HELD_OUT_OF = 5


def write_digits(folder: Path) -> tuple[int, int]:
    """Write scikit-learn's 1,797 digits as PNG files, one folder a class.

    Every fifth scan goes to ``test/``, the others to ``train/``. The scans are those of the UCI
    "Optical recognition of handwritten digits" test set, 8 x 8 pixels of 17 levels of grey.

    Parameters
    ----------
    folder : Path
        Made if needed; files that are there are written again only if they differ.

    Returns
    -------
    training, held_out : int
        Number of images of each.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    counts = {"train": 0, "test": 0}
    for number, (scan, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "test" if number % _HELD_OUT_OF == 0 else "train"
        counts[split] += 1
        target = folder / split / str(digit) / f"{number:04d}.png"
        if target.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        grey = np.round(scan * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).save(target)
    return counts["train"], counts["test"]
