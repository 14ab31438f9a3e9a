"""Where a fine-tuning starts: features, held-out rows, the head on all others, the network."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.networks import locate_network
from featx.backbones.source import BackboneSource
from featx.backbones.taps import parse_tap
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.exceptions import DatasetError, FineTuningError, UnknownNameError
from featx.exporting.samples import find_images
from featx.extraction.job import with_views
from featx.extraction.run import extract
from featx.files.keys import related_rows
from featx.finetuning.network import TunedNetwork, build_tuned, trainable_steps
from featx.finetuning.options import FineTuneOptions
from featx.finetuning.trainer import CachedActivations, Inputs, Pixels
from featx.heads.making import make_head
from featx.images.labels import check_splits
from featx.models.classifier import ImageClassifier, load_model
from featx.models.model_file import read_details
from featx.models.training import describe_training, require_labels
from featx.selection.splits import hold_out


@dataclass(slots=True, eq=False)
class Start:
    """Where training starts: the features, who is held out, and the head on the others.

    Parameters
    ----------
    model : ImageClassifier
        As loaded.
    source : BackboneSource
        Its backbone.
    tap : str
        Its tap.
    features : Features
        Of the backbone as it is.
    y : ndarray of shape (n,)
        Labels of its rows.
    codes : ndarray of shape (n,), int
        Class of each row, -1 where it has no label.
    rows, held_out, test : ndarray of int
        Rows that are trained on, that choose the epoch, and that have no say in anything.
    named : str
        The split that is held out, empty where it was drawn.
    head : estimator
        The model's own where it was trained on `rows`, else one of its kind that is.
    """

    model: ImageClassifier
    source: BackboneSource
    tap: str
    features: Features
    y: NDArray[np.str_]
    codes: NDArray[np.intp]
    rows: NDArray[np.intp]
    held_out: NDArray[np.intp]
    test: NDArray[np.intp]
    named: str
    head: Any

    @property
    def block(self) -> dict[str, Any]:
        """Names the block of the features."""
        return {"backbone": self.source.name, "tap": self.tap}

    def probabilities(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return what the head says of rows, from cached features."""
        X = self.features.matrix(**self.block)[rows]
        found: NDArray[np.float64] = self.head.predict_proba(X.astype(np.float32))
        return found


def prepare_start(
    model: ImageClassifier | str | os.PathLike[str],
    data: Any,
    options: FineTuneOptions,
    *,
    cache: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    trust: bool = False,
    progress: bool = False,
) -> Start:
    """Return where training starts; parameters and errors are those of `finetune`."""
    trained_on = ""
    if not isinstance(model, ImageClassifier):
        trained_on = read_details(model)["training"].get("sha256", "")
        model = load_model(model, cache=cache, weights=weights, engine=engine, trust=trust)
    if model.multilabel:
        raise FineTuningError(
            "the model gives an image several labels: fine-tuning takes models of one label an "
            "image. Train one with `featx train` without --multilabel"
        )
    if (network := locate_network(model.backbone)) is not None and network[0].opaque:
        raise FineTuningError(
            f"{model.backbone!r} is {network[0].summary}, one function without layers to train: "
            "expected a backbone of the catalogue, file: or hub:; train a model on one of these "
            "first"
        )
    source, tap = model.source(), str(parse_tap(model.tap))
    features = extract(
        data,
        **model.choice.arguments(),
        image=model.image,
        taps=tap,
        cache=cache,
        engine=engine,
        progress=progress,
    )
    y = require_labels(features)
    codes = _codes(model, features, y)
    rows, held_out, test, named = _sides(features, y, codes, options)
    if trained_on == describe_training(features, y, rows)["sha256"]:
        head = model.head_
    else:
        head = make_head(model.head, seed=model.random_state)
        X = features.matrix(backbone=source.name, tap=tap)[rows]
        head.fit(X.astype(np.float32), y[rows])
    return Start(model, source, tap, features, y, codes, rows, held_out, test, named, head)


def _codes(model: ImageClassifier, features: Features, y: NDArray[np.str_]) -> NDArray[np.intp]:
    classes = [str(name) for name in model.classes_]
    strangers = sorted({str(label) for label in y[features.labels >= 0]} - set(classes))
    if strangers:
        raise FineTuningError(
            f"{features.name!r} has classes that the model does not know: "
            f"{', '.join(strangers[:5])}; it knows {', '.join(classes[:10])}. Train a head on this "
            "data first"
        )
    place = {name: code for code, name in enumerate(classes)}
    return np.array([place.get(str(label), -1) for label in y], np.intp)


