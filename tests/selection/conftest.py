from __future__ import annotations

import numpy as np
import pytest

import featx


def clusters(n=240, d=12, k=3, spread=1.6, seed=0):
    """Overlapping clusters: features (n, d) float32 and class codes."""
    generator = np.random.default_rng(seed)
    codes = np.arange(n) % k
    centres = generator.normal(size=(k, d))
    X = centres[codes] + generator.normal(size=(n, d)) * spread
    return X.astype(np.float32), codes


@pytest.fixture
def draw_clusters():
    """A function that draws overlapping clusters."""
    return clusters


@pytest.fixture
def features(tmp_path):
    """An imported dataset of 240 rows in three overlapping classes."""
    X, codes = clusters()
    return featx.import_features(
        "clusters", X, y=np.array(["ant", "bee", "fly"])[codes], cache=tmp_path / "cache"
    )
