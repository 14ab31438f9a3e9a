"""`predict`: any number of images, a row for each, also for those that cannot be read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from itertools import chain, groupby, islice
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from featx.cache.layout import CacheLayout
from featx.cache.manifest import FAILED, find_manifest
from featx.exceptions import FeaturesError
from featx.extraction.job import images_of
from featx.files.stores import as_address, is_bucket
from featx.heads.rows import Floats
from featx.images.dataset import ImageDataset
from featx.images.files import archive_ending, is_image_name
from featx.images.labels import SEPARATOR
from featx.images.reading import ReadingOptions
from featx.images.scan import image_names
from featx.images.sources import (
    is_collection,
    is_frame,
    is_picture,
    listed_paths,
    listed_pictures,
)
from featx.models.image_features import ImageFeatures, as_image_dataset
from featx.selection.value_metrics import COVERAGE, check_coverage

_CHUNK = 4096
_LOG = logging.getLogger("featx")


@dataclass(frozen=True, slots=True)
class Value:
    """A number that a model predicts.

    Parameters
    ----------
    name : str
        What it is called: ``value``, or a column of the table of training.
    value : float
        The prediction.
    low, high : float or None
        Between which the true number lies, in nine of ten images by default; None where the model
        was trained without measuring that.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one image.

    Parameters
    ----------
    path : str
        The image as it was named; ``array:000000`` of an array or a PIL image.
    top : tuple of (label, probability)
        The label that the model decides on, then the most probable others; of several labels all
        that it gives, the most probable first. Empty when the image could not be read, and where
        none of several labels is given.
    status : {"ok", "failed"}
        Whether it could be read.
    reason : str
        Why not.
    unknown : bool or None
        Whether the image is unlike those of training; None where that was not asked for.
    distance : float or None
        How unlike, in units of the threshold: above 1 is unknown.
    unsure : bool or None
        Whether a person should look: the set is not exactly one label, or, of several labels an
        image, leaves one of them open. None where that was not asked for.
    label_set : tuple of labels, or None
        The labels that the image may have, by the coverage of the model, in the order of `top`.
    values : tuple of Value
        The numbers that a model of a regression predicts; `top` is then empty.
    """

    path: str
    top: tuple[tuple[Any, float], ...]
    status: str
    reason: str = ""
    unknown: bool | None = None
    distance: float | None = None
    unsure: bool | None = None
    label_set: tuple[Any, ...] | None = None
    values: tuple[Value, ...] = ()


def predict(
    model: ImageFeatures,
    images: Any,
    *,
    top_k: int | None = None,
    unknown: bool = False,
    abstain: bool = False,
    coverage: float | None = None,
    **reading: Unpack[ReadingOptions],
) -> Iterator[Prediction]:
    """Predict images in their order, a few thousand at a time.

    Memory does not grow with their number: names are taken as they are needed, and what was
    predicted is forgotten when the caller has it.

    Parameters
    ----------
    model : ImageClassifier, ImageRegressor or Predictor
        Fitted.
    images : str, path, iterable of these, ndarray, list or iterator of images, table, ImageDataset
        Files, folders, archives and patterns, see `featx.images.scan.image_names`, also as bytes,
        as an array (n,) or (n, 1), or as a column of pandas or polars; pixels of shape
        (n, h, w), (n, h, w, c) or, of one image, (h, w, 3); PIL images, bytes of image files and
        open files, one or a list; one table, one file of arrays, or the name of a dataset. Labels
        are not looked at.
    top_k : int, optional
        How many classes of each: by default 1, or, of a model that gives several labels, all that
        it gives: those above 0.5, or above the thresholds that it has learnt.
    unknown : bool, default False
        Whether to mark images that are unlike those of training.
    abstain : bool, default False
        Whether to mark images that a person should look at, see `Prediction`.
    coverage : float, optional
        Of a regression: share of images whose true number lies between `low` and `high`, 0.9 by
        default.
    **reading
        How a table is read, as for `featx.extract`: ``root``, ``path_column``, ... With
        ``follow_urls``, addresses among several names are read; one that is given alone always is.

    Yields
    ------
    Prediction
        One for each image.

    Raises
    ------
    FeaturesError
        If `unknown` or `abstain` is asked of a model that was saved without what it takes, `top_k`
        or `abstain` of a regression, or `coverage` of classes.
    DatasetError
        If `images` is a folder that holds no image, or a pattern that matches none; among several
        such a name has the status failed.

    Examples
    --------
    >>> for row in predict(model, "new/*.jpg", top_k=3):  # doctest: +SKIP
    ...     print(row.path, row.top, row.status)
    """
    check_options(model, top_k=top_k, unknown=unknown, abstain=abstain, coverage=coverage)
    chunks = image_chunks(images, model.cache, **reading)
    if model.regression:
        return _value_rows(model, chunks, unknown, COVERAGE if coverage is None else coverage)
    return _rows(model, chunks, top_k, unknown, abstain)


def check_options(
    model: ImageFeatures,
    *,
    top_k: int | None,
    unknown: bool,
    abstain: bool,
    coverage: float | None,
) -> None:
    """Refuse what a model cannot say, as `predict` does."""
    if unknown and getattr(model, "novelty_", None) is None:
        raise FeaturesError(
            "the model does not know what is unlike its training images: train it again with "
            "featx train or featx search, which measure it on held-out images"
        )
    if model.regression and top_k is not None:
        raise FeaturesError(
            "the model predicts numbers, of which there is no top: leave --top-k (top_k=...) out"
        )
    if coverage is not None:
        check_coverage(coverage)
        if not model.regression:
            raise FeaturesError(
                "the model predicts classes, which have no intervals: leave --coverage "
                "(coverage=...) out"
            )
    if model.regression and abstain:
        raise FeaturesError(
            "the model predicts numbers, which have intervals and no sets: leave --abstain "
            "(abstain=True) out"
        )
    if abstain and model.rule.sets is None:
        raise FeaturesError(
            "the model has no sets with a stated coverage, by which it could be unsure: train it "
            "again with featx train or featx search and --coverage 0.95 (coverage=0.95)"
        )


# How a cell is written as text; others are as they are.
_TEXTS: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        **dict.fromkeys(("probability", "distance"), "{:.6f}".format),
        **dict.fromkeys(("value", "low", "high"), repr),
        **dict.fromkeys(("unknown", "unsure"), lambda mark: str(mark).lower()),
    }
)


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """How predictions are rows of a table, of which one image may have several."""

    regression: bool
    unknown: bool = False
    abstain: bool = False

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        marks = ["unknown", "distance"] * self.unknown + ["unsure", "set"] * self.abstain
        if self.regression:
            return ["path", "name", "value", "low", "high", "status", "reason", *marks]
        return ["path", "label", "probability", "status", "reason", "rank", *marks]

    def rows(self, prediction: Prediction) -> Iterator[list[Any]]:
        """Yield the rows of one image; None is an empty cell."""
        path, status, reason = prediction.path, prediction.status, prediction.reason
        marks: list[Any] = [prediction.unknown, prediction.distance] if self.unknown else []
        if self.abstain:
            marks += [prediction.unsure, joined_set(prediction)]
        if self.regression:
            if status == "failed":
                yield [path, None, None, None, None, status, reason, *marks]
            for value in prediction.values:
                yield [path, *astuple(value), status, reason, *marks]
            return
        if not prediction.top:
            yield [path, None, None, status, reason, None, *marks]
        for rank, (label, probability) in enumerate(prediction.top, start=1):
            yield [path, label, probability, status, reason, rank, *marks]

    def texts(self, prediction: Prediction) -> Iterator[list[Any]]:
        """Yield the rows of one image as they are written to CSV."""
        texts = [_TEXTS.get(column) for column in self.columns]
        for row in self.rows(prediction):
            yield [
                "" if cell is None else text(cell) if text else cell
                for cell, text in zip(row, texts, strict=True)
            ]


def joined_set(prediction: Prediction) -> str:
    """Return the labels that an image may have as one text."""
    return SEPARATOR.join(map(str, prediction.label_set or ()))


def _value_rows(
    model: ImageFeatures, chunks: Iterator[ImageDataset], unknown: bool, coverage: float
) -> Iterator[Prediction]:
    for chunk in chunks:
        parts, ledger = model.transform_images(chunk, views=model.views_averaged, on_error="skip")
        any_usable = len(ledger.usable) > 0
        numbers = model.average_values(parts) if any_usable else np.empty((0, 0))
        low, high = np.full_like(numbers, np.nan), np.full_like(numbers, np.nan)
        if model.residuals_ is not None and any_usable:
            low, high = model.interval(numbers, coverage)
        distances = model.novelty_.distance(parts[0]) if unknown and any_usable else None
        position = 0
        for number in range(len(chunk)):
            name = chunk.address(number)
            if ledger.status[number] == FAILED:
                yield Prediction(name, (), "failed", ledger.reason[number])
                continue
            ends = [
                [None if np.isnan(end) else float(end) for end in column[position]]
                for column in (low, high)
            ]
            columns = zip(model.value_names_, numbers[position].tolist(), *ends, strict=True)
            values = tuple(Value(*column) for column in columns)
            distance = None if distances is None else float(distances[position])
            strange = None if distance is None else distance > 1
            yield Prediction(name, (), "ok", "", strange, distance, values=values)
            position += 1


def _rows(
    model: ImageFeatures,
    chunks: Iterator[ImageDataset],
    top_k: int | None,
    unknown: bool,
    abstain: bool,
) -> Iterator[Prediction]:
    several = model.multilabel and top_k is None
    for chunk in chunks:
        parts, ledger = model.transform_images(chunk, views=model.views_averaged, on_error="skip")
        any_usable = len(ledger.usable) > 0
        proba = model.average_proba(parts) if any_usable else np.empty((0, len(model.classes_)))
        decided = _decided(model, proba)
        order = np.lexsort((-proba, ~decided))
        best = order if several else order[:, : max(1, top_k or 1)]
        unsure = model.rule.unsure(proba) if abstain else None
        sets = model.rule.label_sets(proba) if abstain else decided
        distances = model.novelty_.distance(parts[0]) if unknown and any_usable else None
        labels = model.classes_.tolist()
        position = 0
        for number in range(len(chunk)):
            name = chunk.address(number)
            if ledger.status[number] == FAILED:
                yield Prediction(name, (), "failed", ledger.reason[number])
                continue
            top = tuple(
                (labels[c], float(proba[position, c]))
                for c in best[position]
                if not several or decided[position, c]
            )
            marks: dict[str, Any] = {}
            if distances is not None:
                distance = float(distances[position])
                marks |= {"unknown": distance > 1, "distance": distance}
            if unsure is not None:
                label_set = tuple(labels[c] for c in order[position] if sets[position, c])
                marks |= {"unsure": bool(unsure[position]), "label_set": label_set}
            yield Prediction(name, top, "ok", **marks)
            position += 1


def _decided(model: ImageFeatures, proba: Floats) -> NDArray[np.bool_]:
    """Return which labels a model gives, (n, k): one a row, or of several any number."""
    answers = model.rule.decide(proba)
    if answers.ndim == 1:
        answers = answers[:, None] == np.arange(proba.shape[1])
    return answers > 0


def image_chunks(
    images: Any, cache: str | os.PathLike[str] | None, **reading: Unpack[ReadingOptions]
) -> Iterator[ImageDataset]:
    """Yield the images of whatever `predict` takes, up to 4,096 at a time, as they are needed."""
    follow = reading.get("follow_urls", False)
    is_name = isinstance(images, str | os.PathLike)
    if set(reading) - {"follow_urls"} or (is_name and is_collection(os.fspath(images))):
        images = ImageDataset.from_any(images, **reading)
    elif (named := stored_images(images, cache)) is not None:
        images = named
    if isinstance(images, Iterator) and not is_picture(images):
        first = next(images, None)
        images = chain([] if first is None else [first], images)
        if is_picture(first) or getattr(first, "ndim", 0) > 1:
            yield from _streamed(images)
            return
    if is_frame(images) or listed_pictures(images) is not None:
        images = ImageDataset.from_any(images, follow_urls=follow)
    alone = isinstance(images, str | bytes | os.PathLike)
    if alone:
        images = [images]
    paths = listed_paths(images)
    if paths is not None:
        images = iter(paths)
    if not isinstance(images, ImageDataset):
        if isinstance(images, Iterable) and not _are_pixels(images):
            left_out: list[tuple[str, str]] = []
            names = image_names(images, strict=alone, left_out=left_out)
            yield from _named(names, follow=follow or alone)
            if left_out:
                _LOG.warning(
                    "%s files were left out, such as %s: %s", f"{len(left_out):,}", *left_out[0]
                )
            return
        dataset = as_image_dataset(images)
        if dataset is None:
            raise FeaturesError(
                f"expected images, received {type(images).__name__}: pass files, folders, "
                "patterns, arrays of pixels, PIL images or bytes of image files"
            )
        images = dataset
    yield from _pieces(images)


def stored_images(name: object, cache: str | os.PathLike[str] | None = None) -> ImageDataset | None:
    """Return the images of a dataset of the cache, None where there is none of this name."""
    if not isinstance(name, str) or os.path.lexists(name):
        return None
    layout = CacheLayout.at(cache)
    if not layout.dataset(name).is_file():
        return None
    manifest = find_manifest(layout, name)
    # Names of files may be alike where those of datasets differ.
    return images_of(manifest) if manifest.name == name else None


def _streamed(images: Iterator[Any]) -> Iterator[ImageDataset]:
    """Yield pictures and arrays as an iterator gives them, numbered throughout."""
    count = 0
    while chunk := list(islice(images, _CHUNK)):
        dataset = ImageDataset.from_arrays(chunk)
        numbers = range(count, count + len(chunk))
        yield replace(dataset, paths=tuple(f"array:{number:06d}" for number in numbers))
        count += len(chunk)


def _named(names: Iterable[str], *, follow: bool) -> Iterator[ImageDataset]:
    """Yield files by their names, and what is in archives and stores among them."""
    for kind, group in groupby(names, lambda name: _kind(name, follow=follow)):
        if kind == "files":
            while chunk := list(islice(group, _CHUNK)):
                yield ImageDataset.from_paths(chunk, follow_urls=follow)
            continue
        for name in group:
            if kind == "archive":
                # Where it is also for a process with another working folder.
                images = ImageDataset.from_any(os.path.abspath(name))
            else:
                images = ImageDataset.from_store(name, splits="none")
            paths = tuple(f"{name.rstrip('/')}/{path}" for path in images.paths)  # as it was typed
            yield from _pieces(replace(images, root=None, paths=paths))


def _kind(name: str, *, follow: bool) -> str:
    """Return what a name is of: an archive, a store, or files."""
    address = as_address(name)
    if address is None:
        return "archive" if archive_ending(name) else "files"
    return "store" if follow and is_bucket(address) and not is_image_name(address) else "files"


def _pieces(images: ImageDataset) -> Iterator[ImageDataset]:
    for start in range(0, len(images), _CHUNK):
        yield images.subset(list(range(start, min(start + _CHUNK, len(images)))))


def _are_pixels(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.dtype.kind not in "USO"
    return isinstance(images, list | tuple) and bool(images) and hasattr(images[0], "__array__")
