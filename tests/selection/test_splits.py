from __future__ import annotations

import numpy as np
import pytest

from featx.exceptions import DatasetError
from featx.files.identity import related_rows
from featx.selection import splits
from featx.selection.splits import dealt_folds, hold_out, repeated_folds


def test_repeats_differ_and_each_covers_every_row_once():
    y = np.repeat([0, 1, 2], 20)
    folds = repeated_folds(y, folds=4, repeats=3, seed=5)
    assert len(folds) == 12
    tests = [np.sort(np.concatenate([test for _, test in folds[i : i + 4]])) for i in (0, 4, 8)]
    assert all((rows == np.arange(60)).all() for rows in tests)
    assert not np.array_equal(folds[0][1], folds[4][1])
    once = repeated_folds(y, folds=4, seed=5)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, once, strict=False))


@pytest.mark.parametrize("few_of_a_group", [3, 80], ids=["balanced", "dealt"])
def test_every_training_part_has_every_class_and_no_group_is_on_both_sides(
    monkeypatch, few_of_a_group
):
    monkeypatch.setattr(splits, "_FEW_OF_A_GROUP", few_of_a_group)
    generator = np.random.default_rng(0)
    for seed in range(30):
        y = generator.integers(0, 4, 80)
        names = [f"g{number}" for number in generator.integers(0, 25, 80)]
        groups = related_rows(None, names)
        for train, test in repeated_folds(y, folds=5, repeats=2, groups=groups, seed=seed):
            assert set(y[train]) == set(y)
            assert not set(groups[train]) & set(groups[test])
            assert len(test) == pytest.approx(16, abs=10 if few_of_a_group == 3 else 15)


def test_many_groups_are_dealt_out_in_equal_shares():
    generator = np.random.default_rng(0)
    y = generator.choice(3, 150_001, p=[0.9, 0.09, 0.01])
    groups = np.r_[0, np.arange(150_000)]
    folds = repeated_folds(y, groups=groups)
    shares = [np.bincount(y[test]) for _, test in folds]
    np.testing.assert_allclose(shares, np.tile(np.bincount(y) / 5, (5, 1)), rtol=0.15)
    exact = dealt_folds(y, groups, 5, 0, exact=True)
    shares = [np.bincount(y[exact == fold]) for fold in range(5)]
    assert np.ptp(shares, axis=0).max() <= 2
    assert np.sort(np.concatenate([test for _, test in folds])).tolist() == list(range(150_001))


def test_a_hold_out_is_stratified_and_leaks_nothing():
    y = np.repeat([0, 1], [100, 40])
    groups = related_rows(None, [f"g{row // 4}" for row in range(140)])
    train, test = hold_out(y, groups=groups, seed=1)
    assert len(train) + len(test) == 140
    assert not set(groups[train]) & set(groups[test])
    assert y[test].mean() == pytest.approx(40 / 140, abs=0.05)


def test_classes_that_groups_tie_together_are_said():
    # Three groups of two classes each: whichever is tested on its own, two sides do not do.
    y = np.array([1, 3, 1, 2, 2, 3] * 4)
    groups = np.array([0, 0, 1, 1, 2, 2] * 4)
    with pytest.raises(DatasetError, match="into 2 folds leaves class .* an image to train on"):
        repeated_folds(y, folds=5, groups=groups)


def test_folds_of_several_labels_share_out_the_rare_ones_and_leak_nothing():
    generator = np.random.default_rng(0)
    labels = (generator.random((300, 4)) < [0.5, 0.2, 0.05, 0]).astype(int)
    labels[:3, 3] = 1
    groups = related_rows(None, [f"g{row // 2}" for row in range(300)])
    folds = repeated_folds(labels, groups=groups, seed=2)
    assert np.sort(np.concatenate([test for _, test in folds])).tolist() == list(range(300))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert len(test) == pytest.approx(60, abs=4)
        assert labels[train].any(axis=0).all()
        np.testing.assert_allclose(labels[test].mean(axis=0), labels.mean(axis=0), atol=0.05)
    again = repeated_folds(labels, groups=groups, seed=2)
    assert all((a[1] == b[1]).all() for a, b in zip(folds, again, strict=True))
    # One group of nearly all images leaves no fold empty.
    large = np.array([0] * 17 + [1, 2, 3])
    assert all(len(test) for _, test in repeated_folds(labels[:20], folds=4, groups=large))
    with pytest.raises(DatasetError, match="20 images that are equal or of one group"):
        repeated_folds(labels[:20], groups=np.zeros(20, int))


def test_editing_a_label_moves_no_other_image_of_large_classes():
    generator = np.random.default_rng(0)
    y = np.repeat(["ants", "bees", "rare"], [300, 200, 30])
    groups = generator.integers(0, 1 << 62, len(y))

    def fold_of(labels, rows):
        parts = np.empty(len(rows), int)
        for number, (_, test) in enumerate(repeated_folds(labels[rows], groups=groups[rows])):
            parts[test] = number
        return parts

    before = fold_of(y, np.arange(len(y)))
    edited = y.copy()
    edited[7] = "bees"
    after = fold_of(edited, np.arange(len(y)))
    assert (before == after).all()
    # Nor does an image that is added, or the order of the rows.
    without = np.delete(np.arange(len(y)), 250)
    np.testing.assert_array_equal(fold_of(y, without)[:500], before[without][:500])
    mixed = generator.permutation(len(y))
    np.testing.assert_array_equal(fold_of(y, mixed), before[mixed])
    # Of few images the order of the hashes decides: at most one changes at each end of a fold.
    edited = y.copy()
    edited[505] = "ants"
    assert (fold_of(edited, np.arange(len(y))) != before).sum() <= 5


def test_folds_of_small_classes_have_them_in_equal_shares():
    y = np.repeat(np.arange(20), 10)
    for seed in range(5):
        for _, test in repeated_folds(y, seed=seed):
            assert (np.bincount(y[test], minlength=20) == 2).all()
