import copy
import inspect
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from featx.exceptions import HeadError
from featx.heads.dense import DenseClassifier
from featx.heads.network import logits, softmax
from featx.heads.training import hold_out


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


def test_it_learns_digits(trained, digits):
    X, y = digits
    assert trained.score(X[1000:], y[1000:]) > 0.9
    assert [k.shape for k, _ in trained.weights_] == [(64, 32), (32, 16), (16, 10)]
    assert all(a.dtype == np.float32 for layer in trained.weights_ for a in layer)
    assert trained.n_features_in_ == 64


def test_the_forward_pass_is_relu_layers_and_a_softmax(trained, digits):
    X = digits[0][:50]
    (k0, b0), (k1, b1), (k2, b2) = trained.weights_
    hidden = np.maximum(np.maximum(X @ k0 + b0, 0) @ k1 + b1, 0)
    powers = np.exp((hidden @ k2 + b2).astype(np.float64))
    by_hand = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(trained.predict_proba(X), by_hand, atol=1e-5)
    np.testing.assert_array_equal(trained.predict(X), trained.classes_[by_hand.argmax(axis=1)])


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
    np.testing.assert_allclose(trained.predict_proba(X), model.predict_on_batch(X), atol=1e-5)


def test_rows_sum_to_1_however_large_the_logits():
    scores = np.array([[1e4, -1e4, 9e3], [0, 0, 0]], dtype=np.float32)
    np.testing.assert_allclose(softmax(scores), [[1, 0, 0], [1 / 3] * 3], rtol=1e-6)


def test_early_stopping_keeps_the_best_epoch(digits):
    X, y = digits[0][:400], digits[1][:400]
    # Fast and long enough to overfit, so that the best epoch is not the last.
    params = {"hidden": (64,), "learning_rate": 0.05, "dropout": 0.0, "patience": 4}
    head = DenseClassifier(**params, random_state=0).fit(X, y)
    losses = head.history_["val_loss"]
    assert head.best_epoch_ == int(np.argmin(losses)) + 1
    assert head.n_iter_ == len(losses) == head.best_epoch_ + 4 < 100
    # The weights are those of that epoch: a run that ends there has the same.
    shorter = DenseClassifier(**params, max_epochs=head.best_epoch_, random_state=0).fit(X, y)
    for (kernel, bias), (same_kernel, same_bias) in zip(
        head.weights_, shorter.weights_, strict=True
    ):
        np.testing.assert_array_equal(kernel, same_kernel)
        np.testing.assert_array_equal(bias, same_bias)


def test_too_few_images_train_on_all_for_every_epoch(digits):
    X, y = digits
    rows = np.concatenate([np.flatnonzero(y == k)[:4] for k in range(10)])
    head = DenseClassifier((16,), max_epochs=12, random_state=0).fit(X[rows], y[rows])
    assert head.n_iter_ == head.best_epoch_ == 12
    assert set(head.history_) == {"loss"}


def test_the_hold_out_is_stratified():
    codes = np.repeat([0, 1, 2], [100, 50, 10])
    train, held = hold_out(codes, 0.1, np.random.default_rng(0))
    assert np.bincount(codes[held]).tolist() == [10, 5, 1]
    assert sorted([*train, *held]) == list(range(160))


@pytest.mark.parametrize("counts", [(4, 12), (20, 20), (5,)])
def test_nothing_is_held_out_of_too_few(counts):
    codes = np.repeat(np.arange(len(counts)), counts)
    train, held = hold_out(codes, 0.1, np.random.default_rng(0))
    assert (len(train), len(held)) == (len(codes), 0)


def test_no_hidden_layer_is_softmax_regression(digits):
    X, y = digits
    head = DenseClassifier((), learning_rate=0.02, batch_size=64, random_state=0).fit(
        X[:1000], y[:1000]
    )
    linear = LogisticRegression().fit(X[:1000], y[:1000])
    assert len(head.weights_) == 1
    assert (head.predict(X[1000:]) == linear.predict(X[1000:])).mean() > 0.95


