"""The classifier of dense layers: what it learns, refuses, keeps and answers."""

import copy
import inspect
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from featx.exceptions import HeadError
from featx.heads.dense import DenseClassifier
from featx.heads.storage import dump_head, load_head


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


@pytest.fixture(scope="module")
def trained(digits):
    head = DenseClassifier(
        (32, 16), learning_rate=0.01, batch_size=64, max_epochs=60, random_state=0
    )
    return head.fit(digits[0][:1000], digits[1][:1000])


@pytest.fixture(scope="module")
def tagged():
    """Features of which the first four say, each by itself, whether a label is there."""
    X = np.random.default_rng(0).normal(size=(800, 12)).astype(np.float32)
    return X, (X[:, :4] > [0.0, 0.5, -0.5, 1.0]).astype(int)


@pytest.fixture(scope="module")
def tagger(tagged):
    X, Y = tagged
    head = DenseClassifier((32,), learning_rate=0.01, batch_size=64, max_epochs=30, random_state=0)
    return head.fit(X[:600], Y[:600])


def small(**params):
    return DenseClassifier(**{"hidden": (8,), "max_epochs": 2, "random_state": 0, **params})


def test_it_learns_digits(trained, digits):
    X, y = digits
    assert trained.score(X[1000:], y[1000:]) > 0.9
    assert [k.shape for k, _ in trained.weights_] == [(64, 32), (32, 16), (16, 10)]
    assert all(a.dtype == np.float32 for layer in trained.weights_ for a in layer)
    assert trained.n_features_in_ == 64


def test_the_forward_pass_is_that_of_keras(trained, digits):
    import keras

    X = digits[0][:50]
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.set_weights([array for layer in trained.weights_ for array in layer])
    expected = model.predict_on_batch(X)
    np.testing.assert_allclose(trained.predict_proba(X), expected, atol=1e-5)
    np.testing.assert_array_equal(trained.predict(X), expected.argmax(axis=1))


def test_rows_sum_to_1_however_large_the_logits(trained, digits):
    probabilities = trained.predict_proba(digits[0][:50] * 1e6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_early_stopping_keeps_the_best_epoch(digits):
    X, y = digits[0][:400], digits[1][:400]
    # Fast and long enough to overfit, so that the best epoch is not the last.
    params = {"hidden": (64,), "learning_rate": 0.05, "dropout": 0.0, "patience": 4}
    head = small(**params, max_epochs=100).fit(X, y)
    losses = head.history_["val_loss"]
    assert head.best_epoch_ == int(np.argmin(losses)) + 1
    assert head.n_iter_ == len(losses) == head.best_epoch_ + 4 < 100
    # The weights are those of that epoch: a run that ends there has the same.
    shorter = small(**params, max_epochs=head.best_epoch_).fit(X, y)
    for layer, same in zip(head.weights_, shorter.weights_, strict=True):
        np.testing.assert_array_equal(layer[0], same[0])
        np.testing.assert_array_equal(layer[1], same[1])


def test_too_few_images_train_on_all_for_every_epoch(digits):
    X, y = digits
    rows = np.concatenate([np.flatnonzero(y == k)[:4] for k in range(10)])
    head = small(max_epochs=12).fit(X[rows], y[rows])
    assert head.n_iter_ == head.best_epoch_ == 12
    assert set(head.history_) == {"loss"}


@pytest.mark.parametrize("images", [1, 2])
def test_two_images_a_class_are_enough(images):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 64))
    X = np.concatenate([centres + 0.3 * rng.normal(size=(10, 64)) for _ in range(images + 20)])
    y = np.tile(np.arange(10), images + 20)
    head = small(hidden=(64,), max_epochs=100).fit(X[: 10 * images], y[: 10 * images])
    assert head.n_iter_ == 100
    assert head.score(X[10 * images :], y[10 * images :]) > 0.9


