import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from featx.exceptions import HeadError
from featx.heads.ridge import ridge_loo

ALPHAS = [0.1, 1.0, 10.0, 100.0]


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("rows", [40, 300])
def test_leaving_one_out_is_scikit_learns(classes, rows):
    X, y = load_digits(n_class=classes, return_X_y=True)
    X, y = StandardScaler().fit_transform(X[:rows]), y[:rows]
    theirs = RidgeClassifierCV(ALPHAS, store_cv_results=True).fit(X, y)
    margins = ridge_loo(X, y, ALPHAS)
    target = np.where(y[:, None] == np.arange(classes), 1.0, -1.0)
    squared = ((margins - target) ** 2).transpose(1, 2, 0)
    squared = squared[:, 1:] if classes == 2 else squared
    np.testing.assert_allclose(squared, theirs.cv_results_.reshape(squared.shape), atol=1e-8)
    assert ALPHAS[squared.mean(axis=(0, 1)).argmin()] == theirs.alpha_


def test_leaving_one_out_is_a_fit_without_the_row():
    X, y = load_digits(n_class=3, return_X_y=True)
    X, y = X[:50].astype(np.float32), y[:50]
    margins = ridge_loo(X, y, [10.0])[0]
    for row in (0, 17, 49):
        others = np.arange(50) != row
        theirs = RidgeClassifier(alpha=10.0).fit(X[others].astype(float), y[others])
        expected = theirs.decision_function(X[row : row + 1])
        np.testing.assert_allclose(margins[row : row + 1], expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan])
def test_a_penalty_that_is_not_positive_is_refused(alpha):
    with pytest.raises(HeadError, match="penalties must be greater than 0"):
        ridge_loo(np.eye(4), np.array([0, 1, 0, 1]), [1.0, alpha])
