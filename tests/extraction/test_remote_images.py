from __future__ import annotations

import logging

import numpy as np
import pytest

import featx
from featx.cache.layout import CacheLayout
from featx.cache.manifest import find_manifest
from featx.extraction.job import images_of

pytest.importorskip("obstore")
from object_server import ACCESS_KEY, BUCKET, SECRET_KEY, serving

URL = "s3://bucket/photos"


@pytest.fixture
def server(photos):
    """A bucket with the photographs, which have lain there for a while."""
    with serving() as server:
        server.put_folder(photos, "photos/")
        yield server


@pytest.fixture
def extract(small_network, tmp_path):
    def run(data, **more):
        options = {"backbone": f"file:{small_network}", "cache": tmp_path / "cache"}
        return featx.extract(data, **{**options, **more})

    return run


def test_features_from_a_bucket_are_those_from_the_folder(server, photos, extract, tmp_path):
    folder = extract(photos, cache=tmp_path / "another")
    bucket = extract(URL)
    np.testing.assert_array_equal(bucket.X, folder.X)
    np.testing.assert_array_equal(bucket.keys, folder.keys)
    assert (bucket.paths, bucket.y.tolist()) == (folder.paths, folder.y.tolist())
    assert bucket.report["extracted"] == 12


def test_moving_a_folder_into_a_bucket_costs_no_computation(server, photos, extract):
    folder = extract(photos)
    bucket = extract(URL)
    assert bucket.report["extracted"] == 0
    np.testing.assert_array_equal(bucket.X, folder.X)


def test_an_unchanged_bucket_is_not_read_again(server, photos, extract):
    extract(URL)
    assert server.count("GET") == 12
    server.requests.clear()
    assert extract(URL).report["extracted"] == 0
    assert (server.count("GET"), server.count("HEAD")) == (0, 0)
    server.put("photos/red/0.jpg", (photos / "red/1.jpg").read_bytes())
    extract(URL)
    assert server.count("GET") == server.count("GET", "photos/red/0.jpg") == 1


def test_a_flaky_store_loses_no_row(server, photos, extract):
    server.take_turns(3)
    features = extract(URL)
    assert (len(features), features.failed) == (12, [])


def test_a_dead_object_is_a_failed_row_which_the_next_run_heals(server, extract, monkeypatch):
    monkeypatch.setattr("featx.files.stores._RETRIES", 1)
    server.dead("photos/red/3.jpg", 503)
    features = extract(URL)
    assert len(features) == 11
    assert features.failed == [
        (
            "red/3.jpg",
            "cannot be read from the store: the server answered 503 Service Unavailable",
        )
    ]
    server.misbehave = lambda method, name: None
    server.requests.clear()
    features = extract(URL)
    assert (len(features), features.report["extracted"]) == (12, 1)
    assert server.count("GET") == server.count("GET", "photos/red/3.jpg") == 1


def test_a_named_dataset_of_a_bucket_can_be_extracted_further(server, photos, extract, tmp_path):
    extract(URL)
    features = extract("photos", taps="max")
    expected = extract(photos, taps="max", cache=tmp_path / "another")
    np.testing.assert_array_equal(features.matrix(tap="max"), expected.X)
    manifest = find_manifest(CacheLayout(tmp_path / "cache"), "photos")
    assert (manifest.root, manifest.source) == (URL, "packed")
    assert images_of(manifest).read(0) == (photos / manifest.path[0]).read_bytes()


@pytest.fixture
def table(server, photos, tmp_path):
    """A table of two addresses and a file."""
    path = tmp_path / "table.csv"
    path.write_text(
        f"path,label\n{server.url}/{BUCKET}/photos/red/0.jpg?sig=secret,r\n"
        f"s3://bucket/photos/red/1.jpg,r\n{photos}/blue/0.jpg,b\n"
    )
    return path


def test_addresses_in_a_table_are_followed_where_asked_for(server, table, extract, tmp_path):
    features = extract(table)
    assert len(features) == 1
    assert {reason for _, reason in features.failed} == {
        "an address, which is read only with --follow-urls (follow_urls=True)"
    }
    features = extract(table, follow_urls=True)
    assert (len(features), features.report["extracted"]) == (3, 2)
    server.requests.clear()
    assert len(extract(table, follow_urls=True)) == 3
    assert (server.count("GET"), server.count("HEAD")) == (0, 2)
    manifest = find_manifest(CacheLayout(tmp_path / "cache"), "table")
    assert images_of(manifest).read(1) == server.objects["photos/red/1.jpg"]


def test_no_secret_is_shown_or_stored(server, table, extract, tmp_path, caplog, featx_command):
    caplog.set_level(logging.DEBUG)
    user = server.url.replace("http://", "http://ann:pass-word@")
    table.write_text(table.read_text() + f"{user}/{BUCKET}/photos/red/2.jpg,r\n{user}/x/none.jpg,r")
    features = extract(table, follow_urls=True)
    assert len(features) == 4
    shown = caplog.text + repr(features) + str(features.failed) + str(features.report)
    for command in (
        ("extract", table, "--follow-urls", "--cache", tmp_path / "cache", "--json"),
        ("dataset", "show", "table", "--cache", tmp_path / "cache"),
        ("extract", f"{user}/{BUCKET}/none.csv?sig=secret", "--cache", tmp_path / "cache"),
    ):
        done = featx_command(*command, "--debug")
        shown += done.stdout + done.stderr
    stored = b"".join(p.read_bytes() for p in (tmp_path / "cache").rglob("*") if p.is_file())
    for secret in ("sig=secret", "pass-word", ACCESS_KEY, SECRET_KEY):
        assert secret not in shown
        assert secret.encode() not in stored


def test_commands_follow_addresses_with_their_option(server, table, tmp_path, featx_command):
    table.write_text(
        "path,label\n"
        + "".join(
            f"s3://bucket/photos/{name}/{number}.jpg,{name}\n"
            for name in ("red", "blue")
            for number in range(6)
        )
    )
    cache = ("--cache", tmp_path / "cache")
    done = featx_command("train", table, "--follow-urls", "-o", tmp_path / "m.featx", *cache)
    assert done.returncode == 0, done.stderr
    done = featx_command("evaluate", tmp_path / "m.featx", table, "--follow-urls", *cache)
    assert "12 images, 0 failed" in done.stdout
    done = featx_command("train", table, "-o", tmp_path / "n.featx", "--cache", tmp_path / "new")
    assert done.returncode == 1
    assert "--follow-urls" in done.stderr
