"""``featx dataset``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.show import show_data, table
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.auditing.findings import Action
    from featx.cache.manifest import Manifest

_KNOWN_OF_DATA = ("unlabelled", "contradictions", "look_alike", "conflicts", "notes")


def class_names(manifest: Manifest) -> list[str]:
    """Return the class of each row, empty text for none."""
    names = [*(manifest.classes or ()), ""]
    return [names[code] for code in manifest.label.tolist()]


def summary(manifest: Manifest) -> dict[str, Any]:
    """Return what is known of a dataset, as ``--json`` prints it."""
    from featx.cache.editing import describe_edit
    from featx.cache.manifest import DUPLICATE, FAILED
    from featx.extraction.report import data_report

    status, usable = manifest.status, manifest.usable
    known = data_report(manifest)
    names = class_names(manifest)
    classes = Counter(names[row] for row in usable)
    splits = Counter(manifest.split.take(usable))
    del splits[""]
    return {
        "dataset": manifest.name,
        "root": manifest.root,
        "source": manifest.source,
        "rows": len(usable),
        "failed": int((status == FAILED).sum()),
        "duplicates": int((status == DUPLICATE).sum()),
        "groups": len(set(manifest.group) - {""}),
        "classes": {name: classes[name] for name in manifest.classes or ()},
        "splits": dict(sorted(splits.items())),
        "blocks": [str(block) for block in manifest.blocks],
        "edits": list(manifest.edits),
        "history": [describe_edit(edit) for edit in manifest.edits],
        **{what: known[what] for what in _KNOWN_OF_DATA},
    }


def report(manifest: Manifest, *, as_json: bool, **counts: int) -> None:
    """Print a dataset after an edit, and what the edit did."""
    if as_json:
        say_json({**summary(manifest), **counts})
        return
    done = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    say(f"{manifest.name}: {len(manifest):,} rows, {done}")
    show_counts(manifest)


def show_counts(manifest: Manifest) -> None:
    """Print classes by splits."""
    pairs = Counter(zip(class_names(manifest), manifest.split, strict=True))
    splits = sorted({split for _, split in pairs})
    rows = [
        [name or "(none)", *(str(pairs[name, split]) for split in splits)]
        for name in [*(manifest.classes or ()), ""]
        if any(pairs[name, split] for split in splits)
    ]
    say(*table(["class", *(split or "no split" for split in splits)], rows))


_name = click.argument("name", metavar="NAME", shell_complete=options.complete_dataset)


@click.group("dataset", cls=options.Group)
def command() -> None:
    """Look at the datasets of a cache, split and edit them; features stay as they are.

    \b
    featx dataset split photos --test 0.2
    """


@options.command(
    "list",
    options.cache,
    options.as_json,
    group=command,
    short_help="The datasets of the cache.",
)
def list_(cache: Path, as_json: bool) -> None:
    """List the datasets of the cache.

    \b
    featx dataset list
    """
    from featx.cache.layout import CacheLayout
    from featx.cache.manifest import manifest_names, read_manifest
    from featx.exceptions import CacheFormatError

    layout = CacheLayout.at(cache)
    datasets, damaged = [], {}
    for name in manifest_names(layout):
        try:
            datasets.append(summary(read_manifest(layout.dataset(name))))
        except CacheFormatError as error:
            damaged[name] = str(error)
    if as_json:
        say_json({"cache": layout.root, "datasets": datasets, "damaged": damaged})
        return
    rows = [
        [
            row["dataset"],
            str(row["rows"]),
            str(row["failed"]),
            str(len(row["classes"])),
            " ".join(f"{split} {count}" for split, count in row["splits"].items()) or "-",
            " ".join(row["blocks"]) or "-",
        ]
        for row in datasets
    ]
    if rows:
        say(*table(["dataset", "rows", "failed", "classes", "splits", "features"], rows))
    else:
        say(f"no datasets in {layout.root}: featx extract FOLDER")
    for name, why in damaged.items():
        say(f"damaged: {name}: {why}")


@options.command(
    "show",
    _name,
    options.cache,
    options.as_json,
    group=command,
    short_help="What is known of a dataset.",
)
def show(name: str, cache: Path, as_json: bool) -> None:
    """Say what is known of a dataset: classes, splits, features, edits.

    \b
    featx dataset show photos
    """
    from featx.cache.layout import CacheLayout
    from featx.cache.manifest import find_manifest

    manifest = find_manifest(CacheLayout.at(cache), name)
    known = summary(manifest)
    if as_json:
        say_json(known)
        return
    say(
        f"{known['dataset']}: {known['rows']:,} rows, {known['failed']:,} failed, "
        f"{known['duplicates']:,} duplicates, {known['groups']:,} groups"
    )
    if known["root"]:
        say(f"  in {known['root']}")
    show_counts(manifest)
    show_data({**known, "splits": {}})
    for block in known["blocks"]:
        say(f"  features {block}")
    if known["history"]:
        say("  history (`featx dataset undo` takes the last edit back):")
    for number, sentence in enumerate(known["history"], 1):
        say(f"    {number}. {sentence}")


@options.command(
    "split",
    _name,
    click.option(
        "--test", type=click.FloatRange(0, 1, max_open=True), default=0.2, show_default=True
    ),
    click.option(
        "--val", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True
    ),
    options.choice(
        "--method",
        values=["hash", "stratified"],
        default="hash",
        help="hash never moves an image when others come; stratified gives classes equal shares.",
    ),
    options.seed,
    options.cache,
    options.as_json,
    group=command,
    short_help="Split a dataset into train, val and test.",
)
def split(
    name: str, test: float, val: float, method: Any, seed: int, cache: Path, as_json: bool
) -> None:
    """Split a dataset; images of one group and equal images are on one side.

    The split is kept when the folder is extracted again, and images that come later get theirs.

    \b
    featx dataset split photos --test 0.2
    featx dataset split photos --test 0.2 --val 0.1 --method stratified --seed 1
    """
    from featx.cache.editing import assign_splits

    if test + val >= 1 or test + val <= 0:
        raise click.UsageError("expected --test and --val whose sum is above 0 and below 1")
    parts = {"train": 1 - test - val, "val": val, "test": test}
    fractions = {part: share for part, share in parts.items() if share}
    before, after = _edit(
        cache, name, lambda m: assign_splits(m, fractions, method=method, seed=seed)
    )
    pairs = zip(before.split, after.split, strict=True)
    report(after, as_json=as_json, moved=sum(bool(old) and old != new for old, new in pairs))


_table = options.file_path(
    "--from", "table", help="The table of `featx audit --csv`, with the lines that you kept."
)


@options.command(
    "relabel",
    _name,
    click.argument("changes", metavar="OLD=NEW...", nargs=-1),
    options.file_path("--labels", help="A CSV with the columns path and label, for single images."),
    _table,
    options.flag("--new-class", help="Labels of single images may be classes that there are not."),
    options.cache,
    options.as_json,
    group=command,
    short_help="Rename, join or drop classes.",
)
def relabel_(
    name: str,
    changes: tuple[str, ...],
    labels: Path | None,
    table: Path | None,
    new_class: bool,
    cache: Path,
    as_json: bool,
) -> None:
    """Rename, join or drop classes, or label single images.

    OLD= takes the label away. The labels are kept when the folder is extracted again.

    \b
    featx dataset relabel photos ant=ants wasp=bees
    featx dataset relabel photos --labels corrected.csv
    featx dataset relabel photos --from audit.csv
    """
    from featx.cache.editing import relabel

    pairs = [change.partition("=") for change in changes]
    wrong = [
        change
        for change, (old, equals, _) in zip(changes, pairs, strict=True)
        if not (old and equals)
    ]
    if wrong or not (changes or labels or table):
        raise click.UsageError(f"expected OLD=NEW, received {wrong[0] if wrong else 'nothing'!r}")
    if labels and table:
        raise click.UsageError("expected --labels or --from, received both")
    decided = None if table is None else _decisions(cache, name, table, "relabel")
    paths = decided if labels is None else _labels_by_path(labels)
    classes = {old: new for old, _, new in pairs}
    before, after = _edit(
        cache,
        name,
        lambda m: relabel(m, classes=classes, paths=paths, new_classes=new_class),
    )
    old, new = class_names(before), class_names(after)
    report(after, as_json=as_json, relabelled=sum(a != b for a, b in zip(old, new, strict=True)))
    made = sorted({*(after.classes or ())}.difference(before.classes or ()))
    if made and not as_json:
        say(f"  new classes: {', '.join(made[:10])} (`featx dataset undo {name}` takes it back)")


def _decisions(cache: Path, name: str, table: Path, action: Action) -> dict[str, str]:
    """Return the lines of an audit's table with one action, for images that are still there."""
    from featx.auditing.findings import read_decisions
    from featx.cache.layout import CacheLayout
    from featx.cache.manifest import find_manifest
    from featx.exceptions import DatasetError

    lines = read_decisions(table, action)
    there = find_manifest(CacheLayout.at(cache), name).path.find(list(lines)) >= 0
    decisions = {
        path: label for (path, label), here in zip(lines.items(), there, strict=True) if here
    }
    gone = len(lines) - len(decisions)
    if not lines:
        raise DatasetError(f"no line of {str(table)!r} has the action {action}: nothing to do")
    if not decisions:
        raise DatasetError(
            f"none of the {gone:,} images of {str(table)!r} with the action {action} is in "
            f"{name!r}, such as {next(iter(lines))!r}"
        )
    if gone:
        say(f"{gone:,} images of {table} are not in {name} (any more): left as they are", err=True)
    return decisions


