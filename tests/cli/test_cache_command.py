from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from click.testing import CliRunner

import featx
from featx.cli.cache import _size, command


@pytest.fixture
def cache(photos, small_network, tmp_path):
    """The features of 12 photographs."""
    root = tmp_path / "cache"
    featx.extract(photos, backbone=f"file:{small_network}", cache=root)
    return root


@pytest.fixture
def run(cache):
    def invoke(*args, code=0):
        result = CliRunner().invoke(
            command, [*map(str, args), "--cache", str(cache)], standalone_mode=False
        )
        if result.exception is not None:
            raise result.exception
        assert (result.return_value or 0) == code, result.output
        return result.output

    return invoke


def damage(cache):
    (path,) = cache.rglob("shards/*.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    return path


def test_the_help_lists_every_command_with_examples():
    text = CliRunner().invoke(command, ["--help"]).output
    for name in ("info", "verify", "repair", "gc", "merge", "push", "pull"):
        assert f"\n  {name} " in text
        assert f"featx cache {name}" in command.commands[name].help
        assert CliRunner().invoke(command, [name, "--help"]).exit_code == 0


def test_verify_is_silent_about_what_is_sound(run, cache):
    assert run("verify") == f"{cache}: 3 files, 12 sound rows, {sizes(cache)}, 0 findings\n"
    found = json.loads(run("verify", "--json"))
    assert found == {
        "cache": str(cache), "files": 3, "rows": 12, "findings": [],
        "size_bytes": sum(path.stat().st_size for path in cache.rglob("*.h5")),
    }  # fmt: skip


def sizes(cache):
    return _size(sum(path.stat().st_size for path in cache.rglob("*.h5")))


def test_verify_names_each_finding_in_a_line_and_exits_1(run, cache):
    path = damage(cache)
    first, second, last = run("verify", code=1).splitlines()
    assert first.startswith(f"shard: {path} is damaged")
    assert first.endswith("; `featx cache repair` removes it")
    assert "12 of 12 images have no features of file:small avg" in second
    assert last.endswith("0 sound rows, " + sizes(cache) + ", 2 findings")
    found = json.loads(run("verify", "--json", code=1))["findings"]
    assert [finding["kind"] for finding in found] == ["shard", "missing"]
    assert found[1]["rows"] == 12
    assert len(found[1]["examples"]) == 5


def test_repair_says_what_to_extract_again_and_extracting_it_heals(
    run, cache, photos, small_network
):
    options = {"backbone": f"file:{small_network}", "cache": cache}
    path = damage(cache)
    text = run("repair", "--dry-run")
    assert f"would be removed: {path}" in text
    assert path.exists()
    text = run("repair")
    assert f"removed: {path}" in text
    assert "to make again: photos: 12 of 12 images" in text
    assert "blue/0.jpg, blue/1.jpg" in text
    assert "  featx extract photos -b file:PATH.keras" in text
    assert not path.exists()
    again = featx.extract("photos", **options)
    assert again.report["extracted"] == 12
    run("verify")
    found = json.loads(run("repair", "--json"))
    assert (found["removed"], found["left"], found["missing"]) == ([], [], [])
    assert (found["dry_run"], found["size_bytes"]) == (False, 0)


def test_repair_leaves_files_of_others_and_exits_1(run, cache):
    stray = cache / "datasets" / "notes.txt"
    stray.write_text("mine")
    assert f"left: foreign: {stray}" in run("repair", code=1)
    assert stray.read_text() == "mine"


def test_gc_asks_for_yes(run, cache, photos, small_network):
    (cache / "datasets" / "photos.h5").unlink()
    assert "0 rows, 0 B would be removed; --yes does it" in run("gc")
    text = run("gc", "--older-than", "0")
    assert "(whole)" in text
    assert "12 rows, 1.2 kB would be removed; --yes does it" in text
    assert len(list(cache.rglob("shards/*.h5"))) == 1
    assert "12 rows, 1.2 kB removed" in run("gc", "--older-than", "0s", "--yes")
    assert list((cache / "spaces").iterdir()) == []
    assert "0 rows, 0 B removed" in run("gc", "--yes")


def test_gc_takes_an_age(run, cache):
    (cache / "datasets" / "photos.h5").unlink()
    then = time.time() - 7200
    for path in cache.rglob("*"):
        os.utime(path, (then, then))
    (space,) = json.loads(run("gc", "--json", "--older-than", "3h"))["spaces"]
    assert (space["shards_young"], space["rows_unused"]) == (1, 0)
    found = json.loads(run("gc", "--json", "--older-than", "90m"))
    assert (found["dry_run"], found["older_than_s"]) == (True, 5400.0)
    assert (found["spaces"][0]["rows_unused"], found["spaces"][0]["removed"]) == (12, True)
    assert found["spaces"][0]["size_bytes"] == 12 * (32 + 16 * 4)


def test_gc_refuses_an_age_that_is_none(featx_command):
    result = featx_command("cache", "gc", "--older-than", "soon")
    assert result.returncode == 2
    assert "expected a time such as 90s, 10m, 1h or 1d, received 'soon'" in result.stderr


def test_merge_brings_rows_and_datasets(run, cache, tmp_path, small_network, draw_photo):
    more = tmp_path / "more"
    draw_photo(more, "green/1.jpg", seed=5, colour=(0, 255, 0))
    draw_photo(more, "red/0.jpg", seed=0, colour=(200, 60, 60))
    other = tmp_path / "other"
    features = featx.extract(more, backbone=f"file:{small_network}", cache=other)
    expected = np.array(features.X)
    text = run("merge", other)
    assert f"{other}: 1 rows copied (96 B), 1 were here" in text
    assert "  dataset more: copied" in text
    merged = featx.FeatureCache(cache).features("more")
    np.testing.assert_array_equal(merged.X, expected)
    (again,) = json.loads(run("merge", other, "--json"))["sources"]
    assert (again["rows_copied"], again["rows_present"], again["skipped"]) == (0, 2, [])
    damage(other)
    assert "left out: shard: " in run("merge", other, code=1)


@pytest.mark.parametrize("name", ["verify", "repair", "gc", "merge"])
def test_a_folder_without_a_cache_is_one_clear_error(featx_command, name):
    args = ["nowhere", "--cache", "cache"] if name == "merge" else ["--cache", "nowhere"]
    result = featx_command("cache", name, *args)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no cache at nowhere: expected a folder with spaces/")
    assert result.stdout == ""


def test_the_command_line_exits_1_when_something_is_found(featx_command, tmp_path):
    (tmp_path / "cache" / "datasets").mkdir(parents=True)
    assert featx_command("cache", "verify").returncode == 0
    (tmp_path / "cache" / "datasets" / "photos.h5").write_text("damaged")
    result = featx_command("cache", "verify")
    assert result.returncode == 1
    assert result.stdout.startswith("manifest: cache/datasets/photos.h5 is damaged")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_600, "1.0 MB"), (3.2e13, "32.0 TB")],
)
def test_sizes_are_read_by_people(size_bytes, text):
    assert _size(size_bytes) == text
