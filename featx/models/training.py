"""`train`: from features to a fitted classifier with an honest score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import canonical_name
from featx.backbones.taps import parse_tap
from featx.cache.features import Features
from featx.cache.manifest import Block
from featx.exceptions import DatasetError, FeaturesError
from featx.extraction.backbone_choice import BackboneChoice
from featx.extraction.report import why_unreadable
from featx.files.keys import related_rows
from featx.heads.making import make_head
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
from featx.models.fitting import Fitting, memory_bound
from featx.models.training_keys import encode_keys
from featx.selection.metrics import MOST_CONFUSED, ScoreSums, score_label_sets
from featx.selection.splits import label_folds, repeated_folds

_HELD_OUT = ("test", "val")


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image that its own folds' heads call something else with conviction.

    Parameters
    ----------
    path : str
        The image.
    label : str
        Its label.
    predicted : str
        What a head predicted that had not seen it.
    probability : float
        With which probability.
    """

    path: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A fitted classifier and how it was measured.

    Parameters
    ----------
    model : ImageClassifier
        Fitted on all training images.
    metrics : dict
        ``protocol`` says what the other figures were measured on.
    training : dict
        Name and number of images of the training data, their digest, and ``keys``, by which
        `featx.evaluate` knows them again.
    suspects : list of Suspect
        Images worth looking at, the most convinced contradiction first.
    """

    model: ImageClassifier
    metrics: dict[str, Any]
    training: dict[str, Any]
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
    block = _find_block(features, backbone, tap)
    block_name: dict[str, Any] = {"backbone": block.backbone, "tap": block.tap}
    spec = features.spec(**block_name)
    views = features.views(**block_name)
    rows, held_out = _training_rows(features)
    y = require_labels(features)
    if not multilabel:
        check_labels(features, y, rows, label_kind)
        require_classes(features, y, rows)
    choice = BackboneChoice(
        backbone or block.backbone, weights, preprocessing=preprocessing, trust=trust
    )
    model = ImageClassifier(
        head=head,
        **choice.completed(spec, features.origin(**block_name)).arguments(),
        tap=block.tap,
        image=spec.image,
        views=len(views),
        average_views=average_views,
        view_policy=features.spec(**block_name, view=views[0]).views if views else None,
        cache=cache,
        multilabel=multilabel,
        random_state=seed,
    )
    if average_views and not views:
        raise FeaturesError(
            f"{features.name!r} has no views to average: extract it with --views K (views=K)"
        )
    bound = memory_bound(features, block_name, head, max_ram)
    model.training_ = describe_training(features, y, rows)
    names: NDArray[np.str_] | None = None
    targets: NDArray[Any] = y
    if multilabel:
        names, targets = _label_targets(features, y, rows, held_out)
    elif held_out is not None:
        _require_known(y[held_out], y[rows])
    fitting = Fitting(features, **block_name, targets=targets, max_ram_bytes=bound)
    metrics: dict[str, Any] = {"protocol": "not measured"}
    suspects: list[Suspect] = []
    if held_out is None and cv:
        metrics, suspects = _cross_validate(model, fitting, names, rows, cv)
    fitted = fitting.fit(_untrained(model), rows)
    model.take_head(fitted, spec, n_features=features.width(**block_name), labels=names)
    if held_out is not None:
        answers = _Answers(fitting, names, rows, held_out)
        answers.add(fitting.answers(fitted, held_out, model.views_averaged), fitted.classes_)
        protocol = f"held-out split of {len(held_out)} images{_averaging(model)}"
        metrics = {"protocol": protocol, **answers.metrics()}
    if not multilabel:
        model.novelty_ = fitting.novelty(rows, y, seed=seed)
    return TrainingResult(model, metrics, model.training_, suspects)


def _untrained(model: ImageClassifier) -> Any:
    return make_head(model.head, seed=model.random_state, multilabel=model.multilabel)


def _label_targets(
    features: Features,
    y: NDArray[np.str_],
    rows: NDArray[np.intp],
    held_out: NDArray[np.intp] | None,
) -> tuple[NDArray[np.str_], NDArray[np.uint8]]:
    names, targets = label_targets(y, rows)
    if len(names) < 2:
        raise DatasetError(
            f"{features.name!r} has {len(names)} label{'s' * (len(names) != 1)}: a classifier of "
            f"several labels an image needs two or more, written as ant{SEPARATOR}winged in the "
            "column label"
        )
    if held_out is not None:
        what = f"the held-out part of {features.name!r}"
        targets[held_out] = label_matrix(y[held_out].tolist(), names.tolist(), what=what)
    return names, targets


def label_targets(
    y: NDArray[np.str_], rows: NDArray[np.intp]
) -> tuple[NDArray[np.str_], NDArray[np.uint8]]:
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


def _training_rows(features: Features) -> tuple[NDArray[np.intp], NDArray[np.intp] | None]:
    labelled = features.labels >= 0
    splits = features.splits
    check_splits(splits, repr(features.name))
    if splits is not None:
        for name in _HELD_OUT:
            held_out = np.flatnonzero(labelled & (splits == name))
            if held_out.size:
                return np.flatnonzero(labelled & ~np.isin(splits, _HELD_OUT)), held_out
    return np.flatnonzero(labelled), None


def require_classes(features: Features, y: NDArray[np.str_], rows: NDArray[np.intp]) -> None:
    """Raise `DatasetError` where the labels of rows are of fewer than two classes, and say why."""
    names, counts = np.unique(y[rows], return_counts=True)
    if len(names) < 2:
        found = (
            f"one class only: {str(names[0])!r} ({counts[0]} images)" if len(names) else "no labels"
        )
        manifest = features.manifest
        why = [why_unreadable(manifest)]
        if len(names):
            why.append(inner_folder(manifest.root, manifest.path, [str(names[0])]))
        if empty := features.report.get("empty_classes"):
            why.append(f"without any image: {', '.join(map(repr, empty[:3]))}")
        why = list(filter(None, why)) or ["a classifier needs two classes or more, one folder each"]
        raise DatasetError(f"{features.name!r} has {found}; {'; '.join(why)}")


def check_labels(
    features: Features, y: NDArray[np.str_], rows: NDArray[np.intp], kind: str = "auto"
) -> None:
    """Refuse labels that are no classes, as far as they tell."""
    if kind not in ("auto", "class"):
        raise DatasetError(f"label_kind must be 'auto' or 'class', received {kind!r}")
    if kind == "class" or not len(rows):
        return
    names, counts = np.unique(y[rows], return_counts=True)
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


def _find_block(features: Features, backbone: str | None, tap: str | None) -> Block:
    name = None if backbone is None else canonical_name(backbone)
    return features.block(backbone=name, tap=None if tap is None else str(parse_tap(tap)))


def _require_known(held_out: NDArray[np.str_], trained: NDArray[np.str_]) -> None:
    strangers = np.setdiff1d(held_out, trained)
    if strangers.size:
        raise DatasetError(
            "held-out images have classes without a training image: "
            f"{', '.join(strangers[:5].tolist())}"
        )


class _Answers:
    """What heads say of rows that they have not seen, beside what is right."""

    def __init__(
        self,
        fitting: Fitting,
        names: NDArray[np.str_] | None,
        rows: NDArray[np.intp],
        asked: NDArray[np.intp],
    ) -> None:
        self.truth: NDArray[Any] = fitting.targets[asked]
        self._names = names
        if names is None:
            self._sums = ScoreSums(np.unique(fitting.targets[rows]))
            self.predicted = np.empty(len(asked), self._sums.classes.dtype)
            self.probability = np.empty(len(asked))
        else:
            dtype = np.float64 if fitting.max_ram_bytes is None else np.float32
            self._proba = np.zeros((len(asked), len(names)), dtype)

    def add(
        self,
        answers: Iterable[tuple[NDArray[np.floating], NDArray[np.intp]]],
        classes: NDArray[np.generic],
        places: NDArray[np.intp] | None = None,
    ) -> None:
        """Take probabilities of classes (b, k) and whose they are: places, or places of these."""
        for proba, positions in answers:
            own = positions if places is None else places[positions]
            if self._names is not None:
                self._proba[own] = proba
                continue
            every = np.zeros((len(own), len(self._sums.classes)))
            every[:, np.searchsorted(self._sums.classes, classes)] = proba
            self._sums.add(self.truth[own], every)
            best = every.argmax(axis=1)
            self.predicted[own] = self._sums.classes[best]
            self.probability[own] = every[np.arange(len(best)), best]

    def metrics(self) -> dict[str, Any]:
        """Return the scores of all that was said."""
        if self._names is None:
            return self._sums.scores(most_confused=MOST_CONFUSED)
        return score_label_sets(self.truth, self._proba, self._names)


def _averaging(model: ImageClassifier) -> str:
    return f", mean over {1 + model.views_averaged} views" if model.views_averaged else ""


def _cross_validate(
    model: ImageClassifier,
    fitting: Fitting,
    names: NDArray[np.str_] | None,
    rows: NDArray[np.intp],
    cv: int,
) -> tuple[dict[str, Any], list[Suspect]]:
    features, truth = fitting.features, fitting.targets[rows]
    groups = related_rows(features.keys, features.groups)[rows]
    # The folds of a search, so that a head has one score, whichever measures it.
    split = repeated_folds if names is None else label_folds
    try:
        folds = split(truth, folds=cv, groups=groups, seed=model.random_state)
    except DatasetError as error:
        return {"protocol": f"not measured: {error}"}, []
    answers = _Answers(fitting, names, rows, rows)
    together = None
    if names is None:
        together = fitting.answers_together(
            model.head, model.random_state, rows, folds, model.views_averaged
        )
    if together is not None:
        answers.add(together, np.unique(truth))
    else:
        for training, testing in folds:
            head = fitting.fit(_untrained(model), rows[training])
            said = fitting.answers(head, rows[testing], model.views_averaged)
            answers.add(said, head.classes_, testing)
    protocol = f"{len(folds)}-fold cross-validation"
    if len(folds) < cv and names is None:
        smallest = f"the smallest class has {len(folds)} distinct images or groups"
        protocol += f" (in place of {cv}: {smallest})"
    protocol += f", equal images on one side{_averaging(model)}"
    metrics = {"protocol": protocol, **answers.metrics()}
    if names is not None:
        return metrics, []
    right = answers.predicted == truth
    accuracies = [float(right[testing].mean()) for _, testing in folds]
    metrics |= {"accuracy": float(np.mean(accuracies)), "accuracy_by_fold": accuracies}
    wrong = np.flatnonzero(~right)
    wrong = wrong[np.argsort(-answers.probability[wrong], kind="stable")]
    paths = features.paths
    return metrics, [
        Suspect(
            paths[rows[place]],
            str(truth[place]),
            str(answers.predicted[place]),
            float(answers.probability[place]),
        )
        for place in wrong
    ]


def describe_training(
    features: Features, y: NDArray[np.str_], rows: NDArray[np.intp]
) -> dict[str, Any]:
    """Return what a model was trained on: name, number of images, keys and labels in short."""
    digest = hashlib.sha256()
    keys = np.ascontiguousarray(features.keys[rows])
    names, codes = np.unique(y[rows].astype(str), return_inverse=True)
    labels = [str(name).encode("utf-8", "surrogateescape") + b"\0" for name in names]
    for place in np.lexsort((codes, keys.view("S32").ravel())):
        digest.update(keys[place].data)
        digest.update(labels[codes[place]])
    return {
        "dataset": features.name,
        "images": len(rows),
        "sha256": digest.hexdigest(),
        "keys": encode_keys(keys),
        "failed": len(features.failed),
    }
