"""Nearly equal images: pairs that are near in their features, compared pixel by pixel.

Features alone do not tell a crop of an image from another image of the same thing. So they only
name pairs, and small grey pictures of these decide: one has to be a window of the other, perhaps
mirrored, in its details too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.cache.nearest import Nearest, nearest
from featx.exceptions import MissingExtraError
from featx.spec import BlockName

Numbers: TypeAlias = NDArray[np.intp]
Floats: TypeAlias = NDArray[np.floating[Any]]
Doubles: TypeAlias = NDArray[np.float64]
Greys: TypeAlias = NDArray[np.uint8]
"""Pictures of shape (m, side, side)."""

SIDE = 64
"""Pixels of a side of the pictures that are compared."""

EXACT_ROWS = 200_000
"""Rows up to which all are compared with all."""

NEIGHBOURS, _FEW = 4, 3
_LEAST_COSINE = 0.6
_MOST_ROWS = 8192
# Of the index: axes, rows a list that it learns from, lists that each row is looked for in, and
# rows that are compared beside those that are asked for.
_DIMENSIONS, _OF_A_LIST, _LISTS_LOOKED_AT, _MORE = 64, 40, 16, 6
# Windows that a crop may be: sides relative to the whole, each at all places about 1/16 apart.
_SCALES = (1.0, 0.93, 0.86, 0.8, 0.74, 0.68, 0.62)
_COARSE, _FINE = 12, 32
_HALVED = SIDE // 2
_LEAST_COARSE = 0.7
_STEPS = 10
_LEAST_PLAIN, _LEAST_DETAIL = 0.95, 0.9
_LEAST_WINDOW, _LEAST_AREA = 0.45, 0.5
_LEAST_MIRRORED_AREA = 0.82  # a part of an image is like the mirror image of another's by chance
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
        Mean similarity of each row of the features to its three nearest; NaN where none is known.
    """

    pairs: Numbers
    cosine: Doubles
    nearness: Doubles

    @classmethod
    def nothing(cls, count: int) -> Near:
        """Return no pairs among this many rows."""
        return cls(np.empty((0, 2), np.intp), np.empty(0), np.full(count, np.nan))

    @property
    def relative_distance(self) -> Doubles:
        """How far the rows of each pair are apart, in distances of such rows to their nearest."""
        usual = 1 - self.nearness
        if not len(self.pairs):
            return np.empty(0)
        least = np.nanmedian(usual) / 4
        relative: Doubles = (1 - self.cosine) / np.maximum(np.fmax(*usual[self.pairs].T), least)
        return relative

    def take(self, numbers: Numbers) -> Near:
        """Return some of the pairs."""
        return Near(self.pairs[numbers], self.cosine[numbers], self.nearness)


def near_pairs(
    features: Features,
    block: BlockName,
    rows: Numbers,
    *,
    max_ram_bytes: int = 256 << 20,
    seed: int = 0,
) -> Near:
    """Return pairs of rows each of which is among the nearest of the other, or has it so.

    Up to `EXACT_ROWS` rows all are compared with all. Of more, each is compared with those that an
    index of faiss finds.

    Raises
    ------
    MissingExtraError
        If there are more rows, and faiss is not installed.
    """
    nothing, k = Near.nothing(len(features)), min(NEIGHBOURS, len(rows) - 1)
    if k < 1:
        return nothing
    find = _exactly if len(rows) <= EXACT_ROWS else partial(_by_index, seed=seed)
    result = find(features, block, rows, k, max_ram_bytes)
    few = np.ma.masked_invalid(result.values[:, :_FEW])
    nothing.nearness[rows] = few.mean(axis=1).filled(np.nan)
    both = np.sort(np.stack([np.repeat(rows, k), result.rows.ravel()], axis=1), axis=1)
    cosine = result.values.ravel()
    fits = (cosine >= _LEAST_COSINE) & (both[:, 0] >= 0)
    pairs, at = np.unique(both[fits], axis=0, return_index=True)
    return Near(pairs, cosine[fits][at], nothing.nearness)


