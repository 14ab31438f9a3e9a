"""Where a fine-tuning starts: its options, features, held-out rows, the head, the network."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.backbones.networks import locate_network
from featx.backbones.source import BackboneSource
from featx.backbones.taps import INNER, parse_tap
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.exceptions import DatasetError, FineTuningError, UnknownNameError
from featx.exporting.verification import find_images
from featx.extraction.job import with_views
from featx.extraction.run import extract
from featx.files.identity import content_groups
from featx.files.safe_json import Json
from featx.finetuning.network import TunedNetwork, build_tuned, trainable_steps
from featx.finetuning.objectives import LOSSES, ClassObjective, Objective, ValueObjective
from featx.heads.making import make_head
from featx.heads.rows import Numbers
from featx.images.dataset import ImageDataset
from featx.images.decode import Target
from featx.images.labels import check_splits
from featx.images.loader import load_images
from featx.images.reading import Reading
from featx.models.classifier import ImageClassifier, load_model
from featx.models.evaluation import target_columns_of
from featx.models.image_model import ImageModel
from featx.models.model_file import read_details
from featx.models.regressor import ImageRegressor
from featx.models.training import require_labels
from featx.models.training_keys import describe_training
from featx.selection.transforms import Estimator
from featx.spec import BlockName, FeatureSpec, ViewPolicy

Mixing = Literal["none", "mixup", "cutmix"]
_MIXINGS = ("none", "mixup", "cutmix")
_CUTS = ("auto", "cached", "pixels")
_RANGES: dict[str, tuple[float, float, str]] = {
    "epochs": (1, math.inf, "1 or more"),
    "batch_size": (1, math.inf, "1 or more"),
    "learning_rate": (1e-12, math.inf, "a number above 0"),
    "depth_decay": (1e-6, 1, "a number above 0, at most 1"),
    "warmup": (0, 0.9, "a share of the steps from 0 to 0.9"),
    "weight_decay": (0, math.inf, "a number from 0 on"),
    "label_smoothing": (0, 0.99, "a share from 0 to less than 1"),
    "mixing_alpha": (1e-6, math.inf, "a number above 0"),
    "patience": (1, math.inf, "1 or more"),
    "views": (0, 1000, "0 to 1000"),
    "holdout": (0.02, 0.5, "a share from 0.02 to 0.5"),
}
# Measured on 97, 320, 400 and 1,600 images (docs/finetuning.md).
_RATE, _RATE_ON_FEW, _FEW_IMAGES = 1e-3, 1e-4, 200


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuneOptions:
    """How the top of a backbone is trained.

    Parameters
    ----------
    unfreeze : str, default "30%"
        From where on layers are trained: a block (``"block_15"``) or layer, the last share of the
        layers with weights (``"30%"``), all layers but the first ones (``"after:15"``), or
        ``"all"``.
    epochs : int, default 10
        The most passes over the training images.
    batch_size : int, default 32
        Images a step.
    learning_rate : float, optional
        Of AdamW at its highest, for the head; blocks below have less, see `depth_decay`. By default
        1e-3, and 1e-4 on fewer than 200 images to train on: the few steps that these give spoil at
        a high rate what the backbone has learnt, and do not mend it.
    depth_decay : float, default 0.7
        What the rate is multiplied by from one block to the one below it.
    warmup : float, default 0.1
        Share of the steps in which the rate rises; afterwards it falls along a cosine to 0.
    weight_decay : float, default 1e-4
        Decoupled, on kernels and not on biases and scales.
    loss : {"squared", "huber"}, optional
        What numbers are learnt by, for models of a regression only: the squared error (the
        default), or that of Huber, which is linear beyond one deviation of the number.
    label_smoothing : float, default 0.0
        Share of the target that is spread over the classes; not for numbers.
    mixing : {"none", "mixup", "cutmix"}, default "none"
        Whether pairs of images of a batch are mixed (at the cut, where there is one), and their
        labels or numbers with them.
    mixing_alpha : float, default 0.2
        Parameter of the Beta distribution of shares.
    views : int, optional
        Number of augmented views of each image; an epoch takes the next one in turn. Each takes
        the room and the time of the image itself in the cache, once. By default 4 for classes, and
        none for numbers, which cropping and recolouring may change.
    gradual : bool, default False
        Whether the head alone is trained in the first epoch, and one block more in each further.
    train_batchnorm : bool, default False
        Whether batch normalisation takes the statistics of the batch and learns new ones. Otherwise
        it does what it does in prediction, and only its scales and offsets are trained.
    patience : int, default 10
        Epochs without a better hold-out score before training stops.
    holdout : float, default 0.2
        Share of the images held out where the dataset names none.
    class_weight : None, "balanced" or mapping of class to float
        What an image of each class counts in the loss; not for numbers.
    cut : {"auto", "cached", "pixels"}, default "auto"
        Whether activations of the frozen part are cached, or the frozen part is run in every step.
        By default they are cached unless that takes more than half of the free disk.
    mixed : bool, default False
        Whether the network computes in bfloat16, with weights in float32. Meant for GPUs, tested
        on a CPU only.
    seed : int, default 0
        Seed of the hold-out, the order of images and the mixing.

    Raises
    ------
    FineTuningError
        If a value is out of its range.
    """

    unfreeze: str = "30%"
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float | None = None
    depth_decay: float = 0.7
    warmup: float = 0.1
    weight_decay: float = 1e-4
    loss: Literal["squared", "huber"] | None = None
    label_smoothing: float = 0.0
    mixing: Mixing = "none"
    mixing_alpha: float = 0.2
    views: int | None = None
    gradual: bool = False
    train_batchnorm: bool = False
    patience: int = 10
    holdout: float = 0.2
    class_weight: str | Mapping[str, float] | None = None
    cut: Literal["auto", "cached", "pixels"] = "auto"
    mixed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high, expected) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("learning_rate", "views"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise FineTuningError(f"{name} must be {expected}, received {value!r}")
            if not low <= value <= high:
                raise FineTuningError(f"{name} must be {expected}, received {value!r}")
        for name, choices in (("mixing", _MIXINGS), ("cut", _CUTS), ("loss", LOSSES)):
            if name == "loss" and self.loss is None:
                continue
            if getattr(self, name) not in choices:
                raise FineTuningError(
                    f"{name} must be one of {', '.join(choices)}, received {getattr(self, name)!r}"
                )
        if isinstance(self.class_weight, str) and self.class_weight != "balanced":
            raise FineTuningError(
                "class_weight must be 'balanced', or a number by class, received "
                f"{self.class_weight!r}"
            )

    def rate_for(self, images: int) -> float:
        """Return the learning rate of the head, at its highest, for so many training images."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _RATE if images >= _FEW_IMAGES else _RATE_ON_FEW

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> FineTuneOptions:
        """Take options by their names."""
        unknown = set(options) - set(cls.__slots__)
        if unknown:
            raise UnknownNameError("option of finetune", min(unknown), cls.__slots__)
        return cls(**options)

    def to_dict(self) -> Json:
        """Return the options as JSON types; ``loss`` only where it is chosen."""
        weights = self.class_weight
        plain = dict(weights) if isinstance(weights, Mapping) else weights
        options = {**asdict(self), "class_weight": plain}
        if self.loss is None:
            del options["loss"]
        return options


