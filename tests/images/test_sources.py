"""The same data through every door: paths in any container, pictures and arrays in any form."""

import io
import pickle
import struct
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from featx.exceptions import DatasetError, ImageError
from featx.images.dataset import ImageDataset
from featx.images.decode import decode_rgb
from featx.images.files import image_key
from featx.images.loader import load_images
from featx.images.sources import listed_paths
from featx.spec import ImagePolicy

NAMES = ["a.jpg", "b/ü.jpg"]
BYTES = [name.encode() for name in NAMES]


class Column:
    """As pandas and polars have columns: no sequence, but `to_numpy` and a shape."""

    def __init__(self, values):
        self.values = np.asarray(values, dtype=object)
        self.shape = self.values.shape

    def to_numpy(self):
        return self.values

    def __getitem__(self, rows):
        return Column(self.values[rows])


FORMS = {
    "list": NAMES,
    "tuple": tuple(NAMES),
    "Path": [Path(name) for name in NAMES],
    "bytes": BYTES,
    "mixed": [NAMES[0], Path(NAMES[1])],
    "array of text": np.array(NAMES),
    "array of bytes": np.array(BYTES),
    "objects": np.array(NAMES, dtype=object),
    "objects that are bytes": np.array(BYTES, dtype=object),
    "objects that are paths": np.array([Path(name) for name in NAMES], dtype=object),
    "a column of objects": np.array(NAMES, dtype=object)[:, None],
    "a column of bytes": np.array(BYTES)[:, None],
    "rows of one": [[name] for name in NAMES],
    "Series": Column(NAMES),
    "frame": Column(np.array(NAMES)[:, None]),
}
if hasattr(np.dtypes, "StringDType"):
    FORMS["StringDType"] = np.array(NAMES, dtype=np.dtypes.StringDType())


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_of_paths_is_understood(form):
    assert ImageDataset.from_any(FORMS[form]).paths == tuple(NAMES)


def test_columns_of_pandas_and_polars():
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(NAMES)
    forms = [series, series.astype("string"), series.astype("category"), pandas.Index(NAMES)]
    for form in [*forms, pandas.DataFrame({"path": NAMES})]:
        assert ImageDataset.from_any(form).paths == tuple(NAMES)
    assert listed_paths(pandas.DataFrame(np.eye(3))) is None
    with pytest.raises(DatasetError, match="received 2 columns"):
        listed_paths(pandas.DataFrame({"path": NAMES, "other": NAMES}))
    polars = pytest.importorskip("polars")
    for form in (polars.Series(NAMES), polars.DataFrame({"path": NAMES})):
        assert ImageDataset.from_any(form).paths == tuple(NAMES)


@pytest.mark.parametrize(
    "features",
    [np.eye(3), np.eye(3).tolist(), [[0.5], [1.0]], np.eye(3).astype(object), [], np.zeros((0,))],
)
def test_features_are_no_paths(features):
    assert listed_paths(features) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([NAMES, NAMES]), "expected one column of paths, received 2 columns"),
        (["a.jpg", None], "expected a path, received NoneType"),
        (Column(["a.jpg", float("nan")]), "expected a path, received float"),
        (
            ["a.jpg", b"\x89PNG\r\n\x1a\n\0\0"],
            "received the content of a file: give a list of paths",
        ),
        (["a.jpg", ""], "expected a path"),
    ],
)
def test_what_is_no_path_has_its_message(given, message):
    with pytest.raises(DatasetError, match=message):
        ImageDataset.from_any(given)


