"""What a fine-tuning would take, from a few of its steps."""

from __future__ import annotations

import math
import os
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featx.extraction.plan import plan_extraction
from featx.finetuning.material import activation_bytes, network_for
from featx.finetuning.network import TunedNetwork
from featx.finetuning.optimizer import make_optimizer
from featx.finetuning.options import FineTuneOptions
from featx.finetuning.start import prepare_start
from featx.memory import peak_bytes
from featx.models.classifier import ImageClassifier

_STEPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """What a fine-tuning would take.

    Parameters
    ----------
    images, held_out : int
        Images that are trained on, and that choose the epoch.
    cut : list of str
        Layers whose activations are cached; none where training starts from pixels.
    trained_layers, trained_parameters, frozen_parameters : int
        Of the backbone up to the tap.
    activation_bytes : int
        Of the cache for all images and views.
    extraction_s : float
        Seconds for those that the cache does not have.
    epoch_s, seconds : float
        Seconds of an epoch, and of all with the extraction.
    memory_bytes : int, optional
        Peak of the process, with batches as asked for; None where it cannot be told.
    """

    images: int
    held_out: int
    cut: list[str]
    trained_layers: int
    trained_parameters: int
    frozen_parameters: int
    activation_bytes: int
    extraction_s: float
    epoch_s: float
    seconds: float
    memory_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def rehearse(
    model: ImageClassifier | str | os.PathLike[str],
    data: Any,
    *,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    view_policy: Any = None,
    trust: bool = False,
    **options: Any,
) -> Rehearsal:
    """Say what `featx.finetune` would take: a few steps are run on noise, and nothing is kept."""
    asked = FineTuneOptions.read(options)
    start = prepare_start(
        model, data, asked, cache=cache, weights=weights, engine=engine, trust=trust
    )
    network = network_for(start, asked, cache=cache)
    stored, waiting = 0, 0.0
    if not network.from_pixels:
        stored = activation_bytes(network, start, asked)
        plan = plan_extraction(
            data,
            **start.model.choice.arguments(),
            image=start.model.image,
            taps=[f"{layer}:flatten" for layer in network.cut.layers],
            views=asked.views,
            view_policy=view_policy,
            cache=cache,
            engine=engine,
        )
        waiting = plan.seconds
    step_s, held_out_s = _measured(network, asked, len(start.model.classes_))
    steps = math.ceil(len(start.rows) / asked.batch_size)
    epoch_s = steps * step_s + len(start.held_out) * held_out_s
    variables = [v for group in network.cut.groups for layer in group for v in layer.weights]
    frozen = [v for layer in network.cut.frozen for v in layer.weights]
    return Rehearsal(
        images=len(start.rows),
        held_out=len(start.held_out),
        cut=[] if network.from_pixels else list(network.cut.layers),
        trained_layers=sum(len(group) for group in network.cut.groups),
        trained_parameters=_numbers(variables),
        frozen_parameters=_numbers(frozen),
        activation_bytes=stored,
        extraction_s=waiting,
        epoch_s=epoch_s,
        seconds=waiting + asked.epochs * epoch_s,
        memory_bytes=peak_bytes(),
    )


def _numbers(variables: list[Any]) -> int:
    return sum(math.prod(v.shape) for v in variables)


def _measured(network: TunedNetwork, asked: FineTuneOptions, classes: int) -> tuple[float, float]:
    """Return the seconds of a step, and of an image of the hold-out."""
    import keras

    rng = np.random.default_rng(0)
    shapes = [tuple(t.shape[1:]) for t in network.model.features.inputs]
    kind = np.uint8 if network.from_pixels else np.float32
    inputs = [(rng.random((asked.batch_size, *shape)) * 6).astype(kind) for shape in shapes]
    targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, asked.batch_size)]
    optimizer = make_optimizer(
        network.rate_shares(asked.depth_decay), weight_decay=asked.weight_decay
    )
    network.model.compile(
        optimizer=optimizer, loss=keras.losses.CategoricalCrossentropy(from_logits=True)
    )
    training = [
        _timed(lambda: network.model.train_on_batch(inputs, targets)) for _ in range(_STEPS)
    ]
    holding = [_timed(lambda: network.probabilities(inputs)) for _ in range(_STEPS)]
    # The first call traces or compiles.
    return statistics.median(training[1:]), statistics.median(holding[1:]) / asked.batch_size


def _timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