Array: TypeAlias = NDArray[np.generic]
Arrays: TypeAlias = list[Array]


@dataclass(slots=True, eq=False)
class Start:
    """Where training starts: the features, who is held out, and the heads on the others."""

    model: ImageClassifier | ImageRegressor  # as loaded
    source: BackboneSource
    block: BlockName  # that the network ends with
    features: Features  # of the backbone as it is
    y: NDArray[np.str_]
    objective: Objective  # the classes or numbers of all rows
    rows: Numbers  # that are trained on, that choose the epoch, and that have no say in anything
    held_out: Numbers
    test: Numbers
    named: str  # the split that is held out, empty where it was drawn
    first: Estimator  # that the network starts with, on `block`
    head: Estimator  # the model's own where it was trained on the rows, else one of its kind
    head_block: BlockName  # what the model reads
    started_from: str  # which head `first` is, in words
    data: object  # the rest as `finetune` takes it
    options: FineTuneOptions
    cache: str | os.PathLike[str] | None
    engine: str
    view_policy: str | ViewPolicy | None

    def head_answers(self, rows: Numbers) -> NDArray[np.float64]:
        """Return what the model's head says of rows, from cached features, shape (n, k)."""
        X = self.features.matrix(**self.head_block)[rows].astype(np.float32)
        return self.objective.of_head(self.head, X)

    @property
    def views(self) -> int:
        """How many views each image has."""
        return self.options.views or 0

    def taps(self, layers: Sequence[str]) -> Json:
        """Return how layers are extracted, as arguments of `featx.extract`, views included."""
        return {
            **self.model.reading(),
            "taps": [f"{layer}:flatten" for layer in layers],
            "views": self.views,
            "view_policy": self.view_policy,
            "cache": self.cache,
            "engine": self.engine,
        }


