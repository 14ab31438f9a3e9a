"""Dense heads trained together, on streams and in sweeps are the heads that they would be alone."""

import tracemalloc

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

from featx.exceptions import HeadError
from featx.heads.dense import DenseClassifier, fit_heads, sweep_dense
from featx.heads.dense_training import hold_out
from featx.heads.making import make_head
from featx.heads.rows import Rows
from featx.heads.storage import dump_head, load_head
from featx.heads.targets import Targets


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32)[:600], y[:600]


def heads_of(grid, **params):
    return [DenseClassifier(**{"random_state": 0, "batch_size": 64, **params, **g}) for g in grid]


def fit_together(heads, digits, **more):
    return fit_heads(heads, Rows.of(digits[0]), Targets.of_classes(digits[1]), **more)


def fit_alone(head, digits):
    return DenseClassifier(**head.get_params()).fit(*digits)


def assert_same(head, twin, atol=1e-5):
    for layer, same in zip(head.weights_, twin.weights_, strict=True):
        np.testing.assert_allclose(layer[0], same[0], atol=atol)
        np.testing.assert_allclose(layer[1], same[1], atol=atol)
    for name in twin.history_:
        np.testing.assert_allclose(head.history_[name], twin.history_[name], rtol=1e-3)


GRID = [
    {"hidden": (16,), "learning_rate": 1e-3, "dropout": 0.0},
    {"hidden": (16,), "learning_rate": 1e-2, "dropout": 0.4},
    {"hidden": (32,), "learning_rate": 1e-2, "weight_decay": 0.5},
    {"hidden": (32, 16), "learning_rate": 1e-2, "dropout": 0.2},
    {"hidden": (), "learning_rate": 1e-2, "label_smoothing": 0.2},
    {"hidden": (16,), "learning_rate": 3e-3, "dropout": 0.1, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("grid", [pytest.param(GRID, marks=pytest.mark.slow), GRID[1::2]])
def test_a_head_is_the_same_together_and_alone(digits, grid):
    together = heads_of(grid, max_epochs=4)
    assert fit_together(together, digits) == [""] * len(grid)
    for head in together:
        assert_same(head, fit_alone(head, digits))
    loaded = load_head(dump_head(together[1]))
    expected = together[1].predict_proba(digits[0])
    np.testing.assert_array_equal(loaded.predict_proba(digits[0]), expected)


@pytest.mark.slow
def test_each_head_stops_when_it_would_alone(digits, monkeypatch):
    # A stack is made smaller whenever a head has left it.
    monkeypatch.setattr("featx.heads.dense_training._REBUILD_FLOP", 0.0)
    grid = [{"hidden": (w,), "learning_rate": r} for w, r in [(16, 0.03), (24, 0.3)]]
    together = heads_of(grid, patience=3)
    fit_together(together, digits)
    assert len({head.n_iter_ for head in together}) > 1
    for head in together:
        twin = fit_alone(head, digits)
        assert abs(head.n_iter_ - twin.n_iter_) <= 2
        difference = head.history_["val_accuracy"][-1] - twin.history_["val_accuracy"][-1]
        assert abs(difference) < 0.05
        assert head.n_iter_ == head.best_epoch_ + 3


def test_a_head_goes_on_where_it_was_when_others_leave(digits, monkeypatch):
    monkeypatch.setattr("featx.heads.dense_training._REBUILD_FLOP", 0.0)
    grid = [{"max_epochs": 2}, {"max_epochs": 5}, {"max_epochs": 3, "hidden": (24,)}]
    together = heads_of([{"hidden": (16,), **params} for params in grid], dropout=0.3)
    fit_together(together, digits)
    assert [head.n_iter_ for head in together] == [2, 5, 3]
    assert_same(together[1], fit_alone(together[1], digits))


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


def test_a_head_that_diverges_takes_no_other_with_it(digits):
    grid = [{"learning_rate": 1e30}, {"learning_rate": 1e-2}]
    lost, whole = heads_of(grid, hidden=(16,), max_epochs=4)
    failures = fit_together([lost, whole], digits)
    assert "training diverged" in failures[0]
    assert failures[1] == ""
    assert not hasattr(lost, "weights_")
    assert_same(whole, fit_alone(whole, digits))


@pytest.mark.slow
def test_heads_of_other_seeds_batches_and_class_weights(digits):
    grid = [
        {"random_state": 1},
        {"batch_size": 32},
        {"class_weight": "balanced"},
        {"class_weight": {3: 4.0}},
    ]
    together = heads_of(grid, hidden=(8,), max_epochs=2)
    assert fit_together(together, digits) == [""] * 4
    for head in together:
        assert_same(head, fit_alone(head, digits))


def test_a_stack_too_large_for_memory_is_cut(digits, monkeypatch):
    monkeypatch.setattr("featx.heads.dense_training._MOST_PARAMETERS", 2500)
    grid = [{"learning_rate": rate} for rate in (0.01, 0.02, 0.03)]
    together = heads_of(grid, hidden=(16,), max_epochs=2)
    assert fit_together(together, digits) == ["", "", ""]
    assert_same(together[2], fit_alone(together[2], digits))


def test_a_compiled_stack_learns_the_same(digits, monkeypatch):
    grid = [{"learning_rate": rate, "dropout": 0.3} for rate in (0.001, 0.01)]
    plain, compiled = (heads_of(grid, hidden=(16,), max_epochs=4) for _ in range(2))
    fit_together(plain, digits)
    monkeypatch.setattr("featx.heads.dense_training._JIT_FLOP", 0.0)
    fit_together(compiled, digits)
    for head, twin in zip(plain, compiled, strict=True):
        assert_same(head, twin, atol=1e-4)


def test_models_are_used_again(digits):
    models = {}
    grid = [{"learning_rate": rate} for rate in (0.001, 0.01)]
    first, again = (heads_of(grid, hidden=(16,), max_epochs=3) for _ in range(2))
    fit_together(first, digits, models=models)
    (model,) = models.values()
    fit_together(again, digits, models=models)
    assert list(models.values()) == [model]
    for head, twin in zip(first, again, strict=True):
        np.testing.assert_array_equal(head.weights_[0][0], twin.weights_[0][0])


def test_a_bad_parameter_is_an_error_before_training(digits):
    assert fit_together([], digits) == []
    with pytest.raises(HeadError, match="label_smoothing must be a number from 0 to less than 1"):
        fit_together(heads_of([{}, {"label_smoothing": 1.0}]), digits)


@pytest.mark.parametrize(
    ("counts", "held_counts"),
    [
        ((100, 50, 10), [10, 5, 1]),
        ((4, 200, 100), [0, 20, 10]),  # one rare class does not forbid early stopping
        ((4, 12), [0, 0]),
        ((20, 20), [0, 0]),
        ((5,), [0]),
    ],
)
def test_the_hold_out_is_stratified_and_empty_of_too_few(counts, held_counts):
    codes = np.repeat(np.arange(len(counts)), counts)
    train, held = hold_out(Targets.of_classes(codes), 0.1, np.random.default_rng(0))
    assert np.bincount(codes[held], minlength=len(counts)).tolist() == held_counts
    assert sorted([*train, *held]) == list(range(len(codes)))


def test_the_hold_out_of_a_stream_is_bounded():
    targets = Targets.of_classes(np.repeat([0, 1], 5000))
    assert len(hold_out(targets, 0.1, np.random.default_rng(0), most=100)[1]) == 100
    targets = Targets.of_labels(np.zeros((1000, 3)))
    assert len(hold_out(targets, 0.1, np.random.default_rng(0))[1]) == 100


def drawn(rows, width=32, classes=5, seed=0):
    centres = np.random.default_rng(0).normal(size=(classes, width)) * 0.5
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    return (centres[y] + rng.normal(size=(rows, width))).astype(np.float32) * 3, y


def source_of(X, size=100):
    def source(seed):
        order = np.random.default_rng(seed).permutation(len(X))
        for start in range(0, len(X), size):
            rows = order[start : start + size]
            yield X[rows], rows

    return source


def stream_of(X, size=100):
    return Rows.stream(source_of(X, size), len(X), 256 << 20)


@pytest.fixture(scope="module")
def data():
    return drawn(2000)


def test_a_stream_is_as_accurate_as_memory(data):
    X, y = data[0][:1000], data[1][:1000]
    X_test, y_test = drawn(2000, seed=1)
    whole, streamed = heads_of([{}, {}], hidden=(32,), max_epochs=10)
    whole.fit(X, y)
    streamed.fit_rows(stream_of(X), Targets.of_classes(y))
    assert abs(whole.score(X_test, y_test) - streamed.score(X_test, y_test)) < 0.02
    assert streamed.n_features_in_ == 32
    assert set(streamed.history_) == {"loss", "val_loss", "val_accuracy"}


def test_one_batch_of_all_rows_is_the_same_step(data):
    X, y = data
    whole, streamed = heads_of([{}, {}], hidden=(8,), dropout=0, batch_size=5000, max_epochs=3)
    whole.fit(X, y)
    streamed.fit_rows(stream_of(X, 300), Targets.of_classes(y))
    # Sums of another order differ in the last digit, which Adam amplifies where gradients vanish.
    np.testing.assert_allclose(streamed.predict_proba(X), whole.predict_proba(X), atol=0.01)
    np.testing.assert_allclose(streamed.history_["loss"], whole.history_["loss"], rtol=1e-3)


def test_several_heads_share_the_passes(data):
    passes = []

    def source(seed):
        passes.append(seed)
        return source_of(data[0])(seed)

    heads = heads_of([{"learning_rate": 1e-3}, {"learning_rate": 1e-2}], hidden=(8,), max_epochs=3)
    rows = Rows.stream(source, len(data[0]), 256 << 20)
    assert fit_heads(heads, rows, Targets.of_classes(data[1])) == ["", ""]
    # One for the width, one for the rows held out, three epochs in another order each.
    assert passes[:2] == [None, None]
    assert len(set(passes[2:])) == len(passes[2:]) == 3
    assert all(head.n_iter_ == 3 for head in heads)


@pytest.mark.slow
def test_memory_is_bounded_by_batches():
    rows, width, size = 20_000, 200, 500
    y = np.arange(rows) % 4

    def source(seed):
        for number in np.random.default_rng(seed).permutation(rows // size):
            numbers = np.arange(number * size, (number + 1) * size)
            part = np.random.default_rng(number).normal(size=(size, width)).astype(np.float32)
            part[np.arange(size), y[numbers]] += 3
            yield part, numbers

    stream, targets = Rows.stream(source, rows, 2 << 20), Targets.of_classes(y)
    short, head = heads_of([{"max_epochs": 1}, {"max_epochs": 2}], hidden=(8,), learning_rate=0.01)
    short.fit_rows(stream, targets)
    tracemalloc.start()
    try:
        head.fit_rows(stream, targets)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The whole matrix is 16 MB.
    assert peak < 7 << 20
    part, numbers = next(source(5))
    assert head.score(part, y[numbers]) > 0.8


def test_labels_and_row_weights_stream_too(data):
    X, y = data
    Y = np.column_stack([y < 2, y % 2]).astype(int)
    weights = np.where(np.arange(len(y)) < 1500, 1.0, 0.0)
    (head,) = heads_of([{}], hidden=(16,), learning_rate=3e-3, batch_size=256, max_epochs=15)
    head.fit_rows(stream_of(X), Targets.of_labels(Y, weights))
    assert (head.predict(X[1500:]) == Y[1500:]).mean() > 0.75


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda X: [], "the stream gave no batch"),
        (lambda X: [(X[:1000], np.arange(1000))], "a pass over all .* rows to train on, received"),
        (lambda X: [(X, np.arange(5))], r"row numbers \(b,\), received shapes"),
        (lambda X: [(X, np.arange(2000) + 1)], "from 0 to 1999.*received 1 to 2000"),
        (lambda X: [(X * np.nan, np.arange(2000))], "received NaN or inf in row 0"),
        (
            lambda X: [(X, np.arange(2000)), (X[:, :3], np.arange(2000))],
            "expected 32 features in every batch, received 3",
        ),
    ],
)
def test_a_stream_that_does_not_fit_is_refused(data, batches, message):
    (head,) = heads_of([{}], hidden=(8,), max_epochs=1)

    def fit():
        rows = Rows.stream(lambda seed: batches(data[0]), len(data[0]), 256 << 20)
        return head.fit_rows(rows, Targets.of_classes(data[1]))

    with pytest.raises(HeadError, match=message):
        fit()


