"""What a user may give as data, told apart without reading it; and images that come as objects.

These lie in memory, in ``.npz`` and in HDF5 files of anybody's making.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np

from featx.exceptions import DatasetError, ImageError
from featx.files.claims import UnsafeFileError, missing_path_error, reading_data
from featx.files.stores import address_name, as_address, is_bucket, shown
from featx.images.containers import sniff
from featx.images.decode import is_known_format
from featx.images.files import (
    ARCHIVES,
    ARROW_FILES,
    MAX_FILE_BYTES,
    AnyArray,
    ImageSource,
    Listing,
    archive_ending,
    is_image_name,
    local_path,
)
from featx.images.labels import as_text, split_of
from featx.images.limits import check_array
from featx.images.scan import images_below, is_cache, is_ignored

if TYPE_CHECKING:
    import h5py
    from PIL import Image

    from featx.files.safe_npy import NpzFile

Kind = Literal[
    "dataset",
    "folder",
    "store",
    "table",
    "frame",
    "packed",
    "archives",
    "parquet",
    "files",
    "arrays",
]
_TABLES = (".csv", ".tsv")
_LONGEST_PATH = 4096
_IMAGES = ("x", "X", "images", "image", "data")
_LABELS = ("y", "Y", "labels", "label", "targets")
_SPLITS = ("split", "splits")
_ORDER = ("train", "val", "test", "")
_RANKS = (3, 4)
_CHANNELS = (1, 3, 4)
_MOST_CHUNK_BYTES = 1 << 30
# Black pixels shrink to a thousandth, labels do not.
_PIXELS_RATIO, _LABELS_RATIO = 1100, 200


@dataclass(frozen=True, kw_only=True)
class Source:
    """Data of a recognised kind: a folder or file, image files, or pictures and arrays."""

    kind: Kind
    path: Path = Path()
    address: str = ""  # in the place of a path
    paths: Sequence[str] = ()
    strays: Sequence[tuple[str, str]] = ()  # files of folders that are no images, and why
    images: object = None


def recognise(data: object) -> Source:
    """Return what was given as data: one path, or image files, folders, pictures or arrays."""
    if is_frame(data):
        return Source(kind="frame", images=data)
    if isinstance(data, Iterator) and not is_picture(data):
        data = list(data)
    pictures = listed_pictures(data)
    if pictures is not None:
        return Source(kind="arrays", images=pictures)
    paths = listed_paths(data)
    if paths is not None:
        texts = list(map(_path_text, paths))
        if all(map(archive_ending, texts)):
            return _archives(texts)
        strays: list[tuple[str, str]] = []
        below = (images_below(text, strays) if Path(text).is_dir() else [text] for text in texts)
        files = [path for expanded in below for path in expanded]
        return Source(kind="files", paths=files, strays=strays)
    if isinstance(data, np.ndarray | list | tuple):
        return Source(kind="arrays", images=data)
    if isinstance(data, bytes):
        data = _path_text(data)
    if not isinstance(data, str | os.PathLike):
        raise DatasetError(
            "expected a folder, a table, an archive, an array file, images or arrays, received "
            f"{type(data).__name__}"
        )
    if address := as_address(data):
        return _recognise_address(address)
    path = Path(data)
    if path.is_dir():
        shards = _shards_in(path)
        return replace(_archives(shards), path=path) if shards else Source(kind="folder", path=path)
    if archive_ending(path.name):
        return _archives([str(path)])
    if not path.exists():
        raise missing_path_error(path, f"no such file or folder: {str(path)!r}")
    if path.suffix.lower() in _TABLES:
        return Source(kind="table", path=path)
    if path.suffix.lower() in READERS:
        return Source(kind="packed", path=path)
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise DatasetError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if is_image_name(path.name) or sniff(head):
        return Source(kind="files", path=path, paths=[str(path)])
    raise DatasetError(
        "expected a folder, a .csv or .tsv table, a .tar or .zip archive, a .npz or .h5 file, or "
        f"an image, received {str(path)!r}"
    )


def _recognise_address(address: str) -> Source:
    """Return what lies behind an address, by its name."""
    name = address_name(address)
    if name.lower().endswith(_TABLES):
        return Source(kind="table", address=address)
    if is_image_name(name):
        return Source(kind="files", address=address, paths=[address])
    if archive_ending(name) or name.lower().endswith(tuple(READERS)):
        raise DatasetError(
            f"expected images, a folder of a bucket or a table, received {shown(address)!r}: copy "
            "this file to a disk first"
        )
    if not is_bucket(address):
        raise DatasetError(
            f"expected the address of an image or of a .csv or .tsv table, received "
            f"{shown(address)!r}: a web server lists no folders; give a table with addresses, or "
            "a folder of a bucket (s3://, gs://, az://)"
        )
    return Source(kind="store", address=address)


def _shards_in(folder: Path) -> list[str]:
    """Return the archives in a folder, sorted; none where images or folders lie beside them."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_ignored(entry.name):
                    continue
                if is_image_name(entry.name) or (entry.is_dir() and not is_cache(entry.path)):
                    return []
                if archive_ending(entry.name):
                    names.append(entry.path)
    except OSError:
        return []
    return sorted(names)


