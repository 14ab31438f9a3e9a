"""Training of dense layers with Keras, on whichever backend it runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.network import DenseWeights, initial_weights, logits

__all__ = ["Rows", "Trained", "TrainingPlan", "hold_out", "train_dense"]

_LOG = logging.getLogger("featx")
_FEW_STEPS = 20
_FEW_IN_CLASS = 5
_FEW_HELD_OUT = 10


@dataclass(frozen=True)
class TrainingPlan:
    """How to train: the parameters of `DenseClassifier` of the same names."""

    hidden: tuple[int, ...]
    dropout: float
    learning_rate: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    patience: int
    verbose: int = 0


@dataclass(frozen=True)
class Rows:
    """Features (n, d) float32, class codes (n,) int and weights (n,) float32 of some rows."""

    X: NDArray[np.float32]
    codes: NDArray[np.intp]
    weights: NDArray[np.float32]

    def take(self, rows: NDArray[np.intp]) -> Rows:
        """Give the rows at these places."""
        return Rows(self.X[rows], self.codes[rows], self.weights[rows])


@dataclass(frozen=True)
class Trained:
    """Weights of the best epoch (counted from 1), the epochs run, and one value an epoch."""

    weights: DenseWeights
    epochs: int
    best_epoch: int
    history: dict[str, list[float]]


def hold_out(
    codes: NDArray[np.intp], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split rows into those to train on and those that say when to stop.

    Parameters
    ----------
    codes : ndarray of shape (n,), int
        Class of each row.
    fraction : float
        Share of each class to hold out, at least one image of it.
    rng : numpy.random.Generator

    Returns
    -------
    train, held : ndarray of int
        ``held`` is empty where a class has fewer than five images or fewer than ten images would
        be held out: too few to say when to stop.

    Examples
    --------
    >>> train, held = hold_out(np.repeat([0, 1], 50), 0.1, np.random.default_rng(0))
    >>> len(train), len(held)
    (90, 10)
    """
    every = np.arange(len(codes))
    counts = np.bincount(codes)
    sizes = np.maximum(1, np.round(fraction * counts)).astype(int)
    if fraction == 0 or counts.min() < _FEW_IN_CLASS or sizes.sum() < _FEW_HELD_OUT:
        return every, every[:0]
    held = np.concatenate(
        [
            rng.choice(np.flatnonzero(codes == code), size, replace=False)
            for code, size in enumerate(sizes)
        ]
    )
    return np.setdiff1d(every, held), np.sort(held)


def train_dense(
    train: Rows, held: Rows, classes: int, plan: TrainingPlan, rng: np.random.Generator
) -> Trained:
    """Fit the layers by AdamW on the cross-entropy, in shuffled batches of one size.

    Parameters
    ----------
    train : Rows
        What the layers learn from.
    held : Rows
        Training stops when the loss on these has not improved for ``plan.patience`` epochs, and
        the best epoch's weights are kept. With no rows it runs ``plan.max_epochs`` epochs and
        keeps the last.
    classes : int
        The number of classes.
    plan : TrainingPlan
    rng : numpy.random.Generator
        The one source of randomness: start, order of the rows, dropout.

    Returns
    -------
    trained : Trained

    Raises
    ------
    HeadError
        The loss or the weights are no longer finite.
    """
    weights = initial_weights([train.X.shape[1], *plan.hidden, classes], rng)
    batch = min(plan.batch_size, len(train.X))
    steps = -(-len(train.X) // batch)
    model = _compiled(weights, plan, seed=int(rng.integers(2**31)), steps=steps * plan.max_epochs)
    model.set_weights([array for layer in weights for array in layer])

    history: dict[str, list[float]] = {"loss": []}
    if len(held.X):
        history |= {"val_loss": [], "val_accuracy": []}
    best, best_epoch, lowest, epoch = weights, 0, np.inf, 0
    for epoch in range(1, plan.max_epochs + 1):
        # The last batch is filled from the head of the order: one shape of batch, one trace.
        order = np.resize(rng.permutation(len(train.X)), (steps, batch))
        losses = [_step(model, train.take(rows)) for rows in order]
        history["loss"].append(float(np.mean(losses)))
        _require_finite_loss(history["loss"][-1], epoch, plan)
        if len(held.X):
            weights = _weights_of(model)
            loss, accuracy = _judge(held, weights)
            _require_finite_loss(loss, epoch, plan)
            history["val_loss"].append(loss)
            history["val_accuracy"].append(accuracy)
            if loss < lowest:
                best, best_epoch, lowest = weights, epoch, loss
        if plan.verbose:
            _LOG.info(
                "epoch %d of at most %d: %s",
                epoch,
                plan.max_epochs,
                ", ".join(f"{name} {values[-1]:.4f}" for name, values in history.items()),
            )
        if len(held.X) and epoch - best_epoch >= plan.patience:
            break
    if not len(held.X):
        best, best_epoch = _weights_of(model), epoch
    if not all(np.isfinite(array).all() for layer in best for array in layer):
        # The loss of an epoch is measured before its last step.
        _require_finite_loss(np.nan, epoch, plan)
    return Trained(best, epoch, best_epoch, history)


def _compiled(weights: DenseWeights, plan: TrainingPlan, *, seed: int, steps: int) -> Any:
    from featx.quiet import quiet_import

    with quiet_import():
        import keras

        # float32 and zeros by name: neither the caller's global dtype policy nor the seeds that
        # Keras would draw from Python's global generator may matter.
        layers: list[Any] = [keras.Input((weights[0][0].shape[0],), dtype="float32")]
        for depth, (_, bias) in enumerate(weights, start=1):
            last = depth == len(weights)
            layers.append(
                keras.layers.Dense(
                    len(bias),
                    activation=None if last else "relu",
                    kernel_initializer="zeros",
                    dtype="float32",
                )
            )
            if plan.dropout and not last:
                layers.append(
                    keras.layers.Dropout(plan.dropout, seed=seed + depth, dtype="float32")
                )
        model = keras.Sequential(layers)
        optimizer = keras.optimizers.AdamW(plan.learning_rate, weight_decay=plan.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            # A TensorFlow graph takes 0.3 s to trace and saves 13 ms a step.
            run_eagerly=steps <= _FEW_STEPS,
            # XLA on a CPU is slower here; JAX is slow without it.
            jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
        )
    return model


def _step(model: Any, rows: Rows) -> float:
    return float(
        model.train_on_batch(rows.X, rows.codes.astype(np.int32), sample_weight=rows.weights)
    )


def _weights_of(model: Any) -> DenseWeights:
    arrays: Sequence[NDArray[Any]] = [np.array(a, dtype=np.float32) for a in model.get_weights()]
    return list(zip(arrays[::2], arrays[1::2], strict=True))


def _judge(rows: Rows, weights: DenseWeights) -> tuple[float, float]:
    # A training that diverges is for the caller to say, not for NumPy's warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        scores = logits(rows.X, weights).astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        right = scores[np.arange(len(scores)), rows.codes]
        loss = np.log(np.exp(scores).sum(axis=1)) - right
    share = rows.weights / rows.weights.sum()
    return float(share @ loss), float(np.mean(scores.argmax(axis=1) == rows.codes))


def _require_finite_loss(loss: float, epoch: int, plan: TrainingPlan) -> None:
    if not np.isfinite(loss):
        raise HeadError(
            f"training diverged: the loss is {loss} in epoch {epoch} at "
            f"learning_rate={plan.learning_rate}: lower the learning rate, and put the head "
            "behind standardisation as make_head does"
        )
