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
