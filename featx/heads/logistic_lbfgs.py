"""L-BFGS on many logistic regressions at once, preconditioned in the features' eigenbasis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.lockstep import inner, lbfgs_direction
from featx.heads.logistic_rows import RowBlock, Rows, host, take

_PAIRS = 8
_TRIALS = 10
# A step is taken when the slope along it has fallen to this share.
_SLOPE = 0.3
# Iterations without progress after which single precision has given what it has.
_PATIENCE = 60


@dataclass
class Solved:
    """What came of a batch of problems.

    Parameters
    ----------
    W : array of shape (p, k, r + 1)
        Coefficients in the basis of the rows, the intercept last.
    gradient_norm : ndarray of shape (p,)
        Largest entry of the gradient on the features as given, divided by the sum of weights.
    gap : ndarray of shape (p,)
        Estimate of how far the objective is above its minimum, relative to it.
    n_iter : ndarray of shape (p,), intp
    converged : ndarray of shape (p,), bool
    """

    W: Any
    gradient_norm: NDArray[np.float64]
    gap: NDArray[np.float64]
    n_iter: NDArray[np.intp]
    converged: NDArray[np.bool_]


def minimise(
    rows: Rows,
    W: Any,
    scores: list[Any],
    C: NDArray[np.float64],
    totals: NDArray[np.float64],
    *,
    tol: float,
    gap_tol: float,
    max_iter: int,
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
    solved = Solved(
        W, np.full(p, np.inf), np.full(p, np.inf), np.zeros(p, np.intp), np.zeros(p, bool)
    )
    batch = _Batch(rows, W, scores, C, totals)
    left = np.arange(p)
    best, since = np.full(p, np.inf), np.zeros(p, int)
    final: list[Any] = [None] * p
    for iteration in range(max_iter + 1):
        gap, norm = batch.gap(), batch.least_norm()
        worst = np.maximum(norm / tol, gap / gap_tol)
        since = np.where(worst < 0.9 * best, 0, since + 1)
        best = np.minimum(best, worst)
        ending = batch.stuck | (since > _PATIENCE) | (iteration == max_iter)
        near = np.flatnonzero(ending | (worst <= 1.0))
        if len(near):
            norm[near] = batch.gradient_norm(near)
        done = (norm <= tol) & (gap <= gap_tol)
        leaving = done | ending
        if leaving.any():
            solved.gradient_norm[left], solved.gap[left] = norm, gap
            solved.n_iter[left], solved.converged[left] = iteration, done
            for place in np.flatnonzero(leaving):
                final[left[place]] = batch.W[int(place)]
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
        self,
        rows: Rows,
        W: Any,
        scores: list[Any],
        C: NDArray[np.float64],
        totals: NDArray[np.float64],
    ) -> None:
        self.rows, self.xp, self.W, self.totals = rows, rows.xp, W, totals
        self.stuck = np.zeros(len(C), bool)
        self.pairs: list[tuple[Any, ...]] = []
        free = np.append(np.ones(W.shape[2] - 1), 0.0)
        self.penalty = rows.array(free / C[:, None, None])
        found = rows.map(self._start, scores)
        self.Z, self.P = scores, [f[0] for f in found]
        self._gather([f[1:4] for f in found])
        spread = np.sum([host(f[4]) for f in found], axis=0)
        spread = np.maximum(spread, 1e-6 * totals[:, None])
        bound = rows.array(spread[:, :, None]) * rows.basis.curvature + self.penalty
        self.scale = 1.0 / bound
        self.preconditioned = self.gradient * self.scale

    def _start(self, block: RowBlock, Z: Any) -> tuple[Any, ...]:
        P, partial = self._evaluate(block, Z)
        spread = self.xp.sum(P * (1.0 - P) * block.weights[:, None, :], axis=2)
        return P, *partial, spread

    def _evaluate(self, block: RowBlock, Z: Any) -> tuple[Any, tuple[Any, Any, Any]]:
        """Give the probabilities, and of this block the gradient, loss and residual."""
        xp = self.xp
        P, logs = self.rows.probabilities(Z)
        loss = xp.sum((logs - xp.sum(Z * block.onehot, axis=1)) * block.weights, axis=1)
        residual = (P - block.onehot) * block.weights[:, None, :]
        p, k, b = Z.shape
        gradient = (residual.reshape(p * k, b) @ block.features.T).reshape(p, k, -1)
        return P, (gradient, loss, residual)

    def _gather(self, partials: list[tuple[Any, Any, Any]]) -> None:
        gradient = self.penalty * self.W
        for partial in partials:
            gradient = gradient + partial[0]
        self.gradient = gradient
        penalty = host(self.xp.sum(self.penalty * self.W * self.W, axis=(1, 2)))
        losses = np.sum([host(partial[1]) for partial in partials], axis=0, dtype=np.float64)
        self.objective = losses + 0.5 * penalty

    def gap(self) -> NDArray[np.float64]:
        """Return the estimated distance of the objective from its minimum, relative to it."""
        gap = 0.5 * host(inner(self.gradient, self.preconditioned)).ravel().astype(np.float64)
        return gap / np.maximum(self.objective, 1e-30)

    def gradient_norm(self, problems: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the largest entry of the gradient on the features as given, over the weights."""
        xp = self.xp
        given = self.rows.basis.gradient(xp, take(xp, self.gradient, problems))
        largest = host(xp.max(xp.abs(given), axis=(1, 2))).astype(np.float64)
        return largest / self.totals[problems]

    def least_norm(self) -> NDArray[np.float64]:
        """Return what `gradient_norm` is at least, which takes no product with the coordinates."""
        xp, basis = self.xp, self.rows.basis
        inner, last = self.gradient[..., :-1], self.gradient[..., -1]
        squares = xp.sum(inner * inner, axis=2) + last * (
            2.0 * (inner @ basis.mean_coordinates) + last * xp.sum(basis.mean * basis.mean)
        )
        mean = xp.sqrt(xp.clip(xp.max(squares, axis=1), 0.0, None) / basis.mean.shape[0])
        return host(mean).astype(np.float64) / self.totals

    def keep(self, stay: NDArray[np.intp]) -> None:
        """Let the other problems leave."""
        xp = self.xp
        self.rows = self.rows.take(stay)
        self.totals, self.objective = self.totals[stay], self.objective[stay]
        self.stuck = self.stuck[stay]
        for name in ("W", "penalty", "gradient", "scale", "preconditioned"):
            setattr(self, name, take(xp, getattr(self, name), stay))
        self.Z = [take(xp, Z, stay) for Z in self.Z]
        self.P = [take(xp, P, stay) for P in self.P]
        self.pairs = [tuple(take(xp, a, stay) for a in pair) for pair in self.pairs]

    def step(self) -> None:
        """Move every problem along its direction to where the slope has nearly vanished."""
        xp, rows = self.xp, self.rows
        D = lbfgs_direction(xp, self.gradient, self.preconditioned, self.pairs)
        if D.shape[1] > 1:
            # Classes' common part changes no probability.
            D = D - xp.mean(D, axis=1, keepdims=True)
        slope = host(inner(self.gradient, D)).ravel().astype(np.float64)
        penalty = self.penalty * D
        straight = host(inner(penalty, D)).ravel().astype(np.float64)
        tilt = host(inner(penalty, self.W)).ravel().astype(np.float64)
        ahead = rows.map(lambda block, P: self._along(block, P, D), self.P)
        U = [f[0] for f in ahead]
        bend = np.sum([host(f[1]) for f in ahead], axis=0, dtype=np.float64) + straight
        low, high = np.zeros(len(slope)), np.full(len(slope), np.inf)
        t = np.where(bend > 0, -slope / np.maximum(bend, 1e-300), 1.0)
        low_slope, accepted = slope.copy(), np.zeros(len(slope), bool)
        for _ in range(_TRIALS):
            length = rows.array(t)[:, None, None]
            found = rows.map(lambda block, Z, u, s=length: self._moved(block, Z, u, s), self.Z, U)
            now = np.sum([host(f[5]) for f in found], axis=0, dtype=np.float64)
            now += tilt + t * straight
            accepted = np.abs(now) <= _SLOPE * np.abs(slope)
            if accepted.all():
                break
            t, low, high, low_slope = _next_trial(t, now, low, high, low_slope, ~accepted)
        # Where the slope cannot be brought down, rounding is all that is left of it.
        self.stuck = ~accepted | (slope >= 0)
        self.Z, self.P = [f[0] for f in found], [f[1] for f in found]
        before, was = self.gradient, self.preconditioned
        S = length * D
        self.W = self.W + S
        self._gather([f[2:5] for f in found])
        self.preconditioned = self.gradient * self.scale
        Y, HY = self.gradient - before, self.preconditioned - was
        product = inner(S, Y)
        useful = product > 0
        inverse = xp.where(
            useful, 1.0 / xp.where(useful, product, xp.ones_like(product)), xp.zeros_like(product)
        )
        self.pairs = [*self.pairs[1 - _PAIRS :], (S, Y, HY, inverse)]

    def _along(self, block: RowBlock, P: Any, D: Any) -> tuple[Any, Any]:
        """Give the direction's scores, and this block's part of the curvature along it."""
        xp = self.xp
        U = block.scores(D)
        PU = P * U
        middle = xp.sum(PU, axis=1)
        PU *= U
        return U, xp.sum((xp.sum(PU, axis=1) - middle * middle) * block.weights, axis=1)

    def _moved(self, block: RowBlock, Z: Any, U: Any, t: Any) -> tuple[Any, ...]:
        Z = Z + t * U
        P, partial = self._evaluate(block, Z)
        return Z, P, *partial, self.xp.sum(partial[2] * U, axis=(1, 2))


def _next_trial(
    t: NDArray[np.float64],
    slope: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    low_slope: NDArray[np.float64],
    moving: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], ...]:
    """Secant from the last point where the slope was down, kept inside the bracket."""
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
