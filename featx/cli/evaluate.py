"""``featx evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from featx.cli.options import (
    cache_option,
    common_options,
    data_argument,
    json_option,
    model_argument,
)
from featx.cli.show import show_scores

__all__ = ["command"]


@click.command("evaluate", short_help="Score a model on labelled images.")
@model_argument
@data_argument
@click.option("--weights", help="The backbone's weights, when they are not where they were.")
@click.option("--trust", is_flag=True, help="Load heads that can carry more than numbers.")
@cache_option
@json_option
@common_options
def command(
    model: Path, data: str, weights: str | None, trust: bool, cache: Path, as_json: bool
) -> None:
    """Score a model on labelled images.

    Where DATA has a split named test, only its images count.

    \b
    featx evaluate photos.featx photos-held-out/
    """
    import featx

    classifier = featx.load(model, cache=cache, weights=weights, trust=trust)
    features = featx.extract(
        data,
        backbone=classifier.backbone,
        weights=classifier.weights,
        taps=classifier.tap,
        input_size=classifier.input_size,
        preprocessing=classifier.preprocessing,
        image=classifier.image,
        cache=cache,
        progress=True,
    )
    metrics = featx.evaluate(classifier, features)
    if as_json:
        click.echo(json.dumps({"model": str(model), "dataset": features.name, **metrics}))
        return
    click.echo(f"{features.name}: {metrics['images']:,} images, {metrics['failed']:,} failed")
    show_scores(metrics)
