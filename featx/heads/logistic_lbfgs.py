"""L-BFGS on many problems at once: on rows in memory, and where an evaluation costs a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.heads.logistic_blocks import (
    Array,
    Block,
    Blocks,
    host,
    host_sum,
    inner,
    loss,
    namespace,
    spread,
    take,
)

# On rows in memory: pairs, trials of a line search, the share to which the slope has to fall, and
# iterations without progress after which single precision has given what it has.
_PAIRS, _TRIALS, _SLOPE, _PATIENCE = 8, 10, 0.3, 60
# The same where an evaluation costs a pass.
_PASS_PAIRS, _PASS_PATIENCE = 10, 20
_DECREASE = 1e-4
# Where rounding hides the decrease, the slope at the end of a step tells it.
_PASS_SLOPE = 0.8
# The least cosine between a move and the turn of the gradient that rounding does not explain.
_LEAST_COSINE = 1e-8
# How many times longer than the last a step may be: where a function is nearly flat, its
# curvature says nothing of what comes after.
_STRETCH = 10.0
_MOST_CUTS, _MOST_LAST_CUTS = 8, 30
_SHORTEST = 0.02

Bits: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = tuple[Array, Array, Array, Array]
"""A move, the turn of the gradient over it, that turn preconditioned, and 1 over the first two's
product, of shape (p, 1, 1): 0 where there is no such pair."""
Evaluation: TypeAlias = tuple[Floats, Floats, Bits]


@dataclass(frozen=True)
class Aim:
    """Where a descent ends.

    ``tol`` bounds the largest entry of the gradient on the features as given, divided by the sum of
    weights; ``gap_tol`` the estimate of how far the objective is above its minimum, relative to it.
    """

    tol: float
    gap_tol: float
    max_iter: int

    def reached(self, norm: Floats, gap: Floats) -> Bits:
        """Return which problems are solved."""
        return (norm <= self.tol) & (gap <= self.gap_tol)

    def at_least(self, tol: float, gap_tol: float) -> Aim:
        """Return the same, no closer than so."""
        return replace(self, tol=max(self.tol, tol), gap_tol=max(self.gap_tol, gap_tol))


@dataclass
class Solved:
    """What came of p problems: coefficients in the basis of the rows (p, k, r + 1), and how near.

    See `Aim` for ``gradient_norm`` and ``gap``.
    """

    W: Array
    gradient_norm: Floats
    gap: Floats
    n_iter: NDArray[np.intp]


def lbfgs_direction(gradient: Array, preconditioned: Array, pairs: Sequence[Pair]) -> Array:
    """Return the step of the two-loop recursion for problems (p, k, d); pairs go oldest first.

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
        xp = namespace(gradient)
        _, Y, HY, inverse = pairs[-1]
        product = inverse * inner(Y, HY)
        D = D / xp.where(product > 0, product, xp.ones_like(product))
    for (S, Y, _, inverse), share in zip(pairs, reversed(shares), strict=True):
        D = D + (share - inverse * inner(Y, D)) * S
    return -D


