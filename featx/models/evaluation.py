"""`evaluate`: a saved or fitted model on labelled images."""

from __future__ import annotations

from typing import Any

import numpy as np

from featx.backbones.registry import canonical_name
from featx.backbones.taps import parse_tap
from featx.cache.features import Features
from featx.cache.manifest import DUPLICATE, OK
from featx.exceptions import DatasetError, FeaturesError
from featx.images.dataset import ImageDataset
from featx.images.label_sets import label_matrix
from featx.job import view_specs
from featx.models.classifier import ImageClassifier
from featx.models.metrics import score_label_sets, score_predictions

__all__ = ["evaluate"]


def evaluate(model: ImageClassifier, data: Features | ImageDataset) -> dict[str, Any]:
    """Score a model on labelled images.

    Parameters
    ----------
    model : ImageClassifier
        Fitted.
    data : Features or ImageDataset
        Labelled; features must be of the model's specification. Where there is a split ``test``,
        only its images count.

    Returns
    -------
    dict
        As `featx.models.metrics.score_predictions`, or `score_label_sets` of a model that gives
        several labels, with ``failed``: images that could not be read.

    Raises
    ------
    DatasetError
        If there are no labels, or labels that the model does not know.
    FeaturesError
        If the features are of another specification or size.
    """
    if isinstance(data, Features):
        parts, y, failed = _from_features(model, data), data.y, len(data.failed)
        splits, name = data.splits, data.name
    else:
        parts, ledger = model.transform_images(
            data, views=model.views_averaged, on_error="skip", keep=True
        )
        kept = np.flatnonzero(np.isin(ledger.status, (OK, DUPLICATE)))
        y = None if data.y is None else data.y[kept]
        splits = None if data.splits is None else np.asarray(data.splits)[kept]
        failed, name = len(data) - len(kept), data.name
    if y is None:
        raise DatasetError(f"{name!r} has no labels to compare with")
    chosen = y != ""
    if splits is not None and (splits == "test").any():
        chosen &= splits == "test"
    if not chosen.any():
        raise DatasetError(f"{name!r} has no labelled image that could be read")
    known = model.classes_.astype(str)
    looked_at = [part[chosen] for part in parts]
    if model.multilabel:
        truth = label_matrix(y[chosen].tolist(), known.tolist(), what=repr(name))
        scores = score_label_sets(truth, model.average_proba(looked_at), known)
        return {**scores, "failed": failed}
    strangers = sorted(set(y[chosen].tolist()) - set(known.tolist()))
    if strangers:
        raise DatasetError(
            f"{name!r} has classes that the model does not know: {', '.join(strangers[:5])}; it "
            f"knows {', '.join(known[:10].tolist())}"
        )
    order = np.argsort(known)
    proba = model.average_proba(looked_at)[:, order]
    return {**score_predictions(y[chosen], proba, known[order]), "failed": failed}


def _from_features(model: ImageClassifier, features: Features) -> list[Any]:
    several = sum(block.view is None for block in features.blocks) > 1
    block = features.block(
        backbone=canonical_name(model.backbone) if several else None,
        tap=str(parse_tap(model.tap)) if several else None,
    )
    X = features.matrix(backbone=block.backbone, tap=block.tap)
    model.check_width(X.shape[1])
    spec = features.spec(backbone=block.backbone, tap=block.tap)
    if model.spec_ is not None and spec != model.spec_:
        raise FeaturesError(
            f"the features are of {spec.name}, the model was trained on {model.spec_.name}"
        )
    wanted = view_specs(spec, model.views_averaged, model.view_policy)
    there = {
        features.spec(backbone=block.backbone, tap=block.tap, view=view): view
        for view in features.views(backbone=block.backbone, tap=block.tap)
    }
    if not set(wanted) <= set(there):
        raise FeaturesError(
            f"the model averages over {len(wanted)} views that {features.name!r} does not have: "
            f"extract it with --views {len(wanted)} (views={len(wanted)}) and the model's policy"
        )
    return [
        X,
        *(
            features.matrix(backbone=block.backbone, tap=block.tap, view=there[one])
            for one in wanted
        ),
    ]
