"""From images to the features that a model learns from: in the cache, or as a transformer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from featx.backbones.source import BackboneSource, log_preprocessing
from featx.backbones.taps import parse_tap
from featx.cache.layout import CacheLayout
from featx.exceptions import FeaturesError
from featx.extraction.backbone_choice import BackboneChoice
from featx.extraction.job import Job, as_batch_size, engines_folder, with_views
from featx.extraction.pipeline import Ledger, Network
from featx.heads.targets import LABEL_THRESHOLD, best_labels
from featx.images.dataset import ImageDataset
from featx.images.sources import listed_paths, listed_pictures
from featx.spec import FeatureSpec, ImagePolicy, ViewPolicy


def as_image_dataset(X: object) -> ImageDataset | None:
    """Return the images that `X` stands for, or None when it holds features."""
    if isinstance(X, ImageDataset):
        return X
    if isinstance(X, str | bytes | os.PathLike) or listed_pictures(X) is not None:
        return ImageDataset.from_any(X)
    paths = listed_paths(X)
    if paths is not None:
        return ImageDataset.from_paths(paths)
    if isinstance(X, np.ndarray):
        return ImageDataset.from_any(X) if X.ndim in (3, 4) else None
    if isinstance(X, list | tuple) and X and np.ndim(X[0]) in (2, 3):
        return ImageDataset.from_arrays(X)
    return None


class ImageReader:
    """An estimator's backbone and how images reach it; its attributes are parameters."""

    backbone: str
    weights: str | os.PathLike[str] | None
    tap: str
    input_size: int | tuple[int, int] | None
    preprocessing: str | None
    image: ImagePolicy | None
    view_policy: str | ViewPolicy | None = None
    cache: str | os.PathLike[str] | None
    engine: str
    batch_size: int | str
    trust: bool

    def job(self, images: ImageDataset, *, views: int = 0, keep: bool = False) -> Job:
        """Settle the extraction of images and of views of them."""
        layout = None if self.cache is None else CacheLayout.at(self.cache)
        source = self.source()
        network = Network(
            source,
            (str(parse_tap(self.tap)),),
            self.engine,
            as_batch_size(self.batch_size),
            folder=engines_folder(layout, writing=keep),
        )
        specs = with_views(source.spec(image=self.image), views, self.view_policy)
        parts = tuple((spec, network) for spec in specs)
        return Job(parts=parts, data=images, layout=layout, keep=keep)

    def _named(self) -> BackboneChoice:
        return BackboneChoice(
            self.backbone, self.weights, self.input_size, self.preprocessing, self.trust
        )

    @property
    def choice(self) -> BackboneChoice:
        """The backbone of the parameters, with its weights of training where they are now."""
        return self._named().located(getattr(self, "weights_sha256_", ""))

    def source(self) -> BackboneSource:
        """Settle the backbone, and check that its weights are those of training."""
        digest = getattr(self, "weights_sha256_", "")
        source = self._named().find(digest) if digest else self._named().resolve()
        trained = getattr(self, "spec_", None)
        if trained is None:
            log_preprocessing(source)
        elif digest:
            _require_same_pixels(trained, source.spec(image=self.image))
        return source


class ImageFeatures(ImageReader):
    """The part of a classifier that knows images; it imports no scikit-learn."""

    head: Any
    views: int
    average_views: bool
    random_state: int
    head_: Any
    spec_: FeatureSpec | None
    classes_: NDArray[np.generic]
    multilabel: bool
    novelty_: Any = None
    training_: Mapping[str, Any] = MappingProxyType({})
    n_features_in_: int

    def average_proba(self, parts: Sequence[NDArray[np.generic]]) -> NDArray[np.floating]:
        """Return the mean of the head's probabilities over matrices of shape (n, d)."""
        total = self.head_.predict_proba(parts[0])
        for part in parts[1:]:
            total = total + self.head_.predict_proba(part)
        averaged: NDArray[np.floating] = total / len(parts) if len(parts) > 1 else total
        return averaged

    def decide(self, proba: NDArray[np.floating]) -> NDArray[np.generic]:
        """Return the labels (n,) of probabilities (n, k), or 0 and 1 of several (n, k)."""
        if self.multilabel:
            return (proba > LABEL_THRESHOLD).astype(np.intp)
        return best_labels(proba, self.classes_)

    @property
    def views_averaged(self) -> int:
        """Number of views that a prediction looks at beside the image itself."""
        return self.views if self.average_views else 0

    def transform_images(
        self, images: ImageDataset, *, views: int = 0, on_error: str = "raise", keep: bool = False
    ) -> tuple[list[NDArray[np.floating]], Ledger]:
        """Return features (m, d) of the readable images and then of each view, and the ledger."""
        X, ledger = self.job(images, views=views, keep=keep).compute(on_error)
        if len(X[0]):
            self.check_width(X[0].shape[1])
        return X, ledger

    def check_width(self, width: int) -> None:
        """Raise `FeaturesError` if the head was trained on features of another size."""
        if hasattr(self, "head_") and width != self.n_features_in_:
            raise FeaturesError(
                f"the head was trained on {self.n_features_in_} features an image, received "
                f"{width} from {self.backbone} with tap {self.tap!r}: use the backbone and tap of "
                "training"
            )


def _require_same_pixels(trained: FeatureSpec, current: FeatureSpec) -> None:
    """Raise `FeaturesError` if images would reach the network otherwise than in training."""
    for part in ("input_size_px", "preprocessing", "image"):
        then, now = getattr(trained, part), getattr(current, part)
        if then != now:
            raise FeaturesError(
                f"the model was trained with {part} {then}, images would now be read with {now}: "
                "set the classifier's parameters as they were, or train again"
            )


class FeatureExtractor(TransformerMixin, ImageReader, BaseEstimator):  # type: ignore[misc]
    """Maps images to features of a frozen backbone; features pass unchanged.

    There is nothing to learn: `fit` only notes what kind of input it was given. Two-dimensional
    arrays of numbers are taken for features that were extracted before, so that one pipeline works
    on files and on cached features. It works in a ``ColumnTransformer`` on the column of paths, and
    ``set_output`` gives named columns.

    Parameters
    ----------
    backbone : str, default "tiny"
        A name of the catalogue, ``file:PATH.keras``, ``savedmodel:FOLDER`` or ``hub:FOLDER``.
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
        backbone: str = "tiny",
        *,
        weights: str | os.PathLike[str] | None = None,
        tap: str = "avg",
        input_size: int | tuple[int, int] | None = None,
        preprocessing: str | None = None,
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
        for learnt in ("n_features_in_", "feature_names_in_", "_width"):
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
        features = self._features(images, keep=True)
        self._width = features.shape[1]
        return features

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
        if not hasattr(self, "_width"):
            blank = ImageDataset.from_arrays(np.zeros((1, 32, 32, 3), np.uint8))
            self._width = self._features(blank, keep=False).shape[1]
        kind, _, path = self.backbone.partition(":")
        parts = f"{Path(path).stem if path else kind}_{parse_tap(self.tap)}"
        stem = re.sub(r"\W+", "_", parts)
        return np.array([f"{stem}_{number}" for number in range(self._width)], dtype=object)

    def _features(self, images: ImageDataset, *, keep: bool) -> NDArray[np.floating]:
        return self.job(images, keep=keep).compute()[0][0]