@pytest.mark.slow
def test_a_thousand_classes():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, 48)).astype(np.float32)
    X = np.concatenate([centres + 0.3 * rng.normal(size=(1000, 48)) for _ in range(8)])
    y = np.tile([f"class {i:04d}" for i in range(1000)], 8)
    head = small(hidden=(64,), learning_rate=1e-2, max_epochs=12).fit(X[:7000], y[:7000])
    assert head.predict_proba(X[:3]).shape == (3, 1000)
    assert head.score(X[7000:], y[7000:]) > 0.9


def test_no_hidden_layer_is_softmax_regression(digits):
    X, y = digits
    head = small(hidden=(), learning_rate=0.02, batch_size=64, max_epochs=100)
    head.fit(X[:1000], y[:1000])
    linear = LogisticRegression().fit(X[:1000], y[:1000])
    assert len(head.weights_) == 1
    assert (head.predict(X[1000:]) == linear.predict(X[1000:])).mean() > 0.95


def test_sample_weights_count_and_weight_0_is_left_out(digits):
    X, y = digits[0][:300], digits[1][:300] % 2
    flipped, weights = np.append(y, 1 - y), np.repeat([1.0, 0.0], 300)
    whole = small(max_epochs=5).fit(X, y)
    head = small(max_epochs=5).fit(np.vstack([X, X]), flipped, sample_weight=weights)
    np.testing.assert_array_equal(head.weights_[0][0], whole.weights_[0][0])


def test_class_weights_shift_the_balance():
    rng = np.random.default_rng(0)
    y = (rng.random(1000) < 0.05).astype(int)
    X = rng.normal(size=(1000, 3)) + y[:, None]
    params = {"hidden": (), "learning_rate": 0.01, "max_epochs": 30}
    shares = [
        small(**params, class_weight=weight).fit(X, y).predict(X)[y == 1].mean()
        for weight in (None, {1: 5.0}, "balanced")
    ]
    assert shares[0] < shares[1] < shares[2]


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
    head = small().fit(X, Y[:, :2])
    assert head.decision_function(X).shape == head.predict(X).shape == (800, 2)


def test_labels_in_lists_and_sparse_matrices_are_the_same(tagged):
    X, Y = tagged[0][:100], tagged[1][:100]
    heads = [small().fit(X, labels) for labels in (Y, Y.tolist(), csr_matrix(Y), Y.astype(bool))]
    for head in heads[1:]:
        np.testing.assert_array_equal(head.weights_[0][0], heads[0].weights_[0][0])


def test_balanced_labels_find_the_rare_one(tagged):
    X, Y = tagged
    rare = np.column_stack([X[:, 0] + 0.8 * X[:, 5] > 2.2, Y[:, 0]]).astype(int)
    params = {"hidden": (), "learning_rate": 0.01, "max_epochs": 30}
    plain, balanced, heavy = (
        small(**params, class_weight=weight).fit(X, rare).predict(X)[rare[:, 0] == 1, 0].mean()
        for weight in (None, "balanced", {0: 20.0})
    )
    assert balanced > plain
    assert heavy > plain


def test_pickle_copy_clone_and_saving(trained, tagger, digits, tagged):
    for head, X in ((trained, digits[0][:20]), (tagger, tagged[0])):
        expected = head.predict_proba(X)
        twins = pickle.loads(pickle.dumps(head)), copy.deepcopy(head), load_head(dump_head(head))
        for twin in twins:
            np.testing.assert_array_equal(twin.predict_proba(X), expected)
            np.testing.assert_array_equal(twin.predict(X), head.predict(X))
    assert clone(trained).get_params() == trained.get_params()
    assert not hasattr(clone(trained), "weights_")


def weights_digest():
    import hashlib

    import numpy as np

    from featx.heads.making import make_head

    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(300, 40)).astype("f4"), rng.integers(0, 3, 300)
    head = make_head("dense:64,32", seed=3, max_epochs=4).fit(X, y)["head"]
    arrays = [array.tobytes() for layer in head.weights_ for array in layer]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


