"""How far features of a reduced precision are from those in float32, on images of the user's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from featx.cache.manifest import OK
from featx.extraction.job import Job
from featx.extraction.pipeline import Ledger, Stage
from featx.images.dataset import ImageDataset
from featx.images.reading import Reading

_LOG = logging.getLogger("featx")
_IMAGES = 100
_FOLDS = 5
_SEED = 0
_C = 1e-2
_Matrix = NDArray[np.floating]


class Agreement(TypedDict, total=False):
    """Features of one tap against the same images' in float32."""

    backbone: str
    tap: str
    precision: str
    images: int
    cosine: float  # of the two features of an image, in the mean
    least_cosine: float
    neighbours: float  # share of images whose nearest other image is the same
    accuracy: float  # of logistic regression, cross-validated; where there are labels
    accuracy_f32: float


def agreements(
    job: Job, images: ImageDataset, ledger: Ledger, stages: Sequence[Stage]
) -> list[Agreement]:
    """Measure, and log, what the reduced precision of an extraction changes.

    Nothing is measured again for a stage that computed less than half of the images. What is
    computed in float32 is not kept, and taken from the cache where it is there.
    """
    found: list[Agreement] = []
    labels = np.full(len(images), -1) if images.labels is None else np.asarray(images.labels)
    for stage in stages:
        spec = stage.spec
        if spec.precision == "f32" or spec.views or 2 * stage.computed < len(images):
            continue
        rows = sample(ledger)
        network = replace(stage.network, precision="f32")
        full = replace(
            job,
            data=images.subset(rows),
            named=None,
            reading=Reading(),
            keep=False,
            parts=((replace(spec, precision="f32"), network),),
        )
        exact, read = full.compute("skip")
        rows = rows[read.usable]
        if len(rows) < 2:
            continue
        for tap, vectors in zip(stage.taps, exact, strict=True):
            reduced = stage.store.gather(tap, ledger.key[rows])
            precision = spec.precision.partition(":")[0]
            agreement = Agreement(
                backbone=spec.backbone, tap=tap, precision=precision, images=len(rows)
            )
            agreement.update(compare(vectors, reduced, labels[rows]))
            _LOG.warning("%s", sentence(agreement))
            found.append(agreement)
    return found


def sample(ledger: Ledger) -> NDArray[np.intp]:
    """Return rows of up to 100 different images, drawn with a seed, in their order."""
    rows = np.flatnonzero(ledger.status == OK)
    drawn = np.random.default_rng(_SEED).permutation(rows)[:_IMAGES]
    return np.sort(drawn)


def compare(exact: _Matrix, reduced: _Matrix, labels: NDArray[np.integer]) -> Agreement:
    """Compare features (n, d) of the same images; labels (n,) are codes, -1 without one."""
    first, second = _unit(exact), _unit(reduced)
    cosine = (first * second).sum(axis=1)
    agreement = Agreement(
        cosine=round(float(cosine.mean()), 5),
        least_cosine=round(float(cosine.min()), 5),
        neighbours=round(float((_nearest(first) == _nearest(second)).mean()), 3),
    )
    counts = np.bincount(labels[labels >= 0], minlength=1)
    rows = np.flatnonzero((labels >= 0) & (counts[np.maximum(labels, 0)] >= _FOLDS))
    if len(np.unique(labels[rows])) > 1:
        agreement["accuracy_f32"] = _accuracy(exact[rows], labels[rows])
        agreement["accuracy"] = _accuracy(reduced[rows], labels[rows])
    return agreement


def sentence(agreement: Agreement) -> str:
    """Say what was measured."""
    text = (
        f"{agreement['backbone']} ({agreement['tap']}) in {agreement['precision']} against f32 on "
        f"{agreement['images']} of the images: cosine {agreement['cosine']:.4f} in the mean, "
        f"{agreement['least_cosine']:.4f} at worst; the nearest image is the same for "
        f"{agreement['neighbours']:.0%}"
    )
    if "accuracy" not in agreement:
        return text
    return (
        f"{text}; cross-validated accuracy {agreement['accuracy']:.3f}, in f32 "
        f"{agreement['accuracy_f32']:.3f}"
    )


def _unit(X: _Matrix) -> NDArray[np.float64]:
    wide = X.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(np.linalg.norm(wide, axis=1)[:, None], 1e-30)
    return unit


def _nearest(unit: NDArray[np.float64]) -> NDArray[np.intp]:
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    nearest: NDArray[np.intp] = likeness.argmax(axis=1)
    return nearest


def _accuracy(X: _Matrix, labels: NDArray[np.integer]) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = make_pipeline(StandardScaler(), LogisticRegression(C=_C, max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED)
    return round(float(cross_val_score(head, X.astype(np.float64), labels, cv=folds).mean()), 4)
