"""An extraction whose parts other processes compute: the same features, and nothing is lost."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from executors import Here
from PIL import Image

import featx
from featx.exceptions import DatasetError, EngineError, UnknownNameError
from featx.extraction import parts
from featx.threads import limited_processors, usable_processors

COUNT = 40


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(parts, "_LEAST_ROWS", 5)
    monkeypatch.setattr(parts, "_PARTS", 8)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for n in range(COUNT):
        label = folder / ("ant" if n % 2 else "bee")
        label.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(label / f"{n:03d}.png")
    (folder / "ant" / "copy.png").write_bytes((folder / "bee" / "000.png").read_bytes())
    (folder / "bee" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def same(one, other):
    """Two extractions of the same images agree in everything but how they came about."""
    a, b = one.manifest, other.manifest
    assert np.array_equal(a.key, b.key)
    assert np.array_equal(a.status, b.status)
    assert list(a.reason) == list(b.reason)
    assert one.y.tolist() == other.y.tolist()
    assert np.array_equal(one.X, other.X)
    return True


def test_processes_compute_what_this_one_does(photos, cache, pool):
    plain = featx.extract(photos, cache=cache)
    parted = featx.extract(photos, cache=cache.with_name("parted"), on=pool)
    assert same(plain, parted)
    assert parted.report["extracted"] == plain.report["extracted"] == COUNT
    assert parted.report["engine"] == plain.report["engine"]
    again = featx.extract(photos, cache=cache.with_name("parted"), on=pool)
    assert (again.report["extracted"], again.report["failed"]) == (0, 1)


def test_archives_and_relative_paths(photos, cache, pool, monkeypatch, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, ".")
    plain = featx.extract(tmp_path / "photos.tar", cache=cache)
    other = cache.with_name("parted")
    assert same(plain, featx.extract(tmp_path / "photos.tar", cache=other, on=pool))
    monkeypatch.chdir(tmp_path)
    paths = [f"photos/ant/{n:03d}.png" for n in range(1, 20, 2)]
    feats = featx.extract(paths, cache="third", on=pool)
    assert (feats.report["extracted"], feats.report["failed"]) == (10, 0)


def test_threads_of_any_executor(photos, cache):
    plain = featx.extract(photos, cache=cache)
    with ThreadPoolExecutor(3) as executor:
        assert same(plain, featx.extract(photos, cache=cache.with_name("parted"), on=executor))


def test_only_names_travel(photos, cache):
    import pickle

    here = Here()
    featx.extract(photos, cache=cache, on=here)
    assert len(here.sent) == 7
    assert max(len(pickle.dumps(part)) for part in here.sent) < 20_000
    assert not any(part.images.labels is not None for part in here.sent)


def test_a_part_that_fails_is_rows_and_is_computed_later(photos, cache):
    plain = featx.extract(photos, cache=cache.with_name("plain"))
    feats = featx.extract(photos, cache=cache, on=Here(failing={1, 5}))
    lost = [why for _, why in feats.failed if why.startswith(parts.NOT_COMPUTED)]
    assert len(lost) == 12
    assert lost[0] == "part not computed: the machine is gone"
    again = featx.extract(photos, cache=cache, on=Here())
    assert 10 <= again.report["extracted"] <= 12
    assert same(plain, again)


def test_too_many_failures_end_the_run_and_keep_what_is_done(photos, cache):
    with pytest.raises(DatasetError, match="more than the 3 allowed"):
        featx.extract(photos, cache=cache, on=Here(failing={3}), max_failures=3)
    assert featx.extract(photos, cache=cache).report["cached"] > 0


def die(part):
    os._exit(3)


class Dying:
    """A pool whose processes die of one part."""

    def __init__(self, pool, number):
        self.pool, self.number, self.count = pool, number, 0

    def submit(self, function, part):
        self.count += 1
        return self.pool.submit(die if self.count == self.number else function, part)


def test_a_process_that_dies_loses_no_row(photos, cache):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as broken:
        feats = featx.extract(photos, cache=cache, on=Dying(broken, 4))
    assert feats.report["failed"] > 1
    assert "process pool" in feats.failed[-2][1] or "terminated" in feats.failed[-2][1]
    assert same(
        featx.extract(photos, cache=cache.with_name("plain")), featx.extract(photos, cache=cache)
    )


class Interrupting(Here):
    def submit(self, function, part):
        if len(self.sent) == 3:
            raise KeyboardInterrupt
        return super().submit(function, part)


def test_an_interrupted_run_goes_on_later(photos, cache, monkeypatch):
    monkeypatch.setattr(parts, "_WINDOW", 1)
    with pytest.raises(KeyboardInterrupt, match="of 42 images have their features"):
        featx.extract(photos, cache=cache, on=Interrupting())
    again = featx.extract(photos, cache=cache, on=Here())
    assert again.report["extracted"] == COUNT - 3 * 6
    assert not list((cache / "tmp").glob("run-*"))


# Other hosts


def reasons(photos, cache, change, **options):
    """Return what a host says of parts that were changed on their way to it."""

    class Changed(Here):
        def submit(self, function, part):
            return super().submit(function, change(part))

    with pytest.raises(DatasetError) as caught:
        featx.extract(photos, cache=cache, on=Changed(), **options)
    return str(caught.value)


def test_another_version_is_refused(photos, cache):
    said = reasons(photos, cache, lambda part: replace(part, featx="0.0.9"))
    assert "has featx" in said


def test_a_host_that_does_not_see_the_cache_says_so(photos, cache, tmp_path):
    from featx.cache.layout import CacheLayout

    def elsewhere(part):
        return replace(part, job=replace(part.job, layout=CacheLayout(tmp_path / "elsewhere")))

    said = reasons(photos, cache, elsewhere)
    assert "does not see the cache" in said
    assert not (tmp_path / "elsewhere").exists()


def test_other_weights_are_refused(photos, cache, tmp_path):
    from pathlib import Path

    weights = tmp_path / "own.weights.h5"
    bundled = Path(featx.__file__).parent / "backbones"
    (source,) = bundled.rglob("*.weights.h5")
    weights.write_bytes(source.read_bytes())

    def changed(part):
        weights.write_bytes(source.read_bytes() + b"x")
        return part

    said = reasons(photos, cache, changed, weights=str(weights))
    assert "has other weights in" in said


def test_images_that_no_host_sees_name_it(photos, cache, tmp_path):
    def moved(part):
        return replace(part, images=replace(part.images, root=tmp_path / "nowhere"))

    assert "no such file on host" in reasons(photos, cache, moved)


def test_images_in_memory_are_refused(cache):
    with pytest.raises(DatasetError, match="in memory cannot be computed elsewhere"):
        featx.extract(np.zeros((4, 8, 8, 3), np.uint8), cache=cache, on=Here())


def test_what_is_no_engine(photos, cache):
    with pytest.raises(UnknownNameError, match="rai"):
        featx.extract(photos, cache=cache, on="rai")
    with pytest.raises(EngineError, match="an executor with a method submit"):
        featx.extract(photos, cache=cache, on=3)
    with pytest.raises(EngineError, match="1 processor or more"):
        featx.extract(photos, cache=cache, on="ray", task_cpus=0)


# Shares of a job array


def test_shares_make_a_whole(photos, cache):
    plain = featx.extract(photos, cache=cache.with_name("plain"))
    extracted = 0
    for number in (2, 1, 3):
        feats = featx.extract(photos, cache=cache, shard=(number, 3))
        extracted += feats.report["extracted"]
    assert "pending" not in feats.report
    assert extracted in (COUNT, COUNT + 1)  # a copy may be in another share
    whole = featx.extract(photos, cache=cache)
    assert whole.report["extracted"] == 0
    assert np.array_equal(whole.X, plain.X)
    assert np.array_equal(whole.manifest.status, plain.manifest.status)


def test_shares_that_ran_at_the_same_time_keep_each_other(photos, cache, monkeypatch):
    from featx.extraction.record import DatasetRecord

    save = DatasetRecord.save
    between = []

    def late(self, stages, **options):
        if not between:  # while this share is being written, the other one is
            between.append(True)
            featx.extract(photos, cache=cache, shard=(2, 2))
        return save(self, stages, **options)

    monkeypatch.setattr(DatasetRecord, "save", late)
    feats = featx.extract(photos, cache=cache, shard=(1, 2))
    assert "pending" not in feats.report
    assert len(feats) == COUNT + 1


def test_shares_of_other_features_leave_the_dataset_whole(photos, cache):
    before = featx.extract(photos, cache=cache)
    first = featx.extract(photos, cache=cache, taps="max", shard=(1, 2))
    assert first.report["pending"] + len(first) == len(before)
    assert np.array_equal(featx.Features.open("photos", cache=cache).X, before.X)
    second = featx.extract(photos, cache=cache, taps="max", shard=(2, 2))
    assert "pending" not in second.report
    both = featx.Features.open("photos", cache=cache)
    assert {block.tap for block in both.blocks} == {"avg", "max"}
    assert len(both) == len(before)


@pytest.mark.parametrize("shard", [(0, 2), (3, 2)])
def test_shares_that_there_are_not(photos, cache, shard):
    with pytest.raises(DatasetError, match="expected a share from 1 to their number"):
        featx.extract(photos, cache=cache, shard=shard)


def test_a_share_is_stable_when_images_come(photos, cache):
    first = featx.extract(photos, cache=cache, shard=(1, 2))
    Image.new("RGB", (9, 9)).save(photos / "ant" / "aaa.png")
    again = featx.extract(photos, cache=cache, shard=(1, 2))
    assert again.report["extracted"] <= 1
    assert set(first.paths) <= set(again.paths)


# Processors


def test_a_budget_of_processors():
    whole = usable_processors()
    with limited_processors(1):
        assert usable_processors() == 1
        with limited_processors(None):
            assert usable_processors() == 1
        with limited_processors(1000):
            assert usable_processors() == 1
    assert usable_processors() == whole


def test_the_command(photos, featx_command):
    done = featx_command("extract", str(photos), "--shard", "1/2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "left to other shards" in done.stdout
    assert featx_command("extract", str(photos), "--shard", "half").returncode == 2
    done = featx_command("extract", str(photos), "--on", "spark")
    assert done.returncode == 1
    assert "spark" in done.stderr
