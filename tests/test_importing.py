from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest

import featx
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.pack import pack_dataset
from featx.exceptions import DatasetError, MissingExtraError, UnknownNameError
from featx.importing.feature_files import read_feature_file
from featx.importing.importer import import_features


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def table():
    """60 rows of 5 features in 3 classes that a head can tell apart."""
    generator = np.random.default_rng(0)
    y = np.repeat(["blog", "news", "詩"], 20)
    X = generator.normal(size=(60, 5)).astype(np.float32)
    X[20:40] += 4
    X[40:] -= 4
    return X, y


def write(path, X, y=None, **others):
    """The same content as .npz, .npy, .h5 or .parquet."""
    columns = {name: values for name, values in {"y": y, **others}.items() if values is not None}
    if path.suffix == ".npy":
        np.save(path, X)
    elif path.suffix == ".npz":
        np.savez(path, X=X, **columns)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["X"] = X
            for name, values in columns.items():
                values = np.asarray(values)
                file[name] = values.astype(object) if values.dtype.kind == "U" else values
    else:
        pa = pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
        from pyarrow import parquet

        flat = pa.array(np.ascontiguousarray(X).reshape(-1))
        arrays = {"feature": pa.FixedSizeListArray.from_arrays(flat, X.shape[1])}
        arrays |= {name: pa.array(list(values)) for name, values in columns.items()}
        parquet.write_table(pa.table(arrays), path)
    return path


def load(path, name="texts", *, cache, **options):
    found = read_feature_file(path, **options)
    return import_features(
        name, found.rows, y=found.y, paths=found.paths, groups=found.groups,
        splits=found.splits, cache=cache,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".parquet"])
def test_a_file_becomes_a_dataset_that_a_head_is_trained_on(tmp_path, cache, table, suffix):
    X, y = table
    paths = [f"text-{row}" for row in range(60)]
    features = load(write(tmp_path / f"f{suffix}", X, y, paths=np.array(paths)), cache=cache)
    assert features.report["rows"] == features.report["written"] == 60
    again = Features.open("texts", cache=cache)
    np.testing.assert_array_equal(again.X, X)
    assert again.y.tolist() == y.tolist()
    assert again.paths == paths
    assert [(b.backbone, b.tap) for b in again.blocks] == [("import:texts", "imported")]
    result = featx.train(again, cv=3)
    assert result.metrics["accuracy"] > 0.8
    result.model.save(tmp_path / "m.featx")
    assert (featx.load(tmp_path / "m.featx").predict(X) == y).mean() > 0.8


def test_npy_has_no_labels_but_a_csv_may_bring_them(tmp_path, cache, table):
    X, y = table
    path = write(tmp_path / "f.npy", X)
    assert load(path, cache=cache).y is None
    labels = tmp_path / "labels.csv"
    labels.write_text("split;label\n" + "".join(f"train;{name}\n" for name in y), "utf-8")
    features = load(path, cache=cache, labels=labels)
    assert features.y.tolist() == y.tolist()
    assert features.splits.tolist() == ["train"] * 60
    assert features.paths[:2] == ["row:000000", "row:000001"]
    np.save(tmp_path / "y.npy", np.arange(60) % 2)
    assert load(path, cache=cache, labels=tmp_path / "y.npy").y.tolist() == ["0", "1"] * 30


