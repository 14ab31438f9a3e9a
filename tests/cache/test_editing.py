from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse.csgraph

from featx.cache.editing import (
    add_rows,
    assign_splits,
    hash_splits,
    relabel,
    remove_rows,
    stratified_splits,
)
from featx.cache.manifest import (
    DUPLICATE,
    FAILED,
    OK,
    Block,
    same_manifest,
)
from featx.exceptions import DatasetError, UnknownNameError
from featx.files.identity import related_rows


def random_keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32), dtype=np.uint8)


@pytest.fixture
def manifest(kit):
    """Six files: ants/0 and bees/3 are equal, wasps/4 could not be read."""
    keys = random_keys(6)
    keys[3] = keys[0]
    keys[4] = 0
    return kit.dataset(
        "insects", keys, root="/insects", classes=("ants", "bees", "wasps"), source="files",
        path=["ants/0.jpg", "ants/1.png", "bees/2.jpg", "bees/3.jpg", "wasps/4.jpg", "wasps/5.jpg"],
        label=np.array([0, 0, 1, 1, 2, 2], np.int32), group=["", "", "g", "", "", ""],
        reason=["", "", "", "", "truncated", ""], inode=np.arange(6, dtype=np.int64),
        status=np.array([OK, OK, OK, DUPLICATE, FAILED, OK], np.uint8),
        blocks=(Block("tiny", "avg", "tiny-0123"), Block("tiny", "max", "tiny-0123")),
    )  # fmt: skip


# Splits


FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


@pytest.mark.parametrize("seed", range(5))
def test_new_images_move_no_old_one_and_fractions_are_right(seed):
    generator = np.random.default_rng(seed)
    old = random_keys(10_000, seed)
    groups = [f"g{n}" if n < 4000 else "" for n in generator.integers(0, 8000, 10_000)]
    before = hash_splits(old, groups, FRACTIONS, seed=seed)
    new = random_keys(1000, 100 + seed)
    new[:100] = old[generator.integers(0, 10_000, 100)]  # copies, without a group
    more = [*[""] * 100, *(f"g{n}" for n in generator.integers(0, 9000, 900))]
    order = generator.permutation(11_000)
    keys = np.concatenate([old, new])[order]
    mixed = [[*groups, *more][row] for row in order]
    after = np.array(hash_splits(keys, mixed, FRACTIONS, seed=seed))[np.argsort(order)]
    assert after[:10_000].tolist() == before
    shares = Counter(hash_splits(random_keys(20_000, seed), [""] * 20_000, FRACTIONS, seed=seed))
    for name, share in FRACTIONS.items():
        assert shares[name] / 20_000 == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("method", ["hash", "stratified"])
@pytest.mark.parametrize("seed", range(5))
def test_groups_and_copies_are_on_one_side_along_chains_of_both(method, seed):
    generator = np.random.default_rng(seed)
    keys = random_keys(400, seed)[generator.integers(0, 400, 600)]
    groups = [f"g{n}" if n < 200 else "" for n in generator.integers(0, 400, 600)]
    if method == "hash":
        splits = hash_splits(keys, groups, FRACTIONS, seed=seed)
    else:
        codes = generator.integers(0, 3, 600).astype(np.int32)
        splits = stratified_splits(keys, groups, codes, FRACTIONS, seed=seed)
    sides = {}
    for number, split in zip(related_rows(keys, groups).tolist(), splits, strict=True):
        assert sides.setdefault(number, split) == split
    assert len(set(splits)) == 3


@pytest.mark.parametrize("rows", [0, 1, 2, 300])
def test_related_rows_are_the_components_of_equal_keys_and_groups(rows):
    generator = np.random.default_rng(rows)
    keys = random_keys(max(rows, 1))[generator.integers(0, max(rows, 1), rows)]
    groups = [f"g{n}" if n % 3 else "" for n in generator.integers(0, max(rows, 1), rows)]
    named = np.array(groups, np.str_)
    same = (keys[:, None] == keys).all(axis=2) | ((named[:, None] == named) & (named != ""))
    _, expected = scipy.sparse.csgraph.connected_components(same)
    numbers = np.unique(related_rows(keys, groups), return_inverse=True)[1]
    assert numbers.tolist() == expected.tolist()


