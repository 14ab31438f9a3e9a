"""Frozen pretrained CNN features, computed once, and every classifier on them in seconds.

Names are imported when they are first used, so that ``import featx`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.auditing.audit import audit
    from featx.cache.features import Features
    from featx.cache.maintenance import FeatureCache
    from featx.cache.pack import pack_dataset
    from featx.exceptions import (
        ArtefactError,
        BackboneError,
        CacheError,
        CacheFormatError,
        CacheWriteError,
        DatasetError,
        EngineError,
        ExportError,
        FeaturesError,
        FeatxError,
        FineTuningError,
        HeadError,
        ImageError,
        MissingExtraError,
        OutputError,
        StoreError,
        UnknownNameError,
        WeightsError,
    )
    from featx.exporting.exporter import export
    from featx.exporting.verification import verify_export
    from featx.extraction.run import extract, plan_extraction
    from featx.finetuning.tuning import finetune
    from featx.images.dataset import ImageDataset
    from featx.importing.importer import import_features
    from featx.models.choosing import select
    from featx.models.classifier import ImageClassifier
    from featx.models.classifier import load_model as load
    from featx.models.evaluation import compare_models, evaluate
    from featx.models.extractor import FeatureExtractor
    from featx.models.prediction import predict
    from featx.models.prediction_parts import predict_to
    from featx.models.regressor import ImageRegressor
    from featx.models.search import search
    from featx.models.similarity import similar
    from featx.models.training import train
    from featx.reporting.model_report import report
    from featx.spec import FeatureSpec, ImagePolicy, ViewPolicy

__version__ = "0.1.0"

__all__ = [
    "ArtefactError",
    "BackboneError",
    "CacheError",
    "CacheFormatError",
    "CacheWriteError",
    "DatasetError",
    "EngineError",
    "ExportError",
    "FeatureCache",
    "FeatureExtractor",
    "FeatureSpec",
    "Features",
    "FeaturesError",
    "FeatxError",
    "FineTuningError",
    "HeadError",
    "ImageClassifier",
    "ImageDataset",
    "ImageError",
    "ImagePolicy",
    "ImageRegressor",
    "MissingExtraError",
    "OutputError",
    "StoreError",
    "UnknownNameError",
    "ViewPolicy",
    "WeightsError",
    "audit",
    "compare_models",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "import_features",
    "load",
    "pack_dataset",
    "plan_extraction",
    "predict",
    "predict_to",
    "report",
    "search",
    "select",
    "similar",
    "train",
    "verify_export",
]

_HOMES = {
    "FeatureCache": "featx.cache.maintenance",
    "FeatureExtractor": "featx.models.extractor",
    "FeatureSpec": "featx.spec",
    "Features": "featx.cache.features",
    "ImageClassifier": "featx.models.classifier",
    "ImageDataset": "featx.images.dataset",
    "ImagePolicy": "featx.spec",
    "ImageRegressor": "featx.models.regressor",
    "ViewPolicy": "featx.spec",
    "audit": "featx.auditing.audit",
    "compare_models": "featx.models.evaluation",
    "evaluate": "featx.models.evaluation",
    "export": "featx.exporting.exporter",
    "extract": "featx.extraction.run",
    "finetune": "featx.finetuning.tuning",
    "import_features": "featx.importing.importer",
    "load": "featx.models.classifier",
    "pack_dataset": "featx.cache.pack",
    "plan_extraction": "featx.extraction.run",
    "predict": "featx.models.prediction",
    "predict_to": "featx.models.prediction_parts",
    "report": "featx.reporting.model_report",
    "search": "featx.models.search",
    "select": "featx.models.choosing",
    "similar": "featx.models.similarity",
    "train": "featx.models.training",
    "verify_export": "featx.exporting.verification",
}
_OTHER_NAMES = {"load": "load_model"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'featx' has no attribute {name!r}")
    home = import_module(_HOMES.get(name, "featx.exceptions"))
    value = getattr(home, _OTHER_NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
