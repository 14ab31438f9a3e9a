"""What flows through a run, with engines that are watched."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from featx.exceptions import CacheWriteError, EngineError
from featx.extraction import progress
from featx.extraction.pipeline import Ledger, MemoryStore, Run, Stage
from featx.extraction.progress import Meter
from featx.images.dataset import ImageDataset
from featx.spec import FeatureSpec, ViewPolicy


class Engine:
    """Means over pixels, computed by a thread, with a count of what is under way."""

    name = "means"
    taps = ("avg",)

    def __init__(self, *, batch_size=4, in_flight=2, seconds=0.0, fails_at=None):
        self.batch_size = batch_size
        self.in_flight = in_flight
        self.seconds = seconds
        self.fails_at = fails_at
        self.batches = []
        self.under_way = self.most_under_way = 0

    def open(self):
        """Be the network and its engine in one."""
        return self

    def submit(self, pixels):
        self.batches.append(len(pixels))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        return Batch(self, pixels, fails=len(self.batches) == self.fails_at)

    def run(self, pixels):
        return {"avg": pixels.mean(axis=(1, 2)).astype(np.float32)}


class Batch:
    def __init__(self, engine, pixels, *, fails):
        self.engine, self.pixels, self.fails = engine, pixels, fails
        self.thread = threading.Timer(engine.seconds, lambda: None)
        self.thread.start()

    def result(self):
        self.thread.join()
        self.engine.under_way -= 1
        if self.fails:
            raise EngineError("the device has gone")
        return self.engine.run(self.pixels)


class Sink(MemoryStore):
    """A store that is slow, or breaks."""

    seconds = 0.0
    breaks = False

    def add(self, keys, features):
        time.sleep(self.seconds)
        if self.breaks:
            raise CacheWriteError("the disk is full")
        super().add(keys, features)


def spec(**changes):
    return FeatureSpec(
        backbone="means",
        weights_sha256="0" * 64,
        input_size_px=(8, 8),
        preprocessing="none",
        **changes,
    )


def stage(engine, sink=None, **changes):
    return Stage(spec(**changes), engine, sink or Sink(spec(**changes)))


@pytest.fixture
def data():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    return ImageDataset.from_arrays(pixels)


def extract(data, *stages, meter=None, progress=None):
    ledger = Ledger.blank(len(data))
    Run(data, stages, ledger, meter=meter).work(progress)
    return ledger


def test_batches_overlap_but_are_bounded_and_every_image_gets_its_own_features(data):
    engine = Engine(batch_size=4, in_flight=3, seconds=0.01)
    one = stage(engine)
    ledger = extract(data, one)
    assert engine.batches == [4] * 7 + [2]
    assert engine.most_under_way == 3
    expected = np.stack([data.image(row).mean(axis=(0, 1)) for row in range(len(data))])
    np.testing.assert_allclose(one.store.gather("avg", ledger.key), expected, rtol=1e-6)


def test_stages_of_one_network_share_its_engine(data):
    engine = Engine(in_flight=1)
    stages = [stage(engine), *(stage(engine, views=ViewPolicy(index=i)) for i in range(2))]
    ledger = extract(data, *stages)
    assert engine.most_under_way == 1
    assert [one.computed for one in stages] == [30, 30, 30]
    plain, first, second = (one.store.gather("avg", ledger.key) for one in stages)
    assert np.abs(plain - first).max() > 1
    assert np.abs(first - second).max() > 1


def test_writing_overlaps_with_computing(data):
    second = threading.Event()

    class Watched(Engine):
        def submit(self, pixels):
            if self.batches:
                second.set()
            return super().submit(pixels)

    class Waiting(Sink):
        overlaps = True

        def add(self, keys, features):
            self.overlaps &= second.wait(timeout=600)  # for as long as the first batch is written
            super().add(keys, features)

    sink = Waiting(spec())
    extract(data, stage(Watched(batch_size=3, in_flight=1), sink))
    assert sink.overlaps


def test_a_slow_disk_is_said_to_bind_and_is_waited_for(data):
    slow = Sink(spec())
    slow.seconds = 0.02
    meter = Meter()
    one = stage(Engine(batch_size=1), slow)
    ledger = extract(data, one, meter=meter)
    assert meter.binds == "disk"
    assert not one.missing(ledger.key).any()


def test_a_failing_write_ends_the_run_with_its_error(data):
    broken = Sink(spec())
    broken.breaks = True
    engine = Engine(batch_size=1)
    with pytest.raises(CacheWriteError, match="the disk is full"):
        extract(data, stage(engine, broken))
    assert len(engine.batches) < 30


def test_a_failing_batch_ends_the_run_and_the_others_are_kept(data):
    one = stage(Engine(batch_size=4, fails_at=5))
    with pytest.raises(EngineError, match="the device has gone"):
        extract(data, one)
    assert one.computed >= 16


def test_an_interrupt_keeps_what_was_under_way(data):
    one = stage(Engine(batch_size=4))

    def stop(done, total, failed):
        if done == 18:
            raise KeyboardInterrupt

    ledger = Ledger.blank(len(data))
    with pytest.raises(KeyboardInterrupt):
        Run(data, [one], ledger).work(stop)
    assert one.computed == 16
    assert int((~one.missing(ledger.key)).sum()) == 16


def test_an_interrupt_whose_work_cannot_be_kept_says_so(data):
    broken = Sink(spec())
    broken.breaks = True

    def stop(done, total, failed):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(CacheWriteError, match="the disk is full"):
        extract(data, stage(Engine(batch_size=4), broken), progress=stop)


def test_no_thread_outlives_a_run(data):
    before = set(threading.enumerate())
    extract(data, stage(Engine()))
    left = [t for t in set(threading.enumerate()) - before if t.name.startswith("featx")]
    assert not left


@pytest.mark.parametrize(
    ("value", "dtype", "reason"),
    [
        (np.nan, "float32", "means gives features that are no finite numbers at the tap avg"),
        (
            70_000,
            "float16",
            "means gives 7e+04 at the tap avg, too large for float16: store float32 "
            "(--dtype float32)",
        ),
        (70_000, "float32", ""),
    ],
)
def test_features_that_cannot_be_stored_fail_their_image_alone(value, dtype, reason):
    class Odd(Engine):
        def run(self, pixels):
            means = super().run(pixels)
            means["avg"][pixels[:, 0, 0, 0] == 7] = value
            return means

    pixels = np.zeros((5, 8, 8, 3), np.uint8)
    pixels[:, 1, 1, 1] = range(5)
    pixels[3, 0, 0, 0] = 7
    ledger = extract(ImageDataset.from_arrays(pixels), stage(Odd(), dtype=dtype))
    assert ledger.reason == ["", "", "", reason, ""]


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only as this function is told."""
    now = [100.0]

    def pass_seconds(seconds):
        now[0] += seconds

    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return pass_seconds


