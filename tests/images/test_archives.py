"""Images in tar and zip archives: the same images, classes and splits as in a folder."""

import io
import json
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import DatasetError, ImageError
from featx.images import archives
from featx.images.archives import expand_braces
from featx.images.dataset import ImageDataset
from featx.images.loader import load_images
from featx.spec import ImagePolicy

SIZES = {"ant": 3, "bee": 4}
TARGETS = [((8, 8), ImagePolicy())]


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()


def contents():
    return {
        f"{name}/{n:03d}.png": picture(100 * code + n)
        for code, (name, count) in enumerate(SIZES.items())
        for n in range(count)
    }


def write_tar(path, files, *, mode=None):
    with tarfile.open(path, mode or "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path, files):
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


DOORS = {
    "folder": write_folder,
    "photos.tar": write_tar,
    "photos.tar.gz": lambda path, files: write_tar(path, files, mode="w:gz"),
    "photos.tgz": lambda path, files: write_tar(path, files, mode="w:gz"),
    "photos.tar.bz2": lambda path, files: write_tar(path, files, mode="w:bz2"),
    "photos.tar.xz": lambda path, files: write_tar(path, files, mode="w:xz"),
    "photos.zip": write_zip,
    "stored.zip": lambda path, files: write_zip(path, files, zipfile.ZIP_STORED),
}


@pytest.fixture
def make(tmp_path):
    return lambda door, files=None: DOORS[door](tmp_path / door, files or contents())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("door", [door for door in DOORS if door != "folder"])
def test_an_archive_has_the_images_and_classes_of_the_folder(make, door):
    folder, packed = ImageDataset.from_any(make("folder")), ImageDataset.from_any(make(door))
    assert packed.paths == folder.paths
    assert packed.y.tolist() == folder.y.tolist()
    assert [packed.read(i) for i in range(7)] == [folder.read(i) for i in range(7)]
    assert packed.name in ("photos", "stored")


@pytest.mark.parametrize("first", ["folder", "photos.tar", "photos.tar.gz", "photos.zip"])
@pytest.mark.parametrize("second", ["folder", "photos.tar", "photos.tar.xz", "stored.zip"])
def test_a_move_from_one_to_another_computes_nothing(make, cache, first, second):
    before = featx.extract(make(first), cache=cache)
    after = featx.extract(make(second), cache=cache, name="moved")
    assert before.report["extracted"] == 7
    assert (after.report["extracted"], after.report["cached"]) == (0, 7)
    assert np.array_equal(before.X, after.X)
    assert before.y.tolist() == after.y.tolist()


def test_a_folder_around_all_others_is_passed_over(tmp_path):
    files = {f"data/photos/{name}": data for name, data in contents().items()}
    data = ImageDataset.from_any(write_zip(tmp_path / "wrapped.zip", files))
    assert data.classes == ("ant", "bee")
    assert data.paths[0] == "ant/000.png"


def test_splits_and_what_is_left_out(tmp_path):
    files = {f"{s}/{name}": data for name, data in contents().items() for s in ("train", "test")}
    files |= {
        "train/notes.txt": b"x",
        "loose.png": picture(0),
        "__MACOSX/._a.png": b"x",
        ".DS_Store": b"x",
    }
    data = ImageDataset.from_any(write_tar(tmp_path / "split.tar", files))
    assert dict(data.split_names) == {"train": "train", "test": "test"}
    assert data.classes == ("ant", "bee")
    reasons = dict(zip(data.strays, data.stray_reasons, strict=True))
    assert reasons == {
        "train/notes.txt": "no image extension",
        "loose.png": "an image beside the folders of the splits",
    }


@pytest.mark.parametrize("door", ["photos.tar", "photos.tar.gz", "photos.zip"])
def test_members_without_an_extension_are_tried_by_content(make, door):
    files = contents() | {"ant/IMG_1": picture(50), "ant/notes": b"text", "bee/b.txt": picture(51)}
    data = ImageDataset.from_any(make(door, files))
    assert data.paths.count("ant/IMG_1") == 1
    assert len(data) == 8
    assert "1 file without a known extension" in " ".join(data.notes)
    assert dict(zip(data.strays, data.stray_reasons, strict=True)) == {
        "ant/notes": "no image extension",
        "bee/b.txt": "no image extension",
    }


def test_a_name_of_a_split_can_be_stated(tmp_path):
    files = {f"{s}/{name}": data for name, data in contents().items() for s in ("train", "pilot")}
    path = write_zip(tmp_path / "a.zip", files)
    with pytest.raises(DatasetError, match="'pilot' .* --splits pilot=test"):
        ImageDataset.from_any(path)
    data = ImageDataset.from_any(path, splits={"pilot": "test"})
    assert sorted(data.splits) == ["test"] * 7 + ["train"] * 7


def test_an_empty_class_is_told(tmp_path):
    path = write_tar(tmp_path / "a.tar", contents())
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("wasp")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    assert ImageDataset.from_any(path).empty_classes == ("wasp",)


# WebDataset


def sample(n, label, ending="cls"):
    data = str(label) if ending == "cls" else json.dumps({"label": label, "caption": "x"})
    return {f"{n:06d}.png": picture(n), f"{n:06d}.{ending}": data.encode()}


def write_shards(folder, names, label=lambda n: n % 2, ending="cls"):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        files = {}
        for n in range(3 * number, 3 * number + 3):
            files |= sample(n, label(n), ending)
        write_tar(folder / name, files)
    return folder


@pytest.mark.parametrize("form", ["{000..002}.tar", "*.tar", "list", ""])
def test_shards_are_one_dataset(tmp_path, form):
    folder = write_shards(tmp_path / "shards", ["000.tar", "001.tar", "002.tar"])
    given = sorted(folder.iterdir()) if form == "list" else folder / form
    data = ImageDataset.from_any(given)
    assert len(data) == 9
    assert data.classes == ("0", "1")
    assert data.y.tolist() == [str(n % 2) for n in range(9)]
    assert not data.strays
    assert data.name == "shards"


def test_labels_in_json_and_classes_in_the_order_of_numbers(tmp_path):
    folder = write_shards(tmp_path / "s", ["0.tar"], lambda n: f"kind {n}", "json")
    assert ImageDataset.from_any(folder / "0.tar").classes == ("kind 0", "kind 1", "kind 2")
    folder = write_shards(tmp_path / "t", [f"{n}.tar" for n in range(4)], lambda n: n)
    assert ImageDataset.from_any(folder / "{0..3}.tar").classes == tuple(map(str, range(12)))


def test_several_labels_of_an_image(tmp_path):
    folder = write_shards(tmp_path / "s", ["0.tar"], lambda n: ["a", "b"][: n + 1], "json")
    assert ImageDataset.from_any(folder / "0.tar").y.tolist() == ["a", "a|b", "a|b"]


def test_shards_named_as_splits(tmp_path):
    folder = write_shards(tmp_path / "s", ["train-000.tar", "train-001.tar", "val-000.tar"])
    data = ImageDataset.from_any(sorted(folder.iterdir()))
    assert data.splits == ("train",) * 6 + ("val",) * 3
    assert dict(data.split_names) == {"train-*.tar": "train", "val-*.tar": "val"}


def test_equal_names_in_two_shards_are_two_images(tmp_path, cache):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", {"a/x.png": picture(number), "b/y.png": picture(9)})
    data = ImageDataset.from_any(tmp_path / "{0..1}.tar")
    assert data.paths == ("0.tar/a/x.png", "1.tar/a/x.png", "0.tar/b/y.png", "1.tar/b/y.png")
    assert data.y.tolist() == ["a", "a", "b", "b"]
    assert data.read(0) == picture(0)
    assert data.read(1) == picture(1)
    feats = featx.extract(tmp_path / "{0..1}.tar", cache=cache)
    assert feats.report["duplicates"] == 1


def test_braces():
    assert expand_braces("a/{8..11}.tar") == [f"a/{n}.tar" for n in range(8, 12)]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(DatasetError, match="too many files"):
        expand_braces("{0..99999999}.tar")


def test_a_missing_shard_is_named(tmp_path):
    folder = write_shards(tmp_path / "s", ["000.tar", "001.tar"])
    with pytest.raises(DatasetError, match=r"no such archive: .*002\.tar"):
        ImageDataset.from_any(folder / "{000..002}.tar")
    with pytest.raises(DatasetError, match="no such archive"):
        ImageDataset.from_any(tmp_path / "none.tar")


# Later runs


def test_an_unchanged_archive_is_not_read_again(make, cache, monkeypatch):
    path = make("photos.tar")
    os.utime(path, ns=(0, 0))
    real = archives.ArchiveImages.read
    featx.extract(path, cache=cache)
    past = path.with_name("old.tar")
    path.rename(past)
    past.rename(path)
    # Its change time is of now, and cannot be told from a later change: it settles with time.
    monkeypatch.setattr("featx.files.identity._SETTLED_NS", -(1 << 60))
    featx.extract(path, cache=cache)

    def forbidden(self, index, **options):
        raise AssertionError("an image was read")

    monkeypatch.setattr(archives.ArchiveImages, "read", forbidden)
    assert featx.extract(path, cache=cache).report["cached"] == 7
    monkeypatch.setattr(archives.ArchiveImages, "read", real)
    write_tar(path, {**contents(), "bee/new.png": picture(77)})
    again = featx.extract(path, cache=cache)
    assert (again.report["extracted"], again.report["cached"]) == (1, 7)


def test_another_tap_of_a_named_dataset_is_read_from_the_archive(make, cache):
    path = make("photos.zip")
    featx.extract(path, cache=cache)
    feats = featx.extract("photos", taps="max", cache=cache)
    assert feats.report["extracted"] == 7
    write_zip(path, dict(list(contents().items())[1:]))
    feats = featx.extract("photos", taps="gem", cache=cache)
    assert feats.failed == [("ant/000.png", "not in the archive any more")]
    path.unlink()
    with pytest.raises(DatasetError, match="no such archive"):
        featx.extract("photos", taps="avg+max", cache=cache)


def test_an_archive_that_goes_away_fails_its_rows(make, cache):
    path = make("photos.tar")
    data = ImageDataset.from_any(path)
    path.unlink()
    with pytest.raises(DatasetError, match=r"none of the 7 images .* no such archive: photos\.tar"):
        featx.extract(data, cache=cache)


@pytest.mark.parametrize("door", ["photos.tar", "photos.zip"])
def test_an_archive_that_changes_under_a_run_gives_no_wrong_image(make, door):
    data = ImageDataset.from_any(make(door))
    make(door, {name: picture(500 + n) for n, name in enumerate(contents())})
    with pytest.raises(ImageError, match=f"{door} has changed since it was listed"):
        data.read(0)


def test_systems_without_positions_of_their_own_read_too(make, monkeypatch):
    monkeypatch.delattr(os, "pread", raising=False)
    data = ImageDataset.from_any(make("photos.tar"))
    assert [data.read(i) for i in (6, 0, 3)] == [list(contents().values())[i] for i in (6, 0, 3)]


@pytest.mark.parametrize("door", ["photos.tar", "photos.tar.gz", "photos.zip"])
@pytest.mark.parametrize("isolate", [False, True])
def test_threads_and_processes_give_the_pixels_of_the_files(make, door, isolate):
    files = {f"{n:04d}.png": picture(n) for n in range(60)} | {"0030.png": b"\x89PNG\r\n\x1a\n"}
    folder, packed = make("folder", files), make(door, files)
    loads = [
        list(load_images(ImageDataset.from_any(data), range(60), TARGETS, isolate=isolate))
        for data in (folder, packed)
    ]
    for plain, loaded in zip(*loads, strict=True):
        assert (plain.index, plain.key, plain.status, plain.reason) == (
            loaded.index,
            loaded.key,
            loaded.status,
            loaded.reason,
        )
        assert np.array_equal(plain.pixels, loaded.pixels)


def test_order_does_not_matter_to_a_compressed_tar(make, monkeypatch):
    monkeypatch.setattr(archives, "_MOST_PASSED", 2)
    files = {f"{n:04d}.png": picture(n) for n in range(20)}
    data = ImageDataset.from_any(make("photos.tar.gz", files))
    order = np.random.default_rng(0).permutation(20)
    assert [data.read(int(i)) for i in order] == [picture(int(i)) for i in order]


def test_images_of_archives_pickle(make):
    for door in ("photos.tar", "photos.tar.gz", "photos.zip"):
        data = ImageDataset.from_any(make(door))
        first = data.read(0)
        assert pickle.loads(pickle.dumps(data)).read(0) == first


# What is damaged or hostile


def add(path, name, kind, linkname=""):
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, linkname
        tar.addfile(info)


def test_paths_that_lead_out_links_and_devices_are_left_out(tmp_path):
    files = contents() | {"../out.png": picture(1), "/etc/abs.png": picture(2)}
    path = write_tar(tmp_path / "a.tar", files)
    add(path, "ant/link.png", tarfile.SYMTYPE, "000.png")
    add(path, "ant/device.png", tarfile.CHRTYPE)
    add(path, "ant/lost.png", tarfile.LNKTYPE, "nowhere.png")
    add(path, "ant/again.png", tarfile.LNKTYPE, "ant/000.png")
    data = ImageDataset.from_any(path)
    assert len(data) == 8
    assert data.read(data.paths.index("ant/again.png")) == contents()["ant/000.png"]
    reasons = dict(zip(data.strays, data.stray_reasons, strict=True))
    assert reasons == {
        "../out.png": "a path that leads out of the archive",
        "/etc/abs.png": "a path that leads out of the archive",
        "ant/link.png": "a link",
        "ant/lost.png": "a link",
        "ant/device.png": "neither a file nor a folder",
    }


def test_the_last_of_several_entries_of_one_name_counts(tmp_path):
    path = write_tar(tmp_path / "a.tar", contents())
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("ant/000.png")
        info.size = len(picture(5))
        tar.addfile(info, io.BytesIO(picture(5)))
    data = ImageDataset.from_any(path)
    assert data.read(0) == picture(5)
    assert data.strays == ("ant/000.png",)


@pytest.mark.parametrize("door", [door for door in DOORS if door != "folder"])
def test_an_archive_that_is_cut_is_one_error(make, door):
    path = make(door)
    whole = path.read_bytes()
    members = 512 if door == "photos.tar" else 1
    for share in (0.0, 0.1, 0.3):  # a tar ends with many zeros
        path.write_bytes(whole[: int(share * len(whole)) // members * members])
        with pytest.raises(DatasetError) as caught:
            ImageDataset.from_any(path)
        assert path.name in str(caught.value)


def test_garbage_inside_a_tar_is_not_taken_for_its_end(make):
    path = make("photos.tar")
    data = bytearray(path.read_bytes())
    second = 512 + -(-len(contents()["ant/000.png"]) // 512) * 512
    data[second : second + 512] = b"x" * 512
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="ends in the middle, after 1 entries"):
        ImageDataset.from_any(path)


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tar.gz"])
def test_what_is_no_archive_is_one_error(tmp_path, name):
    path = tmp_path / name
    for data in (b"", b"hello", os.urandom(4096)):
        path.write_bytes(data)
        with pytest.raises(DatasetError, match=name):
            ImageDataset.from_any(path)


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_an_archive_without_images_is_one_error(tmp_path, name):
    files = {"a/readme.txt": b"x"}
    path = (write_tar if name == "a.tar" else write_zip)(tmp_path / name, files)
    with pytest.raises(DatasetError, match="no image in 'a.*1 files"):
        ImageDataset.from_any(path)


def test_a_member_that_unpacks_to_too_much_fails_alone(make, cache, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 20)
    bomb = b"\x89PNG\r\n\x1a\n" + bytes(4 << 20)
    data = ImageDataset.from_any(make("photos.zip", contents() | {"bee/zz.png": bomb}))
    assert data.arrays.read(7, most_bytes=8 << 20) == bomb
    with pytest.raises(ImageError, match="too large"):
        data.arrays.read(7, most_bytes=1 << 20)


def test_bombs_of_tar_are_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr("featx.files.claims._HARMLESS_BYTES", 1 << 20)
    path = write_tar(tmp_path / "a.tar.gz", {"a/0.png": bytes(64 << 20)}, mode="w:gz")
    with pytest.raises(DatasetError, match="claims to unpack to more than"):
        ImageDataset.from_any(path)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a/0.png")
        info.pax_headers = {"comment": "x" * (20 << 20)}
        tar.addfile(info, io.BytesIO())
    with pytest.raises(DatasetError, match="a header of 2"):
        ImageDataset.from_any(tmp_path / "b.tar.gz")


def test_a_changed_byte_in_a_zip_fails_one_row(make, cache):
    path = make("stored.zip")
    data = bytearray(path.read_bytes())
    at = data.index(contents()["bee/000.png"])
    data[at + 100] ^= 1
    path.write_bytes(data)
    feats = featx.extract(path, cache=cache)
    reason = "damaged: its checksum in the archive does not match"
    assert feats.failed == [("bee/000.png", reason)]


def test_an_encrypted_member_fails_alone(make):
    path = make("stored.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    images = ImageDataset.from_any(path)
    with pytest.raises(ImageError, match="encrypted"):
        images.read(0)
    assert images.read(1) == contents()["ant/001.png"]


def test_an_unknown_compression_fails_alone(make):
    path = make("stored.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 10 : at + 12] = b"\xff\xff"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="compressed by method 65535"):
        ImageDataset.from_any(path).read(0)


@pytest.mark.parametrize("door", ["photos.tar", "photos.zip"])
def test_too_many_entries_are_one_error(make, door, monkeypatch):
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 6)
    with pytest.raises(DatasetError, match=r"more than 6|7 entries"):
        ImageDataset.from_any(make(door))


@pytest.mark.parametrize("door", ["photos.tar", "photos.tar.gz", "stored.zip"])
def test_memory_does_not_grow_with_the_archive(make, door):
    noise = np.random.default_rng(0)
    files = {f"{n:03d}.png": noise.bytes(1 << 20) for n in range(24)}
    path = make(door, files)
    del files
    tracemalloc.start()
    data = ImageDataset.from_any(path)
    for i in range(24):
        assert len(data.read(i)) == 1 << 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_label_that_cannot_be_read_is_one_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": picture(0), "0.cls": b"\xff\xfe"})
    with pytest.raises(DatasetError, match=r"cannot read the label 'a\.tar/0\.cls'"):
        ImageDataset.from_any(path)


def test_a_zip_of_windows_has_folders(tmp_path):
    files = {name.replace("/", "\\"): data for name, data in contents().items()}
    path = write_zip(tmp_path / "w.zip", files)
    # Python writes the separator of the system: put back what Windows wrote.
    data = path.read_bytes()
    for name in contents():
        data = data.replace(name.encode(), name.replace("/", "\\").encode())
    path.write_bytes(data)
    assert ImageDataset.from_any(path).classes == ("ant", "bee")


def test_predict_reads_archives_among_files(make, tmp_path, cache):
    path, folder = make("photos.tar"), make("folder")
    result = featx.train(featx.extract(folder, cache=cache), head="nearest-mean")
    names = [str(folder / "ant/000.png"), str(path), str(folder / "bee/000.png")]
    rows = list(featx.predict(result.model, names))
    assert [row.path for row in rows[:2]] == [names[0], f"{path}/ant/000.png"]
    assert len(rows) == 9
    assert {row.status for row in rows} == {"ok"}
    pattern = list(featx.predict(result.model, str(tmp_path / "*.tar")))
    assert [row.top for row in pattern] == [row.top for row in rows[1:8]]


def test_an_address_names_the_archive(make):
    data = ImageDataset.from_any(make("photos.tar"))
    assert data.address(0) == str(Path(data.root, "ant/000.png"))
    with pytest.raises(DatasetError, match="in an archive"):
        data.file(0)