def test_a_long_chain_of_groups_and_copies_is_followed_to_its_end():
    keys = np.repeat(random_keys(5000), 2, axis=0)
    groups = [f"g{(n + 1) // 2}" for n in range(10_000)]
    assert not related_rows(keys, groups).any()


def test_an_image_moves_only_when_a_new_one_ties_two_groups_together():
    keys = random_keys(2)
    before = [hash_splits(keys, ["a", "b"], FRACTIONS, seed=seed) for seed in range(50)]
    tied = np.concatenate([keys, keys[:1]])
    after = [hash_splits(tied, ["a", "b", "b"], FRACTIONS, seed=seed) for seed in range(50)]
    for old, new in zip(before, after, strict=True):
        assert len(set(new)) == 1
        assert new[0] in old


def test_another_seed_is_another_split_and_a_later_val_leaves_the_test_alone():
    keys, groups = random_keys(1000), [""] * 1000
    two = hash_splits(keys, groups, {"train": 0.8, "test": 0.2})
    assert two != hash_splits(keys, groups, {"train": 0.8, "test": 0.2}, seed=1)
    three = hash_splits(keys, groups, FRACTIONS)
    assert [s == "test" for s in two] == [s == "test" for s in three]


def test_stratified_gives_every_class_its_share():
    codes = np.repeat([0, 1, 2], [1000, 100, 10]).astype(np.int32)
    splits = stratified_splits(random_keys(1110), [""] * 1110, codes, FRACTIONS)
    for code, count in enumerate((1000, 100, 10)):
        shares = Counter(np.array(splits)[codes == code].tolist())
        assert shares == {n: round(f * count) for n, f in FRACTIONS.items()}


def test_stratified_keeps_what_was_and_puts_copies_beside_their_originals():
    keys = random_keys(100)
    codes = np.zeros(100, np.int32)
    first = stratified_splits(keys, [""] * 100, codes, FRACTIONS)
    known = {key.tobytes(): split for key, split in zip(keys, first, strict=True)}
    more = np.concatenate([keys[:20], random_keys(50, 1), keys])
    after = stratified_splits(more, [""] * 170, np.zeros(170, np.int32), FRACTIONS, earlier=known)
    assert after[70:] == first
    assert after[:20] == first[:20]
    assert all(after)


def test_splitting_a_dataset_leaves_out_what_could_not_be_read(manifest):
    after = assign_splits(manifest, {"train": 0.5, "test": 0.5})
    assert [bool(split) for split in after.split] == [True] * 4 + [False, True]
    assert after.split[0] == after.split[3]
    np.testing.assert_array_equal(after.key, manifest.key)
    assert manifest.split == [""] * 6


@pytest.mark.parametrize(
    "fractions", [{"train": 0.5}, {"train": 1.2, "test": -0.2}, {"": 1.0}, {}, {"a": 0.5, "b": 0.6}]
)
def test_fractions_that_are_none_are_refused(manifest, fractions):
    with pytest.raises(DatasetError, match="fractions above 0 whose sum is 1"):
        assign_splits(manifest, fractions)
    with pytest.raises(UnknownNameError, match="did you mean 'hash'"):
        assign_splits(manifest, FRACTIONS, method="hsh")


# Labels


def test_classes_are_renamed_joined_swapped_and_dropped(manifest):
    renamed = relabel(manifest, classes={"ants": "Ameisen"})
    assert renamed.label_names == ["Ameisen", "Ameisen", "bees", "bees", "wasps", "wasps"]
    assert renamed.classes == ("bees", "wasps", "Ameisen")
    joined = relabel(manifest, classes={"wasps": "bees"})
    assert joined.classes == ("ants", "bees")
    swapped = relabel(manifest, classes={"ants": "bees", "bees": "ants"})
    assert swapped.label_names[:4] == ["bees", "bees", "ants", "ants"]
    dropped = relabel(manifest, classes={"wasps": ""})
    assert dropped.label_names[4:] == ["", ""]
    assert dropped.label[4:].tolist() == [-1, -1]
    assert relabel(manifest, classes=dict.fromkeys(manifest.classes, "")).classes is None
    with pytest.raises(UnknownNameError, match="unknown class 'ant': did you mean 'ants'"):
        relabel(manifest, classes={"ant": "x"})


