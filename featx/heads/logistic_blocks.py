"""Rows in blocks, in the basis of their curvature; the loss of logistic regression on them.

All that touches the features is done block by block, so that the element-wise work of a block is
done while it is in the processor's cache. Arrays may be NumPy's, PyTorch's or JAX's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Array: TypeAlias = Any
"""An array of any library that follows the array API."""

# Rows a block: the product wants many, the element-wise work that its arrays stay in the cache.
# Measured on 5,000 to 50,000 rows, with 10 to 600 columns of scores.
_LEAST_ROWS, _MOST_ROWS = 1024, 2560
_BLOCK_ENTRIES = 1 << 17
_MOST_DIRECTIONS = 4096
# A smaller probability would soon be subnormal, which slows arithmetic a hundredfold.
_LEAST_EXPONENT = -60.0


def namespace(X: Array) -> Any:
    """Return the array API namespace of an array: NumPy's, PyTorch's or JAX's."""
    from sklearn.externals.array_api_compat import array_namespace

    return array_namespace(X)


def has_double(X: Array) -> bool:
    """Return whether an array's device has double precision (JAX leaves it off)."""
    if isinstance(X, np.ndarray):
        return True
    return "float64" in namespace(X).__array_namespace_info__().dtypes(device=_device(X)["device"])


def host(array: Array) -> NDArray[np.floating]:
    """Return a small array of any device as NumPy's."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array)


def host_sum(arrays: list[Array]) -> NDArray[np.float64]:
    """Return the sum of small arrays of any device in double precision."""
    total: NDArray[np.float64] = np.sum([host(a) for a in arrays], axis=0, dtype=np.float64)
    return total


def inner(a: Array, b: Array) -> Array:
    """Return the inner products of each problem, of shape (p, 1, 1)."""
    p = a.shape[0]
    return a.reshape(p, 1, -1) @ b.reshape(p, -1, 1)


def one_hot(codes: NDArray[np.integer], classes: int) -> NDArray[np.bool_]:
    """Return whether each row (b,) is of each class, (classes, b); of two, the second alone."""
    first = int(classes == 2)
    same: NDArray[np.bool_] = codes == np.arange(first, classes)[:, None]
    return same


def log_odds(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores (p, k) whose probabilities are proportional to shares (p, classes)."""
    logs: NDArray[np.float64] = np.log(shares)
    logs -= logs[:, :1] if shares.shape[1] == 2 else logs.mean(axis=1, keepdims=True)
    return logs[:, 1:] if shares.shape[1] == 2 else logs


def probabilities(Z: Array, onehot: Array) -> tuple[Array, Array]:
    """Return probabilities (p, k, b) and losses (p, b) of linear scores; k is 1 for two classes."""
    xp = namespace(Z)
    # The losses of rows that are all but certain keep their digits: nothing large is added to them.
    if Z.shape[1] == 1:
        small = xp.exp(xp.clip(-xp.abs(Z), _LEAST_EXPONENT, None))
        P = xp.where(Z >= 0, xp.ones_like(Z), small) / (1.0 + small)
        losses = (xp.clip(Z, 0.0, None) - Z * onehot) + xp.log1p(small)
        return P, losses[:, 0, :]
    highest = xp.max(Z, axis=1, keepdims=True)
    P = xp.exp(xp.clip(Z - highest, _LEAST_EXPONENT, None))
    total = xp.sum(P, axis=1, keepdims=True)
    P /= total
    return P, (highest[:, 0, :] - xp.sum(Z * onehot, axis=1)) + xp.log(total)[:, 0, :]


