"""Rows with any number of labels are shared out evenly."""

import numpy as np
import pytest

from featx.heads.dense_training import hold_out
from featx.heads.targets import Targets, label_strata


def drawn(rows=2000, seed=0):
    """Labels from 2 positives to a third of the rows."""
    generator = np.random.default_rng(seed)
    counts = np.concatenate([[2, 3, 4, 5, 6, 6], np.geomspace(8, rows / 3, 14).astype(int)])
    labels = np.zeros((rows, len(counts)), np.uint8)
    for label, count in enumerate(counts):
        labels[generator.choice(rows, count, replace=False), label] = 1
    return labels


def test_rare_labels_are_spread_over_the_parts():
    labels = drawn()
    parts = label_strata(labels, [0.2] * 5, seed=7)
    found = np.array([labels[parts == part].sum(axis=0) for part in range(5)])
    assert np.bincount(parts).tolist() == [400] * 5
    assert np.abs(found - labels.sum(axis=0) / 5).max() < 2
    # Two to six images of a label: in as many parts as there are images, up to five.
    assert ((found > 0).sum(axis=0)[:6] >= [2, 3, 4, 4, 4, 4]).all()
    assert found[:, :6].max() <= 2
    np.testing.assert_array_equal(label_strata(labels, [0.2] * 5, seed=7), parts)
    assert (label_strata(labels, [0.2] * 5, seed=8) != parts).any()


def test_groups_stay_in_one_part():
    labels = drawn()
    groups = np.random.default_rng(1).integers(0, 700, len(labels))
    parts = label_strata(labels, [0.25, 0.75], groups=groups)
    assert all(len(set(parts[groups == group])) == 1 for group in np.unique(groups))
    assert (parts == 0).mean() == pytest.approx(0.25, abs=0.02)
    found, total = labels[parts == 0].sum(axis=0), labels.sum(axis=0)
    np.testing.assert_allclose(found, total / 4, atol=1 + 0.1 * total.max())
    assert (found[total >= 4] > 0).all()


def test_the_rows_that_say_when_to_stop_have_every_label_that_is_not_rare():
    labels = drawn()
    train, held = hold_out(Targets.of_labels(labels), 0.1, np.random.default_rng(0))
    assert len(train) + len(held) == len(labels)
    assert len(held) == pytest.approx(200, abs=3)
    assert labels[held].sum(axis=0)[:3].max() == 0  # so few are better trained on
    assert (labels[held].sum(axis=0)[6:] > 0).all()


def test_no_labels_and_no_rows():
    assert np.bincount(label_strata(np.zeros((10, 3), int), [0.3, 0.7])).tolist() == [3, 7]
    assert label_strata(np.zeros((0, 3), int), [0.5, 0.5]).shape == (0,)
