"""Many functions minimised at once, each by its own L-BFGS, where an evaluation costs a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Found", "minimise_in_lockstep"]

_PAIRS = 10
_DECREASE = 1e-4
# What rounding leaves of a value's digits where features are of single precision.
_NOISE = 1e-8
_MOST_CUTS = 20

Evaluation = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Where the descents ended.

    Parameters
    ----------
    points : ndarray of shape (k, p)
    finished : ndarray of shape (k,), bool
        Whether each is where its function said that it is good enough.
    passes : int
        How often the functions were evaluated.
    """

    points: NDArray[np.float64]
    finished: NDArray[np.bool_]
    passes: int


def minimise_in_lockstep(
    function: Callable[[NDArray[np.float64], NDArray[np.intp]], Evaluation],
    shape: tuple[int, int],
    *,
    most: int,
) -> Found:
    """Minimise k convex functions of p variables from zero.

    Parameters
    ----------
    function : callable
        ``function(points, which)`` takes points (a, p) of the functions numbered ``which`` (a,)
        and gives their values (a,), gradients (a, p), and which are good enough to end there. Its
        variables should be scaled so that second derivatives are at most about 1.
    shape : tuple of int
        k and p.
    most : int
        Evaluations after which those that are left end where they are.

    Returns
    -------
    found : Found

    Notes
    -----
    Every evaluation is a trial of each function's own step: one whose value falls takes it and
    turns, another shortens it, and one that is finished leaves. So the passes are those of the
    slowest function, not of all together. Nocedal, Wright: "Numerical Optimization" (2006),
    algorithms 3.1 and 7.4.

    Examples
    --------
    >>> aims = np.array([[1.0, 2.0], [3.0, -1.0]])
    >>> def function(points, which):
    ...     off = points - aims[which]
    ...     slopes = off * [1.0, 0.1]
    ...     return 0.5 * (off * slopes).sum(axis=1), slopes, abs(slopes).max(axis=1) < 1e-6
    >>> minimise_in_lockstep(function, (2, 2), most=50).points.round(4).tolist()
    [[1.0, 2.0], [3.0, -1.0]]
    """
    count, size = shape
    found, finished = np.zeros(shape), np.zeros(count, dtype=bool)
    which, at = np.arange(count), np.zeros(shape)
    value, gradient, good = function(at, which)
    direction, step = -gradient, np.ones(count)
    moves, turns = np.zeros((2, count, _PAIRS, size))
    inverse = np.zeros((count, _PAIRS))
    cuts, passes = np.zeros(count, dtype=np.intp), 1
    while True:
        ended = good | (cuts > _MOST_CUTS) | (passes >= most)
        found[which[ended]], finished[which[good]] = at[ended], True
        if ended.any():
            kept = ~ended
            which, at, value, gradient = which[kept], at[kept], value[kept], gradient[kept]
            direction, step, cuts = direction[kept], step[kept], cuts[kept]
            moves, turns, inverse = moves[kept], turns[kept], inverse[kept]
        if not which.size:
            return Found(found, finished, passes)
        slope = np.einsum("ij,ij->i", gradient, direction)
        trial = at + step[:, None] * direction
        trial_value, trial_gradient, trial_good = function(trial, which)
        passes += 1
        wanted = value + _DECREASE * step * slope + _NOISE * np.abs(value)
        taken = (trial_value <= wanted) | trial_good
        good = taken & trial_good
        _remember(moves, turns, inverse, taken, trial - at, trial_gradient - gradient)
        # The step to the minimum of a parabola through what is known, where it is no step up.
        rise = trial_value - value - step * slope
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            shorter = np.where(rise > 0, -0.5 * slope * step**2 / rise, 0)
        step = np.where(taken, 1.0, np.clip(np.nan_to_num(shorter), 0.1 * step, 0.5 * step))
        cuts = np.where(taken, 0, cuts + 1)
        at[taken], value[taken] = trial[taken], trial_value[taken]
        gradient[taken] = trial_gradient[taken]
        direction[taken] = _direction(gradient[taken], moves[taken], turns[taken], inverse[taken])


def _remember(
    moves: NDArray[np.float64],
    turns: NDArray[np.float64],
    inverse: NDArray[np.float64],
    taken: NDArray[np.bool_],
    move: NDArray[np.float64],
    turn: NDArray[np.float64],
) -> None:
    """Keep the newest pairs, first; one that rounding bent the wrong way is left out."""
    product = np.einsum("ij,ij->i", move, turn)
    least = 1e-10 * np.einsum("ij,ij->i", turn, turn)
    for one in np.flatnonzero(taken & (product > least)):
        for array, newest in ((moves, move[one]), (turns, turn[one]), (inverse, 1 / product[one])):
            array[one, 1:] = array[one, :-1].copy()
            array[one, 0] = newest


def _direction(
    gradient: NDArray[np.float64],
    moves: NDArray[np.float64],
    turns: NDArray[np.float64],
    inverse: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Give the two-loop recursion's step; pairs that are not there are zero and change nothing."""
    turned = -gradient
    shares = np.zeros(inverse.shape)
    for pair in range(_PAIRS):
        shares[:, pair] = inverse[:, pair] * np.einsum("ij,ij->i", moves[:, pair], turned)
        turned -= shares[:, pair, None] * turns[:, pair]
    squares = inverse[:, 0] * np.einsum("ij,ij->i", turns[:, 0], turns[:, 0])
    turned /= np.where(squares > 0, squares, 1.0)[:, None]
    for pair in reversed(range(_PAIRS)):
        back = inverse[:, pair] * np.einsum("ij,ij->i", turns[:, pair], turned)
        turned += (shares[:, pair] - back)[:, None] * moves[:, pair]
    return turned
