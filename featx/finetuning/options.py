"""What a fine-tuning is asked for, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from featx.exceptions import FineTuningError, UnknownNameError
from featx.files.safe_json import Json

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
    learning_rate : float, default 1e-3
        Of AdamW at its highest, for the head; blocks below have less, see `depth_decay`.
    depth_decay : float, default 0.7
        What the rate is multiplied by from one block to the one below it.
    warmup : float, default 0.1
        Share of the steps in which the rate rises; afterwards it falls along a cosine to 0.
    weight_decay : float, default 1e-4
        Decoupled, on kernels and not on biases and scales.
    label_smoothing : float, default 0.0
        Share of the target that is spread over the classes.
    mixing : {"none", "mixup", "cutmix"}, default "none"
        Whether pairs of images of a batch are mixed (at the cut, where there is one), and their
        labels with them.
    mixing_alpha : float, default 0.2
        Parameter of the Beta distribution of shares.
    views : int, default 0
        Number of augmented views of each image; an epoch takes the next one in turn.
    gradual : bool, default False
        Whether the head alone is trained in the first epoch, and one block more in each further.
    train_batchnorm : bool, default False
        Whether batch normalisation takes the statistics of the batch and learns new ones. Otherwise
        it does what it does in prediction, and only its scales and offsets are trained.
    patience : int, default 5
        Epochs without a better hold-out score before training stops.
    holdout : float, default 0.2
        Share of the images held out where the dataset names none.
    class_weight : None, "balanced" or mapping of class to float
        What an image of each class counts in the loss.
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
    learning_rate: float = 1e-3
    depth_decay: float = 0.7
    warmup: float = 0.1
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    mixing: Mixing = "none"
    mixing_alpha: float = 0.2
    views: int = 0
    gradual: bool = False
    train_batchnorm: bool = False
    patience: int = 5
    holdout: float = 0.2
    class_weight: str | Mapping[str, float] | None = None
    cut: Literal["auto", "cached", "pixels"] = "auto"
    mixed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high, expected) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise FineTuningError(f"{name} must be {expected}, received {value!r}")
            if not low <= value <= high:
                raise FineTuningError(f"{name} must be {expected}, received {value!r}")
        for name, choices in (("mixing", _MIXINGS), ("cut", _CUTS)):
            if getattr(self, name) not in choices:
                raise FineTuningError(
                    f"{name} must be one of {', '.join(choices)}, received {getattr(self, name)!r}"
                )
        if isinstance(self.class_weight, str) and self.class_weight != "balanced":
            raise FineTuningError(
                "class_weight must be 'balanced', or a number by class, received "
                f"{self.class_weight!r}"
            )

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> FineTuneOptions:
        """Take options by their names."""
        unknown = set(options) - set(cls.__slots__)
        if unknown:
            raise UnknownNameError("option of finetune", min(unknown), cls.__slots__)
        return cls(**options)

    def to_dict(self) -> Json:
        """Return the options as JSON types."""
        weights = self.class_weight
        plain = dict(weights) if isinstance(weights, Mapping) else weights
        return {**asdict(self), "class_weight": plain}
