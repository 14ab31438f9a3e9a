"""What a skops file holds, read without skops and compared with a table of heads.

A skops file names classes and gives them attributes. The classes that skops trusts can still do
harm with attributes that nobody checks: a folder that is written to, a method that is called by its
name, an index that compiled code follows. So this module reads a file into plain values, and takes
an estimator only where its class is in the table and each attribute is what that class has after
training: its kind, its shape beside the others, its range. `make` then creates the objects.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from featx.files.claims import shortened
from featx.files.safe_json import read_plain_json
from featx.files.safe_npy import read_npy
from featx.files.safe_zip import open_plain_zip

SCHEMA = "schema.json"
_MOST_MEMBERS = 200_000
_MOST_SCHEMA_BYTES = 256 << 20
_MOST_SCHEMA_ITEMS = 6_000_000
_MOST_COPIES = 4
_MOST_DEPTH = 60
_MOST_FEATURES = 1 << 24
_MOST_TREE_DEPTH = 10_000
_TREE = "sklearn.tree._tree.Tree"

Names = dict[str, Any]
Rule = Callable[[Any, Names], bool]


class Unchecked(ValueError):  # noqa: N818 (nothing need be wrong)
    """The file may be honest, and holds what the table does not have."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of a file, before it is made.

    Parameters
    ----------
    type : str
        Import path of its class.
    state : dict of str to object
        Its attributes: plain values, arrays, and other `Stored`.
    """

    type: str
    state: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its class."""
        return shortened(self.type.rpartition(".")[2])


# Reading


def read_stored(data: bytes) -> Any:
    """Read a skops file into plain values; nothing is imported.

    Raises
    ------
    Unchecked
        It holds an object of another kind than trained heads are made of.
    ValueError, KeyError, zipfile.BadZipFile, RecursionError
        It is no skops file, or damaged.
    """
    with open_plain_zip(io.BytesIO(data), most_members=_MOST_MEMBERS) as archive:
        schema = _read_schema(archive)
        if schema.get("protocol") not in (0, 1, 2):
            raise Unchecked("is of a later version of skops")
        return _Reader(archive).value(schema, 0)


