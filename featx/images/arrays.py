"""Images that come as objects: in memory, in ``.npz`` and in HDF5 files of anybody's making."""

from __future__ import annotations

import math
import threading
import weakref
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, ImageError
from featx.images.files import MAX_FILE_BYTES, missing_path_error
from featx.images.labels import as_text
from featx.images.limits import MOST_PIXELS
from featx.images.pixels import check_float_range
from featx.images.sources import is_picture
from featx.images.split_names import split_of

_IMAGES = ("x", "X", "images", "image", "data")
_LABELS = ("y", "Y", "labels", "label", "targets")
_SPLITS = ("split", "splits")
_ORDER = ("train", "val", "test", "")
_LEAST_RANK = 3
_MAX_CHUNK_BYTES = 1 << 30


class ImageSource(Protocol):
    """Anything that gives array images by position."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return one image as an array."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArrayTable:
    """Images with the labels and splits that were stored beside them."""

    images: ImageSource
    labels: Any = None
    splits: list[str] | None = None


def check_images(images: Any) -> ImageSource:
    """Check that images have a rank and a type that can be pixels.

    Parameters
    ----------
    images : ndarray of shape (n, h, w) or (n, h, w, c), or sequence
        Pixels of uint8, bool, uint16, or floats in [0, 1]; c is 1, 3 or 4. A sequence may hold
        arrays of different sizes, PIL images, contents of image files, and open files.

    Returns
    -------
    ImageSource
        The array itself, or a list of arrays, bytes of image files, and PIL images in memory.

    Raises
    ------
    DatasetError
        For another rank, number of channels, type or range, or no images at all.
    """
    if is_picture(images):
        images = [images]
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        listed = [_as_picture(image) for image in images]
        for i, image in enumerate(listed):
            if not isinstance(image, np.ndarray):
                continue
            if image.ndim not in (2, 3):
                received = image.shape if image.ndim else type(images[i]).__name__
                raise DatasetError(
                    f"expected images of shape (h, w) or (h, w, c), received {received} at {i}"
                )
            _check_layout((1, *image.shape), image.dtype)
        if not listed:
            raise DatasetError("no images: expected at least one image, received an empty list")
        return listed
    array = np.asarray(images)
    _check_layout(array.shape, array.dtype)
    if array.dtype.kind == "f":
        # A wrong scale is a mistake in all images: better said once than in a row each.
        try:
            check_float_range(array)
        except ImageError as error:
            raise DatasetError(str(error)) from error
    return array


def as_stack(images: Any) -> Any:
    """Return one array image (h, w, c) as (1, h, w, c), and anything else as it is.

    Raises
    ------
    DatasetError
        If an array may be one image with its channels first, or several grey ones.
    """
    if not isinstance(images, np.ndarray) or images.ndim != 3:
        return images
    n, height, width = images.shape
    if width in (1, 3, 4):
        return images[np.newaxis]
    if n in (3, 4):
        raise DatasetError(
            f"an array of shape {images.shape} is {n} grey pictures of {height}x{width} or one "
            "channels-first picture: use array[..., None] for the first, "
            "array.transpose(1, 2, 0) for the second"
        )
    return images


def _as_picture(image: Any) -> Any:
    """Return the bytes of an image file, a PIL image, an array, or why there is none of them."""
    if not is_picture(image):
        return np.asarray(image)
    try:
        if hasattr(image, "getbands"):
            return _original(image)
        return _read_open(image, "the file") if hasattr(image, "read") else bytes(image)
    except ImageError as error:
        # One image that cannot be read fails alone, as a file does.
        return error


def _original(image: Any) -> Any:
    """Return the bytes of the file from which a PIL image will be loaded, or the image itself."""
    from featx.images.opening import is_known_format

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


def _read_open(file: Any, what: str) -> bytes:
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


def read_npz(file: Path) -> ArrayTable:
    """Read images and labels from a ``.npz`` file, without pickle.

    Names that are understood: ``x`` or ``images`` with ``y`` or ``labels``; ``x_train``,
    ``y_train``, ``x_val``, ``x_test``, ... ; ``train_images``, ``train_labels``, ...

    Raises
    ------
    DatasetError
        If the file is missing, damaged, holds objects, or none of those names.
    """
    try:
        # Opened here, as NumPy leaves a damaged archive open.
        with file.open("rb") as opened:
            stored = np.load(opened, allow_pickle=False)
            if not isinstance(stored, Mapping):
                raise DatasetError(f"expected a .npz archive, received one array: {str(file)!r}")
            return _from_names(file, stored)
    except FileNotFoundError as error:
        raise missing_path_error(file, f"no such file: {str(file)!r}") from error
    except MemoryError as error:
        raise DatasetError(f"{str(file)!r} does not fit into memory: use HDF5") from error
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"cannot read {str(file)!r} as .npz without pickle: {error}") from error


def _from_names(file: Path, stored: Mapping[str, NDArray[Any]]) -> ArrayTable:
    images = next((name for name in _IMAGES if name in stored), None)
    if images is not None:
        labels = next((name for name in _LABELS if name in stored), None)
        split_at = next((name for name in _SPLITS if name in stored), None)
        pixels = check_images(stored[images])
        return ArrayTable(
            images=pixels,
            labels=None if labels is None else stored[labels],
            splits=None if split_at is None else _split_column(stored[split_at]),
        )
    parts: list[NDArray[Any]] = []
    labels_of: list[Any] = []
    splits: list[str] = []
    for key, at in _split_arrays(stored):
        part = stored[at]
        _check_layout(part.shape, part.dtype)
        parts.append(part)
        splits += [key] * len(part)
        label_at = _first(stored, _LABELS, key)
        own = [None] * len(part) if label_at is None else np.ravel(stored[label_at]).tolist()
        if len(own) != len(part):
            raise DatasetError(
                f"{str(file)!r}: {len(part)} images in {at!r}, {len(own)} labels in {label_at!r}"
            )
        labels_of += own
    if not parts:
        raise DatasetError(
            f"expected images under the name x, X or images (or x_train, x_test) in {str(file)!r}, "
            f"found: {', '.join(stored) or 'nothing'}"
        )
    same = len({(part.shape[1:], part.dtype) for part in parts}) == 1
    pixels = np.concatenate(parts) if same else [image for part in parts for image in part]
    labelled = any(label is not None for label in labels_of)
    return ArrayTable(
        images=check_images(pixels), labels=labels_of if labelled else None, splits=splits
    )


def _split_arrays(stored: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the name of each split and of its images: ``x_train``, ``test_images`` ..."""
    found: dict[str, str] = {}
    for name in stored:
        for images in _IMAGES:
            for key in (name.removeprefix(f"{images}_"), name.removesuffix(f"_{images}")):
                # Such as data_mean lies beside images, and is none.
                if key != name and (split_of(key) or stored[name].ndim >= _LEAST_RANK):
                    found.setdefault(key, name)
    return sorted(found.items(), key=lambda pair: (_ORDER.index(split_of(pair[0])), pair[0]))


