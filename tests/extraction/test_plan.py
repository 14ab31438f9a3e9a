from __future__ import annotations

import json

import numpy as np
import pytest

import featx
from featx.extraction.run import ExtractionPlan


@pytest.fixture
def options(tmp_path, small_network):
    return {"backbone": f"file:{small_network}", "cache": tmp_path / "cache"}


def test_a_plan_counts_without_writing_features(photos, options, tmp_path):
    plan = featx.plan_extraction(photos, **options)
    assert (plan.images, plan.cached, plan.to_extract) == (12, 0, 12)
    assert plan.images_per_s > 0
    assert plan.seconds >= round(plan.start_s, 1)
    assert plan.bytes == 12 * (16 * 4 + 40)
    assert not (tmp_path / "cache" / "spaces").exists()
    assert not (tmp_path / "cache" / "datasets").exists()


def test_a_plan_knows_what_is_cached(photos, options, draw_photo):
    featx.extract(photos, **options)
    assert featx.plan_extraction(photos, **options).to_extract == 0
    draw_photo(photos, "red/new.jpg", seed=40, colour=(0, 99, 0))
    (photos / "red" / "copy.jpg").write_bytes((photos / "red" / "0.jpg").read_bytes())
    plan = featx.plan_extraction(photos, **options)
    # Files just written cannot be told by their time stamps; they are found by their content.
    assert (plan.images, plan.to_extract) == (14, 1)


def test_a_plan_takes_views_and_backbones_into_account(photos, options):
    plain = featx.plan_extraction(photos, **options)
    assert featx.plan_extraction(photos, **options, views=2).bytes == 12 * (3 * 16 * 4 + 40)
    assert plain.bytes < featx.plan_extraction(photos, **options, taps=["avg", "grid:2"]).bytes


def test_a_named_dataset_that_is_complete_needs_nothing(photos, options):
    featx.extract(photos, **options)
    plan = featx.plan_extraction("photos", **options)
    assert (plan.images, plan.cached, plan.to_extract) == (12, 12, 0)
    assert plan.describe() == "photos: 12 images, 12 known to be cached, nothing to extract"


def test_broken_images_are_not_counted(photos, options):
    for number in range(6):
        (photos / "red" / f"broken{number}.jpg").write_bytes(b"no image")
    plan = featx.plan_extraction(photos, **options)
    assert plan.images == 18
    assert plan.to_extract in range(8, 17)


def test_the_command_says_it(photos, small_network, featx_command):
    done = featx_command("extract", photos, "-b", f"file:{small_network}", "--plan")
    assert done.returncode == 0, done.stderr
    assert "12 images, 0 known to be cached, about 12 to extract" in done.stdout
    assert "images/s" in done.stdout
    assert "free" in done.stdout
    done = featx_command("extract", photos, "-b", f"file:{small_network}", "--plan", "--json")
    assert json.loads(done.stdout)["to_extract"] == 12


def test_more_images_take_longer(tmp_path, options, draw_photo):
    data = featx.ImageDataset.from_arrays(
        np.random.default_rng(0).integers(0, 256, (600, 64, 64, 3), dtype=np.uint8)
    )
    many = featx.plan_extraction(data, **options)
    few = featx.plan_extraction(data.subset(range(60)), **options)
    assert many.measured <= 264
    assert many.bytes == 10 * few.bytes


@pytest.mark.parametrize(
    ("seconds", "count", "time", "disk"),
    [
        (4.26, 999, "4.3 s", "999 bytes"),
        (90, 5_120_000, "1 min 30 s", "5.1 MB"),
        (7_500, 51_200_000_000, "2 h 5 min", "51.2 GB"),
        (200_000, 5_120_000_000_000_000, "2 days 7 h", "5,120.0 TB"),
    ],
)
def test_a_plan_is_told_in_units_that_fit(seconds, count, time, disk):
    plan = ExtractionPlan(
        dataset="photos", images=2, cached=0, to_extract=2, seconds=seconds, bytes=count
    )
    lines = plan.describe().split("\n")
    assert lines[1].startswith(f"  time  about {time} at")
    assert lines[2] == f"  disk  about {disk}, 0 bytes are free"
    assert lines[3] == "  there is not enough room: name another folder with --cache"
