"""A page about predicted numbers: scores, predicted against true, errors, and the worst images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from featx.files.safe_json import Json
from featx.models.scored import Scored
from featx.reporting import plots
from featx.reporting.page import render_page, script_file, write_page
from featx.reporting.thumbnails import thumbnails
from featx.selection.value_metrics import VALUE_SCORES
from featx.terminal import visible

_MOST_PLOTS, _WORST, _SIDE_PX = 12, 60, 128
_GIVEN = "on images with numbers that were given"


@dataclass(frozen=True, kw_only=True)
class ValuePage:
    """What a page of a regression shows beside the scored images."""

    title: str
    facts: list[tuple[str, str]]
    left_out: list[Json]
    half_widths: Sequence[float] | None = None  # of the intervals, one a number
    warnings: list[str] = field(default_factory=list)
    honest: Json = field(default_factory=dict)  # score of a search's winner
    trials: Json = field(default_factory=dict)  # of a search, for the template
    trial_plot: Json | None = None
    history: Sequence[Json] = ()  # of a fine-tuning


def write_value_page(
    page: ValuePage,
    scored: Scored,
    output: str | os.PathLike[str],
    *,
    most_bytes: int,
    overwrite: bool = False,
) -> None:
    """Write the page of numbers that were predicted for some images."""
    assert scored.values is not None
    truth, predicted = scored.values
    scores, names = scored.scores, scored.names.tolist()
    drawn: Json = {}
    columns = []
    for number, name in enumerate(names[:_MOST_PLOTS]):
        half = None if page.half_widths is None else float(page.half_widths[number])
        pair = truth[:, number], predicted[:, number]
        drawn[f"truth{number}"] = plots.predicted_against_true(*pair, half)
        drawn[f"errors{number}"] = plots.residuals(*pair, half)
        inside = None if half is None else float(np.mean(np.abs(pair[0] - pair[1]) <= half))
        columns.append({"name": name, "number": number, "half": half, "inside": inside})
    if page.trial_plot is not None:
        drawn["leaderboard"] = page.trial_plot
    curves = []
    for number, (title, item) in enumerate(plots.curves(page.history) if page.history else ()):
        drawn[f"curve{number}"] = item
        curves.append((f"curve{number}", title))
    values: Json = {
        "title": page.title,
        "facts": page.facts,
        "warnings": page.warnings,
        "headline": page.honest or _headline(scores),
        "protocol": scores.get("protocol", _GIVEN),
        "score_names": list(VALUE_SCORES.values()),
        "scores": _score_rows(scores, names),
        "columns": columns,
        "more": max(0, len(names) - _MOST_PLOTS),
        "images": len(truth),
        "left_out": page.left_out,
        "trials": None,
        "curves": curves,
        "history": page.history,
        **page.trials,
    }
    scripts = [plots.library(), script_file("values.js")]
    data = {"plots": drawn}
    fixed = sum(map(len, scripts)) + len(json.dumps(data))
    fixed += len(render_page("values.html", data=None, worst=[], **values).encode())
    worst = _worst(scored, most_bytes - fixed)
    write_page(
        output,
        "values.html",
        scripts=scripts,
        overwrite=overwrite,
        data=data,
        worst=worst,
        **values,
    )


def _headline(scores: Json) -> Json:
    return {
        "name": VALUE_SCORES["r2"],
        "value": scores["r2"],
        "interval": scores.get("intervals", {}).get("r2"),
        "protocol": scores.get("protocol", _GIVEN),
    }


def _score_rows(scores: Json, names: Sequence[str]) -> list[Json]:
    """Return a row a number, and one of their means where there are several."""
    intervals = scores.get("intervals", {})
    of_names = intervals.get("values", [{}] * len(names))
    rows = [
        (row["value"], row, limits) for row, limits in zip(scores["values"], of_names, strict=True)
    ]
    if len(names) > 1:
        rows.append(("mean", scores, intervals))
    return [
        {"name": name, "cells": [(row[key], limits.get(key)) for key in VALUE_SCORES]}
        for name, row, limits in rows
    ]


def _worst(scored: Scored, budget_bytes: int) -> list[Json]:
    """Return the images that are furthest off, with pictures while there is room."""
    table = scored.table(_WORST)
    pictures = thumbnails(scored.features, table["row"], side_px=_SIDE_PX)
    worst, used = [], 0
    for number, row in enumerate(table["row"]):
        picture = pictures.get(row, "")
        used += len(picture)
        lines = [
            f"{name}: {table[name][number]:.5g}, predicted {table[f'{name} predicted'][number]:.5g}"
            for name in scored.names.tolist()[:_MOST_PLOTS]
        ]
        shown = picture if used <= budget_bytes else ""
        worst.append({"picture": shown, "path": visible(table["path"][number]), "lines": lines})
    return worst
