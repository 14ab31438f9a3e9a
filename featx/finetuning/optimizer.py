"""How far a step goes: for every depth another rate, rising and then falling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["learning_rate_at", "make_optimizer", "take_state"]


def learning_rate_at(step: int, steps: int, *, highest: float, warmup: float) -> float:
    """Return the rate of a step: rising linearly, then falling along half a cosine to 0.

    Parameters
    ----------
    step : int
        From 0 on.
    steps : int
        Number of steps in all.
    highest : float
        The rate between rising and falling.
    warmup : float
        Share of the steps in which it rises.

    Examples
    --------
    >>> [round(learning_rate_at(s, 10, highest=1.0, warmup=0.2), 3) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    rising = round(warmup * steps)
    if step < rising:
        return highest * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(shares: Sequence[float], *, weight_decay: float, accumulate: int = 1) -> Any:
    """Make AdamW with a share of the learning rate for every variable.

    Parameters
    ----------
    shares : sequence of float
        What the rate of each variable is multiplied by, in the order in which the optimizer is
        built for them; 0 leaves a variable as it is.
    weight_decay : float
        Of kernels: variables of two dimensions or more.
    accumulate : int, default 1
        Number of batches whose gradients are averaged for one step.

    Returns
    -------
    optimizer : keras.optimizers.Optimizer
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, with the decay of a
        variable multiplied by its own rate.
    """
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


def take_state(optimizer: Any, before: Any) -> None:
    """Take over moments and the number of steps; the learning rate is set before every step."""
    # Keras numbers optimizers through the life of a process: the first part of a path differs.
    earlier = {variable.path.partition("/")[2]: variable for variable in before.variables}
    for variable in optimizer.variables:
        kept = earlier.get(variable.path.partition("/")[2])
        if kept is not None and kept.shape == variable.shape:
            variable.assign(kept)
