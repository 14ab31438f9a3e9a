import pytest

from featx.exceptions import HeadError
from featx.heads.table import parse_head


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
