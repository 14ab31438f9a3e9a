"""``featx extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featx.cli.options import (
    Command,
    backbone_options,
    cache_option,
    choice,
    common_options,
    data_argument,
    extraction_arguments,
    flag,
    json_option,
    next_command,
    whole,
)
from featx.cli.show import show_extraction
from featx.terminal import say, say_json


@click.command("extract", cls=Command, short_help="Fill the cache with features of images.")
@data_argument
@backbone_options(several=True)
@cache_option
@click.option("--name", help="Name of the dataset in the cache.  [default: that of DATA]")
@choice(
    "--dtype",
    values=["float32", "float16"],
    default="float32",
    help="Type in which features are stored.",
)
@choice(
    "--on-error",
    values=["skip", "raise"],
    default="skip",
    help="Go on after an image that cannot be read, or stop.",
)
@whole("--max-failures", least=0, help="Stop after more failures.")
@whole(
    "--workers", least=1, help="Threads or processes that read and decode.  [default: one a core]"
)
@click.option(
    "--isolate/--no-isolate",
    default=None,
    help="Decode in processes of their own, which survives a decoder that crashes.  "
    "[default: where there are many images]",
)
@flag("--plan", "planned", help="Say what it would cost, from a short measurement.")
@json_option
@common_options
def command(
    data: str,
    cache: Path,
    name: str | None,
    dtype: Any,
    on_error: str,
    max_failures: int | None,
    workers: int | None,
    isolate: bool | None,
    planned: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Fill the cache with features of images.

    DATA is a folder with one sub-folder a class, a CSV (path,label[,split,group]), an .npz or .h5
    of images, or the name of an extracted dataset. What the cache has is not computed again.

    \b
    featx extract photos/
    featx extract photos/ -b mobilenet_v2 -b resnet50 --tap avg --tap max
    featx extract photos.csv -b mobilenet_v2 --weights mobilenet_v2.weights.h5
    featx extract photos/ -b resnet50 --plan
    """
    import featx

    asked: dict[str, Any] = {
        **extraction_arguments(options),
        "cache": cache,
        "name": name,
        "dtype": dtype,
        "workers": workers,
        "isolate": isolate,
    }
    if planned:
        plan = featx.plan_extraction(data, **asked)
        if as_json:
            say_json(plan.to_dict())
        else:
            say(*plan.describe().split("\n"))
        return
    features = featx.extract(
        data, **asked, on_error=on_error, max_failures=max_failures, progress=True
    )
    if as_json:
        say_json(features.report)
        return
    show_extraction(features)
    if len(features.classes or ()) > 1:
        carried = {"cache", *options} - {"batch_size"}
        say(f"next: {next_command('train', features.name, carried=carried)}")
    else:
        say(f"next: {next_command('dataset show', features.name, carried=('cache',))}")
