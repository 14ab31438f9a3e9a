import numpy as np
import pytest

from featx.heads.shifted import ShiftedSystems


def gram(width, rank, dtype, seed=0):
    rows = np.random.default_rng(seed).normal(size=(rank, width)).astype(dtype)
    return rows.T @ rows


@pytest.mark.parametrize("width", [1, 2, 3, 40, 200])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float64, 1e-10)])
def test_every_shift_is_solved(width, dtype, tolerance):
    matrix = gram(width, 2 * width, dtype)
    rhs = np.random.default_rng(1).normal(size=(width, 3)).astype(dtype)
    shifts = [0.1, 1.0, 100.0]
    found = ShiftedSystems(matrix).solve(rhs, shifts)
    assert found.dtype == dtype
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


def test_rotations_undo_each_other_and_the_matrix_is_left_alone():
    matrix = gram(30, 60, np.float64)
    before = matrix.copy()
    systems = ShiftedSystems(matrix)
    columns = np.random.default_rng(1).normal(size=(30, 4))
    np.testing.assert_allclose(systems.unrotate(systems.rotate(columns)), columns, atol=1e-12)
    np.testing.assert_array_equal(matrix, before)
