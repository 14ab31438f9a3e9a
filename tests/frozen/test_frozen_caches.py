"""A cache that featx 0.1.0 wrote: several datasets, views, types, edits and imported rows."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

import featx

DATASETS = ("both", "numbers", "pictures", "sets", "table", "twice")


@pytest.fixture
def cache(archived, tmp_path):
    return shutil.copytree(archived / "cache", tmp_path / "cache")


def digest(array):
    array = np.ascontiguousarray(array)
    return f"{array.dtype}{list(array.shape)}:{hashlib.sha256(array.tobytes()).hexdigest()}"


def test_every_dataset_is_read_as_it_was(cache, frozen):
    found = {}
    for name in DATASETS:
        features = featx.Features.open(name, cache=cache)
        places = [{"backbone": block.backbone, "tap": block.tap} for block in features.blocks]
        found[name] = {
            "length": len(features),
            "paths": features.paths,
            "keys": digest(features.keys),
            "y": None if features.y is None else features.y.tolist(),
            "labels": features.labels.tolist(),
            "classes": None if features.classes is None else list(features.classes),
            "groups": None if features.groups is None else features.groups.tolist(),
            "splits": None if features.splits is None else features.splits.tolist(),
            "failed": [list(pair) for pair in features.failed],
            "blocks": {
                f"{place['backbone']}/{place['tap']}": {
                    "matrix": digest(features.matrix(**place)),
                    "views": {
                        str(view): digest(features.matrix(**place, view=view))
                        for view in features.views(**place)
                    },
                    "width": features.width(**place),
                    "spec": features.spec(**place).to_dict(),
                    "take": digest(features.take(np.array([3, 0]), **place)),
                    "augmented": [digest(part) for part in features.augmented(**place)],
                }
                for place in places
            },
        }
    frozen("cache", found)


def test_commands_list_it_as_before(cache, run, frozen):
    commands = {
        "info": ("cache", "info"),
        "list": ("dataset", "list"),
        "verify": ("cache", "verify"),
        "gc": ("cache", "gc", "--older-than", "0s"),
        "repair": ("cache", "repair", "--dry-run"),
        **{f"show {name}": ("dataset", "show", name) for name in DATASETS},
    }
    found = {}
    for name, arguments in commands.items():
        code, out, err = run(*arguments, "--cache", cache, "--json")
        assert (code, err) == (0, ""), name
        found[name] = json.loads(out)
        for one in [found[name], *found[name].get("datasets", [])]:
            if "root" in one:
                one["root"] = one["root"].rpartition("/")[2] if one["root"] else one["root"]
    frozen("cache-listing", found, folder=cache)


def test_nothing_of_it_is_computed_again(cache, archived, drawn):
    options = {"backbone": f"file:{archived / 'small.keras'}", "cache": cache}
    before = featx.Features.open("pictures", cache=cache)
    again = featx.extract(
        drawn / "pictures", taps=["avg", "max", "first:grid:2"], views=2, **options
    )
    assert (again.report["extracted"], again.report["failed"]) == (0, 1)
    assert again.paths == before.paths
    for tap in ("avg", "max", "first:grid:2"):
        assert np.array_equal(again.matrix(tap=tap), before.matrix(tap=tap))
    assert again.name.startswith("pictures-")  # another folder of the same name
    table = featx.extract(drawn / "table.csv", dtype="float16", **options)
    assert (table.report["cached"], table.report["extracted"]) == (24, 0)
    sets = featx.extract(drawn / "sets.csv", multilabel=True, **options)
    assert (sets.report["cached"], sets.report["extracted"]) == (24, 0)
    assert featx.extract("both", **options).report["extracted"] == 0
    numbers = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
    numbers[11] = numbers[0]
    assert featx.import_features("numbers", numbers, cache=cache).report["written"] == 0


def test_edits_of_an_old_dataset_outlast_a_new_extraction(cache, archived, drawn, run):
    assert run("dataset", "relabel", "pictures", "red=blue", "--cache", cache)[0] == 0
    before = featx.Features.open("pictures", cache=cache)
    after = featx.extract(
        "pictures", backbone=f"file:{archived / 'small.keras'}", taps="avg", cache=cache
    )
    assert after.report["extracted"] == 0
    assert set(after.classes) == {"blue", "striped", "蜂"}
    assert after.y.tolist() == before.y.tolist()
    assert after.splits.tolist() == before.splits.tolist()
