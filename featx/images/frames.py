"""Images in tables of other libraries: Parquet, Arrow, pandas, polars, Hugging Face, TensorFlow.

A column holds the images: the bytes of files, records of ``bytes`` and ``path`` as in the datasets
of Hugging Face, PIL images or arrays; or their paths. The columns beside it say what a table says.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, ImageError, MissingExtraError
from featx.files.claims import UnsafeFileError, reading_data
from featx.files.identity import STAMP, file_stamps
from featx.files.stores import as_address
from featx.images.archives import Forward, shard_splits
from featx.images.files import (
    ARCHIVES,
    MAX_FILE_BYTES,
    ImageSource,
    Listing,
    PackedImages,
    archive_ending,
    read_file,
)
from featx.images.reading import Reading
from featx.images.sources import check_images, is_pil, library_of
from featx.images.tables import FOR_PATH, read_columns

_CONTENT = ("image", "img", "picture", "photo", "bytes", "content", "data", "jpg", "jpeg", "png")
"""Names of columns of contents, the first one preferred."""
_NESTED = (list, tuple, set, dict, np.ndarray)
_BATCH = 32
_OPEN_GROUPS = 4
_MOST_TENSOR_BYTES = 4 << 30


@dataclass
class _Frame:
    """Columns by name. Where images are contents, `column` has their names, `images` the rest."""

    what: str
    columns: dict[str, Sequence[object]]
    column: str | None = None
    images: ImageSource | None = None
    splits: list[str] | None = None
    split_names: Sequence[tuple[str, str]] = ()

    @property
    def names(self) -> list[str]:
        """What each image is called, where images are contents."""
        return [] if self.column is None else list(map(str, self.columns[self.column]))


def read_frame(data: Any, reading: Reading) -> Listing:
    """Return the images of a table of another library, see `featx.images.sources.is_frame`."""
    return _listing(_OF[library_of(data)](data, reading), reading, Path.cwd())


def read_arrow_files(paths: Sequence[Path], name: str, reading: Reading) -> Listing:
    """Return the images of Parquet or Arrow files, each a shard of one table."""
    return _listing(_merged(paths, name, reading), reading, paths[0].absolute().parent)


def arrow_images(paths: Sequence[Path], column: str) -> tuple[Sequence[str], ImageSource]:
    """Return the names and the contents of the images in a column of Parquet or Arrow files."""
    frame = _merged(paths, paths[0].name, Reading(path_column=column))
    if frame.images is None:
        raise DatasetError(f"{paths[0].name!r} has no images in a column {column!r} any more")
    return frame.names, frame.images


def _merged(paths: Sequence[Path], name: str, reading: Reading) -> _Frame:
    frames = []
    for path in paths:
        with reading_data(path, "a table of Parquet or Arrow"):
            frames.append(frame := _arrow_frame(path, reading))
            columns = [*frame.columns.values(), *([] if frame.images is None else [frame.images])]
            if len(set(map(len, columns))) > 1:
                raise UnsafeFileError("its columns differ in length")
    if len(frames) == 1:
        return frames[0]
    whole, counts = _joined(frames, repr(name))
    if whole.column is not None and len(set(whole.names)) < len(whole.names):
        files = np.repeat([path.name for path in paths], counts).tolist()
        told = zip(files, whole.columns[whole.column], strict=True)
        whole.columns[whole.column] = [f"{file}/{image}" for file, image in told]
    if reading.split_column is None and "split" not in map(str.lower, whole.columns):
        shards = np.repeat(np.arange(len(paths)), counts).tolist()
        whole.splits, whole.split_names = shard_splits(paths, shards)
    return whole


def _joined(frames: Sequence[_Frame], what: str) -> tuple[_Frame, list[int]]:
    """Return several frames as one, and how many rows each has."""
    if not frames or len({tuple(frame.columns) for frame in frames}) > 1:
        raise DatasetError(f"the parts of {what} have different columns: give those of one table")
    counts = [len(next(iter(frame.columns.values()), ())) for frame in frames]
    columns: dict[str, Sequence[object]] = {
        column: [value for frame in frames for value in frame.columns[column]]
        for column in frames[0].columns
    }
    whole = replace(frames[0], what=what, columns=columns)
    if whole.images is not None:
        whole.images = _Joined([frame.images for frame in frames])  # type: ignore[misc]
    return whole, counts


def _listing(frame: _Frame, reading: Reading, folder: Path) -> Listing:
    if frame.images is not None:
        if reading.root is not None:
            raise DatasetError(
                f"--root (root=...) is for paths, and {frame.what} has the images themselves: "
                "leave it out"
            )
        reading = replace(reading, path_column=frame.column)
    start = folder if reading.root is None else reading.root
    root = as_address(start) or Path(start).absolute()
    listing = read_columns(frame.columns, frame.what, root=root, reading=reading)
    if frame.splits is not None and listing.splits is None:
        listing = replace(listing, splits=frame.splits, split_names=frame.split_names)
    if frame.images is None:
        return listing
    return replace(listing, paths=frame.names, arrays=frame.images, column=frame.column or "")


def _choose(contents: Sequence[str], what: str, reading: Reading) -> str | None:
    """Return which column of contents has the images, None where paths have to say."""
    named = reading.path_column
    if named is not None:
        same = [name for name in contents if name.lower() == named.lower()]
        return named if named in contents else same[0] if same else None
    if len(contents) <= 1:
        return contents[0] if contents else None
    usual = [name for word in _CONTENT for name in contents if name.lower() == word]
    if usual:
        return usual[0]
    raise DatasetError(
        f"{what} has several columns of images or bytes: {', '.join(contents)}; say which has the "
        f"images, such as --path-column {contents[0]} (path_column={contents[0]!r})"
    )


def _named(
    columns: dict[str, Sequence[object]], column: str, count: int, names: Sequence[object] = ()
) -> dict[str, Sequence[object]]:
    """Return columns in which that of the images has names: theirs, or numbers."""
    usual = [name for word in ("path", *FOR_PATH) for name in columns if name.lower() == word]
    for values in (names, *(columns[name] for name in usual)):
        texts = [value for value in values if isinstance(value, str) and value.strip()]
        if len(texts) == count and len(set(texts)) == count:
            break
    else:
        texts = [f"{number:06d}" for number in range(count)]
    # A column of paths beside it would be a second one.
    return {column: texts, **{c: values for c, values in columns.items() if c != column}}


class Contents(PackedImages):
    """Images that lie in a column: bytes, or records of ``bytes`` and ``path``."""

    in_memory = True

    def __init__(self, cells: Sequence[object]) -> None:
        self._cells = cells

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: int) -> bytes:
        return content_of(self._cells[index])

    def stamps(self) -> NDArray[np.int64]:
        """Return stamps that are not known."""
        return np.full((len(self), len(STAMP)), -1, np.int64)


def content_of(cell: Any) -> bytes:
    """Return the bytes of an image file in a cell."""
    if isinstance(cell, Mapping):
        content, path = cell.get("bytes"), cell.get("path")
        if content is None and isinstance(path, str):
            return read_file(path)
        cell = content
    if cell is None:
        raise ImageError("no image in this row")
    if not isinstance(cell, bytes | bytearray | memoryview):
        raise ImageError(f"expected the bytes of an image, received {type(cell).__name__}")
    if len(cell) > MAX_FILE_BYTES:
        raise ImageError(f"too large: {len(cell):,} bytes, the limit is {MAX_FILE_BYTES:,}")
    return bytes(cell)


# Tables in memory


def _is_content(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    record = isinstance(value, Mapping) and "bytes" in value
    return record or is_pil(value) or isinstance(value, bytes | bytearray | memoryview)


def _in_memory(what: str, columns: dict[str, list[Any]], reading: Reading) -> _Frame:
    firsts = {c: next((v for v in values if v is not None), None) for c, values in columns.items()}
    column = _choose([name for name, value in firsts.items() if _is_content(value)], what, reading)
    plain: dict[str, Sequence[object]] = {
        name: values
        for name, values in columns.items()
        if not _is_content(firsts[name]) and not isinstance(firsts[name], _NESTED)
    }
    if column is None:
        return _Frame(what, plain)
    cells = columns[column]
    packed = isinstance(firsts[column], bytes | bytearray | memoryview | Mapping)
    images = Contents(cells) if packed else check_images(cells)
    names = [cell.get("path") for cell in cells if isinstance(cell, Mapping)]
    return _Frame(what, _named(plain, column, len(cells), names), column, images)


def _of_pandas(data: Any, reading: Reading) -> _Frame:
    columns = {str(name): data[name].tolist() for name in data.columns}
    return _in_memory("the data frame", columns, reading)


def _of_polars(data: Any, reading: Reading) -> _Frame:
    columns = {name: data[name].to_list() for name in data.columns}
    return _in_memory("the data frame", columns, reading)


# Arrow: tables, datasets of Hugging Face, files


def _arrow_kinds(schema: Any) -> tuple[list[str], list[str]]:
    """Return which columns may hold images, and which hold text or numbers."""
    pa = _pyarrow()
    contents, plain = [], []
    for column in schema:
        kind = column.type
        if "bytes" in _fields(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            contents.append(column.name)
        elif not (pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType)):
            plain.append(column.name)
    return contents, plain


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of classes that codes stand for, as Hugging Face describes columns."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described["info"]["features"]
        return {
            name: [str(word) for word in feature["names"]]
            for name, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _plain_columns(table: Any) -> dict[str, Sequence[object]]:
    classes = _class_names(table.schema)
    columns: dict[str, Sequence[object]] = {}
    for name in table.column_names:
        values = table.column(name).to_pylist()
        if (words := classes.get(name)) is not None:
            # -1 stands for no label.
            known = range(len(words))
            values = [words[v] if isinstance(v, int) and v in known else None for v in values]
        columns[name] = values
    return columns


class _Cells(Sequence[object]):
    """The cells of a column, each made when it is asked for."""

    def __init__(self, count: int, cell: Callable[[int], object]) -> None:
        self._count, self._cell = count, cell

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._cell(index)


def _of_arrow(data: Any, reading: Reading) -> _Frame:
    contents, plain = _arrow_kinds(data.schema)
    columns = _plain_columns(data.select(plain))
    column = _choose(contents, "the Arrow table", reading)
    if column is None:
        return _Frame("the Arrow table", columns)
    cells = data.column(column)
    images = Contents(_Cells(len(cells), lambda row: cells[row].as_py()))
    names: Sequence[object] = ()
    if _has_paths(cells.type):
        from pyarrow import compute

        names = compute.struct_field(cells, "path").to_pylist()
    return _Frame("the Arrow table", _named(columns, column, len(cells), names), column, images)


def _has_paths(kind: Any) -> bool:
    return "path" in _fields(kind)


def _fields(kind: Any) -> list[str]:
    """Return the names of the fields of a type of records, none of another type."""
    is_record = _pyarrow().types.is_struct(kind)
    return [kind.field(number).name for number in range(kind.num_fields)] if is_record else []


def _of_datasets(data: Any, reading: Reading) -> _Frame:
    if isinstance(data, dict):
        return _of_splits(data, reading)
    rows = data.with_format("arrow")
    schema = data.features.arrow_schema
    contents, plain = _arrow_kinds(schema)
    columns = _plain_columns(rows.select_columns(plain)[:]) if plain else {}
    column = _choose(contents, "the dataset", reading)
    if column is None:
        return _Frame("the dataset", columns)
    images = Contents(_Cells(len(rows), lambda row: rows[int(row)].column(column)[0].as_py()))
    return _Frame("the dataset", _named(columns, column, len(rows)), column, images)


def _of_splits(data: Mapping[str, Any], reading: Reading) -> _Frame:
    """Return the datasets of several splits as one."""
    whole, counts = _joined([_of_datasets(part, reading) for part in data.values()], "the dataset")
    splits = [name for name, count in zip(data, counts, strict=True) for _ in range(count)]
    if whole.column is not None:
        told = zip(splits, whole.names, strict=True)
        whole.columns[whole.column] = [f"{split}/{name}" for split, name in told]
    if "split" not in map(str.lower, whole.columns) and reading.split_column is None:
        whole.columns["split"] = splits
    return whole


class _Joined(PackedImages):
    """The images of several sources, one behind the other."""

    def __init__(self, parts: Sequence[PackedImages]) -> None:
        self._parts = parts
        self.in_memory = any(part.in_memory for part in parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        part = int(np.searchsorted(self._ends, index, side="right"))
        first = 0 if part == 0 else int(self._ends[part - 1])
        return self._parts[part][index - first]

    def stamps(self) -> NDArray[np.int64]:
        """Return those of the parts."""
        return np.concatenate([part.stamps() for part in self._parts])


def _arrow_frame(path: Path, reading: Reading) -> _Frame:
    """Return the images of a Parquet or Arrow file."""
    if ARCHIVES[archive_ending(path.name)] == "arrow":
        frame = _of_arrow(_mapped(path), reading)
        if frame.column is not None:
            frame.images = _ArrowFile(path, frame.column)
        return frame
    with _parquet(path) as file:
        contents, plain = _arrow_kinds(file.schema_arrow)
        columns = _plain_columns(file.read(columns=plain, use_threads=False)) if plain else {}
        column = _choose(contents, repr(path.name), reading)
        if column is None:
            return _Frame(repr(path.name), columns)
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        kind = file.schema_arrow.field(column).type
        names: Sequence[object] = ()
        if _has_paths(kind):
            table = file.read(columns=[f"{column}.path"], use_threads=False)
            names = [cell and cell["path"] for cell in table.column(column).to_pylist()]
    images = ParquetImages(path, column, groups)
    return _Frame(repr(path.name), _named(columns, column, len(images), names), column, images)


class ParquetImages(PackedImages):
    """Images in a column of a Parquet file, read a few rows at a time.

    Parameters
    ----------
    path : Path
        The file.
    column : str
        Its column of bytes, or of records of bytes and paths.
    groups : sequence of int
        The number of rows of each of its row groups.
    """

    def __init__(self, path: Path, column: str, groups: Sequence[int]) -> None:
        self._path, self._column = path.absolute(), column
        self._ends = np.cumsum(groups, dtype=np.int64)
        self._open()

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._opened: OrderedDict[int, Forward] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {n: value for n, value in vars(self).items() if n not in ("_lock", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> bytes:
        group = int(np.searchsorted(self._ends, index, side="right"))
        with self._lock:
            reader = self._opened.pop(group, None) or Forward(partial(self._rows, group))
            self._opened[group] = reader
            if len(self._opened) > _OPEN_GROUPS:
                self._opened.popitem(last=False)
        return reader.read(index)

    def stamps(self) -> NDArray[np.int64]:
        """Return the stamp of the file, for each."""
        return np.repeat(file_stamps([self._path]), len(self), axis=0)

    def _rows(self, group: int) -> Iterator[tuple[int, Callable[[], bytes]]]:
        row = 0 if group == 0 else int(self._ends[group - 1])
        try:
            with _parquet(self._path) as file:
                batches = file.iter_batches(
                    _BATCH, row_groups=[group], columns=[self._column], use_threads=False
                )
                for batch in batches:
                    read = _contents_of(batch.column(0))
                    for number in range(batch.num_rows):
                        yield row, partial(read, number)
                        row += 1
        except ImageError:
            raise
        # What is wrong with a file shows as any of its library's errors.
        except Exception as error:
            raise ImageError(f"{self._path.name} cannot be read: {error}") from error


def _contents_of(column: Any) -> Callable[[int], bytes]:
    """Return what gives the contents of a column by row, without a record made for each."""
    contents = column.field("bytes") if _fields(column.type) else column

    def read(row: int) -> bytes:
        value = contents[row]
        # Without bytes it may be a path, or nothing.
        return content_of(value.as_buffer().to_pybytes() if value.is_valid else column[row].as_py())

    return read


class _ArrowFile(PackedImages):
    """Images in a column of an Arrow file, which is mapped into memory."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path.absolute(), column
        self._cells = _mapped(path).column(column)

    def __reduce__(self) -> tuple[type[_ArrowFile], tuple[Path, str]]:
        return _ArrowFile, (self._path, self._column)

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: int) -> bytes:
        return content_of(self._cells[index].as_py())

    def stamps(self) -> NDArray[np.int64]:
        """Return the stamp of the file, for each."""
        return np.repeat(file_stamps([self._path]), len(self), axis=0)


