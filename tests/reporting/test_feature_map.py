"""Points of a map: near where features are alike, the same again, and of every row."""

from __future__ import annotations

import numpy as np
import pytest

import featx
from featx.reporting import feature_map
from featx.reporting.feature_map import map_features

BLOCK = {"backbone": "import:islands", "tap": "imported"}


@pytest.fixture
def islands(tmp_path):
    """Features of 3 groups of 40, far from each other."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(120, 8)).astype(np.float32)
    X += 30 * generator.normal(size=(3, 8)).astype(np.float32)[np.arange(120) % 3]
    return featx.import_features("islands", X, cache=tmp_path / "cache")


def apart(points):
    """Whether every point is nearer to its own group than to the others."""
    group = np.arange(len(points)) % 3
    centres = np.array([points[group == number].mean(axis=0) for number in range(3)])
    distances = np.linalg.norm(points[:, None] - centres, axis=2)
    return bool((distances.argmin(axis=1) == group).all())


def test_without_the_extra_the_map_is_of_principal_components(islands, monkeypatch):
    monkeypatch.setattr(feature_map, "_umap", lambda: None)
    points, method = map_features(islands, BLOCK)
    assert method == "PCA"
    assert apart(points)
    from sklearn.decomposition import PCA

    expected = PCA(2).fit_transform(islands.X)
    assert np.allclose(np.abs(points), np.abs(expected), atol=1e-2)


def test_wide_features_are_projected_first(islands, monkeypatch):
    monkeypatch.setattr(feature_map, "_umap", lambda: None)
    monkeypatch.setattr(feature_map, "_WIDEST", 4)
    assert apart(map_features(islands, BLOCK)[0])


@pytest.mark.slow
def test_umap_gives_the_same_points_again_and_places_rows_that_it_has_not_laid_out(
    islands, monkeypatch
):
    pytest.importorskip("umap", reason="needs the extra report")
    first, method = map_features(islands, BLOCK)
    assert method == "UMAP"
    assert apart(first)
    assert (map_features(islands, BLOCK)[0] == first).all()
    monkeypatch.setattr(feature_map, "MOST_FITTED", 60)
    assert apart(map_features(islands, BLOCK)[0])
