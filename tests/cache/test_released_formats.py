"""Files of every released format stay here for ever, are read, and compared with what they hold.

`tests/data/cache-v1` was made with featx 0.1.0; it is never made again. A later format gets a
folder of its own beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import featx
from featx.cache.layout import CacheLayout
from featx.cache.manifest import read_manifest, same_manifest, write_manifest
from featx.cache.space import open_space

DATA = Path(__file__).resolve().parents[1] / "data"
RELEASED = ["cache-v1"]


def expected():
    """What the archived caches hold, written down without their code."""
    keys = (np.arange(6 * 32, dtype=np.uint32).reshape(6, 32) * 7 % 256).astype(np.uint8)
    values = (np.arange(6 * 5, dtype=np.float32).reshape(6, 5) - 7) / 8
    return keys, values


@pytest.fixture(params=RELEASED)
def archived(request, tmp_path):
    return Path(shutil.copytree(DATA / request.param, tmp_path / "cache"))


def test_every_row_is_read_as_it_was_written(archived):
    keys, values = expected()
    features = featx.Features.open("photos", cache=archived)
    np.testing.assert_array_equal(features.X, values)
    np.testing.assert_array_equal(features.keys, keys)
    assert features.y.tolist() == ["蟻", "蟻", "蟻", "пчела", "пчела", ""]
    assert features.splits.tolist() == ["train", "train", "test", "train", "test", ""]
    assert features.failed == [("gone.jpg", "no such file")]
    assert features.paths[-1] == "odd\udcff.jpg"
    layout = CacheLayout(archived)
    names = sorted(folder.name for folder in layout.spaces.iterdir())
    assert names == ["tiny-3eced31eca68", "tiny-79941eadd8f8"]
    spaces = {space.spec.dtype: space for space in (open_space(layout, name) for name in names)}
    both = spaces["float32"].gather("block_3:grid:2", keys[:4])
    np.testing.assert_array_equal(both, values[:4] * 2)
    np.testing.assert_array_equal(spaces["float16"].gather("max", keys), values.astype(np.float16))


def test_they_verify_clean_and_are_rewritten_equal(archived, tmp_path):
    assert featx.FeatureCache(archived).verify().ok
    old = read_manifest(CacheLayout(archived).dataset("photos"))
    new = CacheLayout(tmp_path / "new")
    assert same_manifest(read_manifest(write_manifest(new, old)), old)


def test_new_rows_go_beside_the_old_ones(archived):
    keys, values = expected()
    layout = CacheLayout(archived)
    name = featx.Features.open("photos", cache=archived).spec().name
    space = open_space(layout, name)
    space.add(keys[:1] + 1, {"avg": values[:1]}, {})
    again = open_space(layout, name)
    np.testing.assert_array_equal(again.gather("avg", keys), values)
    assert again.has(["avg"], keys[:1] + 1).all()