def _archives(paths: list[str]) -> Source:
    """Return archives, or files of tables that may hold images, all of one kind."""
    tables = {ARCHIVES[archive_ending(path)] in ARROW_FILES for path in paths}
    if len(tables) > 1:
        raise DatasetError(
            "expected archives or Parquet files, received some of both: give them one after another"
        )
    return Source(kind="parquet" if tables.pop() else "archives", paths=paths)


def is_frame(data: object) -> bool:
    """Return whether data are a table of another library, or a dataset of one.

    A single column of pandas or polars is none: it is a list of paths or images.
    """
    kind = library_of(data)
    if kind in ("pandas", "polars"):
        return type(data).__name__ == "DataFrame" and len(data.columns) > 1  # type: ignore[attr-defined]
    if kind == "pyarrow":
        return type(data).__name__ == "Table"
    if kind == "datasets":
        return type(data).__name__ in ("Dataset", "DatasetDict")
    return kind == "tensorflow" and hasattr(data, "as_numpy_iterator")


def library_of(data: object) -> str:
    """Return the package that a class of data, or one above it, is of."""
    return next((c.__module__.partition(".")[0] for c in type(data).__mro__[:-1]), "")


def is_collection(path: str) -> bool:
    """Return whether a file is a table of images, or holds arrays of them."""
    return Path(path).suffix.lower() in (*_TABLES, *READERS) and os.path.isfile(path)


def listed_paths(data: object) -> list[Any] | None:
    """Return the paths in a list, an array, or a column of pandas or polars; None for no path.

    An array has the shape (n,) or (n, 1). The paths are not checked one by one.

    >>> listed_paths(np.array([[b"a.jpg"], [b"b.jpg"]]))
    [b'a.jpg', b'b.jpg']
    """
    items = _items(data)
    return items if items is not None and any(map(_is_path, items)) else None


def listed_pictures(data: object) -> list[object] | None:
    """Return PIL images, contents of image files and open files, one or several; None for others.

    They are not checked one by one.
    """
    if is_picture(data):
        return [data]
    items = _items(data)
    return items if items and is_picture(items[0]) else None


def is_picture(value: object) -> bool:
    """Return whether this is a PIL image, the content of an image file, or an open file."""
    if isinstance(value, bytes):
        # Paths have no null byte, and none is as long as this; text-only PPM files have lines.
        return (
            b"\0" in value
            or len(value) > _LONGEST_PATH
            or (b"\n" in value and sniff(value) == "PPM")
        )
    if isinstance(value, bytearray | memoryview) or is_pil(value):
        return True
    return hasattr(value, "read") and hasattr(value, "seek") and not isinstance(value, os.PathLike)


def is_pil(value: object) -> TypeGuard[Image.Image]:
    """Return whether this is a PIL image."""
    return hasattr(value, "getbands")


