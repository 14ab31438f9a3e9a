"""How many threads are taken: of the machine, of a container, and of what others leave idle."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import featx.threads
from featx.heads.making import make_head
from featx.threads import idle_processors, usable_processors, worthwhile_threads

LARGE = 1 << 22


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that sets what the machine says: its processors, a quota, threads that run."""

    def describe(processors=8, *, quota="", running=(1,), affinity=None):
        allowed = set(range(affinity or processors))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: processors)
        (tmp_path / "cpu.max").write_text(quota or "max 100000")
        monkeypatch.setattr(featx.threads, "_CGROUPS", tmp_path)
        said = iter(running * 5)
        monkeypatch.setattr(featx.threads, "_running_elsewhere", lambda: next(said))
        monkeypatch.setattr(featx.threads, "_limits", featx.threads._Limits())

    return describe


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("", 8), ("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)],
)
def test_a_container_has_the_processors_of_its_quota(machine, quota, expected):
    machine(quota=quota)
    assert usable_processors() == expected


def test_the_older_kind_of_container_is_read_too(machine, tmp_path):
    machine()
    (tmp_path / "cpu.max").unlink()
    assert usable_processors() == 8  # no container
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    for quota, expected in (("300000", 3), ("-1", 8)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        assert usable_processors() == expected


@pytest.mark.parametrize(
    ("running", "expected"),
    [((0,), 8), ((3,), 5), ((8,), 1), ((50,), 1), ((0, 0, 8, 0, 0), 8), ((6, 6, 0, 6, 6), 2)],
)
def test_what_others_keep_busy_is_left_to_them_and_a_moment_does_not_count(
    machine, running, expected
):
    machine(running=running)
    assert idle_processors() == expected


def test_others_may_be_on_processors_that_are_not_ours(machine):
    machine(16, affinity=4, running=(10,))
    assert idle_processors() == 4
    machine(16, affinity=4, running=(14,))
    assert idle_processors() == 2


def test_where_the_machine_does_not_say_all_are_taken(machine, monkeypatch, tmp_path):
    real = featx.threads._running_elsewhere
    machine()
    monkeypatch.setattr(featx.threads, "_running_elsewhere", real)
    monkeypatch.setattr(featx.threads, "_LOAD", tmp_path / "nothing")
    assert idle_processors() == 8


def pools():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture
def two_threads():
    with threadpool_limits(2):
        if max(pools()) < 2:
            pytest.skip("this BLAS has one thread")
        yield


def test_the_limit_holds_while_somebody_needs_it(machine, two_threads):
    machine(2, running=(2,))
    before = pools()
    with worthwhile_threads(LARGE):
        assert set(pools()) == {1}
        with worthwhile_threads(LARGE):
            pass
        assert set(pools()) == {1}
    assert pools() == before
    machine(2, running=(0,))
    with worthwhile_threads(LARGE):
        assert pools() == before
    with worthwhile_threads(1000):  # too little to share
        assert set(pools()) == {1}
    assert pools() == before


def test_threads_that_fit_at_once_leave_the_limit_as_it_was(machine, two_threads):
    machine(2, running=(2,) * 200)
    before, rng = pools(), np.random.default_rng(0)
    X, y = rng.normal(size=(60, 20)).astype(np.float32), np.arange(60) % 2
    with ThreadPoolExecutor(4) as pool:
        for head in pool.map(lambda name: make_head(name).fit(X, y), ["ridge", "logistic"] * 8):
            assert head.predict(X).shape == (60,)
    assert pools() == before


def test_a_fit_sees_one_thread_and_an_error_gives_the_others_back(
    machine, two_threads, monkeypatch
):
    machine(2, running=(2,) * 5)
    before, seen = pools(), []

    def fail(*_):
        seen.append(set(pools()))
        raise RuntimeError

    monkeypatch.setattr("featx.heads.logistic_path.fit_logistic", fail)
    with pytest.raises(RuntimeError):
        make_head("logistic").fit(np.eye(8, dtype=np.float32), np.arange(8) % 2)
    assert seen == [{1}]
    assert pools() == before


def _limited(_):
    with worthwhile_threads(LARGE):
        return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_that_is_forked_meanwhile_does_not_wait(machine, two_threads):
    machine(2, running=(2,) * 5)
    context = multiprocessing.get_context("fork")
    with worthwhile_threads(LARGE), featx.threads._limits.lock, context.Pool(1) as pool:
        assert pool.map_async(_limited, [0]).get(60) == [True]