def prepare_start(
    model: ImageClassifier | ImageRegressor | str | os.PathLike[str],
    data: object,
    options: FineTuneOptions,
    *,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    view_policy: str | ViewPolicy | None = None,
    trust: bool = False,
    reading: Reading | None = None,
    progress: bool = False,
) -> Start:
    """Return where training starts; parameters and errors are those of `finetune`."""
    trained_on = ""
    if not isinstance(model, ImageModel):
        trained_on = read_details(model)["training"].get("sha256", "")
        model = load_model(model, cache=cache, weights=weights, engine=engine, trust=trust)
    if model.multilabel:
        raise FineTuningError(
            "the model gives an image several labels: fine-tuning takes models of one label an "
            "image. Train one with `featx train` without --multilabel"
        )
    kind: type[Objective] = ValueObjective if model.regression else ClassObjective
    kind.check(
        loss=options.loss,
        label_smoothing=options.label_smoothing,
        class_weight=options.class_weight,
    )
    if options.views is None:
        options = replace(options, views=kind.views)
    branch, *others = model.branches
    backbone = branch.choice.backbone
    if others:
        raise FineTuningError(
            f"the model reads {model.block['backbone']}: fine-tuning takes one backbone. Train a "
            f"model on one of them first, with `featx train -b {backbone}`"
        )
    if (network := locate_network(backbone)) is not None and network[0].opaque:
        raise FineTuningError(
            f"{backbone!r} is {network[0].summary}, one function without layers to train: "
            "expected a backbone of the catalogue, file: or hub:; train a model on one of these "
            "first"
        )
    (source,) = model.sources()
    branches = model.reading()
    block: BlockName = {"backbone": source.name, "tap": model.block["tap"]}
    tap = branch.taps[0]
    if len(branch.taps) > 1 or parse_tap(tap).layer == INNER:
        tap = _LAST_TAP
        branches["taps"] = list(dict.fromkeys([*branch.taps, tap]))
    reading_options = (reading or Reading()).options
    reading_options["target_columns"] = target_columns_of(model.value_names_, data)
    if any(reading_options.values()):
        data = ImageDataset.from_any(data, **reading_options)
    features = extract(data, **branches, cache=cache, engine=engine, progress=progress)
    y = require_labels(features)
    objective = kind.of(model, features, y)
    rows, held_out, test, named = _sides(features, objective, options)
    objective = objective.scaled_by(rows)

    def fitted(head: Any, block: BlockName) -> Estimator:
        made = make_head(head, seed=model.random_state, regression=objective.regression)
        X = features.matrix(**block)[rows].astype(np.float32)
        estimator: Estimator = made.fit(X, objective.learnt(y, rows))
        return estimator

    head = model.head_
    if trained_on != describe_training(features, y, rows)["sha256"]:
        head = fitted(model.head, block)
    last: BlockName = {"backbone": source.name, "tap": tap}
    first, started_from = head, "the model's head"
    if last != block:
        first, started_from = _head_on(last, model.head, objective.head, fitted)
        _LOG.warning(
            "the model reads %s: fine-tuning starts from %s, and compares its result with the "
            "model's own head",
            model.shown_block,
            started_from,
        )
    return Start(
        model=model,
        source=source,
        block=last,
        features=features,
        y=y,
        objective=objective,
        rows=rows,
        held_out=held_out,
        test=test,
        named=named,
        first=first,
        head=head,
        head_block=block,
        started_from=started_from,
        data=data,
        options=options,
        cache=cache,
        engine=engine,
        view_policy=view_policy,
    )


_LAST_TAP = "avg"


def _head_on(
    block: BlockName, kind: Any, usual: str, fitted: Callable[[Any, BlockName], Estimator]
) -> tuple[Estimator, str]:
    """Return a head fitted on a block, of this kind where a network can start with it."""
    head = fitted(kind, block)
    try:
        trainable_steps(head)
    except FineTuningError:
        head, kind = fitted(usual, block), usual
    name = kind if isinstance(kind, str) else type(kind).__name__
    return head, f"a new head ({name}) on the tap {block['tap']}"


def _sides(
    features: Features, objective: Objective, options: FineTuneOptions
) -> tuple[Numbers, Numbers, Numbers, str]:
    splits, labelled = features.splits, objective.labelled
    check_splits(splits, repr(features.name))
    split = np.full(len(labelled), "") if splits is None else splits
    groups = content_groups(features.keys, features.groups)
    test = np.flatnonzero(labelled & (split == "test"))
    held_out = np.flatnonzero(labelled & (split == "val"))
    rows = np.flatnonzero(labelled & ~np.isin(split, ("test", "val")))
    named = "val" if held_out.size else ""
    if not held_out.size:
        if not rows.size:
            raise DatasetError(f"{features.name!r} has no labelled image to train on")
        training, holding = objective.draw(rows, groups[rows], options.holdout, options.seed)
        rows, held_out = rows[training], rows[holding]
    # What is in the hold-out or the test twice, or has a group there, is not trained on.
    rows = rows[~np.isin(groups[rows], groups[np.concatenate([held_out, test])])]
    objective.check_sides(rows, held_out)
    return rows, held_out, test, named


