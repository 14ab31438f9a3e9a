"""Rules that make labels of probabilities, and sets with a stated coverage."""

import json

import numpy as np
import pytest

from featx.exceptions import ArtefactError
from featx.heads.decision import Decision, LabelSets

PROBA = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.45, 0.45, 0.1]], np.float32)


def sets(*least, coverage=0.9, by="all"):
    return LabelSets(coverage, by, np.array(least), 50)


def test_by_default_the_first_of_the_most_probable_decides():
    assert Decision().decide(PROBA).tolist() == [0, 1, 0]
    assert Decision(multilabel=True).decide(PROBA).tolist() == np.zeros((3, 3)).tolist()
    assert Decision(multilabel=True).decide(PROBA + 0.1).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [1, 1, 0],
    ]


def test_a_threshold_decides_for_the_second_class_above_it():
    rule = Decision(kind="threshold", values=np.array([0.3]), optimised="f1")
    proba = np.array([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert rule.decide(proba).tolist() == [0, 0, 1]
    assert rule.weighed(proba).argmax(axis=1).tolist() == [0, 0, 1]
    np.testing.assert_allclose(rule.weighed(proba)[1], [0.5, 0.5])


def test_factors_weigh_classes():
    rule = Decision(kind="factors", values=np.array([1.0, 1.0, 3.0]), optimised="f1")
    assert rule.decide(PROBA).tolist() == [2, 2, 0]
    np.testing.assert_allclose(rule.weighed(PROBA)[0], [0.5 / 1.4, 0.3 / 1.4, 0.6 / 1.4], rtol=1e-6)


def test_labels_have_a_threshold_each():
    rule = Decision(True, "thresholds", np.array([0.4, 0.6, 0.15]), "f1")
    assert rule.decide(PROBA).tolist() == [[1, 0, 1], [0, 0, 1], [1, 0, 0]]
    assert (rule.weighed(PROBA) > 0.5).astype(int).tolist() == rule.decide(PROBA).tolist()


def test_the_least_expected_cost_decides():
    costs = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [4.0, 4.0, 0.0]])
    rule = Decision(kind="costs", values=costs, optimised="cost")
    assert rule.decide(PROBA).tolist() == [2, 2, 0]
    np.testing.assert_array_equal(rule.weighed(PROBA), PROBA.astype(np.float64))
    alone = [rule.decide(PROBA[row : row + 1])[0] for row in range(3)]
    assert alone == rule.decide(PROBA).tolist()


def test_a_set_holds_what_is_at_least_as_probable_as_its_limit():
    rule = Decision(sets=sets(0.4, 0.4, 0.25))
    assert rule.label_sets(PROBA).tolist() == [[1, 0, 0], [0, 1, 1], [1, 1, 0]]
    assert rule.unsure(PROBA).tolist() == [False, True, True]
    assert rule.covered(np.array([0, 0, 1]), PROBA).tolist() == [True, False, True]
    assert Decision(sets=sets(0.6, 0.6, 0.6)).unsure(PROBA).tolist() == [True] * 3
    # By class, a set may be of one label that is not the most probable one.
    assert Decision(sets=sets(0.9, 0.2, 0.9)).unsure(PROBA).tolist() == [True, False, True]


def test_several_labels_are_unsure_where_one_is_open():
    proba = np.array([[0.9, 0.1], [0.9, 0.4], [0.6, 0.1]])
    rule = Decision(multilabel=True, sets=sets(0.4, 0.4))
    assert rule.unsure(proba).tolist() == [False, True, True]
    assert rule.label_sets(proba).tolist() == [[1, 0], [1, 1], [1, 0]]
    assert rule.covered(np.array([[1, 0], [0, 0], [0, 1]]), proba).tolist() == [
        [True, True], [False, True], [True, False],
    ]  # fmt: skip
    # Where neither a label nor its absence is probable enough, a person has to look too.
    assert Decision(multilabel=True, sets=sets(0.7, 0.7)).unsure(proba).tolist() == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    "rule",
    [
        Decision(),
        Decision(sets=sets(0.1, 0.2, 0.3, by="class")),
        Decision(kind="factors", values=np.array([1.0, 0.5, 2.0]), optimised="balanced_accuracy"),
        Decision(kind="costs", values=1 - np.eye(3), optimised="cost", sets=sets(0.1, 0.1, 0.1)),
        Decision(True, "thresholds", np.array([0.1, 0.5, 0.9]), "f1", sets(0.2, 0.2, 0.2)),
    ],
)
def test_a_rule_is_the_same_after_json(rule):
    text = json.loads(json.dumps(rule.to_dict()))
    again = Decision.from_dict(text, 3, multilabel=rule.multilabel)
    assert again.to_dict() == rule.to_dict()
    assert again.decide(PROBA).tolist() == rule.decide(PROBA).tolist()
    if rule.sets is not None:
        assert again.unsure(PROBA).tolist() == rule.unsure(PROBA).tolist()


