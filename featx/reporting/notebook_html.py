"""HTML of values in a notebook: short, with a few pictures, in the colours of the page around it.

It needs no network, no script, no style sheet and no optional package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.cache.features import Features
from featx.exceptions import FeatxError
from featx.files.safe_json import Json
from featx.notebooks import escaped, html_table
from featx.reporting.thumbnails import thumbnails

if TYPE_CHECKING:
    from featx.finetuning.tuning import FineTuned
    from featx.models.classifier import ImageClassifier
    from featx.models.evaluation import Evaluation
    from featx.models.regressor import ImageRegressor
    from featx.models.scored import Scored
    from featx.models.search import SearchResult
    from featx.models.training import TrainingResult
    from featx.selection.leaderboard import Row

_LOG = logging.getLogger("featx")
_PICTURES, _CLASSES, _LEADERS = 8, 6, 8
_MOST_COUNTED = 1000  # classes: a matrix of more takes seconds to add up
_SIDE_PX = 72
_PATIENCE_S = 5.0
_FRAME = "max-width:60em;overflow:auto"
_TILE = f"width:{_SIDE_PX}px;height:{_SIDE_PX}px;border-radius:4px;display:block"
_GREY = f"{_TILE};background:rgba(128,128,128,.3);font-size:9px;overflow:hidden;padding:2px"
_GREY += ";box-sizing:border-box;overflow-wrap:anywhere"
_LINE = "overflow:hidden;text-overflow:ellipsis;white-space:nowrap;font-size:11px"


def as_html(value: object) -> str:
    """Return a value as a piece of HTML."""
    # By names of types, so that showing features imports no model.
    pages = [_PAGES[kind.__name__] for kind in type(value).__mro__ if kind.__name__ in _PAGES]
    return pages[0](value)


def _features(features: Features) -> str:
    count, whole = len(features), features.selected_from
    images = f"{count:,}" if whole is None else f"{count:,} of {whole:,}"
    lines = [f"{_strong(features.name)} {images} image{'s' * (count != 1)}"]
    if without := len(features.manifest) - count:
        lines.append(f"{without:,} could not be read: see .failed")
    lines += _classes(features)
    blocks = [
        (block.backbone, block.tap, _width(features, block.backbone, block.tap), views)
        for block in features.blocks
        if block.view is None
        for views in [len(features.views(backbone=block.backbone, tap=block.tap))]
    ]
    parts = [_lines(lines), html_table(("backbone", "tap", "features", "views"), blocks, numbers=2)]
    if count and features.manifest.source != "imported":
        spread = np.unique(np.linspace(0, count - 1, _PICTURES).astype(int))
        shown = features[spread]
        labels = [""] * len(shown) if shown.y is None else shown.y.tolist()
        parts.append(_pictures(shown, [[label] for label in labels]))
    return _framed(parts)


def _classes(features: Features) -> list[str]:
    """Return the largest classes with their numbers of images, as lines."""
    if features.classes is None:
        return ["no labels"]
    counts = np.bincount(features.labels + 1, minlength=len(features.classes) + 1)[1:]
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    shown = [f"{escaped(features.classes[code])} ({counts[code]:,})" for code in order[:_CLASSES]]
    more = f" and {len(order) - _CLASSES:,} more" if len(order) > _CLASSES else ""
    count = f"{len(order):,} class{'es' * (len(order) != 1)}"
    lines = [f"{count}: {', '.join(shown)}{more}" if shown else count]
    if unlabelled := len(features) - int(counts.sum()):
        lines.append(f"{unlabelled:,} without a label")
    return lines


def _width(features: Features, backbone: str, tap: str) -> str:
    with suppress(FeatxError, OSError):
        return f"{features.width(backbone=backbone, tap=tap):,}" if len(features) else "-"
    return "gone"


def _search(result: SearchResult) -> str:
    best, score = result.best, result.score
    tried = f"{len(result.leaderboard):,} of {result.planned:,} candidates"
    where = escaped(f"on {best.backbone} {best.tap}, {best.transform}")
    lines = [f"{_strong(best.head)} {where}: the best of {tried} in {result.seconds:,.1f} s"]
    text = score.protocol
    if score.value is not None and score.interval is not None:
        low, high = score.interval
        text = f"{score.scoring} {score.value:.4f} (95 %: {low:.3f} to {high:.3f}), {text}"
    lines += map(escaped, [text, *result.notes])
    shown = [row for row in result.leaderboard if row.rank <= _LEADERS or row.chosen]
    header = ("", "backbone", "tap", "transform", "head", result.scoring, "±", "ms", "MB")
    table = html_table(header, map(_leader, shown), numbers=4)
    if more := len(result.leaderboard) - len(shown):
        table += _lines([f"and {more:,} more: see .leaderboard"])
    return _framed([_lines(lines), table, _winner_errors(result)])


def _winner_errors(result: SearchResult) -> str:
    """Return pictures of the winner's errors, or how to see them where that takes long."""
    if (seconds := result.seconds_to_scored) > _PATIENCE_S:
        again = f"its errors: see .scored, which takes about {seconds:,.0f} s, and show this again"
        return _lines([again])
    with suppress(FeatxError, OSError):  # the features may be gone
        scored = result.scored
        if scored is not None and (pictures := _errors(scored)):
            return _lines([escaped(scored.scores["protocol"])]) + pictures
    return ""


