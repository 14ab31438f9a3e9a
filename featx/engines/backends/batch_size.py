"""How many images a batch should have: found by trial."""

from __future__ import annotations

import time
from collections.abc import Callable

_FIRST = 32
_LEAST_GAIN = 1.05
_MOST_S = 20.0


def best_batch_size(
    rate: Callable[[int], float | None],
    most: int,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Double the size of a batch for as long as that pays.

    Parameters
    ----------
    rate : callable
        Runs batches of a size and returns images a second, or None where memory ran out.
    most : int
        The largest size to try.
    clock : callable, optional
        Returns seconds. No further size is tried after 20 s: compiling for one may take long.

    Returns
    -------
    int
        The last size that was 5 % faster than the one before; where memory does not even hold the
        first, the largest that it holds, and 1 where it holds none.

    Examples
    --------
    >>> best_batch_size({32: 900.0, 64: 1500.0, 128: 1510.0}.get, 1024)
    64
    >>> best_batch_size({8: 40.0}.get, 1024)
    8
    """
    start, best, best_rate = clock(), 0, 0.0
    size = min(_FIRST, most)
    while size <= most:
        images_per_s = rate(size)
        if images_per_s is None:
            if best or size == 1:
                return best or 1
            size //= 2
            most = size
            continue
        if images_per_s < best_rate * _LEAST_GAIN:
            return best
        best, best_rate = size, images_per_s
        if clock() - start > _MOST_S:
            return best
        size *= 2
    return best
