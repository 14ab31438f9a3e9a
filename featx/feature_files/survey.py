"""A first pass over features: are they finite, what are their keys, what is their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError
from featx.feature_files.table import RowSource
from featx.images.keys import array_key

_EXACT = 1 << 24  # beyond this, float32 does not hold every integer


@dataclass(frozen=True, slots=True)
class RowSurvey:
    """What a pass over features found.

    Parameters
    ----------
    keys : ndarray of shape (n, 32), uint8
        Key of each row: SHA-256 of its shape, type and bytes, as stored.
    sha256 : str
        Digest of all rows in their order, with their type and width.
    dtype : numpy.dtype
        float32 or float16: the type in which they are stored.
    """

    keys: NDArray[np.uint8]
    sha256: str
    dtype: np.dtype[Any]


def survey_rows(rows: RowSource) -> RowSurvey:
    """Read all features once, chunk by chunk.

    Raises
    ------
    DatasetError
        If a number is not finite, or cannot be stored; with the count and the first row.
    """
    dtype = np.dtype("<f2" if rows.dtype == np.float16 else "<f4")
    width = rows.shape[1]
    digest = hashlib.sha256(f"featx-import-1 {dtype.str} {width}\n".encode("ascii"))
    keys, wrong, first, start = [], 0, -1, 0
    for values in rows.chunks():
        finite = _finite(values)
        if not finite.all():
            first = start + int(finite.argmin()) if first < 0 else first
            wrong += int((~finite).sum())
        elif not wrong:
            stored = _stored(values, dtype, start)
            digest.update(stored.data)
            keys.append(_keys(stored))
        start += len(values)
    if wrong:
        raise DatasetError(
            f"expected finite numbers, received NaN or infinity in {wrong:,} of {start:,} rows, "
            f"the first is row {first}: leave these rows out, or fill them in"
        )
    return RowSurvey(np.concatenate(keys), digest.hexdigest(), dtype)


def keyed_chunks(
    rows: RowSource, survey: RowSurvey
) -> Iterator[tuple[NDArray[np.uint8], NDArray[Any]]]:
    """Yield keys and features of one chunk after the other, as they are stored.

    Raises
    ------
    DatasetError
        If the rows are not those that were surveyed.
    """
    start = 0
    for values in rows.chunks():
        stored = _stored(values, survey.dtype, start)
        keys = survey.keys[start : start + len(stored)]
        if not np.array_equal(_keys(stored), keys):
            raise DatasetError("the features were changed while they were read: import them again")
        yield keys, stored
        start += len(stored)


def _keys(stored: NDArray[Any]) -> NDArray[np.uint8]:
    joined = b"".join(array_key(row) for row in stored)
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind != "f":
        return np.ones(len(values), np.bool_)
    finite: NDArray[np.bool_] = np.isfinite(values).all(axis=1)
    return finite


def _stored(values: NDArray[Any], dtype: np.dtype[Any], start: int) -> NDArray[Any]:
    if values.dtype.kind in "iu":
        held = ((values <= _EXACT) & (values >= -_EXACT)).all(axis=1)
        step = "these look like identifiers or codes rather than features"
    else:
        held = np.ones(len(values), np.bool_)
        if values.dtype.itemsize > dtype.itemsize:
            held = (np.abs(values) <= np.finfo(dtype).max).all(axis=1)
        step = "scale them"
    if not held.all():
        raise DatasetError(
            f"row {start + int(held.argmin())} holds numbers that {dtype.name} cannot hold: {step}"
        )
    return np.ascontiguousarray(values, dtype)
