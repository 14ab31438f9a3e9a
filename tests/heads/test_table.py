from importlib import import_module
from itertools import takewhile

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils import all_estimators

from featx.exceptions import HeadError, UnknownNameError
from featx.heads.calibrated import TemperatureCalibrated
from featx.heads.making import make_head
from featx.heads.table import HEADS, head_names, parse_head

QUICK = {"dense": {"hidden": (16,), "learning_rate": 0.05, "max_epochs": 20}}


def blobs(n=120, width=8, classes=3, seed=0):
    X, y = make_blobs(n, width, centers=classes, cluster_std=2.0, random_state=seed)
    return X.astype(np.float32), np.array(["ants", "bees", "wasps", "flies"])[y]


def named(name, **params):
    return make_head(name, **{**QUICK.get(name, {}), **params})


def core(head):
    """The estimator that a user's parameters reach."""
    head = head["head"]
    return head.estimator if isinstance(head, TemperatureCalibrated) else head


@pytest.mark.parametrize("name", head_names())
def test_a_named_head_learns_and_gives_probabilities(name):
    X, y = blobs()
    head = named(name).fit(X, y)
    probabilities = head.predict_proba(X)
    assert head.score(X, y) > 0.95
    assert head.classes_.tolist() == ["ants", "bees", "wasps"]
    assert probabilities.shape == (len(X), 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (head.classes_[probabilities.argmax(axis=1)] == head.predict(X)).mean() > 0.99


@pytest.mark.parametrize("name", ["logistic", "ridge", "lda", "nearest-mean", "dense"])
def test_float32_stays_float32(name):
    X, y = blobs()
    assert named(name).fit(X, y).predict_proba(X).dtype == np.float32


@pytest.mark.parametrize("name", head_names())
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("classes", [2, 3])
def test_one_or_two_images_a_class_are_enough(name, images, classes):
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (classes, 100)).astype(np.float32)
    y, fresh = np.repeat(np.arange(classes), images), np.repeat(np.arange(classes), 10)
    X, new = (centres[k] + rng.normal(0, 0.2, (len(k), 100)).astype("f4") for k in (y, fresh))
    head = named(name).fit(X, y)
    assert head.score(X, y) == 1
    # Two images in all leave the scaler with differences for deviations: nothing holds for others.
    assert len(y) == 2 or head.score(new, fresh) > 0.9
    np.testing.assert_allclose(head.predict_proba(new).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", head_names())
def test_a_single_image_beside_larger_classes_is_no_obstacle(name):
    X, y = blobs(60)
    X, y = np.vstack([X, np.full((1, 8), 30, np.float32)]), np.append(y, "zebra")
    head = named(name).fit(X, y)
    assert head.classes_.tolist() == ["ants", "bees", "wasps", "zebra"]
    assert head.score(X[:-1], y[:-1]) > 0.9


WEIGHTED = ["logistic", "svm", "rbf", "ridge", "lda", "forest", "extra-trees", "dense"]


@pytest.mark.parametrize("name", WEIGHTED)
def test_balanced_weights_find_more_of_the_rare_class(name):
    rng = np.random.default_rng(0)
    y = np.array([0] * 190 + [1] * 10)
    X = rng.normal(0, 1, (200, 4)).astype(np.float32) + 1.0 * y[:, None].astype(np.float32)
    fresh = rng.normal(1.0, 1, (200, 4)).astype(np.float32)
    # Deep trees fit every training row whatever it weighs.
    shallow = {"max_depth": 3} if name in ("forest", "extra-trees") else {}
    plain = named(name, **shallow).fit(X, y)
    balanced = named(name, class_weight="balanced", **shallow).fit(X, y)
    assert (balanced.predict(fresh) == 1).mean() > (plain.predict(fresh) == 1).mean() + 0.1


@pytest.mark.parametrize("name", sorted(set(head_names()) - set(WEIGHTED)))
def test_class_weight_where_there_is_none_names_the_heads_that_have_it(name):
    with pytest.raises(
        HeadError,
        match=r"takes no class_weight.*logistic, svm, rbf, ridge, lda, forest, extra-trees, dense",
    ):
        make_head(name, class_weight="balanced")


def test_a_dict_of_class_weights_reaches_the_calibrated_heads_folds():
    X, y = blobs()
    for name in ("svm", "ridge", "rbf"):
        head = make_head(name, class_weight={"ants": 1, "bees": 5, "wasps": 2}).fit(X, y)
        assert head["head"].n_folds_ == 5


def test_class_weights_from_text():
    assert core(make_head("logistic:C=0.1,class_weight=balanced")).class_weight == "balanced"


def test_parameters_from_text_and_keywords():
    assert core(make_head("logistic:C=0.1")).C == 0.1
    assert core(make_head("logistic:C=0.1", C=3)).C == 3
    assert core(make_head("svm:C=0.5")).C == 0.5
    assert core(make_head("dense:1024,1024")).hidden == (1024, 1024)
    assert core(make_head("dense:256,dropout=0.3")).hidden == (256,)
    assert core(make_head("dense:256,dropout=0.3")).dropout == 0.3
    assert core(make_head("dense:()")).hidden == ()
    assert core(make_head("dense:hidden=(8,4)")).hidden == (8, 4)


def test_the_seed_becomes_random_state_unless_one_is_given():
    assert core(make_head("forest")).random_state == 0
    assert core(make_head("dense", seed=7)).random_state == 7
    assert core(make_head("svm:random_state=3", seed=7)).random_state == 3


def test_heads_stand_behind_standardisation():
    assert isinstance(make_head("logistic")["scale"], StandardScaler)
    assert isinstance(make_head("sklearn.naive_bayes.GaussianNB")["scale"], StandardScaler)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("logistik", "unknown head 'logistik': did you mean 'logistic'"),
        ("desne:256", "unknown head 'desne': did you mean 'dense'"),
        ("quantum", "unknown head 'quantum'.*Known: dense, extra-trees, forest, knn"),
        ("nearest_mean", "unknown head 'nearest_mean': did you mean 'nearest-mean'"),
        (
            "sklearn.naive_bayes.GausianNB",
            "unknown estimator 'GausianNB': did you mean 'GaussianNB'",
        ),
        (
            "sklearn.svm.RandomForestClassifier",
            "Did you mean 'sklearn.ensemble.RandomForestClassifier'",
        ),
    ],
)
def test_an_unknown_head_gets_did_you_mean(head, message):
    with pytest.raises(UnknownNameError, match=message):
        make_head(head)


