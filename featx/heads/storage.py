"""Heads as the bytes that a model file keeps. Nothing here writes or reads a pickle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from featx.exceptions import ArtefactError, HeadError, reason
from featx.files.claims import shortened
from featx.heads.fitted import TYPE, dump_fitted, fitted_head, load_fitted, read_description
from featx.heads.released import (
    Unchecked,
    check_contents,
    released_dense_head,
    released_skops_head,
)
from featx.heads.to_steps import steps_of

DESCRIPTION, ARRAYS, SKOPS = "head.json", "head.h5", "head.skops"
_RELEASED_DENSE = "featx.head.dense"
_LOGGER = logging.getLogger("featx")
_NEVER = {"tests", "conftest", "_testing", "externals", "datasets"}
_MOST_NAMED = 3
_FEATX_TYPES = (
    "featx.heads.calibrated.TemperatureCalibrated",
    "featx.heads.dense.DenseClassifier",
    "featx.heads.discriminant.ShrinkageLDA",
    "featx.heads.head_pipeline.HeadPipeline",
    "featx.heads.multilabel.MultiLabelHead",
    "featx.heads.nearest_mean.NearestMean",
    "featx.heads.neighbours.NearestNeighbours",
    "featx.heads.rbf.ReducedRBF",
    "featx.heads.trees.TreeEnsemble",
)


def dump_head(head: Any) -> dict[str, bytes]:
    """Turn a trained head into files.

    Warns through the logger ``featx`` where `load_head` will ask for trust.

    Parameters
    ----------
    head : estimator
        Trained. One that comes down to steps of arithmetic becomes ``head.json`` and ``head.h5``,
        another estimator of scikit-learn ``head.skops``.

    Returns
    -------
    files : dict of str to bytes
        Contents by file name.

    Raises
    ------
    HeadError
        The head is not trained, or holds something that `load_head` would never accept.

    Examples
    --------
    >>> from featx.heads.making import make_head
    >>> head = make_head("logistic").fit([[0.0], [1.0]], ["ants", "bees"])
    >>> files = dump_head(head)
    >>> sorted(files)
    ['head.h5', 'head.json']
    >>> load_head(files).predict([[0.9]]).tolist()
    ['bees']
    """
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        if hasattr(head, "fit"):
            check_is_fitted(head)
    except NotFittedError as error:
        raise HeadError("the head is not trained: call fit before saving") from error
    try:
        steps = steps_of(head)
    except HeadError:
        return {SKOPS: _dump_skops(head)}
    fitted = fitted_head(head.classes_, int(head.n_features_in_), steps)
    return dict(zip((DESCRIPTION, ARRAYS), dump_fitted(fitted), strict=True))


def load_head(files: Mapping[str, bytes], *, trust: bool = False) -> Any:
    """Make a trained head from files.

    Parameters
    ----------
    files : mapping of str to bytes
        As `dump_head` gave them, also that of featx 0.1; other names are left alone.
    trust : bool, default=False
        By default only steps of arithmetic are read, none of which runs anything. With trust, any
        class of scikit-learn with any attributes: it can write files, run pickles and crash the
        process. Functions and classes from anywhere else are refused all the same.

    Returns
    -------
    head : estimator
        With the same answers as the one that was saved.

    Raises
    ------
    ArtefactError
        A file is missing, damaged, not ours, or holds what is not accepted; it is named.
    """
    if SKOPS in files:
        return _load_skops(files[SKOPS], trust=trust)
    if DESCRIPTION not in files or ARRAYS not in files:
        raise ArtefactError(
            f"no head: expected {SKOPS}, or {DESCRIPTION} and {ARRAYS}, received "
            f"{', '.join(sorted(files)) or 'no files'}: save the model again"
        )
    try:
        description = read_description(files[DESCRIPTION])
        kind, version = description["type"], description["version"]
        if kind == TYPE:
            return load_fitted(description, files[ARRAYS])
        if kind == _RELEASED_DENSE and version in (1, 2):
            return released_dense_head(description, files[ARRAYS])
    except Exception as error:
        raise ArtefactError(
            f"{DESCRIPTION} or {ARRAYS} is damaged ({reason(error)}): expected "
            "what featx saved; copy them again or save the model again"
        ) from error
    raise ArtefactError(
        f"{DESCRIPTION} is of type {shortened(repr(kind))}, version {shortened(repr(version))}: "
        f"expected {TYPE!r}, version 1; install the version of featx that wrote it"
    )


def _dump_skops(head: Any) -> bytes:
    import skops.io

    name = type(head).__name__
    try:
        data: bytes = skops.io.dumps(head)
        distrusted = _distrusted(data)
    except Exception as error:
        raise HeadError(
            f"{name} cannot be saved: {reason(error)}: use a head of featx or scikit-learn"
        ) from error
    refused = [path for path in distrusted if not _is_loadable(path)]
    if refused:
        raise HeadError(
            f"{name} cannot be saved, since no one could load it: it holds "
            f"{_named(refused)}; expected types of scikit-learn and featx only"
        )
    try:
        check_contents(data)
        released_skops_head(data)
    except Unchecked as error:
        _LOGGER.warning("loading this model will need --trust (trust=True): it %s", error)
    except Exception as error:
        raise HeadError(
            f"{name} cannot be saved, since no one could load it: {reason(error)}; use a head "
            "of featx"
        ) from error
    return data


def _load_skops(data: bytes, *, trust: bool) -> Any:
    try:
        return released_skops_head(data)
    except Unchecked as error:
        cause = str(error)
    except Exception as error:
        raise _damaged(error) from error
    try:
        check_contents(data)
        import skops.io

        distrusted = _distrusted(data)
    except Exception as error:
        raise _damaged(error) from error
    refused = [path for path in distrusted if not _is_loadable(path)]
    if refused:
        raise ArtefactError(
            f"{SKOPS} names {_named(refused)}, which featx never loads: expected types of "
            "scikit-learn and featx only; do not use this file unless you made it, and then "
            "train again"
        )
    if not trust:
        raise ArtefactError(
            f"{SKOPS} {cause}: give --trust (trust=True) if you know who made the file, and else "
            "do not use it"
        )
    try:
        head = skops.io.loads(data, trusted=distrusted)
    except Exception as error:
        raise _damaged(error) from error
    if not _is_trained(head):
        raise ArtefactError(
            f"{SKOPS} holds {shortened(type(head).__name__)}, expected a trained classifier: "
            "save the model again"
        )
    return head


def _distrusted(data: bytes) -> list[str]:
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(data=data)))


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(shortened(path) for path in paths[:_MOST_NAMED]) + more


def _is_loadable(path: str) -> bool:
    """Whether the path leads to a class of a head of featx, or one that scikit-learn defines."""
    if path in _FEATX_TYPES:
        return True
    module_name, _, name = path.rpartition(".")
    parts = module_name.split(".")
    if parts[0] != "sklearn" or any(p in _NEVER or p.startswith("__") for p in parts):
        return False
    try:
        cls = getattr(import_module(module_name), name, None)
    except Exception:
        return False
    return isinstance(cls, type) and cls.__module__.startswith("sklearn.")


def _is_trained(head: Any) -> bool:
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(head)
    except Exception:
        return False
    return isinstance(head, BaseEstimator) and hasattr(head, "predict")


def _damaged(error: BaseException) -> ArtefactError:
    return ArtefactError(
        f"{SKOPS} is damaged or no skops file ({reason(error)}): expected what "
        "featx saved; copy it again or save the model again"
    )
