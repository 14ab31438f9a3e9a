"""Many dense heads as one Keras model and one optimizer: imported when training starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import keras
from keras import ops

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7


@dataclass(frozen=True)
class GroupShape:
    """Heads of one architecture, trained as arrays with an axis of heads.

    Parameters
    ----------
    hidden : tuple of int
        Sizes of the hidden layers.
    heads : int
        How many.
    """

    hidden: tuple[int, ...]
    heads: int


class _Group(keras.layers.Layer):  # type: ignore[misc]
    """The layers of one group: kernels (g, out, in) and biases (g, out, 1)."""

    def __init__(self, shape: GroupShape, width: int, outputs: int, name: str) -> None:
        # float32 and zeros by name: neither the caller's global dtype policy nor the seeds that
        # Keras would draw from Python's global generator may matter.
        super().__init__(dtype="float32", name=name)
        self.kernels: list[Any] = []
        self.biases: list[Any] = []
        for depth, (inputs, outs) in enumerate(pairwise([width, *shape.hidden, outputs])):
            for kind, size, kept in (("kernel", inputs, self.kernels), ("bias", 1, self.biases)):
                kept.append(
                    self.add_weight(
                        shape=(shape.heads, outs, size),
                        initializer="zeros",
                        name=f"{kind}_{depth}",
                    )
                )
        self.dropout = self.add_weight(
            shape=(shape.heads, 1, 1), initializer="zeros", trainable=False, name="dropout"
        )
        self.built = True

    def call(self, x: Any, draws: Sequence[Any] | None) -> Any:
        """Logits (g, k, b) of features (b, d)."""
        heads, outs, inputs = self.kernels[0].shape
        # One product for all heads: the features are read once.
        values = ops.matmul(ops.reshape(self.kernels[0], (heads * outs, inputs)), ops.transpose(x))
        values = ops.reshape(values, (heads, outs, -1)) + self.biases[0]
        for depth, kernel in enumerate(self.kernels[1:]):
            values = ops.relu(values)
            if draws:
                kept = ops.expand_dims(draws[depth], 0) >= self.dropout
                values = values * (ops.cast(kept, "float32") / (1.0 - self.dropout))
            values = ops.matmul(kernel, values) + self.biases[depth + 1]
        return values


class StackedHeads(keras.Model):  # type: ignore[misc]
    """Groups of heads over the same batches; its loss is the sum of the heads' losses."""

    def __init__(
        self, shapes: Sequence[GroupShape], width: int, outputs: int, *, multilabel: bool
    ) -> None:
        super().__init__(dtype="float32", name="stacked_heads")
        self.outputs_of_head, self.multilabel = outputs, multilabel
        self.groups = [
            _Group(shape, width, outputs, f"group_{number}") for number, shape in enumerate(shapes)
        ]
        heads = sum(shape.heads for shape in shapes)
        self.smoothing = self.add_weight(
            shape=(heads, 1, 1), initializer="zeros", trainable=False, name="smoothing"
        )
        self.summed_losses = self.add_weight(
            shape=(heads,), initializer="zeros", trainable=False, name="summed_losses"
        )
        self.built = True

    def call(self, batch: Any) -> Any:
        """Losses (heads,) of a batch (x, targets, weights, one list of draws a group)."""
        x, targets, weights, draws = batch
        scores = [group(x, drawn) for group, drawn in zip(self.groups, draws, strict=True)]
        logits = ops.concatenate(scores, axis=0) if len(scores) > 1 else scores[0]
        if self.multilabel:
            present, counted = (ops.expand_dims(ops.transpose(a), 0) for a in (targets, weights))
            wanted = present * (1.0 - self.smoothing) + self.smoothing / 2.0
            losses = ops.mean((ops.softplus(logits) - wanted * logits) * counted, axis=(1, 2))
        else:
            right = ops.one_hot(targets, self.outputs_of_head, axis=0, dtype="float32")
            wanted = ops.expand_dims(right, 0) * (1.0 - self.smoothing)
            wanted = wanted + self.smoothing / self.outputs_of_head
            entropy = ops.logsumexp(logits, axis=1) - ops.sum(wanted * logits, axis=1)
            losses = ops.mean(entropy * ops.expand_dims(weights, 0), axis=1)
        self.summed_losses.assign(self.summed_losses + losses)
        return losses

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Sum of the heads' losses, which `call` returns."""
        return ops.sum(y_pred)


class StackedAdamW(keras.optimizers.Optimizer):  # type: ignore[misc]
    """AdamW with a learning rate and a weight decay of its own for every head."""

    def __init__(self) -> None:
        super().__init__(learning_rate=1.0, name="stacked_adamw")

    def build(self, variables: Sequence[Any]) -> None:
        """Add first and second moments, and rates that broadcast over each variable."""
        if self.built:
            return
        super().build(variables)
        self.moments: list[Any] = []
        self.squares: list[Any] = []
        self.rates: list[Any] = []
        self.decays: list[Any] = []
        for variable in variables:
            dims = (variable.shape[0], 1, 1)
            for kept, name, shape in (
                (self.moments, "moment", variable.shape),
                (self.squares, "square", variable.shape),
                (self.rates, "rate", dims),
                (self.decays, "decay", dims),
            ):
                kept.append(
                    self.add_variable(shape=shape, initializer="zeros", dtype="float32", name=name)
                )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move one variable."""
        place = self._get_variable_index(variable)
        moment, square = self.moments[place], self.squares[place]
        rate, decay = self.rates[place], self.decays[place]
        step = ops.cast(self.iterations + 1, "float32")
        correction = ops.sqrt(1.0 - ops.power(_BETA_2, step)) / (1.0 - ops.power(_BETA_1, step))
        new_moment = moment + (gradient - moment) * (1.0 - _BETA_1)
        new_square = square + (ops.square(gradient) - square) * (1.0 - _BETA_2)
        change = new_moment * (rate * correction) / (ops.sqrt(new_square) + _EPSILON)
        self.assign(moment, new_moment)
        self.assign(square, new_square)
        self.assign(variable, variable * (1.0 - rate * decay) - change)
