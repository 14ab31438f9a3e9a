"""How fast the nearest images are found among cached features, against scikit-learn.

    python scripts/bench/nearest.py                 # 1,000,000 x 1,280 in a cache: 5 GB of disk
    python scripts/bench/nearest.py --rows 100000

The ten nearest of one image among features that are mapped from a cache and warm; then of 500
images among 20,000 rows in memory, for featx and for scikit-learn's `NearestNeighbors` by brute
force, the two sides taking turns. Prints the medians, the memory that featx took beside the mapped
features, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors

import featx
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Block, Manifest, write_manifest
from featx.cache.nearest import nearest
from featx.cache.shard import write_shard
from featx.cache.space import FeatureSpace

WIDTH, SHARD_ROWS, TURNS = 1280, 4915, 5
SPEC = featx.FeatureSpec(
    backbone="synthetic", weights_sha256="0" * 64, input_size_px=(64, 64), preprocessing="none"
)


def fill(folder: Path, rows: int) -> None:
    """Write a cache of random features in groups, as networks give them, and a dataset over it."""
    generator = np.random.default_rng(0)
    layout, keys = CacheLayout(folder), generator.integers(0, 256, (rows, 32), dtype=np.uint8)
    space = FeatureSpace(layout, SPEC)
    space.write_spec()
    centres = generator.normal(size=(1000, WIDTH)).astype(np.float32)
    noise = generator.normal(size=(2 * SHARD_ROWS, WIDTH)).astype(np.float32)
    for start in range(0, rows, SHARD_ROWS):
        part = keys[start : start + SHARD_ROWS]
        first = int(generator.integers(SHARD_ROWS))
        values = centres[generator.integers(1000, size=len(part))]
        values += noise[first : first + len(part)]
        write_shard(
            layout,
            space.folder,
            spec_digest=SPEC.digest,
            keys=part,
            features={"avg": np.maximum(values, 0)},
            provenance={},
        )
    none = np.full(rows, -1)
    write_manifest(
        layout,
        Manifest(
            name="synthetic", root="", classes=None, path=[f"{i}" for i in range(rows)],
            label=none.astype(np.int32), group=[""] * rows, split=[""] * rows,
            reason=[""] * rows, size=none, mtime_ns=none, inode=none, key=keys,
            status=np.zeros(rows, np.uint8), blocks=(Block("synthetic", "avg", SPEC.name),),
        ),
    )  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def anonymous_mib() -> float:
    """Return the memory of this process that is no file, in MiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line) / 1024


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cache", type=Path, help="a cache of an earlier run, which is kept")
    arguments = parser.parse_args()
    folder = arguments.cache or Path(tempfile.mkdtemp(prefix="featx-nearest-"))
    try:
        if not (folder / "datasets").exists():
            fill(folder, arguments.rows)
        features = featx.Features.open("synthetic", cache=folder)
        query = features.take(np.array([17]))
        features.neighbours(query)  # the shards are compared with their digests once
        before = anonymous_mib()
        times = [seconds(lambda: features.neighbours(query)) for _ in range(TURNS)]
        result = {"rows": len(features), "one_query_s": statistics.median(times)}
        result["held_mib"] = anonymous_mib() - before
        print(f"top 10 of {len(features):,} x {WIDTH:,}: {result['one_query_s']:.2f} s")
    finally:
        if arguments.cache is None:
            shutil.rmtree(folder)
    generator = np.random.default_rng(1)
    X = generator.normal(size=(20_000, WIDTH)).astype(np.float32)
    for metric in ("cosine", "euclidean"):
        sides = {
            "featx": lambda metric=metric: nearest(X[:500], X, 10, metric=metric),
            "scikit-learn": lambda metric=metric: NearestNeighbors(
                n_neighbors=10, algorithm="brute", metric=metric
            ).fit(X).kneighbors(X[:500]),
        }  # fmt: skip
        turns = [{side: seconds(run) for side, run in sides.items()} for _ in range(TURNS)]
        for side in sides:
            result[f"{side} {metric} s"] = statistics.median(turn[side] for turn in turns)
        ratio = result[f"featx {metric} s"] / result[f"scikit-learn {metric} s"]
        print(f"500 of 20,000 by {metric}: featx takes {ratio:.2f} of the time of scikit-learn")
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
