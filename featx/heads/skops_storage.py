"""scikit-learn heads as skops files, and which types such a file may name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from featx.exceptions import ArtefactError, HeadError, reason
from featx.heads.skops_contents import check_contents

__all__ = ["OWN_TYPES", "dump_skops", "load_skops"]

OWN_TYPES = (
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
"""What is accepted besides the types that skops trusts itself: estimators whose construction and
state are plain values."""

_UNCHECKED = frozenset(
    f"sklearn.{module}.{name}"
    for module, names in (
        ("svm._classes", ("SVC", "NuSVC", "SVR", "NuSVR", "OneClassSVM")),
        ("neighbors._classification", ("RadiusNeighborsClassifier",)),
        ("neighbors._unsupervised", ("NearestNeighbors",)),
        ("neighbors._lof", ("LocalOutlierFactor",)),
    )
    for name in names
)
"""Types that skops trusts, whose compiled code reads arrays without looking at their bounds."""

_NEVER = {"tests", "conftest", "_testing", "externals", "datasets"}


def dump_skops(head: Any) -> bytes:
    """Turn a trained estimator into a skops file.

    Parameters
    ----------
    head : estimator
        Trained.

    Returns
    -------
    data : bytes

    Raises
    ------
    HeadError
        It is not trained, or holds what `load_skops` would refuse even with ``trust=True``.
    """
    import skops.io
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(head)
        data: bytes = skops.io.dumps(head)
    except NotFittedError as error:
        raise HeadError("the head is not trained: call fit before saving") from error
    except Exception as error:
        raise HeadError(
            f"{type(head).__name__} cannot be saved: {reason(error)}: use a head of featx or "
            "scikit-learn"
        ) from error
    refused = [name for name in _distrusted(data) if not _is_class_of_sklearn(name)]
    if refused:
        raise HeadError(
            f"{type(head).__name__} cannot be saved, since no one could load it: it holds "
            f"{', '.join(refused)}; expected types of scikit-learn and featx only"
        )
    return data


def load_skops(data: bytes, *, name: str, trust: bool = False) -> Any:
    """Make a trained estimator from a skops file.

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        What to call it in errors.
    trust : bool, default=False
        Whether to accept classes of scikit-learn that skops distrusts.

    Returns
    -------
    head : estimator

    Raises
    ------
    ArtefactError
        The file is damaged or no skops file, names types that are not accepted, or holds no
        trained classifier.
    """
    try:
        named = check_contents(data)
        import skops.io

        distrusted = _distrusted(data)
    except Exception as error:
        raise _damaged(name, error) from error
    refused = [t for t in distrusted if not _is_class_of_sklearn(t)]
    if refused:
        raise ArtefactError(
            f"{name} names {', '.join(refused)}, which featx never loads: expected types of "
            "scikit-learn and featx only; do not use this file unless you made it, and then "
            "train again"
        )
    risky = sorted({*distrusted, *(_UNCHECKED & named)})
    if risky and not trust:
        raise ArtefactError(
            f"{name} names {', '.join(risky)}, which a hostile file could use to crash the "
            "process: load with trust=True if you know who made it"
        )
    try:
        head = skops.io.loads(data, trusted=[*OWN_TYPES, *distrusted])
    except Exception as error:
        raise _damaged(name, error) from error
    if not _is_trained(head):
        raise ArtefactError(
            f"{name} holds {type(head).__name__}, expected a trained classifier: "
            "save the model again"
        )
    if not trust:
        _require_checked_neighbours(head, name)
    return head


def _distrusted(data: bytes) -> list[str]:
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(data=data)) - set(OWN_TYPES))


def _is_class_of_sklearn(path: str) -> bool:
    """Whether the path leads to a class that scikit-learn defines.

    Never a function, so that no file can have one called; nothing of numpy or scipy beyond what
    skops trusts, since some of their classes open files when they are made; and nothing that is
    not plainly a part of the library, since looking it up imports it.
    """
    module_name, _, name = path.rpartition(".")
    parts = module_name.split(".")
    if parts[0] != "sklearn" or any(p in _NEVER or p.startswith("__") for p in parts):
        return False
    try:
        found = getattr(import_module(module_name), name, None)
    except Exception:
        return False
    return isinstance(found, type) and found.__module__.startswith("sklearn.")


def _require_checked_neighbours(head: Any, name: str) -> None:
    """Refuse neighbours whose votes lead outside of their arrays: the search is compiled code."""
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    for model in _inner(head, KNeighborsClassifier):
        kept, votes = np.asarray(model._fit_X), np.asarray(model._y)
        classes = model.classes_ if isinstance(model.classes_, list) else [model.classes_]
        columns = votes.reshape(len(votes), -1)
        if (
            model._fit_method != "brute"
            or model._tree is not None
            or kept.ndim != 2
            or len(kept) != len(votes)
            or not 1 <= model.n_neighbors <= len(kept)
            or columns.dtype.kind not in "iu"
            or columns.shape[1] != len(classes)
            or columns.min() < 0
            or (columns.max(axis=0) >= [len(labels) for labels in classes]).any()
        ):
            raise ArtefactError(
                f"{name} holds neighbours that do not fit one another, or are kept in a tree: load "
                "with trust=True if you know who made it"
            )


def _inner(value: Any, cls: type) -> list[Any]:
    """Find estimators of a class in an estimator, at any depth."""
    found, waiting, seen = [], [value], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, str | bytes):
            continue
        seen.add(id(one))
        if isinstance(one, cls):
            found.append(one)
        if isinstance(one, list | tuple | set):
            waiting.extend(one)
        elif isinstance(one, dict):
            waiting.extend(one.values())
        elif type(one).__module__.startswith(("sklearn.", "featx.")):
            waiting.extend(vars(one).values() if hasattr(one, "__dict__") else ())
    return found


def _is_trained(head: Any) -> bool:
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(head)
    except Exception:
        return False
    return isinstance(head, BaseEstimator) and hasattr(head, "predict")


def _damaged(name: str, error: BaseException) -> ArtefactError:
    return ArtefactError(
        f"{name} is damaged or no skops file ({reason(error)}): expected what "
        "featx saved; copy it again or save the model again"
    )
