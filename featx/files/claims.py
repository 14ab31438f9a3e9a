"""What a file claims, against what it holds: checked before anything of that size is read."""

from __future__ import annotations

_HARMLESS_BYTES = 64 << 20
_MOST_SHOWN = 80


class UnsafeFileError(ValueError):
    """A file claims more than it holds, leads out of itself, or is no plain file of its format.

    Whoever reads a file for a user turns it into the error for that kind of file.
    """


def most_unpacked(size: int, ratio: int) -> int:
    """Return how many bytes a file of this size may become; a ratio of 1 is no compression."""
    return size if ratio == 1 else _HARMLESS_BYTES + ratio * size


def shortened(value: object) -> str:
    """Return a name out of a file, cut where it is longer than an error can show."""
    text = str(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"