def _items(data: Any) -> list[object] | None:
    """Return the items of a list, or of a column of text, bytes or objects."""
    if hasattr(data, "to_pylist") and not hasattr(data, "columns"):  # a column of pyarrow
        return list(data.to_pylist())
    if hasattr(data, "to_numpy") and hasattr(data, "shape"):
        # One row tells whether a wide table holds paths, without a copy of it.
        data = np.asarray((data if data.shape[1:] in ((), (1,)) else data[:1]).to_numpy())
    if isinstance(data, np.ndarray):
        if data.dtype.kind not in "USTO" or data.ndim not in (1, 2):
            return None
        if data.shape[1:] not in ((), (1,)):
            if any(map(_is_path, data[:1].flat)):
                raise DatasetError(
                    f"expected one column of paths, received {data.shape[1]} columns: select the "
                    "one with the paths"
                )
            return None
        return list(data.ravel().tolist())
    if not isinstance(data, list | tuple):
        return None
    rows = [row for row in data if isinstance(row, list | tuple | np.ndarray)]
    single = all(getattr(row, "ndim", 1) == 1 and len(row) == 1 for row in rows)
    return [row[0] for row in rows] if rows and single and len(rows) == len(data) else list(data)


def _is_path(value: object) -> TypeGuard[str | bytes | os.PathLike[str]]:
    return isinstance(value, str | bytes | os.PathLike) and not is_picture(value)


def check_paths(paths: Iterable[object]) -> list[str]:
    """Return paths as text, with ``/`` on every system."""
    if isinstance(paths, str | bytes | os.PathLike):
        raise DatasetError(f"expected a list of paths, received one: {paths!r}; give [path]")
    items = list(paths)
    if not items:
        raise DatasetError("expected at least one path, received none")
    return [_path_text(item) for item in items]


def _path_text(item: object) -> str:
    if isinstance(item, bytes) and is_picture(item):
        raise DatasetError(
            "expected a path, received the content of a file: give a list of paths only, or a list "
            "of images only"
        )
    text = os.fsdecode(item) if _is_path(item) else ""
    if not text:
        raise DatasetError(f"expected a path, received {type(item).__name__}: {str(item)[:80]!r}")
    text = local_path(text)
    return text.replace("\\", "/") if os.sep == "\\" and not as_address(text) else text


# Images that are objects


def check_images(images: object) -> ImageSource:
    """Return images, as `ImageDataset.from_arrays` takes them, as an array or a list."""
    if is_picture(images):
        images = [images]
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        items = [_as_picture(image) for image in images]
        for i, image in enumerate(items):
            if not isinstance(image, np.ndarray):
                continue
            if image.ndim not in (2, 3):
                received = image.shape if image.ndim else type(images[i]).__name__
                raise DatasetError(
                    f"expected images of shape (h, w) or (h, w, c), received {received} at {i}"
                )
            _check_layout((1, *image.shape), image.dtype)
        if not items:
            raise DatasetError("no images: expected at least one image, received an empty list")
        return items
    array = np.asarray(images)
    _check_layout(array.shape, array.dtype)
    return array


def listed(
    images: ImageSource, labels: Iterable[object] | None = None, splits: list[str] | None = None
) -> Listing:
    """Return images that are arrays under the names ``array:000000`` and so on."""
    paths = [f"array:{i:06d}" for i in range(len(images))]
    return Listing(paths=paths, labels=labels, splits=splits, arrays=images)


def as_stack(images: AnyArray) -> AnyArray:
    """Return one array image (h, w, c) as (1, h, w, c), and anything else as it is."""
    if images.ndim != 3:
        return images
    n, height, width = images.shape
    if width in _CHANNELS:
        return images[np.newaxis]
    if n in (3, 4):
        raise DatasetError(
            f"an array of shape {images.shape} is {n} grey pictures of {height}x{width} or one "
            "channels-first picture: use array[..., None] for the first, "
            "array.transpose(1, 2, 0) for the second"
        )
    return images


def _as_picture(image: Any) -> object:
    """Return the bytes of an image file, a PIL image, an array, or why there is none of them."""
    if not is_picture(image):
        return np.asarray(image)
    try:
        if is_pil(image):
            return _original(image)
        return _read_open(image, "the file") if hasattr(image, "read") else bytes(image)
    except ImageError as error:
        # One image that cannot be read fails alone, as a file does.
        return error


