"""`evaluate`: saved or fitted models on labelled images, alone or against each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.exceptions import DatasetError, FeaturesError
from featx.extraction.job import with_views
from featx.extraction.run import extract
from featx.files.identity import whole_keys
from featx.files.safe_json import Json
from featx.heads.rows import Floats, Numbers
from featx.heads.targets import Kind
from featx.images.dataset import ImageDataset
from featx.images.labels import label_matrix
from featx.images.sources import recognise
from featx.images.values import VALUE, read_values
from featx.models.classifier import ImageClassifier
from featx.models.regressor import ImageRegressor
from featx.models.scored import Scored
from featx.models.training_keys import (
    count_training_images,
    images_in_training,
    overlap_note,
)
from featx.notebooks import NotebookValue, data_frame
from featx.selection.metrics import (
    CALIBRATION_BINS,
    Judged,
    bootstrap_difference,
    bootstrap_intervals_of,
    bootstrap_label_sets,
    score_label_sets,
)
from featx.selection.rules import measure_rule
from featx.selection.value_metrics import COVERAGE, bootstrap_values, score_values
from featx.spec import BlockName, joined_parts

if TYPE_CHECKING:
    from pandas import DataFrame

_LOG = logging.getLogger("featx")


class Evaluation(dict[str, Any], NotebookValue):
    """Scores of a model by name, as `evaluate` returns them: a dict that a notebook shows."""

    def to_pandas(self) -> DataFrame:
        """Return a table of pandas, one row a class.

        Returns
        -------
        pandas.DataFrame
            ``label``, ``images`` (that have it), ``precision`` (missing where it was never
            predicted), ``recall`` and ``f1`` (missing where no image has it); where an image has
            several labels, ``average_precision`` too. Of a regression, a row a number: ``value``,
            ``r2``, ``mae`` and ``rmse``.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        return data_frame(self.by_class())

    def by_class(self) -> dict[str, list[Any]]:
        """Return the columns of `to_pandas`, with None for what is missing."""
        columns: dict[str, list[Any]] = {}
        if "values" in self:
            return {name: [row[name] for row in self["values"]] for name in self["values"][0]}
        if "labels" in self:
            counts = np.array([row["confusion"] for row in self["labels"]]).reshape(-1, 2, 2)
            truths, guesses, hits = counts[:, 1].sum(1), counts[:, :, 1].sum(1), counts[:, 1, 1]
            columns["label"] = [row["label"] for row in self["labels"]]
        else:
            matrix = np.array(self["confusion"])
            truths, guesses, hits = matrix.sum(1), matrix.sum(0), matrix.diagonal()
            columns["label"] = list(self["classes"])
        columns |= {
            "images": truths.tolist(),
            "precision": _ratios(hits, guesses, guesses > 0),
            "recall": _ratios(hits, truths, truths > 0),
            "f1": _ratios(2 * hits, truths + guesses, truths > 0),
        }
        if "labels" in self:
            columns["average_precision"] = [row["average_precision"] for row in self["labels"]]
        return columns


def _ratios(
    parts: NDArray[np.integer], wholes: NDArray[np.integer], known: NDArray[np.bool_]
) -> list[float | None]:
    """Return quotients, None where they are not known."""
    values = parts / np.maximum(wholes, 1)
    return [
        value if there else None
        for value, there in zip(values.tolist(), known.tolist(), strict=True)
    ]


