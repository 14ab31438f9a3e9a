from __future__ import annotations

import pickle

import numpy as np
import pytest

from featx.exceptions import DatasetError, ImageError, StoreError
from featx.files.stores import Store
from featx.images import remote
from featx.images.dataset import ImageDataset
from featx.images.decode import Target
from featx.images.loader import load_images
from featx.spec import ImagePolicy

pytest.importorskip("obstore")
from object_server import BUCKET, serving


@pytest.fixture
def server():
    with serving(page=5) as server:
        yield server


def same(first, second):
    """Whether two datasets have the same images, labels and splits."""
    assert first.paths == second.paths
    assert first.classes == second.classes
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.splits == second.splits
    assert [first.read(i) for i in range(len(first))] == [
        second.read(i) for i in range(len(second))
    ]


@pytest.mark.parametrize("address", ["s3://bucket/my photos", "s3://bucket/my photos/"])
def test_a_bucket_is_read_as_the_folder_is(server, photos, address):
    (photos / "notes.txt").write_text("x")
    (photos / ".hidden.jpg").write_bytes(b"x")
    server.put_folder(photos, "my photos/")
    server.put("my photos/empty/", b"")
    server.put("my photostat/other.jpg", b"x")
    (photos / "empty").mkdir()
    data, folder = ImageDataset.from_any(address), ImageDataset.from_folder(photos)
    same(data, folder)
    assert (data.name, data.root) == ("my photos", "s3://bucket/my photos")
    assert (data.strays, data.empty_classes) == (folder.strays, folder.empty_classes)
    assert data.address(0) == f"s3://bucket/my photos/{data.paths[0]}"
    same(pickle.loads(pickle.dumps(data)).subset([3, 1]), folder.subset([3, 1]))


def test_splits_of_a_bucket_are_those_of_the_folder(server, photos):
    for split in ("pilot", "train"):
        server.put_folder(photos, f"{split}/")
    data = ImageDataset.from_any("s3://bucket", splits={"pilot": "test"})
    assert (data.name, data.splits.count("test"), data.classes) == ("bucket", 12, ("blue", "red"))


def test_an_empty_listing_and_a_closed_bucket_are_told_apart(server):
    server.put("photos/readme.txt", b"x")
    with pytest.raises(DatasetError, match=r"no image in 's3://bucket/photos': 1 files"):
        ImageDataset.from_any("s3://bucket/photos")
    server.misbehave = lambda method, name: 403
    with pytest.raises(StoreError, match="cannot list s3://bucket/photos: access denied"):
        ImageDataset.from_any("s3://bucket/photos")


def test_what_cannot_be_listed_is_an_error_that_says_what_can(server):
    with pytest.raises(DatasetError, match="a web server lists no folders"):
        ImageDataset.from_any("https://ann:secret@host/photos/?sig=secret")
    with pytest.raises(DatasetError, match="copy this file to a disk first"):
        ImageDataset.from_any("s3://bucket/photos.npz")


def test_an_object_that_is_too_large_fails_unread(server, photos, monkeypatch):
    server.put_folder(photos)
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 100)
    data = ImageDataset.from_any("s3://bucket")
    with pytest.raises(ImageError, match="too large"):
        data.read(0)
    assert server.count("GET") == 0


def test_a_store_that_does_not_answer_holds_nobody_up(server, photos, monkeypatch):
    monkeypatch.setattr("featx.files.stores._PATIENCE_S", 60.0)
    server.put_folder(photos)
    data = ImageDataset.from_any("s3://bucket")
    answered = data.paths[:4]
    server.misbehave = lambda method, name: None if name in answered else "stall"
    loading = load_images(data, range(12), [Target((32, 32), ImagePolicy())], workers=2)
    assert next(loading).status == "decoded"
    loading.close()
    assert server.waiting


def web(server, name):
    return f"{server.url}/{BUCKET}/{name}"