def minimise(
    rows: Blocks, W: Array, scores: list[Array], C: Floats, totals: Floats, aim: Aim
) -> Solved:
    """Minimise ``C * sum_i w_i loss_i + ||W||^2 / 2`` for a batch of problems.

    Notes
    -----
    Each iteration is two products with the features, one for the direction's scores and one for
    the gradient. Scores are linear in the step, so the line search (Newton on the slope) costs
    element-wise work only. The first matrix of L-BFGS is the inverse of a stand-in for the
    curvature that has the Kronecker form of Böhning's bound (1992), with the mean of ``p (1 - p)``
    of each class at the start in the place of his worst case; in the eigenbasis it is a diagonal.

    Böhning: "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44 (1992).
    Liu, Nocedal: "On the limited memory BFGS method for large scale optimization", Mathematical
    Programming 45 (1989).
    """
    p = W.shape[0]
    if W.shape[1] > 1:
        # The solution has none of the classes' common part, and no direction has either.
        W = W - rows.xp.mean(W, axis=1, keepdims=True)
    solved = Solved(W, np.full(p, np.inf), np.full(p, np.inf), np.zeros(p, np.intp))
    batch = _Batch(rows, W, scores, C, totals)
    left = np.arange(p)
    best, since = np.full(p, np.inf), np.zeros(p, int)
    final: list[Array] = [None] * p
    for iteration in range(aim.max_iter + 1):
        gap, norm = batch.gap(), batch.least_norm()
        worst = np.maximum(norm / aim.tol, gap / aim.gap_tol)
        since = np.where(worst < 0.9 * best, 0, since + 1)
        best = np.minimum(best, worst)
        ending = batch.stuck | (since > _PATIENCE) | (iteration == aim.max_iter)
        near = np.flatnonzero(ending | (worst <= 1.0))
        if len(near):
            norm[near] = batch.gradient_norm(near)
        leaving = aim.reached(norm, gap) | ending
        if leaving.any():
            solved.gradient_norm[left], solved.gap[left] = norm, gap
            solved.n_iter[left] = iteration
            for problem in np.flatnonzero(leaving):
                final[left[problem]] = batch.W[int(problem)]
            stay = np.flatnonzero(~leaving)
            left, best, since = left[stay], best[stay], since[stay]
            if not len(left):
                break
            batch.keep(stay)
        batch.step()
    solved.W = rows.xp.stack(final)
    return solved


