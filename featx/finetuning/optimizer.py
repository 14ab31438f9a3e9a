"""How far a step goes: for every depth another rate, rising and then falling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def learning_rate_at(step: int, steps: int, *, highest: float, warmup: float) -> float:
    """Return the rate of a step: rising linearly, then falling along half a cosine to 0."""
    rising = round(warmup * steps)
    if step < rising:
        return highest * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(shares: Sequence[float], *, weight_decay: float, accumulate: int = 1) -> Any:
    """Make AdamW with a share of the learning rate for every variable."""
    import keras

    class LayerwiseAdamW(keras.optimizers.Adam):  # type: ignore[misc, name-defined, unused-ignore]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            # Of a variable that is not trained yet the moments are kept all the same, so that its
            # first step is not a leap.
            share = shares[self._get_variable_index(variable)]
            rate = keras.ops.cast(learning_rate, variable.dtype) * share
            if weight_decay and len(variable.shape) > 1:
                self.assign_sub(variable, variable * (rate * weight_decay))
            super().update_step(gradient, variable, rate)

    return LayerwiseAdamW(gradient_accumulation_steps=accumulate if accumulate > 1 else None)


def read_state(optimizer: Any) -> list[NDArray[Any]]:
    """Return steps taken and moments, between two steps; `write_state` takes them back."""
    parts = optimizer.gradient_accumulation_steps or 1
    kept = _lasting(optimizer)
    return [np.array(v) // parts if _counts_batches(v) else np.array(v) for v in kept]


def write_state(optimizer: Any, state: Sequence[NDArray[Any]]) -> None:
    """Take over what `read_state` gave of an optimizer for the same variables."""
    parts = optimizer.gradient_accumulation_steps or 1
    for variable, value in zip(_lasting(optimizer), state, strict=True):
        variable.assign(value * parts if _counts_batches(variable) else value)


def _lasting(optimizer: Any) -> list[Any]:
    return [v for v in optimizer.variables if "gradient_accumulator" not in v.path]


def _counts_batches(variable: Any) -> bool:
    return bool(variable.path.endswith("iteration"))