def check_contents(data: bytes) -> None:
    """Refuse a skops file that could cost more than its own size, whatever it holds.

    Raises
    ------
    ValueError, KeyError, zipfile.BadZipFile, RecursionError
        It is no skops file that featx writes: compressed, with other members than JSON and
        arrays, with arrays larger than their members, or many references to one array.
    """
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
    """Makes values of the nodes of a schema."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._arrays: dict[str, Any] = {}

    def value(self, node: Any, depth: int) -> Any:
        """Return what a node stands for."""
        if depth > _MOST_DEPTH:
            raise ValueError(f"{SCHEMA} is nested too deeply")
        kind, content, depth = node["__loader__"], node.get("content"), depth + 1
        path = f"{node['__module__']}.{node['__class__']}"
        match kind, path:
            case "JsonNode", _:
                return self._scalar(content)
            case "NdArrayNode", _:
                return self._array(node, path, depth)
            case "ListNode", "builtins.list":
                return [self.value(item, depth) for item in content]
            case "TupleNode", "builtins.tuple":
                return tuple(self.value(item, depth) for item in content)
            case "DictNode", "builtins.dict":
                keys = [_key_type(item) for item in node["key_types"]["content"]]
                values = [self.value(item, depth) for item in content.values()]
                return {
                    make_key(key): value
                    for make_key, key, value in zip(keys, content, values, strict=True)
                }
            case "ObjectNode", _ if path in _TYPES:
                return Stored(path, self._state(content, depth))
            case "TreeNode", "sklearn.tree._tree.Tree":
                arguments = self.value(node["__reduce__"]["args"], depth)
                return Stored(_TREE, {**self._state(content, depth), "arguments": arguments})
            case ("RandomStateNode", "numpy.random.mtrand.RandomState") | (
                "RandomGeneratorNode",
                "numpy.random._generator.Generator",
            ):
                # A generator's state is of no use to a head that is trained.
                return None
        raise Unchecked(f"holds {shortened(path)}, which featx does not check")

    def _state(self, node: Any, depth: int) -> dict[str, Any]:
        if node["__loader__"] != "DictNode":
            raise ValueError(f"{SCHEMA} has an object without attributes")
        return {str(name): self.value(item, depth) for name, item in node["content"].items()}

    def _scalar(self, content: str) -> Any:
        found = json.loads(content)
        if isinstance(found, dict | list):
            raise ValueError(f"{SCHEMA} has a {type(found).__name__} for a scalar")  # noqa: TRY004
        return found

    def _array(self, node: Any, path: str, depth: int) -> Any:
        if node["type"] == "json":
            items = [self.value(item, depth) for item in node["content"]]
            # Such an array can hold anything; labels are text or numbers.
            if self.value(node["shape"], depth) != (len(items),) or not all(
                isinstance(item, str | int | float) for item in items
            ):
                raise Unchecked("holds an array of objects, which featx does not check")
            found = np.empty(len(items), object)
            found[:] = items
            return found
        name = node["file"]
        if name not in self._arrays:
            self._arrays[name] = read_npy(self._archive.read(name), shortened(name))
        array = self._arrays[name]
        if path == "numpy.ndarray":
            return array
        if array.ndim or not path.startswith("numpy."):
            raise Unchecked(f"holds {shortened(path)}, which featx does not check")
        return array[()]


def _key_type(node: Any) -> Callable[[str], Any]:
    path = f"{node['__module__']}.{node['__class__']}"
    kinds: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": bool}
    module, _, name = path.rpartition(".")
    if module == "builtins" and name in kinds:
        return kinds[name]
    if module == "numpy" and re.fullmatch(r"str_|bool|u?int\d{1,2}|float\d{2}", name):
        scalar: Callable[[str], Any] = getattr(np, name)
        return scalar
    raise Unchecked(f"holds {shortened(path)}, which featx does not check")


# Rules: what a value may be. `names` has what is known of the estimator: d is its number of
# features, k of its classes, m of its lines (one for two classes); rules add other sizes.


def _is(*values: Any) -> Rule:
    return lambda value, names: any(type(value) is type(v) and value == v for v in values)


def _flag(value: Any, names: Names) -> bool:
    return isinstance(value, bool | np.bool_)


def _whole(low: float = 0, high: float = 1 << 53) -> Rule:
    def rule(value: Any, names: Names) -> bool:
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        return whole and low <= value <= high

    return rule


def _number(low: float = -math.inf, high: float = math.inf, *, finite: bool = False) -> Rule:
    def rule(value: Any, names: Names) -> bool:
        real = isinstance(value, int | float | np.integer | np.floating)
        if not real or isinstance(value, bool) or not low <= value <= high:
            return False
        return not finite or abs(value) <= np.finfo(np.float64).max

    return rule


def _either(*rules: Rule) -> Rule:
    return lambda value, names: any(rule(value, names) for rule in rules)


def _weights(value: Any, names: Names) -> bool:
    if isinstance(value, dict):
        return all(_number()(weight, names) for weight in value.values())
    return _is(None, "balanced")(value, names)


def _has_shape(
    value: Any, names: Names, shape: tuple[str | int, ...], types: tuple[str, ...]
) -> bool:
    if type(value) is not np.ndarray or value.ndim != len(shape):
        return False
    if not any(value.dtype == np.dtype(name) and value.dtype.isnative for name in types):
        return False
    sides = zip(value.shape, shape, strict=True)
    return all(
        side == (names.setdefault(name, side) if isinstance(name, str) else name)
        for side, name in sides
    )


def _floats(*shape: str | int, low: float = -math.inf, high: float = math.inf) -> Rule:
    def rule(value: Any, names: Names) -> bool:
        return (
            _has_shape(value, names, shape, ("f4", "f8"))
            and bool(np.isfinite(value).all())
            and (value.size == 0 or bool(low <= value.min() and value.max() <= high))
        )

    return rule


def _ints(*shape: str | int) -> Rule:
    return lambda value, names: _has_shape(value, names, shape, ("i4", "i8"))


def _size(name: str) -> Rule:
    return lambda value, names: (
        _whole()(value, names) and value == names.setdefault(name, int(value))
    )


def _template(value: Any, names: Names) -> bool:
    _check(value, trained=False)
    return True


def _inner(*types: str, width: str = "d") -> Rule:
    """Return the rule of a trained estimator with the classes of this one, on `width` features."""

    def rule(value: Any, names: Names) -> bool:
        found = _check(value)
        return (
            (not types or value.name in types)
            and found["classes"] == names["classes"]
            and found["d"] == names.setdefault(width, found["d"])
        )

    return rule


_METRICS = (
    *("braycurtis", "canberra", "chebyshev", "cityblock", "correlation", "cosine", "dice"),
    *("euclidean", "hamming", "jaccard", "l1", "l2", "manhattan", "minkowski", "nan_euclidean"),
    *("rogerstanimoto", "russellrao", "sokalsneath", "sqeuclidean", "yule"),
)
_SOLVERS = (
    *("auto", "lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga"),
    *("svd", "cholesky", "lsqr", "sparse_cg"),
)
_COUNT, _POSITIVE = _either(_is(None), _whole(-1)), _number(0)

# By name, since parameters of one name have one meaning. None is a method, a folder or a callable.
_PARAMETERS: Mapping[str, Rule] = {
    name: rule
    for words, rule in (
        ("copy copy_X fit_intercept positive warm_start whiten with_mean with_std", _flag),
        ("bootstrap", _flag),
        ("memory transform_input metric_params monotonic_cst priors", _is(None)),
        ("oob_score sparse_output", _is(False)),
        ("C alpha tol var_smoothing ccp_alpha min_impurity_decrease", _POSITIVE),
        ("dropout learning_rate weight_decay label_smoothing validation_fraction", _POSITIVE),
        ("max_iter max_depth max_leaf_nodes leaf_size n_oversamples", _COUNT),
        ("batch_size max_epochs patience folds", _COUNT),
        ("min_samples_leaf min_samples_split min_weight_fraction_leaf", _POSITIVE),
        ("intercept_scaling", _number()),
        ("l1_ratio radius max_samples", _either(_is(None), _number())),
        ("neg_label pos_label", _whole(-1000, 1000)),
        ("class_weight", _weights),
        ("random_state", _either(_is(None), _whole(0, (1 << 32) - 1))),
        ("n_jobs", _either(_is(None), _whole(-1024, -1), _whole(1, 1024))),
        ("verbose", _either(_flag, _whole(0, 100))),
        ("dual", _either(_flag, _is("auto"))),
        ("penalty", _is(None, "l1", "l2", "elasticnet", "none", "deprecated")),
        ("loss", _is("hinge", "squared_hinge")),
        ("multi_class", _is("auto", "ovr", "multinomial", "crammer_singer", "deprecated")),
        ("solver", _is(*_SOLVERS)),
        ("svd_solver", _is("auto", "full", "covariance_eigh", "arpack", "randomized")),
        ("power_iteration_normalizer", _is("auto", "QR", "LU", "none")),
        ("iterated_power", _either(_is("auto"), _whole())),
        ("n_components", _either(_is(None, "mle"), _POSITIVE)),
        ("norm", _is("l1", "l2", "max")),
        ("gamma", _either(_is("scale"), _POSITIVE)),
        ("shrinkage", _either(_is("auto"), _number(0, 1))),
        ("threshold", _number(0, 1)),
        ("n_neighbors", _whole(1)),
        ("weights", _is("uniform", "distance")),
        ("metric", _is(*_METRICS)),
        ("algorithm", _is("auto", "brute")),
        ("p", _number(1)),
        ("splits splitter", _is("best", "random")),
        ("criterion", _is("gini", "entropy", "log_loss")),
        ("max_features", _either(_is(None, "sqrt", "log2", "auto"), _POSITIVE)),
        ("n_estimators", _either(_is("auto"), _whole(1))),
        ("estimator", _template),
        ("estimator_params", lambda v, names: type(v) is tuple and set(v) <= set(_PARAMETERS)),
        ("hidden", lambda v, names: all(_whole(1)(side, names) for side in v)),
    )
    for name in words.split()
}
_TREE_PARAMETERS = (
    "criterion splitter max_depth min_samples_split min_samples_leaf min_weight_fraction_leaf "
    "max_features max_leaf_nodes random_state min_impurity_decrease class_weight ccp_alpha "
    "monotonic_cst"
)
_FOREST_PARAMETERS = (
    _TREE_PARAMETERS.replace("splitter", "estimator")
    + " n_estimators estimator_params bootstrap oob_score n_jobs verbose warm_start max_samples"
)


def _tree(value: Any, names: Names) -> bool:
    """Whether compiled code that follows a tree's indices stays within its arrays and ends."""
    from sklearn.tree._tree import NODE_DTYPE

    if not isinstance(value, Stored) or value.type != _TREE:
        return False
    state = dict(value.state)
    width, classes, outputs = state.pop("arguments")
    nodes, values, count = state.pop("nodes"), state.pop("values"), state.pop("node_count")
    depth = state.pop("max_depth")
    if (
        state
        or type(nodes) is not np.ndarray
        or nodes.dtype != NODE_DTYPE
        or not _size("d")(width, names)
        or not (_has_shape(classes, names, (1,), ("i8", "i4")) and classes[0] == names["k"])
        or not _is(1)(outputs, names)
        or not (_whole(1)(count, names) and nodes.shape == (count,))
        or not _whole(0, min(count, _MOST_TREE_DEPTH))(depth, names)
        or not _floats(count, 1, "k", low=0, high=1 + 1e-6)(values, names)
    ):
        return False
    left, right, feature = nodes["left_child"], nodes["right_child"], nodes["feature"]
    inner = np.flatnonzero(left != -1)
    children = np.concatenate([left[inner], right[inner]])
    parents = np.concatenate([inner, inner])
    if not (
        (right[left == -1] == -1).all()
        # Children lie behind their parents, so that no path is a circle.
        and (children > parents).all()
        and (children < count).all()
        and (np.bincount(children, minlength=count)[1:] == 1).all()
        and (feature[inner] >= 0).all()
        and (feature[inner] < names["d"]).all()
        and all(np.isfinite(nodes[name]).all() for name in ("threshold", "impurity"))
        and np.isfinite(nodes["weighted_n_node_samples"]).all()
        and np.allclose(values.sum(axis=2), 1, atol=1e-4)
    ):
        return False
    level = np.zeros(1, np.intp)
    for _ in range(depth):
        level = level[left[level] != -1]
        level = np.concatenate([left[level], right[level]])
        if not level.size:
            break
    return bool((left[level] == -1).all())


