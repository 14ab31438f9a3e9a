import numpy as np
import pytest

from featx.exceptions import HeadError
from featx.heads.validation import check_training


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.eye(3), [0, 1], "expected one label a feature row, received 3 rows and 2 labels"),
        (np.zeros(3), [0, 1, 0], r"received shape \(3,\)"),
        (np.zeros((0, 3)), [], r"received shape \(0, 3\)"),
        (np.eye(2), np.eye(2), r"labels must be one a feature row.*received shape \(2, 2\)"),
        ([[0.0, np.nan], [1, 1]], [0, 1], "NaN or inf in 1 of 2 rows .the first is row 0."),
        ([[0.0, 1], [np.inf, 1]], [0, 1], "NaN or inf in 1 of 2 rows .the first is row 1."),
        (np.eye(2), ["bees", "bees"], "one class only: 'bees'"),
    ],
)
def test_what_no_head_can_learn_from_is_refused(X, y, message):
    with pytest.raises(HeadError, match=message):
        check_training(X, y)


def test_large_values_whose_sum_overflows_are_finite_all_the_same():
    check_training(np.linspace(1e307, 1e308, 16).reshape(4, 4), [0, 1, 0, 1])
