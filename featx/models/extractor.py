"""`FeatureExtractor`: a frozen backbone as a scikit-learn transformer."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from featx.images.dataset import ImageDataset
from featx.models.image_features import ImageReader, PerBackbone, as_image_dataset
from featx.spec import ImagePolicy


class FeatureExtractor(TransformerMixin, ImageReader, BaseEstimator):  # type: ignore[misc]
    """Maps images to features of a frozen backbone; features pass unchanged.

    There is nothing to learn: `fit` only notes what kind of input it was given. Two-dimensional
    arrays of numbers are taken for features that were extracted before, so that one pipeline works
    on files and on cached features. It works in a ``ColumnTransformer`` on the column of paths, and
    ``set_output`` gives named columns.

    Parameters
    ----------
    backbone : str or sequence of str, default "tiny"
        A name of the catalogue, ``file:PATH.keras``, ``onnx:PATH.onnx``, ``savedmodel:FOLDER`` or
        ``hub:FOLDER``. The features of several, and of several taps, are side by side.
    weights, tap, input_size, preprocessing, image, cache, engine, batch_size, trust
        As for `featx.ImageClassifier`.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> model = make_pipeline(FeatureExtractor("mobilenet_v2", cache="cache/"),
    ...                       LogisticRegression())
    >>> model.fit(["ant.jpg", "bee.jpg"], ["ant", "bee"])  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str | Sequence[str] = "tiny",
        *,
        weights: str | os.PathLike[str] | PerBackbone | None = None,
        tap: str | Sequence[str] | PerBackbone = "avg",
        input_size: int | tuple[int, int] | PerBackbone | None = None,
        preprocessing: str | PerBackbone | None = None,
        image: ImagePolicy | None = None,
        cache: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        batch_size: int | str = "auto",
        trust: bool = False,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.tap = tap
        self.input_size = input_size
        self.preprocessing = preprocessing
        self.image = image
        self.cache = cache
        self.engine = engine
        self.batch_size = batch_size
        self.trust = trust

    def fit(self, X: object, y: object = None) -> FeatureExtractor:
        """Check the input; nothing is learnt.

        Parameters
        ----------
        X : list of paths, ndarray of shape (n, h, w, c), or ndarray of shape (n, d)
            Files, pixels, or features.
        y : ignored
        """
        for learnt in ("n_features_in_", "feature_names_in_", "_widths"):
            self.__dict__.pop(learnt, None)
        if as_image_dataset(X) is None:
            validate_data(self, X, dtype=[np.float32, np.float64])
        self.fitted_ = True
        return self

    def transform(self, X: object) -> NDArray[np.floating]:
        """Return the features, shape (n, d).

        Raises
        ------
        ImageError
            If an image cannot be read: rows are never left out in silence.
        """
        check_is_fitted(self, "fitted_")
        images = as_image_dataset(X)
        if images is None:
            rows: NDArray[np.floating] = validate_data(
                self, X, reset=not hasattr(self, "n_features_in_"), dtype=[np.float32, np.float64]
            )
            return rows
        return self._features(images, keep=True)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Return the names of the features, such as ``tiny_avg_0``, shape (d,).

        Parameters
        ----------
        input_features : array-like of str, optional
            Names of features that were given to `fit`, which pass unchanged. Images have none.
        """
        check_is_fitted(self, "fitted_")
        if hasattr(self, "n_features_in_"):
            names: NDArray[np.object_] = _check_feature_names_in(self, input_features)
            return names
        if not hasattr(self, "_widths"):
            blank = ImageDataset.from_arrays(np.zeros((1, 32, 32, 3), np.uint8))
            self._features(blank, keep=False)
        stems = []
        for branch in self.branches:
            kind, _, path = branch.choice.backbone.partition(":")
            name = Path(path).stem if path else kind
            stems += [re.sub(r"\W+", "_", f"{name}_{tap}") for tap in branch.taps]
        columns = [
            f"{stem}_{number}"
            for stem, width in zip(stems, self._widths, strict=True)
            for number in range(width)
        ]
        return np.array(columns, dtype=object)

    def _features(self, images: ImageDataset, *, keep: bool) -> NDArray[np.floating]:
        parts, _ = self.job(images, keep=keep).compute()
        self._widths = [part.shape[1] for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
