"""The plots of a report, made with Bokeh: each as JSON that BokehJS draws when it is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import MissingExtraError
from featx.files.safe_json import Json
from featx.selection.leaderboard import Row
from featx.selection.metrics import CALIBRATION_BINS
from featx.terminal import visible

BLUE, ORANGE, GREY, INK = "#0b57a4", "#c2570c", "#8a94a0", "#1b2430"
# Okabe and Ito's colours, which people with any kind of colour vision tell apart, on white.
CATEGORY_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#6A3D9A", "#A0522D"),
    *("#E69F00", "#8a94a0"),
)
# Each colour has a shape of its own, so that no reader depends on colours.
CATEGORY_MARKERS = (
    *("circle", "triangle", "square", "diamond", "inverted_triangle", "plus", "star", "hex"),
    *("cross", "dot"),
)
_HEIGHT = 320
_PLACES = (-2600, 68_135)  # points lie from 0 to 65535


def library() -> str:
    """Return the script that draws the plots."""
    bokeh = _bokeh()
    folder = Path(bokeh.__file__).parent / "server" / "static" / "js"
    return (folder / "bokeh.min.js").read_text("utf-8")


@cache
def _bokeh() -> Any:
    try:
        import bokeh.plotting
    except ImportError as error:
        raise MissingExtraError("bokeh", extra="report", purpose="drawing plots") from error
    return bokeh


def _figure(**options: Any) -> Any:
    figure = _bokeh().plotting.figure(
        height=options.pop("height", _HEIGHT),
        sizing_mode="stretch_width",
        toolbar_location=options.pop("toolbar_location", None),
        tools=options.pop("tools", ""),
        **options,
    )
    figure.outline_line_color = None
    figure.background_fill_color = figure.border_fill_color = "#ffffff"
    figure.min_border_right = 12
    for axis in figure.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_line_color = axis.major_tick_line_color = GREY
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
    figure.grid.grid_line_color = "#e6e9ee"
    return figure


def _item(figure: Any) -> Json:
    from bokeh.embed import json_item

    return dict(json_item(figure))


def reliability(
    confidence: NDArray[np.floating], right: NDArray[np.bool_]
) -> tuple[Json, list[Json]]:
    """Return the plot of accuracy against confidence, and its numbers: a row for each bin."""
    bins = np.clip((confidence * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    rows = []
    for number in np.flatnonzero(counts):
        inside = bins == number
        low, high = share_interval(int(right[inside].sum()), int(counts[number]))
        rows.append(
            {
                "from": number / CALIBRATION_BINS,
                "to": (number + 1) / CALIBRATION_BINS,
                "images": int(counts[number]),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(right[inside].mean()),
                "low": float(low),
                "high": float(high),
            }
        )
    figure = _figure(
        x_range=(0, 1),
        y_range=(0, 1.02),
        x_axis_label="confidence of the model",
        y_axis_label="share that is right",
    )
    column = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    if rows:
        most = max(column["images"])
        figure.quad(
            left=column["from"],
            right=column["to"],
            bottom=0,
            top=[0.25 * images / most for images in column["images"]],
            fill_color="#dfe5ec",
            line_color="#ffffff",
        )
        figure.line([0, 1], [0, 1], line_color=GREY, line_dash="dashed", line_width=1.5)
        figure.segment(
            column["confidence"],
            column["low"],
            column["confidence"],
            column["high"],
            line_color=BLUE,
            line_width=2,
            line_alpha=0.5,
        )
        figure.line(column["confidence"], column["accuracy"], line_color=BLUE, line_width=2)
        figure.scatter(column["confidence"], column["accuracy"], size=8, color=BLUE)
    return _item(figure), rows


_MOST_POINTS = 5000


def _some(truth: NDArray[np.floating], predicted: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return which images are drawn: of very many, some evenly by their true number."""
    order = np.argsort(truth, kind="stable")
    if len(order) <= _MOST_POINTS:
        return order
    return order[np.linspace(0, len(order) - 1, _MOST_POINTS).astype(np.intp)]