RNG = np.random.default_rng(3)
PHOTO = Image.fromarray(RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((52, 36), 2)
DEEP = RNG.integers(0, 65536, (36, 52)).astype(np.uint16)


def turned(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def with_alpha(mode):
    image = PHOTO.convert(mode)
    image.putalpha(Image.fromarray((DEEP >> 8).astype(np.uint8)))
    return image


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "photo.jpg": encode(PHOTO, "JPEG", quality=95),
    "turned.jpg": encode(PHOTO, "JPEG", exif=turned(8)),
    "turned.png": encode(PHOTO, "PNG", exif=turned(5)),
    "turned.webp": encode(PHOTO, "WEBP", exif=turned(3), lossless=True),
    "turned.tiff": encode(PHOTO, "TIFF", exif=turned(6)),
    "cmyk.jpg": encode(PHOTO.convert("CMYK"), "JPEG"),
    "grey.bmp": encode(PHOTO.convert("L"), "BMP"),
    "lines.pbm": encode(PHOTO.convert("1"), "PPM"),
    "lines.png": encode(PHOTO.convert("1"), "PNG"),
    "alpha.png": encode(with_alpha("RGB"), "PNG"),
    "alpha.webp": encode(with_alpha("RGB"), "WEBP", lossless=True),
    "grey-alpha.png": encode(with_alpha("L"), "PNG", exif=turned(7)),
    "clear-colour.png": encode(PHOTO, "PNG", transparency=PHOTO.getpixel((0, 0))),
    "clear-grey.png": encode(
        PHOTO.convert("L"), "PNG", transparency=PHOTO.convert("L").getpixel((5, 5))
    ),
    "palette.png": encode(PHOTO.quantize(8), "PNG", transparency=bytes([0, 90, 200])),
    "palette.gif": encode(PHOTO.quantize(8), "GIF", transparency=2),
    "animation.gif": encode(PHOTO, "GIF", save_all=True, append_images=[ImageOps.mirror(PHOTO)]),
    "pages.tiff": encode(PHOTO, "TIFF", save_all=True, append_images=[ImageOps.mirror(PHOTO)]),
    "deep.png": encode(Image.fromarray(DEEP), "PNG"),
    "deep.tiff": encode(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    "text.ppm": b"P3\n2 1\n255\n10 20 30 40 50 60\n",
}


def read(images, size=(24, 20)):
    """Return the key and the pixels of the only image."""
    data = ImageDataset.from_any(images)
    (loaded,) = load_images(data, range(len(data)), [(size, ImagePolicy())], workers=1)
    assert loaded.status == "decoded", loaded.reason
    return loaded.key, loaded.pixels[0]


def reason(images):
    """Return why the only image cannot be read."""
    data = ImageDataset.from_any(images)
    (row,) = load_images(data, [0], [((8, 8), ImagePolicy())], workers=1)
    assert (row.status, row.key) == ("failed", None)
    return row.reason


def loaded(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


@pytest.mark.parametrize("name", FILES)
def test_a_picture_is_the_same_through_every_door(name, tmp_path):
    content = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    key, pixels = read([path])
    assert key == image_key(content)
    with path.open("rb") as file, Image.open(path) as lazy, tempfile.TemporaryFile() as written:
        written.write(content)
        doors = [
            [content],
            content,
            bytearray(content),
            np.array([content, None], dtype=object)[:1],
            io.BytesIO(content),
            [file],
            written,
            lazy,
            [Image.open(io.BytesIO(content))],
            path,
        ]
        for door in doors:
            same_key, same = read(door)
            assert same_key == key
            assert np.array_equal(same, pixels)
    in_memory = loaded(content)
    before = in_memory.tobytes()
    for image in (in_memory, in_memory.copy(), ImageOps.exif_transpose(in_memory)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(read([image])[1], pixels)
    assert in_memory.tobytes() == before
    assert np.array_equal(read(decode_rgb(content))[1], pixels)


def test_an_open_file_stays_where_it_stands_and_can_be_read_again():
    file = io.BytesIO(FILES["photo.jpg"])
    file.seek(7)
    assert np.array_equal(read(file)[1], read([file])[1])
    assert file.tell() == 7
    image = Image.open(file)
    read(image)
    image.load()
    assert image.convert("RGB").size == PHOTO.size


def test_a_pil_image_is_what_it_shows_and_not_what_its_file_has(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(FILES["animation.gif"])
    with Image.open(path) as image:
        image.seek(1)
        second = read(image)[1]
        assert not np.array_equal(second, read(path)[1])
        assert np.array_equal(second, read(np.asarray(image.convert("RGB")))[1])
    drawn = loaded(FILES["photo.jpg"])
    ImageDraw.Draw(drawn).rectangle((0, 0, 30, 30), "red")
    assert np.array_equal(read(drawn)[1], read(np.asarray(drawn))[1])
    small = Image.open(io.BytesIO(encode(PHOTO.resize((400, 300)), "JPEG")))
    small.draft("RGB", (100, 75))
    assert np.array_equal(read(small)[1], read(np.asarray(small))[1])


def test_exif_that_was_set_in_memory_counts_and_xmp_does_not():
    image = PHOTO.copy()
    image.getexif()[0x0112] = 6
    assert np.array_equal(read(image)[1], read(np.asarray(ImageOps.exif_transpose(image)))[1])
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    content = encode(PHOTO, "JPEG", xmp=xmp)
    assert np.array_equal(read(loaded(content))[1], read(content)[1])


# Types of EXIF values: BYTE, ASCII, SHORT, LONG, SBYTE, UNDEFINED, SSHORT, SLONG, IFD.
@pytest.mark.parametrize(
    ("kind", "value"),
    [(1, "B"), (2, "B"), (3, "H"), (4, "I"), (6, "b"), (7, "B"), (8, "h"), (9, "i"), (13, "I")],
)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 9])
def test_an_orientation_of_any_type_is_applied_as_pillow_does(kind, value, order, orientation):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1)
    block = mark + entry + struct.pack(order + value, orientation).ljust(4, b"\0") + bytes(4)
    content = encode(PHOTO, "PNG", exif=b"Exif\0\0" + block)
    expected = np.asarray(ImageOps.exif_transpose(loaded(content)))
    assert np.array_equal(decode_rgb(content), expected)
    image = loaded(content)
    assert np.array_equal(read(image, image.size)[1], read(content, image.size)[1])


def test_a_format_that_featx_does_not_decode_is_refused_before_a_decoder_runs(monkeypatch):
    drawing = io.BytesIO()
    PHOTO.save(drawing, "EPS")
    image = Image.open(drawing)
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript ran")
    )
    assert reason([image]).startswith("a PIL image of format EPS is not loaded yet")
    tga = Image.open(io.BytesIO(encode(PHOTO, "TGA")))
    assert "format TGA is not loaded yet" in reason(tga)
    assert np.array_equal(read(loaded(encode(PHOTO, "TGA")))[1], read(PHOTO)[1])


def test_what_cannot_be_read_has_its_reason(tmp_path, monkeypatch):
    text = tmp_path / "a.txt"
    text.write_text("words")
    with text.open(encoding="utf-8") as file:
        assert reason(file) == "the file is open as text: open it with mode 'rb'"
    closed = io.BytesIO(FILES["photo.jpg"])
    closed.close()
    assert reason([closed]).endswith("closed file.): give its content, as bytes")
    with Image.open(io.BytesIO(FILES["photo.jpg"])) as image:
        pass
    assert reason([image]).startswith("a PIL image was closed before it was loaded")
    with pytest.raises(DatasetError, match="for the paths of a table, received list: leave it out"):
        ImageDataset.from_any([FILES["photo.jpg"]], root=tmp_path)
    with pytest.raises(DatasetError, match="content of a file: give a list of paths only"):
        ImageDataset.from_any(["a.jpg", FILES["photo.jpg"]])
    with pytest.raises(DatasetError, match="received str at 1"):
        ImageDataset.from_any([PHOTO, "a.jpg"])
    monkeypatch.setattr("featx.images.sources.MAX_FILE_BYTES", 100)
    assert reason(io.BytesIO(FILES["photo.jpg"])) == "the file is too large: the limit is 100 bytes"


def test_one_bad_picture_fails_alone(monkeypatch):
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    damaged = FILES["photo.jpg"][:-300]
    data = ImageDataset.from_any([PHOTO, floats, damaged, b"no image\0", FILES["text.ppm"]])
    rows = {row.index: row for row in load_images(data, range(5), [((8, 8), ImagePolicy())])}
    assert [rows[i].status for i in range(5)] == [
        "decoded",
        "failed",
        "failed",
        "failed",
        "decoded",
    ]
    assert "mode 'F' (32-bit floating point) have no known range" in rows[1].reason
    assert rows[2].reason.startswith("truncated")
    assert rows[3].reason.startswith("not an image")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="too large: 52x36 pixels, the limit is 1000 pixels"):
        data.image(0)