def _trees(*types: str) -> Rule:
    def rule(value: Any, names: Names) -> bool:
        if type(value) is not list or not value:
            return False
        found = [_check(tree) for tree in value]
        return all(tree.name in types for tree in value) and all(
            tree["d"] == names["d"] and tree["k"] == names["k"] for tree in found
        )

    return rule


def _layers(value: Any, names: Names) -> bool:
    """Whether weights of dense layers lead from the features to the classes."""
    if type(value) is not list or not value:
        return False
    width: int = names["d"]
    for layer in value:
        if type(layer) is not tuple or len(layer) != 2:
            return False
        kernel, bias = layer
        if not _floats(width, bias.shape[0])(kernel, names) or bias.dtype != kernel.dtype:
            return False
        width = bias.shape[0]
        if not _floats(width)(bias, names):
            return False
    return bool(width == names["k"])


def _votes(value: Any, names: Names) -> bool:
    """Whether every vote of a neighbour is for one of the classes."""
    shape: tuple[str | int, ...] = ("n",)
    if names["outputs"] is not None:
        shape = ("n", len(names["outputs"]))
    if not _has_shape(value, names, shape, (np.dtype(np.intp).str,)) or not value.size:
        return False
    most = [len(c) for c in names["outputs"]] if names["outputs"] is not None else names["k"]
    return bool(value.min() >= 0 and (value.max(axis=0) < most).all())