class _Batch:
    """The problems still at work: their scores, their gradients and what L-BFGS remembers."""

    def __init__(
        self, rows: Blocks, W: Array, scores: list[Array], C: Floats, totals: Floats
    ) -> None:
        self.rows, self.xp, self.W, self.totals = rows, rows.xp, W, totals
        self.stuck = np.zeros(len(C), bool)
        self.pairs: list[Pair] = []
        free = np.append(np.ones(W.shape[2] - 1), 0.0)
        self.penalty = rows.array(free / C[:, None, None])
        starts = rows.map(self._start, scores)
        self.Z, self.P = scores, [start[0] for start in starts]
        self._gather([start[1:3] for start in starts])
        mean = np.maximum(host_sum([start[3] for start in starts]), 1e-6 * totals[:, None])
        bound = rows.array(mean[:, :, None]) * rows.basis.curvature + self.penalty
        self.scale = 1.0 / bound
        self.preconditioned = self.gradient * self.scale

    def _start(self, block: Block, Z: Array) -> tuple[Array, ...]:
        P, residual, losses = loss(Z, block.onehot, block.weights)
        return P, block.gradient(residual), losses, spread(P, block.weights)

    def _gather(self, partials: list[tuple[Array, ...]]) -> None:
        """Add up the gradients and losses of blocks."""
        gradient = self.penalty * self.W
        for partial in partials:
            gradient = gradient + partial[0]
        self.gradient = gradient
        penalty = host(self.xp.sum(self.penalty * self.W * self.W, axis=(1, 2)))
        self.objective = host_sum([partial[1] for partial in partials]) + 0.5 * penalty

    def gap(self) -> Floats:
        """Return the estimated distance of the objective from its minimum, relative to it."""
        gap = 0.5 * host(inner(self.gradient, self.preconditioned)).ravel().astype(np.float64)
        return gap / np.maximum(self.objective, 1e-30)

    def gradient_norm(self, problems: NDArray[np.intp]) -> Floats:
        """Return the largest entry of the gradient on the features as given, over the weights."""
        xp = self.xp
        given = self.rows.basis.gradient(take(self.gradient, problems))
        largest = host(xp.max(xp.abs(given), axis=(1, 2))).astype(np.float64)
        return largest / self.totals[problems]

    def least_norm(self) -> Floats:
        """Return what `gradient_norm` is at least, which takes no product with the coordinates."""
        xp, basis = self.xp, self.rows.basis
        columns, last = self.gradient[..., :-1], self.gradient[..., -1]
        squares = xp.sum(columns * columns, axis=2) + last * (
            2.0 * (columns @ basis.mean_coordinates) + last * xp.sum(basis.mean * basis.mean)
        )
        mean = xp.sqrt(xp.clip(xp.max(squares, axis=1), 0.0, None) / basis.mean.shape[0])
        return host(mean).astype(np.float64) / self.totals

    def keep(self, stay: NDArray[np.intp]) -> None:
        """Let the other problems leave."""
        self.rows = self.rows.take(stay)
        self.totals, self.objective = self.totals[stay], self.objective[stay]
        self.stuck = self.stuck[stay]
        for name in ("W", "penalty", "gradient", "scale", "preconditioned"):
            setattr(self, name, take(getattr(self, name), stay))
        self.Z = [take(Z, stay) for Z in self.Z]
        self.P = [take(P, stay) for P in self.P]
        self.pairs = [
            (take(S, stay), take(Y, stay), take(HY, stay), take(inverse, stay))
            for S, Y, HY, inverse in self.pairs
        ]

    def step(self) -> None:
        """Move every problem along its direction to where the slope has nearly vanished."""
        xp, rows = self.xp, self.rows
        D = lbfgs_direction(self.gradient, self.preconditioned, self.pairs)
        if D.shape[1] > 1:
            # Classes' common part changes no probability.
            D = D - xp.mean(D, axis=1, keepdims=True)
        slope = host(inner(self.gradient, D)).ravel().astype(np.float64)
        penalty = self.penalty * D
        straight = host(inner(penalty, D)).ravel().astype(np.float64)
        tilt = host(inner(penalty, self.W)).ravel().astype(np.float64)
        ahead = rows.map(lambda block, P: self._along(block, P, D), self.P)
        U = [scores for scores, _ in ahead]
        bend = host_sum([part for _, part in ahead]) + straight
        low, high = np.zeros(len(slope)), np.full(len(slope), np.inf)
        t = np.where(bend > 0, -slope / np.maximum(bend, 1e-300), 1.0)
        low_slope, accepted = slope.copy(), np.zeros(len(slope), bool)
        for _ in range(_TRIALS):
            length = rows.array(t)[:, None, None]
            moved = rows.map(lambda block, Z, u, s=length: self._moved(block, Z, u, s), self.Z, U)
            now = host_sum([part[4] for part in moved]) + tilt + t * straight
            accepted = np.abs(now) <= _SLOPE * np.abs(slope)
            if accepted.all():
                break
            t, low, high, low_slope = _next_trial(t, now, low, high, low_slope, ~accepted)
        # Where the slope cannot be brought down, rounding is all that is left of it.
        self.stuck = ~accepted | (slope >= 0)
        self.Z, self.P = [part[0] for part in moved], [part[1] for part in moved]
        before, was = self.gradient, self.preconditioned
        S = length * D
        self.W = self.W + S
        self._gather([part[2:4] for part in moved])
        self.preconditioned = self.gradient * self.scale
        Y, HY = self.gradient - before, self.preconditioned - was
        product = inner(S, Y)
        useful = product > 0
        inverse = xp.where(
            useful, 1.0 / xp.where(useful, product, xp.ones_like(product)), xp.zeros_like(product)
        )
        self.pairs = [*self.pairs[1 - _PAIRS :], (S, Y, HY, inverse)]

    def _along(self, block: Block, P: Array, D: Array) -> tuple[Array, Array]:
        """Return the direction's scores, and this block's part of the curvature along it."""
        xp = self.xp
        U = block.scores(D)
        PU = P * U
        middle = xp.sum(PU, axis=1)
        PU *= U
        return U, xp.sum((xp.sum(PU, axis=1) - middle * middle) * block.weights, axis=1)

    def _moved(self, block: Block, Z: Array, U: Array, t: Array) -> tuple[Array, ...]:
        """Return scores, probabilities, gradient, loss and slope of a block, a step ahead."""
        Z = Z + t * U
        P, residual, losses = loss(Z, block.onehot, block.weights)
        return Z, P, block.gradient(residual), losses, self.xp.sum(residual * U, axis=(1, 2))


