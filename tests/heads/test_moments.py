import numpy as np
import pytest
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from featx.heads import moments
from featx.heads.moments import ShiftedSystems, fold_moments, fold_scales, standardise
from featx.heads.targets import Targets

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(90, 12)) * 10.0 ** np.arange(-6, 6) + 100).astype(np.float64)
X[:, 3] = 7.3
X[:, 5] = 0
X[0, 5] = 4.0
Y = np.arange(90) % 4
CLASSES = Targets.of_classes(Y)
FOLDS = list(KFold(5).split(X))


@pytest.mark.parametrize("folds", [FOLDS, FOLDS[:1], [*FOLDS[:2], FOLDS[0]]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scales_are_the_scalers(folds, dtype):
    features = X.astype(dtype)
    for (train, test), scale in zip(folds, fold_scales(features, folds), strict=True):
        scaler = StandardScaler().fit(features[train].astype(np.float64))
        assert (np.abs(scale.center - scaler.mean_) <= 1e-6 * scaler.scale_).all()
        np.testing.assert_allclose(scale.scale, scaler.scale_, rtol=1e-6)
        assert standardise(features[test], scale).dtype == dtype


def test_a_column_that_varies_only_in_the_testing_rows_is_constant():
    scale = next(fold_scales(X.astype(np.float32), FOLDS))
    assert scale.scale[5] == 1
    assert scale.center[5] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("folds", [FOLDS, FOLDS[:1]])
def test_sums_are_those_of_the_training_rows(folds, monkeypatch):
    monkeypatch.setattr(moments, "_BLOCK_BYTES", 7 * X.shape[1] * 8)
    near = RNG.normal(size=(90, 12)) + Y[:, None]
    for (train, _), found in zip(folds, fold_moments(near, CLASSES, folds, gram=True), strict=True):
        rows, codes = near[train] - found.shift, Y[train]
        assert found.weight == len(train)
        np.testing.assert_allclose(found.gram, rows.T @ rows, atol=1e-9)
        np.testing.assert_allclose(found.squares, (rows**2).sum(axis=0), atol=1e-9)
        scaled = StandardScaler().fit_transform(near[train])
        means = np.stack([scaled[codes == k].mean(axis=0) for k in range(4)])
        np.testing.assert_allclose(found.standardised(found.scale()).means(), means, atol=1e-9)


@pytest.mark.parametrize("folds", [FOLDS, FOLDS[:1]])
def test_an_outlier_among_the_testing_rows_leaves_no_trace(folds):
    rows = RNG.normal(size=(90, 4)).astype(np.float32)
    rows[0, 2] = 1e7
    train = folds[0][0]
    found = next(fold_moments(rows, CLASSES, folds, gram=True))
    near = rows[train].astype(np.float64) - found.shift
    np.testing.assert_allclose(found.gram, near.T @ near, rtol=1e-4, atol=1e-4)
    scaler = StandardScaler().fit(rows[train].astype(np.float64))
    np.testing.assert_allclose(found.scale().scale, scaler.scale_, rtol=1e-6)


def gram(width, rank, dtype, seed=0):
    rows = np.random.default_rng(seed).normal(size=(rank, width)).astype(dtype)
    return rows.T @ rows


@pytest.mark.parametrize("width", [1, 2, 3, 40, 200])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float64, 1e-10)])
def test_every_shift_is_solved(width, dtype, tolerance):
    matrix = gram(width, 2 * width, dtype)
    before = matrix.copy()
    rhs = np.random.default_rng(1).normal(size=(width, 3)).astype(dtype)
    shifts = [0.1, 1.0, 100.0]
    found = ShiftedSystems(matrix).solve(rhs, shifts)
    assert found.dtype == dtype
    np.testing.assert_array_equal(matrix, before)
    for shift, solution in zip(shifts, found, strict=True):
        expected = np.linalg.solve(matrix.astype(float) + shift * np.eye(width), rhs)
        np.testing.assert_allclose(solution, expected, atol=tolerance * np.abs(expected).max())


def test_without_a_shift_a_singular_matrix_gets_the_answer_of_least_norm():
    matrix = gram(40, 25, np.float64)
    rhs = matrix @ np.random.default_rng(1).normal(size=(40, 2))
    found = ShiftedSystems(matrix).solve(rhs, [0.0])[0]
    np.testing.assert_allclose(found, np.linalg.pinv(matrix, hermitian=True) @ rhs, atol=1e-9)


def test_a_shift_below_the_rounding_of_a_singular_matrix_is_no_obstacle():
    matrix = 1e4 * gram(60, 5, np.float32)
    rhs = matrix @ np.ones((60, 1), np.float32)
    found = ShiftedSystems(matrix).solve(rhs, [1e-6])[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(matrix @ found, rhs, rtol=1e-2, atol=1e-3 * np.abs(rhs).max())
