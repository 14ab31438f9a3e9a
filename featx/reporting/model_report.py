"""`report`: a page about a model and the images that it was scored on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from featx.auditing.findings import KINDS, Audit
from featx.cache.features import Features
from featx.exceptions import DatasetError
from featx.extraction.report import data_report
from featx.files.outputs import as_target, check_output
from featx.files.safe_json import Json
from featx.finetuning.tuning import FineTuned
from featx.images.reading import ReadingOptions
from featx.models.classifier import ImageClassifier, load_model
from featx.models.evaluation import extract_for, score_images
from featx.models.image_model import ImageModel
from featx.models.regressor import ImageRegressor
from featx.models.scored import Scored
from featx.models.search import SearchResult
from featx.models.training import TrainingResult
from featx.models.training_keys import overlap_note
from featx.reporting import plots
from featx.reporting.feature_map import map_features
from featx.reporting.page import is_page, render_page, script_file, write_page
from featx.reporting.page_rows import choose_pictures, pack_rows, worst_first
from featx.reporting.value_report import ValuePage, write_value_page
from featx.selection.value_metrics import half_widths
from featx.terminal import visible

MOST_BYTES = 15_000_000
"""How large a page gets at most: pictures take what the rest leaves."""

_MOST_IN_MATRIX, _MATRIX_OF_MANY, _MOST_PAIRS = 30, 20, 200
_MOST_LISTED, _MOST_TRIALS, _MOST_FINDINGS = 200, 50, 50
_SCORES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "top5_accuracy": "Top-5 accuracy",
    "log_loss": "Log loss",
    "calibration_error": "Calibration error",
    "mean_average_precision": "Mean average precision",
    "micro_f1": "Micro F1",
    "exact_match": "Every label right",
}
_FEWEST_OF_TOP5 = 6


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a report is of."""

    title: str
    scored: Scored
    facts: list[tuple[str, str]]
    headline: Json = field(default_factory=dict)  # name, value, interval and protocol
    warnings: list[str] = field(default_factory=list)
    search: SearchResult | None = None
    history: Sequence[Json] = ()
    audit: Audit | None = None
    half_widths: Sequence[float] | None = None  # of the intervals of a regression