def test_labels_are_matched_by_path_where_both_sides_have_paths(tmp_path, cache, table):
    X, y = table
    paths = np.array([f"t{row}" for row in range(60)])
    path = write(tmp_path / "f.npz", X, paths=paths)
    order = np.random.default_rng(0).permutation(60)
    lines = ["path,label", *(f"t{row},{y[row]}" for row in order)]
    (tmp_path / "labels.csv").write_text("\n".join(lines), "utf-8")
    assert load(path, cache=cache, labels=tmp_path / "labels.csv").y.tolist() == y.tolist()
    (tmp_path / "labels.csv").write_text("\n".join(lines[:-3]), "utf-8")
    with pytest.raises(DatasetError, match="3 of 60 rows have no label in .*labels.csv"):
        load(path, cache=cache, labels=tmp_path / "labels.csv")


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".parquet"])
def test_what_was_packed_is_imported_with_all_its_columns(tmp_path, cache, table, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    X, y = table
    before = import_features(
        "texts", X, y=[*y[:59], None], paths=[f"{row}.txt" for row in range(60)],
        groups=["a", "b"] * 30, splits=["train", "test", "valid"] * 20, cache=cache,
    )  # fmt: skip
    pack_dataset(before, tmp_path / f"packed{suffix}")
    after = load(tmp_path / f"packed{suffix}", "copy", cache=cache)
    np.testing.assert_array_equal(after.X, before.X)
    np.testing.assert_array_equal(after.keys, before.keys)
    assert after.y.tolist() == before.y.tolist()
    assert after.y[-1] == ""
    assert after.paths == before.paths
    assert after.groups.tolist() == before.groups.tolist()
    assert after.splits.tolist() == ["train", "test", "val"] * 20


def test_the_same_import_twice_writes_nothing_and_other_content_is_another_space(cache, table):
    X, y = table
    first = import_features("texts", X, y=y, cache=cache)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.h5")}
    again = import_features("texts", X.copy(), y=y, cache=cache)
    assert again.report["written"] == 0
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.h5")} == files
    relabelled = import_features("texts", X, y=y[::-1], cache=cache)
    assert relabelled.report["written"] == 0
    assert relabelled.spec() == first.spec()
    other = import_features("texts", X + 1, y=y, cache=cache)
    assert other.report["written"] == 60
    assert other.spec().name != first.spec().name
    np.testing.assert_array_equal(Features.open("texts", cache=cache).X, X + 1)


def test_equal_rows_are_duplicates_stored_once(cache, table):
    X, y = table
    X = np.concatenate([X, X[:7]])
    features = import_features("texts", X, y=[*y, *y[:7]], cache=cache)
    assert features.report["duplicates"] == 7
    assert features.report["written"] == 60
    np.testing.assert_array_equal(features.X, X)


def test_shards_stay_within_their_size_and_memory_within_chunks(tmp_path, cache, monkeypatch):
    X = np.random.default_rng(0).normal(size=(12000, 256)).astype(np.float32)
    path = write(tmp_path / "f.npz", X)
    monkeypatch.setattr("featx.cache.space.SHARD_BYTES", 300_000)
    monkeypatch.setattr("featx.importing.feature_files.CHUNK_BYTES", 200_000)
    load(write(tmp_path / "warm.npz", X[:100]), "warm", cache=cache)
    tracemalloc.start()
    features = load(path, cache=cache)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < X.nbytes / 2
    shards = list((cache / "spaces" / features.spec().name).rglob("shards/*.h5"))
    assert len(shards) == -(-12000 // (300_000 // 1024))
    assert all(shard.stat().st_size < 350_000 for shard in shards)
    np.testing.assert_array_equal(features.X, X)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("float16", "float16"),
        ("float32", "float32"),
        (">f4", "float32"),
        ("float64", "float32"),
        ("int8", "float32"),
        ("uint16", "float32"),
        ("int64", "float32"),
        ("bool", "float32"),
    ],
)
def test_numbers_are_converted_where_nothing_is_lost_and_it_is_said(cache, dtype, stored):
    X = (np.arange(12).reshape(4, 3) % 7).astype(dtype)
    features = import_features("numbers", X, cache=cache)
    assert features.X.dtype == stored
    np.testing.assert_array_equal(features.X, X.astype("f8"))
    same = np.dtype(dtype) == np.dtype(stored)
    assert features.report["converted_from"] == ("" if same else np.dtype(dtype).name)


