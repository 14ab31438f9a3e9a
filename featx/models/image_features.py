"""What reading images into features asks of a classifier or an extractor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import BackboneSource, canonical_name, log_preprocessing
from featx.cache.layout import CacheLayout
from featx.exceptions import FeaturesError
from featx.extraction.backbone_choice import Branch, branch_arguments, read_branches
from featx.extraction.job import Job, as_batch_size, engines_folder, with_views
from featx.extraction.pipeline import Ledger, Network
from featx.heads.decision import Decision
from featx.images.dataset import ImageDataset
from featx.images.sources import listed_paths, listed_pictures
from featx.selection.value_metrics import COVERAGE, half_widths
from featx.spec import (
    HALVES,
    INT8,
    BlockName,
    FeatureSpec,
    ImagePolicy,
    Precision,
    ViewPolicy,
    joined_name,
)


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


PerBackbone: TypeAlias = Mapping[str, Any]
"""A value for each backbone, by its name as it is given."""


class ImageReader:
    """An estimator's backbones and how images reach them; its attributes are parameters."""

    backbone: str | Sequence[str]
    weights: str | os.PathLike[str] | PerBackbone | None
    tap: str | Sequence[str] | PerBackbone
    input_size: int | tuple[int, int] | PerBackbone | None
    preprocessing: str | PerBackbone | None
    image: ImagePolicy | None
    view_policy: str | ViewPolicy | None = None
    cache: str | os.PathLike[str] | None
    engine: str
    batch_size: int | str
    trust: bool
    specs_: tuple[FeatureSpec, ...] = ()

    @property
    def spec_(self) -> FeatureSpec | None:
        """What identifies the features, of several backbones of the first; None if not known."""
        return self.specs_[0] if self.specs_ else None

    @property
    def branches(self) -> list[Branch]:
        """The backbones and taps of the parameters."""
        return read_branches(
            self.backbone,
            self.tap,
            weights=self.weights,
            input_size=self.input_size,
            preprocessing=self.preprocessing,
            trust=self.trust,
        )

    @property
    def block(self) -> BlockName:
        """Name of the features: backbone and tap, or those of several side by side."""
        return joined_name(
            (canonical_name(branch.choice.backbone), tap)
            for branch in self.branches
            for tap in branch.taps
        )

    @property
    def shown_block(self) -> str:
        """The name of the features as a line of text."""
        return f"{self.block['backbone']}, {self.block['tap']}"

    def reading(self) -> dict[str, Any]:
        """Return the arguments by which `featx.extract` reads images as the model does.

        Weights are those of training where they are now.
        """
        branches = self.branches
        if len(self.specs_) == len(branches):
            branches = [
                replace(branch, choice=branch.choice.located(spec.weights_sha256))
                for branch, spec in zip(branches, self.specs_, strict=True)
            ]
        arguments = branch_arguments(branches)
        arguments["taps"] = arguments.pop("tap")
        return {**arguments, "image": self.image}

    def sources(self) -> list[BackboneSource]:
        """Settle the backbones, and check that their weights are those of training."""
        branches, specs = self.branches, self.specs_
        if len(specs) != len(branches):
            sources = [branch.choice.resolve() for branch in branches]
            for source in sources:
                log_preprocessing(source)
            return sources
        sources = []
        for branch, spec in zip(branches, specs, strict=True):
            digest = spec.weights_sha256
            source = branch.choice.find(digest) if digest else branch.choice.resolve()
            if digest:
                _require_same_pixels(spec, source.spec(image=self.image))
            sources.append(source)
        return sources

    def plain_specs(self) -> tuple[FeatureSpec, ...]:
        """Return the specifications of training, or those of the parameters."""
        return self.specs_ or tuple(source.spec(image=self.image) for source in self.sources())

    def job(
        self,
        images: ImageDataset,
        *,
        views: int = 0,
        keep: bool = False,
        precision: Precision | None = None,
    ) -> Job:
        """Settle the extraction of images and of views of them, by default as in training."""
        layout = None if self.cache is None else CacheLayout.at(self.cache)
        parts = []
        for number, (source, branch) in enumerate(zip(self.sources(), self.branches, strict=True)):
            arithmetic = precision or self._precision(source, branch.taps, number)
            network = Network(
                source,
                branch.taps,
                self.engine,
                as_batch_size(self.batch_size),
                arithmetic,
                engines_folder(),
            )
            plain = source.spec(image=self.image, precision=arithmetic)
            specs = with_views(plain, views, self.view_policy)
            parts += [(spec, network) for spec in specs]
        return Job(parts=tuple(parts), data=images, layout=layout, keep=keep)

    def read(
        self, images: ImageDataset, *, on_error: str = "raise", **options: Any
    ) -> tuple[list[NDArray[np.floating]], Ledger]:
        """Return features (m, d) of the readable images and then of each view, and the ledger.

        Blocks are side by side. The options are those of `job`.
        """
        job = self.job(images, **options)
        matrices, ledger = job.compute(on_error)
        by_view: dict[int | None, list[NDArray[np.floating]]] = {}
        for block, matrix in zip(job.blocks, matrices, strict=True):
            by_view.setdefault(block.view, []).append(matrix)
        joined = [
            parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            for parts in by_view.values()
        ]
        return joined, ledger

    def _precision(self, source: BackboneSource, taps: tuple[str, ...], number: int) -> Precision:
        """Return the arithmetic of training where this machine has it, else f32."""
        if number >= len(self.specs_) or self.engine == "keras":
            return "f32"
        precision = self.specs_[number].precision
        if precision in HALVES:
            from featx.engines.openvino import half_precision

            return precision if precision == half_precision() else "f32"
        if precision.startswith(INT8):
            from featx.engines.openvino import find_int8

            return precision if find_int8(precision, source, taps, engines_folder()) else "f32"
        return "f32"


