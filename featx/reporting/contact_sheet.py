"""A page of images, each beside the cached images that are most like it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from featx.cache.features import Features
from featx.models.similarity import Match, Similar
from featx.reporting.page import write_page
from featx.reporting.thumbnails import file_thumbnails, thumbnails

_SIDE_PX = 160


def write_contact_sheet(
    target: str | os.PathLike[str],
    features: Features,
    results: Sequence[Similar],
    *,
    block: str = "",
    overwrite: bool = False,
) -> None:
    """Write what `featx.similar` found as a page of pictures; `block` names the features.

    An image that is gone or cannot be read is a grey tile with its name.
    """
    rows = {match.row for result in results for match in result.matches}
    rows |= {result.row for result in results if result.row is not None}
    pictures = thumbnails(features, sorted(rows), side_px=_SIDE_PX)
    new = [result.path for result in results if result.row is None and result.status == "ok"]
    new_pictures = file_thumbnails(new, side_px=_SIDE_PX)
    write_page(
        target,
        "contact_sheet.html",
        overwrite=overwrite,
        dataset=features.name,
        facts=[
            ("Dataset", f"{features.name} ({len(features):,} images)"),
            ("Features", block),
            ("Images", f"{len(results):,}"),
        ],
        results=[_shown(result, features, pictures, new_pictures) for result in results],
    )


def _shown(
    result: Similar, features: Features, pictures: dict[int, str], new_pictures: dict[str, str]
) -> dict[str, Any]:
    if result.row is None:
        picture, lines = new_pictures.get(result.path), []
    else:
        picture = pictures.get(result.row)
        lines = [f"is {features.paths[result.row]} in {features.name}"]
    reason = (
        f"It could not be read: {result.reason}" if result.reason else "There is no other image."
    )
    return {
        "path": result.path,
        "picture": picture,
        "lines": lines,
        "reason": reason,
        "matches": [
            {"path": match.path, "picture": pictures.get(match.row), "lines": _lines(match)}
            for match in result.matches
        ],
    }


def _lines(match: Match) -> list[str]:
    named = ", ".join(filter(None, (match.label, match.split)))
    return [f"{match.similarity:.4f}", *([named] if named else [])]
