"""``featx predict``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.show import failures
from featx.terminal import row_writer, say, say_json, visible

if TYPE_CHECKING:
    from featx.models.prediction import Prediction

_MEASURED_ROWS = 200


@options.command(
    "predict",
    options.model,
    click.argument("images", nargs=-1, required=True, metavar="IMAGES..."),
    options.whole(
        "--top-k",
        least=1,
        help="Classes an image.  [default: 1; of several labels, those that the model gives]",
    ),
    options.choice(
        "--format",
        "style",
        values=["table", "csv", "jsonl", "parquet"],
        default="table",
        help="How to print them; with -o csv (the default) or parquet.",
    ),
    click.option(
        "-o",
        "--output",
        type=click.Path(file_okay=False),
        metavar="FOLDER",
        help="Write files of up to 4,096 images there, and resume where a run was stopped.",
    ),
    options.cluster,
    click.option(
        "--coverage",
        type=float,
        help="Of a regression: share of images whose true number lies between low and high.  "
        "[default: 0.9]",
    ),
    options.flag("--unknown", help="Mark images that are unlike those of training."),
    options.flag(
        "--abstain",
        help="Mark images that a person should look at: their set of labels, of a model trained "
        "with --coverage, is not exactly one.",
    ),
    options.loading,
    options.reading,
    options.cache,
    options.as_json,
)
def command(
    model: Path,
    images: tuple[str, ...],
    style: str,
    output: str | None,
    weights: str | None,
    trust: bool,
    cache: Path,
    as_json: bool,
    **settings: Any,
) -> int:
    """Predict images with a model.

    IMAGES are files, folders (all images below them), archives, patterns in quotes, addresses of
    images and of folders in buckets, or - for one path a line on standard input; or one table, one
    file of arrays, or the name of an extracted dataset. Every image is a row; one that cannot be
    read has the status failed and a reason. A model of a regression gives each number with an
    interval. The exit code is 0 when an image could be read, 1 when none could.

    With -o the rows go into files of a folder, and --on and --shard spread the work. The exit code
    is then 1 when a file could not be written: the same command writes the missing ones.

    \b
    featx predict photos.featx new/*.jpg
    featx predict photos.featx 'new/**/*.jpg' --format csv > new.csv
    featx predict photos.featx new/ --abstain
    find . -name '*.jpg' | featx predict photos.featx - --format jsonl
    find /data -name '*.jpg' | featx predict photos.featx - -o predictions/ --on ray
    """
    from featx.models.model_file import load_predictor
    from featx.models.prediction import PredictionTable, predict

    loading: dict[str, Any] = {"cache": cache, "weights": weights, "trust": trust}
    _check_output(output, style)
    cluster = {name: settings.pop(name) for name in ("on", "task_cpus", "task_gpus", "shard")}
    left_out: list[tuple[str, str]] = []
    given = {name: value for name, value in options.reading_arguments(settings).items() if value}
    if output is not None:
        named, given = _named_images(images, given, left_out, cache)
        style = "parquet" if style == "parquet" else "csv"
        into = {"folder": output, "format": style, "as_json": as_json, "left_out": left_out}
        return _predict_to(model, named, into, **loading, **cluster, **settings, **given)
    classifier = load_predictor(model, **loading)
    named, given = _named_images(images, given, left_out, cache)
    counts = {"ok": 0, "failed": 0}
    unknown, abstain = settings["unknown"], settings["abstain"]
    rows = _counted(predict(classifier, named, **settings, **given), counts)
    if as_json:
        predictions = [
            _value_json_row(row, unknown)
            if classifier.regression
            else _json_row(row, unknown, abstain)
            for row in rows
        ]
        failed = [(row["path"], row["reason"]) for row in predictions if row["status"] == "failed"]
        others = [{"path": path, "reason": reason} for path, reason in left_out]
        said = {"model": str(model), "predictions": predictions}
        say_json({**said, **failures(failed), "left_out": others})
    elif style == "csv":
        write, table = row_writer(), PredictionTable(classifier.regression, unknown, abstain)
        write(table.columns)
        for row in rows:
            for line in table.texts(row):
                write(line)
    elif classifier.regression:
        _VALUE_PRINTERS[style](rows, unknown)
    else:
        _PRINTERS[style](rows, unknown, abstain)
    _say_left_out(left_out)
    if counts["failed"]:
        say(f"{counts['failed']:,} of {sum(counts.values()):,} could not be read", err=True)
        if not counts["ok"]:
            return 1
    return options.exit_code(range(counts["failed"]))


def _check_output(output: str | None, style: str) -> None:
    """Refuse options that mean nothing with a folder of files, or without one."""
    if output is None:
        names = ("on", "task_cpus", "task_gpus", "shard")
        needless = [f"--{name.replace('_', '-')}" for name in names if options.is_given(name)]
        needless += ["--format parquet"] if style == "parquet" else []
        if needless:
            raise click.UsageError(f"{needless[0]} is for files in a folder: add -o FOLDER")
    elif options.is_given("style") and style not in ("csv", "parquet"):
        raise click.UsageError(
            f"expected --format csv or --format parquet with -o, received {style}: leave it out"
        )


def _named_images(
    images: tuple[str, ...],
    given: dict[str, Any],
    left_out: list[tuple[str, str]],
    cache: Path,
) -> tuple[Any, dict[str, Any]]:
    """Return what the arguments stand for, and how it is read."""
    from featx.images.sources import is_collection
    from featx.models.prediction import stored_images

    if len(images) == 1 and (set(given) - {"follow_urls"} or is_collection(images[0])):
        return images[0], given
    named: Any = options.image_arguments(images, left_out)
    if len(images) == 1:
        named = stored_images(images[0], cache) or named
    # An address that was typed is meant; one in a table or in a list may not be.
    return named, given | ({} if "-" in images else {"follow_urls": True})


def _predict_to(model: Path, named: Any, into: dict[str, Any], **arguments: Any) -> int:
    """Write files of predictions into a folder, and say what became of them."""
    from featx.models.prediction_parts import predict_to

    folder, left_out = into["folder"], into["left_out"]
    done = predict_to(model, named, folder, format=into["format"], **arguments)
    if into["as_json"]:
        others = [{"path": path, "reason": reason} for path, reason in left_out]
        failed = [{"part": name, "reason": reason} for name, reason in done.failed]
        say_json({"model": str(model), **asdict(done), "failed": failed, "left_out": others})
    else:
        say(
            f"{folder.rstrip('/')}/: {done.parts:,} parts, {done.written:,} written, "
            f"{done.present:,} there already, {done.images:,} images, "
            f"{done.unreadable:,} could not be read"
        )
    _say_left_out(left_out)
    if done.failed:
        name, reason = done.failed[0]
        say(
            f"{len(done.failed):,} parts failed, such as {name}: {reason}. The same command "
            "computes them",
            err=True,
        )
        return 1
    return options.exit_code(range(done.unreadable))


def _say_left_out(left_out: list[tuple[str, str]]) -> None:
    if left_out:
        path, reason = left_out[0]
        say(f"{len(left_out):,} files were left out, such as {path}: {reason}", err=True)


def _counted(rows: Iterable[Prediction], counts: dict[str, int]) -> Iterator[Prediction]:
    for row in rows:
        counts[row.status] += 1
        yield row


def _print_table(rows: Iterable[Prediction], unknown: bool, abstain: bool) -> None:
    more = [*(["distance"] if unknown else []), *(["set"] if abstain else [])]
    header = ["path", "label", "probability", *more, ""]
    _print_columns(header, _table_lines(rows, unknown, abstain))


def _print_value_table(rows: Iterable[Prediction], unknown: bool) -> None:
    header = ["path", "name", "value", "low", "high", *(["distance"] if unknown else []), ""]
    _print_columns(header, _value_lines(rows, unknown))


def _print_columns(header: list[str], cells: Iterator[list[str]]) -> None:
    """Print aligned columns, as wide as the first rows ask for, so that rows never wait."""
    lines = ([visible(cell) for cell in line] for line in cells)
    first = [header, *islice(lines, _MEASURED_ROWS)]
    widths = [max(len(line[column]) for line in first) for column in range(len(header))]
    right = {"probability", "distance", "value", "low", "high"}
    for line in chain(first, lines):
        padded = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(line, widths, header, strict=True)
        ]
        say("  ".join(padded).rstrip())


def _table_lines(rows: Iterable[Prediction], unknown: bool, abstain: bool) -> Iterator[list[str]]:
    from featx.models.prediction import joined_set

    for row in rows:
        path = row.path
        if row.status == "failed":
            more = ["-"] * (unknown + abstain)
            yield [path, "-", "-", *more, f"failed: {row.reason}"]
            continue
        more = [f"{row.distance:.3f}"] if unknown else []
        more += [joined_set(row) or "-"] if abstain else []
        marks = ["unsure"] * bool(row.unsure) + ["unknown"] * bool(row.unknown)
        if not row.top:
            yield [path, "-", "-", *more, ", ".join(marks or ["no label"])]
        for rank, (label, probability) in enumerate(row.top):
            if rank:
                yield ["", label, f"{probability:.4f}", *[""] * len(more), ""]
            else:
                yield [path, label, f"{probability:.4f}", *more, ", ".join(marks)]


def _value_lines(rows: Iterable[Prediction], unknown: bool) -> Iterator[list[str]]:
    for row in rows:
        if row.status == "failed":
            dashes = ["-"] * (5 if unknown else 4)
            yield [row.path, *dashes, f"failed: {row.reason}"]
        for number, value in enumerate(row.values):
            more, mark = [], ""
            if unknown:
                more = ["" if number else f"{row.distance:.3f}"]
                mark = "unknown" if row.unknown and not number else ""
            ends = ("-" if end is None else f"{end:.6g}" for end in (value.low, value.high))
            path = "" if number else row.path
            yield [path, value.name, f"{value.value:.6g}", *ends, *more, mark]


def _print_value_json(rows: Iterable[Prediction], unknown: bool) -> None:
    for row in rows:
        say_json(_value_json_row(row, unknown))


def _value_json_row(row: Prediction, unknown: bool) -> dict[str, Any]:
    more = {"unknown": row.unknown, "distance": row.distance} if unknown else {}
    values = [asdict(value) for value in row.values]
    line = {"path": row.path, "status": row.status, "reason": row.reason, "values": values}
    return {**line, **more}


def _print_json_lines(rows: Iterable[Prediction], unknown: bool, abstain: bool) -> None:
    for row in rows:
        say_json(_json_row(row, unknown, abstain))


def _json_row(row: Prediction, unknown: bool, abstain: bool) -> dict[str, Any]:
    top = [{"label": label, "probability": probability} for label, probability in row.top]
    first = top[0] if top else {"label": None, "probability": None}
    line = {"path": row.path, **first, "status": row.status, "reason": row.reason, "top": top}
    if unknown:
        line |= {"unknown": row.unknown, "distance": row.distance}
    if abstain:
        line |= {"unsure": row.unsure, "set": row.label_set}
    return line


_PRINTERS = {"table": _print_table, "jsonl": _print_json_lines}
_VALUE_PRINTERS = {"table": _print_value_table, "jsonl": _print_value_json}
