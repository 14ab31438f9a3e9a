"""Heads as the bytes that a model file keeps. Nothing here writes or reads a pickle.

What featx 0.1 stored is read, too: skops files, and the two files of dense heads. A skops file
names classes and gives them attributes. Without trust, nothing that it names is imported or made:
the file is read into plain values, and the arithmetic of the heads that featx offered is taken from
these by the rules of `featx.heads.to_steps`.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ArtefactError, HeadError, reason
from featx.files.claims import shortened
from featx.files.safe_hdf5 import read_hdf5_array
from featx.files.safe_json import read_plain_json
from featx.files.safe_npy import read_npy
from featx.files.safe_zip import open_plain_zip
from featx.heads.steps import (
    TYPE,
    Fitted,
    FittedHead,
    FittedMargins,
    Scale,
    Sigmoid,
    Softmax,
    Step,
    dense_steps,
    dump_fitted,
    fitted_head,
    fitted_values,
    labels_from_json,
    load_fitted,
    read_description,
)
from featx.heads.to_steps import Stored, steps_of, translate

DESCRIPTION, ARRAYS, SKOPS = "head.json", "head.h5", "head.skops"
_RELEASED_DENSE = "featx.head.dense"
_LOGGER = logging.getLogger("featx")
SCHEMA = "schema.json"
_MOST_MEMBERS = 200_000
_MOST_SCHEMA_BYTES = 256 << 20
_MOST_SCHEMA_ITEMS = 6_000_000
_MOST_COPIES = 4
_MOST_DEPTH = 60
# Of a matrix that the labels of a file can make of a few of its numbers.
_MOST_CELLS = 1 << 27
_DISTORTED = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
_NEVER = {"tests", "conftest", "_testing", "externals", "datasets"}
_MOST_NAMED = 3
PACKAGES = ("xgboost", "lightgbm", "catboost")
"""Packages whose fitted estimators a model file can hold, for readers who trust it."""
_PACKAGES = ("sklearn", *PACKAGES)
_KNOWN = f"scikit-learn, featx, {', '.join(PACKAGES)} only"
_PLAIN_TYPES = ("collections.OrderedDict", "collections.defaultdict")
_FEATX_TYPES = (
    "featx.heads.calibrated.TemperatureCalibrated",
    "featx.heads.dense.DenseClassifier",
    "featx.heads.discriminant.ShrinkageLDA",
    "featx.heads.foreign.EncodedLabels",
    "featx.heads.head_pipeline.HeadPipeline",
    "featx.heads.multilabel.MultiLabelHead",
    "featx.heads.nearest_mean.NearestMean",
    "featx.heads.neighbours.NearestNeighbours",
    "featx.heads.regression.EachValue",
    "featx.heads.regression.ValuePipeline",
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
    width = int(head.n_features_in_)
    if hasattr(head, "classes_"):
        fitted: Fitted = fitted_head(head.classes_, width, steps)
    else:
        fitted = fitted_values(np.ravel(head.predict(np.zeros((1, width)))).size, width, steps)
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
        f"expected {TYPE!r}, version 1 or 2; install the version of featx that wrote it"
    )


def _dump_skops(head: Any) -> bytes:
    import skops.io

    name = type(head).__name__
    try:
        data: bytes = skops.io.dumps(head)
        _, refused = _distrusted(data, trust=True)
    except Exception as error:
        raise HeadError(
            f"{name} cannot be saved: {reason(error)}: use a head of featx or scikit-learn"
        ) from error
    if refused:
        raise HeadError(
            f"{name} cannot be saved, since no one could load it: it holds {refused}; expected "
            f"types of {_KNOWN}"
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

        distrusted, refused = _distrusted(data, trust=trust)
    except Exception as error:
        raise _damaged(error) from error
    if refused:
        raise ArtefactError(
            f"{SKOPS} names {refused}, which featx never loads: expected types of {_KNOWN}; do "
            "not use this file unless you made it, and then train again"
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
            f"{SKOPS} holds {shortened(type(head).__name__)}, expected a trained estimator: "
            "save the model again"
        )
    return head


def _distrusted(data: bytes, *, trust: bool) -> tuple[list[str], str]:
    """Return the types that skops does not trust, and the names of those that are never loaded."""
    import skops.io

    paths = sorted(set(skops.io.get_untrusted_types(data=data)))
    refused = [shortened(path) for path in paths if not _is_loadable(path, trust=trust)]
    more = f" and {len(refused) - _MOST_NAMED} more" if len(refused) > _MOST_NAMED else ""
    return paths, ", ".join(refused[:_MOST_NAMED]) + more


def _is_loadable(path: str, *, trust: bool) -> bool:
    """Whether the path leads to a class of a head of featx, or one that scikit-learn defines.

    Packages of `PACKAGES` are imported only with trust.
    """
    if path in _FEATX_TYPES or path in _PLAIN_TYPES:
        return True
    module_name, _, name = path.rpartition(".")
    parts = module_name.split(".")
    if parts[0] not in _PACKAGES or any(p in _NEVER or p.startswith("__") for p in parts):
        return False
    if parts[0] in PACKAGES and not trust:
        return True
    try:
        cls = getattr(import_module(module_name), name, None)
    except Exception:
        return False
    return isinstance(cls, type) and cls.__module__.startswith(f"{parts[0]}.")


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


class Unchecked(ValueError):  # noqa: N818 (nothing need be wrong)
    """The file may be honest, and holds what no head of featx has."""


class _StoredTree(Stored):
    """A tree, with the attributes that compiled code would compute."""

    def __init__(self, stored_type: str, state: dict[str, Any]) -> None:
        super().__init__(stored_type, {})
        nodes = state["nodes"]
        self.children_left, self.children_right = nodes["left_child"], nodes["right_child"]
        self.feature, self.threshold = nodes["feature"], nodes["threshold"]
        self.value = state["values"]


def released_skops_head(data: bytes) -> FittedHead | FittedMargins:
    """Return the head of a skops file that featx 0.1 wrote."""
    with open_plain_zip(io.BytesIO(data), most_members=_MOST_MEMBERS) as archive:
        schema = _read_schema(archive)
        if schema.get("protocol") not in (0, 1, 2):
            raise Unchecked("is of a later version of skops")
        try:
            head = _Reader(archive).value(schema, 0)
        except Unchecked as error:
            raise Unchecked(f"{error} (in {shortened(schema['__class__'])})") from error
    if not isinstance(head, Stored):
        raise Unchecked(f"holds {type(head).__name__}, expected a trained classifier")
    name = shortened(head.stored_type.rpartition(".")[2])
    try:
        parts = _parts(head)
    except (TypeError, ValueError) as error:
        raise Unchecked(f"holds {name} with steps as featx does not take them") from error
    last: Any = parts[-1]
    if not isinstance(last, Stored) or "classes_" not in vars(last):
        raise Unchecked(f"holds {name}, expected a trained estimator that featx knows")
    try:
        classes, width = vars(last)["classes_"], int(parts[0].n_features_in_)
        if isinstance(classes, list):
            classes = np.arange(len(classes))
        if not 0 < width * len(classes) <= _MOST_CELLS:
            raise ValueError(f"{width} features")
        with np.errstate(all="ignore"):
            return fitted_head(classes, width, translate(head))
    except HeadError as error:
        raise Unchecked(f"holds {error}, which featx does not check") from error
    except _DISTORTED as error:
        raise Unchecked(f"holds {name} with attributes as featx does not take them") from error


def _parts(estimator: Any) -> list[Any]:
    """Return the steps of a pipeline, and of pipelines in it."""
    steps = vars(estimator).get("steps") if isinstance(estimator, Stored) else None
    if not isinstance(steps, list) or not steps:
        return [estimator]
    return [part for _, step in steps for part in _parts(step)]


def check_contents(data: bytes) -> None:
    """Refuse a skops file that could cost more than its own size, whatever it holds."""
    with open_plain_zip(io.BytesIO(data), most_members=_MOST_MEMBERS) as archive:
        for member in archive.infolist():
            if member.filename == SCHEMA:
                continue
            if not member.filename.endswith(".npy") or "/" in member.filename:
                raise ValueError(f"{shortened(member.filename)!r} is no member that featx writes")
            read_npy(archive.read(member), shortened(member.filename))
        files = {
            (node.get("__id__"), node["file"])
            for node in _nodes(_read_schema(archive))
            if isinstance(node.get("file"), str)
        }
        # Each of several objects has a copy of its own, also where they name one member.
        if sum(archive.getinfo(name).file_size for _, name in files) > _MOST_COPIES * len(data):
            raise ValueError("many objects share one array")


def _read_schema(archive: zipfile.ZipFile) -> dict[str, Any]:
    if archive.getinfo(SCHEMA).file_size > _MOST_SCHEMA_BYTES:
        raise ValueError(f"{SCHEMA} has {archive.getinfo(SCHEMA).file_size} bytes")
    text = archive.read(SCHEMA)
    # An object of Python takes up to thirty times the bytes that name it.
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > _MOST_SCHEMA_ITEMS:
        raise ValueError(f"{SCHEMA} describes more than {_MOST_SCHEMA_ITEMS:,} values")
    return read_plain_json(text, most_bytes=_MOST_SCHEMA_BYTES)


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "__class__" in value and "__module__" in value:
                yield value
            waiting.extend(v for v in value.values() if isinstance(v, dict | list))
        elif isinstance(value, list):
            waiting.extend(v for v in value if isinstance(v, dict | list))


class _Reader:
    """Makes plain values of the nodes of a schema."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._arrays: dict[str, NDArray[np.generic]] = {}

    def value(self, node: Any, depth: int) -> Any:
        """Return what a node stands for."""
        if depth > _MOST_DEPTH:
            raise ValueError(f"{SCHEMA} is nested too deeply")
        kind, content, depth = node["__loader__"], node.get("content"), depth + 1
        path = f"{node['__module__']}.{node['__class__']}"
        match kind, path:
            case "JsonNode", _:
                scalar = json.loads(content)
                if isinstance(scalar, dict | list):
                    raise ValueError(f"{SCHEMA} has a {type(scalar).__name__} for a scalar")  # noqa: TRY004
                return scalar
            case "NdArrayNode", _:
                return self._array(node, path, depth)
            case "ListNode", "builtins.list":
                return [self.value(item, depth) for item in content]
            case "TupleNode", "builtins.tuple":
                return tuple(self.value(item, depth) for item in content)
            case "DictNode", "builtins.dict":
                return {name: self.value(item, depth) for name, item in content.items()}
            case "ObjectNode", _ if path.split(".")[0] in ("sklearn", "featx"):
                return Stored(path, self.value(content, depth) if content else {})
            case "TreeNode", "sklearn.tree._tree.Tree":
                return _StoredTree(path, self.value(content, depth))
            case (("RandomStateNode" | "RandomGeneratorNode"), _):
                # A generator's state is of no use to a head that is trained.
                return None
        raise Unchecked(f"holds {shortened(path)}, which featx does not check")

    def _array(self, node: Any, path: str, depth: int) -> Any:
        if node["type"] == "json":
            items = [self.value(item, depth) for item in node["content"]]
            # Such an array can hold anything; labels are text or numbers.
            if self.value(node["shape"], depth) != (len(items),) or not all(
                isinstance(item, str | int | float) for item in items
            ):
                raise Unchecked("holds an array of objects, which featx does not check")
            objects = np.empty(len(items), object)
            objects[:] = items
            return objects
        name = node["file"]
        if name not in self._arrays:
            self._arrays[name] = read_npy(self._archive.read(name), shortened(name))
        array = self._arrays[name]
        if path == "numpy.ndarray":
            return array
        if array.ndim or not path.startswith("numpy."):
            raise Unchecked(f"holds {shortened(path)}, which featx does not check")
        return array[()]


