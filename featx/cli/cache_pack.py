"""``featx cache pack``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from featx.cli.options import (
    Command,
    cache_option,
    check_output,
    common_options,
    force_option,
    json_option,
)
from featx.terminal import say, say_json


@click.command(
    "pack", cls=Command, short_help="Write one self-contained file of a dataset's features."
)
@click.argument("name", metavar="NAME")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: .h5, .npz, .parquet or .safetensors.  [default: NAME.h5]",
)
@click.option("-b", "--backbone", help="Which features, where there are several.")
@click.option("--tap", help="Which features, where there are several.")
@force_option()
@cache_option
@json_option
@common_options
def pack(
    name: str,
    output: Path | None,
    force: bool,
    backbone: str | None,
    tap: str | None,
    cache: Path,
    as_json: bool,
) -> None:
    """Write one self-contained file of a dataset's features, for any other tool."""
    from featx.cache.features import Features
    from featx.cache.pack import pack_dataset
    from featx.files.outputs import is_pack
    from featx.spec import folder_name

    target = output or Path(f"{folder_name(name)}.h5")
    check_output(target, is_pack, "packed file", force=force, data=name)
    features = Features.open(name, cache=cache)
    packed = pack_dataset(features, target, backbone=backbone, tap=tap, overwrite=force)
    if as_json:
        say_json({**asdict(packed), "path": str(packed.path)})
        return
    say(
        f"{packed.path}: {packed.rows:,} x {packed.width:,} of {packed.backbone} {packed.tap}, "
        f"{packed.size_bytes / 1e6:,.1f} MB"
    )
