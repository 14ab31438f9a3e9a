"""The index of keys on disk at 10^6 to 10^8 rows: writing, opening, memory and looking up.

    python scripts/bench/key_index.py                  # to 10^7
    python scripts/bench/key_index.py --rows 100000000 --folder /data/tmp

The rows are synthetic and of one number, in shards of as many rows as 32 MiB hold of 1,280 float32:
what is measured does not depend on the width. 10^8 rows take 6 GB of disk. Opening and looking up
are the best of three fresh processes with a warm page cache: other work on a machine only adds to
them. Memory is anonymous. A look-up is `FeatureSpace.has` of 1,000 keys of random rows, divided by
1,000: it compares the stamp of every shard and the whole key. Prints the table for docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import featx
from featx.cache.layout import CacheLayout
from featx.cache.shard import write_shard
from featx.cache.space import FeatureSpace

SHARD_ROWS = 6554
SPEC = featx.FeatureSpec(
    backbone="synthetic", weights_sha256="0" * 64, input_size_px=(64, 64), preprocessing="none"
)
COMMON = """
import json, sys, threading, time
import numpy as np, h5py
from featx.cache.layout import CacheLayout, list_shards
from featx.cache.shard import read_shard
from featx.cache.space import FeatureSpace, read_spec
from featx.cache.stored_index import read_index, write_index
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
def timed(work):
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
layout, rows_a_shard = CacheLayout.at(sys.argv[1]), int(sys.argv[2])
(folder,) = layout.spaces.iterdir()
spec = read_spec(folder)
"""
WRITE = """
shards = [read_shard(path, spec.digest) for path in list_shards(folder)]
before, most, done = anonymous(), 0, threading.Event()
def watch():
    global most
    while not done.wait(0.02):
        most = max(most, anonymous())
watching = threading.Thread(target=watch)
watching.start()
_, seconds = timed(lambda: write_index(layout, spec.name, shards))
done.set()
watching.join()
print(json.dumps([seconds, most - before, layout.index(spec.name).stat().st_size / 1e6]))
"""
OPEN = """
paths, listed = timed(lambda: list_shards(folder))
shards = len(paths)
del paths
before = anonymous()
index, opened = timed(lambda: read_index(layout.index(spec.name)))
index_mib = anonymous() - before
del index
before = anonymous()
space, space_opened = timed(lambda: FeatureSpace(layout, spec))
memory = anonymous() - before
print(json.dumps([shards, listed, opened, index_mib, space_opened, memory]))
"""
DRAW = """
generator = np.random.default_rng()
def draw(count):
    of = generator.integers(0, len(list_shards(folder)), count)
    numbers, counts = np.unique(of, return_counts=True)
    keys = [
        np.random.default_rng(int(number)).integers(0, 256, (rows_a_shard, 32), dtype=np.uint8)[
            generator.integers(0, rows_a_shard, times)
        ]
        for number, times in zip(numbers, counts)
    ]
    return generator.permutation(np.concatenate(keys))
def look_up(keys):
    assert space.has(["avg"], keys).all()
many = draw(8 * len(list_shards(folder)))
batches = [draw(1000) for _ in range(21)]
before = anonymous()
space = FeatureSpace(layout, spec)
"""
COMPARE = """
time.sleep(2.1)
look_up(many)  # compares all shards with their digests, and keeps that they are sound
print("[]")
"""
LOOK_UP = """
_, first = timed(lambda: look_up(batches[0]))
look_up(many)
warm = sorted(timed(lambda: look_up(keys))[1] for keys in batches[1:])
strangers = [generator.integers(0, 256, (1000, 32), dtype=np.uint8) for _ in range(20)]
missing = sorted(timed(lambda: space.has(["avg"], keys))[1] for keys in strangers)
alone = sorted(timed(lambda: look_up(batches[1][row : row + 1]))[1] for row in range(200))
memory = anonymous() - before
print(json.dumps([first * 1e3, warm[10] * 1e3, missing[10] * 1e3, alone[100] * 1e6, memory]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print(
        "| rows | shards | index MB | write s | MiB | list the shards ms | open the index ms | "
        "MiB | open the space ms | MiB | first look-up µs | warm µs | of unknown keys µs | "
        "alone µs | MiB |"
    )
    print("|" + " --- |" * 15)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        layout = CacheLayout(Path(folder))
        FeatureSpace(layout, SPEC).write_spec()
        shards, goal = 0, 1_000_000
        while goal <= options.rows:
            while shards * SHARD_ROWS < goal:
                add_shard(layout, shards)
                shards += 1
            write_s, write_mib, size_mb = run(WRITE, folder)
            count, listed, opened, index_mib, space_s, space_mib = run(OPEN, folder, times=3)
            run(DRAW + COMPARE, folder)
            first, warm, missing, alone, memory = run(DRAW + LOOK_UP, folder, times=3)
            print(
                f"| {shards * SHARD_ROWS:,} | {count:,} | {size_mb:,.0f} | {write_s:.1f} | "
                f"{write_mib:.0f} | {listed * 1e3:.1f} | {opened * 1e3:.1f} | {index_mib:.1f} | "
                f"{space_s * 1e3:.0f} | {space_mib:.0f} | {first:.0f} | {warm:.1f} | "
                f"{missing:.1f} | {alone:.0f} | {memory:.0f} |",
                flush=True,
            )
            goal *= 10


def add_shard(layout: CacheLayout, number: int) -> None:
    """Write a shard whose keys can be drawn again from its number."""
    keys = np.random.default_rng(number).integers(0, 256, (SHARD_ROWS, 32), dtype=np.uint8)
    write_shard(
        layout,
        layout.space(SPEC),
        spec_digest=SPEC.digest,
        keys=keys,
        features={"avg": np.zeros((SHARD_ROWS, 1), np.float32)},
        provenance={},
    )


def run(code: str, folder: str, times: int = 1) -> list[float]:
    """Return the least of what fresh processes print."""
    command = [sys.executable, "-c", COMMON + code, folder, str(SHARD_ROWS)]
    runs = []
    for _ in range(times):
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        runs.append(json.loads(done.stdout))
    return [min(figures) for figures in zip(*runs, strict=True)]


if __name__ == "__main__":
    main()
