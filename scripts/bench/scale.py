"""How a cache grows: opening, looking up, adding, manifests and memory at 10^5 to 10^8 rows.

    python scripts/bench/scale.py                # to 10^6
    python scripts/bench/scale.py --rows 10000000
    python scripts/bench/scale.py --rows 100000000 --only manifests

The rows are synthetic and narrow (4 numbers), in shards of as many rows as 24 MiB hold of 1,280
float32: what is measured does not depend on the width. Every figure is the median of three fresh
processes. `key_index.py` measures spaces with an index on disk. Prints the tables for
docs/scale.md; 10^7 rows take 2 GB of disk and of memory, the manifest of 10^8 takes 11 GB of disk
and 7 GB of memory.
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
from pathlib import Path
import numpy as np, h5py
from featx.cache.columns import Numbers, Strings
from featx.cache.datasets import rename_dataset
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Manifest, read_manifest, write_manifest
layout, n = CacheLayout.at(sys.argv[1]), int(sys.argv[2])
def private_mib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024
def measured(work):
    before, cpu, wall = private_mib(), time.process_time(), time.perf_counter()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu, private_mib() - before
if sys.argv[3] == "write":
    blocks = [range(start, min(start + 1_000_000, n)) for start in range(0, n, 1_000_000)]
    generator, zeros = np.random.default_rng(0), np.broadcast_to(np.int64(0), (n,))
    manifest = Manifest(
        name="synthetic", root="/images", classes=("a",), label=zeros,
        path=Strings([
            piece for rows in blocks for piece in
            Strings.of([f"class_{row % 10}/image_{row:08d}.jpg" for row in rows]).pieces
        ]),
        group=Strings.blank(n), split=Strings.blank(n), reason=Strings.blank(n),
        size=zeros, mtime_ns=zeros, inode=zeros, ctime_ns=zeros, birth_ns=zeros,
        key=Numbers([generator.integers(0, 256, (len(rows), 32), np.uint8) for rows in blocks]),
        status=zeros, source="files",
    )
    _, *figures, _ = measured(lambda: write_manifest(layout, manifest))
    files = [*layout.manifests(), *layout.root.glob("parts/*.h5")]
    print(json.dumps([sum(file.stat().st_size for file in files) / 1e6, len(files), *figures]))
else:
    path = layout.dataset("synthetic")
    manifest, *figures = measured(lambda: read_manifest(path))
    assert len(manifest) == n
    _, *search = measured(lambda: manifest.path.find([manifest.path[n // 2]]))
    figures += search[:1]
    _, *renamed = measured(lambda: rename_dataset(layout, "synthetic", "other"))
    rename_dataset(layout, "other", "synthetic")
    print(json.dumps([*figures, *renamed[:1]]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["features", "manifests"])
    options = parser.parse_args()
    if options.only != "manifests":
        features(options.rows)
    if options.only != "features":
        manifests(options.rows)


def features(most: int) -> None:
    """Print what a space of features costs, to so many rows."""
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


def manifests(most: int) -> None:
    """Print what a manifest costs, to so many rows."""
    print(
        "| rows | files | MB | write s | of processor | open s | of processor | private MiB | "
        "find a path s | rename s |"
    )
    print("| --- " * 10 + "|")
    rows = 100_000
    while rows <= most:
        with tempfile.TemporaryDirectory() as folder:
            runs = 3 if rows < 100_000_000 else 1
            size, count, *write = measure(MANIFEST, folder, str(rows), "write", runs=runs)
            *opened, private, search, renamed = measure(
                MANIFEST, folder, str(rows), "read", runs=runs
            )
        seconds = " | ".join(f"{value:.2f}" for value in (*write, *opened))
        print(
            f"| {rows:,} | {count:.0f} | {size:,.0f} | {seconds} | {private:.1f} | {search:.2f} | "
            f"{renamed:.2f} |",
            flush=True,
        )
        rows *= 10


def measure(code: str, *args: str, runs: int = 3) -> list[float]:
    """Return the medians of what fresh processes print."""
    figures = []
    for _ in range(runs):
        command = [sys.executable, "-c", code, *args]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        figures.append(json.loads(done.stdout))
    return [statistics.median(values) for values in zip(*figures, strict=True)]


if __name__ == "__main__":
    main()
