"""Features of a dataset: matrices mapped from the cache, beside what is known of their rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from featx.cache.columns import Strings
from featx.cache.layout import CacheLayout
from featx.cache.manifest import FAILED, PENDING, Block, Manifest, extract_again, find_manifest
from featx.cache.nearest import Nearest, nearest
from featx.cache.records import Identity, Origin, recall_origin
from featx.cache.shard import Floats
from featx.cache.space import FeatureSpace, LyingRows, open_space
from featx.exceptions import FeaturesError
from featx.files.identity import Keys
from featx.notebooks import NotebookValue, data_frame
from featx.spec import FeatureSpec, Window, joined_parts

if TYPE_CHECKING:
    from pandas import DataFrame

_Parts: TypeAlias = tuple[int, ...]
"""Numbers of blocks that are side by side."""
Batch: TypeAlias = tuple[Floats, NDArray[np.intp]]
"""Features of shape (b, d), and the numbers of their rows."""

Index: TypeAlias = int | slice | Sequence[int] | Sequence[bool] | NDArray[np.generic]
"""What chooses rows: a number, a slice, several numbers, or True and False for every row."""

_CHUNKS_A_BUFFER = 16


class Features(NotebookValue):
    """Features of a dataset, one row an image that could be read.

    ``feats[10:20]``, ``feats[[1, 2, 3]]`` and ``feats[feats.y == "ants"]`` are features of some of
    the rows, which every function takes in place of all.

    Parameters
    ----------
    manifest : Manifest
        What is known of the inputs.
    stores : sequence of FeatureSpace
        Where the features of each block are, in the order of ``manifest.blocks``.
    report : dict, optional
        What the extraction counted; empty for opened and for selected features.
    origins : mapping, optional
        How each backbone was named, by its canonical name and the digest of its weights, as far as
        that is known.

    Attributes
    ----------
    X : ndarray of shape (n, d)
        The features, when there is one block; `matrix` gives those of any.
    y : ndarray of shape (n,) of str, or None
        Class names; None for unlabelled data.
    labels : ndarray of shape (n,), int32
        Codes of classes, -1 for none.
    classes : tuple of str, or None
        Names of the classes in the order of their codes.
    paths : list of str
        Paths of the inputs, below ``root`` when there is one.
    failed : list of tuple (path, reason)
        Inputs that have no row; none in a selection of rows.
    selected_from : int, or None
        Number of rows that a selection was made from; None for a whole dataset.

    Examples
    --------
    >>> import featx
    >>> feats = featx.extract("photos/", backbone="tiny")  # doctest: +SKIP
    >>> feats.X.shape, feats.y[:2]  # doctest: +SKIP
    ((245, 1280), array(['ants', 'ants'], dtype='<U4'))
    >>> featx.train(feats[feats.y != "wasps"])  # doctest: +SKIP
    """

    def __init__(
        self,
        manifest: Manifest,
        stores: Sequence[FeatureSpace],
        *,
        report: dict[str, Any] | None = None,
        origins: Mapping[Identity, Origin] | None = None,
    ) -> None:
        self.manifest = manifest
        self.origins = dict(origins or {})
        self.report = report or {}
        self._stores = tuple(stores)
        self.rows = manifest.usable
        self.selected_from: int | None = None
        self._matrices: dict[_Parts, Floats] = {}
        self._looked_up: set[int] = set()
        self._lying: dict[int, list[LyingRows]] = {}

    @classmethod
    def open(cls, name: str, *, cache: str | os.PathLike[str] | None = None) -> Features:
        """Open the features of an extracted dataset, without its images.

        Raises
        ------
        DatasetError
            If the cache has no such dataset.
        CacheFormatError
            If its manifest or a specification is damaged.
        """
        layout = CacheLayout.at(cache)
        manifest = find_manifest(layout, name)
        opened: dict[str, FeatureSpace] = {}
        for block in manifest.blocks:
            if block.space not in opened:
                opened[block.space] = open_space(layout, block.space)
        recalled = {
            identity: recall_origin(layout, identity)
            for identity in {(s.spec.backbone, s.spec.weights_sha256) for s in opened.values()}
        }
        return cls(
            manifest,
            [opened[block.space] for block in manifest.blocks],
            origins={known: origin for known, origin in recalled.items() if origin is not None},
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        blocks = ", ".join(map(str, self.blocks)) or "none"
        classes = len(self.classes) if self.classes else 0
        whole = "" if self.selected_from is None else f" of {self.selected_from}"
        return (
            f"<Features {self.name!r}: {len(self)}{whole} images, {classes} classes, "
            f"blocks: {blocks}>"
        )

    def __getitem__(self, index: Index) -> Features:
        """Return some of the rows, with the same blocks; no feature is read before it is used.

        Parameters
        ----------
        index : int, slice, sequence of int, or sequence of bool of length n
            Which rows, in which order; a row may come several times.

        Raises
        ------
        FeaturesError
            If a row does not exist, a mask has another length, or the index is of another kind.
        """
        rows = self.rows[_row_numbers(index, len(self))]
        selection = Features(self.manifest.take(rows), self._stores, origins=self.origins)
        selection.selected_from = self.selected_from or len(self)
        return selection

    def __iter__(self) -> Iterator[Features]:
        """Yield the rows, each as features of one image."""
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Floats:
        """Return `X`, so that NumPy and scikit-learn take the features as their matrix."""
        # Otherwise NumPy would take rows of rows of rows for a nested sequence.
        return np.array(self.X, dtype=dtype, copy=copy)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process needs: it maps the matrices from the cache anew."""
        return {**self.__dict__, "_matrices": {}, "_looked_up": set(), "_lying": {}}

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.manifest.name

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The matrices that there are: backbone, tap, space."""
        return self.manifest.blocks

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their codes."""
        return self.manifest.classes

    @property
    def keys(self) -> Keys:
        """Keys of the rows, shape (n, 32)."""
        return self.manifest.key[self.rows]

    @property
    def labels(self) -> NDArray[np.int32]:
        """Codes of classes, shape (n,), -1 for none."""
        return self.manifest.label[self.rows]

    @property
    def y(self) -> NDArray[np.str_] | None:
        """Class names, shape (n,); None for unlabelled data, empty text for a missing label."""
        if self.classes is None:
            return None
        names = np.array([*self.classes, ""])
        named: NDArray[np.str_] = names[self.labels]
        return named

    @property
    def paths(self) -> list[str]:
        """Paths of the inputs, below ``root`` when there is one."""
        return list(self.manifest.path.take(self.rows))

    @property
    def groups(self) -> NDArray[np.str_] | None:
        """Groups of the rows, or None where there are none."""
        return self._column(self.manifest.group)

    @property
    def splits(self) -> NDArray[np.str_] | None:
        """Splits of the rows, or None where there are none."""
        return self._column(self.manifest.split)

    def _column(self, column: Strings) -> NDArray[np.str_] | None:
        return np.array(list(column.take(self.rows))) if column.any() else None

    @property
    def failed(self) -> list[tuple[str, str]]:
        """Inputs that have no row, and why; none in a selection of rows."""
        rows = np.flatnonzero(np.isin(self.manifest.status, (FAILED, PENDING)))
        without = self.manifest.path.take(rows), self.manifest.reason.take(rows)
        return list(zip(*without, strict=True))

    @property
    def X(self) -> Floats:
        """The features, shape (n, d), when there is exactly one block beside its views."""
        plain = [block for block in self.blocks if block.view is None]
        if len(plain) != 1:
            raise FeaturesError(
                f"{self!r} holds {len(plain)} blocks: choose one with "
                "features.matrix(backbone=..., tap=...)"
            )
        return self.matrix()

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of `X`, reading one row at most."""
        plain = [block for block in self.blocks if block.view is None]
        # Of several blocks or none, `X` says what to do.
        return len(self), self.width() if len(plain) == 1 else self.X.shape[1]

    def matrix(
        self, *, backbone: str | None = None, tap: str | None = None, view: int | None = None
    ) -> Floats:
        """Return the features of one block, or of an augmented view of it, shape (n, d).

        Rows that lie together in the cache are mapped from the file, others are copied once. Blocks
        side by side are named as in ``backbone="tiny + mobilenet_v2", tap="avg,max + avg"``.

        Raises
        ------
        FeaturesError
            If not exactly one block fits.
        """
        parts = self._find(backbone, tap, view)
        if parts not in self._matrices:
            self._matrices[parts] = self._gather(parts, self.keys)
        return self._matrices[parts]

    def views(self, *, backbone: str | None = None, tap: str | None = None) -> list[int]:
        """Return which augmented views of one block there are, or of all of several."""
        views = {block.view for block in self.blocks if block.view is not None}
        for plain in self.joined(backbone=backbone, tap=tap):
            name = plain.backbone, plain.tap
            views &= {block.view for block in self.blocks if (block.backbone, block.tap) == name}
        return sorted(view for view in views if view is not None)

    def augmented(
        self, *, backbone: str | None = None, tap: str | None = None
    ) -> tuple[Floats, NDArray[np.intp]]:
        """Return the features of one block and of all its views, one below the other.

        Returns
        -------
        X : ndarray of shape (n * (1 + K), d)
            The images as they are, then each view of them.
        rows : ndarray of shape (n * (1 + K),)
            The row that each belongs to: ``features.labels[rows]`` are their labels. In a
            cross-validation all rows of one image belong on one side.
        """
        views: list[int | None] = [None, *self.views(backbone=backbone, tap=tap)]
        parts = [self.matrix(backbone=backbone, tap=tap, view=view) for view in views]
        return np.concatenate(parts), np.tile(np.arange(len(self)), len(views))

    def width(self, *, backbone: str | None = None, tap: str | None = None) -> int:
        """Return the number of features a row of one block, reading one row at most."""
        return int(self._gather(self._find(backbone, tap), self._keys_of(slice(1))).shape[1])

    def batches(
        self,
        *,
        backbone: str | None = None,
        tap: str | None = None,
        view: int | None = None,
        rows: NDArray[np.intp] | None = None,
        batch_size: int = 1024,
        shuffle: bool = False,
        seed: int = 0,
        max_ram_bytes: int = 256 << 20,
    ) -> Iterator[Batch]:
        """Yield rows, each once, in batches, never holding more than a budget of memory.

        Parameters
        ----------
        backbone, tap : str, optional
            Which block, where there are several.
        view : int, optional
            An augmented view of it.
        rows : ndarray of int, optional
            Which rows; all by default.
        batch_size : int, default 1024
            Number of rows in a batch; the last one may be smaller.
        shuffle : bool, default False
            Whether to shuffle: chunks of neighbours are drawn in random order into a buffer of
            half the budget, whose rows are then shuffled. That is random enough for gradient
            descent, and read at the speed of the disk.
        seed : int, default 0
            The same seed gives the same order; take another for each epoch.
        max_ram_bytes : int, default 256 MiB
            Bound on what is held at any time.

        Yields
        ------
        X : ndarray of shape (b, d)
            Features.
        rows : ndarray of shape (b,)
            Their row numbers: ``features.labels[rows]`` are their labels.
        """
        parts, keys = self._find(backbone, tap, view), self.keys
        if rows is not None:
            keys = keys[rows]
        if not len(keys):
            return
        for number in set(parts) - self._looked_up:
            # All shards are compared with their digests at once, not one after another.
            with self._explained(number):
                if not self._stores[number].has([self.blocks[number].tap], self.keys).all():
                    self._disk_order(number, keys)  # says how many of these are missing
            self._looked_up.add(number)
        row_bytes = self._gather(parts, keys[:1]).nbytes
        if batch_size < 1:
            raise FeaturesError(f"expected a positive batch_size, received {batch_size}")
        if 2 * batch_size * row_bytes > max_ram_bytes:
            raise FeaturesError(
                f"two batches of {batch_size} rows need {2 * batch_size * row_bytes:,} bytes, "
                f"more than max_ram_bytes={max_ram_bytes:,}: take smaller batches or more memory"
            )
        if not shuffle:
            for start in range(0, len(keys), batch_size):
                chosen = np.arange(start, min(start + batch_size, len(keys)))
                yield self._gather(parts, keys[chosen]), chosen if rows is None else rows[chosen]
            return
        generator = np.random.default_rng(seed)
        buffer_rows = max(batch_size, max_ram_bytes // (2 * row_bytes) // batch_size * batch_size)
        order = self._disk_order(parts[0], keys)
        drawn = _draw_chunks(order, buffer_rows // _CHUNKS_A_BUFFER, generator)
        for start in range(0, len(drawn), buffer_rows):
            chosen = np.sort(drawn[start : start + buffer_rows])
            X = self._gather(parts, keys[chosen])
            mixed = generator.permutation(len(chosen))
            for first in range(0, len(chosen), batch_size):
                batch = mixed[first : first + batch_size]
                numbers = chosen[batch]
                yield X[batch], numbers if rows is None else rows[numbers]

    def take(
        self,
        rows: NDArray[np.intp],
        *,
        backbone: str | None = None,
        tap: str | None = None,
        view: int | None = None,
    ) -> Floats:
        """Return some rows of one block, shape (m, d), without the others being read."""
        return self._gather(self._find(backbone, tap, view), self._keys_of(rows))

    def to_pandas(
        self, *, features: bool = False, backbone: str | None = None, tap: str | None = None
    ) -> DataFrame:
        """Return what is known of each row as a table of pandas.

        Parameters
        ----------
        features : bool, default False
            Whether the features are columns too: ``feature_0``, ``feature_1`` and so on.
        backbone, tap : str, optional
            Which block, where there are several.

        Returns
        -------
        pandas.DataFrame
            One row an image, numbered as here: ``feats[table.query("label == 'ants'").index]``
            selects images by the table. The columns are ``path``, ``label``, ``split``, ``group``
            (missing where there is none) and ``key``, the SHA-256 of the file in hexadecimal.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        FeaturesError
            If features are to be columns, and not exactly one block fits.

        Examples
        --------
        >>> feats.to_pandas().groupby("label").size()  # doctest: +SKIP
        """
        digits, manifest = self.keys.tobytes().hex(), self.manifest
        names = [*(self.classes or ()), None]
        columns: dict[str, Any] = {
            "path": self.paths,
            "label": [names[code] for code in self.labels.tolist()],
            "split": [split or None for split in manifest.split.take(self.rows)],
            "group": [group or None for group in manifest.group.take(self.rows)],
            "key": [digits[start : start + 64] for start in range(0, len(digits), 64)],
        }
        table = data_frame(columns)
        if not features:
            return table
        matrix = self.matrix(backbone=backbone, tap=tap)
        return table.join(data_frame(matrix, [f"feature_{n}" for n in range(matrix.shape[1])]))

    def neighbours(
        self,
        query: int | str | Sequence[int] | Sequence[str] | NDArray[Any],
        k: int = 10,
        *,
        backbone: str | None = None,
        tap: str | None = None,
        metric: str = "cosine",
        exclude: NDArray[np.integer[Any]] | None = None,
        max_ram_bytes: int = 256 << 20,
    ) -> Nearest:
        """Return the nearest rows of images of the dataset, or of other features.

        The search is exact. Features are read once, where they lie in the cache.

        Parameters
        ----------
        query : int, str, sequence of these, or ndarray of float, shape (q, d) or (d,)
            What to look for: numbers of rows, paths as `paths` has them, or features of other
            images. An image of the dataset is not its own neighbour; copies of it are.
        k : int, default 10
            How many rows each.
        backbone, tap : str, optional
            Which block, where there are several.
        metric : {"cosine", "euclidean"}, default "cosine"
            Cosine similarity, or Euclidean distance.
        exclude : ndarray of int, shape (q,) or (q, m), optional
            Numbers of rows that are no neighbours of each query; by default its own, if it has one.
        max_ram_bytes : int, default 256 MiB
            Bound on what is held beside the queries and the result.

        Returns
        -------
        rows : ndarray of shape (q, k), or (k,) for a single query
            Numbers of rows, the nearest first: ``[features.paths[row] for row in rows]``. Rows that
            are equally near come in their order. There are fewer columns where there are fewer
            rows, and -1 where `exclude` leaves too few.
        values : ndarray of shape (q, k) or (k,)
            Cosine similarities, from -1 to 1, or Euclidean distances; NaN beside -1.

        Raises
        ------
        FeaturesError
            If not exactly one block fits, there is no such row or path, or the features of a query
            have another size, NaN or infinity.

        See Also
        --------
        featx.similar : The same for image files, whose features are computed as the dataset's.

        Notes
        -----
        See `featx.cache.nearest.nearest`.

        Examples
        --------
        >>> rows, similarities = feats.neighbours("ants/1.jpg", k=5)  # doctest: +SKIP
        >>> feats.y[rows], similarities.round(2)  # doctest: +SKIP
        (array(['ants', 'ants', 'ants', 'bees', 'ants']), array([0.93, 0.91, 0.9 , 0.88, 0.88]))
        """
        number = self._number(backbone, tap)
        values = np.asarray(query)
        single = values.ndim == (1 if values.dtype.kind == "f" else 0)
        if values.dtype.kind == "f":
            X: Floats = np.atleast_2d(values)
        else:
            rows = self._rows_of(np.atleast_1d(values))
            X = self.take(rows, backbone=backbone, tap=tap)
            exclude = rows if exclude is None else exclude
        if number not in self._lying:
            with self._explained(number):
                parts = self._stores[number].parts(self.blocks[number].tap, self.keys)
            self._lying[number] = parts
        batches = (batch for part in self._lying[number] for batch in part.batches())
        result = nearest(X, batches, k, metric=metric, exclude=exclude, max_ram_bytes=max_ram_bytes)
        return Nearest(result.rows[0], result.values[0]) if single else result

    def _rows_of(self, queries: NDArray[Any]) -> NDArray[np.intp]:
        """Return the numbers of rows that are named by number or by path."""
        if queries.dtype.kind in "iu" and queries.ndim == 1:
            wrong = queries[(queries < -len(self)) | (queries >= len(self))]
            if wrong.size:
                raise FeaturesError(
                    f"{self.name!r} has rows 0 to {len(self) - 1}, received {wrong[0]}"
                )
            return queries.astype(np.intp) % max(1, len(self))
        if queries.dtype.kind != "U" or queries.ndim != 1:
            raise FeaturesError(
                "expected numbers of rows, paths, or features of shape (q, d), received "
                f"{queries.dtype} of shape {queries.shape}"
            )
        rows = self.manifest.path.take(self.rows).find(queries.tolist())
        for path in queries[rows < 0].tolist():
            near = [other for other in self.paths if other.endswith(path.rpartition("/")[2])]
            like = ", ".join(map(repr, (near or self.paths)[:3])) or "none"
            raise FeaturesError(
                f"{self.name!r} has no image {path!r}; its paths are such as {like}"
            )
        return rows

    def recheck(self, *, backbone: str | None = None, tap: str | None = None) -> None:
        """Compare the files of one block with their digests, whatever is known of them.

        Rows of a damaged one count as missing from then on.
        """
        for number in self._find(backbone, tap):
            self._lying.pop(number, None)
            self._stores[number].recheck(self.blocks[number].tap, self.keys)

    def _keys_of(self, rows: NDArray[np.intp] | slice) -> Keys:
        """Return the keys of some rows, without a copy of all."""
        return self.manifest.key[self.rows[rows]]

    def _gather(self, parts: _Parts, keys: Keys) -> Floats:
        matrices = []
        for number in parts:
            with self._explained(number):
                matrices.append(self._stores[number].gather(self.blocks[number].tap, keys))
        return matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)

    def _disk_order(self, number: int, keys: Keys) -> NDArray[np.intp]:
        return self._stores[number].disk_order(self.blocks[number].tap, keys)

    @contextmanager
    def _explained(self, number: int) -> Iterator[None]:
        """Add to an error about missing rows how they are computed again."""
        try:
            yield
        except FeaturesError as error:
            step = extract_again(self.manifest, self.blocks[number])
            raise FeaturesError(f"{error}: {step}") from error

    def block(self, *, backbone: str | None = None, tap: str | None = None) -> Block:
        """Return the one block that fits; see `matrix`."""
        return self.blocks[self._number(backbone, tap)]

    def joined(
        self, *, backbone: str | None = None, tap: str | None = None, view: int | None = None
    ) -> list[Block]:
        """Return the blocks that a name stands for; of one block, only this."""
        return [self.blocks[number] for number in self._find(backbone, tap, view)]

    def spec(
        self, *, backbone: str | None = None, tap: str | None = None, view: int | None = None
    ) -> FeatureSpec:
        """Return the specification of one block, or of a view of it."""
        return self._stores[self._number(backbone, tap, view)].spec

    def specs(
        self, *, backbone: str | None = None, tap: str | None = None, view: int | None = None
    ) -> tuple[FeatureSpec, ...]:
        """Return the specifications of blocks side by side, one for each backbone."""
        parts = self._find(backbone, tap, view)
        return tuple(dict.fromkeys(self._stores[number].spec for number in parts))

    @property
    def window(self) -> Window | None:
        """The window by which deep images were decoded, of the first block."""
        return self._stores[0].spec.image.window if self._stores else None

    def origin(self, *, backbone: str | None = None, tap: str | None = None) -> Origin | None:
        """Return how the backbone of one block was named in its extraction, None if not known."""
        spec = self.spec(backbone=backbone, tap=tap)
        return self.origins.get((spec.backbone, spec.weights_sha256))

    def _number(self, backbone: str | None, tap: str | None, view: int | None = None) -> int:
        """Return the number of the one block that fits."""
        parts = self._find(backbone, tap, view)
        if len(parts) > 1:
            raise FeaturesError(
                f"expected one block, received {len(parts)} side by side: name one of "
                + ", ".join(str(self.blocks[number]) for number in parts)
            )
        return parts[0]

    def _find(self, backbone: str | None, tap: str | None, view: int | None = None) -> _Parts:
        """Return the numbers of the block that fits, or of those that are named side by side."""
        fits = self._fitting(backbone, tap, view)
        if not fits and backbone is not None and tap is not None:
            pairs = joined_parts({"backbone": backbone, "tap": tap})
            every = [self._fitting(*pair, view) for pair in pairs]
            if len(pairs) > 1 and all(len(one) == 1 for one in every):
                return tuple(one[0] for one in every)
        if len(fits) != 1:
            there = ", ".join(map(str, self.blocks)) or "none"
            which = f"backbone={backbone!r}, tap={tap!r}" + ("" if view is None else f", {view=}")
            raise FeaturesError(
                f"expected one block for {which}, found {len(fits)}; there are: {there}"
            )
        return (fits[0],)

    def _fitting(self, backbone: str | None, tap: str | None, view: int | None) -> list[int]:
        return [
            number
            for number, block in enumerate(self.blocks)
            if backbone in (None, block.backbone)
            and tap in (None, block.tap)
            and block.view == view
        ]


def _row_numbers(index: object, count: int) -> NDArray[np.intp]:
    """Return the numbers of the rows that an index chooses of so many."""
    if isinstance(index, tuple) and len(index) == 2 and index[1] is Ellipsis:
        index = index[0]  # as scikit-learn selects rows, in `train_test_split`
    if isinstance(index, slice):
        try:
            return np.arange(*index.indices(count))
        except (TypeError, ValueError) as error:
            raise _wrong_index(index) from error
    if isinstance(index, bool | np.bool_):
        raise FeaturesError(
            f"expected a slice, a mask or row numbers, received {index}: .splits, .groups and .y "
            "are None where the dataset has none, and make no mask"
        )
    try:
        values = np.atleast_1d(np.asarray(index))
    except ValueError as error:  # lists of different lengths
        raise _wrong_index(index) from error
    if isinstance(index, tuple) or values.ndim != 1:
        raise _wrong_index(index)
    if not len(values) and values.dtype != np.bool_:
        return np.empty(0, np.intp)
    if values.dtype == np.bool_:
        if len(values) != count:
            raise FeaturesError(
                f"expected a mask of True or False for each of {count:,} rows, received "
                f"{len(values):,}: make the mask from the same features"
            )
        return np.flatnonzero(values)
    if values.dtype.kind not in "iu":
        raise _wrong_index(index)
    beyond = values[(values < -count) | (values >= count)]
    if len(beyond):
        numbers = f"rows 0 to {count - 1:,}" if count else "no rows"
        raise FeaturesError(f"there are {numbers}, received row {int(beyond[0]):,}")
    return np.where(values < 0, values + count, values).astype(np.intp)


def _wrong_index(index: object) -> FeaturesError:
    return FeaturesError(
        f"expected a slice, a mask or row numbers, received {str(index)[:60]!r}: for example "
        "feats[10:20], feats[feats.y == 'ants'] or feats[[1, 2, 3]]"
    )


def _draw_chunks(
    order: NDArray[np.intp], rows: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Return row numbers in the order of the disk, cut into chunks that were shuffled."""
    starts = np.arange(0, len(order), max(1, rows))
    generator.shuffle(starts)
    return np.concatenate([order[start : start + max(1, rows)] for start in starts])
