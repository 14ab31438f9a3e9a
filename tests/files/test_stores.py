from __future__ import annotations

import sys
from pathlib import Path

import pytest

from featx.exceptions import MissingExtraError, StoreError
from featx.files.stores import Entry, Store, as_address, shown

pytest.importorskip("obstore")
from object_server import MISDEEDS, SECRET_KEY, serving


@pytest.fixture
def server():
    with serving(page=3) as server:
        yield server


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("s3://bucket/a b", "s3://bucket/a b"),
        (Path("gs://bucket/x"), "gs://bucket/x"),
        ("HTTPS://host/x", "https://host/x"),
        ("photos/s3", None),
        ("file:///x", None),
        ("C:/photos", None),
        (b"s3://bucket", None),
        (7, None),
    ],
)
def test_addresses_are_told_from_paths(value, address):
    assert as_address(value) == address


def test_no_address_is_shown_with_a_secret():
    assert shown("s3://KEY:secret@bucket/a?b") == "s3://bucket/a?b"
    assert shown("https://ann:pw@host:8/a%20b.jpg?sig=x#y") == "https://host:8/a%20b.jpg"
    with pytest.raises(StoreError, match="environment") as error:
        Store.below("s3://KEY:secret@bucket/a")
    assert "secret" not in str(error.value)


def test_a_listing_has_all_pages_below_the_prefix(server):
    names = [f"photos/{number} ä#?%20.jpg" for number in range(8)]
    for name in [*names, "photoshop/x.jpg", "other.jpg"]:
        server.put(name, name.encode())
    store = Store.below("s3://bucket/photos/")
    entries = list(store.entries())
    assert sorted(f"photos/{entry.name}" for entry in entries) == names
    for entry in entries:
        content = store.read(entry.name)
        assert content == f"photos/{entry.name}".encode()
        assert entry == store.entry(entry.name)
        assert (entry.size, min(entry.stamp()[:3]) > 0) == (len(content), True)


def test_a_change_of_content_changes_the_stamp(server):
    server.put("a.jpg", b"1234")
    (before,) = Store.below("s3://bucket").entries()
    changed = server.changed["a.jpg"]
    server.put("a.jpg", b"5678")
    server.changed["a.jpg"] = changed
    (after,) = Store.below("s3://bucket").entries()
    assert before[:3] == after[:3]
    assert before.stamp() != after.stamp()


def test_what_says_neither_time_nor_etag_has_no_stamp():
    assert Entry("a", 5, -1, "").stamp() == (-1, -1, -1, -1, -1)
    assert Entry("a", 5, 7, "").stamp() == (5, 7, -1, -1, -1)
    assert Entry("a", 5, -1, "x").stamp()[:2] == (5, 0)


@pytest.mark.parametrize("way", MISDEEDS)
def test_what_fails_for_a_moment_is_tried_again(server, way):
    server.put("a.bin", b"x" * 100_000)
    store, name = Store.of_object("s3://bucket/a.bin")
    server.take_turns(2, [way])
    assert [store.read(name) for _ in range(3)] == [b"x" * 100_000] * 3


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("drop", "the connection failed"),
        ("stall", "the server did not answer in time"),
        (429, "the server answered 429"),
        (500, "the server answered 500 Internal Server Error"),
        (403, "access denied"),
        (404, "no such object"),
    ],
)
def test_what_keeps_failing_is_told_in_a_few_words(server, monkeypatch, way, why):
    monkeypatch.setattr("featx.files.stores._RETRIES", 1)
    server.put("a.bin", b"x")
    server.dead("a.bin", way)
    store, name = Store.of_object("s3://bucket/a.bin")
    with pytest.raises(StoreError, match=r"cannot read s3://bucket/a.bin: ") as error:
        store.read(name)
    assert error.value.reason.startswith(why)
    assert SECRET_KEY not in str(error.value)


def test_what_is_too_large_is_not_read(server):
    server.put("a.bin", b"x" * 1000)
    store, name = Store.of_object("s3://bucket/a.bin")
    with pytest.raises(StoreError, match="too large: 1,000 bytes, the limit is 999"):
        store.read(name, most_bytes=999)


def test_files_are_written_whole_whatever_their_size(server, tmp_path):
    store = Store.below("s3://bucket/out")
    for size in (10, 12_000_000):
        file = tmp_path / "file"
        file.write_bytes(b"z" * size)
        store.write("a/b.bin", file)
        assert server.objects["out/a/b.bin"] == b"z" * size
        store.fetch("a/b.bin", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"z" * size


def test_a_web_server_gives_objects_and_no_secret(server, monkeypatch):
    server.put("photos/1 ä.jpg", b"photo")
    host = server.url.removeprefix("http://")
    for address in (
        f"http://{host}/bucket/photos/1%20%C3%A4.jpg",
        f"http://ann:pass@{host}/bucket/photos/1%20%C3%A4.jpg?sig=secret",
    ):
        store, name = Store.of_object(address)
        assert store.read(name) == b"photo"
        server.dead("photos/1 ä.jpg", 403)
        with pytest.raises(StoreError) as error:
            store.read(name)
        assert "secret" not in str(error.value)
        assert "pass" not in str(error.value)
        server.misbehave = lambda method, name: None
    assert server.authorisation == ["", "Basic YW5uOnBhc3M="]


def test_a_folder_is_a_store(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    store = Store.below((tmp_path / "a b").as_uri())
    assert list(store.entries()) == []
    store.write("c/d", tmp_path / "file")
    assert [entry.name for entry in store.entries()] == ["c/d"]
    assert store.read("c/d") == b"x"
    assert store.entry("c/e") is None


def test_without_obstore_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"stores needs obstore.*featx\[remote\]"):
        Store.below("s3://another").read("a")