def test_sample_weights_count_and_weight_0_is_left_out(digits):
    X, y = digits[0][:300], digits[1][:300] % 2
    flipped, weights = np.append(y, 1 - y), np.repeat([1.0, 0.0], 300)
    kept = DenseClassifier((8,), max_epochs=5, random_state=0).fit(X, y)
    head = DenseClassifier((8,), max_epochs=5, random_state=0)
    head.fit(np.vstack([X, X]), flipped, sample_weight=weights)
    np.testing.assert_array_equal(head.weights_[0][0], kept.weights_[0][0])


def test_pickle_copy_and_clone(trained, digits):
    X = digits[0][:20]
    expected = trained.predict_proba(X)
    for twin in (pickle.loads(pickle.dumps(trained)), copy.deepcopy(trained)):
        np.testing.assert_array_equal(twin.predict_proba(X), expected)
    assert clone(trained).get_params() == trained.get_params()
    assert not hasattr(clone(trained), "weights_")


def weights_digest():
    import hashlib

    import numpy as np

    from featx.heads.table import make_head

    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(300, 40)).astype("f4"), rng.integers(0, 3, 300)
    head = make_head("dense:64,32", seed=3, max_epochs=4).fit(X, y)["head"]
    arrays = [array.tobytes() for layer in head.weights_ for array in layer]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


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
    first = DenseClassifier((8,), max_epochs=2, random_state=0).fit(X, y)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras.random.uniform((3,))), expected)
    random.seed(99)
    np.random.seed(99)
    again = DenseClassifier((8,), max_epochs=2, random_state=0).fit(X, y)
    np.testing.assert_array_equal(first.weights_[0][0], again.weights_[0][0])


def test_the_callers_dtype_policy_does_not_matter(digits):
    import keras

    X, y = digits[0][:100], digits[1][:100]
    plain = DenseClassifier((8,), max_epochs=2, random_state=0).fit(X, y)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = DenseClassifier((8,), max_epochs=2, random_state=0).fit(X, y)
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(plain.weights_[0][0], mixed.weights_[0][0])


def test_progress_goes_to_the_logger_alone(digits, caplog, capsys):
    head = DenseClassifier((8,), max_epochs=2, verbose=1, random_state=0)
    with caplog.at_level("INFO", logger="featx"):
        head.fit(digits[0][:100], digits[1][:100])
    assert "epoch 2 of at most 2: loss" in caplog.text
    assert capsys.readouterr().out == ""


def test_the_order_of_layers_is_kept():
    first = (np.array([[2.0, 0], [0, 1]], "f4"), np.array([0, -1], "f4"))
    second = (np.array([[1.0], [1]], "f4"), np.array([0.5], "f4"))
    assert logits(np.array([[1, 3]], "f4"), [first, second]).tolist() == [[4.5]]


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ([[0.0], [np.nan]], [0, 1], "must be finite, received NaN or inf in 1 of 2 rows"),
        ([[0.0], [1]], ["ants", "ants"], "one class only: 'ants'; a classifier needs at least two"),
        ([[0.0], [1]], [0, 1, 1], "received 2 rows and 3 labels"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(X, y, message):
    with pytest.raises(HeadError, match=message):
        DenseClassifier((4,)).fit(X, y)


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
        ({"class_weight": {7: 1.0}}, "does not fit the labels"),
    ],
)
def test_parameters_out_of_range_are_refused(params, message):
    with pytest.raises(HeadError, match=message):
        DenseClassifier(**params).fit(np.eye(2), [0, 1])


def test_weights_of_0_for_all_are_refused():
    with pytest.raises(HeadError, match="every image has the weight 0"):
        DenseClassifier((4,), class_weight={0: 0.0, 1: 0.0}).fit(np.eye(2), [0, 1])


def test_divergence_is_said(digits):
    with pytest.raises(HeadError, match=r"training diverged.*lower the learning rate"):
        DenseClassifier((8,), learning_rate=1e30, random_state=0).fit(
            digits[0][:200], digits[1][:200]
        )