def _split_column(values: NDArray[Any]) -> list[str]:
    return [as_text(v.decode() if isinstance(v, bytes) else v) for v in np.ravel(values).tolist()]


def _first(stored: Mapping[str, Any], names: Sequence[str], split: str) -> str | None:
    both = (form for name in names for form in (f"{name}_{split}", f"{split}_{name}"))
    return next((form for form in both if form in stored), None)


def read_hdf5(file: Path, *, images: str | None = None, labels: str | None = None) -> ArrayTable:
    """Find images and labels in an HDF5 file; images are read row by row when asked for.

    Parameters
    ----------
    file : Path
        The file. Opened without a lock.
    images, labels : str or None, default None
        Names of the data sets; by default the usual names, or the only one of rank 3 or 4.

    Raises
    ------
    DatasetError
        If the file is missing, damaged, holds no images, or keeps data outside itself (external
        links, external storage, virtual data sets), which could make it read other files.
    """
    import h5py

    if not file.exists():
        raise missing_path_error(file, f"no such file: {str(file)!r}")
    try:
        with h5py.File(file, "r", locking=False) as opened:
            names = list(opened)
            if images is None:
                images = next((name for name in _IMAGES if name in names), None)
            if images is None:
                ranks = {n: len(_dataset(opened, n, file).shape) for n in _datasets(opened)}
                fitting = [name for name, rank in ranks.items() if rank in (3, 4)]
                if len(fitting) != 1:
                    raise DatasetError(
                        f"expected images under the name x, X or images in {str(file)!r}, found: "
                        f"{', '.join(names) or 'nothing'}; name the data set with images=..."
                    )
                images = fitting[0]
            found = _dataset(opened, images, file)
            _check_layout(found.shape, found.dtype)
            chunk_bytes = math.prod(found.chunks or (1,)) * found.dtype.itemsize
            if chunk_bytes > _MAX_CHUNK_BYTES:
                raise DatasetError(f"{images!r} in {str(file)!r} has chunks of {chunk_bytes} bytes")
            n = int(found.shape[0])
            if labels is None:
                labels = next((name for name in _LABELS if name in names), None)
            values = None
            if labels is not None:
                stored = _dataset(opened, labels, file)
                if stored.shape not in ((n,), (n, 1)):
                    raise DatasetError(
                        f"expected {n} labels in {labels!r} of {str(file)!r}, received shape "
                        f"{stored.shape}"
                    )
                values = np.ravel(stored[()])
            split_at = next((name for name in _SPLITS if name in names), None)
            splits = None
            if split_at is not None:
                splits = _split_column(_dataset(opened, split_at, file)[()])
    except OSError as error:
        raise DatasetError(f"cannot read {str(file)!r} as HDF5: {error}") from error
    return ArrayTable(images=Hdf5Images(file, images, n), labels=values, splits=splits)


