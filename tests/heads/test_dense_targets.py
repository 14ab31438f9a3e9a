"""Labels, weights, few images a class and many classes."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score

from featx.exceptions import HeadError
from featx.heads.dense import DenseClassifier
from featx.heads.storage import dump_head, load_head
from featx.heads.training import hold_out


@pytest.fixture(scope="module")
def tagged():
    """Features of which the first four say, each by itself, whether a label is there."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(800, 12)).astype(np.float32)
    return X, (X[:, :4] > [0.0, 0.5, -0.5, 1.0]).astype(int)


@pytest.fixture(scope="module")
def tagger(tagged):
    X, Y = tagged
    head = DenseClassifier((32,), learning_rate=0.01, batch_size=64, max_epochs=30, random_state=0)
    return head.fit(X[:600], Y[:600])


def test_labels_are_learned_each_by_itself(tagger, tagged):
    X, Y = tagged[0][600:], tagged[1][600:]
    probabilities = tagger.predict_proba(X)
    assert probabilities.shape == (200, 4)
    assert average_precision_score(Y, probabilities, average="macro") > 0.95
    np.testing.assert_array_equal(tagger.predict(X), (probabilities > 0.5).astype(int))
    assert (tagger.predict(X) == Y).mean() > 0.9
    assert tagger.decision_function(X).shape == (200, 4)
    np.testing.assert_array_equal(tagger.classes_, np.arange(4))
    assert set(tagger.history_) == {"loss", "val_loss", "val_accuracy"}


def test_two_labels_are_not_two_classes(tagged):
    X, Y = tagged
    head = DenseClassifier((8,), max_epochs=2, random_state=0).fit(X, Y[:, :2])
    assert head.decision_function(X).shape == head.predict(X).shape == (800, 2)


def test_a_head_of_labels_is_saved(tagger, tagged):
    files = dump_head(tagger)
    assert b'"version": 2' in files["head.json"]
    loaded = load_head(files)
    np.testing.assert_array_equal(loaded.predict_proba(tagged[0]), tagger.predict_proba(tagged[0]))
    np.testing.assert_array_equal(loaded.predict(tagged[0]), tagger.predict(tagged[0]))


def test_a_head_of_classes_is_saved_as_before(tagged):
    head = DenseClassifier((4,), max_epochs=1, random_state=0).fit(tagged[0], tagged[1][:, 0])
    text = dump_head(head)["head.json"].decode()
    assert '"version": 1' in text
    assert "label_smoothing" not in text
    assert "multilabel" not in text
    assert load_head(dump_head(head)).multilabel_ is False


def test_labels_in_lists_and_sparse_matrices_are_the_same(tagged):
    X, Y = tagged[0][:100], tagged[1][:100]
    heads = [
        DenseClassifier((4,), max_epochs=2, random_state=0).fit(X, labels)
        for labels in (Y, Y.tolist(), csr_matrix(Y), Y.astype(bool))
    ]
    for head in heads[1:]:
        np.testing.assert_array_equal(head.weights_[0][0], heads[0].weights_[0][0])


def test_balanced_labels_find_the_rare_one(tagged):
    X, Y = tagged
    rare = np.column_stack([X[:, 0] + 0.8 * X[:, 5] > 2.2, Y[:, 0]]).astype(int)
    params = {"hidden": (), "learning_rate": 0.01, "max_epochs": 30, "random_state": 0}
    plain = DenseClassifier(**params).fit(X, rare)
    balanced = DenseClassifier(**params, class_weight="balanced").fit(X, rare)
    heavy = DenseClassifier(**params, class_weight={0: 20.0}).fit(X, rare)
    found = [head.predict(X)[rare[:, 0] == 1, 0].mean() for head in (plain, balanced, heavy)]
    assert found[1] > found[0]
    assert found[2] > found[0]


@pytest.mark.parametrize(
    ("Y", "params", "message"),
    [
        ([[0, 2], [1, 0], [1, 1]], {}, r"must be 0 or 1, a column for each label.*one column"),
        ([[0, 1], [1, 0]], {}, "received 3 rows and"),
        ([[0, 1], [1, 0], [1, 1]], {"class_weight": {2: 1.0}}, "columns from 0 to 1, received 2"),
    ],
)
def test_labels_that_are_none_are_refused(Y, params, message):
    with pytest.raises(HeadError, match=message):
        DenseClassifier((4,), max_epochs=1, **params).fit(np.eye(3), np.array(Y))


def test_bad_features_under_labels_are_refused():
    X = np.array([[0.0], [np.nan]])
    with pytest.raises(HeadError, match="must be finite, received NaN or inf in 1 of 2 rows"):
        DenseClassifier((4,)).fit(X, np.array([[0, 1], [1, 0]]))


@pytest.mark.parametrize("images", [1, 2])
def test_two_images_a_class_are_enough(images):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 64))
    X = np.concatenate([centres + 0.3 * rng.normal(size=(10, 64)) for _ in range(images + 20)])
    y = np.tile(np.arange(10), images + 20)
    head = DenseClassifier((64,), random_state=0).fit(X[: 10 * images], y[: 10 * images])
    assert head.n_iter_ == 100
    assert head.score(X[10 * images :], y[10 * images :]) > 0.9


def test_a_thousand_classes():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, 48)).astype(np.float32)
    X = np.concatenate([centres + 0.3 * rng.normal(size=(1000, 48)) for _ in range(8)])
    y = np.tile([f"class {i:04d}" for i in range(1000)], 8)
    head = DenseClassifier((64,), learning_rate=1e-2, max_epochs=12, random_state=0)
    head.fit(X[:7000], y[:7000])
    assert head.predict_proba(X[:3]).shape == (3, 1000)
    assert head.score(X[7000:], y[7000:]) > 0.9


def test_one_rare_class_does_not_forbid_early_stopping():
    codes = np.repeat([0, 1, 2], [4, 200, 100])
    train, held = hold_out(codes, 0.1, np.random.default_rng(0))
    assert np.bincount(codes[held]).tolist() == [0, 20, 10]
    assert len(train) + len(held) == len(codes)


def test_the_hold_out_of_a_stream_is_bounded():
    codes = np.repeat([0, 1], 5000)
    _, held = hold_out(codes, 0.1, np.random.default_rng(0), most=100)
    assert len(held) == 100
    _, held = hold_out(np.zeros((1000, 3)), 0.1, np.random.default_rng(0))
    assert len(held) == 100


def test_class_weights_shift_the_balance():
    rng = np.random.default_rng(0)
    y = (rng.random(1000) < 0.05).astype(int)
    X = rng.normal(size=(1000, 3)) + y[:, None]
    params = {"hidden": (), "learning_rate": 0.01, "max_epochs": 30, "random_state": 0}
    shares = [
        DenseClassifier(**params, class_weight=weight).fit(X, y).predict(X)[y == 1].mean()
        for weight in (None, {1: 5.0}, "balanced")
    ]
    assert shares[0] < shares[1] < shares[2]