def evaluate(
    model: ImageClassifier | ImageRegressor,
    data: Features | ImageDataset,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score a model on labelled images.

    Parameters
    ----------
    model : ImageClassifier
        Fitted.
    data : Features or ImageDataset
        Labelled; features must be of the model's specification. Where there is a split ``test``,
        only its images count.
    bootstrap : int, default 1000
        Samples behind the intervals; 0 for none.
    seed : int, default 0
        Seed of the samples.

    Returns
    -------
    Evaluation
        A dict that a notebook shows, as `featx.selection.metrics.score_predictions` gives it, with
        ``failed``: images that could not be read, and ``intervals``: ``[low, high]`` by score (see
        `featx.selection.metrics.bootstrap_intervals`; copies of an image are drawn together), with
        what they rest on, and ``training_overlap``: how many of the ``images`` were
        ``in_training``, of those that could be ``compared`` (absent for models of which it is not
        known; a warning says so where there are any). A model with a rule adds ``decision``: what
        its rule was optimised for, ``before`` with the most probable class (or labels above 0.5)
        and ``after`` with the rule; and ``coverage``: stated, measured, mean size of the sets, and
        the share of images of which it is unsure. Of a model that gives several labels, as
        `featx.selection.metrics.score_label_sets`, with ``failed`` and ``intervals`` too (see
        `featx.selection.metrics.bootstrap_label_sets`).

    Raises
    ------
    DatasetError
        If there are no labels, or labels that the model does not know.
    FeaturesError
        If the features are of another specification or size.
    """
    answers = _answer(model, data)
    if note := overlap_note(answers.overlap):
        _LOG.warning("%s", note)
    return _scores(model, answers, bootstrap, seed)


def score_images(
    model: ImageClassifier | ImageRegressor,
    features: Features,
    scores: Json | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Scored:
    """Return what a model says of labelled images, with the scores of `evaluate`, or those given.

    The arguments and errors are those of `evaluate`.
    """
    answers = _answer(model, features)
    if scores is None:
        scores = _scores(model, answers, bootstrap, seed)
    looked_up = images_in_training(model.training_, answers.keys)
    block = model_block(model, features)
    return Scored(
        features=features,
        **block,
        rows=answers.rows,
        names=answers.classes,
        scores=scores,
        judged=answers.judged() if _kind(model) == "classes" else None,
        label_sets=(answers.y, answers.proba) if model.multilabel else None,
        values=(answers.y, answers.proba) if model.regression else None,
        answers=answers.codes > 0 if model.multilabel else None,
        trained_on=None if looked_up is None else looked_up[1],
    )


def _scores(
    model: ImageClassifier | ImageRegressor, answers: _Answers, bootstrap: int, seed: int
) -> Evaluation:
    numbers = answers.y, answers.proba, answers.classes.tolist()
    if model.regression:
        scores = Evaluation(score_values(*numbers), failed=answers.failed)
    elif model.multilabel:
        sets, truth = (answers.y, answers.proba, answers.classes), answers.y.astype(np.intp)
        decided = answers.codes > 0
        scores = Evaluation(score_label_sets(*sets, predicted=decided), failed=answers.failed)
    else:
        judged = answers.judged()
        scores, truth = Evaluation(judged.scores(), failed=answers.failed), judged.truth
    if not model.regression:
        scores |= measure_rule(model.rule, truth, answers.proba, answers.classes)
    if answers.overlap is not None:
        scores["training_overlap"] = answers.overlap
    if model.regression and model.residuals_ is not None:
        low, high = model.interval(answers.proba)
        inside = (low <= answers.y) & (answers.y <= high)
        scores["covered"] = {"expected": COVERAGE, "share": inside.mean(axis=0).tolist()}
    if _kind(model) == "classes":
        scores["calibration_bins"] = CALIBRATION_BINS
    if bootstrap:
        drawing: Json = {"groups": answers.copies(), "samples": bootstrap, "seed": seed}
        if model.regression:
            scores["intervals"] = bootstrap_values(*numbers, **drawing)
        elif model.multilabel:
            scores["intervals"] = bootstrap_label_sets(*sets, predicted=decided, **drawing)
        else:
            scores["intervals"] = bootstrap_intervals_of(judged, **drawing)
        scores["intervals_of"] = {
            "level": 0.95,
            "method": "percentile bootstrap over images, copies together",
            "samples": bootstrap,
            "seed": seed,
        }
    return scores


def _kind(model: ImageClassifier | ImageRegressor) -> Kind:
    return "values" if model.regression else "labels" if model.multilabel else "classes"


def compare_models(
    first: ImageClassifier | ImageRegressor,
    second: ImageClassifier | ImageRegressor,
    data: Features | ImageDataset,
    second_data: Features | ImageDataset | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Json:
    """Compare two models on the same labelled images.

    Parameters
    ----------
    first, second : ImageClassifier
        Fitted, both of one label an image or both of several; their classes may differ as long as
        both know the labels.
    data : Features or ImageDataset
        As in `evaluate`.
    second_data : Features or ImageDataset, optional
        The same images with the features of the second model.
    bootstrap, seed : int
        As in `evaluate`.

    Returns
    -------
    dict
        ``images``, ``accuracy`` of each model, ``difference`` (second less first) with its 95 %
        ``interval``, ``only_first_right``, ``only_second_right``, ``both_right``, ``both_wrong``,
        and ``p_value`` of McNemar's exact test, two-sided: how probable so uneven a
        disagreement is if neither model is better. Where an image has several labels, a model is
        right on it if it gives all of them and no other; ``right`` says which.

    Raises
    ------
    DatasetError, FeaturesError
        As `evaluate`, and if the two answer for different images.

    Notes
    -----
    McNemar: "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), in the exact form: a binomial test of the images on which
    exactly one model is right.
    """
    from scipy.stats import binomtest

    if _kind(first) != _kind(second):
        given = [text for kind, text in _ANSWERS.items() if kind in (_kind(first), _kind(second))]
        raise DatasetError(
            "two models are compared that answer alike, received one that gives "
            f"{given[0]} an image and one that gives {given[1]}: evaluate each by itself"
        )
    answers = [_answer(first, data), _answer(second, data if second_data is None else second_data)]
    if answers[0].names != answers[1].names or answers[0].labels() != answers[1].labels():
        raise DatasetError(
            "the two models were asked about different images: evaluate both on one dataset, of "
            "which both can read every image"
        )
    if len(answers[0].keys) and (answers[0].keys != answers[1].keys).any():
        raise DatasetError("an image changed between the two extractions: extract both again")
    if first.regression:
        return _compare_values(answers, bootstrap, seed)
    right_first, right_second = answers[0].right(), answers[1].right()
    only_first = int((right_first & ~right_second).sum())
    only_second = int((right_second & ~right_first).sum())
    differing = only_first + only_second
    comparison: Json = {
        "images": len(right_first),
        "right": "every label" if first.multilabel else "the label",
        "accuracy": [float(right_first.mean()), float(right_second.mean())],
        "difference": float(right_second.mean() - right_first.mean()),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "both_right": int((right_first & right_second).sum()),
        "both_wrong": int((~right_first & ~right_second).sum()),
        "test": "McNemar, exact, two-sided",
        "p_value": float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0,
    }
    overlaps = [answer.overlap for answer in answers]
    if note := overlap_note(overlaps[1]):
        _LOG.warning("the second model: %s", note)
    if None not in overlaps:
        comparison["training_overlap"] = overlaps
    if bootstrap:
        comparison["interval"] = bootstrap_difference(
            right_second, right_first, groups=answers[0].copies(), samples=bootstrap, seed=seed
        )
    return comparison


_ANSWERS: Mapping[Kind, str] = MappingProxyType(
    {"classes": "one label", "labels": "several labels", "values": "numbers"}
)


def _compare_values(answers: list[_Answers], bootstrap: int, seed: int) -> Json:
    """Compare the mean absolute errors of two models of a regression on the same images."""
    errors = [np.abs(answer.y - answer.proba).mean(axis=1) for answer in answers]
    comparison: Json = {
        "images": len(errors[0]),
        "mae": [float(error.mean()) for error in errors],
        "difference": float(errors[1].mean() - errors[0].mean()),
        "better_on": [int((errors[0] < errors[1]).sum()), int((errors[1] < errors[0]).sum())],
    }
    if bootstrap:
        comparison["interval"] = bootstrap_difference(
            errors[1], errors[0], groups=answers[0].copies(), samples=bootstrap, seed=seed
        )
    return comparison


@dataclass(frozen=True, slots=True)
class _Answers:
    """What a model says of labelled images, columns in the order of its classes.

    ``y`` are the labels, or a matrix of 0 and 1 where an image has several; ``codes`` are the
    numbers of the classes that the model gives, or such a matrix.
    Of a regression ``y`` are numbers (n, k), and ``proba`` the predicted ones.
    """

    y: Any
    codes: Numbers
    proba: Floats
    classes: NDArray[np.str_]
    names: list[str]
    keys: NDArray[np.uint8]
    rows: NDArray[np.intp]
    failed: int
    overlap: dict[str, int] | None

    def right(self) -> NDArray[np.bool_]:
        """Return whether the model's answer is the label, or every label is right."""
        if self.codes.ndim == 2:
            return np.asarray((self.codes == self.y).all(axis=1))
        return np.asarray(self.classes[self.codes] == self.y)

    def judged(self) -> Judged:
        """Return what decides the scores where an image has one class."""
        judged = Judged(self.y, self.classes)
        judged.add(np.arange(len(self.y)), self.proba, self.codes)
        return judged

    def labels(self) -> list[object]:
        """Return the label of each image, or the set of them."""
        if self.y.dtype.kind == "f":
            return [tuple(row) for row in self.y.tolist()]
        if self.y.ndim == 2:
            return [frozenset(self.classes[row > 0].tolist()) for row in self.y]
        return list(self.y.tolist())

    def copies(self) -> NDArray[np.intp] | None:
        """Return a number for each image that its byte-for-byte copies share."""
        if not len(self.keys):
            return None
        groups: NDArray[np.intp] = np.unique(whole_keys(self.keys), return_inverse=True)[1]
        return groups


def _answer(model: ImageClassifier | ImageRegressor, data: Features | ImageDataset) -> _Answers:
    if isinstance(data, Features):
        parts, y, failed = _from_features(model, data), data.y, len(data.failed)
        splits, name, paths, keys = data.splits, data.name, data.paths, data.keys
    else:
        parts, ledger = model.transform_images(
            data, views=model.views_averaged, on_error="skip", keep=True
        )
        usable = ledger.usable
        y = None if data.y is None else data.y[usable]
        splits = None if data.splits is None else np.asarray(data.splits)[usable]
        failed, name = len(data) - len(usable), data.name
        paths, keys = [data.paths[row] for row in usable], ledger.key[usable]
    if y is None:
        raise DatasetError(f"{name!r} has no labels to compare with")
    chosen = y != ""
    if splits is not None and (splits == "test").any():
        chosen &= splits == "test"
    if not chosen.any():
        raise DatasetError(f"{name!r} has no labelled image that could be read")
    known = np.array(model.value_names_) if model.regression else model.classes_.astype(str)
    rows = np.flatnonzero(chosen)
    names, keys = [paths[row] for row in rows], np.asarray(keys)[chosen]
    truth: NDArray[np.generic] = y[chosen]
    if model.regression:
        truth = read_values(truth.tolist(), repr(name), names=model.value_names_)[1]
        numbers = model.average_values([part[chosen] for part in parts])
        overlap = count_training_images(model.training_, keys)
        none = np.zeros(len(truth), np.intp)
        return _Answers(truth, none, numbers, known, names, keys, rows, failed, overlap)
    if model.multilabel:
        truth = label_matrix(truth.tolist(), known.tolist(), what=repr(name))
    elif strangers := sorted(set(truth.tolist()) - set(known.tolist())):
        raise DatasetError(
            f"{name!r} has classes that the model does not know: {', '.join(strangers[:5])}; it "
            f"knows {', '.join(known[:10].tolist())}"
        )
    proba = model.average_proba([part[chosen] for part in parts])
    overlap = count_training_images(model.training_, keys)
    codes = model.rule.decide(proba)
    return _Answers(truth, codes, proba, known, names, keys, rows, failed, overlap)


def model_block(model: ImageClassifier | ImageRegressor, features: Features) -> BlockName:
    """Return which block of features a model reads, or which are side by side."""
    plain = [block for block in features.blocks if block.view is None]
    if len(plain) > 1 or len(joined_parts(model.block)) > 1:
        features.joined(**model.block)  # raises where one is missing
        return model.block
    named = features.block()
    return {"backbone": named.backbone, "tap": named.tap}


def extract_for(
    model: ImageClassifier | ImageRegressor,
    data: object,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **reading: Any,
) -> Features:
    """Return the features of images that a model reads, as `featx.extract` makes them."""
    precisions = {spec.precision for spec in model.specs_}
    reading["multilabel"] = model.multilabel
    reading["target_columns"] = target_columns_of(model.value_names_, data)
    return extract(
        data,
        **reading,
        **model.reading(),
        views=model.views_averaged,
        view_policy=model.view_policy,
        dtype="float32" if model.spec_ is None else model.spec_.dtype,
        precision=precisions.pop() if len(precisions) == 1 else "f32",
        cache=cache,
        progress=progress,
    )


def target_columns_of(names: Sequence[str], data: object) -> tuple[str, ...]:
    """Return which columns of a table are the numbers of a model, none where it is no table."""
    named = tuple(names)
    if (
        named in ((), (VALUE,))
        or not isinstance(data, str | os.PathLike)
        or not Path(data).is_file()
    ):
        return ()
    return named if recognise(data).kind == "table" else ()


def require_spec(
    model: ImageClassifier | ImageRegressor, features: Features, block: BlockName
) -> None:
    """Raise `FeaturesError` if a model is of other specifications or another size than a block."""
    model.check_width(features.width(**block))
    if not model.specs_:
        return
    for spec, trained in zip(features.specs(**block), model.specs_, strict=True):
        if spec == trained:
            continue
        ours, theirs = spec.to_dict(), trained.to_dict()
        parts = [part for part in theirs if ours.get(part) != theirs[part]]
        raise FeaturesError(
            f"the features are of {spec.name}, the model was trained on {trained.name}: they "
            f"differ in {', '.join(parts) or 'views'}. Give the images in place of the features, "
            "or extract these as for the model"
        )


def _from_features(model: ImageClassifier | ImageRegressor, features: Features) -> list[Floats]:
    block = model_block(model, features)
    require_spec(model, features, block)
    by_branch = [
        with_views(spec, model.views_averaged, model.view_policy)
        for spec in features.specs(**block)
    ]
    needed = list(zip(*by_branch, strict=True))
    views = [None, *features.views(**block)]
    view_of = {features.specs(**block, view=view): view for view in views}
    if not set(needed) <= set(view_of):
        views_needed = len(needed) - 1
        raise FeaturesError(
            f"the model averages over {views_needed} views that {features.name!r} does not have: "
            f"extract it with --views {views_needed} (views={views_needed}) and the model's policy"
        )
    return [features.matrix(**block, view=view_of[specs]) for specs in needed]
