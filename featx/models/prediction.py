"""Predictions for any number of images, a row for each, also for those that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featx.cache.manifest import DUPLICATE, OK
from featx.images.dataset import ImageDataset
from featx.models.classifier import LABEL_THRESHOLD, ImageClassifier

__all__ = ["Prediction", "predict_images"]

_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one image.

    Parameters
    ----------
    path : str
        The image as it was named.
    top : tuple of (label, probability)
        The most probable classes, best first; empty when the image could not be read, and where
        none of several labels is probable.
    status : {"ok", "failed"}
        Whether it could be read.
    reason : str
        Why not.
    """

    path: str
    top: tuple[tuple[str, float], ...]
    status: str
    reason: str = ""


def predict_images(
    model: ImageClassifier, images: ImageDataset, *, top_k: int | None = None
) -> Iterator[Prediction]:
    """Predict images in their order, a few thousand at a time.

    Parameters
    ----------
    model : ImageClassifier
        Fitted.
    images : ImageDataset
        The images; labels are not looked at.
    top_k : int, optional
        How many classes of each: by default 1, or, of a model that gives several labels, all whose
        probability is above 0.5.

    Yields
    ------
    Prediction
        One for each image.
    """
    for start in range(0, len(images), _CHUNK):
        rows = list(range(start, min(start + _CHUNK, len(images))))
        chunk = images.subset(rows)
        parts, ledger = model.transform_images(chunk, views=model.views_averaged, on_error="skip")
        readable = np.isin(ledger.status, (OK, DUPLICATE))
        proba = model.average_proba(parts) if readable.any() else np.empty((0, 0))
        several = model.multilabel and top_k is None
        shown = proba.shape[1] if several else top_k or 1
        best = np.argsort(-proba, axis=1, kind="stable")[:, :shown]
        position = 0
        for number, row in enumerate(rows):
            path = images.paths[row] if images.root is None else str(images.file(row))
            if not readable[number]:
                yield Prediction(path, (), "failed", ledger.reason[number])
                continue
            top = tuple(
                (str(model.classes_[c]), float(proba[position, c]))
                for c in best[position]
                if not several or proba[position, c] > LABEL_THRESHOLD
            )
            position += 1
            yield Prediction(path, top, "ok")
