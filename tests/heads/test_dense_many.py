"""Heads that are trained together are the heads that they would be alone."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from featx.exceptions import HeadError
from featx.heads.dense import DenseClassifier
from featx.heads.dense_many import fit_heads
from featx.heads.storage import dump_head, load_head


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32)[:600], y[:600]


def heads_of(grid, **params):
    return [DenseClassifier(**{"random_state": 0, "batch_size": 64, **params, **g}) for g in grid]


GRID = [
    {"hidden": (16,), "learning_rate": 1e-3, "dropout": 0.0},
    {"hidden": (16,), "learning_rate": 1e-2, "dropout": 0.4},
    {"hidden": (32,), "learning_rate": 1e-2, "weight_decay": 0.5},
    {"hidden": (32, 16), "learning_rate": 1e-2, "dropout": 0.2},
    {"hidden": (), "learning_rate": 1e-2, "label_smoothing": 0.2},
    {"hidden": (16,), "learning_rate": 3e-3, "dropout": 0.1, "label_smoothing": 0.1},
]


def test_a_head_is_the_same_together_and_alone(digits):
    together = heads_of(GRID, max_epochs=4)
    assert fit_heads(together, *digits) == [""] * len(GRID)
    for head, twin in zip(together, heads_of(GRID, max_epochs=4), strict=True):
        twin.fit(*digits)
        for layer, same in zip(head.weights_, twin.weights_, strict=True):
            np.testing.assert_allclose(layer[0], same[0], atol=1e-5)
            np.testing.assert_allclose(layer[1], same[1], atol=1e-5)
        np.testing.assert_allclose(head.history_["loss"], twin.history_["loss"], rtol=1e-4)
        np.testing.assert_allclose(head.history_["val_loss"], twin.history_["val_loss"], rtol=1e-4)


def test_each_head_stops_when_it_would_alone(digits, monkeypatch):
    # A stack is made smaller whenever a head has left it.
    monkeypatch.setattr("featx.heads.dense_stack._REBUILD_FLOP", 0.0)
    grid = [{"hidden": (w,), "learning_rate": r} for w, r in [(16, 0.03), (24, 0.3)]]
    together = heads_of(grid, patience=3)
    fit_heads(together, *digits)
    assert len({head.n_iter_ for head in together}) > 1
    for head, twin in zip(together, heads_of(grid, patience=3), strict=True):
        twin.fit(*digits)
        assert abs(head.n_iter_ - twin.n_iter_) <= 2
        difference = head.history_["val_accuracy"][-1] - twin.history_["val_accuracy"][-1]
        assert abs(difference) < 0.05
        assert head.n_iter_ == head.best_epoch_ + 3


def test_a_head_goes_on_where_it_was_when_others_leave(digits, monkeypatch):
    monkeypatch.setattr("featx.heads.dense_stack._REBUILD_FLOP", 0.0)
    grid = [{"max_epochs": 2}, {"max_epochs": 5}, {"max_epochs": 3, "hidden": (24,)}]
    together = heads_of(grid, hidden=(16,), dropout=0.3)
    grid[2]["hidden"] = (24,)
    together[2].hidden = (24,)
    fit_heads(together, *digits)
    twin = DenseClassifier((16,), dropout=0.3, max_epochs=5, batch_size=64, random_state=0).fit(
        *digits
    )
    assert [head.n_iter_ for head in together] == [2, 5, 3]
    np.testing.assert_allclose(together[1].weights_[0][0], twin.weights_[0][0], atol=1e-5)
    np.testing.assert_allclose(together[1].history_["loss"], twin.history_["loss"], rtol=1e-4)


def test_adamw_is_that_of_keras(digits):
    import keras

    X, y = digits
    head = DenseClassifier(
        (8,), dropout=0.0, weight_decay=0.1, learning_rate=0.01, batch_size=1000, max_epochs=5,
        validation_fraction=0, random_state=0,
    )  # fmt: skip
    starting = DenseClassifier(**{**head.get_params(), "max_epochs": 1, "learning_rate": 1e-30})
    start = starting.fit(X, y).weights_
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(10)]
    )
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.set_weights([array for layer in start for array in layer])
    model.fit(X, y, batch_size=1000, epochs=5, shuffle=False, verbose=0)
    arrays = [array for layer in head.fit(X, y).weights_ for array in layer]
    for array, expected in zip(arrays, model.get_weights(), strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)


def test_one_that_diverges_takes_no_other_with_it(digits):
    grid = [{"learning_rate": 1e30}, {"learning_rate": 1e-2}]
    lost, kept = heads_of(grid, hidden=(16,), max_epochs=4)
    failures = fit_heads([lost, kept], *digits)
    assert "training diverged" in failures[0]
    assert failures[1] == ""
    assert not hasattr(lost, "weights_")
    twin = DenseClassifier(**kept.get_params()).fit(*digits)
    np.testing.assert_allclose(kept.weights_[0][0], twin.weights_[0][0], atol=1e-5)


def test_heads_of_other_seeds_batches_and_class_weights(digits):
    grid = [
        {"random_state": 1},
        {"batch_size": 32},
        {"class_weight": "balanced"},
        {"class_weight": {3: 4.0}},
    ]
    together = heads_of(grid, hidden=(8,), max_epochs=2)
    assert fit_heads(together, *digits) == [""] * 4
    for head in together:
        twin = DenseClassifier(**head.get_params()).fit(*digits)
        np.testing.assert_allclose(head.weights_[0][0], twin.weights_[0][0], atol=1e-5)


def test_a_stack_too_large_for_memory_is_cut(digits, monkeypatch):
    monkeypatch.setattr("featx.heads.dense_many._MOST_PARAMETERS", 2500)
    grid = [{"learning_rate": rate} for rate in (0.01, 0.02, 0.03)]
    together = heads_of(grid, hidden=(16,), max_epochs=2)
    assert fit_heads(together, *digits) == ["", "", ""]
    twin = DenseClassifier(**together[2].get_params()).fit(*digits)
    np.testing.assert_allclose(together[2].weights_[0][0], twin.weights_[0][0], atol=1e-5)


def test_a_compiled_stack_learns_the_same(digits, monkeypatch):
    grid = [{"learning_rate": rate, "dropout": 0.3} for rate in (0.001, 0.01)]
    plain = heads_of(grid, hidden=(16,), max_epochs=4)
    fit_heads(plain, *digits)
    monkeypatch.setattr("featx.heads.dense_arrays._JIT_FLOP", 0.0)
    compiled = heads_of(grid, hidden=(16,), max_epochs=4)
    fit_heads(compiled, *digits)
    for head, twin in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(head.weights_[0][0], twin.weights_[0][0], atol=1e-4)


def test_models_are_used_again(digits):
    models = {}
    grid = [{"learning_rate": rate} for rate in (0.001, 0.01)]
    first, again = (heads_of(grid, hidden=(16,), max_epochs=3) for _ in range(2))
    fit_heads(first, *digits, models=models)
    (model,) = models.values()
    fit_heads(again, *digits, models=models)
    assert list(models.values()) == [model]
    for head, twin in zip(first, again, strict=True):
        np.testing.assert_array_equal(head.weights_[0][0], twin.weights_[0][0])


def test_the_winner_is_a_plain_head_that_saves(digits):
    head = heads_of(GRID, max_epochs=2)[3]
    fit_heads([*heads_of(GRID[:3], max_epochs=2), head], *digits)
    assert head.n_features_in_ == 64
    loaded = load_head(dump_head(head))
    np.testing.assert_array_equal(loaded.predict_proba(digits[0]), head.predict_proba(digits[0]))
    assert loaded.get_params() == head.get_params()


def test_no_heads_are_no_work(digits):
    assert fit_heads([], *digits) == []


def test_a_bad_parameter_is_said_before_training(digits):
    with pytest.raises(HeadError, match="label_smoothing must be a number from 0 to less than 1"):
        fit_heads(heads_of([{}, {"label_smoothing": 1.0}]), *digits)
