"""`select`: which unlabelled images to label next."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import numpy as np

from featx.backbones.source import canonical_name
from featx.cache.features import Features
from featx.exceptions import DatasetError
from featx.extraction.run import as_features
from featx.files.identity import whole_keys
from featx.heads.rows import Doubles, Numbers
from featx.images.reading import ReadingOptions
from featx.models.classifier import ImageClassifier
from featx.models.evaluation import require_spec
from featx.models.training import HELD_OUT
from featx.selection.coverage import choose_rows
from featx.spec import BlockName, joined_name

_MOST_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Chosen:
    """An image that is worth a label.

    Parameters
    ----------
    path : str
        Its path, as ``Features.paths`` has it.
    row : int
        Its row of the features.
    predicted : str or None
        The class that the model decides on, or of several labels the most probable one; None
        without a model.
    probability : float or None
        With which probability.
    """

    path: str
    row: int
    predicted: str | None = None
    probability: float | None = None


def select(
    features: object,
    n: int = 200,
    *,
    model: ImageClassifier | None = None,
    backbone: str | None = None,
    tap: str | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    **reading: Unpack[ReadingOptions],
) -> list[Chosen]:
    """Return which unlabelled images to label next, the most useful first.

    Without a model, the images are chosen that stand for most others, away from those that have
    labels. With a model, those that stand for most of the images that it doubts.

    Of equal images one is chosen, and none if one of them has a label. Images of the splits test
    and val are left out. Of more than 20,000 unlabelled images, 20,000 are looked at, drawn by the
    seed; with a model, those that it doubts most.

    Parameters
    ----------
    features : Features, or data
        Of a dataset in which images have no label, some or all of them; of whatever else
        `featx.extract` takes, features are extracted first.
    n : int, default 200
        How many images.
    model : ImageClassifier, optional
        Fitted on the images that have labels; the features must be of its specification.
    backbone, tap : str, optional
        Which block of the features, where there are several; by default that of the model.
    seed : int, default 0
        The same seed gives the same images.
    cache : path, optional
        The cache folder of data that are no features, as of `featx.extract`.
    **reading
        How data that are no features are read, as for `featx.extract`: ``splits``, ``root``,
        ``label_column``, ...

    Returns
    -------
    list of Chosen
        At most `n`; fewer if there are fewer unlabelled images.

    Raises
    ------
    DatasetError
        If no unlabelled image is left to choose, or n is not positive.
    FeaturesError
        If not exactly one block fits, or it is not what the model was trained on.

    Notes
    -----
    See `featx.selection.coverage.choose_rows` for the methods and their sources.

    Examples
    --------
    >>> feats = featx.extract("unlabelled/")  # doctest: +SKIP
    >>> [image.path for image in featx.select(feats, 3)]  # doctest: +SKIP
    ['img_0412.jpg', 'img_0093.jpg', 'img_0871.jpg']
    """
    if n < 1:
        raise DatasetError(f"expected a positive number of images to choose, received {n}")
    if model is not None and model.regression:
        raise DatasetError(
            "the model predicts numbers, and images are chosen by how sure a model is of classes: "
            "leave --model (model=...) out"
        )
    if model is not None:
        backbone, tap = backbone or model.block["backbone"], tap or model.block["tap"]
    given = features
    features = as_features(given, reading, stored=True, backbone=backbone, taps=tap, cache=cache)
    if backbone is not None and features is not given:
        backbone = canonical_name(backbone)
    parts = features.joined(backbone=backbone, tap=tap)
    which = joined_name((part.backbone, part.tap) for part in parts)
    pool, labelled = _unlabelled(features)
    generator = np.random.default_rng(seed)
    opinions = None if model is None else _opinions(model, features, which, pool)
    if opinions is None:
        order = _sample(len(pool), generator, max(n, _MOST_ROWS))
    else:
        order = np.sort(np.argsort(-opinions.doubt, kind="stable")[: max(n, _MOST_ROWS)])
    labelled = labelled[_sample(len(labelled), generator, _MOST_ROWS)]
    rows = np.concatenate([pool[order], labelled])
    doubt = None
    if opinions is not None:
        doubt = np.concatenate([opinions.doubt[order], np.zeros(len(labelled))])
    known = np.arange(len(order), len(rows))
    X = features.take(rows, **which)
    chosen = order[choose_rows(X, n, labelled=known, doubt=doubt, seed=seed)]
    paths = features.paths
    if model is None or opinions is None:
        return [Chosen(paths[row], row) for row in pool[chosen].tolist()]
    names = [str(name) for name in model.classes_]
    return [
        Chosen(paths[pool[i]], int(pool[i]), names[opinions.label[i]], float(opinions.proba[i]))
        for i in chosen.tolist()
    ]


def _unlabelled(features: Features) -> tuple[Numbers, Numbers]:
    """Return the rows to choose from, equal ones once, and those that have a label."""
    has_label = features.labels >= 0
    if has_label.all():
        raise DatasetError(
            f"every image of {features.name!r} has a label: add images without one, or take labels "
            "away with `featx dataset relabel`"
        )
    labelled = np.flatnonzero(has_label)
    free = ~has_label
    if features.splits is not None:
        free &= ~np.isin(features.splits, HELD_OUT)
    keys = whole_keys(features.keys)
    pool = np.flatnonzero(free)
    pool = pool[~np.isin(keys[pool], keys[labelled])]
    pool = np.sort(pool[np.unique(keys[pool], return_index=True)[1]])
    if not len(pool):
        raise DatasetError(
            f"the unlabelled images of {features.name!r} equal images that have a label, or are in "
            "the splits test and val: there is none to choose"
        )
    return pool, labelled


def _sample(count: int, generator: np.random.Generator, most: int) -> Numbers:
    """Return numbers below a count: all, or as many of them as there may be at most."""
    if count <= most:
        return np.arange(count)
    return np.sort(generator.choice(count, most, replace=False))


class _Opinions(NamedTuple):
    """What a model says of some rows."""

    doubt: Doubles  # (m,), 0 where it is sure, 1 where two labels are as probable
    label: Numbers  # (m,), the class that it decides on, or its most probable label
    proba: Doubles  # (m,), with which probability


def _opinions(
    model: ImageClassifier, features: Features, which: BlockName, pool: Numbers
) -> _Opinions:
    require_spec(model, features, which)
    parts = []
    for X, _ in features.batches(**which, rows=pool):
        proba = np.asarray(model.average_proba([X]), np.float64)
        if model.multilabel:
            doubt = 1 - np.abs(2 * proba - 1).min(axis=1)
            label = proba.argmax(axis=1)
        else:
            best = np.partition(proba, -2, axis=1)[:, -2:]
            doubt = 1 - (best[:, 1] - best[:, 0])
            label = model.rule.decide(proba)
        parts.append(_Opinions(doubt, label, proba[np.arange(len(proba)), label]))
    return _Opinions(*map(np.concatenate, zip(*parts, strict=True)))
