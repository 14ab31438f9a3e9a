"""`import_features`: features made elsewhere become a dataset of the cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.editing import replay_edits
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import (
    DUPLICATE,
    OK,
    Block,
    Manifest,
    find_manifest,
    rewrite_dataset,
)
from featx.cache.shard import SHARD_BYTES
from featx.cache.space import FeatureSpace
from featx.exceptions import DatasetError, reason
from featx.feature_files.survey import RowSurvey, keyed_chunks, survey_rows
from featx.feature_files.table import ArrayRows, RowSource, check_matrix
from featx.images.labels import as_text, encode_labels
from featx.images.split_names import read_splits
from featx.spec import FeatureSpec

IMPORTED = "imported"
"""Tap of imported features, and source of their datasets."""


def import_features(
    name: str,
    X: Any,
    *,
    y: Iterable[Any] | None = None,
    paths: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    source: str = "arrays",
) -> Features:
    """Make features of any modality a dataset of the cache.

    They form a space of their own, named by the SHA-256 of their content: the same import twice
    writes nothing, other content under the same name is another space. A row's key is the SHA-256
    of its shape, type and bytes, so that equal rows are duplicates, which stay on one side of
    every split.

    Parameters
    ----------
    name : str
        Name of the dataset. One that was imported before is replaced.
    X : ndarray of shape (n, d), or RowSource
        Finite numbers. float32 and float16 are stored as they are, float64 as float32; integers as
        float32 when that holds them exactly (up to 2**24).
    y : iterable of length n, optional
        Labels: text or whole numbers; None, NaN and empty text are none.
    paths : sequence of str, optional
        What the rows are called, ``row:000000`` and so on by default.
    groups, splits : sequence of str, optional
        One a row, empty text for none. A split is any usual name of train, val and test.
    cache : path, optional
        The cache folder: by default ``FEATX_CACHE``, else ``cache``.
    source : str, default "arrays"
        Where they come from, for the provenance of the shards.

    Returns
    -------
    Features
        With one block, ``import:NAME/imported``. ``report`` holds what was counted.

    Raises
    ------
    DatasetError
        For another rank or type, numbers that are not finite, or a column of another length.
    CacheError
        If the cache cannot be written, or is damaged.

    Examples
    --------
    >>> feats = import_features("texts", embeddings, y=topics)  # doctest: +SKIP
    >>> featx.train(feats).metrics["accuracy"]  # doctest: +SKIP
    0.93
    """
    started = time.perf_counter()
    layout = CacheLayout.at(cache)
    _check_name(layout, name)
    rows = _rows(X)
    count, width = rows.shape
    columns = _columns(count, y=y, paths=paths, groups=groups, splits=splits)
    survey = survey_rows(rows)
    spec = FeatureSpec(
        backbone=f"import:{name}",
        weights_sha256=survey.sha256,
        input_size_px=(0, 0),
        preprocessing="none",
        dtype="float16" if survey.dtype == np.float16 else "float32",
    )
    space = FeatureSpace(layout, spec)
    made = _manifest(name, columns, survey, Block(spec.backbone, IMPORTED, spec.name))
    written = 0

    def make(now: Manifest | None) -> Manifest:
        nonlocal written
        if now is not None:
            _check_replaceable(layout, name, now)
        space.touch([IMPORTED], survey.keys)
        space.refresh()  # what was here may have been removed as unused meanwhile
        written += _store(space, rows, survey, source)
        return made if now is None else replay_edits(made, now)

    manifest = rewrite_dataset(layout, name, make, still=space.intact)
    features = Features(manifest, [space])
    seconds = time.perf_counter() - started
    features.report = {
        "dataset": name,
        "backbone": spec.backbone,
        "tap": IMPORTED,
        "spec": spec.name,
        "rows": count,
        "features": width,
        "classes": len(manifest.classes or ()),
        "labelled": int((manifest.label >= 0).sum()),
        "duplicates": int((manifest.status == DUPLICATE).sum()),
        "written": written,
        "dtype": spec.dtype,
        "converted_from": "" if rows.dtype == survey.dtype else rows.dtype.name,
        "seconds": round(seconds, 3),
    }
    return features


def _check_name(layout: CacheLayout, name: str) -> None:
    """Refuse a name under which nothing can be imported.

    Raises
    ------
    DatasetError
        If the name cannot be one, or is that of a dataset of images.
    """
    if not name.strip() or any(mark in name for mark in "/\\"):
        raise DatasetError(f"expected a name for the dataset, without slashes, received {name!r}")
    if not layout.dataset(name).is_file():
        return
    _check_replaceable(layout, name, find_manifest(layout, name))


def _check_replaceable(layout: CacheLayout, name: str, earlier: Manifest) -> None:
    """Refuse to replace a dataset of images."""
    if earlier.source != IMPORTED or earlier.name != name:
        kind = "images" if earlier.source != IMPORTED else "features"
        raise DatasetError(
            f"the cache {layout.root} has a dataset {earlier.name!r} of {kind} in the place of "
            f"{name!r}: import under another name, or `featx dataset rename` that one"
        )


def _rows(X: Any) -> RowSource:
    if hasattr(X, "chunks") and hasattr(X, "dtype"):
        rows: RowSource = X
    else:
        try:
            values = np.asarray(X)
        except ValueError as error:
            raise DatasetError(
                "expected features of shape (n, d), received rows of different lengths: "
                f"{reason(error)}"
            ) from error
        check_matrix(values.shape, values.dtype, "X")
        rows = ArrayRows(values)
    check_matrix(rows.shape, rows.dtype, "X")
    return rows


@dataclass(frozen=True, slots=True)
class _Columns:
    classes: tuple[str, ...] | None
    label: NDArray[np.int32]
    path: list[str]
    group: list[str]
    split: list[str]


def _columns(count: int, *, y: Any, paths: Any, groups: Any, splits: Any) -> _Columns:
    texts = {
        what: _texts(what, values, count)
        for what, values in (("paths", paths), ("groups", groups), ("splits", splits))
    }
    classes, label = (None, np.full(count, -1, np.int32))
    if y is not None:
        classes, label = encode_labels(y, count)
    blank = [""] * count
    return _Columns(
        classes,
        label,
        texts["paths"] or [f"row:{row:06d}" for row in range(count)],
        texts["groups"] or blank,
        read_splits(texts["splits"] or blank, what="splits")[0],
    )


def _texts(what: str, values: Any, count: int) -> list[str] | None:
    if values is None:
        return None
    # A path is what it is, also where it says NaN.
    texts = list(map(str, values)) if what == "paths" else list(map(as_text, values))
    if len(texts) != count:
        raise DatasetError(
            f"expected {count:,} {what}, one a row of the features, received {len(texts):,}"
        )
    return texts


def _store(space: FeatureSpace, rows: RowSource, survey: RowSurvey, source: str) -> int:
    """Write the rows that are not there yet, each key once, and return how many."""
    limit = max(1, SHARD_BYTES // (rows.shape[1] * survey.dtype.itemsize))
    provenance = {"engine": "import", "source": source}
    fresh = np.zeros(len(survey.keys), np.bool_)
    fresh[_first_of_equal(survey.keys)] = True
    fresh &= ~space.has([IMPORTED], survey.keys)
    if not fresh.any():
        return 0
    keys: list[NDArray[np.uint8]] = []
    values: list[NDArray[Any]] = []
    start = waiting = 0

    def flush() -> None:
        nonlocal waiting
        space.add(np.concatenate(keys), {IMPORTED: np.concatenate(values)}, provenance)
        keys.clear()
        values.clear()
        waiting = 0

    for chunk_keys, chunk in keyed_chunks(rows, survey):
        chosen = np.flatnonzero(fresh[start : start + len(chunk)])
        start += len(chunk)
        while chosen.size:
            part, chosen = chosen[: limit - waiting], chosen[limit - waiting :]
            keys.append(chunk_keys[part])
            values.append(chunk[part])
            waiting += len(part)
            if waiting == limit:
                flush()
    if waiting:
        flush()
    return int(fresh.sum())


def _first_of_equal(keys: NDArray[np.uint8]) -> NDArray[np.intp]:
    whole = np.ascontiguousarray(keys).view("V32").ravel()
    return np.unique(whole, return_index=True)[1]


def _manifest(name: str, columns: _Columns, survey: RowSurvey, block: Block) -> Manifest:
    count = len(survey.keys)
    status = np.full(count, DUPLICATE, np.uint8)
    status[_first_of_equal(survey.keys)] = OK
    unknown = np.full(count, -1, np.int64)
    return Manifest(
        name=name,
        root="",
        classes=columns.classes,
        path=columns.path,
        label=columns.label,
        group=columns.group,
        split=columns.split,
        reason=[""] * count,
        size=unknown,
        mtime_ns=unknown,
        inode=unknown,
        key=survey.keys,
        status=status,
        blocks=(block,),
        source=IMPORTED,
    )
