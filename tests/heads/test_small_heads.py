"""Heads that come down to scikit-learn: nearest mean, LDA, neighbours, RBF machine, trees."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris, make_circles
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.svm import SVC

from featx.exceptions import HeadError
from featx.heads import trees
from featx.heads.discriminant import ShrinkageLDA
from featx.heads.nearest_mean import NearestMean
from featx.heads.neighbours import NearestNeighbours
from featx.heads.rbf import ReducedRBF
from featx.heads.trees import TreeEnsemble


@pytest.fixture(scope="module")
def digits():
    """Features and labels to learn from, and others."""
    X, y = load_digits(return_X_y=True)
    return X[:900], y[:900], X[900:], y[900:]


@pytest.fixture(scope="module")
def varied(digits):
    """The same without columns that hardly vary."""
    X, y, new, truth = digits
    varying = X.std(axis=0) > 2
    return X[:, varying], y, new[:, varying], truth


def of_classes(digits, classes):
    X, y, new, _ = digits
    return X[y < classes], y[y < classes], new


TREES = {"n_estimators": 20, "max_depth": 6, "class_weight": "balanced", "random_state": 0}


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(
    ("ours", "theirs", "answers"),
    [
        *(
            (
                ShrinkageLDA(shrinkage=shrinkage),
                LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage),
                ("decision_function", "predict_proba"),
            )
            for shrinkage in ("auto", 0.1, 1.0)
        ),
        (
            NearestNeighbours(n_neighbors=7, weights="uniform", metric="euclidean"),
            KNeighborsClassifier(7, algorithm="brute"),
            ("predict_proba",),
        ),
        (TreeEnsemble(**TREES), RandomForestClassifier(**TREES), ("predict_proba",)),
        (TreeEnsemble(splits="random", **TREES), ExtraTreesClassifier(**TREES), ("predict_proba",)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_answers_are_scikit_learns(digits, ours, theirs, answers, classes):
    X, y, new = of_classes(digits, classes)
    X, new = (
        part.astype(np.float32 if "Tree" in type(ours).__name__ else float) for part in (X, new)
    )
    ours.fit(X, y)
    theirs.fit(X, y)
    for answer in answers:
        expected = getattr(theirs, answer)(new)
        np.testing.assert_allclose(getattr(ours, answer)(new), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new))


@pytest.mark.parametrize("classes", [2, 10])
def test_the_nearest_mean_by_distance_is_the_nearest_centroid(varied, classes):
    X, y, new = of_classes(varied, classes)
    ours = NearestMean(metric="euclidean").fit(X, y)
    np.testing.assert_array_equal(ours.predict(new), NearestCentroid().fit(X, y).predict(new))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_probabilities_are_calibrated_on_rows_the_means_have_not_seen(varied, metric):
    X, y, new, truth = varied
    head = NearestMean(metric=metric).fit(X, y)
    fitted = log_loss(truth, head.predict_proba(new))
    for factor in (0.25, 4):
        other = NearestMean(metric=metric).fit(X, y)
        other.temperature_ *= factor
        assert log_loss(truth, other.predict_proba(new)) > fitted


def test_the_size_of_a_class_and_of_a_row_do_not_count():
    X = np.array([[1.0, 0.1], [2.0, 0.1], [3.0, 0.2], [0.1, 5.0]])
    head = NearestMean().fit(X, ["a", "a", "a", "b"])
    assert head.predict([[0.01, 0.011], [10, 9]]).tolist() == ["b", "a"]
    assert head.predict([[0.0, 0.0]]).tolist() == ["a"]


@pytest.mark.parametrize("head", [NearestMean(metric="euclidean"), ShrinkageLDA()])
def test_one_image_a_class_is_the_nearest_mean(head):
    head.fit([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], ["a", "b", "c"])
    assert getattr(head, "temperature_", 1.0) == 1.0
    assert head.predict([[1.9, 0.0], [2.1, 0.0], [0.1, 3.0]]).tolist() == ["a", "b", "c"]


def test_fewer_images_than_neighbours_all_vote():
    head = NearestNeighbours(n_neighbors=10).fit(np.eye(3), ["a", "b", "c"])
    assert head.model_.n_neighbors == 3
    assert head.n_neighbors == 10
    assert head.predict([[0.1, 0.2, 0.9]]).tolist() == ["c"]


@pytest.mark.parametrize("head", [ShrinkageLDA(), ReducedRBF(random_state=0)])
def test_identical_images_are_no_obstacle(head):
    X = np.repeat(np.eye(3), 6, axis=0)
    assert head.fit(X, np.repeat([0, 1, 2], 6)).predict(np.eye(3)).tolist() == [0, 1, 2]


def test_without_shrinkage_a_singular_covariance_is_no_obstacle():
    X, y = load_iris(return_X_y=True)
    X = np.column_stack([X, X[:, 0], np.ones(len(X))])
    assert ShrinkageLDA(shrinkage=0.0).fit(X, y).score(X, y) > 0.9


@pytest.mark.parametrize("class_weight", ["balanced", {0: 1.0, 1: 2.0, 2: 5.0}])
def test_class_weights_are_scikit_learns_priors(digits, class_weight):
    X, y, _ = of_classes(digits, 3)
    X, y = X[40:], y[40:]
    priors = np.full(3, 1 / 3)
    if class_weight != "balanced":
        priors = np.bincount(y) * list(class_weight.values())
    theirs = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=0.1, priors=priors / priors.sum()
    ).fit(X, y)
    ours = ShrinkageLDA(shrinkage=0.1, class_weight=class_weight).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-6)


def test_a_model_saved_without_class_weight_still_shows_its_parameters():
    head = ShrinkageLDA().fit(np.eye(2), [0, 1])
    del head.__dict__["class_weight"]
    assert head.get_params() == {"shrinkage": "auto", "class_weight": None}


def test_the_kernel_machine_separates_what_no_line_does():
    X, y = make_circles(300, noise=0.05, factor=0.4, random_state=0)
    head = ReducedRBF(n_components=50, random_state=0).fit(X[:200], y[:200])
    assert head.score(X[200:], y[200:]) == 1


def test_with_every_image_in_the_basis_the_kernel_is_exact(digits):
    X = digits[0][:200]
    head = ReducedRBF(random_state=0).fit(X, np.arange(200) % 2)
    mapped = head._mapped(X)
    np.testing.assert_allclose(mapped @ mapped.T, rbf_kernel(X, gamma=head.gamma_), atol=1e-6)
    assert head.gamma_ == pytest.approx(1 / (64 * X.var()))


def test_a_basis_of_some_images_is_nearly_as_good_as_the_whole_kernel(digits):
    X, y, new, truth = digits
    reduced = ReducedRBF(n_components=300, random_state=0).fit(X, y)
    assert len(reduced.basis_) == 300
    assert reduced.score(new, truth) > SVC().fit(X, y).score(new, truth) - 0.02


def test_the_seed_decides_the_basis(digits):
    X, y = digits[0][:300], digits[1][:300]
    first, again, other = (
        ReducedRBF(n_components=20, random_state=seed).fit(X, y) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.decision_function(X), again.decision_function(X))
    assert (first.basis_ != other.basis_).any()


@pytest.mark.parametrize(("budget_trees", "grown"), [(500, 200), (40, 40), (1, 10)])
def test_many_classes_get_fewer_trees(monkeypatch, budget_trees, grown):
    monkeypatch.setattr(trees, "_BUDGET_BYTES", budget_trees * 16 * 30 * 3)
    X, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    assert len(TreeEnsemble(splits="random").fit(X, y).model_.estimators_) == grown


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (NearestMean(metric="x"), "metric must be 'cosine' or 'euclidean', received 'x'"),
        *(
            (ShrinkageLDA(shrinkage=value), 'shrinkage must be "auto" or a number from 0 to 1')
            for value in (-0.1, 1.5, "ledoit", True, None)
        ),
        (NearestNeighbours(n_neighbors=0), "'n_neighbors'"),
        (NearestNeighbours(weights="heavy"), "'weights'"),
        (NearestNeighbours(metric="x"), "'metric'"),
    ],
)
def test_a_parameter_out_of_range_is_refused(head, message):
    with pytest.raises(ValueError, match=message):
        head.fit(np.eye(2), [0, 1])


def test_one_class_is_refused():
    with pytest.raises(HeadError, match="one class only: 3"):
        NearestNeighbours().fit(np.eye(2), [3, 3])