class ImageFeatures(ImageReader):
    """The part of a classifier that knows images; it imports no scikit-learn."""

    head: Any
    views: int
    average_views: bool
    random_state: int
    head_: Any
    classes_: NDArray[np.generic]
    multilabel: bool
    # Of a regression: names of the numbers, their spread in training, and `kept_residuals`.
    regression: bool = False
    value_names_: tuple[str, ...] = ()
    spread_: NDArray[np.float64]
    residuals_: NDArray[np.float64] | None = None
    novelty_: Any = None
    decision_: Decision | None = None
    training_: Mapping[str, Any] = MappingProxyType({})
    n_features_in_: int

    def average_proba(self, parts: Sequence[NDArray[np.generic]]) -> NDArray[np.floating]:
        """Return the mean of the head's probabilities over matrices of shape (n, d)."""
        total = self.head_.predict_proba(parts[0])
        for part in parts[1:]:
            total = total + self.head_.predict_proba(part)
        averaged: NDArray[np.floating] = total / len(parts) if len(parts) > 1 else total
        return averaged

    def average_values(self, parts: Sequence[NDArray[np.generic]]) -> NDArray[np.floating]:
        """Return the mean of the head's numbers over matrices of shape (n, d), shape (n, k)."""
        values = [np.asarray(self.head_.predict(part)).reshape(len(part), -1) for part in parts]
        averaged: NDArray[np.floating] = values[0] if len(parts) == 1 else np.mean(values, axis=0)
        return averaged

    def interval(
        self, values: NDArray[np.floating], coverage: float = COVERAGE
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return lower and upper ends of intervals about numbers (n, k), of known residuals."""
        assert self.residuals_ is not None
        half = half_widths(self.residuals_, coverage)
        return values - half, values + half

    def decide(self, proba: NDArray[np.floating]) -> NDArray[np.generic]:
        """Return the labels (n,) of probabilities (n, k), or 0 and 1 of several (n, k)."""
        answers = self.rule.decide(proba)
        return answers if self.multilabel else self.classes_[answers]

    @property
    def rule(self) -> Decision:
        """What makes labels of probabilities: by default the most probable, or those above 0.5."""
        return self.decision_ or Decision(self.multilabel)

    @property
    def views_averaged(self) -> int:
        """Number of views that a prediction looks at beside the image itself."""
        return self.views if self.average_views else 0

    def transform_images(
        self, images: ImageDataset, **options: Any
    ) -> tuple[list[NDArray[np.floating]], Ledger]:
        """Return features as the head takes them, see `read`."""
        X, ledger = self.read(images, **options)
        if len(X[0]):
            self.check_width(X[0].shape[1])
        return X, ledger

    def check_width(self, width: int) -> None:
        """Raise `FeaturesError` if the head was trained on features of another size."""
        if hasattr(self, "head_") and width != self.n_features_in_:
            raise FeaturesError(
                f"the head was trained on {self.n_features_in_} features an image, received "
                f"{width} from {self.block['backbone']} with tap {self.block['tap']!r}: use the "
                "backbone and tap of training"
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
