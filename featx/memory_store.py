"""Features kept in memory, over those that a cache on disk already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import FeatureStore
from featx.cache.key_index import KeyIndex
from featx.exceptions import FeaturesError
from featx.spec import FeatureSpec


class MemoryStore:
    """A store that writes nothing to disk.

    Parameters
    ----------
    spec : FeatureSpec
        The specification of its features.
    behind : FeatureStore, optional
        Asked first for features, and never written to.
    """

    def __init__(self, spec: FeatureSpec, behind: FeatureStore | None = None) -> None:
        self.spec = spec
        self._behind = behind
        self._keys: list[NDArray[np.uint8]] = []
        self._features: dict[str, list[NDArray[Any]]] = {}
        self._index = KeyIndex([])

    def add(self, keys: NDArray[np.uint8], features: Mapping[str, NDArray[Any]]) -> None:
        """Take rows of shape (n, 32) and (n, d) by tap."""
        self._keys.append(keys)
        for tap, values in features.items():
            self._features.setdefault(tap, []).append(values)

    def flush(self) -> None:
        """Make what was taken findable."""
        self._index = KeyIndex([np.concatenate(self._keys)] if self._keys else [])

    def has(self, taps: Sequence[str], keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return whether all taps of each key of shape (m, 32) are here or behind."""
        here = self._index.find(keys)[1] >= 0
        return here if self._behind is None else here | self._behind.has(taps, keys)

    def touch(self, taps: Sequence[str], keys: NDArray[np.uint8]) -> None:
        """Do nothing: no dataset will count on what is behind."""

    def gather(self, tap: str, keys: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        """Return the features of keys of shape (m, 32), in their order, shape (m, d)."""
        row = self._index.find(keys)[1]
        here = row >= 0
        own = np.concatenate(self._features[tap]) if tap in self._features else None
        if here.all() and own is not None:
            found: NDArray[np.floating[Any]] = own[row]
            return found
        if self._behind is None:
            raise FeaturesError(f"{int((~here).sum())} of {len(keys)} images have no features")
        rest = self._behind.gather(tap, keys[~here])
        out = np.empty((len(keys), rest.shape[1]), rest.dtype)
        out[~here] = rest
        if own is not None:
            out[here] = own[row[here]]
        return out

    def disk_order(self, tap: str, keys: NDArray[np.uint8]) -> NDArray[np.intp]:
        """Return keys of shape (m, 32) as they come: memory knows no better order."""
        return np.arange(len(keys))

    def recheck(self, tap: str, keys: NDArray[np.uint8]) -> None:
        """Compare what lies behind with its digests once more; see `FeatureStore`."""
        if self._behind is not None:
            self._behind.recheck(tap, keys)