@pytest.mark.parametrize(
    ("head", "params", "message"),
    [
        ("logistic:c=1", {}, "unknown parameter 'c' of 'logistic': did you mean 'C'"),
        ("knn:neighbors=3", {}, "did you mean 'n_neighbors'"),
        ("dense", {"dropuot": 0.1}, "did you mean 'dropout'"),
        ("ridge:xyzzy=1", {}, "unknown parameter 'xyzzy' of 'ridge'. Known: alpha"),
        (LogisticRegression(), {"CC": 1}, "unknown parameter 'CC' of 'LogisticRegression'"),
        ("logistic:C=low", {}, "'C' parameter of LogisticRegression must be a float"),
        ("logistic:C=-1", {}, "'C' parameter of LogisticRegression must be a float"),
        ("knn:n_neighbors=0", {}, "'n_neighbors' parameter"),
        ("lda:shrinkage=2", {}, 'shrinkage must be "auto" or a number from 0 to 1, received 2'),
        ("dense:0", {}, r"hidden must be a tuple of layer sizes.*received \(0,\)"),
        ("dense:dropout=1.5", {}, "dropout must be a number from 0 to less than 1, received 1.5"),
        ("dense:max_epochs=1.5", {}, "max_epochs must be an integer of at least 1"),
        ("dense:class_weight=fair", {}, "class_weight must be None"),
        ("dense:256,hidden=(1,)", {}, "'hidden' of 'dense' is given twice"),
        ("logistic:0.1", {}, "'logistic' takes parameters by name, received 0.1"),
        ("os.system", {}, "an import path below 'sklearn.', received 'os.system'"),
        ("torch.nn.Linear", {}, "below 'sklearn.'"),
        ("sklearn.no_such.Thing", {}, "cannot be imported.*'sklearn.naive_bayes.GaussianNB'"),
        ("sklearn.neighbours.KNeighborClassifier", {}, "'sklearn.neighbors.KNeighborsClassifier'"),
        ("sklearn.svm.SVC:c=1", {}, "unknown parameter 'c' of 'sklearn.svm.SVC': did you mean 'C'"),
        ("forest:n_estimators=0", {}, 'n_estimators must be "auto" or an integer of at least 1'),
        ("forest:splits=good", {}, "splits must be 'best' or 'random', received 'good'"),
        ("forest:max_depth=0", {}, "'max_depth' parameter"),
        ("rbf:C=0", {}, "'C' parameter of LinearSVC"),
        ("rbf:gamma=wide", {}, 'gamma must be "scale" or a number greater than 0, received .wide'),
        ("rbf:n_components=0", {}, "n_components must be an integer of at least 1, received 0"),
        ("lda:class_weight=fair", {}, 'class_weight must be None, "balanced" or a dict'),
        ("nearest-mean:metric=city", {}, "metric must be 'cosine' or 'euclidean', received 'city'"),
        ("sklearn.linear_model.Ridge", {}, "is no classifier"),
        ("sklearn.metrics.accuracy_score", {}, "is no classifier"),
        ("sklearn.ensemble.VotingClassifier", {}, "cannot be made from its name alone"),
        (LogisticRegression, {}, "expected a head's name or an estimator"),
        (42, {}, "expected a head's name or an estimator with fit and predict, received 42"),
    ],
)
def test_what_cannot_be_made_is_said(head, params, message):
    with pytest.raises(HeadError, match=message):
        make_head(head, **params)


def test_an_object_that_cannot_be_cloned_is_refused():
    class Odd:
        def fit(self, X, y): ...
        def predict(self, X): ...

    with pytest.raises(HeadError, match="Odd cannot be cloned"):
        make_head(Odd())


