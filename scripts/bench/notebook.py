"""How long a notebook waits for features of many rows: their HTML, a slice, a mask.

    python scripts/bench/notebook.py --rows 10000000

The rows are those of a few generated photographs, again and again. Prints seconds as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import featx

PHOTOS, REPEATS = 64, 5


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    count = parser.parse_args().rows
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(PHOTOS):
            path = Path(folder, "photos", "ab"[number % 2], f"{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (480, 640, 3), np.uint8)).save(path)
        small = featx.extract(Path(folder, "photos"), cache=Path(folder, "cache"))
        features = small[np.arange(count) % PHOTOS]
        mask = np.arange(count) % 1000 == 0
        actions = {
            "html": features._repr_html_,
            "slice": lambda: features[10:20],
            "mask": lambda: features[mask],
        }
        median = {
            name: statistics.median(seconds(action) for _ in range(REPEATS))
            for name, action in actions.items()
        }
        rounded = {name: round(value, 4) for name, value in median.items()}
        print(json.dumps({"rows": count, "rows_of_mask": int(mask.sum()), "seconds": rounded}))


if __name__ == "__main__":
    main()