def loss(Z: Array, onehot: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return probabilities and derivatives by scores (p, k, b), and the sums of losses (p,)."""
    P, losses = probabilities(Z, onehot)
    return P, (P - onehot) * weights[:, None, :], namespace(Z).sum(losses * weights, axis=1)


def spread(P: Array, weights: Array) -> Array:
    """Return the sums (p, k) of ``p (1 - p)`` over rows, which bound second derivatives."""
    return namespace(P).sum(P * (1.0 - P) * weights[:, None, :], axis=2)


@dataclass(frozen=True)
class Block:
    """Some consecutive rows.

    ``features`` are coordinates as columns, shape (r + 1, b), the last of them ones for the
    intercept; ``onehot`` labels, shape (k, b) with k of 1 for two classes; ``weights`` what each
    row counts in each problem's loss, shape (p, b), 0 where it is held out.
    """

    features: Array
    onehot: Array
    weights: Array

    def scores(self, W: Array) -> Array:
        """Return linear scores (p, k, b) of coefficients (p, k, r + 1)."""
        p, k, width = W.shape
        return (W.reshape(p * k, width) @ self.features).reshape(p, k, -1)

    def gradient(self, residual: Array) -> Array:
        """Return the gradient (p, k, r + 1) that derivatives by scores (p, k, b) make."""
        p, k, b = residual.shape
        return (residual.reshape(p * k, b) @ self.features.T).reshape(p, k, -1)


@dataclass(frozen=True)
class Basis:
    """Coordinates of features less their mean, in which their curvature is diagonal.

    ``mean`` of shape (d,) is taken off, which uncouples the intercept from the rest.
    ``coordinates`` are eigenvectors of the Gram matrix as columns, shape (d, r), or None where
    features stay as they are. ``curvature`` is the mean of the squared coordinates, shape
    (r + 1,), 1 for the intercept.
    """

    mean: Array
    coordinates: Array
    curvature: Array

    @cached_property
    def mean_coordinates(self) -> Array:
        """The mean, of shape (r,), in these coordinates."""
        return self.mean if self.coordinates is None else self.mean @ self.coordinates

    def turned(self, V: Array) -> Array:
        """Return coefficients or derivatives (..., d + 1) in these coordinates, (..., r + 1)."""
        return V if self.coordinates is None else _multiplied(V, self.coordinates)

    def features(self, V: Array) -> Array:
        """Return coefficients or derivatives (..., r + 1) by centred features, (..., d + 1)."""
        return V if self.coordinates is None else _multiplied(V, self.coordinates.T)

    def gradient(self, G: Array) -> Array:
        """Return derivatives by coefficients of the features as given."""
        return given_gradient(self.features(G), self.mean)

    def coefficients(self, W: Array) -> tuple[Array, Array]:
        """Return coefficients (..., d) and intercepts (...) on the features as given."""
        return given_coefficients(self.features(W), self.mean)


def given_gradient(G: Array, mean: Array) -> Array:
    """Return derivatives by coefficients of features from those of features less a mean."""
    last = G[..., -1:]
    return namespace(G).concat([G[..., :-1] + last * mean, last], axis=-1)


def given_coefficients(W: Array, mean: Array) -> tuple[Array, Array]:
    """Return coefficients and intercepts on features from those on features less a mean."""
    coef = W[..., :-1]
    return coef, W[..., -1] - coef @ mean


def _multiplied(V: Array, matrix: Array) -> Array:
    """Return all but the last entries of V through a matrix, in the precision of the matrix."""
    xp = namespace(V)
    # As one product: a stack of small ones is done one by one.
    flat = V[..., :-1].reshape(-1, V.shape[-1] - 1)
    flat = xp.astype(flat, matrix.dtype, copy=False) @ matrix
    flat = xp.astype(flat, V.dtype, copy=False)
    return xp.concat([flat.reshape(*V.shape[:-1], -1), V[..., -1:]], axis=-1)


def eigenvectors(gram: Array, threads: int | None = None) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors of a Gram matrix, which may be overwritten."""
    if not isinstance(gram, np.ndarray):
        values, vectors = namespace(gram).linalg.eigh(gram)
        return values, vectors
    # NumPy has no single-precision routine of its own: this is 3 times as fast at 1,280.
    import scipy.linalg
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads, user_api="blas"):
        values, vectors = scipy.linalg.eigh(
            gram, driver="evd", check_finite=False, overwrite_a=True
        )
    return values, vectors


def _device(X: Array) -> dict[str, Any]:
    from sklearn.externals.array_api_compat import device

    return {} if isinstance(X, np.ndarray) else {"device": device(X)}


