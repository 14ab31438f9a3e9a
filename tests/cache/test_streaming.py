from __future__ import annotations

import numpy as np
import pytest

from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Block, Manifest
from featx.cache.space import FeatureSpace
from featx.exceptions import FeaturesError
from featx.spec import FeatureSpec


@pytest.fixture
def features(tmp_path):
    generator = np.random.default_rng(0)
    n, d = 1000, 8
    keys = generator.integers(0, 256, (n, 32), dtype=np.uint8)
    values = generator.normal(size=(n, d)).astype(np.float32)
    values[:, 0] = np.arange(n)
    spec = FeatureSpec(
        backbone="tiny", weights_sha256="0" * 64, input_size_px=(64, 64), preprocessing="tf"
    )
    space = FeatureSpace(CacheLayout(tmp_path), spec)
    shuffled = generator.permutation(n)
    for part in np.array_split(shuffled, 7):
        space.add(keys[part], {"avg": values[part]}, {})
    none = np.full(n, -1)
    manifest = Manifest(
        name="x", root="", classes=None, path=[f"{i}" for i in range(n)],
        label=none.astype(np.int32), group=[""] * n, split=[""] * n, reason=[""] * n,
        size=none, mtime_ns=none, inode=none, key=keys, status=np.zeros(n, np.uint8),
        blocks=(Block("tiny", "avg", spec.name),),
    )  # fmt: skip
    return Features(manifest, [space])


def read(features, **options):
    batches = list(features.batches(**options))
    return [len(rows) for _, rows in batches], *map(np.concatenate, zip(*batches, strict=True))


def test_in_order_every_row_comes_with_its_number(features):
    sizes, X, rows = read(features, batch_size=300)
    assert sizes == [300, 300, 300, 100]
    assert rows.tolist() == list(range(1000))
    np.testing.assert_array_equal(X, features.X)


def test_shuffled_every_row_comes_once_an_epoch_and_the_seed_decides(features):
    options = {"batch_size": 16, "shuffle": True, "max_ram_bytes": 200 * 32}
    sizes, X, rows = read(features, seed=1, **options)
    assert sorted(rows.tolist()) == list(range(1000))
    assert set(sizes[:-1]) == {16}
    np.testing.assert_array_equal(X, features.X[rows])
    np.testing.assert_array_equal(rows, read(features, seed=1, **options)[2])
    assert not np.array_equal(rows, read(features, seed=2, **options)[2])
    assert abs(np.corrcoef(rows, np.arange(1000))[0, 1]) < 0.2


def test_no_read_is_larger_than_half_the_budget(features, monkeypatch):
    largest = 0
    gather = FeatureSpace.gather

    def measure(self, tap, keys):
        nonlocal largest
        largest = max(largest, len(keys) * 32)
        return gather(self, tap, keys)

    monkeypatch.setattr(FeatureSpace, "gather", measure)
    read(features, batch_size=8, shuffle=True, max_ram_bytes=6400)
    assert largest <= 3200


def test_a_budget_below_two_batches_is_refused(features):
    with pytest.raises(FeaturesError, match="two batches of 100 rows need 6,400 bytes, more than"):
        next(features.batches(batch_size=100, max_ram_bytes=6000))
    with pytest.raises(FeaturesError, match="positive batch_size"):
        next(features.batches(batch_size=0))