BAD_ARRAYS = {
    "one rank": (np.zeros(5), r"shape \(n, d\) in X, received \(5,\)"),
    "images": (np.zeros((2, 8, 8, 3)), "images are read by `featx extract`"),
    "no rows": (np.zeros((0, 4)), "no features: X has the shape"),
    "no columns": (np.zeros((4, 0)), "no features: X has the shape"),
    "objects": (np.array([[1, None]], object), "received Python objects, which need pickle"),
    "text": (np.array([["a", "b"]]), "expected features of floats in X"),
    "complex": (np.zeros((2, 2), complex), "received complex128"),
    "ragged": ([[1.0, 2.0], [3.0]], "rows of different lengths"),
    "large integers": (np.array([[1, 1 << 25]]), "row 0 holds numbers that float32 cannot hold"),
    "large floats": (np.array([[1.0, 2.0], [1e300, 0]]), "row 1 holds numbers .*: scale them"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_what_cannot_be_features_is_refused(cache, kind):
    X, message = BAD_ARRAYS[kind]
    with pytest.raises(DatasetError, match=message):
        import_features("bad", X, cache=cache)
    assert not cache.exists()


def test_numbers_that_are_not_finite_are_counted_and_the_first_is_named(cache, table):
    X, y = table
    X[7, 2], X[30, 0], X[31, 4] = np.nan, np.inf, -np.inf
    with pytest.raises(DatasetError, match="infinity in 3 of 60 rows, the first is row 7"):
        import_features("texts", X, y=y, cache=cache)
    assert not cache.exists()


def test_columns_of_another_length_are_refused(tmp_path, cache, table):
    X, y = table
    with pytest.raises(DatasetError, match="expected 60 labels, one for each input, received 59"):
        import_features("texts", X, y=y[:59], cache=cache)
    with pytest.raises(DatasetError, match="expected 60 paths, one a row .* received 2"):
        import_features("texts", X, paths=["a", "b"], cache=cache)
    np.save(tmp_path / "y.npy", np.arange(59))
    with pytest.raises(DatasetError, match=r"expected 60 labels.* received 59 in .*y\.npy"):
        load(write(tmp_path / "f.npy", X), cache=cache, labels=tmp_path / "y.npy")


def test_a_dataset_of_images_is_not_replaced(photos, cache, table, small_network):
    featx.extract(photos, backbone=f"file:{small_network}", cache=cache)
    with pytest.raises(DatasetError, match="has a dataset 'photos' of images in the place of"):
        import_features("photos", table[0], cache=cache)
    import_features("a b", table[0], cache=cache)
    with pytest.raises(DatasetError, match="has a dataset 'a b' of features in the place of 'a-b'"):
        import_features("a-b", table[0], cache=cache)
    with pytest.raises(DatasetError, match="without slashes, received '../x'"):
        import_features("../x", table[0], cache=cache)


@pytest.mark.parametrize("name", ["features", "Embeddings", "x"])
@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_other_names_are_understood(tmp_path, cache, table, name, suffix):
    X, y = table
    path = tmp_path / f"f{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, **{name: X, "labels": y, "other": np.zeros((3, 3))})
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset(name, data=X, chunks=(7, 2), compression="gzip", shuffle=True)
            file["labels"] = np.char.encode(y, "utf-8")
            file["other"] = np.zeros((3, 3))
    features = load(path, cache=cache)
    np.testing.assert_array_equal(features.X, X)
    assert features.y.tolist() == y.tolist()


def test_the_only_matrix_stands_for_the_features(tmp_path, cache, table):
    np.savez(tmp_path / "f.npz", mine=np.asfortranarray(table[0]), y=table[1])
    np.testing.assert_array_equal(load(tmp_path / "f.npz", cache=cache).X, table[0])
    np.savez(tmp_path / "g.npz", mine=table[0], yours=table[0])
    with pytest.raises(DatasetError, match="under the name X, .*found: mine, yours"):
        load(tmp_path / "g.npz", cache=cache)


def test_parquet_may_hold_one_column_a_feature(tmp_path, cache, table):
    pa = pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    from pyarrow import parquet

    X, y = table
    columns = {f"f{i}": X[:, i] for i in range(5)}
    parquet.write_table(pa.table({"label": y.tolist(), **columns}), tmp_path / "f.parquet")
    features = load(tmp_path / "f.parquet", cache=cache)
    np.testing.assert_array_equal(features.X, X)
    assert features.y.tolist() == y.tolist()
    lists = pa.array([*X.tolist()[:3], [1.0]], pa.list_(pa.float32()))
    parquet.write_table(pa.table({"embedding": lists}), tmp_path / "g.parquet")
    with pytest.raises(DatasetError, match="expected 5 features in every row of 'embedding'"):
        load(tmp_path / "g.parquet", cache=cache)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, cache, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featx\[parquet\]'"):
        load(tmp_path / "f.parquet", cache=cache)


# Files that somebody made to do harm, or that were damaged on their way.


def npy_bytes(header, data=b""):
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def npz_of(members, *, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy_of(values, **options):
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


class Runs:
    def __reduce__(self):
        return os.system, ("touch /tmp/featx-was-here",)


PICKLE = npy_of(np.array([[Runs()]], object), allow_pickle=True)
SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 4), }\n"
LABELS_PICKLED = npz_of({"X": npy_of(np.zeros((2, 2))), "y": npy_of(np.array(["a", None], object))})
BOMB = npz_of({"X": npy_bytes(SHAPE % (1 << 24), bytes(1 << 28))}, compression=zipfile.ZIP_DEFLATED)

HOSTILE_NUMPY = {
    "pickle.npy": (PICKLE, "which need pickle: refused"),
    "pickle.npz": (npz_of({"X": PICKLE}), "which need pickle: refused"),
    "pickled labels.npz": (LABELS_PICKLED, "save numbers as float32 and text with"),
    "shape.npy": (npy_bytes(SHAPE % (1 << 50)), "claims .* bytes, of which the file holds 0"),
    "shape.npz": (npz_of({"X": npy_bytes(SHAPE % (1 << 50))}), "of which the file holds 0"),
    "negative.npy": (npy_bytes(SHAPE % -5), "of shape .*: refused"),
    "code in header.npy": (npy_bytes("{'descr': __import__('os').system('x')}"), "without pickle"),
    "long header.npz": (
        npz_of({"X": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99)}),
        "a header of 4,294,967,295 bytes",
    ),
    "bomb.npz": (BOMB, "claims 268,.* bytes, of which the file holds"),
    "no zip.npz": (b"PK not a zip", "cannot read .* as arrays of NumPy"),
    "empty.npy": (b"", "cannot read .* as arrays of NumPy"),
    "empty.npz": (npz_of({}), "found: nothing"),
    "structured.npy": (npy_of(np.zeros(3, [("a", "f4")])), "expected features of floats"),
    "wide.npy": (
        npy_bytes(
            "{'descr': '|i1', 'fortran_order': False, 'shape': (1, 2097152), }", bytes(2**21)
        ),
        "at most 1,048,576 features a row",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE_NUMPY)
def test_hostile_files_of_numpy_are_refused(tmp_path, cache, kind):
    data, message = HOSTILE_NUMPY[kind]
    path = tmp_path / kind
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DatasetError, match=message):
        load(path, cache=cache)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 << 20
    assert not cache.exists()