def coverage(**changed):
    stated = {"stated": 0.9, "by": "all", "least": [0.1, 0.1, 0.1], "images": 9}
    return {"kind": "plain", "coverage": {**stated, **changed}}


def factors(values, **changed):
    return {"kind": "factors", "values": values, "optimised": "f1", **changed}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "NoneType"),
        ([], "list indices"),
        ({}, "'kind' is missing"),
        ({"kind": "magic"}, "'magic' is no rule"),
        ({"kind": ["plain"]}, "unhashable"),
        ({"kind": "thresholds", "values": [0.1] * 3}, "no rule of such a model"),
        ({"kind": "threshold", "values": [0.5], "optimised": "f1"}, "one threshold for 3 classes"),
        (factors([1.0, 1.0]), "expected a list of 3 numbers"),
        (factors([1.0] * 100_000), "expected a list of 3 numbers"),
        (factors({"0": 1}), "expected a list of 3 numbers"),
        (factors([1.0, float("nan"), 1.0]), "not finite, or negative"),
        (factors([1.0, float("inf"), 1.0]), "not finite, or negative"),
        (factors([1.0, 10**400, 1.0]), "int too large"),
        (factors([1.0, -1.0, 1.0]), "not finite, or negative"),
        (factors([1.0, 0.0, 1.0]), "a factor is not positive"),
        (factors([1.0, "2", 1.0]), "a number is none"),
        (factors([1.0, True, 1.0]), "a number is none"),
        (factors([1.0, [1.0], 1.0]), "a number is none"),
        (factors([1.0] * 3, optimised="speed"), "nothing that a rule is optimised for"),
        ({"kind": "costs", "values": [[0.0] * 3] * 2, "optimised": "cost"}, "list of 3 numbers"),
        ({"kind": "costs", "values": [[0.0] * 2] * 3, "optimised": "cost"}, "list of 3 numbers"),
        (coverage(stated=1.0), "is no coverage"),
        (coverage(stated=float("nan")), "not finite, or negative"),
        (coverage(by="moon"), "a coverage is by all or class"),
        (coverage(least=[0.1] * 2), "expected a list of 3 numbers"),
        (coverage(least=[0.1, 0.1, 1.5]), "a number is above 1"),
        (coverage(images=0), "comes from no image"),
        (coverage(images=True), "comes from no image"),
        ({"kind": "plain", "coverage": 0.9}, "subscriptable"),
    ],
)  # fmt: skip
def test_a_hostile_rule_is_refused(value, why):
    with pytest.raises(ArtefactError, match=rf"decision rule .*damaged \(.*{why}.*train the model"):
        Decision.from_dict(value, 3, multilabel=False)


def test_a_rule_of_classes_is_none_of_labels():
    with pytest.raises(ArtefactError, match="'factors' is no rule of such a model"):
        Decision.from_dict(factors([1.0] * 3), 3, multilabel=True)
    value = {"kind": "thresholds", "values": [0.5, 2, 0.5], "optimised": "f1"}
    with pytest.raises(ArtefactError, match="a number is above 1"):
        Decision.from_dict(value, 3, multilabel=True)


def test_a_rule_says_what_it_is():
    names = np.array(["ant", "bee"])
    assert Decision().describe(names) == ""
    rule = Decision(kind="threshold", values=np.array([0.25]), optimised="f1", sets=sets(0.1, 0.1))
    assert rule.describe(names) == "bee above 0.25, for macro F1; sets with a coverage of 0.9"
    rule = Decision(kind="costs", values=1 - np.eye(2), optimised="cost")
    assert rule.describe(names) == "the least expected cost"
    rule = Decision(True, "thresholds", np.array([0.1, 0.2]), "f1", sets(0.1, 0.1, by="class"))
    assert "a threshold a label, for macro F1; " in rule.describe(names)
    assert rule.describe(names).endswith("of 0.9 of each label")
