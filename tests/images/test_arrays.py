"""Images in memory, in .npz and in HDF5 files of anybody's making."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def test_arrays():
    data = ImageDataset.from_arrays(IMAGES, [3, 1, 3, 1, 20], name="five")
    assert data.paths == tuple(f"array:{i:06d}" for i in range(5))
    assert data.classes == ("1", "3", "20")
    assert data.root is None
    part = data.subset([4, 2]).subset([1])
    assert part.paths == ("array:000002",)
    assert np.array_equal(part.image(0), IMAGES[2])
    with pytest.raises(DatasetError, match="are arrays, not files"):
        data.file(0)
    with pytest.raises(DatasetError, match="are arrays, not files"):
        data.read(0)
    assert len(ImageDataset.from_arrays(IMAGES[..., 0] / 255.0)) == 5
    mixed = ImageDataset.from_arrays([IMAGES[0], IMAGES[0, :3, :3, 0]])
    assert mixed.image(1).shape == (3, 3)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (IMAGES.astype(int), r"received int64; convert 0 to 255 with \.astype\('uint8'\)"),
        (IMAGES.astype(np.float32), r"lie in \[0, 1\], received 0 to 255 .*perhaps 255"),
        (IMAGES[0, :, :, 0], r"received \(6, 7\): give one image as array\[None\]"),
        (IMAGES.transpose(0, 3, 1, 2), r"channels come last here, use \.transpose\(0, 2, 3, 1\)"),
        (IMAGES[:0], r"no images: received an array of shape \(0, 6, 7, 3\)"),
        ([], "received an empty list"),
        ([IMAGES[0], IMAGES], r"received \(5, 6, 7, 3\) at 1"),
        (np.array([["a"]], dtype=object), "received object"),
    ],
)
def test_wrong_arrays(images, reason):
    with pytest.raises(DatasetError, match=reason):
        ImageDataset.from_arrays(images)


@pytest.mark.parametrize("names", [("x", "y"), ("X", "labels"), ("images", "label"), ("x", None)])
def test_npz(tmp_path, names):
    stored = {names[0]: IMAGES}
    if names[1]:
        stored[names[1]] = np.array(["b", "a", "b", "a", "a"])
    np.savez_compressed(tmp_path / "photos.npz", **stored)
    data = ImageDataset.from_npz(tmp_path / "photos.npz")
    assert data.name == "photos"
    assert np.array_equal(data.image(3), IMAGES[3])
    assert data.classes == (("a", "b") if names[1] else None)


@pytest.mark.parametrize("form", ["{1}_{0}", "{0}_{1}"])
def test_npz_with_splits(tmp_path, form):
    stored = {}
    for split, rows in (("train", slice(0, 3)), ("val", slice(3, 4)), ("test", slice(4, 5))):
        stored[form.format(split, "x")] = IMAGES[rows]
        if split != "test":
            stored[form.format(split, "y")] = np.arange(5)[rows, None]
    np.savez(tmp_path / "m.npz", **stored)
    data = ImageDataset.from_npz(tmp_path / "m.npz")
    assert data.labels.tolist() == [0, 1, 2, 3, -1]
    assert set(zip(data.splits, data.y, strict=True)) == {
        *(("train", "0"), ("train", "1"), ("train", "2"), ("val", "3"), ("test", ""))
    }
    for i in range(5):
        assert np.array_equal(data.image(i), IMAGES[i])
        assert data.image(i).flags.writeable


def test_wrong_npz(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, foo=IMAGES)
    with pytest.raises(DatasetError, match=r"expected images under the name x.*found: foo"):
        ImageDataset.from_npz(file)
    np.savez(file, x=IMAGES, y=np.array([{}] * 5, dtype=object))
    with pytest.raises(DatasetError, match=r"holds Python objects, which need pickle: refused"):
        ImageDataset.from_npz(file)
    np.savez(file, x_train=IMAGES, y_train=[1, 2])
    with pytest.raises(DatasetError, match="5 images in 'x_train', 2 labels in 'y_train'"):
        ImageDataset.from_npz(file)
    np.savez(file, x=IMAGES, y=[1, 2])
    with pytest.raises(DatasetError, match="expected 5 labels, one for each input, received 2"):
        ImageDataset.from_npz(file)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"cannot read .* as \.npz"):
        ImageDataset.from_npz(file)
    file.write_bytes(pickle.dumps([1]))
    with pytest.raises(DatasetError, match=r"cannot read .* without pickle"):
        ImageDataset.from_npz(file)
    np.save(tmp_path / "b.npy", IMAGES)
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(DatasetError, match=r"expected a \.npz archive, received one array"):
        ImageDataset.from_npz(tmp_path / "b.npz")
    with pytest.raises(DatasetError, match=r"no such file: .*aa\.npz.*did you mean"):
        ImageDataset.from_npz(tmp_path / "aa.npz")


def test_hdf5_is_read_row_by_row(tmp_path):
    file = tmp_path / "set.h5"
    with h5py.File(file, "w") as out:
        out.create_dataset("images", data=IMAGES, chunks=(1, 6, 7, 3), compression="gzip")
        out["labels"] = [b"u", b"v", b"u", b"v", b"v"]
        out.create_dataset("deep/er", data=IMAGES[..., 0])
    data = ImageDataset.from_any(file)
    assert (data.name, data.classes, len(data)) == ("set", ("u", "v"), 5)
    with ThreadPoolExecutor(4) as pool:
        for i, image in enumerate(pool.map(data.image, range(5))):
            assert np.array_equal(image, IMAGES[i])
    assert np.array_equal(data.subset([3]).image(0), IMAGES[3])
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again.image(1), IMAGES[1])
    deep = ImageDataset.from_hdf5(file, images="deep/er", labels="labels")
    assert deep.image(0).shape == (6, 7)
    for reader in (data, again, deep):
        reader.arrays.close()
    with h5py.File(file, "a") as out:
        out["images"][0] = 9
    assert (data.image(0) == 9).all()


def test_hdf5_with_one_image_set_of_another_name(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as out:
        out["scans"] = IMAGES
        out["ages"] = np.arange(5)
    assert len(ImageDataset.from_hdf5(tmp_path / "a.h5")) == 5
    with h5py.File(tmp_path / "a.h5", "a") as out:
        out["masks"] = IMAGES
    with pytest.raises(DatasetError, match=r"found: ages, masks, scans; name the data set"):
        ImageDataset.from_hdf5(tmp_path / "a.h5")
    assert len(ImageDataset.from_hdf5(tmp_path / "a.h5", images="masks")) == 5


def test_wrong_hdf5(tmp_path):
    file = tmp_path / "a.h5"
    file.write_bytes(b"not hdf5")
    with pytest.raises(DatasetError, match=r"cannot read .* as HDF5"):
        ImageDataset.from_hdf5(file)
    with h5py.File(file, "w") as out:
        out.create_dataset("huge", (1 << 40, 20_000, 20_000), "u1", chunks=(1, 100, 100))
        out.create_dataset("wide", (4, 8_000, 8_000, 3), "f8", chunks=(4, 8_000, 2_000, 3))
        out["x"] = IMAGES
        out["y"] = [1, 2]
        out.create_group("group")
    for name, reason in (
        ("huge", "too large: images of 20000x20000 pixels"),
        ("wide", "has chunks of 1,536,000,000 bytes"),
        ("group", "is a group: expected an array"),
        ("nothing", r"'nothing' is missing, found: group, huge, wide, x, y"),
        ("x", r"expected 5 labels in 'y' .*received shape \(2,\)"),
        ("y", r"received int64"),
    ):
        with pytest.raises(DatasetError, match=reason):
            ImageDataset.from_hdf5(file, images=name)
    with pytest.raises(DatasetError, match=r"no such file: .*b\.h5"):
        ImageDataset.from_hdf5(tmp_path / "b.h5")