def report(
    model: ImageClassifier | ImageRegressor | str | os.PathLike[str],
    data: object,
    output: str | os.PathLike[str],
    *,
    scores: Json | None = None,
    audit: Audit | None = None,
    cache: str | os.PathLike[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    name: str = "",
    most_bytes: int = MOST_BYTES,
    overwrite: bool = False,
    **reading: Unpack[ReadingOptions],
) -> None:
    """Write one HTML file that shows how good a model is, and on which images it is wrong.

    Of a regression it shows predicted against true numbers, and the errors.

    The file needs nothing else and loads nothing: send it, or open it from disk. Results of
    `featx.train`, `featx.search` and `featx.finetune` have a method ``report`` that writes such a
    page about the images that they were measured on.

    Parameters
    ----------
    model : ImageClassifier, ImageRegressor or path
        Fitted, or a ``.featx`` file.
    data : Features, or data
        Labelled images, as in `featx.evaluate`; of others than `Features`, those that are missing
        in the cache are extracted. Where there is a split ``test``, only its images are scored.
    output : path
        Where the page goes; a page of featx there is replaced.
    scores : dict, optional
        What `featx.evaluate` gave for the same model and data; computed by default.
    audit : Audit, optional
        What `featx.audit` says of the same features: its findings are shown with their images.
    cache : path, optional
        Cache folder, where `model` or `data` is a path.
    bootstrap : int, default 1000
        Samples behind the intervals of the scores.
    seed : int, default 0
        Seed of the intervals, of the map and of the choice of pictures.
    name : str, optional
        Name of the model in the title; that of its file by default.
    most_bytes : int, default 15_000_000
        Size of the page, in bytes: it has pictures of the worst errors and of some images of each
        class, as many as there is room for.
    overwrite : bool, default False
        Whether to replace a file that featx did not make.
    **reading
        How data that are no features are read, as for `featx.extract`: ``splits``, ``root``,
        ``label_column``, ...

    Raises
    ------
    DatasetError
        If there are no labels, or labels that the model does not know; if the audit is of other
        images.
    FeaturesError
        If the features are of another specification.
    MissingExtraError
        If jinja2 or bokeh is not installed: ``pip install 'featx[report]'``.
    OutputError
        If the file cannot be written, or is none that featx made.

    Notes
    -----
    Shares have the interval of Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927); F1 is a function of such a share. The map is UMAP of the features,
    or PCA where ``umap-learn`` is not installed.

    Examples
    --------
    >>> featx.report("photos.featx", "held-out-photos/", "report.html")  # doctest: +SKIP
    """
    check_report(output, overwrite=overwrite)
    classifier = model
    if not isinstance(classifier, ImageModel):
        classifier = load_model(classifier, cache=cache)
    features = data
    if not isinstance(features, Features):
        features = extract_for(classifier, features, cache=cache, **reading)
    scored = score_images(classifier, features, scores, bootstrap=bootstrap, seed=seed)
    if not name:
        name = "Model" if isinstance(model, ImageModel) else Path(model).name
    note = overlap_note(scored.scores.get("training_overlap"))
    subject = Subject(
        title=f"{name} on {features.name}",
        scored=scored,
        facts=_model_facts(classifier),
        warnings=[note[0].upper() + note[1:] + "."] if note else [],
        audit=audit,
        half_widths=_half_widths(classifier),
    )
    write_subject(subject, output, seed=seed, most_bytes=most_bytes, overwrite=overwrite)


def report_result(
    result: TrainingResult | SearchResult | FineTuned,
    output: str | os.PathLike[str],
    *,
    audit: Audit | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    most_bytes: int = MOST_BYTES,
    overwrite: bool = False,
) -> None:
    """Write a page about the images that a result was measured on; see `report`."""
    check_report(output, overwrite=overwrite)
    scored = result.scored
    if scored is None:
        raise DatasetError(
            "nothing was measured, so that there is nothing to show: train with cross-validation "
            "(cv=5), or give featx.report labelled images that the model has not seen"
        )
    if bootstrap and "intervals" not in scored.scores:
        scored.scores["intervals"] = scored.intervals(samples=bootstrap, seed=seed)
    made = {TrainingResult: "Training", SearchResult: "Search", FineTuned: "Fine-tuning"}
    subject = Subject(
        title=f"{made[type(result)]} on {scored.features.name}",
        scored=scored,
        facts=_model_facts(result.model),
        headline=_honest(result) if isinstance(result, SearchResult) else {},
        search=result if isinstance(result, SearchResult) else None,
        history=result.history if isinstance(result, FineTuned) else (),
        warnings=_kept(result) if isinstance(result, FineTuned) else [],
        audit=audit,
        half_widths=_half_widths(result.model),
    )
    write_subject(subject, output, seed=seed, most_bytes=most_bytes, overwrite=overwrite)


def check_report(output: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise early what writing a page would raise: missing extras, a file that is in the way."""
    check_output(as_target(output), is_page, "page", force=overwrite)
    require_extras()


def require_extras() -> None:
    """Raise `MissingExtraError` where a page cannot be made."""
    render_page("base.html")
    plots.library()


def write_subject(
    subject: Subject,
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    most_bytes: int = MOST_BYTES,
    overwrite: bool = False,
) -> None:
    """Write the page of a subject."""
    scored = subject.scored
    if scored.values is not None:
        _write_values(subject, output, most_bytes=most_bytes, overwrite=overwrite)
        return
    block = {"backbone": scored.backbone, "tap": scored.tap}
    points, method = map_features(scored.features, block, seed=seed)  # type: ignore[arg-type]
    scripts = [plots.library(), script_file("report.js")]
    data: Json = {"rows": pack_rows(scored, points), "map": plots.feature_map()}
    data["looks"] = list(zip(plots.CATEGORY_COLOURS, plots.CATEGORY_MARKERS, strict=True))
    data["worst"] = worst_first(scored)
    values = {**_described(subject, data), "method": method}
    fixed = sum(len(script) for script in scripts) + len(json.dumps(data))
    fixed += len(render_page("report.html", data=None, pictures=None, **values).encode())
    examples = [
        row
        for kind in values["findings"]
        for example in kind["examples"]
        for row in example["rows"]
    ]
    pictures = choose_pictures(scored, most_bytes - fixed, first=examples, seed=seed)
    write_page(
        output,
        "report.html",
        scripts=scripts,
        overwrite=overwrite,
        data=data,
        pictures=pictures,
        **values,
    )


def _write_values(
    subject: Subject, output: str | os.PathLike[str], *, most_bytes: int, overwrite: bool
) -> None:
    """Write the page of a regression."""
    if subject.audit is not None:
        raise DatasetError(
            "an audit is about classes, and the model predicts numbers: leave audit=... out"
        )
    data: Json = {"plots": {}}
    page = ValuePage(
        title=subject.title,
        facts=_facts(subject),
        left_out=_left_out(subject.scored),
        half_widths=subject.half_widths,
        warnings=subject.warnings,
        honest=subject.headline,
        trials={} if subject.search is None else _trials(subject.search, data),
        trial_plot=data["plots"].get("leaderboard"),
        history=subject.history,
    )
    write_value_page(page, subject.scored, output, most_bytes=most_bytes, overwrite=overwrite)


def _half_widths(model: ImageClassifier | ImageRegressor) -> list[float] | None:
    if model.residuals_ is None:
        return None
    widths: list[float] = half_widths(model.residuals_).tolist()
    return widths


def _model_facts(model: ImageClassifier | ImageRegressor) -> list[tuple[str, str]]:
    head = model.head if isinstance(model.head, str) else type(model.head).__name__
    facts = [("Backbone", model.shown_block), ("Head", str(head))]
    rule = "" if model.regression else model.rule.describe(model.classes_)
    return [*facts, ("Decides by", rule)] if rule else facts


def _honest(result: SearchResult) -> Json:
    """Return the score of a search's winner on images that the selection has not seen."""
    score = result.score
    if score.value is None:
        return {}
    return {
        "name": _SCORES.get(score.scoring, score.scoring.replace("_", " ").capitalize()),
        "value": score.value,
        "interval": None if score.interval is None else list(score.interval),
        "protocol": score.protocol,
    }


def _kept(result: FineTuned) -> list[str]:
    if result.kept == "finetuned":
        return []
    return [
        "No epoch was better than the head on the hold-out, so that the model stays as it was. "
        "The scores here are those of a head of its kind, fitted without the hold-out."
    ]


def _described(subject: Subject, data: Json) -> Json:
    """Return what the template shows; the plots and what scripts need go into `data`."""
    scored = subject.scored
    scores, features = scored.scores, scored.features
    data["plots"] = {}
    values: Json = {
        "title": subject.title,
        "facts": _facts(subject),
        "warnings": subject.warnings,
        "headline": subject.headline or _headline(scores),
        "scores": _score_rows(scores, len(scored.names)),
        "protocol": scores.get("protocol", "") if subject.headline else "",
        "left_out": _left_out(scored),
        "errors": int((~scored.right).sum()),
        "images": len(scored.rows),
        "rows": len(features),
        "several": scored.label_sets is not None,
        "matrix": None,
        "pairs": [],
        "findings": _findings(subject.audit, features),
        "trials": None,
        "curves": [],
    }
    if scored.judged is not None:
        values |= _confusion(scored.judged.truth, scored.judged.predicted, scored.names)
    data["classes"] = _class_rows(scored)
    decisions = scored.confidence, scored.right
    if scored.label_sets is not None:  # each label of each image is one
        truth, proba = scored.label_sets
        sure = np.where(scored.decided, proba, 1 - proba)
        decisions = sure.ravel(), (scored.decided == (truth > 0)).ravel()
    data["plots"]["reliability"], values["reliability"] = plots.reliability(*decisions)
    item, values["coverage"] = plots.coverage(scored.confidence, scored.right)
    data["plots"]["coverage"] = item
    if subject.search is not None:
        values |= _trials(subject.search, data)
    if subject.history:
        for number, (title, item) in enumerate(plots.curves(subject.history)):
            data["plots"][f"curve{number}"] = item
            values["curves"].append((f"curve{number}", title))
        values["history"] = subject.history
    return values


def _findings(audit: Audit | None, features: Features) -> list[Json]:
    """Return the findings of an audit by kind, with the first of each."""
    if audit is None:
        return []
    if audit.images != len(features):
        raise DatasetError(
            f"the audit is of {audit.images:,} images of {audit.dataset!r}, the report of "
            f"{len(features):,} of {features.name!r}: audit the features that the report is of"
        )
    return [
        {
            "severity": KINDS[kind].severity,
            "title": KINDS[kind].title,
            "advice": KINDS[kind].advice,
            "command": audit.of(kind)[0].command,
            "count": count,
            "examples": [
                {"evidence": finding.evidence, "rows": [row for row in finding.rows if row >= 0]}
                for finding in audit.of(kind)[:_MOST_FINDINGS]
            ],
        }
        for kind, count in audit.counts().items()
    ]


def _facts(subject: Subject) -> list[tuple[str, str]]:
    scored = subject.scored
    what = "Labels" if scored.label_sets is not None else "Classes"
    what = "Numbers" if scored.values is not None else what
    return [
        ("Data", scored.features.name),
        ("Images scored", f"{len(scored.rows):,}"),
        (what, f"{len(scored.names):,}"),
        *subject.facts,
    ]


def _headline(scores: Json) -> Json:
    name = next((name for name in _SCORES if name in scores), None)
    if name is None:
        return {}
    return {
        "name": _SCORES[name],
        "value": scores[name],
        "interval": scores.get("intervals", {}).get(name),
        "protocol": scores.get("protocol", "on images with labels that were given"),
    }


def _score_rows(scores: Json, classes: int) -> list[Json]:
    return [
        {"name": text, "value": scores[name], "interval": scores.get("intervals", {}).get(name)}
        for name, text in _SCORES.items()
        if name in scores and (name != "top5_accuracy" or classes >= _FEWEST_OF_TOP5)
    ]


def _left_out(scored: Scored) -> list[Json]:
    """Return what was not scored and why, with the first names of each kind."""
    features = scored.features
    described = {**data_report(features.manifest), **features.report}
    unlabelled = features.labels < 0
    others = np.setdiff1d(np.flatnonzero(~unlabelled), scored.rows)
    paths = features.paths
    kinds: list[tuple[str, list[str]]] = [
        ("could not be read", [f"{path}: {reason}" for path, reason in features.failed]),
        ("without a label", [paths[row] for row in np.flatnonzero(unlabelled)[:_MOST_LISTED]]),
        ("of other splits: on the map, not scored", [paths[row] for row in others[:_MOST_LISTED]]),
        (
            "not used as images",
            [
                f"{file['path']}: {file['reason']}" if file["reason"] else file["path"]
                for file in described["left_out"]
            ],
        ),
        (
            "with the same content and different labels: scored, and one label is wrong",
            [
                ", ".join(f"{image['path']} ({image['label']})" for image in group)
                for group in described["contradictions"]
            ],
        ),
        ("classes without any image", list(described["empty_classes"])),
    ]
    counts = {1: int(unlabelled.sum()), 2: len(others)}
    return [
        {"what": what, "count": counts.get(number, len(names)), "names": names[:_MOST_LISTED]}
        for number, (what, names) in enumerate(kinds)
        if names
    ]


def _confusion(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], names: NDArray[np.str_]
) -> Json:
    """Return the confusion matrix, of many classes the most confused, and the pairs of errors."""
    k = len(names)
    cells, counts = np.unique(truth.astype(np.int64) * k + predicted, return_counts=True)
    of, to = cells // k, cells % k
    wrong = of != to
    shown = np.arange(k)
    if k > _MOST_IN_MATRIX:
        errors = np.bincount(of[wrong], counts[wrong], minlength=k)
        errors += np.bincount(to[wrong], counts[wrong], minlength=k)
        worst = np.argsort(-errors, kind="stable")[:_MATRIX_OF_MANY]
        shown = np.sort(worst[errors[worst] > 0])
    totals = np.bincount(truth, minlength=k)
    by_cell = dict(zip(cells.tolist(), counts.tolist(), strict=True))
    matrix = [
        {
            "name": names[row],
            "code": int(row),
            "total": int(totals[row]),
            "cells": [(int(column), by_cell.get(int(row * k + column), 0)) for column in shown],
        }
        for row in shown
    ]
    most = np.argsort(-counts[wrong], kind="stable")[:_MOST_PAIRS]
    pairs = [
        {
            "of": int(of[wrong][number]),
            "to": int(to[wrong][number]),
            "true": names[of[wrong][number]],
            "predicted": names[to[wrong][number]],
            "count": int(counts[wrong][number]),
        }
        for number in most
    ]
    return {
        "matrix": matrix,
        "columns": [names[code] for code in shown],
        "all_classes": len(shown) == k,
        "pairs": pairs,
        "kinds": int(wrong.sum()),
    }


def _class_rows(scored: Scored) -> Json:
    """Return for each class its images, and precision, recall and F1 with intervals, in columns."""
    k = len(scored.names)
    if scored.judged is not None:
        truth, predicted = scored.judged.truth, scored.judged.predicted
        support, decided = np.bincount(truth, minlength=k), np.bincount(predicted, minlength=k)
        hits = np.bincount(truth[scored.right], minlength=k)
    else:
        assert scored.label_sets is not None
        has = scored.label_sets[0] > 0
        support, decided = has.sum(axis=0), scored.decided.sum(axis=0)
        hits = (has & scored.decided).sum(axis=0)
    # F1 = 2 J / (1 + J), where J is the share of hits among all that is so labelled or so called.
    either = support + decided - hits
    columns: Json = {"name": scored.names.tolist(), "images": support.tolist()}
    for name, of in (("precision", decided), ("recall", support), ("f1", either)):
        low, high = plots.share_interval(hits, of)
        shares = np.stack([hits / np.maximum(of, 1), low, high])
        if name == "f1":
            shares = 2 * shares / (1 + shares)
        columns[name] = [
            [round(float(v), 4) for v in column] if count else None
            for column, count in zip(shares.T, of, strict=True)
        ]
    return columns


def _trials(search: SearchResult, data: Json) -> Json:
    item = plots.leaderboard(search.leaderboard, search.scoring)
    if item is not None:
        data["plots"]["leaderboard"] = item
    rows = [
        row for row in search.leaderboard if row.rank <= _MOST_TRIALS or row.chosen or row.pareto
    ]
    return {
        "trials": rows,
        "trial_count": len(search.leaderboard),
        "scoring": visible(search.scoring.replace("_", " ")),
        "timed": item is not None,
        "notes": search.notes,
    }
