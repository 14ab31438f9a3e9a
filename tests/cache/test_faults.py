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
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheFormatError, CacheWriteError
from featx.files import durable

REPOSITORY = Path(__file__).resolve().parents[2]


def files(space):
    return sorted(path for path in space.layout.root.rglob("*") if path.is_file())


def test_a_disk_that_fills_up_keeps_what_was_finished(tmp_path):
    # A limit on the size of a file stands for the end of the disk: write() fails in the middle.
    code = f"""
import resource, json, numpy as np
from featx.cache.layout import CacheLayout
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheWriteError
from featx.spec import FeatureSpec
spec = FeatureSpec(backbone="tiny", weights_sha256="0" * 64, input_size_px=(64, 64),
                   preprocessing="tf")
space = FeatureSpace(CacheLayout.at({str(tmp_path / "cache")!r}), spec)
keys = np.random.default_rng(0).integers(0, 256, (2000, 32), dtype=np.uint8)
values = np.ones((2000, 64), np.float32)
space.add(keys[:10], {{"avg": values[:10]}}, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    space.add(keys, {{"avg": values}}, {{}})
except CacheWriteError as error:
    print(json.dumps([str(error), bool(space.has(["avg"], keys[:10]).all())]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    message, kept = json.loads(done.stdout)
    assert "cannot write" in message
    assert "What was finished before is kept" in message
    assert kept
    left = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert len(left) == 2
    assert "spec.json" in left


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
    here = again.has(["avg"], keys) if again.shards else np.zeros(5, bool)
    if here.any():
        np.testing.assert_array_equal(again.gather("avg", keys[here]), values[here])


def test_a_shard_cut_at_every_4_kib_is_left_out_and_the_rest_stays(space, kit):
    keys, values = kit.rows(1000, d=16)
    space.add(keys[:500], {"avg": values[:500]}, {})
    path = space.add(keys[500:], {"avg": values[500:]}, {})
    whole = path.read_bytes()
    cuts = range(0, len(whole), 4096)
    assert len(cuts) > 10
    for size in cuts:
        path.write_bytes(whole[:size])
        again = FeatureSpace(space.layout, space.spec)
        assert list(again.damaged) == [path]
        assert again.has(["avg"], keys).tolist() == [True] * 500 + [False] * 500


def test_a_flipped_bit_in_the_structure_of_a_shard_gives_no_wrong_row(space, kit):
    # Bits of the features themselves are found by `verify`, which reads their digests.
    keys, values = kit.rows(64, d=16)
    path = space.add(keys, {"avg": values}, {})
    whole = path.read_bytes()
    shard = space.shards[0]
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