@pytest.mark.slow
def test_one_seed_gives_one_answer_here_and_in_a_fresh_process():
    code = inspect.getsource(weights_digest) + "print(weights_digest())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert fresh.stderr == ""
    assert weights_digest() == weights_digest() == fresh.stdout.strip()


def test_training_leaves_global_generators_alone(digits):
    import keras

    X, y = digits[0][:100], digits[1][:100]
    keras.utils.set_random_seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    expected = keras.ops.convert_to_numpy(keras.random.uniform((3,)))
    keras.utils.set_random_seed(0)
    first = small().fit(X, y)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras.random.uniform((3,))), expected)
    random.seed(99)
    np.random.seed(99)
    again = small().fit(X, y)
    np.testing.assert_array_equal(first.weights_[0][0], again.weights_[0][0])


def test_the_callers_dtype_policy_does_not_matter(digits):
    import keras

    X, y = digits[0][:100], digits[1][:100]
    plain = small().fit(X, y)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = small().fit(X, y)
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(plain.weights_[0][0], mixed.weights_[0][0])


def test_progress_goes_to_the_logger_alone(digits, caplog, capsys):
    with caplog.at_level("INFO", logger="featx"):
        small(verbose=1).fit(digits[0][:100], digits[1][:100])
    assert "epoch 2 of at most 2: loss" in caplog.text
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("X", "y", "params", "message"),
    [
        ([[0.0], [np.nan]], [0, 1], {}, "must be finite, received NaN or inf in 1 of 2 rows"),
        ([[0.0], [np.nan]], [[0, 1], [1, 0]], {}, "finite, received NaN or inf in 1 of 2 rows"),
        ([[0.0], [1]], ["ants", "ants"], {}, "one class only: 'ants'; .* needs at least two"),
        ([[0.0], [1]], [0, 1, 1], {}, "received 2 rows and 3 labels"),
        (np.eye(3), [[0, 1], [1, 0]], {}, "received 3 rows and 2 rows of labels"),
        (np.eye(3), [[0, 2], [1, 0], [1, 1]], {}, r"labels must be 0 or 1, received \[0, 1, 2\]"),
        (
            np.eye(3),
            [[0, 1], [1, 0], [1, 1]],
            {"class_weight": {2: 1.0}},
            "columns from 0 to 1, received 2",
        ),
        (np.eye(2), [0, 1], {"class_weight": {7: 1.0}}, "does not fit the labels"),
        (np.eye(2), [0, 1], {"class_weight": {0: 0.0, 1: 0.0}}, "every image has the weight 0"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(X, y, params, message):
    with pytest.raises(HeadError, match=message):
        small(**params).fit(X, np.array(y))


def test_features_of_another_width_are_refused(trained):
    with pytest.raises(ValueError, match="X has 3 features, but DenseClassifier is expecting 64"):
        trained.predict([[1.0, 2, 3]])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"hidden": 64}, r"hidden must be a tuple.*received 64"),
        ({"hidden": (8, -1)}, r"hidden must be a tuple"),
        ({"dropout": 1.0}, "dropout must be a number from 0 to less than 1, received 1.0"),
        ({"learning_rate": 0}, "learning_rate must be a number greater than 0"),
        (
            {"learning_rate": "fast"},
            "learning_rate must be a number greater than 0, received 'fast'",
        ),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"max_epochs": True}, "max_epochs must be an integer of at least 1, received True"),
        ({"validation_fraction": 0.9}, "validation_fraction must be a number from 0 to 0.5"),
        ({"class_weight": "heavy"}, "class_weight must be None"),
    ],
)
def test_parameters_out_of_range_are_refused(params, message):
    with pytest.raises(HeadError, match=message):
        DenseClassifier(**params).fit(np.eye(2), [0, 1])


def test_divergence_is_an_error(digits):
    with pytest.raises(HeadError, match=r"training diverged.*lower the learning rate"):
        small(learning_rate=1e30).fit(digits[0][:200], digits[1][:200])
