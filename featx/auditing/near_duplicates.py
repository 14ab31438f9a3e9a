"""Nearly equal images: pairs that are near in their features, compared pixel by pixel.

Features alone do not tell a crop of an image from another image of the same thing. So they only
name pairs, and small grey pictures of these decide: one has to be a window of the other, perhaps
mirrored, in its details too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.cache.nearest import nearest
from featx.models.training import BlockName

Numbers: TypeAlias = NDArray[np.intp]
Floats: TypeAlias = NDArray[np.floating[Any]]
Doubles: TypeAlias = NDArray[np.float64]
Greys: TypeAlias = NDArray[np.uint8]
"""Pictures of shape (m, side, side)."""

SIDE = 64
"""Pixels of a side of the pictures that are compared."""

EXACT_ROWS = 40_000
"""Rows up to which all are compared with all."""

NEIGHBOURS, _FEW = 4, 3
_LEAST_COSINE = 0.6
# Windows that a crop may be: sides relative to the whole, each at all places about 1/16 apart.
_SCALES = (1.0, 0.93, 0.86, 0.8, 0.74, 0.68, 0.62)
_COARSE, _FINE = 12, 32
_HALVED = SIDE // 2
_LEAST_COARSE = 0.7
_STEPS = 10
_LEAST_PLAIN, _LEAST_DETAIL = 0.95, 0.9
_LEAST_WINDOW, _LEAST_AREA = 0.45, 0.5
_LEAST_LOOK = 0.95
_FLAT = 3.0  # a standard deviation of grey below which a picture has nothing to compare
_PAIRS_AT_ONCE = 256


# Which pairs are near


class Near(NamedTuple):
    """Rows that are near each other.

    Parameters
    ----------
    pairs : ndarray of shape (p, 2)
        Rows of the features, the smaller first.
    cosine : ndarray of shape (p,)
        Similarity of their features.
    nearness : ndarray of shape (n,)
        Mean similarity of each row of the features to its three nearest; NaN where not looked for.
    """

    pairs: Numbers
    cosine: Doubles
    nearness: Doubles


def near_pairs(
    features: Features,
    block: BlockName,
    rows: Numbers,
    *,
    exact_rows: int = EXACT_ROWS,
    max_ram_bytes: int = 256 << 20,
    seed: int = 0,
) -> Near:
    """Return pairs of rows each of which is among the nearest of the other, or has it so.

    Up to `exact_rows` rows all pairs are looked at. More are put into clusters, and looked at
    within the two clusters that are nearest to each.
    """
    nearness = np.full(len(features), np.nan)
    if len(rows) < 2:
        return Near(np.empty((0, 2), np.intp), np.empty(0), nearness)
    if len(rows) <= exact_rows:
        X = features.take(rows, **block)
        numbers = np.arange(len(rows))
        result = nearest(
            X, X, min(NEIGHBOURS, len(rows) - 1), exclude=numbers, max_ram_bytes=max_ram_bytes
        )
        first = np.repeat(numbers, result.rows.shape[1])
        second, cosine = result.rows.ravel(), result.values.ravel()
        nearness[rows] = result.values[:, :_FEW].mean(axis=1)
    else:
        first, second, cosine, nearness[rows] = _pairs_in_clusters(features, block, rows, seed)
        sure = np.flatnonzero(cosine > _SURE)  # such pairs may be named by their features alone
        cosine[sure] = _cosines(features, block, rows[first[sure]], rows[second[sure]])
    fits = (second >= 0) & (cosine >= _LEAST_COSINE)
    both = np.stack([rows[first[fits]], rows[second[fits]]], axis=1)
    both.sort(axis=1)
    pairs, at = np.unique(both, axis=0, return_index=True)
    return Near(pairs, cosine[fits][at], nearness)


_SAMPLE, _DIMENSIONS, _BATCH = 20_000, 64, 8192
_LEAST_PROJECTED, _SURE = 0.85, 0.97
_CELLS = 1 << 24


def _pairs_in_clusters(
    features: Features, block: BlockName, rows: Numbers, seed: int
) -> tuple[Numbers, Numbers, Doubles, Doubles]:
    """Return pairs of numbers of rows, their cosine in a projection, and how near all rows are.

    Notes
    -----
    An inverted file (Jégou et al., "Product quantization for nearest neighbor search", 2011) over
    the principal components of a sample, each row in the two lists that are nearest.
    """
    from sklearn.cluster import MiniBatchKMeans

    generator = np.random.default_rng(seed)
    sample = np.sort(generator.choice(len(rows), min(_SAMPLE, len(rows)), replace=False))
    X = features.take(rows[sample], **block).astype(np.float32)
    mean = X.mean(axis=0)
    X -= mean
    _, vectors = np.linalg.eigh(X.T @ X)
    axes = vectors[:, -min(_DIMENSIONS, X.shape[1]) :].astype(np.float32)
    count = max(2, round(np.sqrt(len(rows))))
    known = _directions((X @ axes)[: 10 * count])
    del X
    clusters = MiniBatchKMeans(min(count, len(known)), random_state=seed, n_init=1, max_iter=20)
    centres = _directions(clusters.fit(known).cluster_centers_.astype(np.float32))
    projected = np.empty((len(rows), axes.shape[1]), np.float16)
    lists = np.empty((len(rows), min(2, len(centres))), np.int32)
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        Z = _directions((features.take(rows[part], **block).astype(np.float32) - mean) @ axes)
        lists[part] = np.argpartition(-(Z @ centres.T), lists.shape[1] - 1)[:, : lists.shape[1]]
        projected[part] = Z
    order = np.argsort(lists.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(lists.ravel(), minlength=len(centres)))
    pairs, cosines, nearness = [], [], np.full(len(rows), -1.0)
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        members = order[start:end] // lists.shape[1]
        for numbers, near, values in _nearest_among(projected[members].astype(np.float32)):
            queries = members[numbers]
            nearness[queries] = np.maximum(nearness[queries], values.mean(axis=1))
            first, column = np.nonzero(values > _LEAST_PROJECTED)
            left, right = queries[first], members[near[first, column]]
            pairs.append(np.minimum(left, right) * len(rows) + np.maximum(left, right))
            cosines.append(values[first, column])
    both, at = np.unique(np.concatenate([np.empty(0, np.intp), *pairs]), return_index=True)
    cosine = np.concatenate([np.empty(0, np.float32), *cosines])[at].astype(np.float64)
    return both // len(rows), both % len(rows), cosine, nearness


def _nearest_among(Z: Floats) -> Iterator[tuple[Numbers, Numbers, Floats]]:
    """Yield numbers of directions (b,), those of their nearest (b, k), and how near these are."""
    k = min(_FEW, len(Z) - 1)
    if k < 1:
        return
    step = max(1, _CELLS // len(Z))
    for start in range(0, len(Z), step):
        products = Z[start : start + step] @ Z.T
        numbers = np.arange(len(products))
        products[numbers, numbers + start] = -1
        near = np.argpartition(products, -k, axis=1)[:, -k:]
        yield numbers + start, near, np.take_along_axis(products, near, 1)


def _directions(X: Floats) -> Floats:
    lengths = np.sqrt(np.einsum("ij,ij->i", X, X))[:, None]
    scaled: Floats = X / np.maximum(lengths, 1e-12)
    return scaled


def _cosines(features: Features, block: BlockName, first: Numbers, second: Numbers) -> Doubles:
    cosine = np.empty(len(first))
    for start in range(0, len(first), _BATCH):
        part = slice(start, start + _BATCH)
        left, right = (_directions(features.take(r[part], **block)) for r in (first, second))
        cosine[part] = np.einsum("ij,ij->i", left, right)
    return cosine


# Whether the pixels agree


def similar_looks(pictures: Greys) -> Numbers:
    """Return pairs of pictures (m, 64, 64) whose coarse shades agree, or do so mirrored.

    Features of a small network differ between an image and its smaller copy; the shades do not.
    """
    looks, mirrored = (
        [np.empty((0, _COARSE**2), np.float32)],
        [np.empty((0, _COARSE**2), np.float32)],
    )
    for start in range(0, len(pictures), 1024):
        grey = pictures[start : start + 1024].astype(np.float32)
        half = grey.reshape(-1, _HALVED, 2, _HALVED, 2).mean(axis=(2, 4))
        looks.append(_standard(_shrunk(half)).astype(np.float32))
        mirrored.append(_standard(_shrunk(half[:, :, ::-1])).astype(np.float32))
    known, queries = np.concatenate(looks), (np.concatenate(looks), np.concatenate(mirrored))
    pairs = [np.empty((0, 2), np.intp)]
    for each in queries if len(known) > 1 else ():
        result = nearest(each, known, min(2, len(known) - 1), exclude=np.arange(len(known)))
        first, column = np.nonzero(result.values >= _LEAST_LOOK)
        pairs.append(np.sort(np.stack([first, result.rows[first, column]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


class Agreement(NamedTuple):
    """How well one picture of each pair is a window of the other, shapes (p,).

    Parameters
    ----------
    plain, detail : ndarray
        Correlation of the grey values, and of their details without the coarse shades.
    window : ndarray
        Share of the area of the one that the other shows; 1 for the whole.
    mirrored : ndarray of bool
        Whether one is the mirror image.
    """

    plain: Doubles
    detail: Doubles
    window: Doubles
    mirrored: NDArray[np.bool_]

    @property
    def equal(self) -> NDArray[np.bool_]:
        """Whether the two are pictures of the very same scene at the same instant."""
        agree: NDArray[np.bool_] = (self.plain >= _LEAST_PLAIN) & (self.detail >= _LEAST_DETAIL)
        return agree & (self.window >= _LEAST_AREA)


def compare_pictures(pictures: Greys, pairs: Numbers) -> Agreement:
    """Compare pairs (p, 2) of pictures (m, 64, 64); the measure does not depend on the order."""
    parts = [
        _compare(pictures, pairs[start : start + _PAIRS_AT_ONCE])
        for start in range(0, len(pairs), _PAIRS_AT_ONCE)
    ]
    none = np.empty(0)
    if not parts:
        return Agreement(none, none, none, np.empty(0, np.bool_))
    return Agreement(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _compare(pictures: Greys, pairs: Numbers) -> Agreement:
    used, at = np.unique(pairs, return_inverse=True)
    at = at.reshape(-1, 2)
    grey = pictures[used].astype(np.float32)
    half = grey.reshape(-1, _HALVED, 2, _HALVED, 2).mean(axis=(2, 4))
    banks, queries = _windows_of(half), _standard(_shrunk(half))
    flipped = _standard(_shrunk(half[:, :, ::-1]))
    count = len(pairs)
    best = np.full(count, -1.0)
    start = np.zeros((count, 4))
    outer, inner = at[:, 0].copy(), at[:, 1].copy()
    mirrored = np.zeros(count, np.bool_)
    boxes = _boxes()
    for number in range(count):
        for a, b in ((at[number, 0], at[number, 1]), (at[number, 1], at[number, 0])):
            scores = banks[a] @ np.stack([queries[b], flipped[b]], axis=1)
            box, flip = np.unravel_index(int(scores.argmax()), scores.shape)
            if scores[box, flip] > best[number] + 1e-6:
                best[number] = scores[box, flip]
                outer[number], inner[number] = a, b
                mirrored[number], start[number] = bool(flip), boxes[box]
    plain, detail, window = np.zeros(count), np.zeros(count), np.ones(count)
    flat = grey.std(axis=(1, 2)) < _FLAT
    likely = np.flatnonzero((best >= _LEAST_COARSE) & ~flat[outer] & ~flat[inner])
    if len(likely):
        turned = np.where(mirrored[likely, None, None], grey[inner[likely], :, ::-1],
                          grey[inner[likely]])  # fmt: skip
        plain[likely], detail[likely], window[likely] = _aligned(
            grey[outer[likely]], turned, start[likely]
        )
    return Agreement(plain, detail, window, mirrored)


@cache
def _boxes() -> Doubles:
    """Return windows as left, top, width and height from 0 to 1, shape (w, 4)."""
    boxes = []
    for scale in _SCALES:
        places = np.linspace(0, 1 - scale, 1 + round((1 - scale) * 16))
        boxes += [(x, y, scale, scale) for y in places for x in places]
    return np.array(boxes)


@cache
def _sampler() -> Any:
    """Return the sparse matrix that takes all windows out of a picture of half the side."""
    from scipy.sparse import csr_array

    rows, columns, weights = [], [], []
    middles = (np.arange(_COARSE) + 0.5) / _COARSE
    for number, (x, y, width, height) in enumerate(_boxes()):
        across = np.clip((x + width * middles) * _HALVED - 0.5, 0, _HALVED - 1.001)
        down = np.clip((y + height * middles) * _HALVED - 0.5, 0, _HALVED - 1.001)
        cells = number * _COARSE**2 + np.arange(_COARSE**2).reshape(_COARSE, _COARSE)
        for dy in (0, 1):
            for dx in (0, 1):
                wx = np.where(dx, across % 1, 1 - across % 1)
                wy = np.where(dy, down % 1, 1 - down % 1)
                pixel = (down.astype(int) + dy)[:, None] * _HALVED + across.astype(int) + dx
                rows.append(cells.ravel())
                columns.append(pixel.ravel())
                weights.append(np.outer(wy, wx).ravel())
    shape = (len(_boxes()) * _COARSE**2, _HALVED**2)
    entries = (
        np.concatenate(weights).astype(np.float32),
        (np.concatenate(rows), np.concatenate(columns)),
    )
    return csr_array(entries, shape=shape)


def _smooth(pictures: Floats) -> Floats:
    from scipy.ndimage import uniform_filter

    smooth: Floats = uniform_filter(pictures, (0, 3, 3), mode="nearest")
    return smooth


def _windows_of(half: Floats) -> Floats:
    """Return all windows of each picture, standardised, shape (m, w, cells)."""
    windows = _sampler() @ _smooth(half).reshape(len(half), -1).T
    return _standard(windows.T.reshape(len(half), len(_boxes()), -1))


def _shrunk(half: Floats) -> Floats:
    """Return the whole of each picture as the windows have it, shape (m, cells)."""
    first = _sampler()[: _COARSE**2]
    shrunk: Floats = (first @ _smooth(half).reshape(len(half), -1).T).T
    return shrunk


def _standard(values: Floats) -> Floats:
    """Return values of mean 0 and length 1 along the last axis."""
    values = values - values.mean(axis=-1, keepdims=True)
    length = np.sqrt((values * values).sum(axis=-1, keepdims=True))
    standard: Floats = values / np.maximum(length, 1e-6)
    return standard


def _aligned(outer: Floats, inner: Floats, boxes: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Return how well pictures agree with the best window of others, starting from a window.

    Notes
    -----
    Gauss-Newton steps on the four edges of the window, for standardised grey values: Baker and
    Matthews, "Lucas-Kanade 20 years on: a unifying framework", 2004.
    """
    from scipy.ndimage import gaussian_filter, sobel

    smooth = gaussian_filter(outer, (0, 1, 1), mode="nearest")
    slopes = [sobel(smooth, axis=axis, mode="nearest") / 8 for axis in (2, 1)]
    goal = _sample(gaussian_filter(inner, (0, 1, 1), mode="nearest"), _whole(len(inner)))
    goal = _standard(goal.reshape(len(inner), -1))
    u = (np.arange(_FINE) + 0.5) / _FINE
    u, v = np.meshgrid(u, u)
    best, score = boxes.copy(), np.full(len(boxes), -1.0)
    for _ in range(_STEPS):
        seen = _sample(smooth, boxes).reshape(len(outer), -1)
        length = np.sqrt(((seen - seen.mean(axis=1, keepdims=True)) ** 2).sum(axis=1))
        seen = _standard(seen)
        now = (seen * goal).sum(axis=1)
        better = now > score
        best[better], score[better] = boxes[better], now[better]
        across, down = (_sample(s, boxes).reshape(len(outer), -1) * SIDE for s in slopes)
        J = np.stack([across, down, across * u.ravel(), down * v.ravel()], axis=2)
        J = J / np.maximum(length, 1e-3)[:, None, None]
        J = J - J.mean(axis=1, keepdims=True)
        J = J - seen[:, :, None] * np.einsum("mp,mpk->mk", seen, J)[:, None]
        H = np.einsum("mpk,mpl->mkl", J, J) + 1e-4 * np.eye(4)
        g = np.einsum("mpk,mp->mk", J, goal - seen)
        boxes = _inside(boxes + np.clip(np.linalg.solve(H, g[:, :, None])[:, :, 0], -0.05, 0.05))
    seen = _sample(smooth, best)
    goal = goal.reshape(len(inner), _FINE, _FINE)
    fine = [_standard(_details(values).reshape(len(outer), -1)) for values in (seen, goal)]
    return score, (fine[0] * fine[1]).sum(axis=1), best[:, 2] * best[:, 3]


