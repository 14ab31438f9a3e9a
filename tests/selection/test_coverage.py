"""The rows to label next cover what there is, and then what a model doubts."""

from __future__ import annotations

import numpy as np
import pytest

from featx.selection.coverage import choose_rows


@pytest.fixture(scope="module")
def clusters():
    """300 rows in 6 clusters of very different sizes, and the cluster of each."""
    generator = np.random.default_rng(0)
    sizes = [150, 80, 40, 15, 10, 5]
    centres = 10 * np.eye(6, 12)
    number = np.repeat(np.arange(6), sizes)
    X = centres[number] + generator.normal(size=(300, 12)) * 0.2
    return X.astype(np.float32), number


def test_every_cluster_has_a_label_before_any_has_two(clusters):
    X, number = clusters
    chosen = choose_rows(X, 6, seed=1)
    assert sorted(number[chosen]) == [0, 1, 2, 3, 4, 5]
    labelled = np.array([10, 160, 240])  # of the first three
    assert sorted(number[choose_rows(X, 3, labelled=labelled)]) == [3, 4, 5]


def test_labelled_rows_are_not_chosen_and_the_seed_decides(clusters):
    X, _ = clusters
    labelled = np.arange(0, 300, 2)
    chosen = choose_rows(X, 40, labelled=labelled, seed=4)
    assert len(set(chosen.tolist())) == 40
    assert not np.isin(chosen, labelled).any()
    np.testing.assert_array_equal(chosen, choose_rows(X, 40, labelled=labelled, seed=4))
    everything = choose_rows(X, 1000, labelled=labelled)
    np.testing.assert_array_equal(np.sort(everything), np.arange(1, 300, 2))
    assert choose_rows(X, 5, labelled=np.arange(300)).size == 0


def test_doubtful_rows_are_chosen_and_not_all_from_one_place(clusters):
    X, number = clusters
    doubt = np.where(np.isin(number, [1, 2, 3]), 0.9, 0.1)
    chosen = choose_rows(X, 9, doubt=doubt)
    assert set(number[chosen[:3]]) == {1, 2, 3}
    assert len(set(chosen.tolist())) == 9


def test_equal_rows_and_rows_of_zeros_are_no_trouble():
    X = np.zeros((30, 4), np.float32)
    X[:10, 0] = 1
    for doubt in (None, np.linspace(0, 1, 30)):
        chosen = choose_rows(X, 20, doubt=doubt)
        assert len(set(chosen.tolist())) == 20
