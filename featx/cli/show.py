"""What several commands print."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.terminal import say, visible

if TYPE_CHECKING:
    from featx.cache.features import Features

_IMPORTED_S = time.perf_counter()
_SHOWN = 10
_SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "top5_accuracy": "top-5 accuracy",
    "calibration_error": "calibration error",
}
_SET_SCORES = {
    "mean_average_precision": "mean average precision",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "exact_match": "every label right",
}
_VALUE_SCORES = {"r2": "R²", "mae": "MAE", "rmse": "RMSE"}
BESIDE = "an image "
_ANIMATED = (".gif", ".webp", ".apng")


class Laps:
    """Where the time of a command goes, from the start of its process: all of it has a name."""

    def __init__(self) -> None:
        self.laps: list[tuple[str, float]] = []
        self.lap("start")

    def lap(self, what: str) -> None:
        """Give the time since the last lap a name."""
        self.laps.append((what, process_seconds() - sum(seconds for _, seconds in self.laps)))

    def say(self) -> None:
        """Print the whole time and its parts."""
        parts = ", ".join(f"{what} {seconds:.1f}" for what, seconds in self.laps)
        say(f"time      {sum(seconds for _, seconds in self.laps):.1f} s: {parts}")


def process_seconds() -> float:
    """Return how long this process has been running, where the system says when it began."""
    with suppress(OSError, ValueError, IndexError):
        began = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19]
        uptime = float(Path("/proc/uptime").read_text("ascii").split()[0])
        return uptime - int(began) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter() - _IMPORTED_S


def show_extraction(features: Features) -> None:
    """Print what an extraction did, and what it could not read."""
    report = features.report
    pending = f"{report['pending']:,} left to other shards, " if "pending" in report else ""
    say(
        f"{report['dataset']}: {report['images']:,} images, {report['cached']:,} cached, "
        f"{report['extracted']:,} extracted, {report['failed']:,} failed, {pending}"
        f"{report['images_per_s']:,.0f} images/s, {report['seconds']:.1f} s"
    )
    for block in features.blocks:
        if block.view is not None:
            continue
        which = {"backbone": block.backbone, "tap": block.tap}
        views = len(features.views(**which))
        more = f", and {views} views of each" if views else ""
        say(
            f"  {block.backbone} {block.tap}: {len(features):,} x {features.width(**which):,} in "
            f"{block.space}{more}"
        )
    _show_seconds(report)
    notes(features)


def unused_images(features: Features) -> dict[str, Any]:
    """Return which images could not be read and which files are not used, as JSON types."""
    from featx.extraction.report import left_out

    others = features.report.get("left_out")
    if others is None:
        others = left_out(features.manifest)
    return {**failures(features.failed), "left_out": others}


def failures(failed: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return how many images could not be read, and each with its reason, as JSON types."""
    listed = [{"path": path, "reason": reason} for path, reason in failed]
    return {"failed": len(listed), "failures": listed}


def show_features(features: Features) -> None:
    """Print in one line what a head is trained on, and what could not be read."""
    report = features.report
    say(
        f"features  {report['images']:,} images, {report['cached']:,} cached, "
        f"{report['extracted']:,} extracted, {report['failed']:,} failed in "
        f"{report['seconds']:.1f} s"
    )
    notes(features)


def _show_seconds(report: dict[str, Any]) -> None:
    """Print where the time of an extraction went."""
    if "engine" not in report:
        return
    parts = [
        f"{part} {report[f'{part}_s']:.1f}"
        for part in ("calibrate", "start", "read", "decode", "forward", "write", "compare")
        if f"{part}_s" in report
    ]
    binds = f", {report['binds']} binds" if report["binds"] else ""
    say(
        f"  {report['engine']}: {report['extracted_per_s']:,.0f} images/s{binds}; seconds of work: "
        f"{', '.join(parts)}"
    )