@options.command(
    "remove",
    _name,
    click.argument("globs", metavar="GLOB...", nargs=-1),
    click.option(
        "--status",
        type=click.Choice(["failed", "duplicate"]),
        multiple=True,
        help="Leave out what failed, or all but the first of equal images.",
    ),
    _table,
    options.cache,
    options.as_json,
    group=command,
    short_help="Leave rows out of a dataset.",
)
def remove(
    name: str,
    globs: tuple[str, ...],
    status: tuple[str, ...],
    table: Path | None,
    cache: Path,
    as_json: bool,
) -> None:
    """Leave rows out of a dataset; neither images nor features are deleted.

    GLOB is a pattern of paths below the folder; * also stands for slashes. What is left out stays
    left out when the folder is extracted again.

    \b
    featx dataset remove photos 'red/*.gif' '*/thumb_*'
    featx dataset remove photos --status failed
    featx dataset remove photos --from audit.csv
    """
    from featx.cache.editing import remove_rows

    if not (globs or status or table):
        raise click.UsageError("expected GLOB, --status or --from, received nothing")
    paths = {} if table is None else _decisions(cache, name, table, "remove")
    before, after = _edit(cache, name, lambda m: remove_rows(m, globs, status=status, paths=paths))
    report(after, as_json=as_json, removed=len(before) - len(after))