def test_single_images_are_labelled_with_their_copies(manifest):
    after = relabel(manifest, paths={"ants/0.jpg": "flies", "wasps/5.jpg": ""})
    assert after.label_names == ["flies", "ants", "bees", "flies", "wasps", ""]
    assert after.classes == ("ants", "bees", "wasps", "flies")
    with pytest.raises(UnknownNameError, match="unknown path 'ants/0.png': did you mean"):
        relabel(manifest, paths={"ants/0.png": "x"})
    with pytest.raises(DatasetError, match="wasps/4.jpg could not be read"):
        relabel(manifest, paths={"wasps/4.jpg": "x"})


def test_unlabelled_data_get_labels(manifest):
    blank = replace(manifest, classes=None, label=np.full(6, -1, np.int32))
    assert relabel(blank, paths={"bees/2.jpg": "bees"}).label_names == ["", "", "bees", "", "", ""]


# Rows


def test_rows_are_left_out_by_pattern_and_by_status(manifest):
    assert remove_rows(manifest, ["*.png"]).path == [p for p in manifest.path if "png" not in p]
    assert remove_rows(manifest, ["wasps/*"]).classes == ("ants", "bees")
    assert remove_rows(manifest, status=["failed"]).path == [
        path for path in manifest.path if path != "wasps/4.jpg"
    ]
    assert "bees/3.jpg" not in remove_rows(manifest, status=["duplicate"]).path
    without = remove_rows(manifest, ["ants/0.jpg"])
    assert without.status[without.path.index("bees/3.jpg")] == OK
    for column in ("label", "size", "mtime_ns", "inode", "key", "status"):
        assert len(getattr(without, column)) == 5


def test_removing_nothing_or_everything_is_an_error(manifest):
    with pytest.raises(DatasetError, match=r"no row of 'insects' fits \*\.gif; paths look like"):
        remove_rows(manifest, ["*.gif"])
    with pytest.raises(DatasetError, match="nothing would be left of 'insects'"):
        remove_rows(manifest, ["*"])
    with pytest.raises(UnknownNameError, match="did you mean 'failed'"):
        remove_rows(manifest, status=["fail"])


def test_datasets_are_joined_with_the_features_that_both_have(manifest):
    other = replace(
        manifest, name="more", root="/more", classes=("bees", "flies"), group=["h"] * 6,
        label=np.array([0, 0, 1, 1, -1, -1], np.int32), blocks=manifest.blocks[1:],
        key=np.concatenate([manifest.key[:2], random_keys(4, 9)]),
        status=np.zeros(6, np.uint8),
    )  # fmt: skip
    joined = add_rows(manifest, other, name="both")
    assert (joined.name, joined.root, len(joined)) == ("both", "", 12)
    assert joined.path[0] == "/insects/ants/0.jpg"
    assert joined.path[6] == "/more/ants/0.jpg"
    assert joined.classes == ("ants", "bees", "wasps", "flies")
    assert joined.label_names[6:] == ["bees", "bees", "flies", "flies", "", ""]
    assert joined.blocks == manifest.blocks[1:]
    assert joined.status.tolist() == [OK, OK, OK, DUPLICATE, FAILED, OK, 2, 2, 0, 0, 0, 0]
    assert same_manifest(add_rows(joined, manifest), joined)
    with pytest.raises(DatasetError, match="holds files, 'more' holds arrays"):
        add_rows(manifest, replace(other, source="arrays"))
    with pytest.raises(DatasetError, match="were imported apart and share no features"):
        add_rows(
            replace(manifest, source="imported", blocks=manifest.blocks[:1]),
            replace(other, source="imported"),
        )
