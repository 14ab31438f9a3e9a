"""The loss of logistic regression, the basis of its curvature, and L-BFGS on many problems at once.

All that touches features in memory is done block by block, so that the element-wise work of a block
is done while it is in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from featx.heads.rows import Doubles, Floats, Numbers
from featx.threads import blas_threads, blas_threads_now

T = TypeVar("T")
Bits: TypeAlias = NDArray[np.bool_]
OneHot: TypeAlias = NDArray[np.bool_ | np.floating]
Pair: TypeAlias = tuple[Floats, Floats, Floats, Floats]
"""A move, the turn of the gradient over it, that turn preconditioned, and 1 over the first two's
product, of shape (p, 1, 1): 0 where there is no such pair."""

# Rows a block: the product wants many, the element-wise work that its arrays stay in the cache.
# Measured on 5,000 to 50,000 rows, with 10 to 600 columns of scores.
_LEAST_ROWS, _MOST_ROWS = 1024, 2560
_BLOCK_ENTRIES = 1 << 17
_MOST_DIRECTIONS = 4096
# A smaller probability would soon be subnormal, which slows arithmetic a hundredfold.
_LEAST_EXPONENT = -60.0

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


def inner(a: Floats, b: Floats) -> Floats:
    """Return the inner products of each problem, of shape (p, 1, 1)."""
    p = a.shape[0]
    return np.asarray(a.reshape(p, 1, -1) @ b.reshape(p, -1, 1))


def one_hot(codes: NDArray[np.integer], classes: int) -> Bits:
    """Return whether each row (b,) is of each class, (classes, b); of two, the second alone."""
    first = int(classes == 2)
    return np.asarray(codes == np.arange(first, classes)[:, None])


def log_odds(shares: Doubles) -> Doubles:
    """Return the scores (p, k) whose probabilities are proportional to shares (p, classes)."""
    logs = np.log(shares)
    if shares.shape[1] == 2:
        return logs[:, 1:] - logs[:, :1]
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def probabilities(Z: Floats, onehot: OneHot) -> tuple[Floats, Floats]:
    """Return probabilities (p, k, b) and losses (p, b) of linear scores; k is 1 for two classes."""
    # The losses of rows that are all but certain keep their digits: nothing large is added to them.
    if Z.shape[1] == 1:
        small = np.exp(np.clip(-np.abs(Z), _LEAST_EXPONENT, None))
        P = np.where(Z >= 0, np.ones_like(Z), small) / (1.0 + small)
        losses = (np.clip(Z, 0.0, None) - Z * onehot) + np.log1p(small)
        return P, losses[:, 0, :]
    highest = Z.max(axis=1, keepdims=True)
    P = np.exp(np.clip(Z - highest, _LEAST_EXPONENT, None))
    total = P.sum(axis=1, keepdims=True)
    P /= total
    return P, (highest[:, 0, :] - (Z * onehot).sum(axis=1)) + np.log(total)[:, 0, :]


def loss(Z: Floats, onehot: OneHot, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return probabilities and derivatives by scores (p, k, b), and the sums of losses (p,)."""
    P, losses = probabilities(Z, onehot)
    return P, (P - onehot) * weights[:, None, :], (losses * weights).sum(axis=1)


def spread(P: Floats, weights: Floats) -> Floats:
    """Return the sums (p, k) of ``p (1 - p)`` over rows, which bound second derivatives."""
    return np.asarray((P * (1.0 - P) * weights[:, None, :]).sum(axis=2))


