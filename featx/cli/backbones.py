"""``featx backbones``."""

from __future__ import annotations

from typing import Any

import click

from featx.cli import options
from featx.cli.show import table
from featx.terminal import say, say_json


@options.command(
    "backbones",
    click.argument("name", required=False),
    options.as_json,
)
def command(name: str | None, as_json: bool) -> None:
    """List the backbones, or describe one with its blocks.

    \b
    featx backbones
    featx backbones mobilenet_v2
    """
    from featx.backbones.catalog import CATALOG, find_backbone

    if name is None:
        rows = [_row(row) for row in CATALOG.values()]
        if as_json:
            say_json({"backbones": rows})
        else:
            say(*_table(rows))
        return
    row = find_backbone(name)
    details = {**_row(row), "taps": _taps(row.name)}
    if as_json:
        say_json(details)
        return
    for key, value in details.items():
        if key != "taps":
            say(f"{key:16} {value}")
    say("taps             avg, max, gem, flatten, grid:K of the last map, or of a block:")
    say(*table(["block", "output"], [[tap, shape] for tap, shape in details["taps"].items()]))


def _row(row: Any) -> dict[str, Any]:
    from featx.backbones.weights import find_weights_file

    weights_file = find_weights_file(row)
    return {
        "name": row.name,
        "input_size_px": row.input_size_px,
        "features": row.features,
        "parameters": row.parameters,
        "imagenet_top1": row.imagenet_top1,
        "weights_file": row.weights_file,
        "weights_here": str(weights_file) if weights_file else None,
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    return table(
        ["name", "input px", "features", "parameters", "ImageNet top-1 %", "weights"],
        [
            [
                row["name"],
                str(row["input_size_px"]),
                str(row["features"]),
                f"{row['parameters']:,}",
                "-" if row["imagenet_top1"] is None else f"{row['imagenet_top1']:.1f}",
                "here" if row["weights_here"] else "to download",
            ]
            for row in rows
        ],
    )


def _taps(name: str) -> dict[str, str]:
    from featx.backbones.build import build_network
    from featx.backbones.source import resolve_backbone
    from featx.backbones.taps import block_outputs

    source = resolve_backbone(name, weights="random:0")
    blocks = block_outputs(build_network(source), source)
    return {
        block: " x ".join(str(extent) for extent in tensor.shape[1:])
        for block, tensor in blocks.items()
    }
