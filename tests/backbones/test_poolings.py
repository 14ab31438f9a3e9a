from fractions import Fraction

import numpy as np
import pytest

from featx.backbones.poolings import pool
from featx.backbones.taps import parse_tap
from featx.exceptions import BackboneError

MAPS = np.random.default_rng(0).normal(size=(3, 7, 5, 4)).astype(np.float32)


@pytest.fixture
def pooled(keras):
    def run(features, tap):
        return keras.ops.convert_to_numpy(
            pool(keras.ops.convert_to_tensor(features), parse_tap(tap))
        )

    return run


def overlapping(cell, cells, extent):
    """Positions whose interval overlaps the cell's share of the extent."""
    low, high = Fraction(cell * extent, cells), Fraction((cell + 1) * extent, cells)
    return [p for p in range(extent) if p + 1 > low and p < high]


def adaptive_average(maps, cells):
    _, height, width, _ = maps.shape
    return np.concatenate(
        [
            maps[:, overlapping(i, cells, height)][:, :, overlapping(j, cells, width)].mean((1, 2))
            for i in range(cells)
            for j in range(cells)
        ],
        axis=-1,
    )


def test_average(pooled):
    np.testing.assert_allclose(pooled(MAPS, "avg"), MAPS.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_maximum(pooled):
    np.testing.assert_array_equal(pooled(MAPS, "max"), MAPS.max((1, 2)))


def test_flatten_keeps_every_position_and_channel_in_order(pooled):
    np.testing.assert_array_equal(pooled(MAPS, "flatten"), MAPS.reshape(3, -1))


@pytest.mark.parametrize("power", [1, 3, 6])
def test_generalised_mean(pooled, power):
    clipped = np.maximum(MAPS.astype(np.float64), 1e-6)
    expected = (clipped**power).mean((1, 2)) ** (1 / power)
    np.testing.assert_allclose(pooled(MAPS, f"gem:{power}"), expected, rtol=1e-5)


def test_generalised_mean_of_nothing_but_negative_values_is_finite(pooled):
    assert np.isfinite(pooled(-np.abs(MAPS), "gem")).all()


@pytest.mark.parametrize("cells", [1, 2, 3, 5])
def test_grid_is_adaptive_average_pooling(pooled, cells):
    received = pooled(MAPS, f"grid:{cells}")
    assert received.shape == (3, 4 * cells * cells)
    np.testing.assert_allclose(received, adaptive_average(MAPS, cells), rtol=1e-5, atol=1e-6)


def test_a_sequence_is_pooled_over_its_steps(pooled):
    tokens = MAPS[:, :, 0]
    np.testing.assert_allclose(pooled(tokens, "avg"), tokens.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled(tokens, "max"), tokens.max(1))
    np.testing.assert_array_equal(pooled(tokens, "flatten"), tokens.reshape(3, -1))


@pytest.mark.parametrize("tap", ["avg", "max", "gem", "flatten", "grid:2"])
def test_a_vector_passes_unchanged(pooled, tap):
    np.testing.assert_array_equal(pooled(MAPS[:, 0, 0], tap), MAPS[:, 0, 0])


def test_a_grid_finer_than_the_map_is_an_error(pooled):
    with pytest.raises(BackboneError, match=r"tap grid:6 needs .* at least 6x6 positions.*7, 5"):
        pooled(MAPS, "grid:6")


def test_what_has_no_positions_is_an_error(pooled):
    with pytest.raises(BackboneError, match=r"tap avg has an output of shape \(3,\): not poolable"):
        pooled(MAPS[:, 0, 0, 0], "avg")
