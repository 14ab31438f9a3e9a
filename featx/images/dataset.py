"""`ImageDataset`: an ordered list of images, made from whatever holds them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featx.exceptions import DatasetError
from featx.images.arrays import ArrayTable, as_stack, check_images, read_hdf5, read_npz
from featx.images.columns import ImageColumns
from featx.images.labels import as_text, encode_labels
from featx.images.scan import scan_folder
from featx.images.sources import check_paths, recognise
from featx.images.split_names import SplitNames, check_names, read_splits
from featx.images.tables import read_table

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageDataset(ImageColumns):
    """An ordered list of images (files or arrays) with their labels, splits and groups.

    Made by `from_folder`, `from_csv`, `from_paths`, `from_arrays`, `from_npz`, `from_hdf5`, or
    `from_any`, which finds out; its columns are the parameters of `ImageColumns`. Nothing is
    decoded here, and missing or damaged files are no error: they end in the ledger of the
    extraction.

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
        scan = scan_folder(root, labels=labels == "infer", names=splits)
        classes, indices = None, None
        if scan.class_names is not None:
            number = len(scan.paths)
            classes, indices = encode_labels(scan.class_names, number, as_written=True)
        return cls(
            name=root.resolve().name or "dataset",
            root=root,
            paths=tuple(scan.paths),
            classes=classes,
            labels=indices,
            splits=None if scan.splits is None else tuple(scan.splits),
            split_names=tuple(scan.split_names),
            notes=tuple(scan.notes),
            strays=tuple(path for path, _ in scan.strays),
            stray_reasons=tuple(reason for _, reason in scan.strays),
            empty_classes=tuple(scan.empty_classes),
        )

    @classmethod
    def from_csv(
        cls,
        path: StrPath,
        *,
        root: StrPath | None = None,
        multilabel: bool = False,
        splits: SplitNames = None,
    ) -> ImageDataset:
        """Read a table with a header: ``path,label[,split,group]``, in any order.

        In the place of ``label`` there may be a column of 0 and 1 for each label of several an
        image: ``path,cat,dog,indoor`` is read as labels such as ``cat|indoor``.

        Parameters
        ----------
        path : str or path-like
            UTF-8; commas, semicolons or tabs. Beside a column ``label`` other columns are left
            alone. Without it there are no labels, unless there are two or more other columns and
            all that they have is 0 and 1. An empty label, or a row of empty ones, is none; so are
            ``NaN``, ``NA``, ``null`` and what else pandas reads as missing.
        root : str, path-like or None, default None
            Folder that relative paths start from; by default the table's.
        multilabel : bool, default False
            Whether, without a column ``label``, the other columns have to be labels: what is
            neither 0 nor 1 is then an error, which names line, column and value.
        splits : mapping of str to str or None, default None
            What the names in the column ``split`` mean, such as ``{"pilot": "test"}``, beside the
            usual names of train, val and test.

        Raises
        ------
        DatasetError
            If the table cannot be read, gives one file two labels, or names a split that means
            none of train, val and test. Missing images are no error here.
        """
        file = Path(path)
        base = Path(file.parent if root is None else root).absolute()
        table = read_table(file, root=base, multilabel=multilabel)
        read, names = _splits(table.split, splits, file.name)
        data = cls(
            name=file.stem,
            root=base,
            paths=tuple(table.path),
            splits=read,
            split_names=names,
            notes=table.notes,
            groups=None if table.group is None else tuple(table.group),
        )
        return data if table.label is None else data.with_labels(table.label)

    @classmethod
    def from_paths(
        cls,
        paths: Iterable[StrPath],
        labels: Iterable[Any] | None = None,
        *,
        groups: Iterable[Any] | None = None,
        splits: Iterable[Any] | None = None,
        name: str | None = None,
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

        Raises
        ------
        DatasetError
            If there are no paths, one is no path, or the lengths differ.
        """
        data = cls(
            name=name or "paths",
            paths=tuple(check_paths(paths)),
            groups=None if groups is None else tuple(map(as_text, groups)),
            splits=None if splits is None else tuple(map(as_text, splits)),
        )
        return data if labels is None else data.with_labels(labels)

    @classmethod
    def from_arrays(
        cls, images: Any, labels: Iterable[Any] | None = None, *, name: str = "arrays"
    ) -> ImageDataset:
        """Take images that are arrays, PIL images, or contents of image files.

        Parameters
        ----------
        images : ndarray of shape (n, h, w) or (n, h, w, c), or list
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
        return cls._of(ArrayTable(images=check_images(images), labels=labels), name)

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
        found = read_hdf5(Path(path), images=images, labels=labels)
        return cls._of(found, Path(path).stem, splits)

    @classmethod
    def from_any(
        cls,
        data: Any,
        *,
        splits: SplitNames = None,
        root: StrPath | None = None,
        multilabel: bool = False,
    ) -> ImageDataset:
        """Find out what was given, and read it.

        Parameters
        ----------
        data : ImageDataset, str, path-like, list, ndarray or column of a table
            A folder, a ``.csv`` or ``.tsv`` table, a ``.npz`` or ``.h5`` file, one image file;
            image files and folders (without labels) in any form that `listed_paths` knows; images
            as `from_arrays` takes them, one or several. An array of shape (h, w, 3) is one image.
        splits : mapping of str to str, "none" or None, default None
            What names of splits mean, as for `from_folder` and `from_csv`.
        root : str, path-like or None, default None
            Folder that relative paths of a table start from; by default the table's.
        multilabel : bool, default False
            As for `from_csv`; of a table only.

        Raises
        ------
        DatasetError
            If it is none of these, or cannot be read; if an array may be one image with its
            channels first, or several grey ones; if it has no splits to be named, or no paths
            for `root`.
        """
        source = None if isinstance(data, ImageDataset) else recognise(data)
        kind = "dataset" if source is None else source.kind
        # Never the content of a file.
        what = type(data).__name__ if kind == "arrays" else repr(str(data)[:80])
        if root is not None and kind != "table":
            raise DatasetError(
                f"--root (root=...) is for the paths of a table, received {what}: leave it out"
            )
        if splits is not None and kind in ("dataset", "files", "arrays"):
            raise DatasetError(
                "--splits (splits=...) is for a folder, a table or a file of arrays, received "
                f"{what}: leave it out"
            )
        if source is None:
            found: ImageDataset = data
            return found
        if source.kind == "folder":
            return cls.from_folder(source.path, splits=splits)
        if source.kind == "table":
            return cls.from_csv(source.path, root=root, multilabel=multilabel, splits=splits)
        if source.kind == "npz":
            return cls.from_npz(source.path, splits=splits)
        if source.kind == "hdf5":
            return cls.from_hdf5(source.path, splits=splits)
        if source.kind == "arrays":
            return cls.from_arrays(as_stack(source.items))
        return cls.from_paths(source.items, name=source.path.stem or None)

    @classmethod
    def _of(cls, table: ArrayTable, name: str, splits: SplitNames = None) -> ImageDataset:
        read, names = _splits(table.splits, splits, name)
        data = cls(
            name=name,
            paths=tuple(f"array:{i:06d}" for i in range(len(table.images))),
            splits=read,
            split_names=names,
            arrays=table.images,
        )
        return data if table.labels is None else data.with_labels(table.labels)


def _splits(
    column: list[str] | None, names: SplitNames, what: str
) -> tuple[tuple[str, ...] | None, tuple[tuple[str, str], ...]]:
    """Return the column of splits in their own names, and what each name was taken for."""
    check_names(names)
    if column is None:
        if names not in (None, "none"):
            raise DatasetError(f"{what!r} has no column split: leave --splits (splits=...) out")
        return None, ()
    splits, meant = read_splits(column, names, what=repr(what))
    return tuple(splits), meant