def predicted_against_true(
    truth: NDArray[np.floating], predicted: NDArray[np.floating], half_width: float | None = None
) -> Json:
    """Return the plot of predicted numbers against true ones, with the band of the intervals."""
    rows = _some(truth, predicted)
    both = np.concatenate([truth[rows], predicted[rows]])
    low, high = float(both.min()), float(both.max())
    margin = 0.03 * (high - low) or 1.0
    ends = np.array([low - margin, high + margin])
    figure = _figure(
        x_range=tuple(ends), y_range=tuple(ends), x_axis_label="true", y_axis_label="predicted"
    )
    if half_width is not None:
        figure.varea(ends, ends - half_width, ends + half_width, fill_color=BLUE, fill_alpha=0.12)
    figure.line(ends, ends, line_color=GREY, line_width=2, line_dash="dashed")
    figure.scatter(truth[rows], predicted[rows], size=6, color=BLUE, fill_alpha=0.6, line_alpha=0)
    return _item(figure)


def residuals(
    truth: NDArray[np.floating], predicted: NDArray[np.floating], half_width: float | None = None
) -> Json:
    """Return the plot of errors against predicted numbers, with the band of the intervals."""
    rows = _some(truth, predicted)
    error = (predicted - truth)[rows]
    ends = np.array([predicted[rows].min(), predicted[rows].max()])
    figure = _figure(x_axis_label="predicted", y_axis_label="predicted less true")
    if half_width is not None:
        band = np.full(2, half_width)
        figure.varea(ends, -band, band, fill_color=BLUE, fill_alpha=0.12)
    figure.line(ends, [0, 0], line_color=GREY, line_width=2, line_dash="dashed")
    figure.scatter(predicted[rows], error, size=6, color=BLUE, fill_alpha=0.6, line_alpha=0)
    return _item(figure)


COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)


