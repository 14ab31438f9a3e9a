from __future__ import annotations

import pytest

import featx
from featx.cache.maintenance import FeatureCache


@pytest.fixture
def extract(tmp_path, small_network):
    """`featx.extract` with a small network and a cache of the test."""

    def run(data, **options):
        options = {"backbone": f"file:{small_network}", "cache": tmp_path / "cache", **options}
        return featx.extract(data, workers=1, **options)

    return run


@pytest.fixture
def cache(tmp_path):
    """The cache of `extract`."""
    return FeatureCache(tmp_path / "cache")
