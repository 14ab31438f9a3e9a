"""Many functions minimised at once, each by its own L-BFGS, where an evaluation costs a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PAIRS = 10
_DECREASE = 1e-4
# Where rounding hides the decrease, the slope at the end of a step tells it.
_SLOPE = 0.8
# The least cosine between a move and the turn of the gradient that rounding does not explain.
_LEAST_COSINE = 1e-8
# How many times longer than the last a step may be: where a function is nearly flat, its
# curvature says nothing of what comes after.
_STRETCH = 10.0
_MOST_CUTS, _MOST_LAST_CUTS = 8, 30
_SHORTEST = 0.02
# Steps without progress after which rounding has taken what is left.
_PATIENCE = 20

Evaluation = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]
# A move, the turn of the gradient over it, that turn preconditioned, and 1 over the first two's
# product, of shape (p, 1, 1): 0 where there is no such pair.
Pair = tuple[Any, Any, Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Minima:
    """Where the descents ended.

    Parameters
    ----------
    points : ndarray of shape (p, k, d)
    finished : ndarray of shape (p,), bool
        Whether each is where its function said that it is good enough.
    passes : int
        How often the functions were evaluated.
    """

    points: NDArray[np.float64]
    finished: NDArray[np.bool_]
    passes: int


def inner(a: Any, b: Any) -> Any:
    """Inner products of each problem, of shape (p, 1, 1)."""
    p = a.shape[0]
    return a.reshape(p, 1, -1) @ b.reshape(p, -1, 1)


def lbfgs_direction(xp: Any, gradient: Any, preconditioned: Any, pairs: Sequence[Pair]) -> Any:
    """Give the step of the two-loop recursion for problems (p, k, d); pairs go oldest first.

    Notes
    -----
    Nocedal, Wright: "Numerical Optimization" (2006), algorithm 7.4. The preconditioner is linear,
    so that it is applied to the gradient once, and to each turn when it is remembered.
    """
    q, D = gradient, preconditioned
    shares = []
    for S, Y, HY, inverse in reversed(pairs):
        share = inverse * inner(S, q)
        q = q - share * Y
        D = D - share * HY
        shares.append(share)
    if pairs:
        _, Y, HY, inverse = pairs[-1]
        product = inverse * inner(Y, HY)
        D = D / xp.where(product > 0, product, xp.ones_like(product))
    for (S, Y, _, inverse), share in zip(pairs, reversed(shares), strict=True):
        D = D + (share - inverse * inner(Y, D)) * S
    return -D


def minimise_in_lockstep(
    function: Callable[[NDArray[np.float64], NDArray[np.intp]], Evaluation],
    shape: tuple[int, int, int],
    *,
    most: int,
    noise: float,
) -> Minima:
    """Minimise p convex functions of k times d variables from zero.

    Notes
    -----
    Every evaluation is a trial of each function's own step: one whose value falls takes it and
    turns, another shortens it, and one that is finished leaves. So the passes are those of the
    slowest function, not of all together. A step counts as a fall where the value says so, or,
    where rounding hides that, the slope at its end (Hager, Zhang: "A new conjugate gradient method
    with guaranteed descent and an efficient line search", SIAM J. Optim. 16, 2005). Where no step
    along a direction falls, what is remembered is dropped, and the gradient is followed.
    """
    count = shape[0]
    points, finished = np.zeros(shape), np.zeros(count, dtype=bool)
    which, at = np.arange(count), np.zeros(shape)
    value, gradient, good = function(at, which)
    memory = _Memory(shape)
    direction, reach = -gradient, _lengths(gradient)
    step = np.ones(count)
    cuts, idle, passes = np.zeros(count, np.intp), np.zeros(count, np.intp), 1
    best = value.copy()
    while True:
        lost = (cuts > _MOST_LAST_CUTS) & memory.empty
        ended = good | lost | (idle > _PATIENCE) | (passes >= most)
        points[which[ended]], finished[which[good]] = at[ended], True
        if ended.all():
            return Minima(points, finished, passes)
        if ended.any():
            kept = ~ended
            which, at, value, gradient = which[kept], at[kept], value[kept], gradient[kept]
            direction, reach, step = direction[kept], reach[kept], step[kept]
            cuts, idle, best = cuts[kept], idle[kept], best[kept]
            memory.keep(kept)
        slope = inner(gradient, direction).ravel()
        # The negation takes in what is no number.
        uphill = ~(slope < 0) | ((cuts > _MOST_CUTS) & ~memory.empty)
        if uphill.any():
            memory.forget(uphill)
            direction[uphill] = -gradient[uphill]
            slope[uphill], cuts[uphill], step[uphill] = -(_lengths(gradient[uphill]) ** 2), 0, 1.0
        longest = _STRETCH * reach / np.maximum(_lengths(direction), 1e-300)
        step = np.minimum(step, longest)
        move = step[:, None, None] * direction
        with np.errstate(over="ignore", invalid="ignore"):
            trial_value, trial_gradient, trial_good = function(at + move, which)
            trial_slope = inner(trial_gradient, direction).ravel()
        passes += 1
        near = trial_value <= value + noise * np.abs(value)
        taken = (trial_value <= value + _DECREASE * step * slope) | trial_good
        taken |= near & (trial_slope <= -_SLOPE * slope)
        taken &= np.isfinite(trial_value) & np.isfinite(trial_slope)
        good = taken & trial_good
        memory.add(taken, move, trial_gradient - gradient)
        at[taken] += move[taken]
        value, gradient = np.where(taken, trial_value, value), gradient.copy()
        gradient[taken] = trial_gradient[taken]
        reach = np.where(taken, _lengths(move), reach)
        idle = np.where(value < best - noise * np.abs(best), 0, idle + taken)
        best = np.where(idle == 0, value, best)
        # The step to where a straight slope would vanish.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            shorter = np.where(trial_slope > 0, slope / (slope - trial_slope), 0.5)
        shorter = np.clip(np.nan_to_num(shorter, nan=_SHORTEST), _SHORTEST, 0.5)
        step = np.where(taken, 1.0, shorter * step)
        cuts = np.where(taken, 0, cuts + 1)
        if taken.any():
            turned = lbfgs_direction(np, gradient, gradient, memory)
            direction = np.where(taken[:, None, None], turned, direction)


class _Memory(Sequence[Pair]):
    """The last pairs of each function, oldest first; functions move at different passes."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        count = shape[0]
        self._moves, self._turns = np.zeros((2, _PAIRS, *shape))
        self._inverse = np.zeros((_PAIRS, count, 1, 1))
        # Where each function's next pair goes, in the place of its oldest.
        self._next = np.zeros(count, np.intp)

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Which functions have no pair, (a,)."""
        return np.asarray(~self._inverse.any(axis=(0, 2, 3)))

    def __len__(self) -> int:
        return _PAIRS

    def __getitem__(self, age: Any) -> Any:
        if age >= _PAIRS:
            raise IndexError(age)
        functions = np.arange(len(self._next))
        slots = (self._next + age) % _PAIRS
        move, turn = self._moves[slots, functions], self._turns[slots, functions]
        return move, turn, turn, self._inverse[slots, functions]

    def add(
        self, taken: NDArray[np.bool_], move: NDArray[np.float64], turn: NDArray[np.float64]
    ) -> None:
        """Remember the pairs of steps taken, but those that are rounding."""
        product = inner(move, turn).ravel()
        real = product > _LEAST_COSINE * _lengths(move) * _lengths(turn)
        new = np.flatnonzero(taken & real)
        slots = self._next[new]
        self._moves[slots, new], self._turns[slots, new] = move[new], turn[new]
        self._inverse[slots, new, 0, 0] = 1 / product[new]
        self._next[new] = (slots + 1) % _PAIRS

    def forget(self, functions: NDArray[np.bool_]) -> None:
        """Drop all pairs of some functions."""
        self._inverse[:, functions] = 0

    def keep(self, functions: NDArray[np.bool_]) -> None:
        """Let the other functions leave."""
        self._moves, self._turns = self._moves[:, functions], self._turns[:, functions]
        self._inverse, self._next = self._inverse[:, functions], self._next[functions]


def _lengths(points: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(inner(points, points)).ravel()
    return lengths
