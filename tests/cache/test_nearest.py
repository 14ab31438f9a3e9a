"""The nearest rows are those of scikit-learn, in an order that no block, thread or copy changes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from featx.cache.nearest import nearest
from featx.exceptions import FeaturesError, UnknownNameError


@pytest.fixture(scope="module")
def X():
    """Rows in clusters, some of them equal, one of zeros."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(20, 48))
    X = np.maximum(centres[generator.integers(20, size=900)] + generator.normal(size=(900, 48)), 0)
    X[500:520] = X[3]
    X[77] = 0
    return X.astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_nearest_are_those_of_scikit_learn(X, metric):
    model = NearestNeighbors(n_neighbors=12, algorithm="brute", metric=metric)
    distances, _ = model.fit(X.astype(np.float64)).kneighbors(X.astype(np.float64))
    rows, values = nearest(X, X, 12, metric=metric)
    expected = 1 - distances if metric == "cosine" else distances
    np.testing.assert_allclose(values, expected, atol=2e-6)  # its squares cancel
    exact = X.astype(np.float64)
    if metric == "cosine":
        lengths = np.linalg.norm(exact, axis=1)
        between = exact @ exact.T / np.maximum(np.outer(lengths, lengths), 1e-30)
    else:
        between = np.linalg.norm(exact[:, None] - exact, axis=2)
    np.testing.assert_allclose(between[np.arange(900)[:, None], rows], values, atol=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neither_blocks_nor_order_nor_other_queries_change_a_bit(X, metric, tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    expected = nearest(X, X, 7, metric=metric)
    order = np.random.default_rng(1).permutation(900)
    batches = [(X[part], part) for part in np.array_split(order, 13)]
    for rows, size in [(mapped, 1 << 16), (batches, 1 << 20)]:
        result = nearest(mapped, rows, 7, metric=metric, max_ram_bytes=size)
        np.testing.assert_array_equal(result.rows, expected.rows)
        np.testing.assert_array_equal(result.values, expected.values)
    for query in (0, 77, 505):
        single = nearest(X[query : query + 1], X, 7, metric=metric)
        np.testing.assert_array_equal(single.rows[0], expected.rows[query])
        np.testing.assert_array_equal(single.values[0], expected.values[query])


def test_equal_rows_come_in_the_order_of_their_numbers_and_a_row_can_be_left_out(X):
    equal = [3, *range(500, 520)]
    rows, values = nearest(X[[3, 510]], X, 21)
    assert rows.tolist() == [equal, equal]
    assert (values == 1).all()
    rows, _ = nearest(X[[3, 510]], X, 20, exclude=np.array([3, 510]))
    assert rows.tolist() == [[r for r in equal if r != 3], [r for r in equal if r != 510]]
    rows, _ = nearest(X[[3]], X, 3, exclude=np.array([[3, 500, -1]]))
    assert rows.tolist() == [[501, 502, 503]]


def test_thousands_of_equal_rows_end_in_the_first_of_them(X):
    many = np.concatenate([np.repeat(X[:1], 5000, axis=0), X])
    rows, values = nearest(many[:600], many, 5)
    assert (rows == np.arange(5)).all()
    assert (values == 1).all()


def test_fewer_rows_than_neighbours_leave_gaps(X):
    rows, values = nearest(X[:2], X[:3], 10, exclude=np.array([0, -1]))
    assert rows.shape == (2, 3)
    assert sorted(rows[0, :2]) == [1, 2]
    assert rows[0, 2] == -1
    assert np.isnan(values[0, 2])
    assert nearest(X[:2], X[:0], 10).rows.shape == (2, 0)


def test_values_of_any_size_and_half_precision_are_exact(X):
    for scale in (1e-12, 1e18):
        scaled = X * np.float32(scale)
        np.testing.assert_array_equal(nearest(scaled[:50], X, 3).rows, nearest(X[:50], X, 3).rows)
        assert (nearest(scaled[:50], scaled, 3, metric="euclidean").values[:, 0] == 0).all()
    half = X.astype(np.float16)
    expected = nearest(half.astype(np.float32), half.astype(np.float32), 4)
    np.testing.assert_array_equal(nearest(half, half, 4).values, expected.values)


def test_what_does_not_fit_is_refused(X):
    with pytest.raises(FeaturesError, match="48 features, as the queries have, received shape"):
        nearest(X, X[:, :7], 3)
    with pytest.raises(FeaturesError, match="finite queries.*NaN"):
        nearest(X * np.float32(np.nan), X, 3)
    with pytest.raises(FeaturesError, match="positive number of neighbours, received 0"):
        nearest(X, X, 0)
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        nearest(X, X, 1, metric="cosin")
