"""Training of dense heads: many on the same batches as one stack, each stopped by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.forks import require_threads
from featx.heads.rows import Batch, Floats, Numbers, Rows
from featx.heads.targets import Kind, Targets, label_strata
from featx.quiet import quiet_import

if TYPE_CHECKING:
    from featx.heads.dense_model import Mode, StackedHeads

Array: TypeAlias = NDArray[np.float32]
Layers: TypeAlias = list[tuple[Array, Array]]
"""One (kernel of shape (inputs, outputs), bias of shape (outputs,)) a layer."""
Models: TypeAlias = "dict[object, StackedHeads]"
"""Compiled models by what they were compiled for, which stacks of the same shapes share."""

_LOG = logging.getLogger("featx")
_FEW_IN_CLASS = 5
_FEW_HELD_OUT = 10
_MOST_IN_SMALL_CLASSES = 0.2
# Of the memory that learning may take, what the rows that say when to stop may.
_HELD_SHARE = 4
_ROWS_AT_ONCE = 2048
_ROWS_COUNTED_AT_ONCE = 65_536

# Weights, gradients, two moments and the best weights of so many parameters take about 1 GB.
_MOST_PARAMETERS = 48_000_000
# Tracing and compiling a smaller stack costs about as much as this much arithmetic.
_REBUILD_FLOP = 2e11
_FEW_STEPS = 20
_USUAL_EPOCHS = 20
# From here on the compiler's half second is won back: it passes over the weights once a step, not
# ten times. Counted as arithmetic, so that a run does not depend on how busy the machine is.
_JIT_FLOP = 2e11


@dataclass(frozen=True)
class DenseSettings:
    """How to train one head: the parameters of `DenseClassifier` of the same names."""

    hidden: tuple[int, ...]
    dropout: float
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    max_epochs: int
    patience: int
    verbose: int

    @classmethod
    def of(cls, head: object) -> DenseSettings:
        """Return those of a classifier."""
        values = {each.name: getattr(head, each.name) for each in fields(cls)}
        return cls(**{**values, "hidden": tuple(int(size) for size in values["hidden"])})

    def parameters(self, width: int, outputs: int) -> int:
        """Return how many numbers its layers hold."""
        return sum((a + 1) * b for a, b in pairwise([width, *self.hidden, outputs]))


class Examples(NamedTuple):
    """Features (b, d), targets and what they count.

    Targets are class codes (b,), int32, with weights (b,); or labels of 0 and 1, or values, (b, k)
    with weights (b, k), all float32.
    """

    X: Array
    targets: NDArray[np.number]
    weights: Array


class DenseData:
    """What heads of one seed learn from: batches of one size, and rows that say when to stop.

    Two heads of one seed hold out the same rows, see the same batches, and, where their layers have
    the same sizes, start from the same weights and draw the same dropout.
    """

    def __init__(
        self, rows: Rows, targets: Targets, *, seed: int, batch_size: int, held_share: float
    ) -> None:
        # Each is independent of how much the others are used.
        seeds = np.random.SeedSequence(seed).spawn(4)
        held_seed, self._start_seed, self.order_seed, self.dropout_seed = seeds
        counting, mean = counting_rows(targets)
        most = None
        if rows.max_ram_bytes is not None:
            most = max(1, rows.max_ram_bytes // _HELD_SHARE // (4 * rows.width))
        train, held = hold_out(
            targets.take(counting), held_share, np.random.default_rng(held_seed), most=most
        )
        self.width, self.outputs = rows.width, targets.columns
        self.kind: Kind = targets.kind
        self.count, self.batch_size = len(train), min(batch_size, len(train))
        self._rows, self._train = rows, counting[train]
        self._targets, self._mean_weight = targets, mean
        held = counting[held]
        X = rows.take(held).gather() if held.size else np.empty((0, rows.width), np.float32)
        self.held = self._examples(X, held)

    @property
    def steps(self) -> int:
        """The number of batches of an epoch."""
        return -(-self.count // self.batch_size)

    def start(self, hidden: Sequence[int]) -> Layers:
        """Return the layers that heads of an architecture start from."""
        generator = np.random.default_rng(self._start_seed)
        layers: Layers = []
        for inputs, outputs in pairwise([self.width, *hidden, self.outputs]):
            limit = np.sqrt(6.0 / (inputs + outputs))
            kernel = generator.uniform(-limit, limit, size=(inputs, outputs)).astype(np.float32)
            layers.append((kernel, np.zeros(outputs, dtype=np.float32)))
        if self.kind == "values":
            layers[-1][0][:] = 0  # it begins with the mean of the numbers, not with noise about it
        return layers

    def epoch(self, order: np.random.Generator) -> Iterator[Examples]:
        """Yield every row to train on once, in batches; the last is filled from the first."""
        if self._rows.matrix is None:
            for X, rows in self._filled(int(order.integers(2**31))):
                yield self._examples(X, rows)
            return
        # One shape of batch, one trace: the last is filled from the head of the order.
        places = np.resize(order.permutation(self.count), (self.steps, self.batch_size))
        for chosen in places:
            rows = self._train[chosen]
            yield self._examples(self._rows.matrix[rows], rows)

    def _filled(self, seed: int) -> Iterator[Batch]:
        """Yield a pass over a stream in batches of one size; the last is filled from the first."""
        size, seen, waiting = self.batch_size, 0, 0
        first: Batch | None = None
        parts: list[Batch] = []
        for part, positions in self._rows.take(self._train).batches(seed):
            parts.append((part, self._train[positions]))
            seen, waiting = seen + len(part), waiting + len(part)
            if waiting < size:
                continue
            X, rows = map(np.concatenate, zip(*parts, strict=True))
            full = waiting - waiting % size
            for start in range(0, full, size):
                batch = X[start : start + size], rows[start : start + size]
                first = first or batch
                yield batch
            parts, waiting = [(X[full:], rows[full:])], waiting - full
        if seen != self.count:
            raise HeadError(
                f"expected a pass over all {self.count} rows to train on, received {seen}: give "
                "every row once a pass"
            )
        if waiting and first is not None:
            rest = [array[: size - waiting] for array in first]
            X, rows = map(np.concatenate, zip(*parts, rest, strict=True))
            yield X, rows

    def _examples(self, X: Floats, rows: Numbers) -> Examples:
        targets, weights = self._targets.values[rows], self._targets.counted(rows)
        weights = np.ones(len(rows)) if weights is None else weights / self._mean_weight
        if self.kind != "classes" and weights.ndim == 1:
            weights = np.broadcast_to(weights[:, None], targets.shape)
        return Examples(
            np.asarray(X, np.float32),
            targets.astype(np.int32 if self.kind == "classes" else np.float32),
            np.asarray(weights, np.float32, order="C"),
        )


def counting_rows(targets: Targets) -> tuple[Numbers, float]:
    """Return the rows of a weight above 0, and the mean of their weights."""
    parts: list[Numbers] = []
    total, entries = 0.0, 0
    for start in range(0, len(targets), _ROWS_COUNTED_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_COUNTED_AT_ONCE, len(targets)))
        weights = targets.counted(rows)
        if weights is None:
            return np.arange(len(targets)), 1.0
        counting = weights > 0 if weights.ndim == 1 else weights.any(axis=1)
        parts.append(rows[counting])
        total += float(weights[counting].sum())
        entries += weights[counting].size
    if not entries:
        raise HeadError(
            "every image has the weight 0, by its class or its own: expected some above 0"
        )
    return np.concatenate(parts), total / entries


def hold_out(
    targets: Targets, share: float, generator: np.random.Generator, *, most: int | None = None
) -> tuple[Numbers, Numbers]:
    """Split rows into those to train on and those that say when to stop."""
    every = np.arange(len(targets))
    if most is not None and most < share * len(every):
        share = most / len(every)
    if share == 0:
        return every, every[:0]
    if targets.kind == "labels":
        parts = label_strata(targets.values, [share, 1 - share], seed=generator)
        held = np.flatnonzero(parts == 0)
    elif targets.kind == "values":
        held = generator.choice(len(every), round(share * len(every)), replace=False)
    else:
        codes = targets.values.astype(np.intp)
        counts = np.bincount(codes, minlength=targets.columns)
        large = np.flatnonzero(counts >= _FEW_IN_CLASS)
        if counts[large].sum() < (1 - _MOST_IN_SMALL_CLASSES) * len(every):
            return every, every[:0]
        # One sort finds the rows of a thousand classes; a search for each would be a thousand.
        of_class = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
        chosen = [
            generator.choice(of_class[code], max(1, round(share * counts[code])), replace=False)
            for code in large
        ]
        held = np.concatenate(chosen)
    if len(held) < _FEW_HELD_OUT:
        return every, every[:0]
    return np.setdiff1d(every, held), np.sort(held)


def judge(held: Examples, logits: Array, kind: Kind) -> tuple[float, float]:
    """Return the weighted loss, and the unweighted accuracy of logits or R² of values."""
    # A training that diverges is for the caller to say, not for NumPy's warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        scores = logits.astype(np.float64)
        if kind == "values":
            losses = np.square(scores - held.targets)
            spread = np.square(held.targets - held.targets.mean(axis=0)).sum(axis=0)
            right = 1 - losses.sum(axis=0) / np.maximum(spread, np.finfo(np.float32).tiny)
        elif kind == "labels":
            losses = np.logaddexp(0, scores) - held.targets * scores
            right = (scores > 0) == (held.targets > 0)
        else:
            codes = held.targets.astype(np.intp)
            scores -= scores.max(axis=1, keepdims=True)
            losses = np.log(np.exp(scores).sum(axis=1))
            losses -= scores[np.arange(len(scores)), codes]
            right = scores.argmax(axis=1) == codes
        loss = float((held.weights * losses).sum() / held.weights.sum(dtype=np.float64))
    return loss, float(np.mean(right))


@dataclass(eq=False)
class DenseTraining:
    """How far the training of one head has come: the best epoch's layers, or why there are none."""

    settings: DenseSettings
    name: str = ""
    layers: Layers = field(default_factory=list)
    epochs: int = 0
    best_epoch: int = 0
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": []})
    failure: str = ""
    done: bool = False
    kind: Kind = "classes"
    _lowest: float = np.inf

    def epochs_left(self) -> int:
        """Return for how many epochs it goes on if it never improves again."""
        last = self.settings.max_epochs
        if "val_loss" in self.history:
            last = min(last, self.best_epoch + self.settings.patience)
        return last - self.epochs

    def note(self, loss: float, judged: tuple[float, float] | None) -> bool:
        """Add an epoch with its loss, and `judge` of other rows; return whether it is the best."""
        self.epochs += 1
        self.history["loss"].append(loss)
        last = self.epochs == self.settings.max_epochs
        best = last
        if judged is not None:
            self.history.setdefault("val_loss", []).append(judged[0])
            judged_by = "val_r2" if self.kind == "values" else "val_accuracy"
            self.history.setdefault(judged_by, []).append(judged[1])
            best = judged[0] < self._lowest
        if not np.isfinite([loss, *(judged or ())]).all():
            self._fail(loss if judged is None or not np.isfinite(loss) else judged[0])
            return False
        if best:
            self.best_epoch = self.epochs
            self._lowest = np.inf if judged is None else judged[0]
        if self.settings.verbose:
            self._log()
        patient = judged is None or self.epochs - self.best_epoch < self.settings.patience
        self.done = not patient or last
        return best

    def keep(self, layers: Layers) -> None:
        """Copy the layers of the best epoch so far."""
        self.layers = [(np.array(kernel, order="C"), np.array(bias)) for kernel, bias in layers]
        # The loss of an epoch is measured before its last step.
        if not all(np.isfinite(array).all() for layer in self.layers for array in layer):
            self._fail(np.nan)

    def _fail(self, loss: float) -> None:
        self.done = True
        self.failure = (
            f"training diverged: the loss is {loss} in epoch {self.epochs} at "
            f"learning_rate={self.settings.learning_rate}: lower the learning rate, and put the "
            "head behind standardisation as make_head does"
        )

    def _log(self) -> None:
        values = ", ".join(f"{name} {values[-1]:.4f}" for name, values in self.history.items())
        most = self.settings.max_epochs
        _LOG.info("%sepoch %d of at most %d: %s", self.name, self.epochs, most, values)