@dataclass(frozen=True)
class Block:
    """Some consecutive rows.

    ``features`` are coordinates as columns, shape (r + 1, b), the last of them ones for the
    intercept; ``onehot`` labels, shape (k, b) with k of 1 for two classes; ``weights`` what each
    row counts in each problem's loss, shape (p, b), 0 where it is held out.
    """

    features: Floats
    onehot: Floats
    weights: Floats

    def scores(self, W: Floats) -> Floats:
        """Return linear scores (p, k, b) of coefficients (p, k, r + 1)."""
        p, k, width = W.shape
        return np.asarray(W.reshape(p * k, width) @ self.features).reshape(p, k, -1)

    def gradient(self, residual: Floats) -> Floats:
        """Return the gradient (p, k, r + 1) that derivatives by scores (p, k, b) make."""
        p, k, b = residual.shape
        return np.asarray(residual.reshape(p * k, b) @ self.features.T).reshape(p, k, -1)


@dataclass(frozen=True)
class Basis:
    """Coordinates of features less their mean, in which their curvature is diagonal.

    ``mean`` of shape (d,) is taken off, which uncouples the intercept from the rest.
    ``coordinates`` are eigenvectors of the Gram matrix as columns, shape (d, r), or None where
    features stay as they are. ``curvature`` is the mean of the squared coordinates, shape
    (r + 1,), 1 for the intercept.
    """

    mean: Floats
    coordinates: Floats | None
    curvature: Floats

    @cached_property
    def mean_coordinates(self) -> Floats:
        """The mean, of shape (r,), in these coordinates."""
        return self.mean if self.coordinates is None else np.asarray(self.mean @ self.coordinates)

    def turned(self, V: Floats) -> Floats:
        """Return coefficients or derivatives (..., d + 1) in these coordinates, (..., r + 1)."""
        return V if self.coordinates is None else _multiplied(V, self.coordinates)

    def features(self, V: Floats) -> Floats:
        """Return coefficients or derivatives (..., r + 1) by centred features, (..., d + 1)."""
        return V if self.coordinates is None else _multiplied(V, self.coordinates.T)


def given_gradient(G: Floats, mean: Floats) -> Floats:
    """Return derivatives by coefficients of features from those of features less a mean."""
    last = G[..., -1:]
    return np.concatenate([G[..., :-1] + last * mean, last], axis=-1)


def given_coefficients(W: Floats, mean: Floats) -> tuple[Doubles, Doubles]:
    """Return coefficients and intercepts on features from those on features less a mean."""
    coef = W[..., :-1]
    return coef.astype(np.float64), (W[..., -1] - coef @ mean).astype(np.float64)


def _multiplied(V: Floats, matrix: Floats) -> Floats:
    """Return all but the last entries of V through a matrix, in the precision of the matrix."""
    # As one product: a stack of small ones is done one by one.
    flat = V[..., :-1].reshape(-1, V.shape[-1] - 1).astype(matrix.dtype, copy=False)
    through: Floats = (flat @ matrix).astype(V.dtype, copy=False)
    return np.concatenate([through.reshape(*V.shape[:-1], -1), V[..., -1:]], axis=-1)


def eigenvectors(gram: Floats, threads: int | None = None) -> tuple[Floats, Floats]:
    """Return eigenvalues and eigenvectors of a Gram matrix, which may be overwritten."""
    # NumPy has no single-precision routine of its own: this is 3 times as fast at 1,280.
    import scipy.linalg

    with blas_threads(threads):
        values, vectors = scipy.linalg.eigh(
            gram, driver="evd", check_finite=False, overwrite_a=True
        )
    return values, vectors


