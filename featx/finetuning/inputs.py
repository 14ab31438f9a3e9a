"""What the trained part takes, image by image: activations from the cache, or pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.decode import Target
from featx.images.loader import load_images
from featx.spec import FeatureSpec


class Inputs(Protocol):
    """Gives batches of what a model takes."""

    @property
    def views(self) -> int:
        """Number of views beside the image itself."""

    def batches(
        self, rows: NDArray[np.intp], size: int, view: int | None = None
    ) -> Iterator[list[NDArray[Any]]]:
        """Give rows in their order, `size` at a time, as they are or in one of the views."""


class CachedActivations:
    """Activations at the cut, mapped from the cache."""

    def __init__(
        self,
        features: Features,
        backbone: str,
        taps: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        place = {"backbone": backbone, "tap": taps[0]}
        self._views = features.views(**place)
        self._shapes = [tuple(shape) for shape in shapes]
        self._matrices = {
            view: [features.matrix(backbone=backbone, tap=tap, view=view) for tap in taps]
            for view in [None, *self._views]
        }

    @property
    def views(self) -> int:
        """Number of views beside the image itself."""
        return len(self._views)

    def batches(
        self, rows: NDArray[np.intp], size: int, view: int | None = None
    ) -> Iterator[list[NDArray[Any]]]:
        """Give rows in their order, `size` at a time."""
        matrices = self._matrices[None if view is None else self._views[view]]
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            yield [
                np.asarray(matrix[some], np.float32).reshape(len(some), *shape)
                for matrix, shape in zip(matrices, self._shapes, strict=True)
            ]


class Pixels:
    """Pixels, decoded whenever they are needed."""

    def __init__(self, images: ImageDataset, specs: Sequence[FeatureSpec]) -> None:
        self._images = images
        self._targets = [Target(s.input_size_px, s.image, s.views) for s in specs]

    @property
    def views(self) -> int:
        """Number of views beside the image itself."""
        return len(self._targets) - 1

    def batches(
        self, rows: NDArray[np.intp], size: int, view: int | None = None
    ) -> Iterator[list[NDArray[Any]]]:
        """Give rows in their order, `size` at a time."""
        target = self._targets[0 if view is None else 1 + view]
        waiting: dict[int, NDArray[np.uint8]] = {}
        places = {int(row): place for place, row in enumerate(rows)}
        begin = 0
        for loaded in load_images(self._images, rows.tolist(), [target]):
            if loaded.status != "decoded":
                raise DatasetError(
                    f"{self._images.paths[loaded.index]} was read before and cannot be read now: "
                    f"{loaded.reason}. Restore it, or extract the data again"
                )
            waiting[places[loaded.index]] = loaded.pixels[0]
            # Images come nearly in their order; a batch waits for all of its own.
            end = min(begin + size, len(rows))
            if all(place in waiting for place in range(begin, end)):
                yield [np.stack([waiting.pop(place) for place in range(begin, end)])]
                begin = end
        while begin < len(rows):
            end = min(begin + size, len(rows))
            yield [np.stack([waiting.pop(place) for place in range(begin, end)])]
            begin = end
