"""`ImageDataset`: an ordered list of images, made from whatever holds them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.exceptions import DatasetError, ImageError
from featx.files.stores import address_name, as_address, below, is_bucket, parent, shown
from featx.images.archives import archive_name, archive_paths, read_archives
from featx.images.files import ImageData, ImageSource, Listing, PackedImages, SomeImages, read_file
from featx.images.frames import arrow_images, read_arrow_files, read_frame
from featx.images.labels import SplitNames, as_text, check_names, encode_labels, read_splits
from featx.images.reading import Reading, StrPath
from featx.images.remote import linked, list_store
from featx.images.scan import scan_folder
from featx.images.sources import (
    READERS,
    Source,
    as_stack,
    check_images,
    check_paths,
    is_pil,
    listed,
    read_hdf5,
    read_npz,
    recognise,
)
from featx.images.tables import check_one_label, read_table

_NO_FOLDER = Path()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageDataset:
    """An ordered list of images (files or arrays) with their labels, splits and groups.

    Made by `from_folder`, `from_csv`, `from_paths`, `from_arrays`, `from_npz`, `from_hdf5`, or
    `from_any`, which finds out. Nothing is decoded here, and missing or damaged files are no error:
    they end in the ledger of the extraction.

    Parameters
    ----------
    name : str
        What the data are called in the cache and in messages.
    paths : tuple of str
        One an image, with ``/``: relative to `root` when there is one, as given otherwise;
        ``array:000000`` and so on for arrays.
    root : Path, str or None, default None
        Folder that relative paths start from; text for the address of one.
    classes : tuple of str or None, default None
        Names of the classes, in the order of their indices.
    labels : ndarray of shape (n,), int32, or None, default None
        Index of each image's class, -1 for no label.
    groups : tuple of str or None, default None
        One an image, ``""`` for none.
    splits : tuple of str or None, default None
        ``train``, ``val``, ``test`` or ``""`` an image; any usual name of these is understood.
    strays : tuple of str, default ()
        Files that were found beside the images and are not used.
    stray_reasons : tuple of str, default ()
        Why, one a stray.
    empty_classes : tuple of str, default ()
        Folders in the place of a class without any image.
    split_names : tuple of (name, split), default ()
        What each name of a split was taken for.
    notes : tuple of str, default ()
        What was decided about the data that could have been decided otherwise.
    arrays : ImageSource or None, default None
        Where images come from that are arrays, or lie in an archive; None for files.
    rows : ndarray of shape (n,), int64, or None, default None
        Position of each image in `arrays` that are arrays; None for all in order.
    column : str, default ""
        Of a Parquet or Arrow file, the column in which the images lie.

    Examples
    --------
    >>> data = ImageDataset.from_paths(["a.jpg", "b.jpg", "c.jpg"], ["cat", "dog", "cat"])
    >>> data
    ImageDataset('paths', 3 images, 2 classes: cat 2, dog 1)
    >>> data.labels.tolist(), data.y.tolist()
    ([0, 1, 0], ['cat', 'dog', 'cat'])
    >>> data.subset([2]).paths
    ('c.jpg',)
    """

    name: str
    paths: tuple[str, ...]
    root: Path | str | None = None
    classes: tuple[str, ...] | None = None
    labels: NDArray[np.int32] | None = None
    groups: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    strays: tuple[str, ...] = ()
    stray_reasons: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()
    split_names: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    arrays: ImageSource | None = None
    rows: NDArray[np.int64] | None = None
    column: str = ""

    def __post_init__(self) -> None:
        n = len(self.paths)
        for what in ("labels", "groups", "splits", "rows"):
            column = getattr(self, what)
            if column is not None and len(column) != n:
                raise DatasetError(f"expected {n} {what}, one an image, received {len(column)}")
        if self.splits is not None:
            splits, names = read_splits(self.splits, what=repr(self.name))
            object.__setattr__(self, "splits", tuple(splits))
            object.__setattr__(self, "split_names", self.split_names or names)
        if (self.labels is None) != (self.classes is None):
            raise DatasetError("expected labels and classes together, received one of them")
        if self.labels is not None and self.classes is not None:
            if len(set(self.classes)) != len(self.classes):
                raise DatasetError(f"expected distinct classes, received {self.classes}")
            labels = np.array(self.labels, dtype=np.int32)
            if n and not (labels.min() >= -1 and labels.max() < len(self.classes)):
                raise DatasetError(f"expected labels from -1 to {len(self.classes) - 1}")
            labels.setflags(write=False)
            object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        parts = [_counted(len(self), "image")]
        if self.classes is None:
            parts.append("unlabelled")
        else:
            counts = [f"{name} {n}" for name, n in self.class_counts().items()]
            more = ", ..." if len(counts) > 6 else ""
            parts.append(f"{_counted(len(counts), 'class')}: {', '.join(counts[:6])}{more}")
            if missing := len(self) - sum(self.class_counts().values()):
                parts.append(f"{missing} without a label")
        if self.splits is not None:
            kinds = sorted(set(self.splits))
            parts.append(", ".join(f"{k or 'no split'} {self.splits.count(k)}" for k in kinds))
        if self.strays:
            parts.append(_counted(len(self.strays), "stray"))
        return f"{type(self).__name__}({self.name!r}, {', '.join(parts)})"

    @property
    def y(self) -> NDArray[np.str_] | None:
        """Class name of each image, shape (n,), ``""`` for no label; None when unlabelled."""
        if self.labels is None or self.classes is None:
            return None
        # The extra last entry is where index -1 leads.
        return np.array([*self.classes, ""], dtype=np.str_)[self.labels]

    def file(self, index: int) -> Path:
        """Return the absolute path of an image file.

        Raises
        ------
        DatasetError
            If the images are arrays.
        """
        if self.arrays is not None:
            what = "in an archive or a store" if isinstance(self.arrays, PackedImages) else "arrays"
            raise DatasetError(f"the images of {self.name!r} are {what}, not files: use image(i)")
        return Path(self.root or "", self.paths[index]).absolute()

    def address(self, index: int) -> str:
        """Return what an image is called where it is told of: with its folder or archive."""
        return below(os.fspath(self.root or ""), self.paths[index])

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file, on a disk or in an archive.

        Raises
        ------
        ImageError
            If the file cannot be read; the reason leaves the path out.
        DatasetError
            If the images are arrays.
        """
        if isinstance(self.arrays, PackedImages):
            return self.arrays[index]
        return read_file(self.file(index))

    def place(self, index: int) -> tuple[Any, ...] | None:
        """Return where an image lies in an archive, None where only `image` reads it."""
        return self.arrays.place(index) if isinstance(self.arrays, PackedImages) else None

    @property
    def in_memory(self) -> bool:
        """Whether the images are arrays, or contents that only this process has."""
        if isinstance(self.arrays, PackedImages):
            return self.arrays.in_memory
        return self.arrays is not None

    def image(self, index: int) -> ImageData:
        """Return an array image as it was given, RGB of a PIL image, or the bytes of an image file.

        Raises
        ------
        ImageError
            If a file that was given open cannot be read, or a PIL image not turned into RGB.
        DatasetError
            If the images are files.
        """
        if self.arrays is None:
            raise DatasetError(f"the images of {self.name!r} are files, not arrays: use read(i)")
        if isinstance(self.arrays, PackedImages):
            return self.read(index)
        image = self.arrays[index if self.rows is None else int(self.rows[index])]
        if isinstance(image, bytes):
            return image
        if isinstance(image, ImageError):
            raise ImageError(str(image))
        if is_pil(image):
            from featx.images.decode import picture_data

            return picture_data(image)
        return np.asarray(image)

    def subset(self, indices: ArrayLike) -> ImageDataset:
        """Return some of the images, in the order given, with the classes unchanged.

        Parameters
        ----------
        indices : array-like of int, or of bool with shape (n,)
            Positions, or a mask.

        Raises
        ------
        DatasetError
            For positions outside the data.
        """
        chosen = np.asarray(indices)
        if chosen.dtype == np.bool_ and chosen.shape != (len(self),):
            raise DatasetError(f"expected a mask of {len(self)} values, received {chosen.shape}")
        try:
            index = np.arange(len(self))[chosen if chosen.size else chosen.astype(np.int64)]
        except IndexError as error:
            raise DatasetError(f"no such image among {len(self)}: {error}") from error
        index = np.atleast_1d(index)
        arrays, rows = self.arrays, self.rows
        if isinstance(arrays, PackedImages):
            arrays = SomeImages(arrays, index.astype(np.int64))
        elif arrays is not None:
            rows = index.astype(np.int64) if rows is None else rows[index]
        return replace(
            self,
            paths=tuple(self.paths[i] for i in index),
            labels=None if self.labels is None else self.labels[index],
            groups=None if self.groups is None else tuple(self.groups[i] for i in index),
            splits=None if self.splits is None else tuple(self.splits[i] for i in index),
            strays=(),
            stray_reasons=(),
            empty_classes=(),
            arrays=arrays,
            rows=rows,
        )

    def detached(self, indices: ArrayLike) -> ImageDataset:
        """Return some of the images without labels, as a value that another process can read.

        Its paths mean the same in another folder.
        """
        some = self.subset(indices)
        root, arrays = self.root, some.arrays
        if isinstance(arrays, PackedImages):
            arrays = arrays.taken(np.arange(len(some)))
        elif arrays is None and root is None:
            root = Path.cwd()
        return ImageDataset(
            name=self.name,
            paths=some.paths,
            root=root,
            arrays=arrays,
            rows=some.rows,
            column=self.column,
        )

    def with_labels(
        self, labels: Iterable[object] | None, *, classes: Sequence[str] | None = None
    ) -> ImageDataset:
        """Return the same images with other labels.

        Parameters
        ----------
        labels : iterable or None
            One an image: str, int, bool or a NumPy array; None, NaN and ``""`` mean no label.
            None alone takes all labels away.
        classes : sequence of str or None, default None
            The classes and their order; by default those that occur, sorted.

        Raises
        ------
        DatasetError
            For another number of labels, or labels that are no classes.
        """
        if labels is None:
            return replace(self, labels=None, classes=None)
        names, indices = encode_labels(labels, len(self), classes=classes)
        return replace(self, labels=indices, classes=names)

    def class_counts(self) -> dict[str, int]:
        """Return the number of images of each class, in the order of the classes."""
        if self.labels is None or self.classes is None:
            return {}
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, counts, strict=True)}

    def require_classes(self, minimum: int = 2) -> None:
        """Check that there is something to tell apart.

        Raises
        ------
        DatasetError
            If fewer than `minimum` classes have an image.
        """
        if self.classes is None:
            raise DatasetError(
                f"expected images of at least {minimum} classes, {self.name!r} has no labels: put "
                "the images into one sub-folder a class, or give a CSV with path,label"
            )
        counts = {name: n for name, n in self.class_counts().items() if n}
        if len(counts) >= minimum:
            return
        classes = ", ".join(f"{name!r} ({n} images)" for name, n in counts.items()) or "none"
        message = f"expected images of at least {minimum} classes, found {len(counts)}: {classes}"
        if self.empty_classes:
            message += f"; without any image: {', '.join(map(repr, self.empty_classes[:5]))}"
        hint = inner_folder(str(self.root or ""), self.paths, self.classes)
        raise DatasetError(
            f"{message}; {hint or 'put the images of each class into a sub-folder of its own'}"
        )

    def digest(self) -> str:
        """Return the SHA-256 of paths, labels, classes, splits and groups, 64 hexadecimal digits.

        Provenance only: it says nothing of the pixels, which have their own keys.
        """
        columns = {name: getattr(self, name) for name in ("paths", "classes", "splits", "groups")}
        columns["labels"] = None if self.labels is None else self.labels.tolist()
        text = json.dumps({"type": "featx-dataset", "version": 1, **columns}, sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @classmethod
    def from_folder(
        cls,
        path: StrPath,
        *,
        labels: Literal["infer", "none"] = "infer",
        splits: SplitNames = None,
    ) -> ImageDataset:
        """Read a folder with one sub-folder a class, images at any depth below it.

        Where sub-folders are named as splits are (``train``, ``seg_test``, ``validation_set``) and
        hold the same folders, they are splits, and the classes are below. So are folders of these
        names in every class. A folder with images only directly in it has no labels. The name of a
        folder is its class, whatever it is: a folder ``NA`` is the class ``NA``.

        Parameters
        ----------
        path : str or path-like
            The folder.
        labels : {"infer", "none"}, default "infer"
            ``none`` takes all images below the folder, without labels.
        splits : mapping of str to str, "none" or None, default None
            Which folders are which split, such as ``{"pilot": "test"}``, beside those that are
            understood; ``"none"``: all folders are classes.

        Raises
        ------
        DatasetError
            If there is no such folder, it cannot be read, or holds no image; if a folder beside
            splits has their classes and no name that means train, val or test.
        """
        if labels not in ("infer", "none"):
            raise DatasetError(f"labels must be 'infer' or 'none', received {labels!r}")
        root = Path(path).absolute()
        listing = scan_folder(root, labels=labels == "infer", names=splits)
        return cls._of(listing, root.resolve().name or "dataset", root=root)

    @classmethod
    def from_csv(
        cls,
        path: StrPath,
        *,
        root: StrPath | None = None,
        multilabel: bool = False,
        splits: SplitNames = None,
        target_columns: Sequence[str] = (),
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        follow_urls: bool = False,
    ) -> ImageDataset:
        """Read a table with a header: ``path,label[,split,group]``, in any order.

        In the place of ``label`` there may be a column of 0 and 1 for each label of several an
        image: ``path,cat,dog,indoor`` is read as labels such as ``cat|indoor``.

        Parameters
        ----------
        path : str or path-like
            A file, or the address of one. UTF-8; commas, semicolons or tabs. Beside a column
            ``label`` other columns are left alone. Without it there are no labels, unless there are
            two or more other columns and all that they have is 0 and 1. An empty label, or a row of
            empty ones, is none; so are ``NaN``, ``NA``, ``null`` and what else pandas reads as
            missing.
        root : str, path-like or None, default None
            Folder, or address of one, that relative paths start from; by default the table's.
        multilabel : bool, default False
            Whether, without a column ``label``, the other columns have to be labels: what is
            neither 0 nor 1 is then an error, which names line, column and value.
        splits : mapping of str to str or None, default None
            What the names in the column ``split`` mean, such as ``{"pilot": "test"}``, beside the
            usual names of train, val and test.
        target_columns : sequence of str, default ()
            Columns of numbers for a regression. They take the place of ``label``, and are then
            labels such as ``age=3.5|mass=7.0``.
        path_column, label_column, split_column, group_column : str or None, default None
            Names of the columns, in any case, where they are not ``path``, ``label``, ``split`` and
            ``group``.
        follow_urls : bool, default False
            Whether images are read whose path is an address, such as ``https://host/1.jpg``.

        Raises
        ------
        DatasetError
            If the table cannot be read, gives one file two labels, or names a split that means
            none of train, val and test. Missing images are no error here.
        """
        reading = Reading(
            root=root,
            multilabel=multilabel,
            splits=splits,
            target_columns=target_columns,
            path_column=path_column,
            label_column=label_column,
            split_column=split_column,
            group_column=group_column,
            follow_urls=follow_urls,
        )
        return cls._of_table(as_address(path) or Path(path), reading)

    @classmethod
    def _of_table(cls, file: Path | str, reading: Reading) -> ImageDataset:
        base = _base(parent(file) if isinstance(file, str) else file.parent, reading)
        listing = linked(
            read_table(file, root=base, reading=reading), base, follow=reading.follow_urls
        )
        name = PurePosixPath(address_name(file)) if isinstance(file, str) else file
        return cls._of(listing, name.stem, reading.splits, root=base, what=name.name)

    @classmethod
    def from_paths(
        cls,
        paths: Iterable[StrPath],
        labels: Iterable[object] | None = None,
        *,
        groups: Iterable[object] | None = None,
        splits: Iterable[object] | None = None,
        name: str | None = None,
        follow_urls: bool = False,
    ) -> ImageDataset:
        """Take a list of image files.

        Parameters
        ----------
        paths : iterable of str or path-like
            Files; relative ones start from the working directory.
        labels, groups, splits : iterable or None, default None
            One a file; None, NaN and empty text are none. A split is any usual name of train, val
            and test.
        name : str or None, default None
            ``"paths"`` by default.
        follow_urls : bool, default False
            As for `from_csv`.

        Raises
        ------
        DatasetError
            If there are no paths, one is no path, one file has two labels, or the lengths differ.
        """
        listing = Listing(
            paths=check_paths(paths),
            labels=labels,
            groups=None if groups is None else list(map(as_text, groups)),
            splits=None if splits is None else list(map(as_text, splits)),
        )
        data = cls._of(linked(listing, "", follow=follow_urls), name or "paths")
        if data.y is not None:
            check_one_label(data.paths, data.y.tolist())
        return data

    @classmethod
    def from_arrays(
        cls, images: object, labels: Iterable[object] | None = None, *, name: str = "arrays"
    ) -> ImageDataset:
        """Take images that are arrays, PIL images, or contents of image files.

        Parameters
        ----------
        images : ndarray of shape (n, h, w), (n, h, w, c) or (h, w, c), or list
            Pixels of uint8, bool, uint16, or floats in [0, 1]; c is 1, 3 or 4. A list may hold
            arrays of different sizes, PIL images, bytes of image files, and files open for
            reading. A PIL image that is not loaded yet has its file's key.
        labels : iterable or None, default None
            One an image.
        name : str, default "arrays"
            What the data are called.

        Raises
        ------
        DatasetError
            For another rank, type or range, or another number of labels.

        Examples
        --------
        >>> import numpy as np
        >>> ImageDataset.from_arrays(np.zeros((2, 8, 8), np.uint8), [7, 10])
        ImageDataset('arrays', 2 images, 2 classes: 7 1, 10 1)
        """
        labels = None if labels is None else list(labels)
        if isinstance(images, np.ndarray) and (labels is None or len(labels) != len(images)):
            images = as_stack(images)
        return cls._of(listed(check_images(images), labels), name)

    @classmethod
    def from_npz(cls, path: StrPath, *, splits: SplitNames = None) -> ImageDataset:
        """Read images and labels from a ``.npz`` file (``x``, ``y``; ``x_train``, ``y_train``...).

        Parameters
        ----------
        path : str or path-like
            The file. Beside ``x`` it may have an array ``split``.
        splits : mapping of str to str or None, default None
            As for `from_csv`.

        Raises
        ------
        DatasetError
            If the file cannot be read without pickle, or holds no images.
        """
        return cls._of(read_npz(Path(path)), Path(path).stem, splits)

    @classmethod
    def from_hdf5(
        cls,
        path: StrPath,
        *,
        images: str | None = None,
        labels: str | None = None,
        splits: SplitNames = None,
    ) -> ImageDataset:
        """Read labels from an HDF5 file, and images row by row when they are asked for.

        Parameters
        ----------
        path : str or path-like
            The file.
        images, labels : str or None, default None
            Names of the data sets; by default ``images``, ``x``, ``labels``, ``y`` ...
        splits : mapping of str to str or None, default None
            As for `from_csv`, of the names in a data set ``split``.

        Raises
        ------
        DatasetError
            If the file is damaged, holds no images, or keeps its data in other files.
        """
        listing = read_hdf5(Path(path), images=images, labels=labels)
        return cls._of(listing, Path(path).stem, splits)

    @classmethod
    def from_archives(
        cls, path: StrPath | Sequence[StrPath], *, splits: SplitNames = None
    ) -> ImageDataset:
        """Read images in a ``.tar`` or ``.zip``, or in the shards of a set, as a folder is read.

        Images stay where they are. A folder around all others is passed over. Beside images of
        WebDataset, ``000017.cls`` or ``000017.json`` is the label of ``000017.jpg``. Shards that
        are named as splits are, such as ``train-000.tar`` and ``val-000.tar``, are splits.

        Parameters
        ----------
        path : str, path-like or sequence of these
            An archive; or shards: a pattern such as ``shards/{000..099}.tar`` or
            ``shards/*.tar``, or a list.
        splits : mapping of str to str, "none" or None, default None
            As for `from_folder`.

        Raises
        ------
        DatasetError
            If an archive is missing, damaged or cut off, or there is no image in it.
        """
        paths = [path] if isinstance(path, str | os.PathLike) else path
        return cls._of_archives(paths, splits)

    @classmethod
    def _of_archives(
        cls, paths: Sequence[StrPath], splits: SplitNames, folder: Path = _NO_FOLDER
    ) -> ImageDataset:
        files, root = _shards(paths, folder)
        listing = read_archives(files, root.name, splits)
        return cls._of(listing, archive_name(root), root=root)

    @classmethod
    def _of_parquet(
        cls, paths: Sequence[StrPath], reading: Reading, folder: Path = _NO_FOLDER
    ) -> ImageDataset:
        files, whole = _shards(paths, folder)
        listing = read_arrow_files(files, whole.name, reading)
        root: Path | str = whole
        if listing.arrays is None:  # a table of paths
            root = _base(files[0].parent, reading)
            listing = linked(listing, root, follow=reading.follow_urls)
        return cls._of(listing, archive_name(whole), reading.splits, root=root, what=files[0].name)

    @classmethod
    def _of_frame(cls, data: object, reading: Reading) -> ImageDataset:
        listing = read_frame(data, reading)
        root = None if reading.root is None else _base("", reading)
        if listing.arrays is None:
            listing = linked(listing, root or "", follow=reading.follow_urls)
        return cls._of(listing, "frame", reading.splits, root=root, what="the data frame")

    @classmethod
    def from_store(cls, address: StrPath, *, splits: SplitNames = None) -> ImageDataset:
        """Read the images below an address as a folder is read; objects are read when needed.

        Parameters
        ----------
        address : str
            A bucket or a folder in it: ``s3://bucket/photos``, ``gs://`` or ``az://``. Credentials
            come from the environment.
        splits : mapping of str to str, "none" or None, default None
            As for `from_folder`.

        Raises
        ------
        DatasetError
            If this is no such address, or there is no image below it.
        StoreError
            If it cannot be listed.
        MissingExtraError
            Without the extra ``remote``.
        """
        known = as_address(address)
        if known is None or not is_bucket(known):
            raise DatasetError(
                f"expected the address of a bucket, such as s3://bucket/photos, received "
                f"{shown(known) if known else str(address)!r}"
            )
        root = known.rstrip("/")
        listing = list_store(root, names=splits)
        return cls._of(listing, address_name(root), root=shown(root))

    @classmethod
    def from_any(
        cls,
        data: object,
        *,
        splits: SplitNames = None,
        root: StrPath | None = None,
        multilabel: bool = False,
        target_columns: Sequence[str] = (),
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        follow_urls: bool = False,
    ) -> ImageDataset:
        """Find out what was given, and read it.

        Parameters
        ----------
        data : ImageDataset, str, path-like, list, ndarray or table
            A folder, a ``.csv`` or ``.tsv`` table, a ``.tar`` or ``.zip`` archive, a ``.parquet``
            or ``.arrow`` file, several of these as `from_archives` takes them, a ``.npz`` or
            ``.h5`` file, one image file; a table of pandas, polars or pyarrow, a dataset of Hugging
            Face or TensorFlow; image files and folders (without labels) in any form that
            `listed_paths` knows; images as `from_arrays` takes them, one, several or an iterator.
            An array of shape (h, w, 3) is one image. The address of a folder in a bucket, of a
            ``.csv`` or ``.tsv`` table, or of an image.
        splits : mapping of str to str, "none" or None, default None
            What names of splits mean, as for `from_folder` and `from_csv`.
        root : str, path-like or None, default None
            Folder that relative paths of a table start from; by default the table's.
        multilabel : bool, default False
            As for `from_csv`; of a table only.
        target_columns : sequence of str, default ()
            As for `from_csv`; of a table only.
        path_column, label_column, split_column, group_column : str or None, default None
            As for `from_csv`; of a table only. The column of paths may be one of images.
        follow_urls : bool, default False
            As for `from_csv`; of a table or a list.

        Raises
        ------
        DatasetError
            If it is none of these, or cannot be read; if an array may be one image with its
            channels first, or several grey ones; if it has no splits to be named, or no paths
            for `root`.
        """
        reading = Reading(
            splits=splits,
            root=root,
            multilabel=multilabel,
            target_columns=target_columns,
            path_column=path_column,
            label_column=label_column,
            split_column=split_column,
            group_column=group_column,
            follow_urls=follow_urls,
        )
        source = Source(kind="dataset") if isinstance(data, ImageDataset) else recognise(data)
        # Never the content of a file.
        what = type(data).__name__ if source.kind == "arrays" else repr(_shown(data)[:80])
        reading.check_used(source.kind, what)
        if isinstance(data, ImageDataset):
            return data
        match source.kind:
            case "folder":
                return cls.from_folder(source.path, splits=splits)
            case "store":
                return cls.from_store(source.address, splits=splits)
            case "table":
                return cls._of_table(source.address or source.path, reading)
            case "packed":
                listing = READERS[source.path.suffix.lower()](source.path)
                return cls._of(listing, source.path.stem, splits)
            case "archives":
                return cls._of_archives(source.paths, splits, source.path)
            case "parquet":
                return cls._of_parquet(source.paths, reading, source.path)
            case "frame":
                return cls._of_frame(source.images, reading)
            case "arrays":
                return cls.from_arrays(source.images)
        name = PurePosixPath(address_name(source.address)).stem if source.address else ""
        data = cls.from_paths(
            source.paths,
            name=name or source.path.stem or None,
            follow_urls=follow_urls or bool(source.address),
        )
        return replace(
            data,
            strays=tuple(path for path, _ in source.strays),
            stray_reasons=tuple(reason for _, reason in source.strays),
        )

    @classmethod
    def _of(
        cls,
        listing: Listing,
        name: str,
        names: SplitNames = None,
        *,
        root: Path | str | None = None,
        what: str = "",
    ) -> ImageDataset:
        """Return the images of a listing; `names` says what names of splits mean in it."""
        check_names(names)
        splits, meant = None, listing.split_names
        if listing.splits is not None:
            splits, understood = read_splits(listing.splits, names, what=repr(what or name))
            meant = meant or understood
        elif names not in (None, "none"):
            raise DatasetError(
                f"{what or name!r} has no column split: name it with --split-column "
                "(split_column=...), or leave --splits (splits=...) out"
            )
        classes, labels = None, None
        if listing.labels is not None:
            classes, labels = encode_labels(
                listing.labels, len(listing.paths), as_written=listing.as_written
            )
        return cls(
            name=name,
            root=root,
            paths=tuple(listing.paths),
            classes=classes,
            labels=labels,
            groups=None if listing.groups is None else tuple(listing.groups),
            splits=None if splits is None else tuple(splits),
            split_names=tuple(meant),
            notes=tuple(listing.notes),
            strays=tuple(path for path, _ in listing.strays),
            stray_reasons=tuple(reason for _, reason in listing.strays),
            empty_classes=tuple(listing.empty_classes),
            arrays=listing.arrays,
            column=listing.column,
        )


def _shown(data: object) -> str:
    address = as_address(data)
    return str(data) if address is None else shown(address)


def _base(default: StrPath, reading: Reading) -> Path | str:
    """Return the folder, or the address of one, that relative paths of a table start from."""
    root = default if reading.root is None else reading.root
    return as_address(root) or Path(root).absolute()


def _shards(given: Sequence[StrPath], folder: Path = _NO_FOLDER) -> tuple[list[Path], Path]:
    """Return the files that paths and patterns stand for, and an address of all of them."""
    files = [Path(name) for item in given for name in archive_paths(os.fspath(item))]
    if folder != _NO_FOLDER:
        return files, folder.absolute()
    if len(given) == 1:
        return files, Path(given[0]).absolute()
    names = ",".join(sorted(file.name for file in files))
    return files, files[0].absolute().parent / f"{{{names}}}"


def packed_images(address: str, column: str) -> tuple[Sequence[str], PackedImages]:
    """Return the paths of the images in archives or Parquet files, and what gives their bytes."""
    source = recognise(address)
    files, root = _shards(source.paths, source.path)
    images: ImageSource | None
    if source.kind == "parquet":
        paths, images = arrow_images(files, column)
    else:
        listing = read_archives(files, root.name, "none")
        paths, images = listing.paths, listing.arrays
    assert isinstance(images, PackedImages)
    return paths, images


def _counted(n: int, noun: str) -> str:
    plural = "" if n == 1 else "es" if noun.endswith("s") else "s"
    return f"{n} {noun}{plural}"


def inner_folder(root: str, paths: Sequence[str], classes: Sequence[str] | None) -> str:
    """Return the advice to give an inner folder, where one class holds what may be the classes."""
    if not root or classes is None or len(classes) != 1:
        return ""
    folders = [path.split("/")[:-1] for path in paths]
    pairs = zip(min(folders, default=[]), max(folders, default=[]), strict=False)
    common = [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if classes[0] not in common:
        return ""
    inner = "/".join(common)
    below = {rest[0] for p in paths if len(rest := p[len(inner) + 1 :].split("/")) > 1}
    if len(below) < 2:
        return ""
    name = Path(root).name
    return (
        f"{name!r} has one folder {common[0]!r}; if the classes are the {len(below)} folders in "
        f"it, give {str(Path(root, inner))!r}"
    )
