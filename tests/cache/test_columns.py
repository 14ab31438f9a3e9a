from __future__ import annotations

import pickle
import random
from itertools import pairwise

import numpy as np
import pytest

from featx.cache import columns as columns_module
from featx.cache.columns import Numbers, Strings

LETTERS = ["a", "b", "/", "é", "蟻", "\udcff", "\0"]


def words(generator, count):
    sizes = generator.choices([0, 0, 1, 2, 9], k=count)
    return ["".join(generator.choices(LETTERS, k=size)) for size in sizes]


def in_pieces(values, cuts):
    """A column of some strings that is made of several pieces."""
    bounds = [0, *cuts, len(values)]
    column = Strings.of(values[: bounds[1]])
    for start, stop in pairwise(bounds[1:]):
        column = column.joined(values[start:stop])
    return column


@pytest.fixture(params=range(40))
def case(request, monkeypatch):
    """Strings as a list and as a column, of blocks that are smaller than they are."""
    monkeypatch.setattr(columns_module, "_BLOCK_ROWS", 7)
    generator = random.Random(request.param)
    values = words(generator, generator.randrange(1, 40))
    cuts = sorted(generator.choices(range(len(values)), k=request.param % 4))
    return generator, values, in_pieces(values, cuts)


def test_a_column_is_what_the_list_is(case):
    generator, values, column = case
    assert list(column) == values
    assert column == values
    assert column == Strings.of(values)
    assert column != [*values[:-1], "else"]
    assert pickle.loads(pickle.dumps(column)) == values
    rows = np.array(generator.choices(range(-len(values), len(values)), k=30))
    assert list(column.take(rows)) == [values[row] for row in rows]
    assert list(column.take(np.sort(rows))) == [values[row] for row in np.sort(rows)]
    assert [column[row] for row in rows] == [values[row] for row in rows]
    start, stop = rows[:2].tolist()
    for index in (slice(start, stop), slice(None, None, -1), slice(1, None, 3)):
        assert list(column[index]) == values[index]
    assert column.any() == any(values)
    assert column.filled().tolist() == list(map(bool, values))


def test_rows_are_changed_and_found(case):
    generator, values, column = case
    rows = np.unique(generator.choices(range(len(values)), k=3))
    new = words(generator, len(rows))
    other = list(values)
    for row, word in zip(rows.tolist(), new, strict=True):
        other[row] = word
    assert column.changed(rows, new) == other
    assert column.same_rows(Strings.of(other)).tolist() == [
        a == b for a, b in zip(values, other, strict=True)
    ]
    sought = [*words(generator, 20), *values[:3]]
    last = {value: row for row, value in enumerate(values)}
    assert column.find(sought).tolist() == [last.get(value, -1) for value in sought]
    assert (values[0] in column, "not there" in column) == (True, False)


def test_texts_of_one_hash_are_told_apart(monkeypatch):
    ones = np.ones(4096, np.uint64)
    monkeypatch.setattr(columns_module, "_weights", lambda count: ones)
    column = Strings.of(["ab", "ba", "ab", "c"])
    assert column.find(["ba", "ab", "bb", "aa", "ca"]).tolist() == [1, 2, -1, -1, -1]


def test_columns_without_rows_and_rows_that_are_not_there():
    empty = Strings.of([])
    assert list(empty) == []
    assert list(empty.joined(["a"]).joined([])) == ["a"]
    assert empty.find(["a"]).tolist() == [-1]
    assert list(empty.take(np.empty(0, np.intp))) == []
    with pytest.raises(IndexError):
        empty[0]
    with pytest.raises(IndexError, match="expected rows below 2, received 2"):
        Strings.of(["a", "b"]).take(np.array([2]))


def test_numbers_in_pieces():
    whole = np.arange(20).reshape(10, 2)
    column = Numbers([whole[:3], whole[3:3], whole[3:]], ["one", "two", "three"])
    np.testing.assert_array_equal(column.values, whole)
    rows = np.array([9, 0, 3, 3, -1])
    np.testing.assert_array_equal(column.take(rows).values, whole[rows])
    assert column.span(0, 3)[1] == "one"
    np.testing.assert_array_equal(column.span(2, 5)[0], whole[2:5])
    assert column.equals(Numbers([whole]))
    assert not column.equals(Numbers([whole + 1]))
    assert pickle.loads(pickle.dumps(column)).equals(column)
