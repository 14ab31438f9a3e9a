"""``featx select``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.terminal import row_writer, say, say_json

if TYPE_CHECKING:
    from featx.models.choosing import Chosen

_HEADER = ["path", "label"]


@options.command(
    "select",
    options.data,
    options.whole("-n", "n", default=200, least=1, help="How many images."),
    click.option(
        "--model",
        type=click.Path(dir_okay=False, path_type=Path),
        help="A model of the images that have labels: choose what it doubts.",
    ),
    options.file_path("-o", "--output", help="Write the list here.  [default: standard output]"),
    options.force(),
    options.block,
    options.seed,
    options.cache,
    options.as_json,
)
def command(
    data: str,
    n: int,
    model: Path | None,
    output: Path | None,
    force: bool,
    seed: int,
    cache: Path,
    as_json: bool,
    **block: Any,
) -> None:
    """Choose which unlabelled images to label next.

    DATA is a dataset of the cache, or a folder or table, in which images have no label. The list is
    a CSV with the columns path and label, the most useful images first. Fill in the labels and give
    it to `featx dataset relabel`; a line without a label changes nothing.

    Without --model, the images are chosen that stand for most others. With it, those that stand for
    most of the images that the model doubts; the column predicted has its guess.

    \b
    featx select photos -n 200 -o to-label.csv
    featx dataset relabel photos --labels to-label.csv
    featx train photos -o photos.featx
    featx select photos -n 200 --model photos.featx -o more.csv
    """
    import featx

    if output is not None:
        options.check_output(output, _is_unfilled, "list without labels", force=force, data=data)
    classifier = None
    if model is not None:
        network: dict[str, Any] = {name: block[name] for name in ("weights", "trust")}
        classifier = featx.load(model, cache=cache, **network)
        block |= {name: block[name] or classifier.block[name] for name in ("backbone", "tap")}
    features, which = options.open_block(data, cache, **block)
    named: Any = which
    images = featx.select(features, n, model=classifier, seed=seed, **named)
    if output is not None:
        _write(output, _rows(images))
    if as_json:
        say_json({"dataset": features.name, **which, "seed": seed, "images": images})
    elif output is None:
        write_row = row_writer()
        for row in _rows(images):
            write_row(row)
    else:
        say(f"{len(images):,} images to label: {output}")
        step = ["--labels", str(output)]
        labelled = options.next_command("dataset relabel", features.name, options=step)
        say(f"next: fill in the column label, then {labelled}")


def _rows(images: list[Chosen]) -> list[list[str]]:
    if all(image.predicted is None for image in images):
        return [_HEADER, *([image.path, ""] for image in images)]
    guesses = [[image.predicted or "", f"{image.probability:.4f}"] for image in images]
    lines = [[image.path, "", *guess] for image, guess in zip(images, guesses, strict=True)]
    return [[*_HEADER, "predicted", "probability"], *lines]


def _write(output: Path, rows: list[list[str]]) -> None:
    from featx.files.outputs import written_whole

    with (
        written_whole(output) as unfinished,
        unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)


def _is_unfilled(path: Path) -> bool:
    """Tell whether a file is a list of this command in which no label was filled in."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            return header[: len(_HEADER)] == _HEADER and not any(
                line[1:2] != [""] for line in lines
            )
    except (OSError, csv.Error):
        return False