def _varying(value: Any, names: Names) -> bool:
    return (
        _ints("v")(value, names)
        and set(value.tolist()) <= set(range(names["k"]))
        and bool((np.diff(value) > 0).all())
    )


def _shared_or_one_a_label(value: Any, names: Names) -> bool:
    """Whether estimators of several labels answer for the labels that vary."""
    if type(value) is not list:
        return False
    found, varying, shared = [_check(one) for one in value], names["v"], names["t"] > 0
    if any(each["d"] != names["d"] for each in found):
        return False
    if len(found) == varying and not shared:
        return all(each["classes"] == [0, 1] for each in found)
    if len(found) != 1:
        return False
    if shared:
        lines = value[0].name == "RidgeClassifier" and found[0]["m"] == varying
        return bool(lines and names["t"] == varying)
    return bool(found[0].get("outputs") == [[0, 1]] * varying)


def _one_line(value: Any, names: Names) -> bool:
    return bool(names["m"] == 1 and _floats("d")(value, names))


def _binarizer(value: Any, names: Names) -> bool:
    # It has no features of its own.
    found = _check(value)
    if value.state["y_type_"] == "multilabel-indicator":
        found["m"] = found["k"]
    same = bool(names.get("classes", found["classes"]) == found["classes"])
    names.update({name: found[name] for name in ("classes", "k", "m")})
    return same and value.name == "LabelBinarizer"


