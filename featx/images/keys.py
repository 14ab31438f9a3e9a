"""Keys: what identifies an image, whatever it is called."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def file_key(data: bytes) -> bytes:
    """Return the key of an image file: SHA-256 of its bytes, 32 bytes."""
    return hashlib.sha256(data).digest()


def image_key(image: NDArray[Any] | bytes) -> bytes:
    """Return the key of an image file's bytes, or of an array."""
    return file_key(image) if isinstance(image, bytes) else array_key(image)


def array_key(array: NDArray[Any]) -> bytes:
    """Return the key of an array image: SHA-256 of shape, dtype and bytes, 32 bytes.

    The byte order and the layout in memory make no difference.

    Examples
    --------
    >>> a = np.arange(6, dtype="<u2").reshape(2, 3)
    >>> array_key(a) == array_key(a.astype(">u2")) == array_key(np.asfortranarray(a))
    True
    >>> array_key(a) == array_key(a.reshape(3, 2))
    False
    """
    array = np.asarray(array)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    head = f"featx-array-1 {array.dtype.str} {'x'.join(map(str, array.shape))}\n"
    digest = hashlib.sha256(head.encode("ascii"))
    digest.update(array.tobytes() if array.ndim == 0 else array.data)
    return digest.digest()
