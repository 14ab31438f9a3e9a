"""A long extraction: memory, rate, and what kills cost.

    python scripts/bench/long_run.py                       # 100,000 images, 20 kills
    python scripts/bench/long_run.py --images 5000 --kills 5

JPEG files are drawn, each different. One process extracts them all with the bundled backbone and
notes time and memory; then other processes extract them into an empty cache, killed (SIGKILL) at
random instants and started again, until one comes to its end. Prints

- how much more memory the last image saw than the thousandth,
- the rate of every later thousand against that of the first after the start, as a median,
- how many rows a kill cost at most, and whether any row is missing or differs from those of the
  undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import featx

NOTED = 1000
# Prints a line for every thousand images: how many, when, and the resident memory in MiB.
EXTRACT = """
import sys, time, featx
def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
def note(done, total, failed):
    if done % 1000 == 0 or done == total:
        print(done, time.perf_counter(), resident(), flush=True)
featx.extract(sys.argv[1], cache=sys.argv[2], name="long", progress=note)
"""


def draw(folder: Path, count: int) -> None:
    """Write small JPEG files with smooth colours and noise."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BILINEAR))
        pixels = np.clip(smooth + generator.normal(0, 8, (64, 64, 1)), 0, 255).astype(np.uint8)
        path = folder / f"{number // 1000:04d}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=85)


def start(photos: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", EXTRACT, str(photos), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def undisturbed(photos: Path, cache: Path) -> dict[str, float]:
    """Extract in one go; return memory and rates."""
    process = start(photos, cache)
    assert process.stdout is not None
    notes = np.array([[float(part) for part in line.split()] for line in process.stdout])
    if process.wait():
        raise SystemExit("the extraction failed")
    full = notes[(notes[:, 0] > 0) & (notes[:, 0] % NOTED == 0)]
    rates = NOTED / np.diff(full[:, 1])
    return {
        "images": float(notes[-1, 0]),
        "mib_after_first_thousand": float(full[full[:, 0] == NOTED][0, 2]),
        "most_mib": float(notes[:, 2].max()),
        "growth_mib": float(notes[:, 2].max() - full[full[:, 0] == NOTED][0, 2]),
        "first_rate": float(rates[0]),
        "later_over_first": float(statistics.median(rates[1:] / rates[0])),
        "last_tenth_over_first": float(np.median(rates[-max(1, len(rates) // 10) :]) / rates[0]),
        "seconds": float(notes[-1, 1] - notes[0, 1]),
    }


def kept_rows(cache: Path) -> int:
    """Return the number of rows that can be read."""
    return sum(max(space.rows.values(), default=0) for space in _spaces(cache))


def _spaces(cache: Path) -> list[Any]:
    from featx.cache.layout import CacheLayout
    from featx.cache.space import open_space

    layout = CacheLayout.at(cache)
    if not layout.spaces.is_dir():
        return []
    return [open_space(layout, folder.name) for folder in layout.spaces.iterdir()]


def killed(photos: Path, cache: Path, kills: int, seconds: float) -> dict[str, float]:
    """Extract with kills at random instants; return what they cost."""
    generator = random.Random(0)
    lives, lost = 0, 0
    while True:
        before = kept_rows(cache)
        process = start(photos, cache)
        lives += 1
        if lives > kills:
            process.communicate()
            if process.returncode:
                raise SystemExit("the extraction failed after the kills")
            break
        # A share of the whole run that lets the work end about when the kills do.
        time.sleep(generator.uniform(1.0, 1.5 * seconds / kills + 8.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        lost += kept_rows(cache) < before
    return {"kills": lives - 1, "restarts_that_found_fewer_rows": lost}


def compare(first: Path, second: Path) -> dict[str, float]:
    """Compare the features of two caches."""
    whole = featx.Features.open("long", cache=first)
    again = featx.Features.open("long", cache=second)
    if whole.paths != again.paths:
        raise SystemExit("the datasets differ")
    differ = 0
    for rows in np.array_split(np.arange(len(whole)), max(1, len(whole) // 4096)):
        a, b = whole.X[rows], again.X[rows]
        scale = np.abs(a).max(axis=1)
        differ += int((np.abs(a - b).max(axis=1) > 1e-4 * scale).sum())
    return {
        "rows": len(again),
        "missing": len(whole) - len(again),
        "differing": differ,
        "computed_twice": kept_rows(second) - len(again),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw(folder / "photos", args.images)
        result: dict[str, Any] = undisturbed(folder / "photos", folder / "first")
        print(
            f"{result['images']:,.0f} images in {result['seconds']:.0f} s; memory after the first "
            f"thousand {result['mib_after_first_thousand']:.0f} MiB, at most "
            f"{result['growth_mib']:.0f} MiB more; later thousands at "
            f"{result['later_over_first']:.3f} of the first's rate",
            flush=True,
        )
        result |= killed(folder / "photos", folder / "second", args.kills, result["seconds"])
        result |= compare(folder / "first", folder / "second")
        print(
            f"{result['kills']} kills: {result['missing']} rows missing, {result['differing']} "
            f"differing, {result['restarts_that_found_fewer_rows']} restarts found fewer rows, "
            f"{result['computed_twice']} rows stored twice"
        )
        print(json.dumps(result))


if __name__ == "__main__":
    main()
