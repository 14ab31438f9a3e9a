r"""What it costs to compute an extraction in parts, on a pool of processes, on Ray and on Dask.

    python scripts/bench/cluster.py photos/ -b mobilenet_v2=WEIGHTS
    python scripts/bench/cluster.py photos/ --rounds 3 --rows 100000 1000000

Each side extracts all images into an empty cache, with as many workers as there are processors, in
turns. Prints for each the images/s with its start, the seconds until it has done its first (empty)
part, the milliseconds that an empty part takes, and the processor time of its workers against that
of a plain run in one process, both without processes for decoding. With ``--rows``, the memory that
the driver takes for so many rows, whose parts come back at once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import statistics
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import featx
from featx.extraction import parts
from featx.extraction.dark_images import DarkImages
from featx.extraction.executors import Where
from featx.threads import usable_processors

REAL = parts.compute_part
EMPTY = 200


def measured(part: Any) -> Any:
    """Compute a part, and write down the processor time that it took."""
    # Where this runs it is the real one, which does not pickle under a name that is another here.
    from featx.extraction.parts import compute_part

    started = time.process_time()
    result = compute_part(part)
    folder = Path(part.job.layout.root, "processor")
    folder.mkdir(exist_ok=True)
    Path(folder, os.urandom(8).hex()).write_text(str(time.process_time() - started), "ascii")
    return result


def empty(number: int) -> int:
    return number


def returned(part: Any) -> Any:
    """Return what an unreadable part comes to, without looking at it."""
    count = len(part.images)
    return parts.PartLedger(
        key=np.zeros((count, 32), np.uint8),
        status=np.full(count, 1, np.uint8),
        reason=["no such file"] * count,
        computed=[0 for _ in part.job.parts],
        engines=[],
        dark=DarkImages(),
        meter={},
    )


class Here:
    """Computes at once, in this process."""

    def submit(self, function: Any, part: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(returned(part))
        return future


def where(name: str, stack: ExitStack) -> Any:
    if name == "pool":
        context = multiprocessing.get_context("spawn")
        return stack.enter_context(ProcessPoolExecutor(usable_processors(), mp_context=context))
    return name


def idle(name: str) -> tuple[float, float]:
    """Return the seconds until the first empty task is done, and the seconds of one of many."""
    with ExitStack() as stack:
        started = time.perf_counter()
        on = where(name, stack)
        parts.compute_part = empty
        try:
            submit = stack.enter_context(Where(on=on).open())
            submit(empty, 0).result()
            first = time.perf_counter() - started
            started = time.perf_counter()
            for future in [submit(empty, number) for number in range(EMPTY)]:
                future.result()
            return first, (time.perf_counter() - started) / EMPTY
        finally:
            parts.compute_part = REAL


def extracted(name: str, folder: str, options: dict[str, Any]) -> tuple[float, float]:
    """Return seconds and processor seconds of an extraction into an empty cache."""
    cache = tempfile.mkdtemp()
    try:
        with ExitStack() as stack:
            started, processor = time.perf_counter(), time.process_time()
            if name == "plain":
                featx.extract(folder, cache=cache, isolate=False, **options)
                return time.perf_counter() - started, time.process_time() - processor
            parts.compute_part = measured
            featx.extract(folder, cache=cache, on=where(name, stack), **options)
            seconds = time.perf_counter() - started
        files = Path(cache, "processor").iterdir()
        return seconds, sum(float(file.read_text("ascii")) for file in files)
    finally:
        parts.compute_part = REAL
        shutil.rmtree(cache)


def peak_mib() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10


def driver(rows: int) -> None:
    """Print the memory that so many rows take where they are asked for."""
    before, cache = peak_mib(), tempfile.mkdtemp()
    names = [f"photos/{number // 1000:05d}/{number:09d}.jpg" for number in range(rows)]
    data = featx.ImageDataset.from_paths(names)
    listed = peak_mib()
    try:
        featx.extract(data, cache=cache, on=Here())
    except featx.DatasetError:
        pass  # none of them is there
    finally:
        shutil.rmtree(cache)
    print(f"{rows:,} rows: names {listed - before:,} MiB, in all {peak_mib() - before:,} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("-b", "--backbone", default="tiny", metavar="NAME[=WEIGHTS]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--sides", nargs="+", default=["pool", "ray", "dask"])
    arguments = parser.parse_args()
    for rows in arguments.rows:
        driver(rows)
    name, _, weights = arguments.backbone.partition("=")
    options = {"backbone": name, "weights": weights or None}
    sides = ["plain", *arguments.sides]
    runs: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side in sides:
            runs[side].append(extracted(side, arguments.folder, options))
    count = len(featx.ImageDataset.from_any(arguments.folder))
    print(f"{count:,} images, {arguments.rounds} rounds, {usable_processors()} processors")
    print("side   images/s  first task s  ms a part  processor s  of plain")
    for side in sides:
        seconds = statistics.median(run[0] for run in runs[side])
        processor = statistics.median(run[1] for run in runs[side])
        pairs = zip(runs[side], runs["plain"], strict=True)
        ratio = statistics.median(own[1] / plain[1] for own, plain in pairs)
        first, each = (0.0, 0.0) if side == "plain" else idle(side)
        print(
            f"{side:6} {count / seconds:8,.0f} {first:13.2f} {1000 * each:10.2f} {processor:12.2f} "
            f"{ratio:9.2f}"
        )


if __name__ == "__main__":
    main()