class Hdf5Images:
    """Images of an HDF5 file, read one at a time; may be used from many threads.

    Parameters
    ----------
    file : Path
        The file, opened at the first read.
    name : str
        The data set, of shape (n, h, w) or (n, h, w, c).
    n : int
        Number of images.
    """

    def __init__(self, file: Path, name: str, n: int) -> None:
        self.file, self.name, self.n = file.absolute(), name, n
        self._lock = threading.Lock()
        self._opened: Any = None

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> NDArray[Any]:
        import h5py

        with self._lock:
            if self._opened is None:
                opened = h5py.File(self.file, "r", locking=False)
                self._opened = _dataset(opened, self.name, self.file)
            image: NDArray[Any] = self._opened[index]
        return image

    def __repr__(self) -> str:
        return f"Hdf5Images({str(self.file)!r}, {self.name!r}, {self.n})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Hdf5Images, (self.file, self.name, self.n)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._lock:
            if self._opened is not None:
                self._opened.file.close()
                self._opened = None


def _datasets(opened: Any) -> list[str]:
    import h5py

    hard = [name for name in opened if isinstance(opened.get(name, getlink=True), h5py.HardLink)]
    return [name for name in hard if isinstance(opened[name], h5py.Dataset)]


def _dataset(opened: Any, name: str, file: Path) -> Any:
    """Return a data set whose bytes lie in this very file."""
    import h5py

    node = opened
    for part in name.strip("/").split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise DatasetError(
                f"no {name!r} in {str(file)!r}, found: {', '.join(opened) or 'nothing'}"
            )
        if not isinstance(link, h5py.HardLink):
            raise DatasetError(
                f"{name!r} in {str(file)!r} is a link ({type(link).__name__}), which may lead out "
                "of the file: copy the data into it"
            )
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise DatasetError(f"{name!r} in {str(file)!r} is a group: expected a data set of images")
    if node.is_virtual or node.external:
        raise DatasetError(
            f"{name!r} in {str(file)!r} keeps its data in other files: copy the data into it"
        )
    return node


def _check_layout(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "f" and dtype not in (np.uint8, np.bool_, np.uint16):
        hint = "; convert 0 to 255 with .astype('uint8')" if dtype.kind in "iu" else ""
        raise DatasetError(
            f"expected pixels of uint8, bool, uint16 or floats in [0, 1], received {dtype}{hint}"
        )
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        hint = ""
        if len(shape) == 4 and shape[1] in (1, 3, 4):
            hint = ": channels come last here, use .transpose(0, 2, 3, 1)"
        elif len(shape) == 2:
            hint = ": give one image as array[None]"
        raise DatasetError(
            f"expected images of shape (n, h, w) or (n, h, w, c) with c of 1, 3 or 4, received "
            f"{shape}{hint}"
        )
    if 0 in shape:
        raise DatasetError(f"no images: received an array of shape {shape}")
    if shape[1] * shape[2] > MOST_PIXELS:
        raise DatasetError(
            f"too large: images of {shape[2]}x{shape[1]} pixels, the limit is {MOST_PIXELS} pixels"
        )
