"""``featx extract``."""

from __future__ import annotations

from typing import Any

import click

from featx.cli import options
from featx.cli.options import extraction_arguments, next_command
from featx.cli.show import show_extraction, unused_images
from featx.terminal import say, say_json


@options.command(
    "extract",
    options.data,
    options.backbone,
    options.cache,
    click.option("--name", help="Name of the dataset in the cache.  [default: that of DATA]"),
    options.choice(
        "--dtype",
        values=["float32", "float16"],
        default="float32",
        help="Type in which features are stored.",
    ),
    options.choice(
        "--on-error",
        values=["skip", "raise"],
        default="skip",
        help="Go on after an image that cannot be read, or stop.",
    ),
    options.whole("--max-failures", least=0, help="Stop after more failures."),
    options.whole(
        "--workers",
        least=1,
        help="Threads or processes that read and decode.  [default: one a core]",
    ),
    click.option(
        "--isolate/--no-isolate",
        default=None,
        help="Decode in processes of their own, which survives a decoder that crashes.  "
        "[default: where there are many images]",
    ),
    options.cluster,
    options.whole(
        "--threads", least=1, help="Processors that are used.  [default: all that there are]"
    ),
    options.flag("--plan", "planned", help="Say what it would cost, from a short measurement."),
    options.as_json,
)
def command(
    data: str,
    on_error: Any,
    max_failures: int | None,
    threads: int | None,
    planned: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Fill the cache with features of images.

    DATA is a folder with one sub-folder a class, a CSV (path,label[,split,group]), an .npz or .h5
    of images, or the name of an extracted dataset. What the cache has is not computed again.

    \b
    featx extract photos/
    featx extract photos/ -b mobilenet_v2 -b resnet50 --tap avg --tap max
    featx extract photos.csv -b mobilenet_v2 --weights mobilenet_v2.weights.h5
    featx extract photos/ -b resnet50 --plan
    featx extract photos/ -b resnet50 --on ray
    """
    import featx
    from featx.extraction.parts import NOT_COMPUTED
    from featx.threads import limited_processors

    extraction = extraction_arguments(settings)
    carried = {"cache", "taps", "resize", "draft", "window", "view_seed", *extraction} - {
        "batch_size"
    }
    # The dataset has its splits, paths and labels.
    carried -= {*options.reading_arguments({})}
    cluster = {name: settings.pop(name) for name in ("on", "task_cpus", "task_gpus", "shard")}
    arguments = {**extraction, **settings}
    if planned:
        plan = featx.plan_extraction(data, **arguments)
        if as_json:
            say_json(plan.to_dict())
        else:
            say(*plan.describe().split("\n"))
        return 0
    with limited_processors(threads):
        features = featx.extract(
            data,
            **arguments,
            **cluster,
            on_error=on_error,
            max_failures=max_failures,
            progress=True,
        )
    exit_code = options.exit_code(features.failed)
    if any(why.startswith(NOT_COMPUTED) for _, why in features.failed):
        exit_code = 1  # the same command computes these
    if as_json:
        say_json({**features.report, **unused_images(features)})
        return exit_code
    show_extraction(features)
    if len(features.classes or ()) > 1:
        say(f"next: {next_command('train', features.name, carried=carried)}")
    else:
        say(f"next: {next_command('dataset show', features.name, carried=('cache',))}")
    return exit_code
