"""Heads fitted on a stream are those fitted in memory."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from featx.exceptions import HeadError
from featx.heads.learning import fit_head_streamed, require_streamable, streamed_heads
from featx.heads.making import make_head
from featx.heads.storage import dump_head, load_head
from featx.heads.table import HEADS

MIB = 1 << 20


def drawn(rows=1500, width=24, classes=5, seed=0):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, width)) * 0.7
    mixing = generator.normal(size=(width, width))
    generator = np.random.default_rng(seed)
    codes = generator.choice(classes, rows, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    X = (centres[codes] + generator.normal(size=(rows, width))) @ mixing * 3 + 40
    return X.astype(np.float32), np.array([f"class {code}" for code in codes])


def source_of(X, size=130):
    def source(seed):
        order = np.arange(len(X))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        for start in range(0, len(X), size):
            yield X[order[start : start + size]], order[start : start + size]

    return source


TEXTS = [
    "nearest-mean",
    "nearest-mean:metric=euclidean",
    "ridge:alpha=10",
    "ridge:class_weight=balanced",
    "ridge:fit_intercept=False",
    "lda",
    "lda:shrinkage=0.3",
    "lda:class_weight=balanced",
    "logistic",
    "logistic:C=1,class_weight=balanced",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("classes", [2, 5])
def test_a_streamed_fit_is_the_one_in_memory(text, classes):
    X, y = drawn(classes=classes)
    new = drawn(400, classes=classes, seed=1)[0]
    tight = {"tol": 1e-8} if text.startswith("logistic") else {}
    whole = make_head(text, **tight).fit(X, y)
    # For LDA two classes' covariances at a time; for logistic regression a sample of 455 rows.
    streamed = fit_head_streamed(make_head(text, **tight), source_of(X), y, max_ram_bytes=MIB // 8)
    expected, found = whole.predict(new), streamed.predict(new)
    assert (expected == found).mean() >= 0.995
    assert streamed.classes_.tolist() == whole.classes_.tolist()
    assert streamed.n_features_in_ == 24
    np.testing.assert_allclose(streamed.predict_proba(new), whole.predict_proba(new), atol=0.06)
    scores, others = (
        getattr(head, "decision_function", head.predict_proba)(new) for head in (whole, streamed)
    )
    np.testing.assert_allclose(others, scores, rtol=0.01, atol=0.01 * np.abs(scores).max())
    twin = load_head(dump_head(streamed))
    np.testing.assert_allclose(twin.predict_proba(new), streamed.predict_proba(new), atol=1e-6)


@pytest.mark.parametrize("ram", [MIB // 8, 16_000])
def test_logistic_regression_has_scikit_learns_minimum(ram):
    X, y = drawn()
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    codes = np.unique(y, return_inverse=True)[1]

    def objective(head):
        logs = head.predict_log_proba(X.astype(np.float64))
        return -head.C * logs[np.arange(len(y)), codes].sum() + 0.5 * (head.coef_**2).sum()

    best = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(X.astype(np.float64), y)
    # With little memory: a small sample, and a diagonal in the place of the curvature.
    head = LogisticRegression(C=0.1, max_iter=1000)
    fit_head_streamed(head, source_of(X), y, max_ram_bytes=ram)
    assert objective(head) <= objective(best) * (1 + 1e-5)


def test_the_sample_saves_passes():
    X, y = drawn(6000)
    passes = 0
    inner = source_of(X, 1000)

    def source(seed):
        nonlocal passes
        passes += 1
        yield from inner(seed)

    fit_head_streamed(make_head("logistic:C=1"), source, y, max_ram_bytes=MIB)
    assert passes < 30 < 49  # what scikit-learn's lbfgs takes here


def test_dense_heads_and_unit_length_go_through_the_same_door():
    from featx.selection.transforms import parse_transform, pipeline

    X, y = drawn()
    head = make_head("dense:16,learning_rate=0.01,max_epochs=8")
    assert fit_head_streamed(head, source_of(X), y, max_ram_bytes=MIB).score(X, y) > 0.8
    for name in ("l2", "none"):
        made = [pipeline(parse_transform(name), make_head("ridge:alpha=1"), X.shape) for _ in "ab"]
        whole = made[0].fit(X, y)
        streamed = fit_head_streamed(made[1], source_of(X), y, max_ram_bytes=MIB)
        assert (whole.predict(X) == streamed.predict(X)).mean() > 0.995


def test_few_images_a_class_stream_too():
    X, y = drawn(300)
    kept = np.concatenate([np.flatnonzero(y == name)[:2] for name in np.unique(y)])
    for name in ("nearest-mean", "ridge", "lda", "logistic"):
        whole = make_head(name).fit(X[kept], y[kept])
        streamed = fit_head_streamed(
            make_head(name), source_of(X[kept], 3), y[kept], max_ram_bytes=MIB
        )
        assert (whole.predict(X) == streamed.predict(X)).mean() > 0.98


def test_what_has_to_see_all_rows_says_which_have_not():
    able = streamed_heads()
    assert able == ["dense", "lda", "logistic", "nearest-mean", "ridge"]
    for name in set(HEADS) - set(able):
        with pytest.raises(HeadError, match=r"has to see all rows at once.*take one of dense, lda"):
            require_streamable(make_head(name))
    X, y = drawn(100)
    with pytest.raises(HeadError, match="l1_ratio=1 has to see all rows at once"):
        fit_head_streamed(make_head("logistic:l1_ratio=1"), source_of(X), y, max_ram_bytes=MIB)


def test_bad_input_has_its_messages():
    X, y = drawn(200)
    with pytest.raises(HeadError, match=r"one class only: 'class 1'"):
        fit_head_streamed(
            make_head("ridge"), source_of(X), np.full(200, "class 1"), max_ram_bytes=MIB
        )
    with pytest.raises(HeadError, match="every column of the features is constant"):
        fit_head_streamed(make_head("lda"), source_of(np.ones_like(X)), y, max_ram_bytes=MIB)
    with pytest.raises(HeadError, match=r"products of 24 features, .* needs 13.5 KiB"):
        fit_head_streamed(make_head("ridge"), source_of(X), y, max_ram_bytes=1000)
    X[7, 3] = np.nan
    with pytest.raises(HeadError, match="received NaN or inf in row 7"):
        fit_head_streamed(make_head("logistic"), source_of(X), y, max_ram_bytes=MIB)
    with pytest.raises(HeadError, match="received 100: number the rows"):
        fit_head_streamed(make_head("logistic"), source_of(X[100:]), y, max_ram_bytes=MIB)
