"""What a classifier and a regressor of images share: training on images, answering, saving."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

from featx.exceptions import HeadError
from featx.files.identity import content_groups
from featx.heads.estimators import checked_weights
from featx.heads.rows import Doubles, Floats
from featx.models.image_features import ImageFeatures, as_image_dataset
from featx.models.model_file import save_model
from featx.models.training_keys import encode_keys
from featx.spec import FeatureSpec


@dataclass(frozen=True, eq=False)
class Examples:
    """What a head is trained on: features (n, d), with what is learnt and counts of each row."""

    X: Floats
    y: NDArray[np.generic]
    weights: Doubles | None
    groups: NDArray[np.int64]  # rows of equal images, and views of one, have equal numbers
    images: int  # how many of the rows are images; the others are views of these


class ImageModel(ImageFeatures):
    """Estimators of images; a base of `ImageClassifier` and `ImageRegressor`."""

    def _examples(
        self, X: Any, y: Any, sample_weight: Any, *, multi_output: bool = False
    ) -> Examples:
        """Return images or features as rows to train on, and forget what was learnt before."""
        images = as_image_dataset(X)
        for known in ("novelty_", "training_", "decision_"):
            self.__dict__.pop(known, None)
        if images is None:
            kinds = {"dtype": [np.float32, np.float64], "multi_output": multi_output}
            X, y = validate_data(self, X, y, **kinds)
            self.specs_ = ()
            groups, count = np.arange(len(X)), len(X)
        else:
            targets = np.asarray(y)
            if targets.shape[:1] != (len(images),):
                raise HeadError(
                    f"expected one label for each of {len(images)} images, received labels of "
                    f"shape {targets.shape}"
                )
            for learnt in ("head_", "specs_"):
                self.__dict__.pop(learnt, None)
            parts, ledger = self.transform_images(images, views=self.views, keep=True)
            self.training_ = {"images": len(images), "keys": encode_keys(ledger.key)}
            X, y = np.concatenate(parts), np.concatenate([targets] * len(parts))
            if np.ndim(sample_weight):
                weights = checked_weights(sample_weight, len(images))
                sample_weight = np.concatenate([weights] * len(parts))
            self.n_features_in_ = X.shape[1]
            self.specs_ = self.plain_specs()
            groups, count = np.tile(content_groups(ledger.key, None), len(parts)), len(images)
        if sample_weight is None:
            return Examples(X, np.asarray(y), None, groups, count)
        weights = checked_weights(sample_weight, len(X))
        counted = weights > 0
        rows = int(counted[:count].sum())
        return Examples(X[counted], np.asarray(y)[counted], weights[counted], groups[counted], rows)

    def _parts(self, X: Any) -> list[Any]:
        images = as_image_dataset(X)
        if images is not None:
            return self.transform_images(images, views=self.views_averaged)[0]
        return [validate_data(self, X, reset=False, dtype=[np.float32, np.float64])]

    def _take_features(self, specs: Sequence[FeatureSpec], n_features: int) -> None:
        """Take what the head was trained on."""
        self.n_features_in_, self.specs_ = n_features, tuple(specs)

    def save(self, path: str | os.PathLike[str], **details: Any) -> None:
        """Write the model as a ``.featx`` file, whole or not at all.

        Parameters
        ----------
        path : path
            Where to; the folder must exist. A model that is there is replaced. It may be the
            address of an object, such as ``s3://bucket/photos.featx``.
        **details
            ``metrics`` and ``training``: figures, and what it was trained on, as JSON types;
            ``spec``: specification of the features of one backbone, by default found out from the
            parameters; ``command``: the command line that made it; ``embed``: whether to keep the
            backbone's file in it, so that it works where that file is not; ``overwrite``: whether
            to replace a file that is no model made by featx.

        Raises
        ------
        ArtefactError
            If the file cannot be written, or the backbone is more than one file, or compressed.
        OutputError
            If there is a file that is no model made by featx.
        WeightsError
            If the backbone's weights are not here, so that their digest cannot be stated.
        """
        save_model(self, path, **details)
