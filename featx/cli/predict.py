"""``featx predict``."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featx.cli.options import cache_option, common_options, model_argument
from featx.cli.show import table

if TYPE_CHECKING:
    from featx.models.prediction import Prediction

__all__ = ["command"]


@click.command("predict", short_help="Predict images with a model.")
@model_argument
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="Classes an image.  [default: 1; of several labels, those above 0.5]",
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "jsonl"]),
    default="table",
    show_default=True,
    help="How to print them.",
)
@click.option("--weights", help="The backbone's weights, when they are not where they were.")
@click.option("--trust", is_flag=True, help="Load heads that can carry more than numbers.")
@cache_option
@common_options
def command(
    model: Path,
    images: tuple[str, ...],
    top_k: int | None,
    style: str,
    weights: str | None,
    trust: bool,
    cache: Path,
) -> None:
    """Predict images with a model.

    IMAGES are files, folders (all images below them), or - for one path a line on standard input.
    Every image is a row; one that cannot be read has the status failed and a reason.

    \b
    featx predict photos.featx new/*.jpg
    featx predict photos.featx new/ --format csv > new.csv
    """
    import featx
    from featx.models.prediction import predict_images

    classifier = featx.load(model, cache=cache, weights=weights, trust=trust)
    data = featx.ImageDataset.from_paths(list(_paths(images)))
    rows = predict_images(classifier, data, top_k=top_k)
    {"table": _print_table, "csv": _print_csv, "jsonl": _print_json_lines}[style](rows)


def _paths(images: Iterable[str]) -> Iterator[str]:
    from featx import ImageDataset

    for item in images:
        if item == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        elif Path(item).is_dir():
            folder = ImageDataset.from_folder(item, labels="none")
            yield from (f"{item.rstrip('/')}/{path}" for path in folder.paths)
        else:
            yield item


def _print_table(rows: Iterable[Prediction]) -> None:
    lines = []
    for row in rows:
        if row.status == "failed":
            lines.append([row.path, "-", "-", f"failed: {row.reason}"])
        elif not row.top:
            lines.append([row.path, "-", "-", "no label"])
        lines += [
            [row.path if not rank else "", label, f"{probability:.4f}", ""]
            for rank, (label, probability) in enumerate(row.top)
        ]
    click.echo(table(["path", "label", "probability", ""], lines))


def _print_csv(rows: Iterable[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "label", "probability", "status", "reason", "rank"])
    for row in rows:
        if row.status == "failed":
            writer.writerow([row.path, "", "", row.status, row.reason, ""])
        elif not row.top:
            writer.writerow([row.path, "", "", row.status, "", ""])
        for rank, (label, probability) in enumerate(row.top, start=1):
            writer.writerow([row.path, label, f"{probability:.6f}", row.status, "", rank])


def _print_json_lines(rows: Iterable[Prediction]) -> None:
    for row in rows:
        top = [{"label": label, "probability": probability} for label, probability in row.top]
        first = top[0] if top else {"label": None, "probability": None}
        line = {"path": row.path, **first, "status": row.status, "reason": row.reason, "top": top}
        click.echo(json.dumps(line))
