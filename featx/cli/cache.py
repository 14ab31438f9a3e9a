"""``featx cache``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featx.cli import options
from featx.cli.show import table
from featx.extraction.progress import terminal_progress
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.cache.merging import Merge
    from featx.cache.repair import Finding
    from featx.cache.transfer import Transfer


@click.group("cache", cls=options.Group)
def command() -> None:
    """Look after the cache: see what it holds, mend damage, make it smaller, join and share it.

    \b
    featx cache info
    featx cache verify && echo sound
    featx cache repair --dry-run
    featx cache gc --yes
    featx cache merge /mnt/laptop/cache
    featx cache push s3://bucket/cache
    featx cache pull s3://bucket/cache
    featx cache pack photos -o photos.h5
    """


@options.command(
    "pack",
    click.argument("name", metavar="NAME"),
    options.file_path(
        "-o",
        "--output",
        help="File to write: .h5, .npz, .parquet or .safetensors.  [default: NAME.h5]",
    ),
    click.option("-b", "--backbone", help="Which features, where there are several."),
    click.option("--tap", help="Which features, where there are several."),
    options.force(),
    options.cache,
    options.as_json,
    group=command,
    short_help="Write one self-contained file of a dataset's features.",
)
def pack(
    name: str,
    output: Path | None,
    force: bool,
    backbone: str | None,
    tap: str | None,
    cache: Path,
    as_json: bool,
) -> None:
    """Write one self-contained file of a dataset's features, for any other tool.

    NAME is a dataset of the cache. The file holds X, y, classes, paths, keys, groups, splits and
    the specification of the features.

    \b
    featx cache pack photos -o photos.h5
    featx cache pack photos -b mobilenet_v2 --tap avg -o photos.parquet
    """
    from featx.cache.features import Features
    from featx.cache.pack import pack_dataset
    from featx.files.outputs import is_pack
    from featx.spec import folder_name

    target = output or Path(f"{folder_name(name)}.h5")
    options.check_output(target, is_pack, "packed file", force=force, data=name)
    features = Features.open(name, cache=cache)
    packed = pack_dataset(features, target, backbone=backbone, tap=tap, overwrite=force)
    if as_json:
        say_json(packed)
        return
    say(
        f"{packed.path}: {packed.rows:,} x {packed.width:,} of {packed.backbone} {packed.tap}, "
        f"{packed.size_bytes / 1e6:,.1f} MB"
    )


@options.command(
    "info",
    options.cache,
    options.as_json,
    group=command,
    short_help="What the cache holds.",
)
def info(cache: Path, as_json: bool) -> None:
    """Say what the cache holds: spaces of features, and datasets.

    \b
    featx cache info
    featx cache info --cache /data/cache --json
    """
    from featx.cache.maintenance import FeatureCache

    contents = FeatureCache(cache).info()
    if as_json:
        say_json(contents)
        return
    say(f"{contents['cache']}: {contents['size_bytes'] / 1e6:,.1f} MB of features")
    if contents["spaces"]:
        rows = [
            [space.name, tap, f"{count:,}", f"{space.shards:,}", _size(space.size_bytes)]
            for space in contents["spaces"]
            for tap, count in space.rows.items()
        ]
        say(*table(["space", "tap", "rows", "shards", "size"], rows))
    if contents["datasets"]:
        rows = [
            [d.name, str(d.images), str(d.failed), str(d.classes), " ".join(d.blocks), d.root]
            for d in contents["datasets"]
        ]
        say(*table(["dataset", "images", "failed", "classes", "features", "folder"], rows))
    damaged = {
        **contents["unreadable_spaces"],
        **{name: why for space in contents["spaces"] for name, why in space.damaged.items()},
        **{dataset.name: dataset.damaged for dataset in contents["datasets"] if dataset.damaged},
    }
    for name, why in damaged.items():
        say(f"damaged: {name}: {why}")


@options.command(
    "verify",
    options.cache,
    options.whole("--workers", least=1, help="Threads that read."),
    options.as_json,
    group=command,
    short_help="Read every byte again and name what is damaged.",
)
def verify(cache: Path, workers: int | None, as_json: bool) -> int:
    """Read every byte again, compare it with its digest, and name what is wrong, one a line.

    Changes nothing. The exit status is 0 when all is well, and 1 when something was found.

    \b
    featx cache verify
    featx cache verify --cache /data/cache --json
    """
    from featx.cache.maintenance import FeatureCache

    with terminal_progress(True, "files") as show:
        report = FeatureCache(cache).verify(workers=workers, progress=show)
    if as_json:
        counts = {"files": report.files, "rows": report.rows, "size_bytes": report.size_bytes}
        say_json({"cache": report.cache, **counts, "findings": report.findings})
        return int(not report.ok)
    for finding in report.findings:
        say(_line(finding))
    say(
        f"{report.cache}: {report.files:,} files, {report.rows:,} sound rows, "
        f"{_size(report.size_bytes)}, {len(report.findings):,} findings"
    )
    return int(not report.ok)


@options.command(
    "repair",
    options.cache,
    options.flag("--dry-run", help="Only say what would be removed."),
    options.whole("--workers", least=1, help="Threads that read."),
    options.as_json,
    group=command,
    short_help="Remove what is damaged, so that it is computed again.",
)
def repair(cache: Path, dry_run: bool, workers: int | None, as_json: bool) -> int:
    """Verify, then remove damaged files and leftovers, and say what to make again.

    Nothing else is touched: files that featx did not write stay, and are named. The exit status is
    1 when such a file needs a decision.

    \b
    featx cache repair --dry-run
    featx cache repair
    """
    from featx.cache.maintenance import FeatureCache

    with terminal_progress(True, "files") as show:
        report = FeatureCache(cache).repair(dry_run=dry_run, workers=workers, progress=show)
    if as_json:
        names = ("cache", "size_bytes", "removed", "left", "missing")
        say_json({"dry_run": dry_run, **{name: getattr(report, name) for name in names}})
        return int(bool(report.left))
    done = "would be removed" if dry_run else "removed"
    for finding in report.removed:
        say(f"{done}: {_reason(finding)}")
        if finding.kind in ("manifest", "spec"):
            say(f"  {finding.next_step}")
    for finding in report.left:
        say(f"left: {_line(finding)}")
    for finding in report.missing:
        shown = ", ".join(finding.examples)
        more = ", ..." if (finding.rows or 0) > len(finding.examples) else ""
        say(f"to make again: {finding.path.stem}: {finding.reason}: {shown}{more}")
        say(f"  {finding.next_step}")
    say(
        f"{report.cache}: {len(report.removed):,} files {done}, {_size(report.size_bytes)}, "
        f"{len(report.left):,} left for you to decide"
    )
    return int(bool(report.left))


@options.command(
    "gc",
    options.cache,
    options.flag("--yes", help="Do it.  [default: only say what would go]"),
    click.option(
        "--older-than",
        metavar="AGE",
        callback=options.read_seconds,
        default="1d",
        show_default=True,
        help="Leave younger shards alone: an extraction at work writes its dataset last.",
    ),
    options.as_json,
    group=command,
    short_help="Remove features that no dataset uses; join small shards.",
)
def gc(cache: Path, yes: bool, older_than: float, as_json: bool) -> int:
    """Remove features that no dataset uses, and put small shards together.

    Features of models that were trained with --cache and without a dataset count as unused. Rows
    that stay keep every byte. Without --yes, nothing is changed.

    \b
    featx cache gc
    featx cache gc --yes
    featx cache gc --older-than 12h --yes
    """
    from featx.cache.maintenance import FeatureCache

    report = FeatureCache(cache).gc(older_than_s=older_than, dry_run=not yes)
    damaged = sum(len(space.damaged) for space in report.spaces)
    if as_json:
        say_json(report)
        return int(bool(damaged))
    head = ["space", "stays", "unused", "repeated", "size", "shards gone", "new", "too young"]
    rows = [
        [
            space.space + (" (whole)" if space.removed else ""),
            f"{space.rows:,}",
            f"{space.rows_unused:,}",
            f"{space.rows_repeated:,}",
            _size(space.size_bytes),
            f"{space.shards_removed:,}",
            f"{space.shards_written:,}",
            f"{space.shards_young:,}",
        ]
        for space in report.spaces
    ]
    if rows:
        say(*table(head, rows))
    for space in report.spaces:
        for reason in space.damaged.values():
            say(f"left: shard: {reason}; `featx cache repair` removes it")
    rows_gone = sum(space.rows_unused + space.rows_repeated for space in report.spaces)
    size = _size(sum(space.size_bytes for space in report.spaces))
    what = "removed" if yes else "would be removed; --yes does it"
    say(f"{report.cache}: {rows_gone:,} rows, {size} {what}")
    if report.parts_removed:
        parts_size = _size(report.parts_bytes)
        say(f"{report.parts_removed:,} parts of datasets that none uses, {parts_size} {what}")
    return int(bool(damaged))


@options.command(
    "merge",
    click.argument("others", metavar="OTHER...", nargs=-1, required=True, type=click.Path()),
    options.cache,
    options.as_json,
    group=command,
    short_help="Bring in the features and datasets of other caches.",
)
def merge(others: tuple[str, ...], cache: Path, as_json: bool) -> int:
    """Copy into the cache what OTHER caches have and it has not; they are only read.

    Rows that are here are not copied again. A dataset whose name is taken by other images comes as
    NAME-2. Damaged files are left out and named, with exit status 1.

    \b
    featx cache merge /mnt/laptop/cache
    featx cache merge host1/cache host2/cache --cache all/
    """
    from featx.cache.maintenance import FeatureCache

    reports = FeatureCache(cache).merge(*others)
    skipped = [finding for report in reports for finding in report.skipped]
    if as_json:
        say_json({"cache": cache, "sources": reports})
        return int(bool(skipped))
    for report in reports:
        say(
            f"{report.source}: {report.rows_copied:,} rows copied ({_size(report.size_bytes)}), "
            f"{report.rows_present:,} were here"
        )
        _say_datasets(report, "here")
    for finding in skipped:
        say(f"left out: {_line(finding)}")
    return int(bool(skipped))


_url = click.argument("url", metavar="URL")


@options.command(
    "push",
    _url,
    options.cache,
    options.as_json,
    group=command,
    short_help="Copy what a store lacks into it.",
)
def push(url: str, cache: Path, as_json: bool) -> int:
    """Copy what the cache has and a store lacks into the store.

    URL is a folder in a bucket (s3://, gs://, az://) or file:///. Files that are there are not
    copied again. A dataset whose name is taken there by other images goes as NAME-2. Damaged files
    are left out and named, with exit status 1.

    \b
    featx cache push s3://bucket/cache
    featx cache push file:///mnt/share/cache --cache local/
    """
    from featx.cache.maintenance import FeatureCache

    return _say_transfer(FeatureCache(cache).push(url), cache, as_json, "there")


@options.command(
    "pull",
    _url,
    options.cache,
    options.as_json,
    group=command,
    short_help="Copy what the cache lacks from a store.",
)
def pull(url: str, cache: Path, as_json: bool) -> int:
    """Copy what a store has and the cache lacks into the cache.

    URL is as for push. Every byte is compared with its digest. Damaged files are left out and
    named, with exit status 1.

    \b
    featx cache pull s3://bucket/cache
    featx cache pull gs://bucket/cache --cache local/
    """
    from featx.cache.maintenance import FeatureCache

    return _say_transfer(FeatureCache(cache).pull(url), cache, as_json, "here")


def _say_transfer(report: Transfer, cache: Path, as_json: bool, where: str) -> int:
    if as_json:
        say_json({"cache": cache, **asdict(report)})
        return int(bool(report.skipped))
    say(
        f"{report.address}: {report.files:,} files copied ({_size(report.size_bytes)}), "
        f"{report.shards_present:,} shards were {where}"
    )
    _say_datasets(report, where)
    for finding in report.skipped:
        say(f"left out: {_line(finding)}")
    return int(bool(report.skipped))


def _say_datasets(report: Merge | Transfer, where: str) -> None:
    for dataset in report.datasets:
        name = f", as {dataset.stored_as}" if dataset.stored_as != dataset.name else ""
        say(f"  dataset {dataset.name}: {_OUTCOMES[dataset.outcome].format(where)}{name}")


_OUTCOMES = {
    "copied": "copied",
    "present": "was {}",
    "extended": "was {}, now has the features of both",
}


def _line(finding: Finding) -> str:
    rows = "" if finding.rows is None else f" ({finding.rows:,} rows)"
    return f"{finding.kind}: {_reason(finding)}{rows}; {finding.next_step}"


def _reason(finding: Finding) -> str:
    """Return what is wrong, after the path, which errors of reading begin with."""
    path = str(finding.path)
    return finding.reason if finding.reason.startswith(path) else f"{path}: {finding.reason}"


def _size(count: float) -> str:
    """Return a number of bytes as people say it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