def train_heads(
    settings: Sequence[DenseSettings], data: DenseData, models: Models | None = None
) -> list[DenseTraining]:
    """Return the heads of some settings, trained together as each would be alone."""
    heads = [
        DenseTraining(
            setting,
            f"head {number} of {len(settings)}, " if len(settings) > 1 else "",
            kind=data.kind,
        )
        for number, setting in enumerate(settings, start=1)
    ]
    part: list[DenseTraining] = []
    size = 0
    for head in heads:
        count = head.settings.parameters(data.width, data.outputs)
        if part and size + count > _MOST_PARAMETERS:
            _train_stack(part, data, models)
            part, size = [], 0
        part.append(head)
        size += count
    _train_stack(part, data, models)
    return heads


def _train_stack(heads: Sequence[DenseTraining], data: DenseData, models: Models | None) -> None:
    """Train heads by AdamW in shuffled batches, as one model while it pays."""
    stack = _Stack(heads, data, models)
    while stack.live:
        losses, layers = stack.run_epoch(), cache(stack.layers)
        logits = stack.logits(data.held.X) if len(data.held.X) else None
        for number, head in enumerate(stack.heads):
            if not head.done:
                judged = None if logits is None else judge(data.held, logits[number], data.kind)
                if head.note(float(losses[number]), judged):
                    head.keep(layers()[number])
        if stack.live:
            left = max(head.epochs_left() for head in stack.live)
            idle = sum(
                head.settings.parameters(data.width, data.outputs)
                for head in stack.heads
                if head.done
            )
            if 6.0 * idle * data.count * left > _REBUILD_FLOP:
                stack.shrink(left)