def coverage(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> tuple[Json, list[Json]]:
    """Return the plot of accuracy where only the surest images are answered, and its numbers."""
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    correct = np.cumsum(right[order])
    rows = []
    for share in COVERAGES:
        count = max(1, round(share * len(order)))
        low, high = share_interval(int(correct[count - 1]), count)
        rows.append(
            {
                "coverage": count / len(order),
                "images": count,
                "left": len(order) - count,
                "confidence": float(confidence[order[count - 1]]),
                "accuracy": float(correct[count - 1] / count),
                "low": float(low),
                "high": float(high),
            }
        )
    places = np.unique(np.linspace(0, len(order) - 1, min(400, len(order))).astype(int))
    # Of the first few images a share says nothing.
    places = places[answered[places] >= min(len(order), 10)]
    accuracy, x = correct[places] / answered[places], answered[places] / len(order)
    low, high = share_interval(correct[places], answered[places])
    lowest = max(0.0, float(low.min()) - 0.02)
    figure = _figure(
        x_range=(1.0, 0.0),
        y_range=(lowest, 1.005),
        x_axis_label="share of the images that the model answers",
        y_axis_label="share that is right",
    )
    figure.varea(x, low, high, fill_color=BLUE, fill_alpha=0.15)
    figure.line(x, accuracy, line_color=BLUE, line_width=2.5)
    return _item(figure), rows


def feature_map() -> Json:
    """Return the plot of the map, without points: these are drawn group by group in the page."""
    from bokeh.models import ColumnDataSource, HoverTool

    figure = _figure(
        height=560,
        tools="pan,wheel_zoom,box_zoom,box_select,lasso_select,tap,reset",
        toolbar_location="above",
        active_drag="lasso_select",
        active_scroll=None,
        x_range=_PLACES,
        y_range=_PLACES,
    )
    figure.axis.visible = False
    figure.grid.grid_line_color = None
    figure.toolbar.logo = None
    figure.min_border = 4
    renderers = []
    looks = zip(CATEGORY_COLOURS, CATEGORY_MARKERS, strict=True)
    for number, (colour, marker) in enumerate(looks):
        source = ColumnDataSource({"x": [], "y": [], "row": []}, name=f"group{number}")
        renderers.append(
            figure.scatter(
                "x",
                "y",
                source=source,
                size=7,
                marker=marker,
                fill_color=colour,
                line_color="#ffffff" if marker not in ("plus", "cross", "dot") else colour,
                line_width=0.5 if marker not in ("plus", "cross") else 1.5,
                fill_alpha=0.85,
                nonselection_fill_alpha=0.15,
                nonselection_line_alpha=0.15,
                muted_fill_alpha=0.15,
                muted_line_alpha=0.15,
                name=f"points{number}",
            )
        )
    figure.scatter(
        "x",
        "y",
        source=ColumnDataSource({"x": [], "y": []}),
        size=16,
        fill_color=None,
        line_color=INK,
        line_width=2.5,
        name="mark",
    )
    figure.add_tools(HoverTool(tooltips=None, renderers=renderers))
    return _item(figure)


def leaderboard(rows: Sequence[Row], scoring: str) -> Json | None:
    """Return the plot of scores against milliseconds an image, None where nothing was timed."""
    timed = [row for row in rows if row.score is not None and row.ms is not None]
    if not timed:
        return None
    from bokeh.models import BasicTickFormatter, ColumnDataSource, HoverTool

    figure = _figure(
        x_axis_type="log",
        x_axis_label="milliseconds an image",
        y_axis_label=visible(scoring),
    )
    # Bokeh's own ticks leave out most of an axis of few powers of ten.
    figure.xaxis.ticker = _log_ticks([row.ms or 0.0 for row in timed])
    figure.xaxis.formatter = BasicTickFormatter(use_scientific=False)
    kinds = (
        ("others", "circle", GREY, [row for row in timed if not row.pareto and not row.chosen]),
        ("none is faster and better", "triangle", BLUE, [row for row in timed if row.pareto]),
        ("chosen", "star", ORANGE, [row for row in timed if row.chosen]),
    )
    front = sorted((row.ms or 0.0, row.score or 0.0) for row in timed if row.pareto)
    figure.line([x for x, _ in front], [y for _, y in front], line_color=BLUE, line_alpha=0.5)
    for label, marker, colour, chosen in kinds:
        if not chosen:
            continue
        source = ColumnDataSource(
            {
                "x": [row.ms for row in chosen],
                "y": [row.score for row in chosen],
                "head": [visible(row.head) for row in chosen],
                "block": [visible(f"{row.backbone} {row.tap}") for row in chosen],
            }
        )
        size = 14 if marker == "star" else 9
        figure.scatter(
            "x", "y", source=source, size=size, marker=marker, color=colour, legend_label=label
        )
    figure.add_tools(HoverTool(tooltips=[("", "@head"), ("", "@block"), ("ms", "@x"), ("", "@y")]))
    _legend_above(figure)
    return _item(figure)


def _legend_above(figure: Any) -> None:
    """Put the legend above a plot: inside it hides what lies there."""
    (legend,) = figure.legend
    legend.label_text_font_size, legend.orientation = "12px", "horizontal"
    figure.add_layout(legend, "above")


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers beside positive values, few enough for a narrow axis."""
    low, high = min(values) / 2.5, max(values) * 2.5
    first, last = (int(np.floor(np.log10(max(value, 1e-9)))) for value in (low, high))
    steps = (1.0, 2.0, 5.0) if last - first <= 3 else (1.0,)
    ticks = [float(f"{step:g}e{power}") for power in range(first, last + 1) for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def curves(history: Sequence[Json]) -> list[tuple[str, Json]]:
    """Return the plots of a training by epoch, each with its title."""
    losses = (("training", "loss", ORANGE, "dashed"), ("hold-out", "val_loss", BLUE, "solid"))
    known = (("Accuracy", "val_accuracy"), ("R²", "val_r2"))
    scores = [
        (f"{title} on the hold-out", (("hold-out", name, BLUE, "solid"),))
        for title, name in known
        if name in history[0]
    ]
    plots = []
    for title, lines in (("Loss", losses), *scores):
        figure = _figure(x_axis_label="epoch", y_axis_label=title[0].lower() + title[1:])
        for label, name, colour, dash in lines:
            points = [
                (entry["epoch"], entry[name])
                for entry in history
                if entry.get(name) is not None and (entry["epoch"] or name.startswith("val"))
            ]
            x, y = [point[0] for point in points], [point[1] for point in points]
            figure.line(x, y, line_color=colour, line_width=2, line_dash=dash, legend_label=label)
            figure.scatter(x, y, color=colour, size=6)
        _legend_above(figure)
        figure.legend.visible = len(lines) > 1
        plots.append((title, _item(figure)))
    return plots


def share_interval(hits: Any, of: Any) -> tuple[Any, Any]:
    """Return the 95 % interval of a share, or of an array of them (Wilson, 1927)."""
    z, n = 1.959964, np.maximum(of, 1)
    share = np.asarray(hits) / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
    return np.where(np.asarray(of) > 0, low, 0.0), np.where(np.asarray(of) > 0, high, 1.0)
