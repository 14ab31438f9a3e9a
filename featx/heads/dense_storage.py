"""Dense heads as JSON and HDF5: ``head.json`` says what there is, ``head.h5`` holds the weights."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ArtefactError, FeatxError, HeadError, reason
from featx.files.safe_hdf5 import read_hdf5_array
from featx.files.safe_json import read_plain_json
from featx.heads.network import DenseWeights

DESCRIPTION, ARRAYS = "head.json", "head.h5"
_TYPE, _VERSION, _VERSION_WITH_LABELS = "featx.head.dense", 1, 2
_MOST_JSON_BYTES = 64 << 20
_SCALES = ("mean_", "scale_", "var_")


def is_dense(head: Any) -> bool:
    """Whether this is a `DenseClassifier`, alone or behind a ``StandardScaler``."""
    scaler, dense = _parts(head)
    return dense is not None and (scaler is None or _is(scaler, "StandardScaler"))


def dump_dense(head: Any) -> dict[str, bytes]:
    """Turn a trained dense head into its two files.

    Parameters
    ----------
    head : DenseClassifier or Pipeline
        Trained; `is_dense` holds for it.

    Returns
    -------
    files : dict of str to bytes
        ``head.json`` and ``head.h5``, the latter with contiguous float32 datasets ``kernel_<i>``
        and ``bias_<i>``.

    Raises
    ------
    HeadError
        It is not trained, or its labels or parameters are no plain values.
    """
    import h5py

    scaler, dense = _parts(head)
    if not hasattr(dense, "weights_"):
        raise HeadError("the head is not trained: call fit before saving")
    params = _plain_params(dense.get_params(deep=False))
    description = {
        "type": _TYPE,
        # What the first version can say stays readable to a featx that knows no other.
        "version": _VERSION_WITH_LABELS if _is_new(dense, params) else _VERSION,
        "params": params,
        "classes": _dump_labels(dense.classes_),
        "layers": [list(kernel.shape) for kernel, _ in dense.weights_],
        "scaler": None if scaler is None else _dump_scaler(scaler),
        "n_iter": dense.n_iter_,
        "best_epoch": dense.best_epoch_,
        "history": dense.history_,
    }
    if dense.multilabel_:
        description["multilabel"] = True
    try:
        # ASCII, since names of folders that are no valid text have no UTF-8.
        text = json.dumps(description, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise HeadError(
            f"the dense head cannot be saved ({reason(error)}): use labels that are strings "
            "or numbers"
        ) from error
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        for name, array in _named(dense.weights_).items():
            h5.create_dataset(name, data=np.ascontiguousarray(array, dtype="<f4"))
    return {DESCRIPTION: text.encode(), ARRAYS: file.getvalue()}


def load_dense(description: bytes, arrays: bytes) -> Any:
    """Make a trained dense head from its two files, without Keras.

    Parameters
    ----------
    description : bytes
        ``head.json``.
    arrays : bytes
        ``head.h5``.

    Returns
    -------
    head : DenseClassifier or Pipeline

    Raises
    ------
    ArtefactError
        A file is damaged, of another type or version, or the two do not fit each other.
    """
    try:
        said = read_plain_json(description, most_bytes=_MOST_JSON_BYTES)
        _require_version(said["type"], said["version"])
        return _made(said, arrays)
    except ArtefactError:
        raise
    except Exception as error:
        raise ArtefactError(
            f"{DESCRIPTION} or {ARRAYS} is damaged ({reason(error)}): expected "
            "what featx saved; copy them again or save the model again"
        ) from error


def read_layers(
    description: bytes, arrays: bytes
) -> tuple[dict[str, Any], NDArray[Any], DenseWeights]:
    """Read what a dense head computes with, without scikit-learn.

    Parameters
    ----------
    description, arrays : bytes
        As in `load_dense`, whose checks of parameters that only training needs are left out.

    Returns
    -------
    said : dict
        The description.
    classes : ndarray of shape (k,)
    weights : list of (kernel, bias)

    Raises
    ------
    ArtefactError, ValueError, KeyError, TypeError
        The files are damaged.
    """
    said = read_plain_json(description, most_bytes=_MOST_JSON_BYTES)
    _require_version(said["type"], said["version"])
    classes = _load_labels(said["classes"])
    hidden = tuple(said["params"]["hidden"])
    layers = _checked_layers(said["layers"], hidden, len(classes), len(arrays))
    return said, classes, _load_weights(arrays, layers)


def _require_version(kind: Any, version: Any) -> None:
    if kind != _TYPE or version not in (_VERSION, _VERSION_WITH_LABELS):
        raise ArtefactError(
            f"{DESCRIPTION} is of type {kind!r}, version {version!r}: expected {_TYPE!r}, version "
            f"{_VERSION} or {_VERSION_WITH_LABELS}; install the version of featx that wrote it"
        )


def _made(said: Mapping[str, Any], arrays: bytes) -> Any:
    from sklearn.preprocessing import StandardScaler

    from featx.heads.dense import DenseClassifier
    from featx.heads.head_pipeline import HeadPipeline

    params = dict(said["params"])
    params["hidden"] = tuple(params["hidden"])
    if isinstance(params["class_weight"], list):
        params["class_weight"] = dict(params["class_weight"])
    dense = DenseClassifier(**params)
    try:
        dense._validate_params()
    except FeatxError as error:
        raise ValueError(str(error)) from error
    dense.classes_ = _load_labels(said["classes"])
    dense.multilabel_ = said.get("multilabel", False)
    if not isinstance(dense.multilabel_, bool):
        raise ValueError("multilabel is neither true nor false")  # noqa: TRY004 (as the others)
    layers = _checked_layers(said["layers"], dense.hidden, len(dense.classes_), len(arrays))
    dense.n_features_in_ = layers[0][0]
    dense.weights_ = _load_weights(arrays, layers)
    dense.n_iter_, dense.best_epoch_ = int(said["n_iter"]), int(said["best_epoch"])
    dense.history_ = {str(k): [float(v) for v in values] for k, values in said["history"].items()}
    if said["scaler"] is None:
        return dense
    scaler = StandardScaler(
        with_mean=bool(said["scaler"]["with_mean"]), with_std=bool(said["scaler"]["with_std"])
    )
    for name in _SCALES:
        values = said["scaler"][name]
        array = None if values is None else np.array(values, dtype=np.float64)
        if array is not None and (array.shape != (layers[0][0],) or not np.isfinite(array).all()):
            raise ValueError(f"the scaler's {name} does not fit features {layers[0][0]} wide")
        setattr(scaler, name, array)
    scaler.n_samples_seen_ = np.float64(said["scaler"]["n_samples_seen_"])
    scaler.n_features_in_ = layers[0][0]
    return HeadPipeline([("scale", scaler), ("head", dense)])


def _checked_layers(
    layers: Any, hidden: tuple[int, ...], classes: int, size_bytes: int
) -> list[tuple[int, int]]:
    pairs = [(int(inputs), int(outputs)) for inputs, outputs in layers]
    if not pairs or [b for _, b in pairs] != [*hidden, classes]:
        raise ValueError(f"layers {pairs} do not fit hidden={hidden} and {classes} classes")
    if any(a < 1 or b < 1 for a, b in pairs) or any(
        before[1] != after[0] for before, after in pairwise(pairs)
    ):
        raise ValueError(f"layers {pairs} do not fit one another")
    if sum(a * b + b for a, b in pairs) * 4 > size_bytes:
        raise ValueError(f"layers {pairs} are larger than {ARRAYS}")
    return pairs


def _load_weights(arrays: bytes, layers: list[tuple[int, int]]) -> DenseWeights:
    import h5py

    weights: DenseWeights = []
    with h5py.File(io.BytesIO(arrays), "r") as h5:
        expected = {f"{kind}_{i}" for i in range(len(layers)) for kind in ("kernel", "bias")}
        if set(h5) != expected:
            raise ValueError(f"{ARRAYS} holds {sorted(h5)}, expected {sorted(expected)}")
        for i, (inputs, outputs) in enumerate(layers):
            kernel = read_hdf5_array(h5, f"kernel_{i}", (inputs, outputs), np.float32)
            bias = read_hdf5_array(h5, f"bias_{i}", (outputs,), np.float32)
            weights.append((kernel, bias))
    return weights


def _parts(head: Any) -> tuple[Any, Any]:
    steps = [step for _, step in head.steps] if hasattr(head, "steps") else [head]
    dense = steps[-1] if _is(steps[-1], "DenseClassifier") and len(steps) <= 2 else None
    return (steps[0] if len(steps) == 2 else None), dense


def _is(value: Any, name: str) -> bool:
    # By name and package: asking isinstance would import scikit-learn's classes to say no.
    cls = type(value)
    return cls.__name__ == name and cls.__module__.split(".")[0] in ("sklearn", "featx")


def _named(weights: DenseWeights) -> dict[str, NDArray[np.float32]]:
    return {
        f"{kind}_{i}": array
        for i, layer in enumerate(weights)
        for kind, array in zip(("kernel", "bias"), layer, strict=True)
    }


def _plain_params(params: dict[str, Any]) -> dict[str, Any]:
    plain = {name: _plain(value) for name, value in params.items()}
    plain["hidden"] = [int(size) for size in params["hidden"]]
    if isinstance(params["class_weight"], Mapping):
        plain["class_weight"] = [
            [_plain(label), float(weight)] for label, weight in params["class_weight"].items()
        ]
    if not isinstance(plain["random_state"], int):
        # A generator's state is of no use to a head that is trained.
        plain["random_state"] = None
    if plain["label_smoothing"] == 0:
        del plain["label_smoothing"]
    return plain


def _is_new(dense: Any, params: dict[str, Any]) -> bool:
    return bool(dense.multilabel_) or "label_smoothing" in params


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _dump_labels(classes: NDArray[Any]) -> dict[str, Any]:
    values = classes.tolist()
    if classes.dtype.kind not in "UOiufb" or (
        classes.dtype.kind == "O" and not all(isinstance(v, str) for v in values)
    ):
        raise HeadError(
            f"labels of type {classes.dtype} cannot be saved: use strings, integers or floats"
        )
    return {"dtype": classes.dtype.str, "values": values}


def _load_labels(said: Mapping[str, Any]) -> NDArray[Any]:
    dtype, values = np.dtype(str(said["dtype"])), said["values"]
    kinds = {"U": str, "O": str, "i": int, "u": int, "f": float, "b": bool}
    if not isinstance(values, list) or not all(type(v) is kinds[dtype.kind] for v in values):
        raise ValueError(f"the classes are not {dtype}")
    # np.dtype accepts a width of gigabytes a label; the labels themselves say what they need.
    classes = np.array(values, dtype=None if dtype.kind == "U" else dtype)
    if len(classes) < 2:
        raise ValueError("expected at least two classes")
    return classes


def _dump_scaler(scaler: Any) -> dict[str, Any]:
    arrays = {name: getattr(scaler, name) for name in _SCALES}
    return {
        "with_mean": scaler.with_mean,
        "with_std": scaler.with_std,
        # Python writes the shortest digits that read back as the same float64.
        **{k: None if v is None else np.asarray(v, np.float64).tolist() for k, v in arrays.items()},
        "n_samples_seen_": float(np.max(scaler.n_samples_seen_)),
    }