def test_one_image_behind_an_address_is_data(server, photos):
    server.put("a b.jpg", (photos / "red/0.jpg").read_bytes())
    for address in ("s3://bucket/a b.jpg", web(server, "a%20b.jpg?sig=secret")):
        data = ImageDataset.from_any(address)
        assert data.read(0) == (photos / "red/0.jpg").read_bytes()
        assert (data.name, len(data), "secret" in data.paths[0]) == ("a b", 1, False)


def test_a_table_behind_an_address_names_images_beside_it(server, photos):
    server.put_folder(photos, "in/photos/")
    server.put("in/table.csv", b"path,label\nphotos/red/0.jpg,r\nphotos/blue/1.jpg,b\n../x.jpg,b\n")
    for address in ("s3://bucket/in/table.csv", web(server, "in/table.csv?sig=secret")):
        data = ImageDataset.from_any(address)
        assert (data.name, data.classes) == ("table", ("b", "r"))
        assert "secret" not in str(data.root)
        assert data.read(0) == (photos / "red/0.jpg").read_bytes()
        assert data.read(1) == (photos / "blue/1.jpg").read_bytes()
        with pytest.raises(ImageError):
            data.read(2)


def test_a_table_may_start_from_a_bucket(server, photos, tmp_path):
    server.put_folder(photos, "in/")
    (tmp_path / "t.csv").write_text("path\nred/0.jpg\n")
    data = ImageDataset.from_any(tmp_path / "t.csv", root="s3://bucket/in")
    assert data.read(0) == (photos / "red/0.jpg").read_bytes()


def test_addresses_in_a_table_are_read_only_where_that_is_asked_for(server, photos, tmp_path):
    server.put("1.jpg", (photos / "red/0.jpg").read_bytes())
    (tmp_path / "t.csv").write_text(
        f"path,label\n{web(server, '1.jpg?sig=secret')},r\nphotos/red/1.jpg,r\n"
        "s3://bucket/1.jpg,b\n"
    )
    data = ImageDataset.from_any(tmp_path / "t.csv")
    assert data.read(1) == (photos / "red/1.jpg").read_bytes()
    for row in (0, 2):
        with pytest.raises(ImageError, match=r"--follow-urls \(follow_urls=True\)"):
            data.read(row)
    assert (data.arrays.stamps()[:, 0] >= 0).tolist() == [False, True, False]
    assert server.requests == []
    data = ImageDataset.from_any(tmp_path / "t.csv", follow_urls=True)
    assert data.read(0) == data.read(2) == (photos / "red/0.jpg").read_bytes()
    assert (data.arrays.stamps()[:, :2] > 0).all()
    assert "secret" not in repr(data.paths) + repr(data)


def test_a_list_is_followed_as_a_table_is(server, photos):
    server.put("1.jpg", (photos / "red/0.jpg").read_bytes())
    paths = ["s3://bucket/1.jpg", str(photos / "red/1.jpg")]
    with pytest.raises(ImageError, match="follow_urls"):
        ImageDataset.from_any(paths).read(0)
    data = ImageDataset.from_any(paths, follow_urls=True)
    assert data.read(0) == (photos / "red/0.jpg").read_bytes()
    assert data.read(1) == (photos / "red/1.jpg").read_bytes()


def test_addresses_that_differ_in_their_query_stay_two(server, tmp_path):
    (tmp_path / "t.csv").write_text("path,label\nhttp://h/i?id=1,a\nhttp://h/i?id=2,b\n")
    first, second = ImageDataset.from_any(tmp_path / "t.csv").paths
    assert first.startswith("http://h/i#")
    assert first != second
    (tmp_path / "t.csv").write_text(
        "path,label\nhttp://h/i?key=secret,a\nhttp://h/i?key=secret,b\n"
    )
    with pytest.raises(DatasetError, match="has two labels") as error:
        ImageDataset.from_any(tmp_path / "t.csv")
    assert "secret" not in str(error.value)


def test_what_no_store_says_of_an_image_is_read_again(server, photos, monkeypatch):
    server.put("1.jpg", b"x")
    monkeypatch.setattr(Store, "entry", lambda *_: None)
    data = ImageDataset.from_any(["s3://bucket/1.jpg"], follow_urls=True)
    assert data.arrays.stamps().tolist() == [[-1] * 5]
