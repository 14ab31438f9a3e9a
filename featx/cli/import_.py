"""``featx import``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli import options
from featx.cli.options import next_command
from featx.terminal import say, say_json

_FILE = click.Path(dir_okay=False, path_type=Path)


@options.command(
    "import",
    click.argument("name", metavar="NAME"),
    click.argument("file", metavar="FILE", type=_FILE),
    click.option(
        "--labels",
        type=_FILE,
        help="A CSV with the column label (and path, split, group), or a .npy.",
    ),
    options.cache,
    options.as_json,
)
def command(name: str, file: Path, labels: Path | None, cache: Path, as_json: bool) -> None:
    """Bring in features that were made elsewhere, of images, text, audio or anything.

    FILE is an .npz, .npy, .h5 or .parquet with the features under X, features or embeddings, and
    perhaps labels, paths, groups and splits. They become the dataset NAME of the cache, on which
    heads are trained like on any other.

    \b
    featx import reviews embeddings.npz
    featx import birdsong audio.npy --labels labels.csv
    """
    from featx.importing.feature_files import read_feature_file
    from featx.importing.importer import import_features

    table = read_feature_file(file, labels=labels)
    features = import_features(
        name,
        table.rows,
        y=table.y,
        paths=table.paths,
        groups=table.groups,
        splits=table.splits,
        cache=cache,
        source=file.name,
    )
    report = features.report
    if as_json:
        say_json(report)
        return
    say(
        f"{name}: {report['rows']:,} x {report['features']:,} {report['dtype']}, "
        f"{report['classes']:,} classes, {report['labelled']:,} labelled, "
        f"{report['written']:,} rows new to the cache, {report['seconds']:.1f} s"
    )
    say(f"  {report['backbone']} {report['tap']} in {report['spec']}")
    if report["converted_from"]:
        say(f"  converted from {report['converted_from']} to {report['dtype']}")
    if report["duplicates"]:
        say(f"  {report['duplicates']:,} equal another row")
    if report["classes"]:
        backbone = ["-b", report["backbone"]]
        say(f"next: {next_command('train', name, options=backbone, carried=('cache',))}")