def _next_trial(
    t: Floats, slope: Floats, low: Floats, high: Floats, low_slope: Floats, moving: Bits
) -> tuple[Floats, ...]:
    """Return the secant from the last point where the slope was down, inside the bracket."""
    up = slope > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        secant = low + (t - low) * low_slope / (low_slope - slope)
    new_high = np.where(up, np.minimum(high, t), high)
    new_low, new_slope = np.where(up, low, t), np.where(up, low_slope, slope)
    bounded = np.isfinite(new_high)
    width = np.where(bounded, new_high - new_low, 0.0)
    inside = np.where(
        bounded,
        np.clip(secant, new_low + 0.1 * width, new_high - 0.1 * width),
        np.clip(secant, 1.5 * t, 8.0 * t),
    )
    inside = np.where(np.isfinite(inside), inside, np.where(bounded, new_low + 0.5 * width, 2 * t))
    return np.where(moving, inside, t), new_low, new_high, new_slope


@dataclass(frozen=True, slots=True, eq=False)
class Minima:
    """Where descents ended (p, k, d), which were good enough, and how many evaluations it took."""

    points: Floats
    finished: Bits
    passes: int


def minimise_in_lockstep(
    function: Callable[[Floats, NDArray[np.intp]], Evaluation],
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
        ended = good | lost | (idle > _PASS_PATIENCE) | (passes >= most)
        points[which[ended]], finished[which[good]] = at[ended], True
        if ended.all():
            return Minima(points, finished, passes)
        if ended.any():
            staying = ~ended
            which, at, value, gradient = (
                which[staying],
                at[staying],
                value[staying],
                gradient[staying],
            )
            direction, reach, step = direction[staying], reach[staying], step[staying]
            cuts, idle, best = cuts[staying], idle[staying], best[staying]
            memory.keep(staying)
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
        taken |= near & (trial_slope <= -_PASS_SLOPE * slope)
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
            turned = lbfgs_direction(gradient, gradient, memory)
            direction = np.where(taken[:, None, None], turned, direction)


class _Memory(Sequence[Pair]):
    """The last pairs of each function, oldest first; functions move at different passes."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        count = shape[0]
        self._moves, self._turns = np.zeros((2, _PASS_PAIRS, *shape))
        self._inverse = np.zeros((_PASS_PAIRS, count, 1, 1))
        # Where each function's next pair goes, in the place of its oldest.
        self._next = np.zeros(count, np.intp)

    @property
    def empty(self) -> Bits:
        """Which functions have no pair, (a,)."""
        return np.asarray(~self._inverse.any(axis=(0, 2, 3)))

    def __len__(self) -> int:
        return _PASS_PAIRS

    def __getitem__(self, age: Any) -> Any:
        if age >= _PASS_PAIRS:
            raise IndexError(age)
        functions = np.arange(len(self._next))
        slots = (self._next + age) % _PASS_PAIRS
        move, turn = self._moves[slots, functions], self._turns[slots, functions]
        return move, turn, turn, self._inverse[slots, functions]

    def add(self, taken: Bits, move: Floats, turn: Floats) -> None:
        """Remember the pairs of steps taken, but those that are rounding."""
        product = inner(move, turn).ravel()
        real = product > _LEAST_COSINE * _lengths(move) * _lengths(turn)
        new = np.flatnonzero(taken & real)
        slots = self._next[new]
        self._moves[slots, new], self._turns[slots, new] = move[new], turn[new]
        self._inverse[slots, new, 0, 0] = 1 / product[new]
        self._next[new] = (slots + 1) % _PASS_PAIRS

    def forget(self, functions: Bits) -> None:
        """Drop all pairs of some functions."""
        self._inverse[:, functions] = 0

    def keep(self, functions: Bits) -> None:
        """Let the other functions leave."""
        self._moves, self._turns = self._moves[:, functions], self._turns[:, functions]
        self._inverse, self._next = self._inverse[:, functions], self._next[functions]


def _lengths(points: Floats) -> Floats:
    lengths: Floats = np.sqrt(inner(points, points)).ravel()
    return lengths
