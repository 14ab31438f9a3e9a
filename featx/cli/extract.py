"""``featx extract``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from featx.cli.options import (
    backbone_options,
    cache_option,
    common_options,
    data_argument,
    json_option,
    weights_by_backbone,
)
from featx.cli.show import show_extraction

__all__ = ["command"]


@click.command("extract", short_help="Fill the cache with features of images.")
@data_argument
@backbone_options(several=True)
@cache_option
@click.option("--name", help="Name of the dataset in the cache.  [default: that of DATA]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type in which features are stored.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "raise"]),
    default="skip",
    show_default=True,
    help="Go on after an image that cannot be read, or stop.",
)
@click.option("--max-failures", type=click.IntRange(min=0), help="Stop after more failures.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads that read and decode.")
@click.option("--engine", default="auto", show_default=True, help="auto or keras.")
@json_option
@common_options
def command(
    data: str,
    backbone: tuple[str, ...],
    weights: tuple[str, ...],
    taps: tuple[str, ...],
    input_size: int | None,
    resize: Any,
    preprocessing: str | None,
    batch_size: int | None,
    cache: Path,
    name: str | None,
    dtype: Any,
    on_error: str,
    max_failures: int | None,
    workers: int | None,
    engine: str,
    as_json: bool,
) -> None:
    """Fill the cache with features of images.

    DATA is a folder with one sub-folder a class, a CSV (path,label[,split,group]), an .npz or .h5
    of images, or the name of an extracted dataset. What the cache has is not computed again.

    \b
    featx extract photos/
    featx extract photos/ -b mobilenet_v2 -b resnet50 --tap avg --tap max
    featx extract photos.csv -b mobilenet_v2 --weights mobilenet_v2.weights.h5
    """
    import featx

    features = featx.extract(
        data,
        backbone=backbone or None,
        weights=weights_by_backbone(weights, backbone or ("tiny",)),
        taps=taps,
        input_size=input_size,
        preprocessing=preprocessing,
        image=None if resize == "stretch" else featx.ImagePolicy(resize=resize),
        cache=cache,
        name=name,
        dtype=dtype,
        on_error=on_error,
        max_failures=max_failures,
        workers=workers,
        engine=engine,
        batch_size=batch_size or "auto",
        progress=True,
    )
    if as_json:
        click.echo(json.dumps(features.report))
        return
    show_extraction(features)
    click.echo(f"next: featx train {features.name} {' '.join(f'-b {b}' for b in backbone[:1])} ...")
