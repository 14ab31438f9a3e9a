"""A stack of heads as arrays: what goes into the Keras model, and what comes out for each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featx.forks import require_threads
from featx.heads.dense_batches import Batches
from featx.heads.network import DenseWeights, parameter_count
from featx.heads.training import Rows, Streams, TrainingPlan

_FEW_STEPS = 20
_ROWS_AT_ONCE = 2048
_USUAL_EPOCHS = 20
# From here on the compiler's half second is won back: it passes over the weights once a step, not
# ten times. Counted as arithmetic, so that a run does not depend on the machine's mood.
_JIT_FLOP = 2e11

_Arrays = list[NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class _Group:
    """Heads of one architecture: their places among all heads, in the order of the arrays."""

    hidden: tuple[int, ...]
    places: tuple[int, ...]
    dropped: bool


@dataclass(eq=False)
class Stack:
    """Heads that are trained together, grouped by architecture.

    Made by `start`, and by `keep` for fewer heads.
    """

    plans: Sequence[TrainingPlan]
    groups: list[_Group]
    batches: Batches
    outputs: int
    multilabel: bool
    models: dict[Any, Any] | None
    epochs: int
    model: Any = None
    steps: int = 0
    generators: dict[tuple[int, ...], np.random.Generator] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        plans: Sequence[TrainingPlan],
        weights: Sequence[DenseWeights],
        batches: Batches,
        streams: Streams,
        *,
        multilabel: bool,
        models: dict[Any, Any] | None,
    ) -> Stack:
        """Set heads up with the weights that they start from."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, plan in enumerate(plans):
            places.setdefault(plan.hidden, []).append(place)
        groups = [
            _Group(hidden, tuple(of), any(plans[p].dropout for p in of))
            for hidden, of in places.items()
        ]
        # Every architecture draws what a single head of it would draw.
        generators = {g.hidden: np.random.default_rng(streams.dropout) for g in groups}
        stack = cls(
            plans=plans,
            groups=groups,
            batches=batches,
            outputs=len(weights[0][-1][1]),
            multilabel=multilabel,
            models=models,
            epochs=max(plan.max_epochs for plan in plans),
            generators=generators,
        )
        arrays: _Arrays = []
        for group in groups:
            layers = [weights[place] for place in group.places]
            for depth in range(len(group.hidden) + 1):
                arrays.append(np.stack([layer[depth][0].T for layer in layers]))
                arrays.append(np.stack([layer[depth][1][:, None] for layer in layers]))
        zeros = [np.zeros_like(array) for array in arrays]
        stack._load(arrays, zeros, zeros)
        return stack

    def run_epoch(self, batches: Batches) -> dict[int, float]:
        """Train on every row once; give each head's mean loss by its place."""
        self.model.summed_losses.assign(np.zeros(self.model.summed_losses.shape, np.float32))
        count = 0
        for rows in batches.epoch():
            self._step(rows)
            count += 1
        self.steps += count
        losses = _numpy(self.model.summed_losses) / count
        order = [place for group in self.groups for place in group.places]
        return {place: float(loss) for place, loss in zip(order, losses, strict=True)}

    def weights(self) -> dict[int, DenseWeights]:
        """Give the layers of each head by its place: views, good until the next epoch."""
        found: dict[int, DenseWeights] = {}
        for group, layers in zip(self.groups, self.model.groups, strict=True):
            kernels = [_numpy(kernel) for kernel in layers.kernels]
            biases = [_numpy(bias) for bias in layers.biases]
            for number, place in enumerate(group.places):
                found[place] = [
                    (kernel[number].T, bias[number, :, 0])
                    for kernel, bias in zip(kernels, biases, strict=True)
                ]
        return found

    def logits(self, X: NDArray[np.float32]) -> dict[int, NDArray[np.float32]]:
        """Give the logits (n, k) of each head by its place."""
        parts = [
            [_numpy(layers.call(part, None)) for layers in self.model.groups]
            for part in (
                X[start : start + _ROWS_AT_ONCE] for start in range(0, len(X), _ROWS_AT_ONCE)
            )
        ]
        return {
            place: np.concatenate([part[number][member].T for part in parts])
            for number, group in enumerate(self.groups)
            for member, place in enumerate(group.places)
            if parts
        }

    def keep(self, places: Sequence[int], *, epochs: int) -> Stack:
        """Give a stack of some of the heads, which goes on for about so many epochs."""
        kept = set(places)
        groups, chosen = [], []
        for group in self.groups:
            numbers = [i for i, place in enumerate(group.places) if place in kept]
            if numbers:
                left = tuple(group.places[i] for i in numbers)
                groups.append(replace(group, places=left))
            chosen.append(numbers)
        stack = replace(self, groups=groups, model=None, epochs=epochs)
        optimizer = self.model.optimizer
        state: list[_Arrays] = []
        for variables in (self.model.trainable_variables, optimizer.moments, optimizer.squares):
            taken: _Arrays = []
            at = 0
            for group, numbers in zip(self.groups, chosen, strict=True):
                for _ in range(2 * (len(group.hidden) + 1)):
                    if numbers:
                        taken.append(_numpy(variables[at])[numbers])
                    at += 1
            state.append(taken)
        stack._load(*state)
        return stack

    def _step(self, rows: Rows) -> None:
        draws = []
        for group in self.groups:
            drawn = []
            if group.dropped:
                generator = self.generators[group.hidden]
                drawn = [
                    generator.random((size, len(rows)), dtype=np.float32) for size in group.hidden
                ]
            draws.append(drawn)
        self.model.train_on_batch((rows.X, rows.targets, rows.weights, draws))

    def _load(self, weights: _Arrays, moments: _Arrays, squares: _Arrays) -> None:
        """Make the model, or find it, and put the heads into it."""
        mode = self._mode()
        key = (
            tuple((group.hidden, len(group.places), group.dropped) for group in self.groups),
            (self.batches.width, self.batches.batch, self.outputs, self.multilabel, mode),
        )
        self.model = (self.models or {}).get(key)
        if self.model is None:
            self.model = _compiled(key[0], self.batches.width, self.outputs, self.multilabel, mode)
            if self.models is not None:
                self.models[key] = self.model
        optimizer = self.model.optimizer
        variables = self.model.trainable_variables
        for of, arrays in (
            (variables, weights),
            (optimizer.moments, moments),
            (optimizer.squares, squares),
        ):
            for variable, array in zip(of, arrays, strict=True):
                variable.assign(array)
        optimizer.iterations.assign(self.steps)
        self._load_settings()

    def _load_settings(self) -> None:
        optimizer = self.model.optimizer
        at = 0
        for group, layers in zip(self.groups, self.model.groups, strict=True):
            plans = [self.plans[place] for place in group.places]
            layers.dropout.assign(_column([plan.dropout for plan in plans]))
            for number in range(2 * len(layers.kernels)):
                bias = number % 2 == 1
                decays = [0.0 if bias else plan.weight_decay for plan in plans]
                optimizer.rates[at].assign(_column([plan.learning_rate for plan in plans]))
                optimizer.decays[at].assign(_column(decays))
                at += 1
        order = [place for group in self.groups for place in group.places]
        self.model.smoothing.assign(_column([self.plans[p].label_smoothing for p in order]))

    def _mode(self) -> Literal["eager", "graph", "jit"]:
        steps = -(-self.batches.rows // self.batches.batch)
        # A TensorFlow graph takes 0.3 s to trace and saves 13 ms a step.
        if self.steps == 0 and steps * self.epochs <= _FEW_STEPS:
            return "eager"
        parameters = sum(
            parameter_count(group.hidden, self.batches.width, self.outputs) * len(group.places)
            for group in self.groups
        )
        flop = 6.0 * parameters * steps * self.batches.batch * min(self.epochs, _USUAL_EPOCHS)
        return "jit" if flop >= _JIT_FLOP else "graph"


def _compiled(
    shapes: Any, width: int, outputs: int, multilabel: bool, mode: Literal["eager", "graph", "jit"]
) -> Any:
    from featx.quiet import quiet_import

    require_threads("Keras")
    with quiet_import():
        import keras

        from featx.heads.dense_model import GroupShape, StackedAdamW, StackedHeads

        model = StackedHeads(
            [GroupShape(hidden, heads) for hidden, heads, _ in shapes],
            width,
            outputs,
            multilabel=multilabel,
        )
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


def _column(values: Sequence[float]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32).reshape(-1, 1, 1)


def _numpy(variable: Any) -> NDArray[np.float32]:
    from keras import ops

    return np.asarray(ops.convert_to_numpy(variable))