def _history(value: Any, names: Names) -> bool:
    return type(value) is dict and all(
        type(key) is str and type(run) is list and all(_number()(x, names) for x in run)
        for key, run in value.items()
    )


def _labels(value: Any) -> list[Any] | None:
    """Return labels in order, each once; None where the value is no array of them."""
    if type(value) is not np.ndarray or value.ndim != 1 or value.dtype.kind not in "UObiuf":
        return None
    if not value.dtype.isnative or not len(value):
        return None
    found: list[Any] = value.tolist()
    try:
        return found if all(a < b for a, b in pairwise(found)) else None
    except TypeError:
        return None


_ITERATIONS = _either(_is(None), _whole(), _ints("iterations"))
_INTERCEPT = _either(_floats("m"), _number(finite=True))
_TEMPERATURE = _number(1e-300, finite=True)
_FOREST: Mapping[str, Rule] = {
    "n_outputs_": _is(1),
    "n_classes_": _size("k"),
    "_n_samples": _whole(1),
    "_n_samples_bootstrap": _COUNT,
    "_sample_weight": _is(None),
    "estimator_": _template,
}
_TREE_LEARNT: Mapping[str, Rule] = {
    "n_outputs_": _is(1),
    "n_classes_": _size("k"),
    "max_features_": _whole(1),
    "tree_": _tree,
}
# fmt: off
# Parameters, and what training leaves, asked in this order. A name that ends in ? may be missing.
_TYPES: Mapping[str, tuple[str, Mapping[str, Rule]]] = {
    "sklearn.pipeline.Pipeline": ("memory transform_input verbose", {}),
    "featx.heads.head_pipeline.HeadPipeline": ("memory transform_input verbose", {}),
    "sklearn.preprocessing._data.StandardScaler": ("copy with_mean with_std", {
        "mean_": _either(_is(None), _floats("d")),
        "var_": _either(_is(None), _floats("d", low=0)),
        "scale_": _either(_is(None), _floats("d", low=1e-300)),
        "n_samples_seen_": _either(_number(0, finite=True), _ints("d"), _floats("d")),
    }),
    "sklearn.preprocessing._data.Normalizer": ("norm copy", {}),
    "sklearn.decomposition._pca.PCA": (
        "n_components copy whiten svd_solver tol iterated_power n_oversamples random_state "
        "power_iteration_normalizer", {
        "components_": _floats("out", "d"),
        "mean_": _floats("d"),
        "n_components_": _size("out"),
        "explained_variance_": _floats("out", low=0),
        "explained_variance_ratio_": _floats("out"),
        "singular_values_": _floats("out"),
        "noise_variance_": _number(finite=True),
        "n_samples_": _whole(1),
        "_fit_svd_solver": _PARAMETERS["svd_solver"],
    }),
    "sklearn.linear_model._logistic.LogisticRegression": (
        "penalty C l1_ratio dual tol fit_intercept intercept_scaling class_weight random_state "
        "solver max_iter verbose warm_start n_jobs multi_class", {
        "coef_": _floats("m", "d"),
        "intercept_": _floats("m"),
        "n_iter_": _ITERATIONS,
    }),
    "sklearn.svm._classes.LinearSVC": (
        "penalty loss dual tol C multi_class fit_intercept intercept_scaling class_weight verbose "
        "random_state max_iter", {
        "coef_": _floats("m", "d"),
        "intercept_": _INTERCEPT,
        "n_iter_": _ITERATIONS,
    }),
    "sklearn.linear_model._ridge.RidgeClassifier": (
        "alpha fit_intercept copy_X max_iter tol class_weight solver positive random_state", {
        "_label_binarizer": _binarizer,
        "coef_": _either(_floats("m", "d"), _one_line),
        "intercept_": _INTERCEPT,
        "n_iter_": _ITERATIONS,
        "solver_?": _PARAMETERS["solver"],
    }),
    "sklearn.preprocessing._label.LabelBinarizer": ("neg_label pos_label sparse_output", {
        "y_type_": _is("binary", "multiclass", "multilabel-indicator"),
        "sparse_input_": _is(False),
    }),
    "sklearn.naive_bayes.GaussianNB": ("priors var_smoothing", {
        "theta_": _floats("k", "d"),
        "var_": _floats("k", "d", low=1e-300),
        "class_count_": _floats("k", low=0),
        "class_prior_": _floats("k", low=0, high=1),
        "epsilon_": _number(0, finite=True),
    }),
    "sklearn.neighbors._classification.KNeighborsClassifier": (
        "n_neighbors radius algorithm leaf_size metric metric_params p n_jobs weights", {
        "_fit_X": _floats("n", "d"),
        "_y": _votes,
        "n_samples_fit_": _size("n"),
        "_fit_method": _is("brute"),
        "_tree": _is(None),
        "effective_metric_": _is(*_METRICS),
        "effective_metric_params_": lambda v, names: (
            type(v) is dict and set(v) <= {"p"} and _number(1)(v.get("p", 1), names)
        ),
    }),
    "sklearn.ensemble._forest.RandomForestClassifier": (
        _FOREST_PARAMETERS, {**_FOREST, "estimators_": _trees("DecisionTreeClassifier")}
    ),
    "sklearn.ensemble._forest.ExtraTreesClassifier": (
        _FOREST_PARAMETERS, {**_FOREST, "estimators_": _trees("ExtraTreeClassifier")}
    ),
    "sklearn.tree._classes.DecisionTreeClassifier": (_TREE_PARAMETERS, _TREE_LEARNT),
    "sklearn.tree._classes.ExtraTreeClassifier": (_TREE_PARAMETERS, _TREE_LEARNT),
    "featx.heads.nearest_mean.NearestMean": (
        "metric", {"means_": _floats("k", "d"), "temperature_": _TEMPERATURE}
    ),
    "featx.heads.discriminant.ShrinkageLDA": (
        "shrinkage class_weight", {"coef_": _floats("m", "d"), "intercept_": _floats("m")}
    ),
    "featx.heads.neighbours.NearestNeighbours": (
        "n_neighbors weights metric n_jobs", {"model_": _inner("KNeighborsClassifier")}
    ),
    "featx.heads.rbf.ReducedRBF": ("C gamma n_components class_weight random_state", {
        "basis_": _floats("b", "d"),
        "whitening_": _floats("b", "r"),
        "gamma_": _number(0, finite=True),
        "machine_": _inner("LinearSVC", width="r"),
    }),
    "featx.heads.trees.TreeEnsemble": (
        "splits n_estimators max_depth min_samples_leaf min_weight_fraction_leaf max_features "
        "class_weight n_jobs random_state",
        {"model_": _inner("RandomForestClassifier", "ExtraTreesClassifier")},
    ),
    "featx.heads.dense.DenseClassifier": (
        "hidden dropout learning_rate weight_decay label_smoothing batch_size max_epochs patience "
        "validation_fraction class_weight random_state verbose", {
        "multilabel_": _flag,
        "weights_": _layers,
        "n_iter_": _whole(),
        "best_epoch_": _whole(),
        "history_": _history,
    }),
    "featx.heads.calibrated.TemperatureCalibrated": ("estimator folds", {
        "estimator_": _inner(), "n_folds_": _whole(), "temperature_": _TEMPERATURE,
    }),
    "featx.heads.multilabel.MultiLabelHead": ("estimator threshold", {
        "shares_": _floats("k", low=0, high=1),
        "varying_": _varying,
        "temperatures_": _floats("t", low=1e-300),
        "estimators_": _shared_or_one_a_label,
    }),
}
# fmt: on
_WITHOUT_WIDTH = ("LabelBinarizer",)
OWN_TYPES = tuple(path for path in _TYPES if path.startswith("featx."))
"""Classes of featx that skops is told of where a file is trusted."""