def released_dense_head(description: dict[str, Any], arrays: bytes) -> FittedHead | FittedMargins:
    """Return the head of the two files that featx 0.1 wrote for dense layers."""
    import h5py

    classes = labels_from_json(description["classes"])
    if not isinstance(multilabel := description.get("multilabel", False), bool):
        raise ValueError("multilabel is neither true nor false")  # noqa: TRY004 (as the others)
    hidden = tuple(description["params"]["hidden"])
    layers = [(int(inputs), int(outputs)) for inputs, outputs in description["layers"]]
    if not layers or [outputs for _, outputs in layers] != [*hidden, len(classes)]:
        raise ValueError(f"layers {layers} do not fit hidden={hidden} and {len(classes)} classes")
    if any(a < 1 or b < 1 for a, b in layers) or any(
        before[1] != after[0] for before, after in pairwise(layers)
    ):
        raise ValueError(f"layers {layers} do not fit one another")
    if sum(a * b + b for a, b in layers) * 4 > len(arrays):
        raise ValueError(f"layers {layers} are larger than head.h5")
    width = layers[0][0]
    scale = _scale(description["scaler"], width)
    with h5py.File(io.BytesIO(arrays), "r") as h5:
        expected = {f"{kind}_{i}" for i in range(len(layers)) for kind in ("kernel", "bias")}
        if set(h5) != expected:
            raise ValueError(f"head.h5 holds {sorted(h5)}, expected {sorted(expected)}")
        read = [
            (
                read_hdf5_array(h5, f"kernel_{number}", shape, np.float32),
                read_hdf5_array(h5, f"bias_{number}", shape[1:], np.float32),
            )
            for number, shape in enumerate(layers)
        ]
    return fitted_head(
        classes, width, [*scale, *dense_steps(read, Sigmoid() if multilabel else Softmax())]
    )


def _scale(scaler: Mapping[str, Any] | None, width: int) -> list[Step]:
    """Return the step that a stored scaler comes to, none where there is no scaler."""
    if scaler is None:
        return []
    columns = []
    for name, used, missing in (("mean_", "with_mean", 0.0), ("scale_", "with_std", 1.0)):
        values = scaler[name] if scaler[used] else None
        column = np.full(width, missing) if values is None else np.array(values, np.float64)
        if column.shape != (width,):
            raise ValueError(f"the scaler does not fit features {width} wide")
        columns.append(column)
    return [Scale(*columns)]
