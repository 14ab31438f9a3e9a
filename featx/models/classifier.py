"""`ImageClassifier`: a frozen backbone and a head, as one scikit-learn classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from featx.exceptions import HeadError
from featx.heads.foreign import trusted_head
from featx.heads.learning import fit_weighted
from featx.heads.making import make_head
from featx.images.labels import complete_labels, label_matrix, read_label_sets
from featx.models.image_features import PerBackbone
from featx.models.image_model import ImageModel
from featx.models.model_file import read_model
from featx.models.regressor import ImageRegressor
from featx.spec import FeatureSpec, ImagePolicy, ViewPolicy


class ImageClassifier(ClassifierMixin, ImageModel, BaseEstimator):  # type: ignore[misc]
    """A classifier of images: features of a frozen backbone, and a head trained on them.

    Parameters
    ----------
    backbone : str or sequence of str, default "tiny"
        A name of the catalogue, ``file:PATH.keras``, ``onnx:PATH.onnx``, ``savedmodel:FOLDER`` or
        ``hub:FOLDER``. The features of several are side by side.
    head : str or estimator, default "logistic"
        A name of `featx.heads.table`, such as ``"knn"`` or ``"dense:1024,1024"``, or any
        scikit-learn classifier.
    weights : str, path or mapping, optional
        ``"imagenet"``, ``"bundled"``, ``"random:SEED"`` or a file; see
        `featx.backbones.weights.resolve_weights`. For all backbones, or by backbone, as the next
        three.
    tap : str, sequence of str or mapping, default "avg"
        Where in the network, see `featx.backbones.taps.parse_tap`. The features of several are
        side by side.
    input_size : int, tuple of two int or mapping, optional
        Height and width of the network's input in pixels; by default the backbone's own.
    preprocessing : str or mapping, optional
        Only for backbones of one's own, see `featx.backbones.source.resolve_backbone`.
    image : ImagePolicy, optional
        Decoding and resizing.
    views : int, default 0
        Number of seeded augmentations of each image that the head is trained on beside the image
        itself, see `featx.extract`.
    average_views : bool, default False
        Whether a prediction is the mean of the probabilities over the image and its views.
    view_policy : str or ViewPolicy, optional
        How views are drawn, as in `featx.extract`.
    cache : path, optional
        A cache folder: what `fit` computes is kept there, and what is there is never computed
        again. By default nothing is written to disk.
    engine : str, default "auto"
        Key of `featx.engines.choice.ENGINES`.
    batch_size : int or "auto", default "auto"
        Number of images in a batch of the backbone.
    multilabel : bool, default False
        Whether an image has any number of labels: `predict` then gives a matrix of 0 and 1, and
        `predict_proba` the probability of each label by itself.
    random_state : int, default 0
        Seed of the head.
    trust : bool, default False
        Needed to read images with a ``savedmodel:`` backbone, whose graph may do anything.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Labels, sorted; 0 to k - 1 where they were given as a matrix.
    n_features_in_ : int
        Number of features an image.
    head_ : estimator
        The head, fitted.
    specs_ : tuple of FeatureSpec
        What identifies the features, one for each backbone; empty after training on features that
        were handed in.
    spec_ : FeatureSpec or None
        The first of them.
    training_ : dict
        What it was trained on, where that is known: `featx.evaluate` knows these images again.
    novelty_ : Novelty or None
        What marks images unlike those of training; `featx.train` and `featx.search` learn it.
    decision_ : Decision or None
        How labels are decided by the probabilities, and what sets with a stated coverage are;
        `featx.train` and `featx.search` learn it with `optimise` and `coverage`. With None, the
        most probable class, or all labels above 0.5.

    Examples
    --------
    On files:

    >>> clf = ImageClassifier("mobilenet_v2", head="svm", cache="cache/")  # doctest: +SKIP
    >>> clf.fit(["ant.jpg", "bee.jpg"], ["ant", "bee"]).predict(["new.jpg"])  # doctest: +SKIP
    array(['bee'], dtype='<U3')

    On features that were extracted before:

    >>> X = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    >>> y = np.repeat(["ant", "bee"], 10)
    >>> X[10:] += 3
    >>> float(ImageClassifier(head="logistic").fit(X, y).score(X, y))
    1.0
    """

    # Weights that are routed to `fit` do not reach `score` unless that is asked for too.
    __metadata_request__score = {"sample_weight": False}  # noqa: RUF012

    def __init__(
        self,
        backbone: str | Sequence[str] = "tiny",
        head: Any = "logistic",
        *,
        weights: str | os.PathLike[str] | PerBackbone | None = None,
        tap: str | Sequence[str] | PerBackbone = "avg",
        input_size: int | tuple[int, int] | PerBackbone | None = None,
        preprocessing: str | PerBackbone | None = None,
        image: ImagePolicy | None = None,
        views: int = 0,
        average_views: bool = False,
        view_policy: str | ViewPolicy | None = None,
        cache: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        batch_size: int | str = "auto",
        multilabel: bool = False,
        random_state: int = 0,
        trust: bool = False,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.weights = weights
        self.tap = tap
        self.input_size = input_size
        self.preprocessing = preprocessing
        self.image = image
        self.views = views
        self.average_views = average_views
        self.view_policy = view_policy
        self.cache = cache
        self.engine = engine
        self.batch_size = batch_size
        self.multilabel = multilabel
        self.random_state = random_state
        self.trust = trust

    def fit(self, X: Any, y: ArrayLike, sample_weight: Any = None) -> ImageClassifier:
        """Train the head.

        Parameters
        ----------
        X : list of paths, ndarray of shape (n, h, w, c), or ndarray of shape (n, d)
            Files, pixels, or features of this backbone. Paths may also be bytes, an array (n,) or
            (n, 1), or a column of pandas or polars; one path is a folder or a file of images.
        y : array-like of shape (n,)
            Labels. With ``multilabel``, as `featx.images.labels.read_label_sets` takes them:
            a matrix of 0 and 1, one collection of labels an image, or text such as ``ant|winged``.
            Every row has to have one: None, NaN and the texts for these are refused.
        sample_weight : array-like of shape (n,), optional
            What each image counts, not negative. A weight of 2 is an image that is there twice, 0
            one that is not there (random parts of ``dense`` and trees aside). For ``logistic``,
            ``svm``, ``ridge``, ``nearest-mean``, ``forest``, ``extra-trees``, ``dense``, and
            estimators that take weights.

        Raises
        ------
        ImageError
            If an image cannot be read.
        DatasetError, HeadError
            If there is nothing to learn from, for instance one class only, or the head takes no
            weights.
        """
        return self.fit_head(X, complete_labels(y), sample_weight)

    def fit_head(self, X: Any, y: ArrayLike, sample_weight: Any = None) -> ImageClassifier:
        """Train the head on labels that are there, whatever they are called; see `fit`."""
        names = None
        if self.multilabel:
            names, y = read_label_sets(y)
        examples = self._examples(X, y, sample_weight, multi_output=self.multilabel)
        X, y, sample_weight = examples.X, examples.y, examples.weights
        check_classification_targets(y)
        labels = np.unique(y) if names is None else names
        if len(labels) < 2:
            raise HeadError(f"one class only: {str(labels[0])!r}; a classifier needs two or more")
        head = trusted_head(self.head, seed=self.random_state) if self.trust else self.head
        self.head_ = make_head(head, seed=self.random_state, multilabel=self.multilabel)
        if sample_weight is None:
            self.head_.fit(X, y)
        else:
            fit_weighted(self.head_, X, y, sample_weight)
        self.classes_ = self.head_.classes_ if names is None else names
        return self

    def take_head(
        self,
        head: Any,
        specs: Sequence[FeatureSpec],
        *,
        n_features: int,
        labels: NDArray[Any] | None = None,
    ) -> None:
        """Take a head that was fitted on features of these specifications, in place of `fit`.

        Of several labels an image, the head knows the columns; ``labels`` are their names.
        """
        self.head_, self.classes_ = head, head.classes_ if labels is None else labels
        self._take_features(specs, n_features)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label of each row, shape (n,); with ``multilabel`` 0 and 1, shape (n, k)."""
        check_is_fitted(self, "head_")
        parts = self._parts(X)
        if len(parts) == 1 and not hasattr(self.head_, "predict_proba"):
            # An estimator given in Python may have margins only, as SVC().
            labels: NDArray[Any] = self.head_.predict(parts[0])
            return labels
        return self.decide(self.average_proba(parts))

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Return the probability of each class, shape (n, k), in the order of ``classes_``."""
        check_is_fitted(self, "head_")
        return self.average_proba(self._parts(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy; with ``multilabel`` the share of images with every label right."""
        if self.multilabel:
            if not (hasattr(y, "shape") and len(y.shape) == 2):
                y = label_matrix(y, self.classes_.tolist())
            right = (self.predict(X) == np.asarray(y)).all(axis=1)
            return float(np.average(right, weights=sample_weight))
        return float(super().score(X, complete_labels(y), sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.multilabel:
            tags.classifier_tags.multi_label = True
            tags.target_tags.multi_output = True
        return tags


def load_model(
    path: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    trust: bool = False,
) -> ImageClassifier | ImageRegressor:
    """Read a ``.featx`` file; `featx.load` is this function.

    A model of a regression is an `ImageRegressor`.

    Parameters
    ----------
    path : path
        The file, or its address in a bucket or on a web server.
    cache : path, optional
        A cache folder whose features are used.
    weights : path, optional
        The backbone's weights (or the network, for one of one's own), where they are not found
        where they were.
    engine : str, default "auto"
        Key of `featx.engines.choice.ENGINES`.
    trust : bool, default False
        Needed for scikit-learn estimators that featx does not check, see `featx.heads.storage`, and
        for reading images with a ``savedmodel:`` backbone, whose graph may do anything.

    Raises
    ------
    ArtefactError
        If the file is damaged, foreign, unsafe, or of a later version.
    """
    model: ImageClassifier | ImageRegressor = read_model(
        _untrained, path, cache=cache, weights=weights, engine=engine, trust=trust
    )
    return model


def _untrained(*, regression: bool = False, **parameters: Any) -> ImageClassifier | ImageRegressor:
    """Return the model that the parameters of a file are of."""
    if not regression:
        return ImageClassifier(**parameters)
    del parameters["multilabel"]
    return ImageRegressor(**parameters)
