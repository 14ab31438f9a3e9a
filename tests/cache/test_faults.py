"""What goes wrong on real machines: full disks, I/O errors, clocks, kills."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import featx
from featx.cache import shard as shard_module
from featx.cache.manifest import write_manifest
from featx.cache.shard import read_shard
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheFormatError, CacheWriteError
from featx.files import outputs as durable

REPOSITORY = Path(__file__).resolve().parents[2]


def files(space):
    return sorted(path for path in space.layout.root.rglob("*") if path.is_file())


FULL_DISK = """
import json, resource, sys
import numpy as np
from featx.cache.features import Features
from featx.cache.pack import pack_dataset
from featx.exceptions import CacheWriteError
features = Features.open("photos", cache=sys.argv[1])
space = features._stores[0]
keys = np.random.default_rng(1).integers(0, 256, (2000, 32), dtype=np.uint8)
# A limit on the size of a file stands for the end of the disk: write() fails in the middle.
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
messages = []
for write in (
    lambda: space.add(keys, {"avg": np.ones((2000, 64), np.float32)}, {}),
    lambda: pack_dataset(features, sys.argv[1] + "/photos.h5"),
):
    try:
        write()
    except CacheWriteError as error:
        messages.append(str(error))
print(json.dumps([*messages, bool(space.has(["avg"], features.keys).all())]))
"""


def test_a_disk_that_fills_up_keeps_what_was_finished(layout, kit):
    keys, values = kit.rows(300, d=64)
    cache = kit.fill(layout.root, keys, values, at_once=100)
    write_manifest(layout, kit.dataset("photos", keys))
    before = set(kit.state(cache))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(cache.root)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shard, pack, still_there = json.loads(done.stdout)
    assert "cannot write" in shard
    assert "What was finished before is kept" in shard
    assert pack.startswith(f"cannot write {cache.root / 'photos.h5'}: File too large")
    assert still_there
    assert set(kit.state(cache)) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("step", ["create", "flush", "replace"])
def test_an_error_at_any_step_of_a_write_leaves_the_cache_as_it_was(
    space, kit, monkeypatch, number, step
):
    keys, values = kit.rows(20, d=16)
    space.add(keys[:5], {"avg": values[:5]}, {})
    before = files(space)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    module = {"create": shard_module, "flush": durable}.get(step)
    monkeypatch.setattr(module or Path, step, fail)
    with pytest.raises(CacheWriteError, match=os.strerror(number)):
        space.add(keys[5:], {"avg": values[5:]}, {})
    monkeypatch.undo()
    assert files(space) == before
    again = FeatureSpace(space.layout, space.spec)
    assert again.has(["avg"], keys).tolist() == [True] * 5 + [False] * 15
    space.add(keys[5:], {"avg": values[5:]}, {})
    np.testing.assert_array_equal(space.gather("avg", keys), values)


def test_a_failed_flush_of_the_folder_is_an_error_and_no_row_is_wrong(space, kit, monkeypatch):
    # The shard has its name by then: it may be kept, but nothing was promised.
    keys, values = kit.rows(5, d=16)

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(durable, "flush_names", fail)
    with pytest.raises(CacheWriteError, match="Input/output error"):
        space.add(keys, {"avg": values}, {})
    monkeypatch.undo()
    again = FeatureSpace(space.layout, space.spec)
    here = again.has(["avg"], keys) if again.taps else np.zeros(5, bool)
    if here.any():
        np.testing.assert_array_equal(again.gather("avg", keys[here]), values[here])


def test_a_flipped_bit_in_the_structure_of_a_shard_gives_no_wrong_row(space, kit):
    # Bits of the features themselves are found by `verify`, which reads their digests.
    keys, values = kit.rows(64, d=16)
    path = space.add(keys, {"avg": values}, {})
    whole = path.read_bytes()
    shard = read_shard(path, kit.spec.digest)
    data = [(a.offset, a.offset + int(np.prod(a.shape)) * a.dtype.itemsize)
            for a in (shard.keys, *shard.taps.values())]  # fmt: skip
    tries = 0
    for position in range(0, len(whole), 7):
        if any(start <= position < stop for start, stop in data):
            continue
        tries += 1
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        try:
            again = FeatureSpace(space.layout, space.spec)
            found = again.has(["avg"], keys)
            if found.any():
                np.testing.assert_array_equal(again.gather("avg", keys[found]), values[found])
        except (CacheFormatError, featx.FeaturesError):
            pass
    assert tries > 200


def test_a_clock_that_jumps_back_costs_a_second_reading_and_nothing_else(
    photos, small_network, tmp_path, monkeypatch
):
    options = {"backbone": f"file:{small_network}", "cache": tmp_path / "cache"}
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    first = featx.extract(photos, **options)
    second = featx.extract(photos, **options)
    assert first.report["extracted"] == 12
    assert second.report["cached"] == 12
    np.testing.assert_array_equal(first.X, second.X)


def torture(kills, errors, minutes):
    script = REPOSITORY / "scripts" / "torture_cache.py"
    counts = ["--kills", str(kills), "--errors", str(errors), "--minutes", str(minutes)]
    done = subprocess.run(
        [sys.executable, script, *counts],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert seen["kills"] >= kills
    assert seen["errors"] >= errors
    assert seen["lost"] == seen["lost_at_the_end"] == seen["broken_promises"] == []


def test_short_torture():
    torture(10, 15, 10)


@pytest.mark.slow
def test_long_torture():
    torture(300, 500, 60)
