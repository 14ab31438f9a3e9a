"""How fast the cache is against the limits of the machine, both sides in one run.

    python scripts/bench/cache.py            # all of it: a few minutes, 1 GB of disk
    python scripts/bench/cache.py --quick    # a tenth of each size

Every figure is the median of several turns, the two sides taking turns. Prints a table and one line
of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import featx
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Block, Manifest, write_manifest
from featx.cache.shard import write_shard
from featx.cache.space import FeatureSpace

TURNS = 7
SHARD_ROWS = 4915  # 24 MiB of 1,280 float32
SPEC = featx.FeatureSpec(
    backbone="synthetic", weights_sha256="0" * 64, input_size_px=(64, 64), preprocessing="none"
)


def take_turns(*sides: Callable[[], object]) -> list[float]:
    """Median seconds of each side."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(TURNS + 1):
        for side, run in enumerate(sides):
            started = time.perf_counter()
            run()
            if turn:
                seconds[side].append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


def fill(folder: Path, rows: int, width: int, shard_rows: int = SHARD_ROWS) -> np.ndarray[Any, Any]:
    """Write a space of random rows and a dataset over it; return the keys."""
    generator = np.random.default_rng(0)
    layout = CacheLayout(folder)
    keys = generator.integers(0, 256, (rows, 32), dtype=np.uint8)
    space = FeatureSpace(layout, SPEC)
    block = generator.normal(size=(min(rows, shard_rows), width)).astype(np.float32)
    for start in range(0, rows, shard_rows):
        part = keys[start : start + shard_rows]
        write = space.add if start == 0 else None
        if write:
            write(part, {"avg": block[: len(part)]}, {})
        else:
            write_shard(
                layout,
                space.folder,
                spec_digest=SPEC.digest,
                keys=part,
                features={"avg": block[: len(part)]},
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
    return keys


def bench_reading(folder: Path, rows: int) -> dict[str, float]:
    """All rows of one shard into memory, against np.fromfile of as many bytes."""
    keys = fill(folder / "one", rows, 1280, shard_rows=rows)
    space = FeatureSpace(CacheLayout(folder / "one"), SPEC)
    plain = folder / "plain.bin"
    space.gather("avg", keys).tofile(plain)
    ours, limit = take_turns(
        lambda: np.array(space.gather("avg", keys)), lambda: np.fromfile(plain, np.float32)
    )
    size = plain.stat().st_size / 1e9
    print(f"read {rows:,} x 1,280: featx {size / ours:.2f} GB/s, np.fromfile {size / limit:.2f}")
    picked = np.random.default_rng(1).choice(rows, rows // 10, replace=False)
    mapped = np.memmap(plain, np.float32, "r", shape=(rows, 1280))
    shard = space.paths[0]

    def fancy() -> None:
        with h5py.File(shard) as file:
            file["features/avg"][np.sort(picked)]

    gather, memmap, h5 = take_turns(
        lambda: space.gather("avg", keys[picked]), lambda: mapped[picked], fancy
    )
    print(
        f"gather {len(picked):,} scattered rows: featx {gather * 1e3:.1f} ms, memmap "
        f"{memmap * 1e3:.1f} ms, h5py {h5 * 1e3:.1f} ms"
    )

    def first() -> None:
        shutil.rmtree(folder / "one" / "checked", ignore_errors=True)
        FeatureSpace(CacheLayout(folder / "one"), SPEC).gather("avg", keys[picked])

    once, later = take_turns(
        first, lambda: FeatureSpace(CacheLayout(folder / "one"), SPEC).gather("avg", keys[picked])
    )
    print(
        f"open and gather them: {once:.2f} s with digests ({size / (once - later):.2f} GB/s), "
        f"{later:.2f} s once they are known"
    )
    return {
        "check_gb_per_s": size / (once - later),
        "read_of_fromfile": limit / ours,
        "gather_of_memmap": gather / memmap,
        "h5py_of_gather": h5 / gather,
    }


def bench_opening(folder: Path, rows: int) -> dict[str, float]:
    """Open a space of many rows in a fresh process; the import of NumPy and h5py is not counted."""
    fill(folder / "many", rows, 16)
    setup = (
        "import json, time, numpy, h5py\n"
        "from featx.cache.layout import CacheLayout\n"
        "from featx.cache.space import FeatureSpace, read_spec\n"
        f"layout = CacheLayout.at({str(folder / 'many')!r})\n"
        "(place,) = layout.spaces.iterdir(); spec = read_spec(place)\n"
        "started = time.perf_counter()\n"
    )
    report = (
        "seconds = time.perf_counter() - started\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "(peak,) = [int(s.split()[1]) / 1024 for s in lines if s.startswith('VmHWM')]\n"
        "print(json.dumps([seconds, peak]))"
    )

    def measure(code: str) -> list[float]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        found: list[float] = json.loads(done.stdout)
        return found

    without = statistics.median(measure(setup + report)[1] for _ in range(TURNS))
    runs = [measure(setup + "space = FeatureSpace(layout, spec)\n" + report) for _ in range(TURNS)]
    seconds, peak = (statistics.median(values) for values in zip(*runs, strict=True))
    print(f"open {rows:,} rows: {seconds:.3f} s, {peak - without:.0f} MiB")
    return {"open_s": seconds, "open_mib": peak - without}


def bench_unchanged(folder: Path, files: int) -> dict[str, float]:
    """Run again over many unchanged small files, against a bare walk with scandir and stat."""
    photos = folder / "photos"
    row = 0
    for number in range(10):
        (photos / f"class{number}").mkdir(parents=True)
        for _ in range(files // 10):
            (photos / f"class{number}" / f"{row:07d}.png").write_bytes(b"%d" % row)
            row += 1
    old = time.time() - 3600
    for path in photos.rglob("*.png"):
        os.utime(path, (old, old))
    data = featx.ImageDataset.from_folder(photos)
    cache = folder / "rerun"
    _pretend_extracted(data, cache)

    def rerun() -> None:
        features = featx.extract(photos, backbone="tiny", cache=cache)
        assert features.report["cached"] == files, features.report

    def walk() -> int:
        count = 0
        for folder_entry in os.scandir(photos):
            for entry in os.scandir(folder_entry.path):
                count += entry.stat().st_size > 0
        return count

    ours, bare = take_turns(rerun, walk)
    print(f"unchanged re-run over {files:,} files: featx {ours:.2f} s, bare walk {bare:.2f} s")
    return {"rerun_s": ours, "walk_s": bare, "rerun_limit_s": 2 * bare + 0.5}


def bench_memory(folder: Path, few: int, many: int) -> dict[str, float]:
    """Peak memory of an extraction over few and over many images, each in a fresh process."""
    from PIL import Image

    generator = np.random.default_rng(2)
    for number in range(many):
        target = folder / "memory" / ("few" if number < few else "more") / f"{number:06d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(target)
    peaks = []
    for place in (folder / "memory" / "few", folder / "memory"):
        code = (
            "import featx\n"
            f"featx.extract({str(place)!r}, backbone='tiny', cache={str(folder / place.name)!r}, "
            "name='memory')\n"
            "lines = open('/proc/self/status').read().splitlines()\n"
            "print([int(s.split()[1]) / 1024 for s in lines if s.startswith('VmHWM')][0])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        peaks.append(float(done.stdout))
    print(f"extraction: {few:,} images {peaks[0]:.0f} MiB, {many:,} images {peaks[1]:.0f} MiB")
    return {"few_mib": peaks[0], "many_mib": peaks[1]}


def _pretend_extracted(data: featx.ImageDataset, cache: Path) -> None:
    # The files are no images, to have many of them soon: their features are put into the cache
    # under their keys, as an extraction would have.
    from featx.backbones.source import resolve_backbone
    from featx.extraction.job import Job
    from featx.extraction.pipeline import Network
    from featx.extraction.record import DatasetRecord
    from featx.images.files import image_key

    source = resolve_backbone("tiny")
    part = (source.spec(), Network(source, ("avg",)))
    job = Job(parts=(part,), data=data, layout=CacheLayout(cache))
    stages, record = job.open(), DatasetRecord(job)
    for index in range(len(data)):
        record.ledger.key[index] = np.frombuffer(image_key(data.read(index)), np.uint8)
    record.ledger.status[:] = 0
    for start in range(0, len(data), SHARD_ROWS):
        keys = record.ledger.key[start : start + SHARD_ROWS]
        stages[0].store.add(keys, {"avg": np.zeros((len(keys), 1280), np.float32)}, {})
    record.save(stages)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    quick = 10 if parser.parse_args().quick else 1
    with tempfile.TemporaryDirectory() as folder:
        found = {
            **bench_reading(Path(folder), 50_000 // quick),
            **bench_opening(Path(folder), 1_000_000 // quick),
            **bench_unchanged(Path(folder), 100_000 // quick),
            **bench_memory(Path(folder), 1_000, 100_000 // quick),
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**{key: round(value, 4) for key, value in found.items()}, "peak_mib": peak}))


if __name__ == "__main__":
    main()
