"""A small cache of which every row is known, for the tests of its upkeep."""

from __future__ import annotations

import numpy as np
import pytest

from featx.cache.layout import CacheLayout
from featx.cache.maintenance import FeatureCache
from featx.cache.manifest import Block, Manifest, write_manifest
from featx.cache.space import FeatureSpace
from featx.spec import FeatureSpec


class Kit:
    """Makes, changes and looks at caches."""

    spec = FeatureSpec(
        backbone="tiny", weights_sha256="0" * 64, input_size_px=(64, 64), preprocessing="tf"
    )

    @staticmethod
    def rows(n, seed=0, d=4):
        """Keys of n images and their features."""
        generator = np.random.default_rng(seed)
        keys = generator.integers(0, 256, (n, 32), dtype=np.uint8)
        return keys, generator.normal(size=(n, d)).astype(np.float32)

    def dataset(self, name, keys, **columns):
        """What is known of a dataset of images with these keys."""
        n = len(keys)
        unknown = np.full(n, -1, np.int64)
        content = {
            "name": name, "root": "/photos", "classes": ("a",), "label": np.zeros(n, np.int32),
            "path": [f"a/{row}.jpg" for row in range(n)], "group": [""] * n, "split": [""] * n,
            "reason": [""] * n, "size": unknown, "mtime_ns": unknown, "inode": unknown,
            "key": keys, "status": np.zeros(n, np.uint8), "source": "folder",
            "blocks": (Block("tiny", "avg", self.spec.name),),
        }  # fmt: skip
        return Manifest(**{**content, **columns})

    def fill(self, root, keys, values, *, at_once=4, tap="avg"):
        """A cache with these rows, a few a shard, and no dataset."""
        layout = CacheLayout(root)
        space = FeatureSpace(layout, self.spec)
        for start in range(0, len(keys), at_once):
            part = slice(start, start + at_once)
            space.add(keys[part], {tap: values[part]}, {"engine": "keras"})
        return FeatureCache(root)

    def refill(self, cache, keys, values):
        """What the next extraction does: compute the rows that are not here. How many they were."""
        space = FeatureSpace(cache.layout, self.spec)
        missing = ~space.has(["avg"], keys)
        if missing.any():
            space.add(keys[missing], {"avg": values[missing]}, {})
        self.check(cache, keys, values)
        return int(missing.sum())

    def check(self, cache, keys, values, *, tap="avg"):
        """Rows are here byte for byte."""
        found = FeatureSpace(cache.layout, self.spec).gather(tap, keys)
        np.testing.assert_array_equal(found, values)

    def shards(self, cache):
        return sorted((cache.layout.spaces / self.spec.name / "shards").glob("*.h5"))

    @staticmethod
    def state(cache):
        """Every file with its content and time, apart from hints on what was checked."""
        return {
            path.relative_to(cache.root): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in cache.root.rglob("*")
            if path.is_file() and path.parent != cache.layout.checked
        }

    @staticmethod
    def flip(path, position, whole):
        """Write a file with one bit changed."""
        changed = bytes([whole[position] ^ 0x40])
        path.write_bytes(whole[:position] + changed + whole[position + 1 :])


@pytest.fixture(scope="session")
def kit():
    return Kit()


@pytest.fixture
def layout(tmp_path):
    """Where a cache goes that is not there yet."""
    return CacheLayout(tmp_path / "cache")


@pytest.fixture
def space(layout, kit):
    """A space in which nothing is yet."""
    return FeatureSpace(layout, kit.spec)


@pytest.fixture
def cache(tmp_path, kit):
    """12 rows in 3 shards, all of which the dataset `photos` uses."""
    keys, values = kit.rows(12)
    cache = kit.fill(tmp_path / "cache", keys, values)
    write_manifest(cache.layout, kit.dataset("photos", keys))
    return cache
