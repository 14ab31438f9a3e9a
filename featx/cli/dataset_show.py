"""What ``featx dataset`` prints of a dataset."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from featx.cli.show import table
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.cache.manifest import Manifest


def class_names(manifest: Manifest) -> list[str]:
    """Return the class of each row, empty text for none."""
    names = [*(manifest.classes or ()), ""]
    return [names[code] for code in manifest.label.tolist()]


def summary(manifest: Manifest) -> dict[str, Any]:
    """Return what is known of a dataset, as ``--json`` prints it."""
    from featx.cache.manifest import DUPLICATE, FAILED, OK
    from featx.extraction.report import data_report

    status = manifest.status.tolist()
    kept = [row for row, code in enumerate(status) if code in (OK, DUPLICATE)]
    known = data_report(manifest)
    names = class_names(manifest)
    classes = Counter(names[row] for row in kept if names[row])
    splits = Counter(manifest.split[row] for row in kept if manifest.split[row])
    return {
        "dataset": manifest.name,
        "root": manifest.root,
        "source": manifest.source,
        "rows": len(kept),
        "failed": status.count(FAILED),
        "duplicates": status.count(DUPLICATE),
        "groups": len(set(manifest.group) - {""}),
        "classes": {name: classes[name] for name in manifest.classes or ()},
        "splits": dict(sorted(splits.items())),
        "blocks": [str(block) for block in manifest.blocks],
        "edits": list(manifest.edits),
        **{what: known[what] for what in ("unlabelled", "contradictions", "look_alike", "notes")},
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
