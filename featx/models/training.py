"""`train`: from features to a fitted classifier with an honest score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import canonical_name
from featx.backbones.taps import parse_tap
from featx.cache.features import Features
from featx.exceptions import DatasetError, FeaturesError
from featx.extraction.backbone_choice import BackboneChoice
from featx.extraction.report import why_unreadable
from featx.files.keys import related_rows
from featx.heads.making import make_head
from featx.heads.rows import Numbers
from featx.images.dataset import inner_folder
from featx.images.labels import (
    SEPARATOR,
    check_splits,
    label_matrix,
    look_like_measurements,
    look_like_sets,
    read_label_sets,
)
from featx.models.classifier import ImageClassifier
from featx.models.fitting import Answers, BlockName, Fitting, memory_bound, untrained_model
from featx.selection.metrics import MOST_CONFUSED, Json, Judged, score_label_sets
from featx.selection.splits import repeated_folds

_HELD_OUT = ("test", "val")


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image that its own folds' heads call something else with conviction."""

    path: str  # the image
    label: str  # its label
    predicted: str  # what a head predicted that had not seen it
    probability: float  # with which probability


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A fitted classifier and how it was measured."""

    model: ImageClassifier  # fitted on all training images
    metrics: Json  # ``protocol`` says what the other figures were measured on
    # Name and number of images of the training data, their digest, and ``keys``, by which
    # `featx.evaluate` knows them again.
    training: Json
    # Images worth looking at, the most convinced contradiction first.
    suspects: list[Suspect] = field(default_factory=list)


def train(
    features: Features,
    *,
    head: Any = "logistic",
    backbone: str | None = None,
    tap: str | None = None,
    weights: Any = None,
    preprocessing: str | None = None,
    trust: bool = False,
    average_views: bool = False,
    cv: int = 5,
    multilabel: bool = False,
    label_kind: str = "auto",
    seed: int = 0,
    max_ram: str | int | None = None,
    cache: Any = None,
) -> TrainingResult:
    """Train a head on features and measure it on images that it has not seen.

    Where the dataset has splits, the head is trained on ``train`` and measured on ``test`` (else
    ``val``). Otherwise it is measured by stratified cross-validation in which equal images, and
    images of one group, are never on both sides, and then trained on all of them: on the folds and
    in the way that `featx.search` measures it, all folds at once where the head can. Where the
    features have augmented views, the head is trained on these too; it is measured on the images
    as they are, or on the mean over the views where predictions are to average them.

    Parameters
    ----------
    features : Features
        From `featx.extract`.
    head : str or estimator, default "logistic"
        See `featx.heads.making.make_head`.
    backbone, tap : str, optional
        Which block of the features, where there are several.
    weights : str or path, optional
        The choice of weights that the features were made with, kept with the model; by default
        that of the extraction, as far as the features or the cache know it.
    preprocessing : str, optional
        Likewise, for backbones of one's own.
    trust : bool, default False
        Whether the classifier may read images with a ``savedmodel:`` backbone; it may, too, where
        `featx.extract` was told so for these very features.
    average_views : bool, default False
        Whether a prediction is the mean of the probabilities over the image and its views.
    cv : int, default 5
        Number of folds; 0 measures nothing.
    multilabel : bool, default False
        Whether a label such as ``ant|winged`` is several. Folds then have each label in equal
        shares, and the metrics are those of `featx.selection.metrics.score_label_sets`.
    label_kind : {"auto", "class"}, default "auto"
        ``"auto"`` refuses labels that look like measurements, or like several labels an image
        without `multilabel`; ``"class"`` trains on them as classes.
    seed : int, default 0
        Seed of the head and of the folds.
    max_ram : str or int, optional
        Bound on the memory for features and for what the head makes of them, as bytes or as
        ``"1GiB"``: they are then read in batches, as often as it takes. Names, labels and keys of
        the images (some 350 bytes each) and the libraries come on top. By default all features are
        held, up to half of the machine's memory.
    cache : path, optional
        Cache folder of the resulting classifier.

    Returns
    -------
    TrainingResult

    Raises
    ------
    DatasetError
        If there are no labels, or fewer than two classes; if labels look like no classes.
    HeadError
        If the head cannot be built or trained, or has to see all rows at once under `max_ram`.
    """
    name = None if backbone is None else canonical_name(backbone)
    found = features.block(backbone=name, tap=None if tap is None else str(parse_tap(tap)))
    block: BlockName = {"backbone": found.backbone, "tap": found.tap}
    rows, held_out = _training_rows(features)
    y = require_labels(features)
    if not multilabel:
        check_classes(features, y, rows, label_kind)
    choice = BackboneChoice(
        backbone or found.backbone, weights, preprocessing=preprocessing, trust=trust
    ).completed(features.spec(**block), features.origin(**block))
    parameters = {"multilabel": multilabel, "random_state": seed}
    model = untrained_model(
        features, block, head, choice, cache=cache, average_views=average_views, **parameters
    )
    averaged = model.views_averaged
    if average_views and not averaged:
        raise FeaturesError(
            f"{features.name!r} has no views to average: extract it with --views K (views=K)"
        )
    made = make_head(head, seed=seed, multilabel=multilabel)
    bound = memory_bound(features, block, made, max_ram)
    names, targets = _targets(features, y, rows, held_out, multilabel)
    fitting = Fitting(features, block, made, targets, bound)
    metrics: Json = {"protocol": "not measured"}
    suspects: list[Suspect] = []
    if held_out is None and cv:
        metrics, suspects = _cross_validate(model, fitting, names, rows, cv)
    fitted = fitting.finish(model, y, rows, names)
    if held_out is not None:
        answers = fitting.answers(fitted, held_out, averaged)
        protocol = f"held-out split of {len(held_out)} images{_averaging(model)}"
        metrics = {"protocol": protocol, **_measured(fitting, names, held_out, answers)[0]}
    if not multilabel:
        model.novelty_ = fitting.novelty(rows, y, seed=seed)
    return TrainingResult(model, metrics, dict(model.training_), suspects)


def _targets(
    features: Features,
    y: NDArray[np.str_],
    rows: Numbers,
    held_out: Numbers | None,
    multilabel: bool,
) -> tuple[NDArray[np.str_] | None, NDArray[np.generic]]:
    """Return what is learnt of every row: labels, or their names and which of them it has."""
    if multilabel:
        names, targets = label_targets(y, rows)
        if len(names) < 2:
            raise DatasetError(
                f"{features.name!r} has {len(names)} label{'s' * (len(names) != 1)}: a classifier "
                f"of several labels an image needs two or more, written as ant{SEPARATOR}winged in "
                "the column label"
            )
        if held_out is not None:
            what = f"the held-out part of {features.name!r}"
            targets[held_out] = label_matrix(y[held_out].tolist(), names.tolist(), what=what)
        return names, targets
    strangers = np.setdiff1d(y[:0] if held_out is None else y[held_out], y[rows])
    if strangers.size:
        raise DatasetError(
            "held-out images have classes without a training image: "
            f"{', '.join(strangers[:5].tolist())}"
        )
    return None, y


def label_targets(y: NDArray[np.str_], rows: Numbers) -> tuple[NDArray[np.str_], NDArray[np.uint8]]:
    """Return the labels that rows have, sorted, and of all rows (n, labels) which have them."""
    texts, codes = np.unique(y[rows], return_inverse=True)
    names, sets = read_label_sets(texts.tolist())
    targets = np.zeros((len(y), len(names)), dtype=np.uint8)
    targets[rows] = sets.astype(np.uint8)[codes]
    return names, targets


def require_labels(features: Features) -> NDArray[np.str_]:
    """Return the labels of features, shape (n,); raise `DatasetError` where they have none."""
    y = features.y
    if y is None:
        raise DatasetError(
            f"{features.name!r} has no labels: put the images into one folder a class, or give a "
            "CSV with the columns path,label"
        )
    return y


def _training_rows(features: Features) -> tuple[Numbers, Numbers | None]:
    labelled = features.labels >= 0
    splits = features.splits
    check_splits(splits, repr(features.name))
    if splits is not None:
        for name in _HELD_OUT:
            held_out = np.flatnonzero(labelled & (splits == name))
            if held_out.size:
                return np.flatnonzero(labelled & ~np.isin(splits, _HELD_OUT)), held_out
    return np.flatnonzero(labelled), None


def check_classes(
    features: Features, y: NDArray[np.str_], rows: Numbers, kind: str = "auto"
) -> None:
    """Raise `DatasetError` for labels that are no classes, or of fewer than two, and say why."""
    names, counts = np.unique(y[rows], return_counts=True)
    if kind not in ("auto", "class"):
        raise DatasetError(f"label_kind must be 'auto' or 'class', received {kind!r}")
    if kind == "auto" and len(rows):
        _check_kind(features, y, rows, names, counts)
    if len(names) < 2:
        what = "no labels"
        if len(names):
            what = f"one class only: {str(names[0])!r} ({counts[0]} images)"
        manifest = features.manifest
        why = [why_unreadable(manifest)]
        if len(names):
            why.append(inner_folder(manifest.root, manifest.path, [str(names[0])]))
        if empty := features.report.get("empty_classes"):
            why.append(f"without any image: {', '.join(map(repr, empty[:3]))}")
        why = list(filter(None, why)) or ["a classifier needs two classes or more, one folder each"]
        raise DatasetError(f"{features.name!r} has {what}; {'; '.join(why)}")


def _check_kind(
    features: Features,
    y: NDArray[np.str_],
    rows: Numbers,
    names: NDArray[np.str_],
    counts: Numbers,
) -> None:
    """Refuse labels that are no classes, as far as they tell."""
    reason = look_like_measurements(names.tolist(), int(counts.sum()))
    advice = "featx does no regression: put them into a few ranges, such as 20-29, as classes"
    options: tuple[str, ...] = ("--label-kind", "class")
    if not reason and (reason := look_like_sets(names.tolist())):
        advice = "predict each by itself with --multilabel (multilabel=True)"
        options = ("--multilabel",)
    if not reason:
        return
    paths = features.paths
    if all(f"/{y[row]}/" in f"/{paths[row]}" for row in rows):
        return  # folders are classes, whatever they are called
    error = DatasetError(
        f"the labels of {features.name!r} {reason}; {advice}; or, if each is a class of its own, "
        "train with --label-kind class (label_kind='class')"
    )
    error.options = options
    raise error


def _measured(
    fitting: Fitting, names: NDArray[np.str_] | None, rows: Numbers, answers: Answers
) -> tuple[Json, Judged | None]:
    """Return the scores of what heads say of rows, and of one class each what decides these."""
    truth = fitting.targets[rows]
    if names is None:
        judged = Judged(truth, np.unique(truth))
        for proba, places in answers:
            judged.add(places, proba)
        return judged.scores(most_confused=MOST_CONFUSED), judged
    dtype = np.float64 if fitting.max_ram_bytes is None else np.float32
    every = np.zeros((len(rows), len(names)), dtype)
    for proba, places in answers:
        every[places] = proba
    return score_label_sets(truth.astype(np.uint8, copy=False), every, names), None


def _averaging(model: ImageClassifier) -> str:
    return f", mean over {1 + model.views_averaged} views" if model.views_averaged else ""


def _cross_validate(
    model: ImageClassifier,
    fitting: Fitting,
    names: NDArray[np.str_] | None,
    rows: Numbers,
    cv: int,
) -> tuple[Json, list[Suspect]]:
    features, truth = fitting.features, fitting.targets[rows]
    groups = related_rows(features.keys, features.groups)[rows]
    # The folds of a search, so that a head has one score, whichever measures it.
    try:
        folds = repeated_folds(truth, folds=cv, groups=groups, seed=model.random_state)
    except DatasetError as error:
        return {"protocol": f"not measured: {error}"}, []
    name = model.head.partition(":")[0].strip() if isinstance(model.head, str) else ""
    answers = fitting.held_out(
        rows, folds, model.views_averaged, name=name, seed=model.random_state
    )
    scores, judged = _measured(fitting, names, rows, answers)
    protocol = f"{len(folds)}-fold cross-validation"
    if len(folds) < cv and names is None:
        smallest = f"the smallest class has {len(folds)} distinct images or groups"
        protocol += f" (in place of {cv}: {smallest})"
    metrics = {"protocol": f"{protocol}, equal images on one side{_averaging(model)}", **scores}
    if judged is None:
        return metrics, []
    accuracies = [float(judged.right[test].mean()) for _, test in folds]
    metrics |= {"accuracy": float(np.mean(accuracies)), "accuracy_by_fold": accuracies}
    wrong = np.flatnonzero(~judged.right)
    wrong = wrong[np.argsort(-judged.confidence[wrong], kind="stable")]
    paths = features.paths
    return metrics, [
        Suspect(
            paths[rows[place]],
            str(truth[place]),
            str(judged.classes[judged.predicted[place]]),
            float(judged.confidence[place]),
        )
        for place in wrong
    ]
