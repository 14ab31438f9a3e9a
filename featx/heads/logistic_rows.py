"""Rows in blocks: every product with the features, and the softmax that goes with it.

All that touches the features is here, block by block, so that the element-wise work of a block is
done while it is in the processor's cache, and so that blocks might come from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

# Rows a block: the product wants many, the element-wise work that its arrays stay in the cache.
# Measured on 5,000 to 50,000 rows, with 10 to 600 columns of scores.
_LEAST_ROWS, _MOST_ROWS = 1024, 2560
_BLOCK_ENTRIES = 1 << 17
_MOST_DIRECTIONS = 4096
# A smaller probability would soon be subnormal, which slows arithmetic a hundredfold.
_LEAST_EXPONENT = -60.0


def namespace(X: Any) -> Any:
    """Return the array API namespace of an array: NumPy's, PyTorch's or JAX's."""
    from sklearn.externals.array_api_compat import array_namespace

    return array_namespace(X)


def has_double(X: Any) -> bool:
    """Tell whether double precision is to be had where an array is (JAX leaves it off)."""
    if isinstance(X, np.ndarray):
        return True
    return "float64" in namespace(X).__array_namespace_info__().dtypes(device=_device(X)["device"])


def host(array: Any) -> NDArray[Any]:
    """Bring a small array to NumPy, from whichever device it is on."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array)


@dataclass(frozen=True)
class RowBlock:
    """Some consecutive rows.

    Parameters
    ----------
    features : array of shape (r + 1, b)
        Coordinates of the rows as columns; the last row is ones, for the intercept.
    onehot : array of shape (k, b)
        Labels; ``k`` is 1 for two classes.
    weights : array of shape (p, b)
        Weight of each row in each problem's loss; 0 where it is held out.
    """

    features: Any
    onehot: Any
    weights: Any

    def scores(self, W: Any) -> Any:
        """Return linear scores (p, k, b) of coefficients (p, k, r + 1)."""
        p, k, width = W.shape
        return (W.reshape(p * k, width) @ self.features).reshape(p, k, -1)


@dataclass(frozen=True)
class Basis:
    """Coordinates of the features, in which their curvature is diagonal.

    Parameters
    ----------
    mean : array of shape (d,)
        Taken off the features, which uncouples the intercept from the rest.
    coordinates : array of shape (d, r) or None
        Eigenvectors of the Gram matrix as columns; rows are expressed in them. None: rows are left
        as they are.
    curvature : array of shape (r + 1,)
        Mean of the squared coordinates; 1 for the intercept.
    """

    mean: Any
    coordinates: Any
    curvature: Any

    @cached_property
    def mean_coordinates(self) -> Any:
        """The mean, of shape (r,), in these coordinates."""
        return self.mean if self.coordinates is None else self.mean @ self.coordinates

    def gradient(self, xp: Any, g: Any) -> Any:
        """Return a gradient (p, k, r + 1) with respect to the features as they were given."""
        inner, last = g[..., :-1], g[..., -1:]
        if self.coordinates is not None:
            # As one product: a stack of small ones is done one by one.
            flat = inner.reshape(-1, inner.shape[-1]) @ self.coordinates.T
            inner = flat.reshape(*inner.shape[:-1], -1)
        return xp.concat([inner + last * self.mean, last], axis=-1)

    def coefficients(self, xp: Any, W: Any) -> tuple[Any, Any]:
        """Return coefficients (p, k, d) and intercepts (p, k) on the features as given."""
        inner = W[..., :-1]
        if self.coordinates is not None:
            inner = inner @ self.coordinates.T
        return inner, W[..., -1] - inner @ self.mean


def _rotated(rows: Rows) -> Rows:
    """Rotate the rows into the eigenbasis of their Gram matrix."""
    xp, basis = rows.xp, rows.basis
    width = rows.shape[2]
    n = sum(block.features.shape[1] for block in rows.blocks)
    if width - 1 > _MOST_DIRECTIONS:
        squares = rows.map(lambda block: xp.sum(block.features * block.features, axis=1))
        curvature = sum(squares[1:], squares[0]) / n
        return rows.changed(replace(basis, curvature=curvature), rows.blocks)
    products = rows.map(lambda block: block.features[:-1, :] @ block.features[:-1, :].T)
    values, vectors = _eigh(xp, sum(products[1:], products[0]), rows.workers)
    blocks = rows.map(
        lambda block: replace(
            block,
            features=xp.concat(
                [vectors.T @ block.features[:-1, :], block.features[-1:, :]], axis=0
            ),
        )
    )
    old = basis.coordinates
    return rows.changed(
        Basis(
            basis.mean,
            vectors if old is None else old @ vectors,
            xp.concat([xp.clip(values, 0.0, None) / n, xp.ones_like(values[:1])]),
        ),
        blocks,
    )


def _eigh(xp: Any, gram: Any, workers: int) -> tuple[Any, Any]:
    if not isinstance(gram, np.ndarray):
        values, vectors = xp.linalg.eigh(gram)
        return values, vectors
    # NumPy has no single-precision routine of its own: this is 3 times as fast at 1,280.
    import scipy.linalg
    from threadpoolctl import threadpool_limits

    with threadpool_limits(workers, user_api="blas"):
        values, vectors = scipy.linalg.eigh(
            gram, driver="evd", check_finite=False, overwrite_a=True
        )
    return values, vectors


def _device(X: Any) -> dict[str, Any]:
    from sklearn.externals.array_api_compat import device

    return {} if isinstance(X, np.ndarray) else {"device": device(X)}


class Rows:
    """All rows in blocks, with the threads that work on them."""

    def __init__(self, xp: Any, basis: Basis, blocks: list[RowBlock], workers: int) -> None:
        self.xp, self.basis, self.blocks, self.workers = xp, basis, blocks, workers
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def make(
        cls,
        X: Any,
        codes: NDArray[np.intp],
        classes: int,
        weights: NDArray[Any],
        *,
        dtype: str,
        beside: Rows | None = None,
    ) -> Rows:
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
        labels = np.arange(1, 2) if k == 1 else np.arange(k)
        blocks = []
        for start in range(0, n, size):
            part = slice(start, min(n, start + size))
            inner = (xp.astype(X[part, :], kind) - mean).T if upper is None else upper[:, part]
            features = xp.concat([inner, xp.ones_like(inner[:1, :])], axis=0)
            onehot = (codes[part] == labels[:, None]).astype(dtype)
            blocks.append(
                RowBlock(
                    np.ascontiguousarray(features) if numpy else features,
                    xp.asarray(onehot, dtype=kind, **where),
                    xp.asarray(weights[:, part].astype(dtype), dtype=kind, **where),
                )
            )
        rows = cls(xp, Basis(mean, coordinates, mean), blocks, workers)
        rows._pool = beside._pool if beside else None
        with rows.at_work():
            rotated = _rotated(rows)
        rotated._pool = rows._pool
        return rotated

    @property
    def shape(self) -> tuple[int, int, int]:
        """Problems, score columns and coordinates (the intercept among them)."""
        block = self.blocks[0]
        return block.weights.shape[0], block.onehot.shape[0], block.features.shape[0]

    def array(self, values: Any) -> Any:
        """Bring a NumPy array to the features' type and device."""
        like = self.blocks[0].features
        return self.xp.asarray(np.asarray(values), dtype=like.dtype, **_device(like))

    def take(self, problems: NDArray[np.intp]) -> Rows:
        """Return the same rows with the weights of some problems only."""
        return self.changed(
            self.basis,
            [replace(b, weights=take(self.xp, b.weights, problems)) for b in self.blocks],
        )

    def reweighted(self, weights: NDArray[Any]) -> Rows:
        """Return the same rows with the weights (p, n) of other problems."""
        ends = np.cumsum([block.features.shape[1] for block in self.blocks])[:-1]
        return self.changed(
            self.basis,
            [
                replace(block, weights=self.array(part))
                for block, part in zip(self.blocks, np.split(weights, ends, axis=1), strict=True)
            ],
        )

    def changed(self, basis: Basis, blocks: list[RowBlock]) -> Rows:
        """Return other rows that the same threads work on."""
        other = Rows(self.xp, basis, blocks, self.workers)
        other._pool = self._pool
        return other

    def map(self, function: Callable[..., T], *per_block: list[Any]) -> list[T]:
        """Call ``function(block, ...)`` for every block, in threads."""
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

    def probabilities(self, Z: Any) -> tuple[Any, Any]:
        """Return probabilities (p, k, b) and the logarithm of their denominators (p, b)."""
        xp = self.xp
        if Z.shape[1] == 1:
            small = xp.exp(xp.clip(-xp.abs(Z), _LEAST_EXPONENT, None))
            above = xp.clip(Z, 0.0, None)
            P = xp.where(Z >= 0, xp.ones_like(Z), small) / (1.0 + small)
            return P, (above + xp.log1p(small))[:, 0, :]
        highest = xp.max(Z, axis=1, keepdims=True)
        P = xp.exp(xp.clip(Z - highest, _LEAST_EXPONENT, None))
        total = xp.sum(P, axis=1, keepdims=True)
        P /= total
        return P, (xp.log(total) + highest)[:, 0, :]


def _block_size(n: int, columns: int, workers: int) -> int:
    """Rows a block: few enough for the cache, enough for the product, and an even share."""
    size = max(_LEAST_ROWS, min(_MOST_ROWS, _BLOCK_ENTRIES // columns))
    rounds = max(1, round(n / (size * workers)))
    return -(-n // (rounds * workers))


def take(xp: Any, array: Any, problems: NDArray[np.intp]) -> Any:
    """Return some entries along the first axis."""
    if isinstance(array, np.ndarray):
        return array[problems]
    return xp.take(array, xp.asarray(problems, **_device(array)), axis=0)


def _threads() -> int:
    """As many threads as BLAS may use, which is what a parallel caller has limited."""
    from threadpoolctl import threadpool_info

    return max((p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"), default=1)
