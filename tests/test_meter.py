from __future__ import annotations

import threading

import pytest

from featx.extraction import progress as module
from featx.extraction.progress import Meter


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only as this function is told."""
    now = [100.0]

    def pass_seconds(seconds):
        now[0] += seconds

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
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