def _details(values: Floats) -> Floats:
    from scipy.ndimage import gaussian_filter

    values = values / np.maximum(values.std(axis=(1, 2), keepdims=True), 1e-6)
    details: Floats = values - gaussian_filter(values, (0, 2.5, 2.5), mode="nearest")
    return details


def _whole(count: int) -> Doubles:
    return np.tile([0.0, 0.0, 1.0, 1.0], (count, 1))


def _inside(boxes: Doubles) -> Doubles:
    """Return windows that lie in the picture, and are no smaller than a crop may be."""
    size = np.clip(boxes[:, 2:], _LEAST_WINDOW, 1.0)
    return np.concatenate([np.clip(boxes[:, :2], 0.0, 1.0 - size), size], axis=1)


def _sample(pictures: Floats, boxes: Doubles) -> Floats:
    """Return windows of pictures (m, 64, 64) at 32 x 32 points, between pixels linearly."""
    middles = (np.arange(_FINE) + 0.5) / _FINE
    last = SIDE - 1.001
    across = np.clip((boxes[:, :1] + boxes[:, 2:3] * middles) * SIDE - 0.5, 0, last)
    down = np.clip((boxes[:, 1:2] + boxes[:, 3:] * middles) * SIDE - 0.5, 0, last)
    x, y, m = across.astype(int), down.astype(int), np.arange(len(pictures))[:, None, None]
    fx, fy = (across - x)[:, None, :], (down - y)[:, :, None]
    x, y = x[:, None, :], y[:, :, None]
    top = pictures[m, y, x] * (1 - fx) + pictures[m, y, x + 1] * fx
    bottom = pictures[m, y + 1, x] * (1 - fx) + pictures[m, y + 1, x + 1] * fx
    sampled: Floats = top * (1 - fy) + bottom * fy
    return sampled