def _exactly(
    features: Features, block: BlockName, rows: Numbers, k: int, max_ram_bytes: int
) -> Nearest:
    """Compare all rows with all, as many at once as the memory holds beside what they meet."""
    row_bytes = 4 * features.width(**block)
    at_once = max(1, max_ram_bytes // 2 // row_bytes)
    rest_bytes = max(1, max_ram_bytes // 4)
    results = []
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        batches = features.batches(
            **block,
            rows=rows,
            batch_size=max(1, min(_MOST_ROWS, rest_bytes // row_bytes // 2)),
            max_ram_bytes=max(rest_bytes, 2 * row_bytes),
        )
        queries = features.take(some, **block)
        results.append(nearest(queries, batches, k, exclude=some, max_ram_bytes=rest_bytes))
    return Nearest(*(np.concatenate(column) for column in zip(*results, strict=True)))


def _by_index(
    features: Features, block: BlockName, rows: Numbers, k: int, max_ram_bytes: int, *, seed: int
) -> Nearest:
    """Compare each row with those that an index names; where it names too few, by NaN.

    Notes
    -----
    The index is an inverted file of faiss (Jégou et al., "Product quantization for nearest neighbor
    search", 2011) over the principal components of a sample, a byte each: 64 MB a million rows.
    """
    from sklearn.decomposition import PCA

    faiss = _faiss()
    generator = np.random.default_rng(seed)
    at_once = int(np.clip(max_ram_bytes // 32 // features.width(**block), 16, _MOST_ROWS))

    def directions(some: Numbers) -> Floats:
        return _unit(features.take(some, **block).astype(np.float32))

    def sample(count: int) -> Numbers:
        return np.sort(generator.choice(rows, min(count, len(rows)), replace=False))

    def parts(some: Numbers, size: int) -> Iterator[Numbers]:
        return (some[start : start + size] for start in range(0, len(some), size))

    X = directions(sample(at_once))
    pca = PCA(min(_DIMENSIONS, *X.shape), svd_solver="randomized", random_state=seed).fit(X)
    lists = max(1, round(len(rows) ** 0.5))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(pca.n_components_),
        pca.n_components_,
        lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.cp.seed, index.nprobe = seed, min(_LISTS_LOOKED_AT, lists)

    def projected(X: Floats) -> Floats:
        return np.ascontiguousarray(_unit(pca.transform(X)), np.float32)

    known = parts(sample(_OF_A_LIST * lists), at_once)
    index.train(np.concatenate([projected(directions(some)) for some in known]))
    for some in parts(rows, at_once):
        index.add(projected(directions(some)))
    results = []
    for some in parts(rows, max(1, at_once // (k + _MORE))):
        queries = directions(some)
        _, numbers = index.search(projected(queries), k + _MORE)
        found = np.where(numbers < 0, -1, rows[numbers])
        used, at = np.unique(found, return_inverse=True)
        others, at = directions(np.maximum(used, 0)), at.reshape(found.shape)
        cosine = np.stack([np.einsum("ij,ij->i", queries, others[column]) for column in at.T], 1)
        cosine[(found < 0) | (found == some[:, None])] = np.nan
        best = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        chosen, values = (np.take_along_axis(each, best, axis=1) for each in (found, cosine))
        results.append(Nearest(chosen, values.astype(np.float64)))
    return Nearest(*(np.concatenate(column) for column in zip(*results, strict=True)))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        purpose = f"comparing more than {EXACT_ROWS:,} images"
        raise MissingExtraError("faiss-cpu", extra="audit", purpose=purpose) from error
    return faiss


def _unit(X: Floats) -> Floats:
    lengths = np.sqrt(np.einsum("ij,ij->i", X, X))[:, None]
    scaled: Floats = X / np.maximum(lengths, 1e-12)
    return scaled


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
        return agree & (self.window >= np.where(self.mirrored, _LEAST_MIRRORED_AREA, _LEAST_AREA))


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