def test_a_npz_cut_or_changed_anywhere_is_refused_or_whole(tmp_path, cache, table):
    whole = write(tmp_path / "f.npz", *table).read_bytes()
    path = tmp_path / "g.npz"
    refused = 0
    for position in range(0, len(whole), 131):
        flipped = whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
        for data in (whole[:position], flipped):
            path.write_bytes(data)
            try:
                features = load(path, cache=cache)
            except DatasetError as error:
                assert "g.npz" in str(error) or "finite" in str(error)
                refused += 1
            else:
                np.testing.assert_array_equal(features.X, table[0])
    assert refused > 20


def virtual(file):
    source = h5py.VirtualSource("/etc/passwd", "x", shape=(7, 4), dtype="<f4")
    layout = h5py.VirtualLayout((7, 4), "<f4")
    layout[:] = source
    file.create_virtual_dataset("X", layout)


HOSTILE_HDF5 = {
    "external link": (
        lambda f: f.__setitem__("X", h5py.ExternalLink("/etc/passwd", "/x")),
        r"is a link \(ExternalLink\)",
    ),
    "soft link": (lambda f: f.__setitem__("X", h5py.SoftLink("/y")), r"is a link \(SoftLink\)"),
    "external storage": (
        lambda f: f.create_dataset("X", (7, 4), "<f4", external=[("/etc/passwd", 0, 112)]),
        "keeps its data in other files",
    ),
    "virtual": (virtual, "keeps its data in other files"),
    "absurd shape": (
        lambda f: f.create_dataset("X", (1 << 40, 4), "<f4"), "of which the file holds 0"
    ),
    "absurd chunked shape": (
        lambda f: f.create_dataset("X", (1 << 40, 4), "<f4", chunks=(10, 4)), "claims .* refused"
    ),
    "absurd chunks": (
        lambda f: f.create_dataset("X", (1 << 28, 4), "<f4", chunks=(1 << 26, 4)), "has chunks of"
    ),
    "bomb": (
        lambda f: f.create_dataset(
            "X", data=np.zeros((1 << 20, 24), "f4"), chunks=(1 << 16, 24), compression="gzip"
        ),
        "claims 100,663,296 bytes",
    ),
    "group": (lambda f: f.create_group("X"), "is a group: expected an array"),
    "objects": (
        lambda f: f.create_dataset("X", (7, 2), h5py.string_dtype()), "received Python objects"
    ),
    "references": (
        lambda f: (f.create_dataset("X", data=np.zeros((2, 2))),
                   f.create_dataset("y", (2,), h5py.ref_dtype)),
        "expected numbers or text in 'y'",
    ),
    "absurd labels": (
        lambda f: (f.create_dataset("X", data=np.zeros((2, 2))),
                   f.create_dataset("y", (1 << 40,), "i1")),
        "more than the 1,073,741,824 allowed",
    ),
    "linked labels": (
        lambda f: (f.create_dataset("X", data=np.zeros((2, 2))),
                   f.__setitem__("y", h5py.ExternalLink("/etc/passwd", "/x"))),
        "'y' is a link",
    ),
    "no matrix": (lambda f: f.create_dataset("z", data=np.zeros(3)), "found: z"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_HDF5)
def test_hostile_files_of_hdf5_are_refused(tmp_path, cache, kind):
    make, message = HOSTILE_HDF5[kind]
    with h5py.File(tmp_path / "f.h5", "w") as file:
        make(file)
    tracemalloc.start()
    with pytest.raises(DatasetError, match=message):
        load(tmp_path / "f.h5", cache=cache)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 << 20
    assert not cache.exists()


@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "external storage", "virtual", "group"]
)
def test_images_in_hostile_files_of_hdf5_are_refused_alike(tmp_path, kind):
    make, message = HOSTILE_HDF5[kind]
    with h5py.File(tmp_path / "f.h5", "w") as file:
        make(file)
    with pytest.raises(DatasetError, match=message):
        featx.ImageDataset.from_hdf5(tmp_path / "f.h5")


