"""`train`: heads fitted on features in memory or within a bound, with an honest score."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import canonical_name
from featx.cache.features import Features
from featx.exceptions import DatasetError, FeaturesError, HeadError
from featx.extraction.backbone_choice import (
    listed,
)
from featx.extraction.report import why_unreadable
from featx.extraction.run import as_features
from featx.files.identity import content_groups
from featx.files.safe_json import Json
from featx.heads.decision import Decision
from featx.heads.estimators import check_values
from featx.heads.foreign import trusted_head
from featx.heads.making import balanced_head, make_head
from featx.heads.rows import Floats, Fold, Numbers
from featx.images.dataset import inner_folder
from featx.images.labels import (
    SEPARATOR,
    check_splits,
    label_matrix,
    look_like_measurements,
    look_like_sets,
    read_label_sets,
)
from featx.images.reading import ReadingOptions
from featx.images.values import VALUE, look_like_values, read_values
from featx.models.classifier import ImageClassifier
from featx.models.fitting import (
    Answers,
    Fitting,
    branches_of,
    chosen_block,
    memory_bound,
    untrained_model,
)
from featx.models.image_features import PerBackbone
from featx.models.regressor import ImageRegressor
from featx.models.scored import Scored
from featx.models.training_keys import answers_before, encode_answers
from featx.notebooks import NotebookValue, data_frame
from featx.selection.metrics import (
    MOST_CONFUSED,
    Judged,
    bootstrap_difference,
    score_label_sets,
    value_scores,
)
from featx.selection.rules import LearntRule, RuleOptions, learn_rule, measure_rule
from featx.selection.splits import repeated_folds
from featx.selection.value_metrics import kept_residuals, score_values
from featx.terminal import stage

if TYPE_CHECKING:
    from pandas import DataFrame

logger = logging.getLogger("featx")

HELD_OUT = ("test", "val")


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
class TrainingResult(NotebookValue):
    """A fitted model and how it was measured.

    Parameters
    ----------
    model : ImageClassifier or ImageRegressor
        Fitted on all training images.
    metrics : dict
        ``protocol`` says what the other figures were measured on.
    training : dict
        Name and number of images of the training data, their digest, and ``keys``, by which
        `featx.evaluate` knows them again.
    suspects : list of Suspect
        Images worth looking at, the most convinced contradiction first.
    scored : Scored, optional
        What was said of each image that the score is of; None where nothing was measured.
    """

    model: ImageClassifier | ImageRegressor
    metrics: Json
    training: Json
    suspects: list[Suspect] = field(default_factory=list)
    scored: Scored | None = None

    def change(self, before: Json, *, seed: int = 0) -> Json | None:
        """Return by how much the share of right answers differs from that of an earlier training.

        Parameters
        ----------
        before : dict
            What an earlier model says of its training, ``model.training_``: which images were
            scored, and which of these were answered rightly, by the labels of then.
        seed : int, default 0
            Seed of the interval.

        Returns
        -------
        dict or None
            ``images`` that both have scored, ``before``, ``after``, ``difference`` and its 95 %
            ``interval``, paired by image; None where there is no such image.
        """
        if self.scored is None or self.scored.values is not None:
            return None
        keys = self.scored.features.keys[self.scored.rows]
        known = answers_before(before, keys)
        if known is None or not len(known[0]):
            return None
        rows, right = known
        now = self.scored.right[rows]
        return {
            "images": len(rows),
            "before": float(right.mean()),
            "after": float(now.mean()),
            "difference": float(now.mean() - right.mean()),
            "interval": bootstrap_difference(now, right, seed=seed),
        }

    def report(self, output: str | os.PathLike[str], **options: Any) -> None:
        """Write a page about the images that the score is of; see `featx.report` for `options`."""
        write_report(self, output, **options)

    def to_pandas(self) -> DataFrame:
        """Return what was said of each image that the score is of, as a table of pandas.

        Returns
        -------
        pandas.DataFrame
            ``row`` (``feats[table["row"]]`` are the images), ``path``, ``label``, ``predicted``,
            ``probability`` of the prediction, and ``right``. The most confident errors come first,
            then the right answers, the least certain first. Without a score, no rows. Of a
            regression ``row``, ``path``, and of each number the true one, the predicted one and
            the error, the greatest first.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        columns: tuple[str, ...] = ("row", "path", "label", "predicted", "probability", "right")
        if self.scored is not None and self.scored.values is not None:
            columns = tuple(self.scored.table(0))
        return data_frame({} if self.scored is None else self.scored.table(), columns)


