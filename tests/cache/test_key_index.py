from __future__ import annotations

import numpy as np

from featx.cache.key_index import KeyIndex


def random_keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32), dtype=np.uint8)


def test_every_key_is_found_where_it_is_and_no_other():
    keys = random_keys(5000)
    index = KeyIndex([keys[:1000], keys[1000:1000], keys[1000:]])
    part, row = index.find(keys)
    assert (part[:1000] == 0).all()
    assert (part[1000:] == 2).all()
    np.testing.assert_array_equal(row, [*range(1000), *range(4000)])
    strangers = index.find(random_keys(500, seed=1))
    assert (strangers[0] == -1).all()
    assert (strangers[1] == -1).all()


def test_keys_that_share_their_first_eight_bytes_are_kept_apart():
    keys = np.zeros((50, 32), np.uint8)
    keys[:, 31] = np.arange(50)
    index = KeyIndex([keys])
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(index.find(keys[order])[1], order)
    stranger = np.full((1, 32), 0, np.uint8)
    stranger[0, 30] = 1
    assert index.find(stranger)[1][0] == -1


def test_one_of_equal_keys_stands_for_them():
    keys = random_keys(3)
    parts = [keys, keys[::-1]]
    part, row = KeyIndex(parts).find(keys)
    found = np.stack([parts[p][r] for p, r in zip(part, row, strict=True)])
    np.testing.assert_array_equal(found, keys)


def test_an_empty_index_finds_nothing():
    assert KeyIndex([]).find(random_keys(2))[0].tolist() == [-1, -1]
    assert KeyIndex([random_keys(2)]).find(random_keys(0))[0].tolist() == []


def test_an_index_that_grew_part_by_part_finds_what_one_made_at_once_finds():
    generator = np.random.default_rng(0)
    keys = random_keys(6000)
    keys[4000:4100] = keys[:100]  # rows that came twice
    keys[:, :8] %= 3  # many keys that begin alike
    cuts = np.sort(generator.integers(0, 6000, 60))
    parts = np.split(keys, cuts)
    grown = KeyIndex()
    for part in parts:
        before = len(grown)
        grown = grown.extended([part])
        assert len(grown) == before + len(part)
    asked = np.concatenate([keys, random_keys(500, seed=1)])[generator.permutation(6500)]
    for index in (grown, KeyIndex(parts), KeyIndex(parts[:20]).extended(parts[20:])):
        part, row = index.find(asked)
        here = part >= 0
        assert here.sum() == 6000
        found = np.stack([parts[p][r] for p, r in zip(part[here], row[here], strict=True)])
        np.testing.assert_array_equal(found, asked[here])


def test_extending_leaves_the_index_as_it_was_for_those_who_use_it():
    keys = random_keys(20)
    index = KeyIndex([keys[:10]])
    extended = index.extended([keys[10:]])
    assert (index.find(keys)[1] >= 0).tolist() == [True] * 10 + [False] * 10
    assert (extended.find(keys)[1] >= 0).all()
    assert index.extended([]) is index


def test_a_key_costs_40_bytes_and_growing_sorts_little():
    parts = np.split(random_keys(200_000), 200)
    index = KeyIndex()
    sorted_rows = 0
    for part in parts:
        before = index._runs
        index = index.extended([part])
        sorted_rows += sum(len(run) for run in index._runs if run not in before)
    assert sum(run.words.nbytes + run.places.nbytes for run in index._runs) == 40 * 200_000
    assert len(index._runs) <= 4
    assert sorted_rows < 200_000 * 25  # all of them each time would be 100 times