def _mapped(path: Path) -> Any:
    """Return the table in an Arrow file, which may be of the form for files or for streams."""
    pa = _pyarrow()
    with pa.memory_map(str(path)) as file:
        try:
            return pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_stream(file).read_all()


def _parquet(path: Path) -> Any:
    _pyarrow()
    from pyarrow import parquet

    # Column chunks of images are large: they are read piece by piece.
    return parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise MissingExtraError("pyarrow", extra="parquet", purpose="reading Parquet") from error
    return pa


# TensorFlow


def _of_tensorflow(data: Any, reading: Reading) -> _Frame:
    """Return what a dataset of TensorFlow gives in one pass: the next may be in another order."""
    images: list[object] = []
    labels: list[object] = []
    names = getattr(data, "class_names", None)
    size = 0
    for element in data.as_numpy_iterator():
        for image, label in _pairs(element):
            images.append(image)
            labels.append(_tensor_label(label, names))
            size += len(image) if isinstance(image, bytes) else image.nbytes
        if size > _MOST_TENSOR_BYTES:
            raise DatasetError(
                "the images of the dataset of TensorFlow take more than "
                f"{_MOST_TENSOR_BYTES >> 30} GiB in memory, where they are kept: give the files "
                "that it reads"
            )
    if not images:
        raise DatasetError("no image in the dataset of TensorFlow: expected one element or more")
    what = "the dataset of TensorFlow"
    paths: Sequence[object] = [f"array:{number:06d}" for number in range(len(images))]
    columns: dict[str, Sequence[object]] = {"image": paths}
    if any(label is not None for label in labels):
        columns["label"] = labels
    packed = isinstance(images[0], bytes)
    return _Frame(what, columns, "image", Contents(images) if packed else check_images(images))


