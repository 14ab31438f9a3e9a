import numpy as np
import pytest
from sklearn.datasets import load_digits, make_circles
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC

from featx.heads.rbf import ReducedRBF


def test_it_separates_what_no_line_does():
    X, y = make_circles(300, noise=0.05, factor=0.4, random_state=0)
    assert (
        ReducedRBF(n_components=50, random_state=0).fit(X[:200], y[:200]).score(X[200:], y[200:])
        == 1
    )


def test_with_every_image_in_the_basis_the_kernel_is_exact():
    X, _ = load_digits(return_X_y=True)
    head = ReducedRBF(random_state=0).fit(X[:200], np.arange(200) % 2)
    mapped = head._mapped(X[:200])
    np.testing.assert_allclose(mapped @ mapped.T, rbf_kernel(X[:200], gamma=head.gamma_), atol=1e-6)
    assert head.gamma_ == pytest.approx(1 / (64 * X[:200].var()))


def test_it_is_nearly_as_good_as_the_whole_kernel():
    X, y = load_digits(return_X_y=True)
    whole = SVC().fit(X[:1000], y[:1000]).score(X[1000:], y[1000:])
    reduced = ReducedRBF(n_components=300, random_state=0).fit(X[:1000], y[:1000])
    assert len(reduced.basis_) == 300
    assert reduced.score(X[1000:], y[1000:]) > whole - 0.02


def test_the_seed_decides_the_basis():
    X, y = load_digits(return_X_y=True)
    first, again, other = (
        ReducedRBF(n_components=20, random_state=seed).fit(X[:300], y[:300]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.decision_function(X), again.decision_function(X))
    assert (first.basis_ != other.basis_).any()


def test_identical_images_are_no_obstacle():
    X = np.repeat(np.eye(3), 4, axis=0)
    head = ReducedRBF(random_state=0).fit(X, np.repeat([0, 1, 2], 4))
    assert head.predict(np.eye(3)).tolist() == [0, 1, 2]
