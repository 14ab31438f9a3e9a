"""Training on a stream of batches is training in memory, within bounds."""

import tracemalloc

import numpy as np
import pytest

from featx.exceptions import HeadError
from featx.heads.dense import DenseClassifier
from featx.heads.dense_streaming import fit_streamed, fit_streamed_heads
from featx.heads.table import make_head


def drawn(rows, width=32, classes=5, seed=0):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, width)) * 0.5
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    return (centres[y] + rng.normal(size=(rows, width))).astype(np.float32) * 3 + 5, y


def source_of(X, size=100):
    def source(seed):
        order = np.random.default_rng(seed).permutation(len(X))
        for start in range(0, len(X), size):
            rows = order[start : start + size]
            yield X[rows], rows

    return source


@pytest.fixture(scope="module")
def data():
    return drawn(2000)


def test_it_is_as_accurate_as_in_memory(data):
    X_test, y_test = drawn(2000, seed=1)
    data = data[0][:1000], data[1][:1000]
    params = {"learning_rate": 3e-3, "max_epochs": 15}
    scores = {"memory": [], "stream": []}
    for seed in range(2):
        head = make_head("dense:32", seed=seed, **params)
        scores["memory"].append(head.fit(*data).score(X_test, y_test))
        streamed = fit_streamed(
            make_head("dense:32", seed=seed, **params), source_of(data[0]), data[1]
        )
        scores["stream"].append(streamed.score(X_test, y_test))
    assert abs(np.mean(scores["memory"]) - np.mean(scores["stream"])) < 0.02
    np.testing.assert_allclose(streamed["scale"].mean_, head["scale"].mean_, rtol=1e-5)
    np.testing.assert_allclose(streamed["scale"].scale_, head["scale"].scale_, rtol=1e-5)
    assert streamed.n_features_in_ == 32
    assert set(streamed["head"].history_) == {"loss", "val_loss", "val_accuracy"}


def test_one_batch_of_all_rows_is_the_same_step(data):
    X, y = data
    params = {"hidden": (8,), "dropout": 0, "batch_size": 5000, "max_epochs": 3}
    params["random_state"] = 0
    whole = DenseClassifier(**params).fit(X, y)
    streamed = fit_streamed(DenseClassifier(**params), source_of(X, 300), y)
    # Sums of another order differ in the last digit, which Adam amplifies where gradients vanish.
    np.testing.assert_allclose(streamed.predict_proba(X), whole.predict_proba(X), atol=0.01)
    np.testing.assert_allclose(streamed.history_["loss"], whole.history_["loss"], rtol=1e-3)


def test_several_heads_share_the_passes(data):
    passes = []
    plain = source_of(data[0])

    def source(seed):
        passes.append(seed)
        return plain(seed)

    heads = [
        DenseClassifier((8,), learning_rate=rate, max_epochs=3, random_state=0)
        for rate in (1e-3, 1e-2)
    ]
    assert fit_streamed_heads(heads, source, data[1]) == ["", ""]
    # One for the width, one for the rows held out, three epochs.
    assert len(passes) == 5
    assert all(head.n_iter_ == 3 for head in heads)


def test_memory_is_bounded_by_batches():
    rows, width, size = 20_000, 200, 500
    y = np.arange(rows) % 4

    def source(seed):
        for number in np.random.default_rng(seed).permutation(rows // size):
            numbers = np.arange(number * size, (number + 1) * size)
            part = np.random.default_rng(number).normal(size=(size, width)).astype(np.float32)
            part[np.arange(size), y[numbers]] += 3
            yield part, numbers

    head = make_head("dense:8", learning_rate=0.01, max_epochs=2)
    fit_streamed(make_head("dense:8", max_epochs=1), source, y, max_ram_bytes=2 << 20)
    tracemalloc.start()
    try:
        fit_streamed(head, source, y, max_ram_bytes=2 << 20)
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
    head = fit_streamed(
        make_head("dense:16", learning_rate=0.01, max_epochs=15), source_of(X), Y, weights
    )
    assert (head.predict(X[1500:]) == Y[1500:]).mean() > 0.75


def half(X):
    return lambda seed: ((X[rows], rows) for rows in [np.arange(len(X) // 2)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda X: lambda seed: iter(()), "the stream gave no batch"),
        (half, "expected each of 2000 labelled rows once a pass, received 1000"),
        (lambda X: lambda seed: [(X, np.arange(5))], r"row numbers \(b,\), received shapes"),
        (lambda X: lambda seed: [(X, np.arange(2000) + 1)], "from 0 to 1999.*received 1 to 2000"),
        (lambda X: lambda seed: [(X * np.nan, np.arange(2000))], "received NaN or inf in row 0"),
        (
            lambda X: lambda seed: [(X, np.arange(2000)), (X[:, :3], np.arange(2000))],
            "expected 32 features in every batch, received 3",
        ),
    ],
)
def test_a_stream_that_does_not_fit_is_refused(data, source, message):
    with pytest.raises(HeadError, match=message):
        fit_streamed(make_head("dense:8", max_epochs=1), source(data[0]), data[1])


def test_rows_that_are_missing_in_an_epoch_are_noticed(data):
    with pytest.raises(HeadError, match="a pass over all .* rows to train on, received"):
        fit_streamed(DenseClassifier((8,), max_epochs=1), half(data[0]), data[1])


def test_only_dense_heads_stream(data):
    with pytest.raises(HeadError, match="only a dense head.*trains on a stream"):
        fit_streamed(make_head("lda"), source_of(data[0]), data[1])


def test_divergence_is_said(data):
    head = DenseClassifier((8,), learning_rate=1e30, max_epochs=2)
    with pytest.raises(HeadError, match="training diverged"):
        fit_streamed(head, source_of(data[0]), data[1])
