from fractions import Fraction

import numpy as np
import pytest

from featx.backbones.taps import Tap, parse_tap, parse_taps, pool
from featx.exceptions import BackboneError, UnknownNameError


@pytest.mark.parametrize(
    ("text", "tap", "canonical"),
    [
        ("avg", Tap("", "avg"), "avg"),
        ("max", Tap("", "max"), "max"),
        ("flatten", Tap("", "flatten"), "flatten"),
        ("gem", Tap("", "gem", 3), "gem"),
        ("gem:3", Tap("", "gem", 3), "gem"),
        ("gem:03", Tap("", "gem", 3), "gem"),
        ("gem:5", Tap("", "gem", 5), "gem:5"),
        ("grid:2", Tap("", "grid", 2), "grid:2"),
        (" avg ", Tap("", "avg"), "avg"),
        ("block_12", Tap("block_12", "avg"), "block_12:avg"),
        ("block_12:avg", Tap("block_12", "avg"), "block_12:avg"),
        ("block_12:", Tap("block_12", "avg"), "block_12:avg"),
        ("block_12:gem:3", Tap("block_12", "gem", 3), "block_12:gem"),
        ("block_12:gem:4", Tap("block_12", "gem", 4), "block_12:gem:4"),
        ("block_12:grid:07", Tap("block_12", "grid", 7), "block_12:grid:7"),
    ],
)
def test_reading_a_tap(text, tap, canonical):
    assert parse_tap(text) == tap
    assert str(tap) == canonical
    assert parse_tap(canonical) == tap


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a tap such as 'avg' or 'block_12:max', received ''"),
        ("  ", "expected a tap such as"),
        (":avg", "expected a tap such as"),
        ("avg:2", "pooling 'avg' takes no argument, received 'avg:2'"),
        ("block_1:max:2", "pooling 'max' takes no argument, received 'block_1:max:2'"),
        ("grid", "grid needs its number of cells, as in 'grid:2', received 'grid'"),
        ("block_1:grid", "grid needs its number of cells"),
        ("grid:0", "expected a positive number after 'grid', received 'grid:0'"),
        ("grid:-1", "expected a positive number after 'grid'"),
        ("grid:2x2", "expected a positive number after 'grid'"),
        ("gem:1.5", "expected a positive number after 'gem'"),
        ("gem:²", "expected a positive number after 'gem'"),
    ],
)
def test_a_tap_that_cannot_be_read(text, message):
    with pytest.raises(BackboneError, match=f"^{message}"):
        parse_tap(text)


def test_an_unknown_pooling_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown pooling 'flaten': did you mean 'flatten'"):
        parse_tap("block_1:flaten")


def test_taps_are_named_once_in_the_order_asked_for():
    assert parse_taps(["max", "b", "gem:3", "b:avg", "gem"]) == ("max", "b:avg", "gem")
    assert parse_taps("max") == ("max",)
    assert parse_taps(None) == ("avg",)


def test_no_tap_at_all_is_an_error():
    with pytest.raises(BackboneError, match="expected at least one tap, received none"):
        parse_taps([])


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


@pytest.mark.parametrize("features", [MAPS, MAPS[:, :, 0]], ids=["maps", "steps of a sequence"])
def test_positions_are_pooled_or_kept_in_order(pooled, features):
    axes = tuple(range(1, features.ndim - 1))
    mean = features.mean(axes)
    np.testing.assert_allclose(pooled(features, "avg"), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled(features, "max"), features.max(axes))
    np.testing.assert_array_equal(pooled(features, "flatten"), features.reshape(3, -1))


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


@pytest.mark.parametrize("tap", ["avg", "max", "gem", "flatten", "grid:2"])
def test_a_vector_passes_unchanged(pooled, tap):
    np.testing.assert_array_equal(pooled(MAPS[:, 0, 0], tap), MAPS[:, 0, 0])


def test_a_grid_finer_than_the_map_is_an_error(pooled):
    with pytest.raises(BackboneError, match=r"tap grid:6 needs .* at least 6x6 positions.*7, 5"):
        pooled(MAPS, "grid:6")


def test_what_has_no_positions_is_an_error(pooled):
    with pytest.raises(BackboneError, match=r"tap avg has an output of shape \(3,\): not poolable"):
        pooled(MAPS[:, 0, 0, 0], "avg")
