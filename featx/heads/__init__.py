"""Heads: the classifiers that are trained on features."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.heads.calibrated import TemperatureCalibrated
    from featx.heads.dense import DenseClassifier
    from featx.heads.discriminant import ShrinkageLDA
    from featx.heads.head_pipeline import HeadPipeline
    from featx.heads.logistic import LogisticPathCV
    from featx.heads.making import make_head
    from featx.heads.multilabel import MultiLabelHead
    from featx.heads.nearest_mean import NearestMean
    from featx.heads.neighbours import NearestNeighbours
    from featx.heads.rbf import ReducedRBF
    from featx.heads.storage import dump_head, load_head
    from featx.heads.table import HEADS, HeadSpec, head_names
    from featx.heads.trees import TreeEnsemble
    from featx.heads.validation import check_folds

__all__ = [
    "HEADS",
    "DenseClassifier",
    "HeadPipeline",
    "HeadSpec",
    "LogisticPathCV",
    "MultiLabelHead",
    "NearestMean",
    "NearestNeighbours",
    "ReducedRBF",
    "ShrinkageLDA",
    "TemperatureCalibrated",
    "TreeEnsemble",
    "check_folds",
    "dump_head",
    "head_names",
    "load_head",
    "make_head",
]

_MODULES = {
    "HEADS": "table",
    "DenseClassifier": "dense",
    "HeadPipeline": "head_pipeline",
    "HeadSpec": "table",
    "LogisticPathCV": "logistic",
    "MultiLabelHead": "multilabel",
    "NearestMean": "nearest_mean",
    "NearestNeighbours": "neighbours",
    "ReducedRBF": "rbf",
    "ShrinkageLDA": "discriminant",
    "TemperatureCalibrated": "calibrated",
    "TreeEnsemble": "trees",
    "check_folds": "validation",
    "dump_head": "storage",
    "head_names": "table",
    "load_head": "storage",
    "make_head": "making",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: scikit-learn takes a second to load."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