_LOG = logging.getLogger("featx")
_SHARE_OF_DISK = 0.5


def prepare_material(start: Start, *, progress: bool = False) -> tuple[TunedNetwork, Inputs]:
    """Build the network, and bring what it takes into the cache."""
    network = network_for(start)
    if network.from_pixels:
        plain = start.source.spec(image=start.model.image)
        specs = with_views(plain, start.views, start.view_policy)
        images = find_images(start.data, start.cache)
        numbers = {path: row for row, path in enumerate(images.paths)}
        images = images.subset([numbers[path] for path in start.features.paths])
        return network, Pixels(images, specs)
    arguments = start.taps(network.cut.layers)
    activations = extract(start.data, **arguments, progress=progress)
    if not np.array_equal(activations.keys, start.features.keys):
        raise DatasetError(
            f"the images of {start.features.name!r} changed while they were read: call it again"
        )
    shapes = [tuple(int(side) for side in t.shape[1:]) for t in network.cut.tensors]
    taps = arguments["taps"]
    return network, CachedActivations(activations, start.source.name, taps, shapes)


def network_for(start: Start) -> TunedNetwork:
    """Build the network that options ask for; errors are those of `build_tuned`."""
    network = _built(start, from_pixels=start.options.cut == "pixels")
    if network.from_pixels or start.options.cut != "auto":
        return network
    needed = activation_bytes(network, start)
    free = CacheLayout.at(start.cache).free_bytes()
    if needed <= _SHARE_OF_DISK * free:
        return network
    _LOG.warning(
        "the activations at the cut take %.1f GB, more than half of the %.1f GB that are "
        "free: the frozen part is run in every step instead",
        needed / 1e9,
        free / 1e9,
    )
    return _built(start, from_pixels=True)


def _built(start: Start, *, from_pixels: bool) -> TunedNetwork:
    return build_tuned(
        start.source,
        start.block["tap"],
        start.objective.to_network(trainable_steps(start.first)),
        start.options.unfreeze,
        from_pixels=from_pixels,
        train_batchnorm=start.options.train_batchnorm,
        # Not float16, whose range would ask for scaled losses.
        mixed="bfloat16" if start.options.mixed else None,
    )


def activation_bytes(network: TunedNetwork, start: Start) -> int:
    """Return what the activations at the cut of all images and views take in the cache."""
    each: int = sum(math.prod(tensor.shape[1:]) * 4 for tensor in network.cut.tensors)
    return each * len(start.features) * (1 + start.views)


class Inputs(Protocol):
    """Gives batches of what a model takes."""

    views: int
    """Number of views beside the image itself."""

    def batches(self, rows: Numbers, size: int, view: int | None = None) -> Iterator[Arrays]:
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
        views = features.views(backbone=backbone, tap=taps[0])
        self.views, self._shapes = len(views), shapes
        self._matrices = [
            [features.matrix(backbone=backbone, tap=tap, view=view) for tap in taps]
            for view in [None, *views]
        ]

    def batches(self, rows: Numbers, size: int, view: int | None = None) -> Iterator[Arrays]:
        """Give rows in their order, `size` at a time."""
        matrices = self._matrices[0 if view is None else 1 + view]
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            yield [
                np.asarray(matrix[some], np.float32).reshape(len(some), *shape)
                for matrix, shape in zip(matrices, self._shapes, strict=True)
            ]


class Pixels:
    """Pixels, decoded whenever they are needed."""

    def __init__(self, images: ImageDataset, specs: Sequence[FeatureSpec]) -> None:
        self._images, self.views = images, len(specs) - 1
        self._targets = [Target(s.input_size_px, s.image, s.views) for s in specs]

    def batches(self, rows: Numbers, size: int, view: int | None = None) -> Iterator[Arrays]:
        """Give rows in their order, `size` at a time."""
        target = self._targets[0 if view is None else 1 + view]
        waiting: dict[int, NDArray[np.uint8]] = {}
        numbers = {int(row): number for number, row in enumerate(rows)}
        begin = 0
        for loaded in load_images(self._images, rows.tolist(), [target]):
            if loaded.status != "decoded":
                raise DatasetError(
                    f"{self._images.paths[loaded.index]} was read before and cannot be read now: "
                    f"{loaded.reason}. Restore it, or extract the data again"
                )
            waiting[numbers[loaded.index]] = loaded.pixels[0]
            # Images come nearly in their order; a batch waits for all of its own.
            while begin < len(rows):
                batch = range(begin, min(begin + size, len(rows)))
                if not all(number in waiting for number in batch):
                    break
                yield [np.stack([waiting.pop(number) for number in batch])]
                begin = batch.stop
