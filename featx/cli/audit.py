"""``featx audit``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from featx.cli import options
from featx.cli.show import unused_images
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.auditing.findings import Audit
    from featx.cache.features import Features

_SHOWN, _NAMED = 5, 3
_TABLE = "--from audit.csv"


@options.command(
    "audit",
    options.data,
    options.backbone,
    options.file_path(
        "--csv",
        "csv_file",
        help="Write a line an image, for `featx dataset relabel|remove --from`.",
    ),
    options.flag("--no-pictures", help="Look at the features only, not at the originals."),
    options.memory(
        default="1GiB",
        show_default=True,
        help="Memory for features; labels are judged in batches beyond half of it.",
    ),
    options.force(),
    options.cache,
    options.seed,
    options.multilabel,
    options.as_json,
)
def command(
    data: str,
    csv_file: Path | None,
    force: bool,
    cache: Path,
    no_pictures: bool,
    max_ram: str,
    seed: int,
    multilabel: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Say what is doubtful in a dataset: copies, wrong labels, strangers, bad pictures, classes.

    Features that are missing are extracted first; without -b a dataset is judged by all features
    that it has. Nothing is changed. Look at the images before you act: the table of
    --csv is applied as you leave it, and `featx dataset undo` takes an edit back.

    \b
    featx audit photos/ -b mobilenet_v2 --csv audit.csv
    featx dataset relabel photos --from audit.csv
    featx dataset remove photos --from audit.csv
    """
    import featx
    from featx.auditing.findings import is_audit

    if csv_file is not None:
        options.check_output(csv_file, is_audit, "table of an audit", force=force, data=data)
    settings["multilabel"] = multilabel
    features = _features(data, cache, settings)
    chosen = settings["chosen"]
    result = featx.audit(features, **chosen, pictures=not no_pictures, seed=seed, max_ram=max_ram)
    if csv_file is not None:
        result.write_csv(csv_file)
    if as_json:
        said = {**result.to_dict(), "not_checked": result.left_out}
        say_json({**said, **unused_images(features)})
    else:
        _show(result, csv_file)
    return options.exit_code(features.failed)


def _features(data: str, cache: Path, settings: dict[str, Any]) -> Features:
    """Return the features asked for, else all that the cache has of a dataset."""
    import featx
    from featx.cache.layout import CacheLayout
    from featx.extraction.backbone_choice import known_dataset
    from featx.extraction.job import find_named

    backbones, taps = settings["backbone"], settings["taps"]
    settings["chosen"] = {}
    layout = CacheLayout.at(cache)
    named = find_named(layout, data)
    known = named or known_dataset(layout, data)
    if not backbones and known is not None:
        plain = {(block.backbone, block.tap) for block in known.blocks if block.view is None}
        every, places = ({pair[which] for pair in plain} for which in (0, 1))
        if named or any(":" in name for name in every) or len(plain) != len(every) * len(places):
            return featx.Features.open(known.name, cache=cache)
        # What has come into the folder since is to be judged too.
        settings["backbone"], settings["taps"] = tuple(sorted(every)), tuple(sorted(places))
    if len(backbones) == 1:
        settings["chosen"] = {"backbone": backbones[0]}
        if len(taps) == 1:
            settings["chosen"]["tap"] = taps[0]
    arguments = options.extraction_arguments(settings)
    return featx.extract(data, **arguments, cache=cache, progress=True)


def _show(result: Audit, csv_file: Path | None) -> None:
    """Print what was found, the worst first, with the command that acts on it."""
    from featx.auditing.findings import KINDS

    counts = result.counts()
    total = sum(counts.values())
    say(f"{result.dataset}: {result.images:,} images, {total:,} finding{'s' * (total != 1)}")
    for line in result.checked:
        say(f"  looked at {line}")
    for line in result.left_out:
        say(f"  left out: {line}")
    for kind, count in counts.items():
        row = KINDS[kind]
        say("", f"{row.severity}: {row.title}: {count:,}")
        findings = result.of(kind)
        for finding in findings[:_SHOWN]:
            names = [
                f"{image.path} ({image.label})" if image.label else image.path
                for image in finding.images[:_NAMED]
            ]
            more = len(finding.images) - len(names)
            listed = ", ".join(names) + (f" and {more:,} more" if more else "")
            say(f"  {listed}: {finding.evidence}" if listed else f"  {finding.evidence}")
        if count > _SHOWN:
            where = "--csv FILE has all" if csv_file is None else f"{csv_file} has all"
            say(f"  and {count - _SHOWN:,} more ({where})")
        say(f"  {row.advice}")
        commands = dict.fromkeys(finding.command for finding in findings if finding.command)
        for text in list(commands)[:_SHOWN]:
            if _TABLE not in text or csv_file is not None:
                say(f"  next: {_completed(text, csv_file)}")
    if csv_file is not None:
        say("", f"saved {csv_file}: look at the images, and delete the lines that are not so")
    elif any(_TABLE in row.command for kind, row in KINDS.items() if kind in counts):
        say("", "Add --csv audit.csv for a table that `featx dataset relabel|remove` act on.")


def _completed(text: str, csv_file: Path | None) -> str:
    """Return a command with the table and the cache of this one."""
    if csv_file is not None:
        text = text.replace(_TABLE, f"--from {shlex.quote(str(csv_file))}")
    context = click.get_current_context()
    if context.get_parameter_source("cache") is ParameterSource.COMMANDLINE:
        text += f" --cache {shlex.quote(str(context.params['cache']))}"
    return text