def _sides(
    features: Features, y: NDArray[np.str_], codes: NDArray[np.intp], options: FineTuneOptions
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], str]:
    splits = features.splits
    check_splits(splits, repr(features.name))
    split = np.full(len(codes), "") if splits is None else splits
    groups = related_rows(features.keys, features.groups)
    labelled = codes >= 0
    test = np.flatnonzero(labelled & (split == "test"))
    held_out = np.flatnonzero(labelled & (split == "val"))
    rows = np.flatnonzero(labelled & ~np.isin(split, ("test", "val")))
    named = "val" if held_out.size else ""
    if not held_out.size:
        if not rows.size:
            raise DatasetError(f"{features.name!r} has no labelled image to train on")
        training, holding = hold_out(
            codes[rows], share=options.holdout, groups=groups[rows], seed=options.seed
        )
        rows, held_out = rows[training], rows[holding]
    # What is in the hold-out or the test twice, or has a group there, is not trained on.
    rows = rows[~np.isin(groups[rows], groups[np.concatenate([held_out, test])])]
    for name, some in (("training images", rows), ("hold-out", held_out)):
        lacking = np.setdiff1d(np.unique(codes[labelled]), codes[some])
        if lacking.size:
            label = str(y[codes == lacking[0]][0])
            raise DatasetError(
                f"the {name} ({len(some)} images) have no image of class {label!r}: fine-tuning "
                "has to see every class on both sides. Give more images of it, another --holdout "
                "or --seed, or splits named train and val"
            )
    return rows, held_out, test, named


def class_weights(options: FineTuneOptions, start: Start) -> NDArray[np.float64] | None:
    """Return what an image of each class counts, shape (k,), None where all count the same."""
    asked = options.class_weight
    if asked is None:
        return None
    names = [str(name) for name in start.model.classes_]
    if isinstance(asked, str):
        counts = np.bincount(start.codes[start.rows], minlength=len(names))
        balanced: NDArray[np.float64] = len(start.rows) / (len(names) * np.maximum(counts, 1))
        return balanced
    strangers = set(asked) - set(names)
    if strangers:
        raise UnknownNameError("class in class_weight", min(strangers), names)
    return np.array([float(asked.get(name, 1.0)) for name in names])


_LOG = logging.getLogger("featx")
_SHARE_OF_DISK = 0.5


def prepare_material(
    start: Start,
    data: Any,
    options: FineTuneOptions,
    *,
    cache: str | os.PathLike[str] | None,
    engine: str,
    view_policy: Any,
    progress: Any,
) -> tuple[TunedNetwork, Inputs]:
    """Build the network, and bring what it takes into the cache."""
    network = network_for(start, options, cache=cache)
    if network.from_pixels:
        plain = start.source.spec(image=start.model.image)
        specs = with_views(plain, options.views, view_policy)
        return network, Pixels(_images(start.features, data, cache), specs)
    taps = [f"{layer}:flatten" for layer in network.cut.layers]
    activations = extract(
        data,
        **start.model.choice.arguments(),
        image=start.model.image,
        taps=taps,
        views=options.views,
        view_policy=view_policy,
        cache=cache,
        engine=engine,
        progress=bool(progress),
    )
    if not np.array_equal(activations.keys, start.features.keys):
        raise DatasetError(
            f"the images of {start.features.name!r} changed while they were read: call it again"
        )
    shapes = [tuple(int(side) for side in t.shape[1:]) for t in network.cut.tensors]
    return network, CachedActivations(activations, start.source.name, taps, shapes)


def network_for(
    start: Start, options: FineTuneOptions, *, cache: str | os.PathLike[str] | None
) -> TunedNetwork:
    """Build the network that options ask for; errors are those of `build_tuned`."""
    network = _built(start, options, from_pixels=options.cut == "pixels")
    if network.from_pixels or options.cut != "auto":
        return network
    needed = activation_bytes(network, start, options)
    free = CacheLayout.at(cache).free_bytes()
    if needed <= _SHARE_OF_DISK * free:
        return network
    _LOG.warning(
        "the activations at the cut take %.1f GB, more than half of the %.1f GB that are "
        "free: the frozen part is run in every step instead",
        needed / 1e9,
        free / 1e9,
    )
    return _built(start, options, from_pixels=True)


def _built(start: Start, options: FineTuneOptions, *, from_pixels: bool) -> TunedNetwork:
    return build_tuned(
        start.source,
        start.tap,
        trainable_steps(start.head),
        options.unfreeze,
        from_pixels=from_pixels,
        train_batchnorm=options.train_batchnorm,
        # Not float16, whose range would ask for scaled losses.
        mixed="bfloat16" if options.mixed else None,
    )


def activation_bytes(network: TunedNetwork, start: Start, options: FineTuneOptions) -> int:
    """Return what the activations at the cut of all images and views take in the cache."""
    each: int = sum(math.prod(tensor.shape[1:]) * 4 for tensor in network.cut.tensors)
    return each * len(start.features) * (1 + options.views)


def _images(features: Features, data: Any, cache: Any) -> Any:
    """Return the images of the rows of features, in their order."""
    images = find_images(data, cache)
    place = {path: row for row, path in enumerate(images.paths)}
    return images.subset([place[path] for path in features.paths])
