"""Heads: the classifiers that are trained on features."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.heads.calibrated import TemperatureCalibrated as TemperatureCalibrated
    from featx.heads.dense import DenseClassifier as DenseClassifier
    from featx.heads.discriminant import ShrinkageLDA as ShrinkageLDA
    from featx.heads.estimators import check_folds as check_folds
    from featx.heads.head_pipeline import HeadPipeline as HeadPipeline
    from featx.heads.logistic import LogisticPathCV as LogisticPathCV
    from featx.heads.making import make_head as make_head
    from featx.heads.multilabel import MultiLabelHead as MultiLabelHead
    from featx.heads.nearest_mean import NearestMean as NearestMean
    from featx.heads.neighbours import NearestNeighbours as NearestNeighbours
    from featx.heads.rbf import ReducedRBF as ReducedRBF
    from featx.heads.storage import dump_head as dump_head
    from featx.heads.storage import load_head as load_head
    from featx.heads.table import HEADS as HEADS
    from featx.heads.table import HeadSpec as HeadSpec
    from featx.heads.table import head_names as head_names
    from featx.heads.trees import TreeEnsemble as TreeEnsemble

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
    "check_folds": "estimators",
    "dump_head": "storage",
    "head_names": "table",
    "load_head": "storage",
    "make_head": "making",
}


__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: scikit-learn takes a second to load."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