def _original(image: Any) -> object:
    """Return the bytes of the file from which a PIL image will be loaded, or the image itself."""
    # Pillow lets go of the file when it loads the pixels, which may then be changed.
    if getattr(image, "fp", None) is None:
        if getattr(image, "tile", None):
            raise ImageError(
                "a PIL image was closed before it was loaded: open it again, or call its load() "
                "before it is closed"
            )
        return image
    if not is_known_format(image.format):
        raise ImageError(
            f"a PIL image of format {image.format} is not loaded yet, and featx does not decode "
            "this format: call its load() first, or save it as PNG"
        )
    # Another page, or a size that the user asked the decoder for, is not what the file gives.
    if image.tell() or getattr(image, "decoderconfig", ()):
        return image
    if image.filename:
        # Pillow opened the file, and closes it when it loads the image: here that never happens.
        weakref.finalize(image, image.fp.close)
    return _read_open(image.fp, "the file of a PIL image")


def _read_open(file: IO[bytes], what: str) -> bytes:
    """Return the whole content of an open file, and leave it where it stands."""
    try:
        position = file.tell()
        file.seek(0)
        content = file.read(MAX_FILE_BYTES + 1)
        file.seek(position)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{what} cannot be read from its start ({error}): give its content, as bytes"
        ) from error
    if not isinstance(content, bytes):
        raise ImageError(f"{what} is open as text: open it with mode 'rb'")
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"{what} is too large: the limit is {MAX_FILE_BYTES:,} bytes")
    return content


def read_npz(path: Path) -> Listing:
    """Return images and labels of a ``.npz`` file: ``x`` and ``y``, ``x_train``, ``y_train`` ..."""
    from featx.files.safe_npy import open_npz

    with reading_data(path, ".npz without pickle"), open_npz(path, most_ratio=_PIXELS_RATIO) as npz:
        images, labels, splits = (_first(npz.names, names) for names in (_IMAGES, _LABELS, _SPLITS))
        if images is None:
            return _joined(npz)
        return listed(
            check_images(npz.read(images)),
            labels=None if labels is None else npz.read(labels),
            splits=None if splits is None else _split_column(npz.read(splits)),
        )


def _first(names: Iterable[str], candidates: Iterable[str]) -> str | None:
    present = set(names)
    return next((name for name in candidates if name in present), None)


def _joined(npz: NpzFile) -> Listing:
    """Return the images of all splits, whose arrays have names such as ``x_train``."""
    parts: list[AnyArray] = []
    labels: list[object] = []
    splits: list[str] = []
    for split, name in _split_arrays(npz):
        part = npz.read(name)
        _check_layout(part.shape, part.dtype)
        parts.append(part)
        splits += [split] * len(part)
        forms = (form for y in _LABELS for form in (f"{y}_{split}", f"{split}_{y}"))
        y_name = _first(npz.names, forms)
        y = [None] * len(part) if y_name is None else np.ravel(npz.read(y_name)).tolist()
        if len(y) != len(part):
            raise UnsafeFileError(f"{len(part)} images in {name!r}, {len(y)} labels in {y_name!r}")
        labels += y
    if not parts:
        raise UnsafeFileError(
            "expected images under the name x, X or images (or x_train, x_test), found: "
            f"{', '.join(npz.names) or 'nothing'}"
        )
    same = len({(part.shape[1:], part.dtype) for part in parts}) == 1
    pixels = np.concatenate(parts) if same else [image for part in parts for image in part]
    labelled = any(label is not None for label in labels)
    return listed(check_images(pixels), labels=labels if labelled else None, splits=splits)


def _split_arrays(npz: NpzFile) -> list[tuple[str, str]]:
    """Return the name of each split and of its images: ``x_train``, ``test_images`` ..."""
    arrays: dict[str, str] = {}
    for name in npz.names:
        for images in _IMAGES:
            for split in (name.removeprefix(f"{images}_"), name.removesuffix(f"_{images}")):
                # Such as data_mean lies beside images, and is none.
                if split != name and (split_of(split) or len(npz.header(name).shape) in _RANKS):
                    arrays.setdefault(split, name)
    return sorted(arrays.items(), key=lambda pair: (_ORDER.index(split_of(pair[0])), pair[0]))


