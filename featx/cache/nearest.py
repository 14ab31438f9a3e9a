"""The nearest rows of features, found exactly and within a bound of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from featx.exceptions import FeaturesError, UnknownNameError
from featx.threads import usable_processors

Doubles: TypeAlias = NDArray[np.float64]
Floats: TypeAlias = NDArray[np.floating[Any]]
Numbers: TypeAlias = NDArray[np.intp]
Batch: TypeAlias = tuple[Floats, Numbers]
"""Features of shape (b, d), and the numbers of their rows."""

_QUERIES = 512  # that meet a block of rows at once: a product of two matrices at full speed
_TILE = 1 << 18  # numbers of a block that stay in a processor's cache for their product and squares
_MOST_ROWS = 8192
_CELL_BYTES = 24  # of a query and a row: an estimate, whether it counts, and its place while sorted
_TINY = 1e-30  # below this square of its length a row has no direction


class Nearest(NamedTuple):
    """The nearest rows of each query, nearest first.

    Parameters
    ----------
    rows : ndarray of shape (q, k)
        Row numbers, -1 where there are fewer rows.
    values : ndarray of shape (q, k), float64
        Cosine similarities from -1 to 1, or Euclidean distances; NaN where there are fewer rows.
    """

    rows: Numbers
    values: Doubles


@dataclass(frozen=True, slots=True)
class _Metric:
    """How near rows are, as a score: more is nearer, and `best` is the nearest that there is.

    Products in float32 of scaled queries and rows, adjusted by the squares of the rows, are
    compared with a limit that stands for a score. Whatever the rounding, a row below the limit
    does not reach that score.
    """

    scale: Callable[[Floats, Floats], Floats]  # queries (q, d) by their squares (q,)
    adjust: Callable[[Floats, Floats, float], None]  # products (q, n) by squares (n,), in place
    limit: Callable[[Doubles, Floats, float], Doubles]  # of scores (q,) and squares (q,)
    score: Callable[[Doubles, Doubles], Doubles]  # of pairs of vectors, both of shape (m, d)
    value: Callable[[Doubles], Doubles]  # what a user reads
    best: float


def _inverse_lengths(squares: Floats) -> Floats:
    inverse: Floats = np.where(squares < _TINY, 0, 1 / np.sqrt(np.maximum(squares, _TINY)))
    return inverse.astype(np.float32)


def _multiply_by_inverse(products: Floats, squares: Floats, _: float) -> None:
    products *= _inverse_lengths(squares)


def _subtract(products: Floats, squares: Floats, rounding: float) -> None:
    products -= np.float32(1 - 4 * rounding) * squares


def _cosine(first: Doubles, second: Doubles) -> Doubles:
    left, right = _sums(first * first), _sums(second * second)
    cosine = _sums(first * second) / np.sqrt(np.maximum(left, _TINY) * np.maximum(right, _TINY))
    return np.where(np.minimum(left, right) < _TINY, 0.0, np.clip(cosine, -1.0, 1.0))


def _euclidean(first: Doubles, second: Doubles) -> Doubles:
    difference = first - second
    return -_sums(difference * difference)


def _sums(values: Doubles) -> Doubles:
    """Return the sum of each row; the same for a row whatever the others are."""
    sums: Doubles = values.sum(axis=1)
    return sums


METRICS = MappingProxyType(
    {
        "cosine": _Metric(
            scale=lambda queries, squares: queries * _inverse_lengths(squares)[:, None],
            adjust=_multiply_by_inverse,
            limit=lambda score, squares, rounding: score - 2 * rounding,
            score=_cosine,
            value=lambda score: score,
            best=1.0,
        ),
        "euclidean": _Metric(
            scale=lambda queries, squares: 2 * queries,
            adjust=_subtract,
            # The rounding is one of (|x| + |y|)^2, which is at most 2 (|x|^2 + |y|^2).
            limit=lambda score, squares, rounding: score + (1 - 4 * rounding) * squares,
            score=_euclidean,
            value=lambda score: np.sqrt(-score),
            best=0.0,
        ),
    }
)
"""Every way of measuring how near rows are, by its name."""


def nearest(
    queries: Floats,
    rows: Floats | Iterable[Batch],
    k: int,
    *,
    metric: str = "cosine",
    exclude: NDArray[np.integer[Any]] | None = None,
    max_ram_bytes: int = 256 << 20,
) -> Nearest:
    """Return the k nearest rows of each query, found exactly.

    The answer is the same bit for bit whatever the blocks, the threads and the other queries.
    Of equally near rows the smaller number comes first.

    Parameters
    ----------
    queries : ndarray of shape (q, d)
        Features to look for, in memory or mapped from a file.
    rows : ndarray of shape (n, d), or iterable of (ndarray of shape (b, d), ndarray of shape (b,))
        Features to look among, in memory or mapped; or batches of them with the numbers of their
        rows, in any order, each row once. They are read once.
    k : int
        How many rows a query.
    metric : {"cosine", "euclidean"}, default "cosine"
        Cosine similarity, or Euclidean distance. A row of zeros has the similarity 0 to all.
    exclude : ndarray of int, shape (q,) or (q, m), optional
        Row numbers that are not among the nearest of each query, such as its own; -1 for none.
    max_ram_bytes : int, default 256 MiB
        Bound on what is held beside the queries, the result and one batch of rows.

    Returns
    -------
    Nearest
        Row numbers and similarities or distances, both of shape (q, k).

    Raises
    ------
    FeaturesError
        If shapes do not fit, k is not positive, or a query has NaN or infinity.
    UnknownNameError
        If the metric is not known.

    Notes
    -----
    Products in float32 bound what every row may score; those that may be among the nearest are
    scored again in float64. The bound on rounding errors is the probabilistic one of Higham and
    Mary, "A new approach to probabilistic rounding error analysis", 2019, with lambda = 8.
    scikit-learn's ``NearestNeighbors`` copies all rows for cosine, where this maps them, and its
    ties depend on the blocks.

    Examples
    --------
    >>> X = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], np.float32)
    >>> nearest(X[:1], X, 2, exclude=np.array([0])).rows.tolist()
    [[2, 1]]
    """
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    if k < 1:
        raise FeaturesError(f"expected a positive number of neighbours, received {k}")
    if queries.ndim != 2 or not all(np.isfinite(queries[part]).all() for part in _slices(queries)):
        raise FeaturesError(
            f"expected finite queries of shape (q, d), received shape {queries.shape}"
            + (" with NaN or infinity" if queries.ndim == 2 else "")
        )
    search = _Search(queries, k, METRICS[metric], exclude, max_ram_bytes // usable_processors())
    batches = [(rows, np.arange(len(rows)))] if isinstance(rows, np.ndarray) else rows
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(usable_processors()) as pool:
        waiting: set[Future[None]] = set()
        for block in search.blocks(batches):
            if len(waiting) > usable_processors():
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            waiting.add(pool.submit(search.meet, *block))
        for future in waiting:
            future.result()
    return search.result()


def _slices(values: Floats, rows: int = _QUERIES) -> Iterator[slice]:
    return (slice(start, start + rows) for start in range(0, len(values), rows))


class _Search:
    """The nearest rows so far of all queries."""

    def __init__(
        self,
        queries: Floats,
        k: int,
        metric: _Metric,
        exclude: NDArray[np.integer[Any]] | None,
        ram_bytes: int,
    ) -> None:
        self.queries, self.k, self.metric = queries, k, metric
        count, self.width = queries.shape
        self.exclude = None if exclude is None else np.reshape(exclude, (count, -1))
        self.rows = np.full((count, k), -1, np.intp)
        self.scores = np.full((count, k), -np.inf)
        self.rounding = 8 * 2**-24 * (self.width**0.5 + 1)
        most = ram_bytes // (4 * self.width + _CELL_BYTES * min(count, _QUERIES) + 1)
        self.block_rows = int(np.clip(most, 1, _MOST_ROWS))
        self.pairs = max(1, min(ram_bytes, 16 << 20) // (32 * self.width + 1))
        self._seen = 0
        self._lock = threading.Lock()

    def blocks(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Cut batches into blocks that fit the memory."""
        for X, numbers in batches:
            if X.ndim != 2 or X.shape[1] != self.width or len(numbers) != len(X):
                raise FeaturesError(
                    f"expected rows of {self.width} features, as the queries have, received shape "
                    f"{X.shape} with {len(numbers)} row numbers"
                )
            self._seen += len(X)
            for part in _slices(X, self.block_rows):
                yield X[part], numbers[part]

    def meet(self, X: Floats, numbers: Numbers) -> None:
        """Compare a block of rows with all queries."""
        with np.errstate(over="ignore", invalid="ignore"):  # such rows are scored in float64
            self._meet(np.ascontiguousarray(X, np.float32), numbers)

    def _meet(self, X: NDArray[np.float32], numbers: Numbers) -> None:
        squares: Floats = np.empty(0, np.float32)
        for part in _slices(self.queries):
            queries = np.ascontiguousarray(self.queries[part], np.float32)
            lengths = _squares(queries)
            scaled = self.metric.scale(queries, lengths)
            products: Floats = np.empty((len(queries), len(X)), np.float32)
            if part.start:
                np.matmul(scaled, X.T, out=products)
            else:
                squares = _multiply_and_square(scaled, X, products)
            self.metric.adjust(products, squares, self.rounding)
            self._take(part.start, queries, lengths, products, X, numbers)

    def _take(
        self,
        start: int,
        queries: Floats,
        lengths: Floats,
        bounds: Floats,
        X: Floats,
        numbers: Numbers,
    ) -> None:
        """Score the rows of a block that may be among the nearest of some queries."""
        part = slice(start, start + len(queries))
        banned = self._banned(part, numbers)
        bounds[banned] = -np.inf
        likely = self._likely(part, lengths, bounds, numbers, banned)
        # Nothing is known at first, and where the nearest lie together: their best come first then.
        many = np.flatnonzero(np.count_nonzero(likely, axis=1) > 2 * self.k)
        if len(many):
            best = np.argpartition(bounds[many], -self.k, axis=1)[:, -self.k :]
            picked = np.zeros_like(likely)
            picked[many[:, None], best] = True
            picked &= likely
            self._merge(start, queries, X, numbers, picked)
            likely = self._likely(part, lengths, bounds, numbers, banned) & ~picked
        self._merge(start, queries, X, numbers, likely)

    def _banned(self, part: slice, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Return which queries and rows of a block must not come together."""
        if self.exclude is None:
            return np.empty(0, np.intp), np.empty(0, np.intp)
        exclude = self.exclude[part]
        order = np.argsort(numbers, kind="stable")
        at = np.minimum(np.searchsorted(numbers[order], exclude), len(numbers) - 1)
        query, column = np.nonzero(numbers[order[at]] == exclude)
        return query, order[at[query, column]]

    def _likely(
        self,
        part: slice,
        lengths: Floats,
        bounds: Floats,
        numbers: Numbers,
        banned: tuple[Numbers, Numbers],
    ) -> NDArray[np.bool_]:
        """Return which rows of a block may be among the nearest by what is known so far."""
        least, last = self.scores[part, -1], self.rows[part, -1]
        limit = self.metric.limit(least, lengths, self.rounding).astype(np.float32)
        likely: NDArray[np.bool_] = ~(bounds < limit[:, None])  # NaN: perhaps
        likely[banned] = False
        settled = np.flatnonzero(least == self.metric.best)
        likely[settled] &= numbers < last[settled, None]
        return likely

    def _merge(
        self, start: int, queries: Floats, X: Floats, numbers: Numbers, chosen: NDArray[np.bool_]
    ) -> None:
        """Score chosen pairs of queries and rows, and keep the nearest."""
        query, row = np.nonzero(chosen)
        for first in range(0, len(query), self.pairs):
            pairs = slice(first, first + self.pairs)
            scores = self.metric.score(
                queries[query[pairs]].astype(np.float64), X[row[pairs]].astype(np.float64)
            )
            self._keep(query[pairs] + start, numbers[row[pairs]], scores)

    def _keep(self, query: Numbers, row: Numbers, scores: Doubles) -> None:
        changed = np.unique(query)
        queries = np.concatenate([np.repeat(changed, self.k), query])
        with self._lock:
            rows = np.concatenate([self.rows[changed].ravel(), row])
            both = np.concatenate([self.scores[changed].ravel(), scores])
            order = np.lexsort((rows, -both, queries))
            firsts = np.searchsorted(queries[order], changed)
            best = order[firsts[:, None] + np.arange(self.k)]
            self.rows[changed], self.scores[changed] = rows[best], both[best]

    def result(self) -> Nearest:
        """Return the nearest rows, at most as many as there are."""
        rows, scores = self.rows[:, : self._seen], self.scores[:, : self._seen]
        missing = rows < 0
        return Nearest(rows, np.where(missing, np.nan, self.metric.value(scores)))


def _multiply_and_square(queries: Floats, X: Floats, products: Floats) -> Floats:
    """Fill in products (q, n) of queries and rows, and return the squares (n,) of rows' lengths."""
    squares = np.empty(len(X), np.float32)
    for part in _slices(X, max(1, _TILE // max(1, X.shape[1]))):  # read from memory once, for both
        products[:, part] = queries @ X[part].T
        squares[part] = _squares(X[part])
    return squares


def _squares(X: Floats) -> NDArray[np.float32]:
    """Return the squares of lengths, NaN where they are too large for float32."""
    squares: NDArray[np.float32] = np.einsum("ij,ij->i", X, X)
    squares[~np.isfinite(squares)] = np.nan
    return squares
