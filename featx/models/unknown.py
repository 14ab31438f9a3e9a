"""What a trained model keeps, to mark images unlike those of training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.heads.novelty import Novelty, fit_novelty
from featx.selection.splits import leak_groups

_MOST_ROWS = 4000
_FEWEST_ROWS = 20
_COPIES = 12


def learn_novelty(
    features: Features,
    place: dict[str, Any],
    y: NDArray[Any],
    rows: NDArray[np.intp],
    *,
    seed: int = 0,
    max_ram_bytes: int | None = None,
) -> Novelty | None:
    """Fit `featx.heads.novelty.fit_novelty` on training rows."""
    most = _MOST_ROWS
    if max_ram_bytes is not None:
        most = min(most, max_ram_bytes // (_COPIES * 4 * features.width(**place)))
    if most < _FEWEST_ROWS:
        return None
    if len(rows) > most:
        generator = np.random.default_rng(seed)
        rows = np.sort(generator.choice(rows, most, replace=False))
    named = features.groups
    groups = leak_groups(
        features.keys[rows], None if named is None else named[rows].tolist(), len(rows)
    )
    y = np.asarray(y)
    codes = np.unique(y[rows], return_inverse=True)[1] if y.ndim == 1 else np.zeros(len(rows), int)
    return fit_novelty(features.take(rows, **place), codes.astype(np.intp), groups, seed=seed)
