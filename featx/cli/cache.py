"""``featx cache``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from featx.cli.options import cache_option, common_options, json_option
from featx.cli.show import table

__all__ = ["command"]


@click.group("cache", short_help="Look after the cache.")
def command() -> None:
    """Look after the cache.

    \b
    featx cache info
    """


@command.command("info", short_help="What the cache holds.")
@cache_option
@json_option
@common_options
def info(cache: Path, as_json: bool) -> None:
    """Say what the cache holds: spaces of features, and datasets.

    \b
    featx cache info
    featx cache info --cache /data/cache --json
    """
    from featx.cache.maintenance import FeatureCache

    found = FeatureCache(cache).info()
    if as_json:
        lists = {key: [asdict(item) for item in found[key]] for key in ("spaces", "datasets")}
        click.echo(json.dumps({**found, **lists}))
        return
    click.echo(f"{found['cache']}: {found['size_bytes'] / 1e6:,.1f} MB of features")
    if found["spaces"]:
        rows = [
            [space.name, tap, str(count), str(space.shards), f"{space.size_bytes / 1e6:.1f}"]
            for space in found["spaces"]
            for tap, count in space.rows.items()
        ]
        click.echo(table(["space", "tap", "rows", "shards", "MB"], rows))
    if found["datasets"]:
        rows = [
            [d.name, str(d.images), str(d.failed), str(d.classes), " ".join(d.blocks), d.root]
            for d in found["datasets"]
        ]
        click.echo(table(["dataset", "images", "failed", "classes", "features", "folder"], rows))
    damaged = {
        **found["unreadable_spaces"],
        **{name: why for space in found["spaces"] for name, why in space.damaged.items()},
        **{dataset.name: dataset.damaged for dataset in found["datasets"] if dataset.damaged},
    }
    for name, why in damaged.items():
        click.echo(f"damaged: {name}: {why}")
