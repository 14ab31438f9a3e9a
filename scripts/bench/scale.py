"""How a cache grows: opening, looking up and memory at 10^5 to 10^7 rows.

    python scripts/bench/scale.py                # to 10^6
    python scripts/bench/scale.py --rows 10000000

The rows are synthetic and narrow (4 numbers), in shards of as many rows as 32 MiB hold of 1,280
float32: what is measured does not depend on the width. Every figure is the median of three fresh
processes. Prints a table for docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
MEASURE = """
import json, sys, time
import numpy as np, h5py
from featx.cache.layout import CacheLayout
from featx.cache.space import FeatureSpace, read_spec
def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) / 1024
layout = CacheLayout.at(sys.argv[1])
(place,) = layout.spaces.iterdir()
spec = read_spec(place)
before = status("VmHWM")
started = time.perf_counter()
space = FeatureSpace(layout, spec)
opened = time.perf_counter() - started
memory = status("VmHWM") - before
keys = np.concatenate([shard.keys.map()[:20] for shard in space.shards])[:1000]
started = time.perf_counter()
assert space.has(["avg"], keys).all()
looked_up = time.perf_counter() - started
started = time.perf_counter()
space.gather("avg", keys)
gathered = time.perf_counter() - started
print(json.dumps([opened, memory, looked_up, gathered, len(space.shards)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    most = parser.parse_args().rows
    generator = np.random.default_rng(0)
    print("| rows | shards | open s | memory MiB | look up 1,000 keys ms | gather them ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        layout = CacheLayout(Path(folder))
        space = FeatureSpace(layout, SPEC)
        keys = generator.integers(0, 256, (SHARD_ROWS, 32), dtype=np.uint8)
        values = np.zeros((SHARD_ROWS, 4), np.float32)
        space.add(keys, {"avg": values}, {})
        written, goal = SHARD_ROWS, 100_000
        while goal <= most:
            while written < goal:
                keys = generator.integers(0, 256, (SHARD_ROWS, 32), dtype=np.uint8)
                write_shard(
                    layout,
                    space.folder,
                    spec_digest=SPEC.digest,
                    keys=keys,
                    features={"avg": values},
                    provenance={},
                )
                written += SHARD_ROWS
            runs = []
            for _ in range(3):
                command = [sys.executable, "-c", MEASURE, folder]
                done = subprocess.run(command, capture_output=True, check=True, text=True)
                runs.append(json.loads(done.stdout))
            opened, memory, looked_up, gathered, shards = (
                statistics.median(values) for values in zip(*runs, strict=True)
            )
            print(
                f"| {written:,} | {shards:,.0f} | {opened:.2f} | {memory:.0f} | "
                f"{looked_up * 1e3:.1f} | {gathered * 1e3:.1f} |",
                flush=True,
            )
            goal *= 10


if __name__ == "__main__":
    main()