class Workers:
    """Threads that work on blocks, each with a BLAS of one thread."""

    def __init__(self) -> None:
        self.count = blas_threads_now()
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[..., T], *per_block: Iterable[object]) -> list[T]:
        """Return what a function says of each block, from threads while these are at work."""
        if self._pool is None:
            return list(map(function, *per_block))
        return list(self._pool.map(function, *per_block))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold one thread a core."""
        if self.count == 1 or self._pool is not None:
            yield
            return
        with blas_threads(1), ThreadPoolExecutor(self.count) as self._pool:
            try:
                yield
            finally:
                self._pool = None


@dataclass(frozen=True)
class Blocks:
    """All rows in blocks, in one basis, and the threads that work on them."""

    basis: Basis
    blocks: Sequence[Block]
    workers: Workers

    @classmethod
    def make(
        cls,
        X: Floats,
        codes: Numbers,
        classes: int,
        weights: Doubles,
        *,
        dtype: str,
        workers: Workers,
    ) -> Blocks:
        """Centre the rows (n, d), with weights (p, n), cut them into blocks and find the basis."""
        n, d = X.shape
        mean = X.astype(dtype, copy=False).mean(axis=0)
        coordinates = upper = None
        if n <= min(d, _MOST_DIRECTIONS):
            coordinates, upper = np.linalg.qr((X.astype(dtype, copy=False) - mean).T)
        size = _block_size(n, (1 if classes == 2 else classes) * len(weights), workers.count)
        blocks = []
        for start in range(0, n, size):
            part = slice(start, start + size)
            if upper is None:
                columns = (X[part].astype(dtype, copy=False) - mean).T
            else:
                columns = upper[:, part]
            features = np.concatenate([columns, np.ones_like(columns[:1])])
            onehot = one_hot(codes[part], classes).astype(dtype)
            blocks.append(
                Block(np.ascontiguousarray(features), onehot, weights[:, part].astype(dtype))
            )
        with workers.at_work():
            return cls(Basis(mean, coordinates, mean), blocks, workers)._rotated()

    def _rotated(self) -> Blocks:
        """Return the rows in the eigenbasis of their Gram matrix."""
        mean, coordinates = self.basis.mean, self.basis.coordinates
        n = sum(block.features.shape[1] for block in self.blocks)
        if self.shape[2] - 1 > _MOST_DIRECTIONS:
            squares = self.map(lambda block: (block.features * block.features).sum(axis=1))
            curvature = sum(squares[1:], squares[0]) / n
            return replace(self, basis=Basis(mean, coordinates, curvature))
        products = self.map(lambda block: block.features[:-1] @ block.features[:-1].T)
        values, vectors = eigenvectors(sum(products[1:], products[0]), self.workers.count)

        def rotated(block: Block) -> Block:
            columns = vectors.T @ block.features[:-1]
            return replace(block, features=np.concatenate([columns, block.features[-1:]]))

        basis = Basis(
            mean,
            vectors if coordinates is None else coordinates @ vectors,
            np.append(np.maximum(values, 0) / n, np.ones_like(values[:1])),
        )
        return replace(self, basis=basis, blocks=self.map(rotated))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Problems, score columns and coordinates (the intercept among them)."""
        block = self.blocks[0]
        return block.weights.shape[0], block.onehot.shape[0], block.features.shape[0]

    def array(self, values: Floats) -> Floats:
        """Return an array in the features' precision."""
        return np.asarray(values, self.blocks[0].features.dtype)

    def encoded(self, coef: Doubles, intercept: Doubles) -> Floats:
        """Return coefficients on the features as given in the basis of the rows."""
        last = intercept + coef @ self.basis.mean
        return self.basis.turned(self.array(np.concatenate([coef, last[..., None]], axis=-1)))

    def decoded(self, W: Floats) -> tuple[Doubles, Doubles]:
        """Return coefficients (..., d) and intercepts (...) on the features as given."""
        return given_coefficients(self.basis.features(W), self.basis.mean)

    def scores(self, W: Floats) -> list[Floats]:
        """Return the linear scores of each block's rows."""
        return self.map(lambda block: block.scores(W))

    def take(self, problems: Numbers) -> Blocks:
        """Return the same rows with the weights of some problems only."""
        return self._weighted([block.weights[problems] for block in self.blocks])

    def reweighted(self, weights: Doubles) -> Blocks:
        """Return the same rows with the weights (p, n) of other problems."""
        ends = np.cumsum([block.features.shape[1] for block in self.blocks])[:-1]
        return self._weighted([self.array(part) for part in np.split(weights, ends, axis=1)])

    def _weighted(self, weights: list[Floats]) -> Blocks:
        pairs = zip(self.blocks, weights, strict=True)
        return replace(self, blocks=[replace(block, weights=part) for block, part in pairs])

    def map(self, function: Callable[..., T], *per_block: Iterable[object]) -> list[T]:
        """Return ``function(block, ...)`` of every block."""
        return self.workers.map(function, self.blocks, *per_block)