def check_head(value: Any) -> None:
    """Refuse what is no trained classifier of the table, or has an attribute it cannot have.

    Raises
    ------
    Unchecked
        It says what is there, as the end of a sentence about the file.
    """
    found = _check(value)
    if "classes" not in found and "outputs" not in found:
        raise Unchecked(f"holds {value.name}, expected a trained classifier")


def _check(value: Any, *, trained: bool = True) -> Names:
    """Return the sizes and classes of an estimator that is right."""
    if not isinstance(value, Stored):
        raise Unchecked(f"holds {_described(value)}, expected a trained classifier")
    if value.type not in _TYPES:
        raise Unchecked(f"holds {shortened(value.type)}, which featx does not check")
    parameters, learnt = _TYPES[value.type]
    state = dict(value.state)
    names: Names = {}
    for name in [*parameters.split(), "_sklearn_version"]:
        if name in state:
            rule = _version if name == "_sklearn_version" else _PARAMETERS[name]
            _require(value, name, rule, state.pop(name), names)
    if value.name in ("Pipeline", "HeadPipeline"):
        names = _check_steps(value, state.pop("steps", None), trained=trained)
    elif trained:
        names = _check_learnt(value, state, learnt)
    if state:
        raise Unchecked(
            f"holds {value.name} with {shortened(min(state))}, which featx does not check"
        )
    return names