def notes(features: Features) -> None:
    """Print what a user may want to know of the inputs."""
    from featx.extraction.report import missing_files

    report = features.report
    show_data(report)
    _list("could not be read", [f"{path}: {reason}" for path, reason in features.failed])
    if where := missing_files(features.manifest):
        say(f"  {where}")
    if features.report.get("duplicates"):
        say(f"  {features.report['duplicates']:,} equal another image byte for byte")
    animated = [path for path in features.paths if path.lower().endswith(_ANIMATED)]
    _list("may be animations, of which the first frame is used", animated)
    left_out = [(file["path"], file["reason"]) for file in report.get("left_out", ())]
    beside = [(path, reason) for path, reason in left_out if reason.startswith(BESIDE)]
    if len(beside) == 1:
        say(f"  1 image lies {beside[0][1][len(BESIDE) :]} and has no label: {beside[0][0]}")
    else:
        _list("images lie beside the folders in use and have no label", [p for p, _ in beside])
    others = [(path, reason) for path, reason in left_out if not reason.startswith(BESIDE)]
    plain = ("", "no image extension")
    _list("are no images and were left out", [p for p, reason in others if reason in plain])
    strange = [f"{path}: {reason}" for path, reason in others if reason not in plain]
    _list("were left out", strange)


def show_data(report: dict[str, Any]) -> None:
    """Print splits, classes without images, and labels that are missing or contradict."""
    if splits := report.get("splits"):
        names = report["split_names"]
        shown = []
        for split, count in splits.items():
            called = ", ".join(name for name, of in names.items() if of == split)
            meant = f"{called} = {split}" if called else split or "no split"
            shown.append(f"{meant} ({count:,} image{'' if count == 1 else 's'})")
        say(f"splits: {', '.join(shown)}")
    for note in report.get("notes", ()):
        say(f"  {note}")
    for name in report.get("empty_classes", ())[:_SHOWN]:
        say(f"  {name}/ has no image")
    if count := report.get("unlabelled"):
        say(f"  {count:,} image{' has' if count == 1 else 's have'} no label")
    for group in report.get("look_alike", ())[:_SHOWN]:
        names = " and ".join(repr(name) for name in group)
        say(f"  classes that differ only in case, spaces or the form of accents: {names}")
    _list(
        "were labelled by hand and have moved to another class folder since; the label given by "
        "hand is kept",
        [
            f"{row['path']}: moved from {row['before'] or 'no class'} to "
            f"{row['folder'] or 'no class'}, labelled {row['label'] or 'as none'}"
            for row in report.get("conflicts", ())
        ],
    )
    groups = report.get("contradictions", ())
    _list(
        "images have the same content but different labels",
        [", ".join(f"{row['path']} ({row['label']})" for row in rows[:_SHOWN]) for rows in groups],
        count=sum(map(len, groups)),
        unit=" groups",
    )


def _list(what: str, lines: Sequence[str], *, count: int | None = None, unit: str = "") -> None:
    """Print how many there are of something, and the first lines of them."""
    if not lines:
        return
    say(f"  {len(lines) if count is None else count:,} {what}:")
    say(*(f"    {line}" for line in lines[:_SHOWN]))
    if len(lines) > _SHOWN:
        say(f"    and {len(lines) - _SHOWN:,} more{unit}")


def show_scores(metrics: dict[str, Any]) -> None:
    """Print scores with their intervals, and the confusion matrix or its largest errors."""
    if "mean_average_precision" in metrics:
        _show_label_sets(metrics)
        return
    if "values" in metrics:
        _show_values(metrics)
        return
    if intervals := metrics.get("intervals"):
        say(*_with_intervals(_SCORES, metrics, intervals))
    else:
        say(", ".join(f"{what} {metrics[name]:.4f}" for name, what in _SCORES.items()))
    classes = metrics["classes"]
    if len(classes) > _SHOWN:
        _show_errors(classes, metrics["confusion"])
        return
    rows = [
        [name, *(str(count) for count in row)]
        for name, row in zip(classes, metrics["confusion"], strict=True)
    ]
    say(*table(["true \\ predicted", *classes], rows))


