"""``featx backbones``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.show import table
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from pathlib import Path

    from featx.backbones.networks import NetworkKind

_CHANNELS = {"nchw": "first", "nhwc": "last", "": "first or last"}


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
    featx backbones onnx:models/dinov2.onnx  # what the file says of itself
    """
    from featx.backbones.catalog import CATALOG, find_backbone
    from featx.backbones.networks import locate_network

    if name is None:
        rows = [_row(row) for row in CATALOG.values()]
        if as_json:
            say_json({"backbones": rows})
        else:
            say(*_table(rows))
        return
    located = locate_network(name)
    if located is not None:
        details = _own(*located, name)
        if as_json:
            say_json(details)
        else:
            say(*(f"{key:16} {value}" for key, value in details.items() if key != "tensors"))
            if "tensors" in details:
                say(f"taps             outputs, and {len(details['tensors']):,} tensors (--json)")
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


def _own(kind: NetworkKind, path: Path, name: str) -> dict[str, Any]:
    """Return what the files of a network say of it; nothing is run."""
    from featx.backbones.networks import StatedInput, network_name
    from featx.backbones.onnx_file import read_onnx
    from featx.backbones.source import resolve_backbone
    from featx.backbones.weights import is_tuned_file
    from featx.exceptions import BackboneError

    if kind.needs_trust:
        raise BackboneError(
            f"{name!r} is {kind.summary}, which featx looks into with --trust only, when features "
            "are extracted"
        )
    kind.require(path, name)
    details: dict[str, Any] = {"name": network_name(kind, path), "file": str(path)}
    if is_tuned_file(path):
        source = resolve_backbone(name)
        stated = StatedInput(source.input_size_px, source.preprocessing)
        sha256 = source.weights.sha256
    else:
        stated, sha256 = kind.read(path), kind.digest(path)
    details |= {
        "sha256": sha256,
        "input_size_px": stated.size_px or "not stated: give --input-size",
        "preprocessing": stated.preprocessing or "not stated: give --preprocessing",
    }
    if kind.prefix == "onnx":
        file = read_onnx(path)
        details |= {
            "input": f"{file.input}, {file.dtype}, channels {_CHANNELS[file.layout]}",
            "outputs": ", ".join(file.outputs),
            "tensors": [name for node in file.graph.nodes for name in node.outputs],
        }
    return details


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