@pytest.mark.parametrize("kind", ["pickle.npz", "shape.npz", "long header.npz", "no zip.npz"])
def test_images_in_hostile_files_of_numpy_are_refused_alike(tmp_path, kind):
    data, _ = HOSTILE_NUMPY[kind]
    (tmp_path / kind).write_bytes(data)
    with pytest.raises(DatasetError, match=kind):
        featx.ImageDataset.from_npz(tmp_path / kind)


@pytest.mark.parametrize("content", [b"", b"no file", b"\x89HDF\r\n\x1a\n" + bytes(3000)])
@pytest.mark.parametrize("suffix", [".h5", ".npz", ".npy", ".parquet"])
def test_damaged_files_are_named(tmp_path, cache, content, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"cannot read .*damaged\{suffix}"):
        load(path, cache=cache)
    with pytest.raises(DatasetError, match="no such file"):
        load(tmp_path / f"none{suffix}", cache=cache)


def test_another_kind_of_file_is_an_unknown_name(tmp_path, cache):
    with pytest.raises(UnknownNameError, match="unknown kind of feature file '.csv'"):
        load(tmp_path / "f.csv", cache=cache)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty table"),
        ("class\na\n", "expected a header with the column 'label'"),
        ("label,path\na\n", "line 2: expected a path, received"),
        ('label\n"a\n', "line 2"),
    ],
)
def test_damaged_label_files_are_named(tmp_path, cache, table, text, message):
    path = write(tmp_path / "f.npy", table[0])
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DatasetError, match=rf"(?s)labels.csv.*{message}|{message}.*labels.csv"):
        load(path, cache=cache, labels=tmp_path / "labels.csv")


def test_labels_that_index_no_class_are_refused(tmp_path, cache, table):
    path = write(tmp_path / "f.npz", table[0], np.arange(60), classes=np.array(["a", "b"]))
    with pytest.raises(DatasetError, match="expected labels from -1 to 1, .*received 0 to 59"):
        load(path, cache=cache)


def test_a_manifest_of_imported_features_is_found_by_name(cache, table):
    import_features("texts", table[0], cache=cache)
    assert CacheLayout(cache).dataset("texts").is_file()
    assert featx.FeatureCache(cache).datasets() == ["texts"]
