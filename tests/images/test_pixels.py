"""Array images: what is understood, and what is refused with a next step."""

import numpy as np
import pytest

from featx.exceptions import ImageError
from featx.images.decode import array_to_rgb


def test_every_shape_and_type():
    grey = np.array([[0, 255], [10, 20]], np.uint8)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(array_to_rgb(grey), rgb)
    assert np.array_equal(array_to_rgb(grey[:, :, None]), rgb)
    assert np.array_equal(array_to_rgb(rgb), rgb)
    assert np.array_equal(array_to_rgb(grey.astype(np.uint16) * 257), rgb)
    assert np.array_equal(array_to_rgb(grey / 255), rgb)
    assert np.array_equal(array_to_rgb((grey / 255).astype(np.float32)), rgb)
    assert array_to_rgb(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]
    assert array_to_rgb(np.array([[0.5, 1.0001]], np.float16))[0, :, 0].tolist() == [128, 255]


def test_alpha_lies_over_white():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    assert array_to_rgb(rgba).tolist() == [[[10, 20, 30], [255] * 3, [204] * 3]]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((2, 2), 255.0), r"lie in \[0, 1\], received 255 to 255 .*perhaps 255"),
        (np.full((2, 2), 16.0), r"received 16 to 16 .*perhaps 16\)"),
        (np.array([[-1.0, 1.0]]), r"received -1 to 1 .*map them to \[0, 1\]"),
        (np.array([[np.nan, 1.0]]), "finite, received NaN"),
        (np.array([[0, 255]]), r"received int64 with values 0 to 255: \.astype\('uint8'\)"),
        (np.array([[0, 700]]), r"values 0 to 700: map them to 0\.\.255"),
        (np.array([["a", "b"]]), "received <U1"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"channels come last here, use array\.transpose\(1, 2, 0\)",
        ),
        (np.zeros((8, 8, 2), np.uint8), r"received \(8, 8, 2\)"),
        (np.zeros(8, np.uint8), r"received \(8,\)"),
        (np.zeros((0, 8), np.uint8), r"without pixels: shape \(0, 8\)"),
    ],
)
def test_the_rest_is_refused(array, reason):
    with pytest.raises(ImageError, match=reason):
        array_to_rgb(array)
