"""`import_features`: features made elsewhere become a dataset of the cache."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.datasets import rewrite_dataset
from featx.cache.editing import replay_edits
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import DUPLICATE, OK, Block, Manifest, find_manifest
from featx.cache.shard import SHARD_BYTES
from featx.cache.space import FeatureSpace
from featx.exceptions import DatasetError, reason
from featx.images.files import AnyArray, array_key
from featx.images.labels import as_text, encode_labels, read_splits
from featx.importing.feature_files import RowSource, check_matrix, rows_of_array
from featx.spec import FeatureSpec

IMPORTED = "imported"
"""Tap of imported features, and source of their datasets."""
_EXACT = 1 << 24  # beyond this, float32 does not hold every integer


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
    survey = _survey_rows(rows)
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
    """Refuse a name under which nothing can be imported, or one of a dataset of images."""
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
        check_matrix(rows.shape, rows.dtype, "X")
        return rows
    try:
        values = np.asarray(X)
    except ValueError as error:
        raise DatasetError(
            "expected features of shape (n, d), received rows of different lengths: "
            f"{reason(error)}"
        ) from error
    return rows_of_array(values)


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


@dataclass(frozen=True, slots=True)
class _RowSurvey:
    """What a pass over features tells: the key of each row (n, 32), a digest of all, their type."""

    keys: NDArray[np.uint8]
    sha256: str
    dtype: np.dtype[Any]


def _survey_rows(rows: RowSource) -> _RowSurvey:
    """Return what all features are, read once, chunk by chunk; refuse those not to be stored."""
    dtype = np.dtype("<f2" if rows.dtype == np.float16 else "<f4")
    width = rows.shape[1]
    digest = hashlib.sha256(f"featx-import-1 {dtype.str} {width}\n".encode("ascii"))
    keys, wrong, first, start = [], 0, -1, 0
    for values in rows.chunks():
        finite = _finite(values)
        if not finite.all():
            first = start + int(finite.argmin()) if first < 0 else first
            wrong += int((~finite).sum())
        elif not wrong:
            stored = _stored(values, dtype, start)
            digest.update(stored.data)
            keys.append(_keys(stored))
        start += len(values)
    if wrong:
        raise DatasetError(
            f"expected finite numbers, received NaN or infinity in {wrong:,} of {start:,} rows, "
            f"the first is row {first}: leave these rows out, or fill them in"
        )
    return _RowSurvey(np.concatenate(keys), digest.hexdigest(), dtype)


def _keyed_chunks(
    rows: RowSource, survey: _RowSurvey
) -> Iterator[tuple[NDArray[np.uint8], AnyArray]]:
    """Yield keys and features, chunk by chunk, as stored; refuse rows that were changed since."""
    start = 0
    for values in rows.chunks():
        stored = _stored(values, survey.dtype, start)
        keys = survey.keys[start : start + len(stored)]
        if not np.array_equal(_keys(stored), keys):
            raise DatasetError("the features were changed while they were read: import them again")
        yield keys, stored
        start += len(stored)


def _keys(stored: AnyArray) -> NDArray[np.uint8]:
    joined = b"".join(array_key(row) for row in stored)
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def _finite(values: AnyArray) -> NDArray[np.bool_]:
    return _all(np.isfinite(values)) if values.dtype.kind == "f" else np.ones(len(values), np.bool_)


def _all(values: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(values.all(axis=1))


def _stored(values: AnyArray, dtype: np.dtype[Any], start: int) -> AnyArray:
    if values.dtype.kind in "iu":
        exact = _all(values <= _EXACT) & _all(values >= -_EXACT)
        step = "these look like identifiers or codes rather than features"
    else:
        exact = np.ones(len(values), np.bool_)
        if values.dtype.itemsize > dtype.itemsize:
            exact = _all(np.abs(values) <= np.finfo(dtype).max)
        step = "scale them"
    if not exact.all():
        raise DatasetError(
            f"row {start + int(exact.argmin())} holds numbers that {dtype.name} cannot hold: {step}"
        )
    return np.ascontiguousarray(values, dtype)


def _store(space: FeatureSpace, rows: RowSource, survey: _RowSurvey, source: str) -> int:
    """Write the rows that are not there yet, each key once, and return how many."""
    limit = max(1, SHARD_BYTES // (rows.shape[1] * survey.dtype.itemsize))
    provenance = {"engine": "import", "source": source}
    fresh = np.zeros(len(survey.keys), np.bool_)
    fresh[_first_of_equal(survey.keys)] = True
    fresh &= ~space.has([IMPORTED], survey.keys)
    if not fresh.any():
        return 0
    keys: list[NDArray[np.uint8]] = []
    values: list[AnyArray] = []
    start = waiting = 0

    def flush() -> None:
        nonlocal waiting
        space.add(np.concatenate(keys), {IMPORTED: np.concatenate(values)}, provenance)
        keys.clear()
        values.clear()
        waiting = 0

    for chunk_keys, chunk in _keyed_chunks(rows, survey):
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


def _manifest(name: str, columns: _Columns, survey: _RowSurvey, block: Block) -> Manifest:
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
