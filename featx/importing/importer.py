"""`import_features`: features made elsewhere become a dataset of the cache."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from featx.cache.datasets import rewrite_dataset
from featx.cache.editing import replay_edits
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import DUPLICATE, OK, Block, Manifest, find_manifest
from featx.cache.space import FeatureSpace, ShardWriter
from featx.exceptions import DatasetError, reason
from featx.files.identity import Keys, copies
from featx.images.files import AnyArray, array_key
from featx.images.labels import as_text, encode_labels, read_splits
from featx.importing.feature_files import RowSource, rows_of_array
from featx.spec import FeatureSpec, ImagePolicy

IMPORTED = "imported"
"""Tap of imported features, and source of their datasets."""
_EXACT = 1 << 24  # beyond this, float32 does not hold every integer


def import_features(
    name: str,
    X: object,
    *,
    y: Iterable[object] | None = None,
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
    rows = X if isinstance(X, RowSource) else _rows_of(X)
    texts = {"paths": paths, "groups": groups, "splits": splits}
    manifest = _manifest(name, rows.shape[0], y, texts)
    dtype = np.dtype("<f2" if rows.dtype == np.float16 else "<f4")
    keys, sha256 = _survey(rows, dtype)
    spec = FeatureSpec(
        backbone=f"import:{name}",
        weights_sha256=sha256,
        input_size_px=(0, 0),
        preprocessing="none",
        image=ImagePolicy(draft=False),  # there are no images: as featx 0.1 named such spaces
        dtype="float16" if dtype.itemsize == 2 else "float32",
    )
    space = FeatureSpace(layout, spec)
    manifest.status[copies(keys)] = DUPLICATE
    made = replace(manifest, key=keys, blocks=(Block(spec.backbone, IMPORTED, spec.name),))
    written = 0

    def make(now: Manifest | None) -> Manifest:
        nonlocal written
        if now is not None:
            _check_replaceable(layout, name, now)
        space.touch([IMPORTED], keys)
        space.refresh()  # what was here may have been removed as unused meanwhile
        written += _store(space, rows, keys, source)
        return made if now is None else replay_edits(made, now)

    manifest = rewrite_dataset(layout, name, make, still=space.intact)
    space.write_index()
    report = {
        "dataset": name,
        "backbone": spec.backbone,
        "tap": IMPORTED,
        "spec": spec.name,
        "rows": rows.shape[0],
        "features": rows.shape[1],
        "classes": len(manifest.classes or ()),
        "labelled": int((manifest.label >= 0).sum()),
        "duplicates": int((manifest.status == DUPLICATE).sum()),
        "written": written,
        "dtype": spec.dtype,
        "converted_from": "" if rows.dtype == dtype else rows.dtype.name,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Features(manifest, [space], report=report)


def _check_name(layout: CacheLayout, name: str) -> None:
    """Refuse a name under which nothing can be imported, or one of a dataset of images."""
    if not name.strip() or any(mark in name for mark in "/\\"):
        raise DatasetError(f"expected a name for the dataset, without slashes, received {name!r}")
    if layout.dataset(name).is_file():
        _check_replaceable(layout, name, find_manifest(layout, name))


def _check_replaceable(layout: CacheLayout, name: str, earlier: Manifest) -> None:
    """Refuse to replace a dataset of images."""
    if earlier.source != IMPORTED or earlier.name != name:
        kind = "images" if earlier.source != IMPORTED else "features"
        raise DatasetError(
            f"the cache {layout.root} has a dataset {earlier.name!r} of {kind} in the place of "
            f"{name!r}: import under another name, or `featx dataset rename` that one"
        )


def _rows_of(X: object) -> RowSource:
    try:
        values = np.asarray(X)
    except ValueError as error:
        raise DatasetError(
            "expected features of shape (n, d), received rows of different lengths: "
            f"{reason(error)}"
        ) from error
    return rows_of_array(values)


def _manifest(
    name: str, count: int, y: Iterable[object] | None, texts: dict[str, Sequence[str] | None]
) -> Manifest:
    """Return what is known of rows before their features are read."""
    columns = {what: _column(what, values, count) for what, values in texts.items()}
    classes, label = None, np.full(count, -1, np.int32)
    if y is not None:
        classes, label = encode_labels(y, count)
    blank, unknown = [""] * count, np.full(count, -1, np.int64)
    return Manifest(
        name=name,
        root="",
        classes=classes,
        path=columns["paths"] or [f"row:{row:06d}" for row in range(count)],
        label=label,
        group=columns["groups"] or blank,
        split=read_splits(columns["splits"] or blank, what="splits")[0],
        reason=blank,
        size=unknown,
        mtime_ns=unknown,
        inode=unknown,
        key=np.zeros((count, 32), np.uint8),
        status=np.full(count, OK, np.uint8),
        source=IMPORTED,
    )


def _column(what: str, values: Sequence[str] | None, count: int) -> list[str] | None:
    if values is None:
        return None
    # A path is what it is, also where it says NaN.
    texts = list(map(str, values)) if what == "paths" else list(map(as_text, values))
    if len(texts) != count:
        raise DatasetError(
            f"expected {count:,} {what}, one a row of the features, received {len(texts):,}"
        )
    return texts


def _survey(rows: RowSource, dtype: np.dtype[np.floating]) -> tuple[Keys, str]:
    """Return the key of each row (n, 32) and a digest of all; refuse what cannot be stored."""
    digest = hashlib.sha256(f"featx-import-1 {dtype.str} {rows.shape[1]}\n".encode("ascii"))
    keys, wrong, first, start = [], 0, -1, 0
    for values in rows.chunks():
        bad = ~_all(np.isfinite(values)) if values.dtype.kind == "f" else np.zeros(0, np.bool_)
        if bad.any():
            first = start + int(bad.argmax()) if first < 0 else first
            wrong += int(bad.sum())
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
    return np.concatenate(keys), digest.hexdigest()


def _keys(stored: AnyArray) -> Keys:
    joined = b"".join(array_key(row) for row in stored)
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def _all(values: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(values.all(axis=1))


def _stored(values: AnyArray, dtype: np.dtype[np.floating], start: int) -> AnyArray:
    """Return rows as they are stored; refuse numbers that the type cannot hold."""
    exact = np.ones(len(values), np.bool_)
    step = "scale them"
    if values.dtype.kind in "iu":
        exact = _all(values <= _EXACT) & _all(values >= -_EXACT)
        step = "these look like identifiers or codes rather than features"
    elif values.dtype.itemsize > dtype.itemsize:
        exact = _all(np.abs(values) <= np.finfo(dtype).max)
    if not exact.all():
        raise DatasetError(
            f"row {start + int(exact.argmin())} holds numbers that {dtype.name} cannot hold: {step}"
        )
    return np.ascontiguousarray(values, dtype)


def _store(space: FeatureSpace, rows: RowSource, keys: Keys, source: str) -> int:
    """Write the rows that are not there yet, each key once, and return how many."""
    fresh = ~space.has([IMPORTED], keys)
    fresh[copies(keys)] = False
    if not fresh.any():
        return 0
    writer = ShardWriter(space, {"engine": "import", "source": source})
    start = 0
    for values in rows.chunks():
        stored = _stored(values, np.dtype(space.spec.dtype), start)
        here = slice(start, start + len(stored))
        if not np.array_equal(_keys(stored), keys[here]):
            raise DatasetError("the features were changed while they were read: import them again")
        new = fresh[here]
        writer.add(keys[here][new], {IMPORTED: stored[new]})
        start += len(stored)
    writer.flush()
    return int(fresh.sum())
