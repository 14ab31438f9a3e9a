"""Images given as arrays, turned into RGB uint8 under rules that refuse to guess."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ImageError

# Room for rounding in a float image; what lies within is clipped.
_SLACK = 1e-3
_BAND_PX = 1 << 22


def array_to_rgb(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn one array image into RGB.

    Parameters
    ----------
    array : ndarray of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)
        uint8 as it is; bool as black and white; uint16 divided by 257 and rounded; floats in
        [0, 1] times 255 and rounded. A fourth channel is alpha, and lies over white.

    Returns
    -------
    ndarray of shape (h, w, 3), uint8
        The array itself where nothing has to be done.

    Raises
    ------
    ImageError
        For other shapes and types, and floats that are not in [0, 1] or not finite.

    Examples
    --------
    >>> array_to_rgb(np.array([[0.0, 1.0]]))
    array([[[  0,   0,   0],
            [255, 255, 255]]], dtype=uint8)
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = ": channels come last here, use array.transpose(1, 2, 0)"
        raise ImageError(
            "expected an image of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), received "
            f"{array.shape}{hint}"
        )
    if 0 in array.shape:
        raise ImageError(f"an image without pixels: shape {array.shape}")
    if array.dtype.kind == "f":
        check_float_range(array)
    rows = max(1, _BAND_PX // array.shape[1])
    if rows >= len(array) or (array.dtype == np.uint8 and array.shape[2:] == (3,)):
        return _band_to_rgb(array)
    # Large ones a band of rows at a time, as the copies in between take many times their size.
    rgb = np.empty((*array.shape[:2], 3), np.uint8)
    for top in range(0, len(array), rows):
        rgb[top : top + rows] = _band_to_rgb(array[top : top + rows])
    return rgb


def _band_to_rgb(array: NDArray[Any]) -> NDArray[np.uint8]:
    values = _eight_bit(array)
    if values.ndim == 2:
        values = values[:, :, np.newaxis]
    if values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    if values.shape[2] == 4:
        wide = values.astype(np.uint32)
        alpha = wide[:, :, 3:]
        return ((wide[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return values


def sixteen_to_eight(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Divide integers from 0 to 65535 by 257, rounded to the nearest.

    Examples
    --------
    >>> sixteen_to_eight(np.array([0, 128, 129, 65535])).tolist()
    [0, 0, 1, 255]
    """
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def check_float_range(values: NDArray[Any]) -> None:
    """Refuse float images that are not in [0, 1].

    Raises
    ------
    ImageError
        Naming the range that was received and what to do.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("float pixels must be finite, received NaN or infinity")
    if low >= -_SLACK and high <= 1 + _SLACK:
        return
    if low < 0:
        todo = "map them to [0, 1] first, with the same offset and factor for all images"
    else:
        full = 255 if 16 < high <= 255 else f"{high:g}"
        todo = f"divide all images by their largest possible value (perhaps {full})"
    raise ImageError(
        f"float pixels must lie in [0, 1], received {low:g} to {high:g} ({values.dtype}): {todo}"
    )


def _eight_bit(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return sixteen_to_eight(array)
    if array.dtype.kind == "f":
        scaled: NDArray[Any] = np.rint(np.clip(array.astype(np.float64), 0, 1) * 255)
        return scaled.astype(np.uint8)
    seen = ""
    if array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        todo = ".astype('uint8')" if 0 <= low <= high <= 255 else "map them to 0..255 first"
        seen = f" with values {low} to {high}: {todo}"
    raise ImageError(
        f"expected pixels of uint8, bool, uint16 or floats in [0, 1], received {array.dtype}{seen}"
    )
