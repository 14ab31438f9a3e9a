"""Images of more than 8 bits that would look black, and the window that shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from featx.images.decode import Extent

_LEAST_USED = 0.25


@dataclass(slots=True)
class _Kind:
    """What was seen of images whose samples are of one kind."""

    images: int = 0
    dark: int = 0
    highest: float = 0.0  # of the dark ones
    example: tuple[int, str, Extent] | None = None  # the first row


@dataclass(slots=True)
class DarkImages:
    """Counts deep images that were decoded without a window, in memory that does not grow."""

    _kinds: dict[str, _Kind] = field(default_factory=dict)

    def add(self, row: int, path: str, extent: Extent) -> None:
        """Count an image; one without anything in it says nothing."""
        if extent.high <= 0:
            return
        kind = self._kinds.setdefault("floats" if extent.full == 1 else "16 bits", _Kind())
        kind.images += 1
        if extent.high >= _LEAST_USED * extent.full:
            return
        kind.dark += 1
        kind.highest = max(kind.highest, extent.high)
        if kind.example is None or row < kind.example[0]:
            kind.example = row, path, extent

    def join(self, other: DarkImages, rows: Sequence[int]) -> None:
        """Take what was seen elsewhere, of images that have these rows here."""
        for name, more in other._kinds.items():
            kind = self._kinds.setdefault(name, _Kind())
            kind.images += more.images
            kind.dark += more.dark
            kind.highest = max(kind.highest, more.highest)
            if more.example is not None:
                row, path, extent = more.example
                if kind.example is None or rows[row] < kind.example[0]:
                    kind.example = rows[row], path, extent

    def notes(self) -> list[str]:
        """Return what a user should know, one sentence a kind of samples."""
        return [_note(name, kind) for name, kind in self._kinds.items() if kind.example]


def _note(name: str, kind: _Kind) -> str:
    assert kind.example is not None
    _, path, extent = kind.example
    one = kind.dark == 1
    return (
        f"{kind.dark:,} image{'' if one else 's'} of {name} use{'s' if one else ''} less than a "
        f"quarter of {'its' if one else 'their'} range (such as {path}: {extent.low:.5g} to "
        f"{extent.high:.5g}): {'it looks' if one else 'they look'} black; "
        f"--window {_window(name, kind)} makes use of it"
    )


def _window(name: str, kind: _Kind) -> str:
    """Return a window up to a power of two, or that of each image where others are bright."""
    if kind.dark < kind.images:
        return "image"
    if name == "floats":
        return f"0:{2.0 ** math.ceil(math.log2(kind.highest)):.12g}"
    return f"0:{2 ** round(kind.highest).bit_length() - 1}"
