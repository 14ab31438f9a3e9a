"""Heads of several labels fitted on a stream are those fitted in memory."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from featx.exceptions import HeadError
from featx.heads.learning import fit_head_streamed, require_streamable
from featx.heads.making import make_head
from featx.heads.storage import dump_head, load_head

MIB = 1 << 20


def drawn(rows=1200, width=16, seed=0):
    """Features, and six labels: of many images, of few, of six, of none and of all."""
    shape = np.random.default_rng(0)
    lines, mixing = shape.normal(size=(width, 4)), shape.normal(size=(width, width))
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(rows, width))
    margins = X @ lines / 4 + 0.5 * generator.normal(size=(rows, 4))
    Y = np.zeros((rows, 6), int)
    Y[:, :3] = margins[:, :3] > [0, 0.7, 1.5]
    Y[np.argsort(-margins[:, 3])[:6], 3] = 1
    Y[:, 5] = 1
    return (X @ mixing * 3 + 40).astype(np.float32), Y


def source_of(X, size=130):
    passes = []

    def source(seed):
        passes.append(seed)
        order = np.arange(len(X))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        for start in range(0, len(X), size):
            yield X[order[start : start + size]], order[start : start + size]

    source.passes = passes
    return source


@pytest.mark.parametrize(
    "text",
    [
        "nearest-mean",
        "nearest-mean:metric=euclidean",
        "ridge:alpha=10",
        "ridge:alpha=10,fit_intercept=False",
        "ridge:class_weight=balanced",
        "lda",
        "logistic:C=1,tol=1e-8",
        "logistic:C=1,tol=1e-8,class_weight=balanced",
        "logistic:C=0.1,tol=1e-8,fit_intercept=False",
    ],
)
def test_a_streamed_fit_is_the_one_in_memory(text):
    X, Y = drawn()
    new = drawn(300, seed=1)[0]
    # In double precision, without which scikit-learn's solver does not come down to this tol.
    whole = make_head(text, multilabel=True).fit(X.astype(np.float64), Y)
    # The start of logistic regression is of a sample of 320 rows, with one or two of a rare label.
    streamed = fit_head_streamed(
        make_head(text, multilabel=True), source_of(X), Y, max_ram_bytes=60 * 1024
    )
    expected, found = whole.predict_proba(new), streamed.predict_proba(new)
    # The temperature of margins comes from one fold and some of the rows; of logistic regression
    # there is none.
    atol = 1e-4 if text.startswith("logistic") else 0.08
    np.testing.assert_allclose(found, expected, atol=atol)
    assert ((found > 0.5) == (expected > 0.5)).mean() > 0.995
    assert (found[:, 4] == 0).all()
    assert (found[:, 5] == 1).all()
    one, other = streamed["head"], whole["head"]
    assert one.varying_.tolist() == other.varying_.tolist() == [0, 1, 2, 3]
    assert one.shares_.tolist() == other.shares_.tolist()
    assert len(one.estimators_) == len(other.estimators_)
    assert one.n_features_in_ == 16
    scaled = whole["scale"].transform(new)
    for a, b in zip(one.estimators_, other.estimators_, strict=True):
        a, b = (getattr(head, "estimator_", head) for head in (a, b))
        assert a.classes_.tolist() == b.classes_.tolist()
        margins = b.decision_function(scaled)
        np.testing.assert_allclose(
            a.decision_function(scaled), margins, atol=0.002 * np.abs(margins).max()
        )
    twin = load_head(dump_head(streamed))
    np.testing.assert_allclose(twin.predict_proba(new), found, atol=1e-6)


def test_every_label_has_scikit_learns_minimum():
    X, Y = drawn()
    X = ((X - X.mean(axis=0)) / X.std(axis=0)).astype(np.float64)
    head = make_head(LogisticRegression(C=0.3, max_iter=1000), multilabel=True)
    fit_head_streamed(head, source_of(X), Y, max_ram_bytes=32 * 1024)

    def objective(one, y):
        logs = one.predict_log_proba(X)
        return -one.C * logs[np.arange(len(y)), y].sum() + 0.5 * (one.coef_**2).sum()

    for label, found in zip(head.varying_, head.estimators_, strict=True):
        best = LogisticRegression(C=0.3, tol=1e-8, max_iter=5000).fit(X, Y[:, label])
        assert objective(found, Y[:, label]) <= objective(best, Y[:, label]) * (1 + 1e-5)


@pytest.mark.parametrize(("text", "most"), [("ridge", 9), ("nearest-mean", 5), ("logistic", 60)])
def test_labels_share_the_passes(text, most):
    X, Y = drawn()
    generator = np.random.default_rng(0)
    Y = np.column_stack([Y, generator.integers(0, 2, (len(X), 30))])
    source = source_of(X, 400)
    fit_head_streamed(make_head(text, multilabel=True), source, Y, max_ram_bytes=MIB // 16)
    assert len(source.passes) <= most


def test_dense_heads_stream_several_labels():
    X, Y = drawn()
    head = make_head("dense:16,learning_rate=0.05,max_epochs=12", multilabel=True)
    fit_head_streamed(head, source_of(X), Y, max_ram_bytes=MIB)
    assert average_precision_score(Y[:, :2], head.predict_proba(X)[:, :2]) > 0.8
    twin = load_head(dump_head(head))
    np.testing.assert_allclose(twin.predict_proba(X), head.predict_proba(X), atol=1e-6)


def test_one_label_that_varies_and_none():
    X, Y = drawn(200)
    one = fit_head_streamed(
        make_head("ridge", multilabel=True), source_of(X), Y[:, [0, 4]], max_ram_bytes=MIB
    )
    assert one.predict(X).shape == (200, 2)
    assert (one.predict(X)[:, 0] == Y[:, 0]).mean() > 0.7
    none = fit_head_streamed(
        make_head("logistic", multilabel=True), source_of(X), Y[:, 4:], max_ram_bytes=MIB
    )
    assert (none.predict(X) == Y[:, 4:]).all()


def test_what_does_not_fit_is_said():
    X, Y = drawn(100)
    with pytest.raises(HeadError, match="NearestNeighbours has to see all rows at once"):
        require_streamable(make_head("knn", multilabel=True))
    for wrong, message in (
        (Y[:, 0], r"a matrix of shape \(images, labels\), received shape \(100,\)"),
        (Y + 1, r"labels must be 0 or 1, received \[1, 2\]"),
    ):
        head = make_head("ridge", multilabel=True)
        with pytest.raises(HeadError, match=message):
            fit_head_streamed(head, source_of(X), wrong, max_ram_bytes=MIB)
    with pytest.raises(HeadError, match=r"one label a row, .* make the head with multilabel=True"):
        fit_head_streamed(make_head("ridge"), source_of(X), Y, max_ram_bytes=MIB)
    for name, reason in (("ridge", "products of 16 features"), ("logistic:l1_ratio=1", "l1_ratio")):
        with pytest.raises(HeadError, match=reason):
            fit_head_streamed(make_head(name, multilabel=True), source_of(X), Y, max_ram_bytes=1000)