class Blocks:
    """All rows in blocks, with the threads that work on them."""

    def __init__(self, basis: Basis, blocks: list[Block], workers: int) -> None:
        self.xp, self.basis = namespace(blocks[0].features), basis
        self.blocks, self.workers = blocks, workers
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def make(
        cls,
        X: Array,
        codes: NDArray[np.intp],
        classes: int,
        weights: NDArray[np.float64],
        *,
        dtype: str,
        beside: Blocks | None = None,
    ) -> Blocks:
        """Centre the rows (n, d), with weights (p, n), cut them into blocks and find the basis."""
        xp = namespace(X)
        kind, where = getattr(xp, dtype), _device(X)
        n, d = X.shape
        k = 1 if classes == 2 else classes
        mean = xp.mean(xp.astype(X, kind), axis=0)
        coordinates = upper = None
        if n <= min(d, _MOST_DIRECTIONS):
            coordinates, upper = xp.linalg.qr((xp.astype(X, kind) - mean).T)
        numpy = isinstance(X, np.ndarray)
        workers = (beside.workers if beside else _threads()) if numpy else 1
        size = _block_size(n, k * len(weights), workers) if numpy else n
        blocks = []
        for start in range(0, n, size):
            part = slice(start, min(n, start + size))
            columns = (xp.astype(X[part, :], kind) - mean).T if upper is None else upper[:, part]
            features = xp.concat([columns, xp.ones_like(columns[:1, :])], axis=0)
            onehot = one_hot(codes[part], classes).astype(dtype)
            blocks.append(
                Block(
                    np.ascontiguousarray(features) if numpy else features,
                    xp.asarray(onehot, dtype=kind, **where),
                    xp.asarray(weights[:, part].astype(dtype), dtype=kind, **where),
                )
            )
        rows = cls(Basis(mean, coordinates, mean), blocks, workers)
        rows._pool = beside._pool if beside else None
        with rows.at_work():
            rotated = rows._rotated()
        rotated._pool = rows._pool
        return rotated

    def _rotated(self) -> Blocks:
        """Return the rows in the eigenbasis of their Gram matrix."""
        xp, old = self.xp, self.basis
        n = sum(block.features.shape[1] for block in self.blocks)
        if self.shape[2] - 1 > _MOST_DIRECTIONS:
            squares = self.map(lambda block: xp.sum(block.features * block.features, axis=1))
            curvature = sum(squares[1:], squares[0]) / n
            return self.changed(replace(old, curvature=curvature), self.blocks)
        products = self.map(lambda block: block.features[:-1, :] @ block.features[:-1, :].T)
        values, vectors = eigenvectors(sum(products[1:], products[0]), self.workers)

        def rotated(block: Block) -> Block:
            columns = vectors.T @ block.features[:-1, :]
            return replace(block, features=xp.concat([columns, block.features[-1:, :]], axis=0))

        basis = Basis(
            old.mean,
            vectors if old.coordinates is None else old.coordinates @ vectors,
            xp.concat([xp.clip(values, 0.0, None) / n, xp.ones_like(values[:1])]),
        )
        return self.changed(basis, self.map(rotated))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Problems, score columns and coordinates (the intercept among them)."""
        block = self.blocks[0]
        return block.weights.shape[0], block.onehot.shape[0], block.features.shape[0]

    def array(self, values: NDArray[np.floating]) -> Array:
        """Return a NumPy array in the features' type and on their device."""
        like = self.blocks[0].features
        return self.xp.asarray(np.asarray(values), dtype=like.dtype, **_device(like))

    def encoded(self, coef: NDArray[np.float64], intercept: NDArray[np.float64]) -> Array:
        """Return coefficients on the features as given in the basis of the rows."""
        last = intercept + coef @ host(self.basis.mean)
        return self.basis.turned(self.array(np.concatenate([coef, last[..., None]], axis=-1)))

    def decoded(self, W: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return coefficients and intercepts on the features as given."""
        coef, intercept = self.basis.coefficients(W)
        return host(coef).astype(np.float64), host(intercept).astype(np.float64)

    def scores(self, W: Array) -> list[Array]:
        """Return the linear scores of each block's rows."""
        return self.map(lambda block: block.scores(W))

    def take(self, problems: NDArray[np.intp]) -> Blocks:
        """Return the same rows with the weights of some problems only."""
        return self._weighted([take(block.weights, problems) for block in self.blocks])

    def reweighted(self, weights: NDArray[np.float64]) -> Blocks:
        """Return the same rows with the weights (p, n) of other problems."""
        ends = np.cumsum([block.features.shape[1] for block in self.blocks])[:-1]
        return self._weighted([self.array(part) for part in np.split(weights, ends, axis=1)])

    def _weighted(self, weights: list[Array]) -> Blocks:
        pairs = zip(self.blocks, weights, strict=True)
        return self.changed(self.basis, [replace(block, weights=part) for block, part in pairs])

    def changed(self, basis: Basis, blocks: list[Block]) -> Blocks:
        """Return other rows that the same threads work on."""
        other = Blocks(basis, blocks, self.workers)
        other._pool = self._pool
        return other

    def map(self, function: Callable[..., T], *per_block: list[Array]) -> list[T]:
        """Return ``function(block, ...)`` of every block, from threads."""
        if self._pool is None:
            return [function(*each) for each in zip(self.blocks, *per_block, strict=True)]
        return list(self._pool.map(function, self.blocks, *per_block))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold one thread a core, each with a BLAS of one thread."""
        if self.workers == 1 or self._pool is not None:
            yield
            return
        from threadpoolctl import threadpool_limits

        with ExitStack() as stack:
            stack.enter_context(threadpool_limits(1, user_api="blas"))
            self._pool = stack.enter_context(ThreadPoolExecutor(self.workers))
            stack.callback(setattr, self, "_pool", None)
            yield


def _block_size(n: int, columns: int, workers: int) -> int:
    """Return rows a block: few enough for the cache, enough for the product, an even share."""
    size = max(_LEAST_ROWS, min(_MOST_ROWS, _BLOCK_ENTRIES // columns))
    rounds = max(1, round(n / (size * workers)))
    return -(-n // (rounds * workers))


def take(array: Array, problems: NDArray[np.intp]) -> Array:
    """Return some entries along the first axis."""
    if isinstance(array, np.ndarray):
        return array[problems]
    xp = namespace(array)
    return xp.take(array, xp.asarray(problems, **_device(array)), axis=0)


def _threads() -> int:
    """Return how many threads BLAS may use, which is what a parallel caller has limited."""
    from threadpoolctl import threadpool_info

    return max((p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"), default=1)
