"""Many dense heads as one Keras model and one optimizer: imported when training starts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import keras
from keras import ops

if TYPE_CHECKING:
    from featx.heads.targets import Kind

Tensor: TypeAlias = Any
Mode: TypeAlias = Literal["eager", "graph", "jit"]
Shape: TypeAlias = tuple[tuple[int, ...], int]
"""Sizes of the hidden layers, and how many heads of one group have them."""

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7


class HeadGroup(keras.layers.Layer):  # type: ignore[misc]
    """The layers of heads of one architecture: kernels (g, out, in) and biases (g, out, 1)."""

    def __init__(self, shape: Shape, width: int, outputs: int, name: str) -> None:
        # float32 and zeros by name: neither the caller's global dtype policy nor the seeds that
        # Keras would draw from Python's global generator may matter.
        super().__init__(dtype="float32", name=name)
        hidden, heads = shape
        self.kernels: list[Tensor] = []
        self.biases: list[Tensor] = []
        for depth, (inputs, outs) in enumerate(pairwise([width, *hidden, outputs])):
            for kind, size, variables in (
                ("kernel", inputs, self.kernels),
                ("bias", 1, self.biases),
            ):
                variable = self.add_weight(
                    shape=(heads, outs, size), initializer="zeros", name=f"{kind}_{depth}"
                )
                variables.append(variable)
        self.dropout = self.add_weight(
            shape=(heads, 1, 1), initializer="zeros", trainable=False, name="dropout"
        )
        self.built = True

    def call(self, x: Tensor, draws: Sequence[Tensor] | None) -> Tensor:
        """Return logits (g, k, b) of features (b, d)."""
        heads, outs, inputs = self.kernels[0].shape
        # One product for all heads: the features are read once.
        values = ops.matmul(ops.reshape(self.kernels[0], (heads * outs, inputs)), ops.transpose(x))
        values = ops.reshape(values, (heads, outs, -1)) + self.biases[0]
        for depth, kernel in enumerate(self.kernels[1:]):
            values = ops.relu(values)
            if draws:
                passed = ops.expand_dims(draws[depth], 0) >= self.dropout
                values = values * (ops.cast(passed, "float32") / (1.0 - self.dropout))
            values = ops.matmul(kernel, values) + self.biases[depth + 1]
        return values


class StackedHeads(keras.Model):  # type: ignore[misc]
    """Groups of heads over the same batches; its loss is the sum of the heads' losses."""

    def __init__(self, shapes: Sequence[Shape], width: int, outputs: int, *, kind: Kind) -> None:
        super().__init__(dtype="float32", name="stacked_heads")
        self.outputs_of_head, self.kind = outputs, kind
        self.groups = [
            HeadGroup(shape, width, outputs, f"group_{number}")
            for number, shape in enumerate(shapes)
        ]
        heads = sum(count for _, count in shapes)
        self.smoothing = self.add_weight(
            shape=(heads, 1, 1), initializer="zeros", trainable=False, name="smoothing"
        )
        self.summed_losses = self.add_weight(
            shape=(heads,), initializer="zeros", trainable=False, name="summed_losses"
        )
        self.built = True

    def call(self, batch: Tensor) -> Tensor:
        """Return losses (heads,) of a batch (x, targets, weights, one list of draws a group)."""
        x, targets, weights, draws = batch
        scores = [group(x, drawn) for group, drawn in zip(self.groups, draws, strict=True)]
        logits = ops.concatenate(scores, axis=0) if len(scores) > 1 else scores[0]
        if self.kind == "values":
            expected, counted = (ops.expand_dims(ops.transpose(a), 0) for a in (targets, weights))
            losses = ops.mean(ops.square(logits - expected) * counted, axis=(1, 2))
        elif self.kind == "labels":
            present, counted = (ops.expand_dims(ops.transpose(a), 0) for a in (targets, weights))
            expected = present * (1.0 - self.smoothing) + self.smoothing / 2.0
            losses = ops.mean((ops.softplus(logits) - expected * logits) * counted, axis=(1, 2))
        else:
            right = ops.one_hot(targets, self.outputs_of_head, axis=0, dtype="float32")
            expected = ops.expand_dims(right, 0) * (1.0 - self.smoothing)
            expected = expected + self.smoothing / self.outputs_of_head
            entropy = ops.logsumexp(logits, axis=1) - ops.sum(expected * logits, axis=1)
            losses = ops.mean(entropy * ops.expand_dims(weights, 0), axis=1)
        self.summed_losses.assign(self.summed_losses + losses)
        return losses

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Return the sum of the heads' losses, which `call` returns."""
        return ops.sum(y_pred)


class StackedAdamW(keras.optimizers.Optimizer):  # type: ignore[misc]
    """AdamW with a learning rate and a weight decay for every head."""

    def __init__(self) -> None:
        super().__init__(learning_rate=1.0, name="stacked_adamw")

    def build(self, variables: Sequence[Tensor]) -> None:
        """Add first and second moments, and rates that broadcast over each variable."""
        if self.built:
            return
        super().build(variables)
        self.moments: list[Tensor] = []
        self.squares: list[Tensor] = []
        self.rates: list[Tensor] = []
        self.decays: list[Tensor] = []
        for variable in variables:
            of_heads = (variable.shape[0], 1, 1)
            for added, name, shape in (
                (self.moments, "moment", variable.shape),
                (self.squares, "square", variable.shape),
                (self.rates, "rate", of_heads),
                (self.decays, "decay", of_heads),
            ):
                added.append(
                    self.add_variable(shape=shape, initializer="zeros", dtype="float32", name=name)
                )

    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        """Move one variable."""
        number = self._get_variable_index(variable)
        moment, square = self.moments[number], self.squares[number]
        rate, decay = self.rates[number], self.decays[number]
        step = ops.cast(self.iterations + 1, "float32")
        correction = ops.sqrt(1.0 - ops.power(_BETA_2, step)) / (1.0 - ops.power(_BETA_1, step))
        new_moment = moment + (gradient - moment) * (1.0 - _BETA_1)
        new_square = square + (ops.square(gradient) - square) * (1.0 - _BETA_2)
        change = new_moment * (rate * correction) / (ops.sqrt(new_square) + _EPSILON)
        self.assign(moment, new_moment)
        self.assign(square, new_square)
        self.assign(variable, variable * (1.0 - rate * decay) - change)


def compiled_stack(
    shapes: Sequence[Shape], width: int, outputs: int, *, kind: Kind, mode: Mode
) -> StackedHeads:
    """Return a model of heads of zeros with its optimizer."""
    model = StackedHeads(shapes, width, outputs, kind=kind)
    optimizer = StackedAdamW()
    optimizer.build(model.trainable_variables)
    backend = keras.backend.backend()
    model.compile(
        optimizer=optimizer,
        run_eagerly=mode == "eager",
        # JAX is slow without its compiler; torch's asks for a C++ compiler on the machine.
        jit_compile=(mode != "eager" and backend == "jax")
        or (mode == "jit" and backend == "tensorflow"),
    )
    return model