def _leader(row: Row) -> tuple[str, ...]:
    states = {"chosen": row.chosen, "stopped early": row.stopped, "failed": bool(row.failed)}
    digits = ((row.score, 4), (row.std, 4), (row.ms, 3), (row.mb, 2))
    return (
        ", ".join(state for state, holds in states.items() if holds),
        *(row.backbone, row.tap, row.transform, row.head),
        *(_number(value, places) for value, places in digits),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _training(result: TrainingResult) -> str:
    model, training = result.model, result.training
    lines = [
        f"{_model(model)}, trained on {training['images']:,} images of "
        f"{escaped(training['dataset'])}",
        _score(result.metrics),
    ]
    return _framed([_lines(lines), _errors(result.scored)])


def _tuning(result: FineTuned) -> str:
    kept = "fine-tuned" if result.kept == "finetuned" else "the head as it was: no epoch was better"
    lines = [f"{_model(result.model)}, kept: {kept}", _score(result.metrics)]
    lines += [escaped(result.stopped)] if result.stopped else []
    best = result.metrics["finetuning"].get("best_epoch", 0)
    shown = [entry for entry in result.history if entry["epoch"] in (0, best)]
    shown += [entry for entry in result.history if entry not in shown][-_LEADERS:]
    regression = result.model.regression
    score, name = ("val_r2", "R²") if regression else ("val_accuracy", "accuracy")
    rows = [
        (
            f"{entry['epoch']}{', the best' * (entry['epoch'] == best)}",
            _number(entry["loss"], 4),
            _number(entry["val_loss"], 4),
            _number(entry[score], 4),
        )
        for entry in sorted(shown, key=lambda entry: entry["epoch"])
    ]
    header = ("epoch", "loss", "hold-out loss", f"hold-out {name}")
    return _framed([_lines(lines), html_table(header, rows, numbers=3), _errors(result.scored)])


def _evaluation(scores: Evaluation) -> str:
    lines = [f"{_score(scores)}, {scores['images']:,} images"]
    if failed := scores["failed"]:
        lines.append(f"{failed:,} could not be read")
    if (overlap := scores.get("training_overlap")) and overlap["in_training"]:
        text = f"{overlap['in_training']:,} of them were used in training: no measure of accuracy"
        lines.append(_strong(text))
    if len(scores.get("labels") or scores.get("values") or scores["classes"]) > _MOST_COUNTED:
        return _framed([_lines(lines)])
    columns = scores.by_class()
    if "values" in scores:
        cells = zip(*columns.values(), strict=True)
        numbers = [(name, *(_number(value, 4) for value in values)) for name, *values in cells]
        return _framed([_lines(lines), html_table(list(columns), numbers, numbers=3)])
    rows = [
        (label, f"{images:,}", *(_number(value, 3) for value in values))
        for label, images, *values in zip(*columns.values(), strict=True)
    ]
    table = html_table(
        [name.replace("_", " ") for name in columns], rows[:_LEADERS], numbers=len(columns) - 1
    )
    if len(rows) > _LEADERS:
        table += _lines([f"and {len(rows) - _LEADERS:,} more: see .to_pandas()"])
    return _framed([_lines(lines), table])


def _model(model: ImageClassifier | ImageRegressor) -> str:
    head = model.head if isinstance(model.head, str) else type(model.head).__name__
    if model.regression:
        learnt = escaped(", ".join(model.value_names_))
    else:
        learnt = f"{len(model.classes_):,} {'labels' if model.multilabel else 'classes'}"
        if rule := model.rule.describe(model.classes_):
            learnt += f"; decides by {escaped(rule)}"
    return f"{_strong(head)} on {escaped(model.shown_block)}, {learnt}"


_SCORES = {
    "accuracy": "accuracy",
    "mean_average_precision": "mean average precision",
    "r2": "R²",
}


def _score(metrics: Json) -> str:
    """Return the first score with its interval, and how it was measured."""
    parts = []
    for key, name in _SCORES.items():
        if key in metrics:
            parts.append(f"{name} {metrics[key]:.4f}")
            if key in metrics.get("intervals", {}):
                low, high = metrics["intervals"][key]
                parts[0] += f" (95 %: {low:.3f} to {high:.3f})"
    parts += [metrics["protocol"]] if "protocol" in metrics else []
    return escaped(", ".join(parts))


def _errors(scored: Scored | None) -> str:
    """Return pictures of the most confident errors, or of the greatest errors of numbers."""
    if scored is not None and scored.values is not None:
        return _greatest_errors(scored)
    wrong = 0 if scored is None else int((~scored.right).sum())
    if scored is None or not wrong:
        return ""
    table = scored.table(min(wrong, _PICTURES))
    answers = zip(table["label"], table["predicted"], table["probability"], strict=True)
    captions = [
        (label, f"→ {predicted or 'none'}", f"{probability:.2f}")
        for label, predicted, probability in answers
    ]
    heading = (
        f"{wrong:,} of {len(scored.rows):,} wrong, the most confident first: label → prediction"
    )
    return _lines([heading]) + _pictures(scored.features[table["row"]], captions)


def _greatest_errors(scored: Scored) -> str:
    table, name = scored.table(_PICTURES), scored.names.tolist()[0]
    captions = [
        (f"{true:.4g}", f"→ {predicted:.4g}")
        for true, predicted in zip(table[name], table[f"{name} predicted"], strict=True)
    ]
    heading = f"the greatest errors of {len(scored.rows):,} images: {escaped(name)} → prediction"
    return _lines([heading]) + _pictures(scored.features[table["row"]], captions)


_PAGES: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        "Features": _features,
        "TrainingResult": _training,
        "SearchResult": _search,
        "FineTuned": _tuning,
        "Evaluation": _evaluation,
    }
)