def _check_learnt(value: Stored, state: dict[str, Any], learnt: Mapping[str, Rule]) -> Names:
    names: Names = {}
    if value.name not in _WITHOUT_WIDTH:
        learnt = {"n_features_in_": _whole(1, _MOST_FEATURES), **learnt}
        names["d"] = state.get("n_features_in_")
    if "outputs_2d_" in state:
        _require(value, "outputs_2d_", _flag, state.pop("outputs_2d_"), names)
        names["outputs"] = None
    if "classes_" in state:
        _take_classes(value, state.pop("classes_"), names)
    for name, rule in learnt.items():
        optional, name = name.endswith("?"), name.removesuffix("?")
        if name in state:
            _require(value, name, rule, state.pop(name), names)
        elif not optional:
            raise Unchecked(f"holds {value.name} without {name}, expected a trained classifier")
    if value.name == "KNeighborsClassifier" and value.state["n_neighbors"] > names["n"]:
        raise Unchecked("holds fewer neighbours than vote")
    return names


def _take_classes(value: Stored, classes: Any, names: Names) -> None:
    if value.state.get("outputs_2d_"):
        found = [_labels(one) for one in classes] if type(classes) is list else []
        _require(value, "classes_", lambda v, n: None not in found and bool(found), classes, names)
        names["outputs"] = found
        return
    labels = _labels(classes)
    _require(value, "classes_", lambda v, n: labels is not None, classes, names)
    assert labels is not None
    names.update(classes=labels, k=len(labels), m=1 if len(labels) == 2 else len(labels))


def _check_steps(pipeline: Stored, steps: Any, *, trained: bool) -> Names:
    names: Names = {}
    _require(
        pipeline,
        "steps",
        lambda value, names: (
            type(value) is list
            and bool(value)
            and all(type(s) is tuple and len(s) == 2 and type(s[0]) is str for s in value)
        ),
        steps,
        names,
    )
    found = [_check(step, trained=trained) for _, step in steps]
    if not trained:
        return {}
    for before, after in pairwise(found):
        if "classes" in before or before.get("out", before["d"]) != after["d"]:
            raise Unchecked(f"holds {pipeline.name} whose steps do not fit one another")
    return {**found[-1], "d": found[0]["d"]}


def _version(value: Any, names: Names) -> bool:
    # A warning of scikit-learn repeats it.
    return isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,40}", value, re.ASCII) is not None


def _require(owner: Stored, name: str, rule: Rule, value: Any, names: Names) -> None:
    try:
        right = rule(value, names)
    except Unchecked:
        raise
    except Exception:
        right = False
    if not right:
        raise Unchecked(
            f"holds {owner.name} with {name} ({_described(value)}) as featx does not take it"
        )


def _described(value: Any) -> str:
    if isinstance(value, Stored):
        return value.name
    if isinstance(value, np.ndarray):
        return shortened(f"{value.dtype} of shape {value.shape}")
    return type(value).__name__


def make(value: Any) -> Any:
    """Create what was read; only for what `check_head` took."""
    if isinstance(value, list | tuple):
        return type(value)(make(item) for item in value)
    if isinstance(value, dict):
        return {key: make(item) for key, item in value.items()}
    if not isinstance(value, Stored):
        return value
    module, _, name = value.type.rpartition(".")
    cls = getattr(import_module(module), name)
    state = make(value.state)
    arguments = state.pop("arguments", None)
    instance = cls.__new__(cls) if arguments is None else cls(*arguments)
    instance.__setstate__(state)
    return instance