CANDIDATES = [
    {"hidden": (16,), "learning_rate": 1e-2, "max_epochs": 4},
    {"hidden": (16,), "learning_rate": 3e-3, "dropout": 0.5, "max_epochs": 6},
    {"hidden": (24, 8), "learning_rate": 1e-2, "max_epochs": 4},
]


@pytest.fixture(scope="module")
def folds(digits):
    return list(StratifiedKFold(2, shuffle=True, random_state=0).split(*digits))


def test_a_sweep_measures_each_head_as_by_itself(digits, folds):
    X, y = digits
    weights = np.where(y == 3, 2.0, 1.0)
    results = list(sweep_dense(X, y, folds, CANDIDATES, seed=4, sample_weight=weights))
    assert {(h.candidate, h.fold) for h in results} == {(c, f) for c in range(3) for f in range(2)}
    for result in results[::2]:  # alone, each takes as long as all together
        train, test = folds[result.fold]
        head = make_head("dense", seed=4, **CANDIDATES[result.candidate])
        head.fit(X[train], y[train], head__sample_weight=weights[train])
        np.testing.assert_allclose(result.values, head.predict_proba(X[test]), atol=1e-3)
        assert result.probabilities
        assert not result.stopped


def test_a_setting_that_diverges_is_marked(digits, folds, caplog):
    rates = [{"hidden": (8,), "max_epochs": 2, "learning_rate": rate} for rate in (1e30, 1e-2)]
    lost, whole = sweep_dense(*digits, folds[:1], rates)
    assert lost.stopped
    np.testing.assert_allclose(lost.values, 0.1)
    assert not whole.stopped
    assert "candidate 0, fold 0: training diverged" in caplog.text


def test_labels_are_swept_too(digits, folds):
    Y = np.column_stack([digits[1] < 5, digits[1] % 2]).astype(int)
    (result,) = sweep_dense(digits[0], Y, folds[:1], CANDIDATES[:1])
    assert result.values.shape == (300, 2)
    assert ((result.values > 0.5) == Y[folds[0][1]]).mean() > 0.7


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"learning_rat": 0.1}, "unknown parameter 'learning_rat' of 'dense': did you mean 'lea"),
        ({"dropout": 1.5}, "dropout must be a number from 0 to less than 1, received 1.5"),
    ],
)
def test_bad_settings_are_an_error_before_any_training(digits, candidate, message):
    with pytest.raises(HeadError, match=message):
        next(sweep_dense(*digits, [], [{}, candidate]))