def _block_size(n: int, columns: int, workers: int) -> int:
    """Return rows a block: few enough for the cache, enough for the product, an even share."""
    size = max(_LEAST_ROWS, min(_MOST_ROWS, _BLOCK_ENTRIES // columns))
    rounds = max(1, round(n / (size * workers)))
    return -(-n // (rounds * workers))


@dataclass(frozen=True)
class Aim:
    """Where a descent ends.

    ``tol`` bounds the largest entry of the gradient on the features as given, divided by the sum of
    weights; ``gap_tol`` the estimate of how far the objective is above its minimum, relative to it.
    """

    tol: float
    gap_tol: float
    max_iter: int

    def reached(self, norm: Doubles, gap: Doubles) -> Bits:
        """Return which problems are solved."""
        return (norm <= self.tol) & (gap <= self.gap_tol)


def lbfgs_direction(gradient: Floats, preconditioned: Floats, pairs: Sequence[Pair]) -> Floats:
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
    D = D / _latest_scale(pairs)
    for (S, Y, _, inverse), share in zip(pairs, reversed(shares), strict=True):
        D = D + (share - inverse * inner(Y, D)) * S
    return -D


def _latest_scale(pairs: Sequence[Pair]) -> Floats | float:
    """Return the scale (p, 1, 1) of each problem's curvature that its latest pair tells."""
    scale: Floats | None = None
    for _, Y, HY, inverse in reversed(pairs):
        product = inverse * inner(Y, HY)
        scale = product if scale is None else np.where(scale > 0, scale, product)
        if (scale > 0).all():
            break
    return 1.0 if scale is None else np.where(scale > 0, scale, np.ones_like(scale))


def _pair(move: Floats, turn: Floats, preconditioned: Floats, least: Doubles | float) -> Pair:
    """Return a pair, none for problems whose product is not above the least."""
    product = inner(move, turn)
    inverse = np.divide(1.0, product, out=np.zeros_like(product), where=product > least)
    return move, turn, preconditioned, inverse


def _pairs_of(pairs: Sequence[Pair], problems: NDArray[np.generic]) -> list[Pair]:
    """Return the pairs of some problems."""
    return [(S[problems], Y[problems], HY[problems], i[problems]) for S, Y, HY, i in pairs]


@dataclass
class Solved:
    """What came of p problems: coefficients in the basis of the rows (p, k, r + 1), and how near.

    See `Aim` for ``gradient_norm`` and ``gap``.
    """

    W: Floats
    gradient_norm: Doubles
    gap: Doubles
    n_iter: Numbers


def minimise(
    rows: Blocks, W: Floats, scores: list[Floats], C: Doubles, totals: Doubles, aim: Aim
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
        W = W - W.mean(axis=1, keepdims=True)
    unknown = np.full(p, np.inf)
    solved = Solved(np.empty_like(W), unknown, unknown.copy(), np.zeros(p, np.intp))
    batch = _Batch(rows, W, scores, C, totals)
    left, best, since = np.arange(p), np.full(p, np.inf), np.zeros(p, int)
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
            solved.W[left[leaving]] = batch.W[leaving]
            stay = np.flatnonzero(~leaving)
            left, best, since = left[stay], best[stay], since[stay]
            if not len(left):
                break
            batch.keep(stay)
        batch.step()
    return solved


class _Batch:
    """The problems still at work: their scores, their gradients and what L-BFGS remembers."""

    def __init__(
        self, rows: Blocks, W: Floats, scores: list[Floats], C: Doubles, totals: Doubles
    ) -> None:
        self.rows, self.W, self.totals = rows, W, totals
        self.stuck = np.zeros(len(C), bool)
        self.pairs: list[Pair] = []
        free = np.append(np.ones(W.shape[2] - 1), 0.0)
        self.penalty = rows.array(free / C[:, None, None])
        starts = rows.map(self._start, scores)
        self.Z, self.P = scores, [start[0] for start in starts]
        self._gather([start[1:3] for start in starts])
        mean = np.maximum(_sum(start[3] for start in starts), 1e-6 * totals[:, None])
        bound = rows.array(mean[:, :, None]) * rows.basis.curvature + self.penalty
        self.scale = 1.0 / bound
        self.preconditioned = self.gradient * self.scale

    def _start(self, block: Block, Z: Floats) -> tuple[Floats, ...]:
        P, residual, losses = loss(Z, block.onehot, block.weights)
        return P, block.gradient(residual), losses, spread(P, block.weights)

    def _gather(self, partials: list[tuple[Floats, ...]]) -> None:
        """Add up the gradients and losses of blocks."""
        self.gradient = self.penalty * self.W
        penalty = (self.gradient * self.W).sum(axis=(1, 2))
        for partial in partials:
            self.gradient = self.gradient + partial[0]
        self.objective = _sum(partial[1] for partial in partials) + 0.5 * penalty

    def gap(self) -> Doubles:
        """Return the estimated distance of the objective from its minimum, relative to it."""
        gap = 0.5 * _flat(inner(self.gradient, self.preconditioned))
        return np.asarray(gap / np.maximum(self.objective, 1e-30))

    def gradient_norm(self, problems: Numbers) -> Doubles:
        """Return the largest entry of the gradient on the features as given, over the weights."""
        basis = self.rows.basis
        slopes = np.abs(given_gradient(basis.features(self.gradient[problems]), basis.mean))
        return np.asarray(slopes.max(axis=(1, 2)).astype(np.float64) / self.totals[problems])

    def least_norm(self) -> Doubles:
        """Return what `gradient_norm` is at least, which takes no product with the coordinates."""
        basis = self.rows.basis
        columns, last = self.gradient[..., :-1], self.gradient[..., -1]
        squares = (columns * columns).sum(axis=2) + last * (
            2.0 * (columns @ basis.mean_coordinates) + last * (basis.mean * basis.mean).sum()
        )
        mean = np.sqrt(np.clip(squares.max(axis=1), 0.0, None) / basis.mean.shape[0])
        return np.asarray(mean.astype(np.float64) / self.totals)

    def keep(self, stay: Numbers) -> None:
        """Let the other problems leave."""
        self.rows = self.rows.take(stay)
        for name in (
            *("W", "penalty", "gradient", "scale", "preconditioned"),
            *("totals", "objective", "stuck"),
        ):
            setattr(self, name, getattr(self, name)[stay])
        self.Z, self.P = [Z[stay] for Z in self.Z], [P[stay] for P in self.P]
        self.pairs = _pairs_of(self.pairs, stay)

    def step(self) -> None:
        """Move every problem along its direction to where the slope has nearly vanished."""
        rows = self.rows
        D = lbfgs_direction(self.gradient, self.preconditioned, self.pairs)
        if D.shape[1] > 1:
            # Classes' common part changes no probability.
            D = D - D.mean(axis=1, keepdims=True)
        slope = _flat(inner(self.gradient, D))
        penalty = self.penalty * D
        straight, tilt = _flat(inner(penalty, D)), _flat(inner(penalty, self.W))
        ahead = rows.map(lambda block, P: self._along(block, P, D), self.P)
        U = [scores for scores, _ in ahead]
        bend = _sum(part for _, part in ahead) + straight
        low, high = np.zeros(len(slope)), np.full(len(slope), np.inf)
        t = np.where(bend > 0, -slope / np.maximum(bend, 1e-300), 1.0)
        low_slope, accepted = slope.copy(), np.zeros(len(slope), bool)
        for _ in range(_TRIALS):
            length = rows.array(t)[:, None, None]
            moved = rows.map(lambda block, Z, u, s=length: self._moved(block, Z, u, s), self.Z, U)
            now = _sum(part[4] for part in moved) + tilt + t * straight
            accepted = np.abs(now) <= _SLOPE * np.abs(slope)
            if accepted.all():
                break
            t, low, high, low_slope = _next_trial(t, now, low, high, low_slope, ~accepted)
        # Where the slope cannot be brought down, rounding is all that is left of it.
        self.stuck = ~accepted | (slope >= 0)
        self.Z, self.P = [part[0] for part in moved], [part[1] for part in moved]
        before, preconditioned_before = self.gradient, self.preconditioned
        S = length * D
        self.W = self.W + S
        self._gather([part[2:4] for part in moved])
        self.preconditioned = self.gradient * self.scale
        turns = self.gradient - before, self.preconditioned - preconditioned_before
        self.pairs = [*self.pairs[1 - _PAIRS :], _pair(S, *turns, 0.0)]

    def _along(self, block: Block, P: Floats, D: Floats) -> tuple[Floats, Floats]:
        """Return the direction's scores, and this block's part of the curvature along it."""
        U = block.scores(D)
        PU = P * U
        middle = PU.sum(axis=1)
        PU *= U
        return U, ((PU.sum(axis=1) - middle * middle) * block.weights).sum(axis=1)

    def _moved(self, block: Block, Z: Floats, U: Floats, t: Floats) -> tuple[Floats, ...]:
        """Return scores, probabilities, gradient, loss and slope of a block, a step ahead."""
        Z = Z + t * U
        P, residual, losses = loss(Z, block.onehot, block.weights)
        return Z, P, block.gradient(residual), losses, (residual * U).sum(axis=(1, 2))


def _flat(products: Floats) -> Doubles:
    """Return a number a problem, in double precision."""
    return products.ravel().astype(np.float64)


def _sum(arrays: Iterable[Floats]) -> Doubles:
    """Return the sum of small arrays in double precision."""
    return np.asarray(np.sum(list(arrays), axis=0, dtype=np.float64))


def _next_trial(
    t: Doubles, slope: Doubles, low: Doubles, high: Doubles, low_slope: Doubles, moving: Bits
) -> tuple[Doubles, ...]:
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

    points: Doubles
    finished: Bits
    passes: int


def minimise_in_lockstep(
    function: Callable[[Doubles, Numbers], tuple[Doubles, Doubles, Bits]],
    shape: tuple[int, int, int],
    *,
    most: int,
    noise: float,
) -> Minima:
    """Minimise p convex functions of k times d variables from zero, of which one pass tells all.

    Notes
    -----
    Every evaluation is a trial of each function's own step: one whose value falls takes it and
    turns, another shortens it, and one that is finished leaves. So the passes are those of the
    slowest function, not of all together. A step counts as a fall where the value says so, or,
    where rounding hides that, the slope at its end (Hager, Zhang: "A new conjugate gradient method
    with guaranteed descent and an efficient line search", SIAM J. Optim. 16, 2005). Where no step
    along a direction falls, what is remembered is dropped, and the gradient is followed.
    """
    points, finished = np.zeros(shape), np.zeros(shape[0], dtype=bool)
    go = _Lockstep(np.arange(shape[0]), np.zeros(shape), *function(points, np.arange(shape[0])))
    for passes in range(1, max(1, most) + 1):
        lost = (go.cuts > _MOST_LAST_CUTS) & ~go.remembers
        ended = go.good | lost | (go.idle > _PASS_PATIENCE) | (passes >= most)
        points[go.which[ended]], finished[go.which[go.good]] = go.at[ended], True
        if ended.all():
            break
        if ended.any():
            go.keep(~ended)
        go.step(function, noise)
    return Minima(points, finished, passes)


class _Lockstep:
    """The functions whose descent goes on."""

    def __init__(
        self, which: Numbers, at: Doubles, value: Doubles, gradient: Doubles, good: Bits
    ) -> None:
        self.which, self.at, self.value, self.gradient, self.good = which, at, value, gradient, good
        self.best, self.direction, self.reach = value.copy(), -gradient, _lengths(gradient)
        self.length = np.ones(len(which))
        self.cuts, self.idle = np.zeros((2, len(which)), np.intp)
        self.pairs: list[Pair] = []

    @property
    def remembers(self) -> Bits:
        """Which functions have a pair."""
        some = [pair[3].ravel() != 0 for pair in self.pairs]
        return np.any(some, axis=0) if some else np.zeros(len(self.which), bool)

    def keep(self, staying: Bits) -> None:
        """Let the other functions leave."""
        self.pairs = _pairs_of(self.pairs, staying)
        for name, values in vars(self).items():
            if name != "pairs":
                setattr(self, name, values[staying])

    def step(
        self, function: Callable[[Doubles, Numbers], tuple[Doubles, Doubles, Bits]], noise: float
    ) -> None:
        """Try each function's own step, by one evaluation of all."""
        slope = _flat(inner(self.gradient, self.direction))
        # The negation takes in what is no number.
        uphill = ~(slope < 0) | ((self.cuts > _MOST_CUTS) & self.remembers)
        if uphill.any():
            for pair in self.pairs:
                pair[3][uphill] = 0
            self.direction[uphill] = -self.gradient[uphill]
            slope[uphill] = -(_lengths(self.gradient[uphill]) ** 2)
            self.cuts[uphill], self.length[uphill] = 0, 1.0
        longest = _STRETCH * self.reach / np.maximum(_lengths(self.direction), 1e-300)
        length = np.minimum(self.length, longest)
        move = length[:, None, None] * self.direction
        with np.errstate(over="ignore", invalid="ignore"):
            value, gradient, good = function(self.at + move, self.which)
            end_slope = _flat(inner(gradient, self.direction))
        near = value <= self.value + noise * np.abs(self.value)
        taken = (value <= self.value + _DECREASE * length * slope) | good
        taken |= near & (end_slope <= -_PASS_SLOPE * slope)
        taken &= np.isfinite(value) & np.isfinite(end_slope)
        self.good = taken & good
        before = self.gradient
        self.gradient = np.where(taken[:, None, None], gradient, before)
        if taken.any():
            # What is not taken, or may be rounding, is no pair.
            turn = self.gradient - before
            least = _LEAST_COSINE * _lengths(move) * _lengths(turn)
            pair = _pair(move, turn, turn, least[:, None, None])
            self.pairs = [*self.pairs[1 - _PASS_PAIRS :], pair]
        self.at[taken] += move[taken]
        self.value = np.where(taken, value, self.value)
        self.reach = np.where(taken, _lengths(move), self.reach)
        self.idle = np.where(
            self.value < self.best - noise * np.abs(self.best), 0, self.idle + taken
        )
        self.best = np.where(self.idle == 0, self.value, self.best)
        # The step to where a straight slope would vanish.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            shorter = np.where(end_slope > 0, slope / (slope - end_slope), 0.5)
        shorter = np.clip(np.nan_to_num(shorter, nan=_SHORTEST), _SHORTEST, 0.5)
        self.length = np.where(taken, 1.0, shorter * length)
        self.cuts = np.where(taken, 0, self.cuts + 1)
        if taken.any():
            turned = lbfgs_direction(self.gradient, self.gradient, self.pairs)
            self.direction = np.where(taken[:, None, None], turned, self.direction)


def _lengths(points: Floats) -> Doubles:
    return np.sqrt(_flat(inner(points, points)))
