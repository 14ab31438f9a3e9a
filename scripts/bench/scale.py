"""How a cache grows without an index on disk: opening, looking up, adding, manifests and memory.

    python scripts/bench/scale.py                # to 10^6
    python scripts/bench/scale.py --rows 10000000

The rows are synthetic and narrow (4 numbers), in shards of as many rows as 24 MiB hold of 1,280
float32: what is measured does not depend on the width. Every figure is the median of three fresh
processes. `key_index.py` measures spaces with an index on disk. Prints the tables for
docs/scale.md; 10^7 rows take 2 GB of disk and of memory.
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

SHARD_ROWS = 4915
SPEC = featx.FeatureSpec(
    backbone="synthetic", weights_sha256="0" * 64, input_size_px=(64, 64), preprocessing="none"
)
MEASURE = """
import json, sys, time
import numpy as np, h5py
from featx.cache.layout import CacheLayout
from featx.cache.shard import read_shard
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
some = [read_shard(path, spec.digest) for path in space.paths[:50]]
keys = np.concatenate([shard.keys.map()[:63] for shard in some])[:1000]
started = time.perf_counter()
assert space.has(["avg"], keys).all()
looked_up = time.perf_counter() - started
started = time.perf_counter()
space.gather("avg", keys)
gathered = time.perf_counter() - started
new = np.random.default_rng().integers(0, 256, (len(some[0]), 32), dtype=np.uint8)
added = []
shards = len(space.paths)
for _ in range(3):
    started = time.perf_counter()
    path = space.add(new, {"avg": np.zeros((len(new), 4), np.float32)}, {})
    added.append(time.perf_counter() - started)
    path.unlink()
print(json.dumps([shards, opened, memory, looked_up, gathered, sorted(added)[1]]))
"""
MANIFEST = """
import json, sys, time
import numpy as np, h5py
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Manifest, read_manifest, write_manifest
def peak_of(work):
    def status(name):
        for line in open("/proc/self/status"):
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts from here
    before, started = status("VmHWM"), time.perf_counter()
    result = work()
    return result, time.perf_counter() - started, status("VmHWM") - before
n = int(sys.argv[2])
blank, zeros = [""] * n, np.zeros(n, np.int64)
manifest = Manifest(
    name="synthetic", root="/images", classes=("a",), label=np.zeros(n, np.int32),
    path=[f"class_{row % 10}/image_{row:08d}.jpg" for row in range(n)],
    group=blank, split=blank, reason=blank, size=zeros, mtime_ns=zeros, inode=zeros,
    key=np.zeros((n, 32), np.uint8), status=np.zeros(n, np.uint8), source="files",
)
layout = CacheLayout.at(sys.argv[1])
path, write_s, write_mib = peak_of(lambda: write_manifest(layout, manifest))
del manifest
_, read_s, read_mib = peak_of(lambda: read_manifest(path))
print(json.dumps([path.stat().st_size / 1e6, write_s, write_mib, read_s, read_mib]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    most = parser.parse_args().rows
    generator = np.random.default_rng(0)
    print(
        "| rows | shards | open s | memory MiB | look up 1,000 keys ms | gather them ms | "
        "add a shard ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
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
            shards, opened, memory, looked_up, gathered, added = measure(MEASURE, folder)
            print(
                f"| {written:,} | {shards:,.0f} | {opened:.2f} | {memory:.0f} | "
                f"{looked_up * 1e3:.1f} | {gathered * 1e3:.1f} | {added * 1e3:.0f} |",
                flush=True,
            )
            goal *= 10
    print()
    print("| rows | manifest MB | write s | memory MiB | read s | memory MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = 100_000
    while rows <= most:
        with tempfile.TemporaryDirectory() as folder:
            size, write_s, write_mib, read_s, read_mib = measure(MANIFEST, folder, str(rows))
        print(
            f"| {rows:,} | {size:,.0f} | {write_s:.2f} | {write_mib:,.0f} | {read_s:.2f} | "
            f"{read_mib:,.0f} |",
            flush=True,
        )
        rows *= 10


def measure(code: str, *args: str) -> list[float]:
    """Return the medians of what three fresh processes print."""
    runs = []
    for _ in range(3):
        command = [sys.executable, "-c", code, *args]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        runs.append(json.loads(done.stdout))
    return [statistics.median(values) for values in zip(*runs, strict=True)]


if __name__ == "__main__":
    main()
