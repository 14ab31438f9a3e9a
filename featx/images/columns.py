"""The columns of a dataset: paths, labels, groups, splits, and the way to each image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.exceptions import DatasetError, ImageError
from featx.images.arrays import ImageSource
from featx.images.files import read_file
from featx.images.labels import encode_labels
from featx.images.split_names import read_splits


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageColumns:
    """An ordered list of images with what is known of them; see `ImageDataset`.

    Parameters
    ----------
    name : str
        What the data are called in the cache and in messages.
    paths : tuple of str
        One an image, with ``/``: relative to `root` when there is one, as given otherwise;
        ``array:000000`` and so on for arrays.
    root : Path or None, default None
        Folder that relative paths start from.
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
        Where array images come from; None for files.
    rows : ndarray of shape (n,), int64, or None, default None
        Position of each image in `arrays`; None for all in order.
    """

    name: str
    paths: tuple[str, ...]
    root: Path | None = None
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
        parts = [f"{len(self)} image{'' if len(self) == 1 else 's'}"]
        if self.classes is None:
            parts.append("unlabelled")
        else:
            counts = [f"{name} {n}" for name, n in self.class_counts().items()]
            more = ", ..." if len(counts) > 6 else ""
            plural = "" if len(counts) == 1 else "es"
            parts.append(f"{len(counts)} class{plural}: {', '.join(counts[:6])}{more}")
            if missing := len(self) - sum(self.class_counts().values()):
                parts.append(f"{missing} without a label")
        if self.splits is not None:
            kinds = sorted(set(self.splits))
            parts.append(", ".join(f"{k or 'no split'} {self.splits.count(k)}" for k in kinds))
        if self.strays:
            parts.append(f"{len(self.strays)} stray{'' if len(self.strays) == 1 else 's'}")
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
            raise DatasetError(f"the images of {self.name!r} are arrays, not files: use image(i)")
        return Path(self.root or "", self.paths[index]).absolute()

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file.

        Raises
        ------
        ImageError
            If the file cannot be read; the reason leaves the path out.
        DatasetError
            If the images are arrays.
        """
        return read_file(self.file(index))

    def image(self, index: int) -> NDArray[Any] | bytes:
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
        image = self.arrays[index if self.rows is None else int(self.rows[index])]
        if isinstance(image, bytes):
            return image
        if isinstance(image, ImageError):
            raise ImageError(str(image))
        if hasattr(image, "getbands"):
            from featx.images.decode import picture_to_rgb

            return picture_to_rgb(image)
        return np.asarray(image)

    def subset(self, indices: ArrayLike) -> Self:
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
        rows = self.rows
        if self.arrays is not None:
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
            rows=rows,
        )

    def with_labels(
        self, labels: Iterable[Any] | None, *, classes: Sequence[str] | None = None
    ) -> Self:
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
        if len(counts) < minimum:
            raise DatasetError(_too_few_classes(self, counts, minimum))

    def digest(self) -> str:
        """Return the SHA-256 of paths, labels, classes, splits and groups, 64 hexadecimal digits.

        Provenance only: it says nothing of the pixels, which have their own keys.
        """
        columns = {name: getattr(self, name) for name in ("paths", "classes", "splits", "groups")}
        columns["labels"] = None if self.labels is None else self.labels.tolist()
        text = json.dumps({"type": "featx-dataset", "version": 1, **columns}, sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def _too_few_classes(data: ImageColumns, counts: dict[str, int], minimum: int) -> str:
    found = ", ".join(f"{name!r} ({n} images)" for name, n in counts.items()) or "none"
    message = f"expected images of at least {minimum} classes, found {len(counts)}: {found}"
    if data.empty_classes:
        message += f"; without any image: {', '.join(map(repr, data.empty_classes[:5]))}"
    hint = inner_folder(str(data.root or ""), data.paths, data.classes)
    return f"{message}; {hint or 'put the images of each class into a sub-folder of its own'}"


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
