"""Images in Parquet and Arrow files, data frames, datasets of Hugging Face and tf.data."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import DatasetError
from featx.images import frames
from featx.images.dataset import ImageDataset
from featx.images.loader import load_images
from featx.spec import ImagePolicy

COUNT = 9
TARGETS = [((8, 8), ImagePolicy())]


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()


PICTURES = [picture(n) for n in range(COUNT)]
LABELS = [["ant", "bee"][n % 2] for n in range(COUNT)]
NAMES = [f"{n}.png" for n in range(COUNT)]


@pytest.fixture
def folder(tmp_path):
    for name, label, data in zip(NAMES, LABELS, PICTURES, strict=True):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / label / name).write_bytes(data)
    return tmp_path / "photos"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def same_labels(data):
    """Every image has the label that it has in the folder."""
    expected = dict(zip(PICTURES, LABELS, strict=True))
    contents = [data.read(i) if hasattr(data.arrays, "stamps") else data.image(i) for i in range(9)]
    return [expected[content] for content in contents] == data.y.tolist()


def arrow_table(form="record", **more):
    pa = pytest.importorskip("pyarrow")
    if form == "record":
        cells = [{"bytes": data, "path": name} for data, name in zip(PICTURES, NAMES, strict=True)]
    else:
        cells = PICTURES
    return pa.table({"image": cells, "label": LABELS} | more)


def hugging_face(table):
    """Describe labels as codes of classes, as `datasets` writes them."""
    pa = pytest.importorskip("pyarrow")
    codes = pa.array([["ant", "bee"].index(label) for label in LABELS], pa.int64())
    table = table.set_column(1, "label", codes)
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["ant", "bee"]},
    }
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def write_parquet(path, table, **options):
    from pyarrow import parquet

    parquet.write_table(table, path, **options)
    return path


def write_arrow(path, table, *, stream):
    import pyarrow as pa

    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


FILES = {
    "record.parquet": lambda path: write_parquet(path, arrow_table(), row_group_size=4),
    "bytes.parquet": lambda path: write_parquet(path, arrow_table("bytes"), compression="zstd"),
    "hf.parquet": lambda path: write_parquet(path, hugging_face(arrow_table())),
    "file.arrow": lambda path: write_arrow(path, arrow_table(), stream=False),
    "stream.arrow": lambda path: write_arrow(path, arrow_table("bytes"), stream=True),
}


@pytest.fixture(params=sorted(FILES))
def file(request, tmp_path):
    pytest.importorskip("pyarrow")
    return FILES[request.param](tmp_path / request.param)


def test_a_file_has_the_images_and_labels_of_the_folder(file):
    data = ImageDataset.from_any(file)
    assert len(data) == COUNT
    assert data.classes == ("ant", "bee")
    assert same_labels(data)
    assert data.paths[0] in ("0.png", "000000")
    assert pickle.loads(pickle.dumps(data)).read(8) == PICTURES[8]


def test_a_move_between_a_folder_and_a_file_computes_nothing(file, folder, cache):
    before = featx.extract(folder, cache=cache)
    after = featx.extract(file, cache=cache)
    assert (after.report["extracted"], after.report["cached"]) == (0, COUNT)
    order = np.argsort([f"{label}/{name}" for label, name in zip(LABELS, NAMES, strict=True)])
    assert np.array_equal(before.X, after.X[order])
    # And the other way round.
    other = cache.with_name("other")
    featx.extract(file, cache=other)
    assert featx.extract(folder, cache=other).report["extracted"] == 0


@pytest.mark.parametrize("isolate", [False, True])
def test_threads_and_processes_read_a_file(file, isolate):
    loaded = list(load_images(ImageDataset.from_any(file), range(COUNT), TARGETS, isolate=isolate))
    assert [image.status for image in loaded] == ["decoded"] * COUNT


def test_an_unchanged_file_is_not_read_again(file, cache, monkeypatch):
    monkeypatch.setattr("featx.files.identity._SETTLED_NS", -(1 << 60))
    featx.extract(file, cache=cache)

    def forbidden(cell):
        raise AssertionError("an image was read")

    monkeypatch.setattr(frames, "content_of", forbidden)
    assert featx.extract(file, cache=cache).report["cached"] == COUNT


def test_another_tap_of_a_named_dataset(file, cache):
    feats = featx.extract(file, cache=cache)
    again = featx.extract(feats.name, taps="max", cache=cache)
    assert (again.report["extracted"], again.report["failed"]) == (COUNT, 0)


def test_shards_and_their_splits(tmp_path):
    table = hugging_face(arrow_table())
    for number, part in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-0")):
        write_parquet(tmp_path / f"{part}.parquet", table.slice(3 * number, 3))
    data = ImageDataset.from_any(tmp_path / "*.parquet")
    assert sorted(data.splits) == ["test"] * 3 + ["train"] * 6
    assert same_labels(data)
    assert len(set(data.paths)) == COUNT


def test_a_folder_of_shards(tmp_path, cache):
    table = hugging_face(arrow_table())
    for number in range(3):
        write_parquet(tmp_path / f"part-{number}.parquet", table.slice(3 * number, 3))
    (tmp_path / "README.md").write_text("about")
    data = ImageDataset.from_any(tmp_path)
    assert (data.name, len(data)) == (tmp_path.name, COUNT)
    feats = featx.extract(tmp_path, cache=cache)
    assert featx.extract(feats.name, taps="max", cache=cache).report["failed"] == 0


def test_random_order_reads_row_groups_again(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(frames, "_OPEN_GROUPS", 1)
    path = write_parquet(tmp_path / "a.parquet", arrow_table(), row_group_size=2)
    data = ImageDataset.from_any(path)
    order = np.random.default_rng(0).permutation(COUNT).tolist()
    assert [data.read(i) for i in order] == [PICTURES[i] for i in order]


def test_columns_by_name(tmp_path, cache):
    pa = pytest.importorskip("pyarrow")
    table = pa.table(
        {"photo_a": PICTURES, "photo_b": PICTURES[::-1], "kind": LABELS, "part": ["train"] * COUNT}
    )
    path = write_parquet(tmp_path / "a.parquet", table)
    with pytest.raises(DatasetError, match="several columns of images .* --path-column photo_a"):
        ImageDataset.from_any(path)
    columns = {"path_column": "photo_b", "label_column": "kind", "split_column": "part"}
    data = ImageDataset.from_any(path, **columns)
    assert data.read(0) == PICTURES[-1]
    assert data.splits == ("train",) * COUNT
    feats = featx.extract(path, cache=cache, **columns)
    again = featx.extract(feats.name, taps="max", cache=cache)
    assert np.array_equal(again.keys, feats.keys)


def test_a_table_of_paths(folder, tmp_path):
    pa = pytest.importorskip("pyarrow")
    paths = [f"photos/{label}/{name}" for label, name in zip(LABELS, NAMES, strict=True)]
    path = write_parquet(tmp_path / "a.parquet", pa.table({"path": paths, "label": LABELS}))
    data = ImageDataset.from_any(path)
    assert data.arrays is None
    assert data.read(3) == PICTURES[3]
    assert ImageDataset.from_any(path, root=tmp_path).y.tolist() == LABELS


def test_rows_without_an_image_fail_alone(tmp_path, cache):
    pa = pytest.importorskip("pyarrow")
    cells = [None, {"bytes": None, "path": "/nowhere.png"}, {"bytes": b"x", "path": None}]
    cells += [{"bytes": data, "path": None} for data in PICTURES[:3]]
    path = write_parquet(tmp_path / "a.parquet", pa.table({"image": cells}))
    feats = featx.extract(path, cache=cache)
    assert len(feats) == 3
    assert [reason for _, reason in feats.failed] == [
        "no image in this row",
        "no such file",
        "not an image (starts with b'x')",
    ]


def test_missing_labels_of_a_file_are_unlabelled(tmp_path):
    pytest.importorskip("pyarrow")
    table = hugging_face(arrow_table()).slice(0, 4)
    import pyarrow as pa

    table = table.set_column(1, table.schema.field("label"), pa.array([0, -1, None, 1], pa.int64()))
    data = ImageDataset.from_any(write_parquet(tmp_path / "a.parquet", table))
    assert data.y.tolist() == ["ant", "", "", "bee"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_is_one_error(tmp_path, share):
    pytest.importorskip("pyarrow")
    path = FILES["record.parquet"](tmp_path / "a.parquet")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DatasetError, match=r"a\.parquet"):
        ImageDataset.from_any(path)


def test_a_damaged_row_group_fails_its_rows(tmp_path, cache):
    pytest.importorskip("pyarrow")
    table = arrow_table("bytes")
    path = write_parquet(
        tmp_path / "a.parquet", table, row_group_size=5, compression="zstd", use_dictionary=False
    )
    from pyarrow import parquet

    at = parquet.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[at : at + 200] = b"\xff" * 200
    path.write_bytes(data)
    feats = featx.extract(path, cache=cache)
    assert len(feats) == 4
    assert {reason.partition(":")[0] for _, reason in feats.failed} == {"a.parquet cannot be read"}


# Tables in memory


def frame_of(library, columns):
    module = pytest.importorskip(library)
    return module.table(columns) if library == "pyarrow" else module.DataFrame(columns)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_frame_of_bytes(library, folder, cache):
    frame = frame_of(library, {"image": PICTURES, "label": LABELS, "split": ["train"] * COUNT})
    data = ImageDataset.from_any(frame)
    assert same_labels(data)
    assert data.splits == ("train",) * COUNT
    featx.extract(folder, cache=cache)
    assert featx.extract(frame, cache=cache).report["extracted"] == 0


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_frame_of_paths_with_columns_of_any_name(library, folder, cache):
    paths = [str(folder / label / name) for label, name in zip(LABELS, NAMES, strict=True)]
    frame = frame_of(library, {"where": paths, "kind": LABELS, "note": list(range(COUNT))})
    feats = featx.extract(frame, path_column="where", label_column="kind", cache=cache)
    assert feats.y.tolist() == LABELS
    with pytest.raises(DatasetError, match="expected a column 'path' in the data frame|Arrow"):
        ImageDataset.from_any(frame)


def test_a_frame_of_pictures():
    pandas = pytest.importorskip("pandas")
    pictures = [Image.open(io.BytesIO(data)) for data in PICTURES]
    data = ImageDataset.from_any(pandas.DataFrame({"image": pictures, "label": LABELS}))
    assert same_labels(data)
    arrays = [np.asarray(picture) for picture in pictures]
    data = ImageDataset.from_any(pandas.DataFrame({"image": arrays, "label": LABELS}))
    assert np.array_equal(data.image(4), arrays[4])


@pytest.mark.parametrize("missing", [None, float("nan"), "NA"])
def test_missing_labels_of_a_frame_are_unlabelled(missing):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": PICTURES[:3], "label": ["ant", missing, "bee"]})
    assert ImageDataset.from_any(frame).y.tolist() == ["ant", "", "bee"]


def hf_dataset(table):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])}
    )
    info = datasets.DatasetInfo(features=features)
    # A fingerprint of one's own: to make one, some versions fail with others of pyarrow.
    return datasets.Dataset(table, info=info, fingerprint="0" * 16)


def test_a_dataset_of_hugging_face(folder, cache):
    pytest.importorskip("datasets")
    dataset = hf_dataset(hugging_face(arrow_table()))
    assert same_labels(ImageDataset.from_any(dataset))
    featx.extract(folder, cache=cache)
    assert featx.extract(dataset, cache=cache).report["extracted"] == 0


def test_a_dataset_of_hugging_face_in_splits():
    datasets = pytest.importorskip("datasets")
    table = hugging_face(arrow_table())
    parts = {"train": hf_dataset(table.slice(0, 6)), "validation": hf_dataset(table.slice(6, 3))}
    data = ImageDataset.from_any(datasets.DatasetDict(parts))
    assert same_labels(data)
    assert data.splits == ("train",) * 6 + ("val",) * 3


@pytest.mark.parametrize("form", ["pairs", "batches", "names", "bytes"])
def test_a_tf_dataset(form):
    tf = pytest.importorskip("tensorflow")
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in PICTURES])
    codes = [["ant", "bee"].index(label) for label in LABELS]
    if form == "names":
        source = tf.data.Dataset.from_tensor_slices({"image": pixels, "label": LABELS})
    else:
        images = PICTURES if form == "bytes" else pixels
        source = tf.data.Dataset.from_tensor_slices((images, codes))
    if form == "batches":
        source = source.batch(4)
    data = ImageDataset.from_any(source)
    expected = LABELS if form == "names" else [str(code) for code in codes]
    assert data.y.tolist() == expected
    if form == "bytes":
        assert data.read(2) == PICTURES[2]
    else:
        assert np.array_equal(data.image(2), pixels[2])


def test_a_tf_dataset_without_labels_and_too_large(monkeypatch):
    tf = pytest.importorskip("tensorflow")
    source = tf.data.Dataset.from_tensor_slices(np.zeros((3, 8, 8, 3), np.uint8))
    assert ImageDataset.from_any(source).labels is None
    monkeypatch.setattr(frames, "_MOST_TENSOR_BYTES", 100)
    with pytest.raises(DatasetError, match="in memory, where they are kept"):
        ImageDataset.from_any(source)


# Lists and iterators


def test_lists_and_iterators_of_bytes(folder, cache):
    featx.extract(folder, cache=cache)
    for data in (PICTURES, iter(PICTURES), (data for data in PICTURES)):
        feats = featx.extract(data, cache=cache, name="bytes")
        assert (feats.report["extracted"], feats.report["cached"]) == (0, COUNT)


def test_predict_takes_frames_files_and_iterators(folder, tmp_path, cache):
    pandas = pytest.importorskip("pandas")
    model = featx.train(featx.extract(folder, cache=cache), head="nearest-mean").model
    expected = [row.top for row in featx.predict(model, PICTURES)]
    frame = pandas.DataFrame({"image": PICTURES, "label": LABELS})
    pixels = (np.asarray(Image.open(io.BytesIO(data))) for data in PICTURES)
    path = write_parquet(tmp_path / "a.parquet", arrow_table())
    for images in (frame, iter(PICTURES), pixels, str(path)):
        rows = list(featx.predict(model, images))
        assert [row.top for row in rows] == expected
        assert len({row.path for row in rows}) == COUNT