@dataclass(frozen=True, eq=False)
class _Group:
    """Heads of one architecture, and what they draw dropout from, if any of them began with any."""

    hidden: tuple[int, ...]
    heads: list[DenseTraining]
    generator: np.random.Generator | None


class _Stack:
    """Heads that are trained together, grouped by architecture, in one Keras model."""

    def __init__(
        self, heads: Sequence[DenseTraining], data: DenseData, models: Models | None
    ) -> None:
        self._data, self._models = data, models
        self._order = np.random.default_rng(data.order_seed)
        self._epochs = max(head.settings.max_epochs for head in heads)
        self._steps = 0
        by_shape: dict[tuple[int, ...], list[DenseTraining]] = {}
        for head in heads:
            by_shape.setdefault(head.settings.hidden, []).append(head)
        self._groups: list[_Group] = []
        start: list[Array] = []
        for hidden, alike in by_shape.items():
            # Every architecture draws what a single head of it would draw.
            generator = np.random.default_rng(data.dropout_seed)
            dropped = any(head.settings.dropout for head in alike)
            self._groups.append(_Group(hidden, alike, generator if dropped else None))
            for kernel, bias in data.start(hidden):
                start += [np.repeat(a[None], len(alike), axis=0) for a in (kernel.T, bias[:, None])]
        zeros = [np.zeros_like(array) for array in start]
        self._load(start, zeros, zeros)

    @property
    def heads(self) -> list[DenseTraining]:
        """The heads in the order of the arrays."""
        return [head for group in self._groups for head in group.heads]

    @property
    def live(self) -> list[DenseTraining]:
        """The heads that go on."""
        return [head for head in self.heads if not head.done]

    def run_epoch(self) -> Array:
        """Train on every row once; return each head's mean loss."""
        losses = self._model.summed_losses
        losses.assign(np.zeros(losses.shape, np.float32))
        for batch in self._data.epoch(self._order):
            size = len(batch.X)
            draws = [
                [group.generator.random((units, size), np.float32) for units in group.hidden]
                if group.generator is not None
                else []
                for group in self._groups
            ]
            self._model.train_on_batch((*batch, draws))
        self._steps += self._data.steps
        return _numpy(losses) / np.float32(self._data.steps)

    def layers(self) -> list[Layers]:
        """Return the layers of each head: views, good until the next epoch."""
        result: list[Layers] = []
        for group, variables in zip(self._groups, self._model.groups, strict=True):
            kernels = [_numpy(kernel) for kernel in variables.kernels]
            biases = [_numpy(bias) for bias in variables.biases]
            for number in range(len(group.heads)):
                arrays = zip(kernels, biases, strict=True)
                result.append([(kernel[number].T, bias[number, :, 0]) for kernel, bias in arrays])
        return result

    def logits(self, X: Array) -> list[Array]:
        """Return the logits (n, k) of each head."""
        result: list[list[Array]] = [[] for _ in self.heads]
        for start in range(0, len(X), _ROWS_AT_ONCE):
            part = X[start : start + _ROWS_AT_ONCE]
            scores = [_numpy(variables.call(part, None)) for variables in self._model.groups]
            for parts, of_head in zip(result, (s for group in scores for s in group), strict=True):
                parts.append(of_head.T)
        return [np.concatenate(parts) for parts in result]

    def shrink(self, epochs: int) -> None:
        """Go on with the heads that are not done, for about so many epochs."""
        staying = [[n for n, h in enumerate(group.heads) if not h.done] for group in self._groups]
        numbers = [
            of_group
            for of_group, variables in zip(staying, self._model.groups, strict=True)
            for _ in variables.trainable_variables
        ]
        optimizer = self._model.optimizer
        weights, moments, squares = (
            [_numpy(v)[n] for v, n in zip(variables, numbers, strict=True) if n]
            for variables in (self._model.trainable_variables, optimizer.moments, optimizer.squares)
        )
        self._epochs = epochs
        self._groups = [
            replace(group, heads=[group.heads[number] for number in of_group])
            for group, of_group in zip(self._groups, staying, strict=True)
            if of_group
        ]
        self._load(weights, moments, squares)

    def _load(self, weights: list[Array], moments: list[Array], squares: list[Array]) -> None:
        """Make the model, or find it, and put the heads into it."""
        data, mode = self._data, self._mode()
        shapes = tuple((group.hidden, len(group.heads)) for group in self._groups)
        # Layers with dropout and without it are called differently.
        dropped = tuple(group.generator is not None for group in self._groups)
        sizes = (data.width, data.batch_size, data.outputs, data.kind)
        key = (shapes, dropped, sizes, mode)
        model = (self._models or {}).get(key)
        if model is None:
            model = _compiled(shapes, data, mode)
            if self._models is not None:
                self._models[key] = model
        self._model = model
        rates: list[Array] = []
        decays: list[Array] = []
        for group, variables in zip(self._groups, model.groups, strict=True):
            settings = [head.settings for head in group.heads]
            variables.dropout.assign(_column([s.dropout for s in settings]))
            decay = _column([s.weight_decay for s in settings])
            for _ in variables.kernels:
                rates += [_column([s.learning_rate for s in settings])] * 2
                decays += [decay, np.zeros_like(decay)]  # of a kernel and a bias
        model.smoothing.assign(_column([head.settings.label_smoothing for head in self.heads]))
        optimizer = model.optimizer
        optimizer.iterations.assign(self._steps)
        for assigned, arrays in (
            (model.trainable_variables, weights),
            (optimizer.moments, moments),
            (optimizer.squares, squares),
            (optimizer.rates, rates),
            (optimizer.decays, decays),
        ):
            for variable, array in zip(assigned, arrays, strict=True):
                variable.assign(array)

    def _mode(self) -> Mode:
        data = self._data
        # A TensorFlow graph takes 0.3 s to trace and saves 13 ms a step.
        if self._steps == 0 and data.steps * self._epochs <= _FEW_STEPS:
            return "eager"
        parameters = sum(h.settings.parameters(data.width, data.outputs) for h in self.heads)
        rows = data.steps * data.batch_size * min(self._epochs, _USUAL_EPOCHS)
        return "jit" if 6.0 * parameters * rows >= _JIT_FLOP else "graph"


def _compiled(
    shapes: Sequence[tuple[tuple[int, ...], int]], data: DenseData, mode: Mode
) -> StackedHeads:
    require_threads("Keras")
    with quiet_import():
        from featx.heads.dense_model import compiled_stack

        return compiled_stack(shapes, data.width, data.outputs, kind=data.kind, mode=mode)


def _column(values: Sequence[float]) -> Array:
    return np.array(values, dtype=np.float32).reshape(-1, 1, 1)


def _numpy(variable: object) -> Array:
    from keras import ops

    return np.asarray(ops.convert_to_numpy(variable))