def test_an_estimator_is_cloned_and_otherwise_left_alone():
    given = LogisticRegression(C=7).fit([[0.0], [1.0]], [0, 1])
    made = make_head(given, tol=1e-3)
    assert made is not given
    assert not hasattr(made, "coef_")
    assert (made.C, made.tol, given.tol) == (7, 1e-3, 1e-4)


def test_a_scikit_learn_classifier_by_import_path():
    X, y = blobs()
    head = make_head("sklearn.naive_bayes.GaussianNB:var_smoothing=1e-8")
    assert core(head).var_smoothing == 1e-8
    assert head.fit(X, y).score(X, y) > 0.95


# They wrap an estimator or a list of them, which no text gives.
META = {
    "ClassifierChain",
    "FixedThresholdClassifier",
    "MultiOutputClassifier",
    "OneVsOneClassifier",
    "OneVsRestClassifier",
    "OutputCodeClassifier",
    "SelfTrainingClassifier",
    "StackingClassifier",
    "TunedThresholdClassifierCV",
    "VotingClassifier",
}


def public_path(cls):
    parts = cls.__module__.split(".")
    return ".".join([*takewhile(lambda part: not part.startswith("_"), parts), cls.__name__])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "path", [public_path(cls) for name, cls in all_estimators("classifier") if name not in META]
)
def test_every_classifier_of_scikit_learn_by_its_path(path):
    X, y = blobs(60)
    head = make_head(path).fit(np.abs(X), y)
    assert head.classes_.tolist() == ["ants", "bees", "wasps"]
    assert set(head.predict(np.abs(X))) <= set(y)
    np.testing.assert_allclose(head.predict_proba(np.abs(X)).sum(axis=1), 1, rtol=1e-5)


def test_margins_of_a_class_by_path_become_probabilities():
    X, y = blobs()
    head = make_head("sklearn.svm.SVC:C=10,kernel=rbf").fit(X, y)
    assert isinstance(head["head"], TemperatureCalibrated)
    assert head.score(X, y) > 0.95
    with pytest.raises(HeadError, match="SVC gives 6 margins for 4 classes, expected one a class"):
        make_head("sklearn.svm.SVC:decision_function_shape=ovo").fit(*blobs(classes=4))


def test_what_takes_no_negative_numbers_is_not_standardised():
    assert [name for name, _ in make_head("sklearn.naive_bayes.ComplementNB").steps] == ["head"]


def imported(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def test_the_table_is_consistent():
    for row in HEADS.values():
        assert not row.sweep or callable(imported(row.sweep))
        for parameter, values in row.grid.items():
            default = core(make_head(row.name)).get_params()[parameter]
            assert len(values) == len(set(values))
            assert default in values or row.name == "dense"
            for value in values:
                make_head(row.name, **{parameter: value})
    for name, row in HEADS.items():
        assert row.name == name
        assert row.summary
    with pytest.raises(TypeError, match="does not support item assignment"):
        HEADS["new"] = HEADS["knn"]


@pytest.mark.parametrize(
    ("text", "name", "values", "params"),
    [
        ("logistic", "logistic", (), {}),
        (" knn ", "knn", (), {}),
        ("logistic:C=0.1", "logistic", (), {"C": 0.1}),
        ("svm:C=1e-3, class_weight=balanced", "svm", (), {"C": 1e-3, "class_weight": "balanced"}),
        ("dense:1024,1024", "dense", (1024, 1024), {}),
        ("dense:256,dropout=0.3", "dense", (256,), {"dropout": 0.3}),
        ("dense:hidden=(256, 128),patience=3", "dense", (), {"hidden": (256, 128), "patience": 3}),
        ("dense:()", "dense", ((),), {}),
        (
            "forest:max_depth=None,bootstrap=False",
            "forest",
            (),
            {"max_depth": None, "bootstrap": False},
        ),
        ("forest:class_weight={'a': 1, 'b': 2}", "forest", (), {"class_weight": {"a": 1, "b": 2}}),
        ("sklearn.naive_bayes.GaussianNB", "sklearn.naive_bayes.GaussianNB", (), {}),
    ],
)
def test_text_is_taken_apart(text, name, values, params):
    parsed = parse_head(text)
    assert (parsed.name, parsed.values, parsed.params) == (name, values, params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a head such as 'logistic'"),
        (":C=1", "write the head's name first"),
        ("logistic:", "nothing after the colon"),
        ("logistic:C=1,,tol=2", "nothing between two commas"),
        ("logistic:C=1,", "leave the extra comma out"),
        ("logistic:C=1,C=2", "'C' is given twice"),
        ("logistic:C=", "cannot read ''"),
        ("logistic:C=1+", r"cannot read '1\+'"),
        ("logistic:C=__import__('os').system('true')", "cannot read"),
        ("dense:(1,2", r"cannot read '\(1,2'"),
        ("logistic:C=" + "[" * 1000, "cannot read"),
        ("logistic:C=" + "9" * 3000, "at most 2000 characters"),
    ],
)
def test_text_that_cannot_be_read_is_named(text, message):
    with pytest.raises(HeadError, match=message):
        parse_head(text)
