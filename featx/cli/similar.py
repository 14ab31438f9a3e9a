"""``featx similar``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.show import failures, table
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.models.similarity import Similar

_LISTS = (".txt", ".lst")


@options.command(
    "similar",
    options.data,
    click.argument("images", nargs=-1, required=True, metavar="IMAGE..."),
    options.whole("-k", "k", default=10, least=1, help="Matches an image."),
    options.file_path("-o", "--output", help="Write a page of pictures, as sheet.html."),
    options.force(),
    options.block,
    options.fail_on_failed,
    options.cache,
    options.as_json,
)
def command(
    data: str,
    images: tuple[str, ...],
    k: int,
    output: Path | None,
    force: bool,
    cache: Path,
    as_json: bool,
    **block: Any,
) -> int:
    """Find the images of a dataset that are most like other images.

    DATA is a dataset of the cache, or a folder or table. IMAGE is a file, a folder, a pattern in
    quotes, a .txt file with one path a line, - for such lines on standard input, or the path of an
    image as DATA has it. The features of a new image are computed as those of DATA were. An image
    that is in DATA is known by its content: it is named, and left out of its own matches.

    The similarity is the cosine of the features: 1 for a copy. The exit code is 0 when an image
    could be read, 1 when none could.

    \b
    featx similar photos new.jpg
    featx similar photos/ 'new/*.jpg' -k 5 -o sheet.html
    """
    import featx

    if output is not None:
        from featx.reporting.page import is_page, render_page

        options.check_output(output, is_page, "page", force=force, data=data)
        render_page("base.html")  # raises now what would keep the page from being made
    left_out: list[tuple[str, str]] = []
    names = list(_names(images, left_out))
    features, which = options.open_block(data, cache, **block)
    named: dict[str, Any] = {**block, **which}
    results = featx.similar(features, names, k, **named)
    if output is not None:
        from featx.reporting.contact_sheet import write_contact_sheet

        title = " ".join(which.values())
        write_contact_sheet(output, features, results, block=title, overwrite=force)
    failed = [result for result in results if result.status == "failed"]
    if as_json:
        unread = failures([(result.path, result.reason) for result in failed])
        others = [{"path": path, "reason": reason} for path, reason in left_out]
        said = {"dataset": features.name, **which, "images": results}
        say_json({**said, **unread, "left_out": others})
    else:
        _show(features.name, features.paths, results)
        if output is not None:
            say(f"saved     {output}")
    if left_out:
        path, reason = left_out[0]
        say(f"{len(left_out):,} files were left out, such as {path}: {reason}", err=True)
    if failed:
        say(f"{len(failed):,} of {len(results):,} could not be read", err=True)
        if len(failed) == len(results):
            return 1
    return options.exit_code(failed)


def _names(images: Iterable[str], left_out: list[tuple[str, str]]) -> Iterator[str]:
    """Return the names of images, those that text files list among them."""
    for name in options.image_arguments(images, left_out):
        if name.lower().endswith(_LISTS) and os.path.isfile(name):
            yield from _listed(Path(name))
        else:
            yield name


def _listed(file: Path) -> Iterator[str]:
    """Return the paths in a text file, one a line; they may begin at its folder."""
    for line in file.read_bytes().splitlines():
        path = os.fsdecode(line.strip())
        if path:
            beside = file.parent / path
            yield str(beside) if not os.path.exists(path) and beside.exists() else path


def _show(dataset: str, paths: list[str], results: list[Similar]) -> None:
    for result in results:
        if result.status == "failed":
            say(f"{result.path}: failed: {result.reason}")
            continue
        known = "" if result.row is None else f", which is {paths[result.row]} in {dataset}"
        say(f"{result.path}{known}")
        labelled = any(match.label for match in result.matches)
        split = any(match.split for match in result.matches)
        columns = ["similarity", *["label"] * labelled, *["split"] * split, "path"]
        cells = [
            [
                f"{match.similarity:.4f}",
                *[match.label or "-"] * labelled,
                *[match.split or "-"] * split,
                match.path,
            ]
            for match in result.matches
        ]
        say(*(f"  {line}" for line in table(columns, cells)))