def _split_column(values: AnyArray) -> list[str]:
    return [as_text(v.decode() if isinstance(v, bytes) else v) for v in np.ravel(values).tolist()]


def read_hdf5(path: Path, *, images: str | None = None, labels: str | None = None) -> Listing:
    """Return labels and images of an HDF5 file, which are read row by row when asked for."""
    import h5py

    from featx.files.safe_hdf5 import check_stored, hdf5_dataset, hdf5_datasets

    def whole(name: str) -> AnyArray:
        dataset = hdf5_dataset(file, name)
        check_stored(dataset, most_chunk_bytes=_MOST_CHUNK_BYTES, most_ratio=_LABELS_RATIO)
        values: AnyArray = dataset[()]
        return values

    with reading_data(path, "HDF5"), h5py.File(path, "r", locking=False) as file:
        names = list(file)
        images = images or _first(names, _IMAGES)
        if images is None:
            fitting = [name for name, rank in hdf5_datasets(file).items() if rank in _RANKS]
            if len(fitting) != 1:
                raise DatasetError(
                    f"expected images under the name x, X or images in {str(path)!r}, found: "
                    f"{', '.join(names) or 'nothing'}; name the data set with images=..."
                )
            images = fitting[0]
        dataset = hdf5_dataset(file, images)
        _check_layout(dataset.shape, dataset.dtype)
        check_stored(dataset, most_chunk_bytes=_MOST_CHUNK_BYTES, most_ratio=None)
        n = int(dataset.shape[0])
        labels = labels or _first(names, _LABELS)
        if labels is not None and hdf5_dataset(file, labels).shape not in ((n,), (n, 1)):
            raise DatasetError(
                f"expected {n} labels in {labels!r} of {str(path)!r}, received shape "
                f"{hdf5_dataset(file, labels).shape}"
            )
        splits = _first(names, _SPLITS)
        return listed(
            Hdf5Images(path, images, n),
            labels=None if labels is None else np.ravel(whole(labels)),
            splits=None if splits is None else _split_column(whole(splits)),
        )


class Hdf5Images:
    """The `n` images of a data set in an HDF5 file, read one at a time, from any thread."""

    def __init__(self, file: Path, name: str, n: int) -> None:
        self.file, self.name, self.n = file.absolute(), name, n
        self._lock = threading.Lock()
        self._dataset: h5py.Dataset | None = None

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> AnyArray:
        import h5py

        from featx.files.safe_hdf5 import hdf5_dataset

        with self._lock:
            if self._dataset is None:
                self._dataset = hdf5_dataset(h5py.File(self.file, "r", locking=False), self.name)
            image: AnyArray = self._dataset[index]
        return image

    def __repr__(self) -> str:
        return f"Hdf5Images({str(self.file)!r}, {self.name!r}, {self.n})"

    def __reduce__(self) -> tuple[type[Hdf5Images], tuple[Path, str, int]]:
        return Hdf5Images, (self.file, self.name, self.n)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._lock:
            if self._dataset is not None:
                self._dataset.file.close()
                self._dataset = None


def _check_layout(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    # Which numbers are too many depends on the window, if there is one.
    if dtype.kind not in "biuf":
        raise DatasetError(f"expected pixels of integers, bool or floats, received {dtype}")
    if len(shape) not in _RANKS or (len(shape) == 4 and shape[3] not in _CHANNELS):
        hint = ""
        if len(shape) == 4 and shape[1] in _CHANNELS:
            hint = ": channels come last here, use .transpose(0, 2, 3, 1)"
        elif len(shape) == 2:
            hint = ": give one image as array[None]"
        raise DatasetError(
            f"expected images of shape (n, h, w) or (n, h, w, c) with c of 1, 3 or 4, received "
            f"{shape}{hint}"
        )
    if 0 in shape:
        raise DatasetError(f"no images: received an array of shape {shape}")
    try:
        check_array(shape[1:3], [])
    except ImageError as error:
        raise DatasetError(str(error)) from error


READERS: Mapping[str, Callable[[Path], Listing]] = {
    ".npz": read_npz,
    ".h5": read_hdf5,
    ".hdf": read_hdf5,
    ".hdf5": read_hdf5,
}
"""Files that hold many images, by the end of their names."""
