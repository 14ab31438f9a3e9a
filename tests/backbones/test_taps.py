import pytest

from featx.backbones.taps import Tap, parse_tap, parse_taps
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
