"""What is asked of the loader: a size, how to get there, and which view."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from featx.spec import ImagePolicy, ViewPolicy


class Target(NamedTuple):
    """One array of pixels to be made of every image.

    Parameters
    ----------
    size_px : tuple of (height, width)
        The size asked for.
    image : ImagePolicy
        How to decode and resize.
    view : ViewPolicy or None, default None
        Which augmentation; None for the picture as it is.
    """

    size_px: tuple[int, int]
    image: ImagePolicy
    view: ViewPolicy | None = None


AnyTarget: TypeAlias = Target | tuple[tuple[int, int], ImagePolicy]
"""A `Target`, or the pair of its first two parts."""


def as_targets(targets: Iterable[AnyTarget]) -> list[Target]:
    """Return targets in full.

    Examples
    --------
    >>> as_targets([((8, 8), ImagePolicy())])[0].view is None
    True
    """
    return [Target(*target) for target in targets]
