"""What a file claims, against what it holds: checked before anything of that size is read."""

from __future__ import annotations

from featx.exceptions import DatasetError

MAX_COLUMN_BYTES = 1 << 30
"""Largest column of labels, paths and so on."""

_HARMLESS_BYTES = 64 << 20
_MAX_RATIO = 200


def check_claim(claimed_bytes: int, stored_bytes: int, where: str) -> None:
    """Raise `DatasetError` if data would grow absurdly when they are unpacked.

    Real features, even sparse ones, shrink by less than 200 times; a bomb by 1,000 and more.

    Examples
    --------
    >>> check_claim(1 << 30, 1 << 28, "X")
    >>> check_claim(1 << 50, 1 << 20, "X")
    Traceback (most recent call last):
    ...
    featx.exceptions.DatasetError: X claims 1,125,899,906,842,624 bytes, of which the file ...
    """
    if claimed_bytes > max(_HARMLESS_BYTES, _MAX_RATIO * stored_bytes):
        raise DatasetError(
            f"{where} claims {claimed_bytes:,} bytes, of which the file holds {stored_bytes:,}: "
            "refused; save the features again without compression"
        )


def check_column_bytes(claimed_bytes: int, where: str) -> None:
    """Raise `DatasetError` if a column is too large to be one of labels or paths."""
    if claimed_bytes > MAX_COLUMN_BYTES:
        raise DatasetError(
            f"{where} claims {claimed_bytes:,} bytes, more than the {MAX_COLUMN_BYTES:,} allowed "
            "for labels, paths and the like"
        )