@pytest.mark.parametrize("shape", [(36, 52, 3), (36, 52, 4), (36, 52, 1)])
def test_an_array_with_channels_is_one_picture(shape):
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    assert len(ImageDataset.from_any(array)) == 1
    assert np.array_equal(read(array)[1], read([array])[1])
    assert len(ImageDataset.from_arrays(array, ["a"] * 36)) == 36


def test_an_array_that_can_be_read_in_two_ways_is_refused():
    array = np.zeros((3, 48, 64), np.uint8)
    both = "3 grey pictures of 48x64 or one channels-first picture"
    with pytest.raises(DatasetError, match=both):
        ImageDataset.from_any(array)
    assert len(ImageDataset.from_any(array[..., None])) == 3
    assert len(ImageDataset.from_any(array.transpose(1, 2, 0))) == 1
    assert len(ImageDataset.from_arrays(array, list("abc"))) == 3
    assert len(ImageDataset.from_any(np.zeros((5, 48, 64), np.uint8))) == 5


# Arrays in memory, in .npz and in HDF5 files of anybody's making.

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


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (IMAGES.astype(int), r"received int64; convert 0 to 255 with \.astype\('uint8'\)"),
        (list(IMAGES.astype(int)), r"received int64; convert .*--window MIN:MAX"),
        (IMAGES.astype(np.float32), r"lie in \[0, 1\], received 0 to 255 .*perhaps 255"),
        (IMAGES / np.where(IMAGES > 200, np.nan, 255), "must be finite, received NaN"),
    ],
)
def test_a_wrong_scale_is_said_once_and_not_of_every_image(images, reason):
    data = ImageDataset.from_arrays(images)
    with pytest.raises(DatasetError, match=reason):
        next(load_images(data, range(len(data)), [((8, 8), ImagePolicy())]))
    windowed = ImagePolicy(window=(0, 255))
    rows = list(load_images(data, range(len(data)), [((8, 8), windowed)]))
    assert {row.status for row in rows} == {"failed" if "finite" in reason else "decoded"}


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
        ("huge", "too large: 20000x20000 pixels of an array take about"),
        ("wide", "has chunks of 1,536,000,000 bytes"),
        ("group", "is a group: expected an array"),
        ("nothing", r"'nothing' is missing, found: group, huge, wide, x, y"),
        ("x", r"expected 5 labels in 'y' .*received shape \(2,\)"),
        ("y", r"expected images of shape \(n, h, w\) or .* received \(2,\)"),
    ):
        with pytest.raises(DatasetError, match=reason):
            ImageDataset.from_hdf5(file, images=name)
    with pytest.raises(DatasetError, match=r"no such file: .*b\.h5"):
        ImageDataset.from_hdf5(tmp_path / "b.h5")
