"""Blocks of features as a search takes them."""

from __future__ import annotations

from typing import Any

from featx.cache.features import Features
from featx.models.search_sample import SearchSample
from featx.selection.fold_data import FeatureBlock


def feature_block(
    features: Features,
    backbone: str,
    tap: str,
    cost: tuple[float | None, int | None, float],
    sample: SearchSample | None,
) -> FeatureBlock:
    """Return one block, or a sample of its rows, with its views and what its backbone costs."""
    place: dict[str, Any] = {"backbone": backbone, "tap": tap}
    views = features.views(**place)
    made = [features.spec(**place), *(features.spec(**place, view=view) for view in views)]
    parts = [None, *views]
    if sample is None:
        matrices = [features.matrix(**place, view=view) for view in parts]
    else:
        matrices = [features.take(sample.rows, **place, view=view) for view in parts]
    drawn = [] if sample is None else [sample.digest]
    return FeatureBlock(
        backbone,
        tap,
        matrices[0],
        digest=" ".join([tap, *(spec.digest for spec in made), *drawn]),
        views=tuple(matrices[1:]),
        ms=cost[0],
        bytes=cost[1],
        cost=cost[2],
    )
