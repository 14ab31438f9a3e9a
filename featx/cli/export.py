"""``featx export``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.exporting.formats import FORMATS
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.exporting.exporter import Export


@options.command(
    "export",
    options.model,
    click.option(
        "--format",
        "style",
        type=click.Choice(list(FORMATS)),
        show_default="what PATH ends in",
        help="Which file.",
    ),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="PATH",
        show_default="MODEL with the end of the format",
        help="Where to.",
    ),
    options.flag("--int8", help="Quantise to 8 bits (tflite)."),
    click.option(
        "--calibrate",
        metavar="DATA",
        show_default="the images of training, else those of --verify",
        help="Typical images for --int8.",
    ),
    click.option(
        "--verify", metavar="DATA", help="Compare the written file with the model on images."
    ),
    click.option(
        "--tolerance",
        type=click.FloatRange(min=0, min_open=True),
        default=1e-3,
        show_default=True,
        help="Largest difference of a probability.",
    ),
    options.force("--overwrite"),
    options.loading,
    options.cache,
    options.as_json,
)
def command(
    model: Path,
    style: str | None,
    output: Path | None,
    calibrate: str | None,
    verify: str | None,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write a model as one network from uint8 RGB pixels to probabilities, or to numbers.

    It needs no featx: preprocessing, backbone, scaler and head are in it, the names of the classes
    lie beside it. With --verify the written file is run in its own runtime on images from disk, and
    has to say what the model says (exit 1 if not); the result is written beside it.

    \b
    featx export photos.featx --format onnx --verify photos/
    featx export photos.featx -o photos.tflite --int8 --verify photos-held-out/
    """
    import featx
    from featx.exceptions import OutputError
    from featx.exporting.exporter import planned_files

    for file in planned_files(model, output, style):
        if not force and os.path.lexists(file):
            raise OutputError(
                f"{str(file)!r} exists already: name another path with -o, or replace it with "
                "--force (overwrite=True)"
            )
        if not file.is_dir():  # a SavedModel is one; featx.export looks at it
            options.check_output(
                file, lambda _: False, "export", force=force, data=verify or calibrate or ""
            )
    done = featx.export(
        model,
        output,
        format=style,
        calibrate=calibrate,
        verify=verify,
        overwrite=force,
        **settings,
    )
    if as_json:
        say_json(_as_json(done))
    else:
        _show(done)


def _as_json(done: Export) -> dict[str, object]:
    return {
        "path": done.path,
        "size_bytes": done.size_bytes,
        "calibrated_on": done.calibrated_on or None,
        **{
            name: done.description[name]
            for name in ("format", "precision", "classes", "values", "input")
            if name in done.description
        },
        "verification": done.verification,
        "serving": done.serving,
    }


def _show(done: Export) -> None:
    description = done.description
    megabytes = done.size_bytes / 1e6
    say(
        f"{done.path}: {description['format']}, {description['precision']}, {megabytes:.1f} MB, "
        f"{_outputs(description)}, named in {done.path.name}.json"
    )
    if done.calibrated_on:
        say(f"ranges of int8 from images of {done.calibrated_on}")
    report = done.verification
    if report is not None and "values" in description:
        say(
            f"verified with {report['runtime']} on {report['images']:,} images of "
            f"{report['dataset']} ({_not_compared(report)}): largest difference of a number "
            f"{report['largest_difference']:.1e} deviations of training{_r2(report)}"
        )
    elif report is not None:
        say(
            f"verified with {report['runtime']} on {report['images']:,} images of "
            f"{report['dataset']} ({_not_compared(report)}): "
            f"{'labels' if description['output']['multilabel'] else 'top-1'} changed on "
            f"{report['top1_changed']:,}, largest difference of a probability "
            f"{report['largest_difference']:.1e}{_accuracies(report)}"
        )
    for language, code in done.serving.items():
        say("", f"--- {language}", "", *code.rstrip().split("\n"))


def _outputs(description: dict[str, Any]) -> str:
    if "values" in description:
        count = len(description["values"])
        return f"{count:,} number{'s' * (count > 1)}"
    return f"{len(description['classes']):,} classes"


def _r2(report: dict[str, Any]) -> str:
    before, after = report["r2_of_model"], report["r2_of_export"]
    return "" if before is None else f", R² {after:.4f} (model {before:.4f})"


def _not_compared(report: dict[str, Any]) -> str:
    left_out = f", {n:,} left out for int8" if (n := report["left_out"]) else ""
    return f"{report['failed']:,} failed{left_out}"


def _accuracies(report: dict[str, object]) -> str:
    before, after = report["accuracy_of_model"], report["accuracy_of_export"]
    return "" if before is None else f", accuracy {after:.4f} (model {before:.4f})"