def write_report(
    result: object, output: str | os.PathLike[str], *arguments: Any, **options: Any
) -> None:
    """Write a page about a result; see `featx.report`."""
    # By name: pages are made of results, and imports run the way of the data.
    import_module("featx.reporting.model_report").report_result(
        result, output, *arguments, **options
    )


def train(
    features: object,
    *,
    head: Any = "logistic",
    backbone: str | Sequence[str] | None = None,
    tap: str | Sequence[str] | PerBackbone | None = None,
    weights: Any = None,
    preprocessing: str | PerBackbone | None = None,
    trust: bool = False,
    average_views: bool = False,
    cv: int = 5,
    multilabel: bool = False,
    regression: bool = False,
    label_kind: str = "auto",
    balanced: bool = False,
    optimise: str | None = None,
    coverage: float | None = None,
    coverage_by: str = "all",
    seed: int = 0,
    max_ram: str | int | None = None,
    cache: Any = None,
    **reading: Unpack[ReadingOptions],
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
    features : Features, or data
        From `featx.extract`; of whatever else it takes, features are extracted first.
    head : str or estimator, default "logistic"
        See `featx.heads.making.make_head`. Of a regression, the default stands for ``"ridge"``.
    backbone, tap : str or sequence of str, optional
        Which block of the features, where there are several. Of several backbones or taps the
        features are side by side: ``backbone=["tiny", "mobilenet_v2"], tap=["avg", "max"]`` is one
        model on four blocks. ``tap`` may be a mapping by backbone.
    weights, preprocessing, trust
        As for `featx.extract`, kept with the model; by default those of the extraction, as far as
        the features or the cache know them.
    average_views, multilabel, cache
        Of the resulting `featx.ImageClassifier`. With ``multilabel``, folds have each label in
        equal shares, and the metrics are those of `featx.selection.metrics.score_label_sets`.
    regression : bool, default False
        Whether labels are numbers: the model is then a `featx.ImageRegressor`, folds have low and
        high numbers in equal shares, and the metrics are those of
        `featx.selection.value_metrics.score_values`. Its intervals come of the images that the
        score is of.
    cv : int, default 5
        Number of folds; 0 measures nothing.
    label_kind : {"auto", "class"}, default "auto"
        ``"auto"`` refuses labels that look like measurements, or like several labels an image
        without `multilabel`; ``"class"`` trains on them as classes.
    balanced : bool, default False
        Whether each class counts the same, however few images it has: the head gets
        ``class_weight="balanced"``.
    optimise : str, optional
        What the model decides by, in place of the largest probability: ``"f1"`` (macro F1) or
        ``"balanced_accuracy"`` tunes a threshold for two classes, a factor for each of more, a
        threshold for each of several labels an image; ``"cost:FILE"`` decides for the least
        expected cost, by a CSV file with what it costs to predict the class of a column where that
        of the row is true. It takes `cv` folds, with splits on the images of training.
    coverage : float, optional
        Share of images whose label is to be in the set of labels that they may have, such as 0.95:
        `featx.predict` then marks the images that a person should look at (`abstain`).
    coverage_by : {"all", "class"}, default "all"
        Whether that share is of all images, or of those of each class (each label, of several).
    seed : int, default 0
        Seed of the head and of the folds.
    max_ram : str or int, optional
        Bound on the memory for features and for what the head makes of them, as bytes or as
        ``"1GiB"``: they are then read in batches, as often as it takes. Names, labels and keys of
        the images (some 350 bytes each) and the libraries come on top. By default all features are
        held, up to half of the machine's memory.
    **reading
        How data that are no features are read, as for `featx.extract`: ``splits``, ``root``,
        ``label_column``, ...

    Returns
    -------
    TrainingResult

    Raises
    ------
    DatasetError
        If there are no labels, or fewer than two classes; if labels look like no classes; if there
        are too few images for the coverage, or costs of other classes.
    HeadError
        If the head cannot be built or trained, or has to see all rows at once under `max_ram`.
    UnknownNameError
        If nothing of the name can be optimised.
    """
    options = RuleOptions.read(optimise, coverage, coverage_by, multilabel=multilabel, cv=cv)
    check_kind(multilabel=multilabel, regression=regression, balanced=balanced, ruled=bool(options))
    if regression and isinstance(head, str) and head == "logistic":
        head = VALUE_HEAD
    head = trusted_head(head, seed=seed) if trust and not regression else head
    if balanced:
        head = balanced_head(head)
    features = as_features(
        features,
        reading,
        backbone=backbone,
        taps=tap,
        weights=weights,
        preprocessing=preprocessing,
        trust=trust,
        cache=cache,
        multilabel=multilabel,
    )
    block = chosen_block(features, backbone, tap)
    rows, held_out = _training_rows(features)
    y = require_labels(features)
    if not (multilabel or regression):
        check_classes(features, y, rows, label_kind)
    branches = branches_of(
        features,
        block,
        called={canonical_name(name): name for name in listed(backbone or ())},
        weights=weights,
        preprocessing=preprocessing,
        trust=trust,
    )
    parameters: Json = {"multilabel": multilabel, "random_state": seed, "regression": regression}
    model = untrained_model(
        features, block, head, branches, cache=cache, average_views=average_views, **parameters
    )
    averaged = model.views_averaged
    if average_views and not averaged:
        raise FeaturesError(
            f"{features.name!r} has no views to average: extract it with --views K (views=K)"
        )
    made = make_head(head, seed=seed, multilabel=multilabel, regression=regression)
    bound = memory_bound(features, block, made, max_ram)
    names, targets = _targets(
        features, y, rows, held_out, multilabel=multilabel, regression=regression
    )
    if not regression:
        options.check(targets[rows])
    fitting = Fitting(features, block, made, targets, bound)
    metrics: Json = {"protocol": "not measured"}
    suspects: list[Suspect] = []
    scored: Scored | None = None
    shown = head if isinstance(head, str) else type(head).__name__
    if cv and (held_out is None or options):
        with stage(f"cross-validating {shown} on {len(rows):,} images"):
            metrics, suspects, scored = _cross_validate(model, fitting, names, rows, cv, options)
    with stage(f"training {shown} on {len(rows):,} images"):
        fitted = fitting.finish(model, y, rows, names)
    if held_out is not None:
        answers = fitting.answers(fitted, held_out, averaged)
        protocol = f"held-out split of {len(held_out)} images{_averaging(model)}"
        rule = model.decision_
        scored = score_answers(fitting, names, held_out, answers, trained=rows, rule=rule)
        tuned: Json = {name: metrics[name] for name in ("decision", "coverage") if name in metrics}
        metrics, suspects = {"protocol": protocol, **tuned, **scored.scores}, []
    if scored is not None and scored.values is not None:
        model.residuals_ = kept_residuals(*scored.values)
    if not multilabel:
        with stage("measuring what would be unlike the training images"):
            of_one = np.zeros(len(y)) if regression else y
            model.novelty_ = fitting.novelty(rows, of_one, seed=seed)
    if scored is not None:
        scored = replace(scored, scores=metrics)
        if scored.values is None:
            answers_of = encode_answers(features.keys[scored.rows], scored.right)
            model.training_ = {**model.training_, "scored": answers_of}
    return TrainingResult(model, metrics, dict(model.training_), suspects, scored)


def _targets(
    features: Features,
    y: NDArray[np.str_],
    rows: Numbers,
    held_out: Numbers | None,
    *,
    multilabel: bool,
    regression: bool,
) -> tuple[NDArray[np.str_] | None, NDArray[np.generic]]:
    """Return what is learnt of every row: labels, or their names and which of them it has."""
    if regression:
        used = rows if held_out is None else np.concatenate([rows, held_out])
        return value_targets(features, y, rows, used)
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


VALUE_HEAD = "ridge"
"""The head of a regression where none is named."""
_FEWEST_VALUES = 10


def value_targets(
    features: Features, y: NDArray[np.generic], rows: Numbers, used: Numbers
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Return names of numbers and, of every row, the numbers (n, k), NaN where it is not used.

    Only those of `rows` are learnt.
    """
    what = repr(features.name)
    if len(rows) < _FEWEST_VALUES:
        raise DatasetError(
            f"a regression needs {_FEWEST_VALUES} images with a number or more, {what} has "
            f"{len(rows)} to learn from: add images"
        )
    if y.dtype.kind in "US":
        names, numbers = read_values(y[used].tolist(), what)
    else:
        numbers = check_values(y[used])
        names = (VALUE,) if numbers.shape[1] == 1 else tuple(map(str, range(numbers.shape[1])))
    values = np.full((len(y), len(names)), np.nan)
    values[used] = numbers
    check_values(values[rows])
    return np.array(names), values


def check_kind(*, multilabel: bool, regression: bool, balanced: bool, ruled: bool = False) -> None:
    """Refuse a regression of what only classes have."""
    for given, option in (
        (multilabel, "--multilabel (multilabel=True)"),
        (balanced, "--balanced (balanced=True)"),
        (ruled, "--optimise or --coverage (optimise=..., coverage=...)"),
    ):
        if regression and given:
            raise HeadError(
                f"--regression (regression=True) learns numbers and {option} is about classes: "
                "leave one of the two out"
            )


def require_labels(features: Features) -> NDArray[np.str_]:
    """Return the labels of features, shape (n,); raise `DatasetError` where they have none."""
    y = features.y
    if y is None:
        raise DatasetError(
            f"{features.name!r} has no labels: put the images into one folder a class, or give a "
            "CSV with the columns path,label; name another column of labels with --label-column "
            "NAME (label_column=...), numbers with --regression --target-column NAME"
        )
    return y


def _training_rows(features: Features) -> tuple[Numbers, Numbers | None]:
    labelled = features.labels >= 0
    splits = features.splits
    check_splits(splits, repr(features.name))
    if splits is not None:
        for name in HELD_OUT:
            held_out = np.flatnonzero(labelled & (splits == name))
            if held_out.size:
                return np.flatnonzero(labelled & ~np.isin(splits, HELD_OUT)), held_out
    return np.flatnonzero(labelled), None


def require_classes(features: Features, label_kind: str = "auto") -> None:
    """Raise `DatasetError` if the labels of features are no classes that can be told apart."""
    check_classes(
        features, require_labels(features), np.flatnonzero(features.labels >= 0), label_kind
    )


def check_classes(
    features: Features, y: NDArray[np.str_], rows: Numbers, kind: str = "auto"
) -> None:
    """Raise `DatasetError` for labels that are no classes, or of fewer than two, and say why."""
    names, counts = np.unique(y[rows], return_counts=True)
    if kind not in ("auto", "class"):
        raise DatasetError(f"label_kind must be 'auto' or 'class', received {kind!r}")
    if kind == "auto" and len(rows):
        _check_kind(features, y, rows, names, counts)
    if not len(features) and features.selected_from is not None:
        raise DatasetError(
            f"none of the {features.selected_from:,} images of {features.name!r} is selected: the "
            "mask or the row numbers choose no row"
        )
    if len(names) < 2:
        what = "no labels"
        if len(names):
            what = f"one class only: {str(names[0])!r} ({counts[0]} images)"
        manifest = features.manifest
        why = [why_unreadable(manifest)]
        if features.selected_from is not None:
            why.append(f"these are {len(features):,} of its {features.selected_from:,} images")
        if len(names):
            why.append(inner_folder(manifest.root, manifest.path, [str(names[0])]))
        if empty := features.report.get("empty_classes"):
            why.append(f"without any image: {', '.join(map(repr, empty[:3]))}")
        why = list(filter(None, why)) or ["a classifier needs two classes or more, one folder each"]
        raise DatasetError(f"{features.name!r} has {what}; {'; '.join(why)}")


def _check_kind(
    features: Features, y: NDArray[np.str_], rows: Numbers, names: NDArray[np.str_], counts: Numbers
) -> None:
    """Refuse labels that are no classes, as far as they tell."""
    reason = look_like_measurements(names.tolist(), int(counts.sum()))
    reason = reason or look_like_values(names.tolist())
    advice = "learn numbers with --regression (regression=True)"
    options: tuple[str, ...] = ("--regression",)
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


def score_answers(
    fitting: Fitting,
    names: NDArray[np.str_] | None,
    rows: Numbers,
    answers: Answers,
    *,
    trained: Numbers | None = None,
    rule: Decision | LearntRule | None = None,
) -> Scored:
    """Return what heads say of rows, of one class each or of several `names`, with its scores.

    The classes are those of the rows that the heads were `trained` on, by default the same. Labels
    are decided by a rule, or as `learn_rule` has decided them.
    """
    truth = fitting.targets[rows]
    if fitting.regression and names is not None:
        numbers = np.zeros((len(rows), len(names)))
        for said, places in answers:
            numbers[places] = said
        return Scored(
            features=fitting.features,
            **fitting.block,
            rows=rows,
            names=names,
            scores=score_values(truth.astype(np.float64), numbers, names.tolist()),
            values=(truth.astype(np.float64), numbers),
        )
    classes = np.unique(fitting.targets[rows if trained is None else trained])
    known = classes if names is None else names
    codes: Numbers | None = None
    report: Json = {}
    if isinstance(rule, LearntRule):
        codes, report = rule.answers, rule.report
    elif rule is not None:
        every = _gathered(fitting, answers, len(rows), len(known))
        codes, answers = rule.decide(every), iter([(every, np.arange(len(rows)))])
        report = measure_rule(rule, _true_codes(truth, known), every, known)
    if names is None:
        judged = Judged(truth, classes)
        for proba, places in answers:
            judged.add(places, proba, None if codes is None else codes[places])
        return Scored(
            features=fitting.features,
            **fitting.block,
            rows=rows,
            names=judged.classes.astype(str),
            scores={**judged.scores(most_confused=MOST_CONFUSED), **report},
            judged=judged,
        )
    every = _gathered(fitting, answers, len(rows), len(names))
    sets: NDArray[np.uint8] = truth.astype(np.uint8, copy=False)
    decided = None if codes is None else codes > 0
    return Scored(
        features=fitting.features,
        **fitting.block,
        rows=rows,
        names=names,
        scores={**score_label_sets(sets, every, names, predicted=decided), **report},
        label_sets=(sets, every),
        answers=decided,
    )


def _gathered(fitting: Fitting, answers: Answers, rows: int, columns: int) -> Floats:
    """Return what is said of all rows as one matrix (rows, columns)."""
    dtype = np.float64 if fitting.max_ram_bytes is None else np.float32
    every: Floats = np.zeros((rows, columns), dtype)
    for proba, places in answers:
        every[places] = proba
    return every


def _true_codes(truth: NDArray[np.generic], classes: NDArray[np.generic]) -> Numbers:
    """Return targets as decisions have them: codes of classes (n,), or 0 and 1 of labels (n, k)."""
    if truth.ndim == 2:
        return truth.astype(np.intp)
    return np.searchsorted(classes, truth)


def learn_from_answers(
    model: ImageClassifier,
    fitting: Fitting,
    names: NDArray[np.str_] | None,
    rows: Numbers,
    answers: Answers,
    folds: Sequence[Fold],
    options: RuleOptions,
) -> tuple[Answers, LearntRule]:
    """Give a model the rule that the answers of folds teach, and return these with it."""
    truth = fitting.targets[rows]
    classes = np.unique(truth) if names is None else names
    every = _gathered(fitting, answers, len(rows), len(classes))
    learnt = learn_rule(options, _true_codes(truth, classes), every, classes, folds)
    decision = learnt.decision
    if decision.kind != "plain" or decision.sets is not None:
        model.decision_ = decision
    return iter([(every, np.arange(len(rows)))]), learnt


def _averaging(model: ImageClassifier | ImageRegressor) -> str:
    return f", mean over {1 + model.views_averaged} views" if model.views_averaged else ""


def _cross_validate(
    model: ImageClassifier | ImageRegressor,
    fitting: Fitting,
    names: NDArray[np.str_] | None,
    rows: Numbers,
    cv: int,
    options: RuleOptions,
) -> tuple[Json, list[Suspect], Scored | None]:
    features, truth = fitting.features, fitting.targets[rows]
    groups = content_groups(features.keys, features.groups)[rows]
    # The folds of a search, so that a head has one score, whichever measures it.
    try:
        folds = repeated_folds(truth, folds=cv, groups=groups, seed=model.random_state)
    except DatasetError as error:
        if options:
            raise
        return {"protocol": f"not measured: {error}"}, [], None
    name = model.head.partition(":")[0].strip() if isinstance(model.head, str) else ""
    answers = fitting.held_out(
        rows, folds, model.views_averaged, name=name, seed=model.random_state
    )
    rule = None
    if options:
        answers, rule = learn_from_answers(model, fitting, names, rows, answers, folds, options)
    scored = score_answers(fitting, names, rows, answers, rule=rule)
    judged = scored.judged
    protocol = f"{len(folds)}-fold cross-validation"
    if len(folds) < cv and names is None:
        smallest = f"the smallest class has {len(folds)} distinct images or groups"
        protocol += f" (in place of {cv}: {smallest})"
    metrics = {
        "protocol": f"{protocol}, equal images on one side{_averaging(model)}",
        **scored.scores,
    }
    if scored.values is not None:
        truth, said = scored.values
        metrics["r2_by_fold"] = [
            float(value_scores(truth[test], said[test])[0].mean()) for _, test in folds
        ]
    if judged is None:
        return metrics, [], scored
    accuracies = [float(judged.right[test].mean()) for _, test in folds]
    metrics |= {"accuracy": float(np.mean(accuracies)), "accuracy_by_fold": accuracies}
    wrong = np.flatnonzero(~judged.right)
    wrong = wrong[np.argsort(-judged.confidence[wrong], kind="stable")]
    paths = features.paths
    suspects = [
        Suspect(
            paths[rows[number]],
            str(truth[number]),
            str(judged.classes[judged.predicted[number]]),
            float(judged.confidence[number]),
        )
        for number in wrong
    ]
    return metrics, suspects, scored
