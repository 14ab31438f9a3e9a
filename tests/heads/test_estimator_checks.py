"""scikit-learn's own checks on every named head, and on the estimators that featx adds."""

import pytest
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from featx.heads.calibrated import TemperatureCalibrated
from featx.heads.dense import DenseClassifier
from featx.heads.discriminant import ShrinkageLDA
from featx.heads.neighbours import NearestNeighbours
from featx.heads.registry import HEADS, head_names, make_head

# Settings for the checks' tiny data of 2 to 10 columns: the defaults are for a thousand, where
# they shrink much more, and two columns have no useful angle between them.
SETTINGS = {
    "logistic": {"C": 1.0},
    "svm": {"C": 1.0},
    "ridge": {"alpha": 1.0},
    "knn": {"metric": "euclidean"},
    "forest": {"n_estimators": 10},
    "dense": {
        "hidden": (16,),
        "learning_rate": 0.2,
        "dropout": 0.0,
        "batch_size": 1000,
        "max_epochs": 10,
    },
}

CHANGES_STEPS = "scikit-learn's Pipeline fits its own steps; scikit-learn expects it to fail too"
NOT_EXACT = (
    "random rows a tree: a weight of 2 is no second row; scikit-learn expects it to fail too"
)
FAILURES = {
    "Pipeline": {
        "check_dont_overwrite_parameters": CHANGES_STEPS,
        "check_estimators_overwrite_params": CHANGES_STEPS,
    },
    "RandomForestClassifier": {
        "check_sample_weight_equivalence_on_dense_data": NOT_EXACT,
        "check_sample_weight_equivalence_on_sparse_data": NOT_EXACT,
    },
    "DenseClassifier": {
        "check_sample_weight_equivalence_on_dense_data": (
            "a random start and rows in shuffled batches: a weight of 2 is no second row"
        ),
    },
}


def expected_failures(estimator):
    return FAILURES.get(type(estimator).__name__, {})


OWN = [
    TemperatureCalibrated(LinearSVC(random_state=0)),
    NearestNeighbours(metric="euclidean"),
    ShrinkageLDA(),
    DenseClassifier(**SETTINGS["dense"]),
]


@parametrize_with_checks(
    [make_head(name, **SETTINGS.get(name, {})) for name in head_names()] + OWN,
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


def test_every_named_head_is_checked():
    assert set(head_names()) == set(HEADS)
    assert set(SETTINGS) <= set(HEADS)


@pytest.mark.parametrize("name", head_names())
def test_heads_are_pipelines_or_plain(name):
    assert hasattr(make_head(name), "steps") == HEADS[name].standardised