@options.command(
    "undo",
    _name,
    options.cache,
    options.as_json,
    group=command,
    short_help="Take the last edit of a dataset back.",
)
def undo(name: str, cache: Path, as_json: bool) -> None:
    """Take the last edit of a dataset back: a split, labels, or rows that were left out.

    Run it again for the edit before. `featx dataset show` lists the edits.

    \b
    featx dataset undo photos
    """
    from featx.cache.editing import describe_edit, undo_edit
    from featx.cache.manifest import PENDING, extract_again

    before, after = _edit(cache, name, undo_edit)
    undone = describe_edit(before.edits[-1])
    if as_json:
        say_json({**summary(after), "undone": undone})
        return
    say(f"taken back: {undone}")
    say(f"{name}: {len(after):,} rows, {len(after.edits):,} edits are left")
    waiting = int((after.status == PENDING).sum() - (before.status == PENDING).sum())
    if waiting > 0:
        say(f"  {waiting:,} of them have no features any more; to make them again:")
        say(*(f"    {extract_again(after, block)}" for block in after.blocks))


@options.command(
    "add",
    _name,
    click.argument(
        "others",
        metavar="OTHER...",
        nargs=-1,
        required=True,
        shell_complete=options.complete_dataset,
    ),
    click.option("--as", "new", help="Name of the result.  [default: NAME]"),
    options.cache,
    options.as_json,
    group=command,
    short_help="Add the rows of other datasets.",
)
def add(name: str, others: tuple[str, ...], new: str | None, cache: Path, as_json: bool) -> None:
    """Add the rows of other datasets.

    The result has the features that all of them have, and is no folder's any more: extract more
    of its features by its name.

    \b
    featx dataset add photos more-photos --as all-photos
    """
    from featx.cache.editing import add_rows
    from featx.cache.layout import CacheLayout
    from featx.cache.manifest import find_manifest

    layout = CacheLayout.at(cache)
    manifests = [find_manifest(layout, other) for other in others]

    def join(manifest: Manifest) -> Manifest:
        for other in manifests:
            manifest = add_rows(manifest, other, name=new)
        return manifest

    before, after = _edit(cache, name, join)
    report(after, as_json=as_json, added=len(after) - len(before))


@options.command(
    "rename",
    _name,
    click.argument("new", metavar="NEW"),
    options.cache,
    group=command,
    short_help="Give a dataset another name.",
)
def rename(name: str, new: str, cache: Path) -> None:
    """Give a dataset another name; its features stay where they are.

    \b
    featx dataset rename photos photos-2024
    """
    from featx.cache.datasets import rename_dataset
    from featx.cache.layout import CacheLayout

    rename_dataset(CacheLayout.at(cache), name, new)
    say(f"{name} is now {new}")


@options.command(
    "delete",
    _name,
    options.cache,
    group=command,
    short_help="Forget a dataset.",
)
def delete(name: str, cache: Path) -> None:
    """Forget a dataset, its splits and edits; images and features stay.

    \b
    featx dataset delete photos
    """
    from featx.cache.datasets import delete_dataset
    from featx.cache.layout import CacheLayout

    delete_dataset(CacheLayout.at(cache), name)
    say(f"deleted {name}; `featx cache gc` frees features that no dataset uses")


def _edit(
    cache: Path, name: str, edit: Callable[[Manifest], Manifest]
) -> tuple[Manifest, Manifest]:
    from featx.cache.datasets import edit_dataset
    from featx.cache.layout import CacheLayout

    return edit_dataset(CacheLayout.at(cache), name, edit)


def _labels_by_path(file: Path) -> dict[str, str]:
    from featx.exceptions import DatasetError
    from featx.images.labels import as_text
    from featx.images.tables import check_one_label, read_label_file

    listing = read_label_file(file)
    paths, labels = listing.paths, list(map(str, listing.labels or ()))
    if len(paths) != len(labels):
        raise DatasetError(f"expected the columns path and label in {str(file)!r}")
    check_one_label(paths, labels, what=f"{str(file)!r}, lines", names=range(2, len(paths) + 2))
    return dict(zip(paths, map(as_text, labels), strict=True))