def _show_label_sets(metrics: dict[str, Any]) -> None:
    if intervals := metrics.get("intervals"):
        say(*_with_intervals(_SET_SCORES, metrics, intervals))
    else:
        say(label_scores(metrics))
    if len(metrics["labels"]) <= _SHOWN:
        columns = ("average_precision", "f1")
        rows = [
            [
                row["label"],
                str(row["images"]),
                *("-" if row[name] is None else f"{row[name]:.4f}" for name in columns),
            ]
            for row in metrics["labels"]
        ]
        say(*table(["label", "images", "average precision", "F1"], rows))


def _show_values(metrics: dict[str, Any]) -> None:
    intervals = metrics.get("intervals", {}).get("values", [{}] * len(metrics["values"]))
    rows = [
        [
            row["value"],
            *(
                f"{row[name]:.4g}" + (" ({:.4g} to {:.4g})".format(*limits[name]) if limits else "")
                for name in _VALUE_SCORES
            ),
        ]
        for row, limits in zip(metrics["values"], intervals, strict=True)
    ]
    say(*table(["value", *_VALUE_SCORES.values()], rows))
    if covered := metrics.get("covered"):
        shares = ", ".join(f"{share:.1%}" for share in covered["share"])
        say(f"{shares} within the intervals, expected {covered['expected']:.0%}")


def value_scores(row: dict[str, Any]) -> str:
    """Return the scores of one number as text."""
    scores = ", ".join(f"{text} {row[name]:.4g}" for name, text in _VALUE_SCORES.items())
    return f"{row['value']}: {scores}"


def _with_intervals(
    names: dict[str, str], metrics: dict[str, Any], intervals: dict[str, Any]
) -> list[str]:
    rows = [
        [what, f"{metrics[name]:.4f}", "{:.4f} to {:.4f}".format(*intervals[name])]
        for name, what in names.items()
    ]
    return table(["score", "value", "95 % interval"], rows)


def _show_errors(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> None:
    """Print which classes are most often taken for which."""
    errors = [
        (count, classes[true], classes[predicted])
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not errors:
        return
    worst = sorted(errors, key=lambda error: -error[0])[:_SHOWN]
    rows = [[true, predicted, str(count)] for count, true, predicted in worst]
    say(f"most frequent of {len(errors):,} kinds of error (--confusion FILE has all):")
    say(*table(["true", "predicted", "images"], rows))


def show_rule(metrics: dict[str, Any]) -> None:
    """Print what a decision rule is worth, and its sets with a stated coverage, where there are."""
    from featx.heads.decision import OPTIMISED

    if decision := metrics.get("decision"):
        how = f", {decision['protocol']}" if "protocol" in decision else ""
        kept = "" if decision.get("kept", True) else ": no better, so that it was not kept"
        say(
            f"decision  {OPTIMISED[decision['optimised']]} {decision['after']:.4f} with the rule, "
            f"{decision['before']:.4f} without{kept}{how}"
        )
    if coverage := metrics.get("coverage"):
        how = f", {coverage['protocol']}" if "protocol" in coverage else ""
        say(
            f"coverage  {coverage['measured']:.4f} ({coverage['stated']:g} stated), "
            f"{coverage['set_size']:.2f} labels in a set, {coverage['unsure']:.1%} of the images "
            f"unsure{how}"
        )
        if by_class := coverage.get("by_class"):
            worst = sorted(by_class.items(), key=lambda item: item[1])[:_SHOWN]
            say(*table(["label", "coverage"], [[name, f"{share:.4f}"] for name, share in worst]))


def label_scores(metrics: dict[str, Any]) -> str:
    """Return the scores of several labels an image as one line."""
    return ", ".join(f"{what} {metrics[name]:.4f}" for name, what in _SET_SCORES.items())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of aligned columns; the first to the left, numbers to the right."""
    header, *rows = ([visible(cell) for cell in row] for row in [header, *rows])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.rjust(width) if aligned else cell.ljust(width)
            for cell, width, aligned in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).replace("-", "").isdigit() or text in ("", "-")