# Pieces of HTML


def _framed(parts: Sequence[str]) -> str:
    return f'<div style="{_FRAME}">{"".join(parts)}</div>'


def _strong(text: object) -> str:
    return f"<strong>{escaped(text)}</strong>"


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"<div>{line}</div>" for line in lines)


def _pictures(features: Features, captions: Sequence[Sequence[str]]) -> str:
    """Return a picture of each of a few rows with lines below it; grey where the image is gone."""
    try:
        pictures = thumbnails(features, range(len(features)), side_px=_SIDE_PX)
    except Exception:  # decoders and disks are anybody's: a grey tile says as much
        _LOG.debug("no pictures of %r", features, exc_info=True)
        pictures = {}
    tiles = []
    for row, (path, lines) in enumerate(zip(features.paths, captions, strict=True)):
        name = escaped(", ".join(filter(None, (path, *lines))))
        picture = f'<div style="{_GREY}">{escaped(path.rpartition("/")[2])}</div>'
        if row in pictures:
            picture = f'<img src="{pictures[row]}" alt="{name}" style="{_TILE}">'
        below = "".join(f'<div style="{_LINE}">{escaped(line)}</div>' for line in lines)
        tiles.append(f'<div title="{name}" style="width:{_SIDE_PX}px">{picture}{below}</div>')
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(tiles)}</div>'
