"""Heads fitted on a stream are those fitted in memory, for classes and for several labels."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from featx.exceptions import HeadError
from featx.heads.learning import fit_head_streamed, require_streamable, streamed_heads
from featx.heads.making import make_head
from featx.heads.storage import dump_head, load_head
from featx.heads.table import HEADS
from featx.selection.transforms import parse_transform, pipeline

MIB = 1 << 20


def drawn(rows=1500, width=24, classes=5, seed=0):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, width)) * 0.7
    mixing = generator.normal(size=(width, width))
    generator = np.random.default_rng(seed)
    codes = generator.choice(classes, rows, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    X = (centres[codes] + generator.normal(size=(rows, width))) @ mixing * 3 + 40
    return X.astype(np.float32), np.array([f"class {code}" for code in codes])


def tagged(rows=1200, width=16, seed=0):
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


def streamed(head, X, y, ram=MIB, size=130):
    return fit_head_streamed(head, source_of(X, size), y, max_ram_bytes=ram)


def assert_kept(head, X):
    twin = load_head(dump_head(head))
    np.testing.assert_allclose(twin.predict_proba(X), head.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(
    "text",
    [
        *("nearest-mean", "nearest-mean:metric=euclidean", "ridge:alpha=10"),
        *("ridge:class_weight=balanced", "ridge:fit_intercept=False"),
        *("lda", "lda:shrinkage=0.3", "lda:class_weight=balanced"),
        *("logistic:tol=1e-8", "logistic:C=1,class_weight=balanced,tol=1e-8"),
    ],
)
def test_a_streamed_fit_is_the_one_in_memory(text, classes):
    X, y = drawn(classes=classes)
    new = drawn(400, classes=classes, seed=1)[0]
    whole = make_head(text).fit(X, y)
    # For LDA two classes' covariances at a time; for logistic regression a sample of 455 rows.
    head = streamed(make_head(text), X, y, MIB // 8)
    assert (head.predict(new) == whole.predict(new)).mean() >= 0.995
    assert head.classes_.tolist() == whole.classes_.tolist()
    assert head.n_features_in_ == 24
    np.testing.assert_allclose(head.predict_proba(new), whole.predict_proba(new), atol=0.06)
    scores, others = (
        getattr(one, "decision_function", one.predict_proba)(new) for one in (whole, head)
    )
    np.testing.assert_allclose(others, scores, rtol=0.01, atol=0.01 * np.abs(scores).max())
    assert_kept(head, new)


@pytest.mark.parametrize(
    "text",
    [
        *("nearest-mean", "nearest-mean:metric=euclidean", "ridge:alpha=10"),
        *("ridge:alpha=10,fit_intercept=False", "ridge:class_weight=balanced", "lda"),
        *("logistic:C=1,tol=1e-8", "logistic:C=1,tol=1e-8,class_weight=balanced"),
        "logistic:C=0.1,tol=1e-8,fit_intercept=False",
    ],
)
def test_a_streamed_fit_of_labels_is_the_one_in_memory(text):
    X, Y = tagged()
    new = tagged(300, seed=1)[0]
    # In double precision, without which scikit-learn's solver does not come down to this tol.
    whole = make_head(text, multilabel=True).fit(X.astype(np.float64), Y)
    # The start of logistic regression is of a sample of 320 rows, with one or two of a rare label.
    head = streamed(make_head(text, multilabel=True), X, Y, 60 * 1024)
    expected, probabilities = whole.predict_proba(new), head.predict_proba(new)
    # The temperature of margins comes from one fold and some of the rows; of logistic regression
    # there is none.
    atol = 1e-4 if text.startswith("logistic") else 0.08
    np.testing.assert_allclose(probabilities, expected, atol=atol)
    assert ((probabilities > 0.5) == (expected > 0.5)).mean() > 0.995
    assert (probabilities[:, 4] == 0).all()
    assert (probabilities[:, 5] == 1).all()
    one, other = head["head"], whole["head"]
    assert one.varying_.tolist() == other.varying_.tolist() == [0, 1, 2, 3]
    assert one.shares_.tolist() == other.shares_.tolist()
    assert one.n_features_in_ == 16
    scaled = whole["scale"].transform(new)
    for a, b in zip(one.estimators_, other.estimators_, strict=True):
        a, b = (getattr(inner, "estimator_", inner) for inner in (a, b))
        assert a.classes_.tolist() == b.classes_.tolist()
        margins = b.decision_function(scaled)
        np.testing.assert_allclose(
            a.decision_function(scaled), margins, atol=0.002 * np.abs(margins).max()
        )
    assert_kept(head, new)


def objective(head, X, codes):
    logs = head.predict_log_proba(X)
    return -head.C * logs[np.arange(len(codes)), codes].sum() + 0.5 * (head.coef_**2).sum()


# With little memory: a small sample, and a diagonal in the place of the curvature.
@pytest.mark.parametrize("ram", [MIB // 8, 16_000])
def test_logistic_regression_has_scikit_learns_minimum(ram):
    X, y = drawn()
    X = ((X - X.mean(axis=0)) / X.std(axis=0)).astype(np.float64)
    codes = np.unique(y, return_inverse=True)[1]
    best = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(X, y)
    head = streamed(LogisticRegression(C=0.1, max_iter=1000), X.astype(np.float32), y, ram)
    assert objective(head, X, codes) <= objective(best, X, codes) * (1 + 1e-5)


def test_every_label_has_scikit_learns_minimum():
    X, Y = tagged()
    X = ((X - X.mean(axis=0)) / X.std(axis=0)).astype(np.float64)
    head = make_head(LogisticRegression(C=0.3, max_iter=1000), multilabel=True)
    streamed(head, X, Y, 32 * 1024)
    for label, fitted in zip(head.varying_, head.estimators_, strict=True):
        best = LogisticRegression(C=0.3, tol=1e-8, max_iter=5000).fit(X, Y[:, label])
        least = objective(best, X, Y[:, label])
        assert objective(fitted, X, Y[:, label]) <= least * (1 + 1e-5)


def test_the_sample_saves_passes():
    X, y = drawn(6000)
    source = source_of(X, 1000)
    fit_head_streamed(make_head("logistic:C=1"), source, y, max_ram_bytes=MIB)
    assert len(source.passes) < 30 < 49  # what scikit-learn's lbfgs takes here


@pytest.mark.parametrize(("text", "most"), [("ridge", 9), ("nearest-mean", 5), ("logistic", 60)])
def test_labels_share_the_passes(text, most):
    X, Y = tagged()
    generator = np.random.default_rng(0)
    Y = np.column_stack([Y, generator.integers(0, 2, (len(X), 30))])
    source = source_of(X, 400)
    fit_head_streamed(make_head(text, multilabel=True), source, Y, max_ram_bytes=MIB // 16)
    assert len(source.passes) <= most


def test_dense_heads_and_unit_length_go_through_the_same_door():
    X, y = drawn()
    head = make_head("dense:16,learning_rate=0.01,max_epochs=8")
    assert streamed(head, X, y).score(X, y) > 0.8
    for name in ("l2", "none"):
        made = [pipeline(parse_transform(name), make_head("ridge:alpha=1"), X.shape) for _ in "ab"]
        whole = made[0].fit(X, y)
        assert (whole.predict(X) == streamed(made[1], X, y).predict(X)).mean() > 0.995
    X, Y = tagged()
    head = make_head("dense:16,learning_rate=0.05,max_epochs=12", multilabel=True)
    streamed(head, X, Y)
    assert average_precision_score(Y[:, :2], head.predict_proba(X)[:, :2]) > 0.8
    assert_kept(head, X)


def test_few_images_a_class_stream_too():
    X, y = drawn(300)
    few = np.concatenate([np.flatnonzero(y == name)[:2] for name in np.unique(y)])
    for name in ("nearest-mean", "ridge", "lda", "logistic"):
        whole = make_head(name).fit(X[few], y[few])
        head = streamed(make_head(name), X[few], y[few], size=3)
        assert (whole.predict(X) == head.predict(X)).mean() > 0.98


def test_one_label_that_varies_and_none():
    X, Y = tagged(200)
    one = streamed(make_head("ridge", multilabel=True), X, Y[:, [0, 4]])
    assert one.predict(X).shape == (200, 2)
    assert (one.predict(X)[:, 0] == Y[:, 0]).mean() > 0.7
    none = streamed(make_head("logistic", multilabel=True), X, Y[:, 4:])
    assert (none.predict(X) == Y[:, 4:]).all()


def test_what_has_to_see_all_rows_says_which_have_not():
    able = streamed_heads()
    assert able == ["dense", "lda", "logistic", "nearest-mean", "ridge"]
    for name in set(HEADS) - set(able):
        for multilabel in (False, True):
            message = r"has to see all rows at once.*take one of dense, lda"
            with pytest.raises(HeadError, match=message):
                require_streamable(make_head(name, multilabel=multilabel))


X, LABELS = drawn(200)
NAN = X.copy()
NAN[7, 3] = np.nan
TAGGED, SETS = tagged(100)


@pytest.mark.parametrize(
    ("head", "X", "y", "ram", "message"),
    [
        ("logistic:l1_ratio=1", X, LABELS, MIB, "l1_ratio=1 has to see all rows at once"),
        ("ridge", X, np.full(200, "class 1"), MIB, r"one class only: 'class 1'"),
        ("lda", np.ones_like(X), LABELS, MIB, "every column of the features is constant"),
        ("ridge", X, LABELS, 1000, r"products of 24 features, .* needs 13.5 KiB"),
        ("logistic", NAN, LABELS, MIB, "received NaN or inf in row 7"),
        ("logistic", X[100:], LABELS, MIB, "received 100: number the rows"),
        ("ridge", TAGGED, SETS, MIB, r"one label a row, .* make the head with multilabel=True"),
        (("ridge",), TAGGED, SETS[:, 0], MIB, r"\(images, labels\), received shape \(100,\)"),
        (("ridge",), TAGGED, SETS + 1, MIB, r"labels must be 0 or 1, received \[1, 2\]"),
        (("ridge",), TAGGED, SETS, 1000, "products of 16 features"),
        (("logistic:l1_ratio=1",), TAGGED, SETS, 1000, "l1_ratio"),
    ],
)
def test_what_does_not_fit_is_said(head, X, y, ram, message):
    several = isinstance(head, tuple)
    head = make_head(head[0], multilabel=True) if several else make_head(head)
    with pytest.raises(HeadError, match=message):
        streamed(head, X, y, ram)