def test_seconds_of_work_are_added_up_over_threads():
    meter = Meter()
    threads = [
        threading.Thread(target=lambda: [meter.add("decode", 0.001) for _ in range(1000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.seconds["decode_s"] == pytest.approx(4.0)


def test_forward_counts_the_clock_once_for_batches_that_overlap(clock):
    meter = Meter()
    meter.batch_started()
    meter.batch_started()
    clock(0.05)
    meter.batch_ended()
    meter.batch_ended()
    assert meter.seconds["forward_s"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("waits", "work", "binds"),
    [
        ({"model": 0.02, "images": 0.001}, {}, "model"),
        ({"images": 0.02}, {"decode": 2.0, "read": 1.0}, "decode"),
        ({"images": 0.02}, {"decode": 1.0, "read": 2.0}, "read"),
        ({"writer": 0.02, "model": 0.001}, {}, "disk"),
        ({}, {}, None),
    ],
)
def test_what_is_waited_for_most_binds(clock, waits, work, binds):
    meter = Meter()
    for what, seconds in waits.items():
        with meter.timing(what):
            clock(seconds)
    for kind, seconds in work.items():
        meter.add(kind, seconds)
    assert meter.binds == binds


def test_the_start_of_the_engine_is_not_in_the_span(clock):
    meter = Meter()
    meter.begin_images()
    with meter.timing("start"):
        clock(0.05)
    clock(0.02)
    meter.stop()
    assert meter.span_s == pytest.approx(0.02)
    assert meter.span_s == meter.span_s