def _pairs(element: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the images and labels of an element: a tensor, a pair or a dictionary, or a batch."""
    image, label = element, None
    if isinstance(element, dict):
        lower = {str(name).lower(): value for name, value in element.items()}
        image = next((lower[word] for word in _CONTENT if word in lower), None)
        label = lower.get("label")
        if image is None:
            raise DatasetError(
                "expected an image under the name 'image' in the dataset of TensorFlow, received: "
                f"{', '.join(map(str, element))}"
            )
    elif isinstance(element, tuple):
        image, label = (*element, None)[:2]
    if isinstance(image, np.ndarray) and image.ndim in (1, 4):
        yield from zip(image, [None] * len(image) if label is None else label, strict=True)
    else:
        yield image, label


def _tensor_label(label: Any, names: Sequence[str] | None) -> object:
    if label is None:
        return None
    value = np.asarray(label)
    # One-hot labels have a 1 for their class.
    plain = int(value.argmax()) if value.size > 1 else value.item()
    if isinstance(plain, bytes):
        return plain.decode("utf-8", "replace")
    return names[int(plain)] if names is not None and isinstance(plain, int) else plain


_OF: Mapping[str, Callable[[Any, Reading], _Frame]] = {
    "pandas": _of_pandas,
    "polars": _of_polars,
    "pyarrow": _of_arrow,
    "datasets": _of_datasets,
    "tensorflow": _of_tensorflow,
}
