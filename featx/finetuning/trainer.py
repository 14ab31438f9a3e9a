"""The training itself: epochs, the best of them, checkpoints, and the ways it may end early."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.engines.backends import load_adapter
from featx.finetuning.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from featx.finetuning.history import Epoch, Trained, hold_out_scores
from featx.finetuning.inputs import Inputs
from featx.finetuning.mixing import mix
from featx.finetuning.network import TunedNetwork
from featx.finetuning.optimizer import learning_rate_at, make_optimizer, read_state, write_state
from featx.finetuning.options import FineTuneOptions

HISTORY = "history.jsonl"
"""Name of the file with one line an epoch."""

_LOG = logging.getLogger("featx")
_HOLD_OUT_BATCH = 64
# A loss of so many times that of guessing, or of the start, is no noise of a batch.
_DIVERGED = 5.0
_SMOOTHING = 0.8


class Training:
    """One training, which goes on from its checkpoint where there is one."""

    def __init__(
        self,
        network: TunedNetwork,
        inputs: Inputs,
        codes: NDArray[np.intp],
        rows: NDArray[np.intp],
        held_out: NDArray[np.intp],
        options: FineTuneOptions,
        folder: Path,
        job: str,
        *,
        class_weights: NDArray[np.float64] | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
        on_step: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self._network, self._inputs, self._codes = network, inputs, codes
        self._rows, self._held_out, self._options = rows, held_out, options
        self._folder, self._job = folder, job
        self._class_weights = class_weights
        self._on_epoch, self._on_step = on_epoch, on_step
        self._classes = int(codes.max()) + 1
        self._steps_an_epoch = math.ceil(len(rows) / options.batch_size)
        self._parts = 1
        self._shares: list[float] = []
        self._optimizer: Any = None
        self.losses: list[float] = []
        """Loss of every step of this run."""

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept while the training is under way."""
        return self._folder / "checkpoint.npz"

    def run(self) -> Trained:
        """Train, and leave the weights of the best epoch in the network."""
        state = self._resumed() or self._begun()
        self._loss_of_start = float(state.history[0]["val_loss"])
        stopped, interrupted = "", False
        try:
            while state.epochs < self._options.epochs and not stopped:
                stopped = self._epoch(state) or self._patience_is_over(state)
        except KeyboardInterrupt:
            stopped, interrupted = "interrupted", True
        # Weights of an epoch that was not finished are nobody's.
        self._set_weights(state.best if state.best_epoch else self._start)
        found = self._predict()
        return Trained(state.history, state.best_epoch, stopped, interrupted, found)

    def prepare(self) -> None:
        """Set up for the first epoch without scoring or keeping anything, as to time epochs."""
        self._start = self._weights()
        self._loss_of_start = math.inf
        self._compile(1)

    def _begun(self) -> Checkpoint:
        started = time.perf_counter()
        self._start = self._weights()
        accuracy, loss = hold_out_scores(self._predict(), self._codes[self._held_out])
        self._compile(1)
        first = Epoch(0, math.nan, loss, accuracy, 0.0, time.perf_counter() - started)
        state = Checkpoint(self._job, history=[{**first.to_dict(), "loss": None}])
        self._keep(state)
        if self._on_epoch:
            self._on_epoch(first)
        return state

    def _resumed(self) -> Checkpoint | None:
        state = read_checkpoint(self.checkpoint)
        if state is None:
            return None
        if state.job != self._job:
            _LOG.warning(
                "%s is of another training (other data, model or options): starting anew",
                self.checkpoint,
            )
            return None
        self._start = self._weights()
        self._parts = state.batches_a_step
        self._compile(state.epochs)
        self._restore(state)
        if self._on_epoch:
            for entry in state.history:
                self._on_epoch(Epoch(**{**entry, "loss": entry["loss"] or math.nan}))
        return state

    def _restore(self, state: Checkpoint) -> None:
        """Go back to the end of the last epoch that was finished."""
        self._set_weights(state.weights)
        write_state(self._optimizer, state.optimizer)

    def _compile(self, epoch: int) -> None:
        """Set up for an epoch (from 1): which blocks are trained, and in how many parts."""
        options, network = self._options, self._network
        trained = epoch - 1 if options.gradual else None
        shares = network.rate_shares(options.depth_decay, trained)
        if self._optimizer is not None and shares == self._shares:
            return
        import keras

        before = self._optimizer
        self._shares = shares
        self._optimizer = make_optimizer(
            shares, weight_decay=options.weight_decay, accumulate=self._parts
        )
        self._optimizer.build(network.model.trainable_variables)
        if before is not None:
            write_state(self._optimizer, read_state(before))
        network.model.compile(
            optimizer=self._optimizer,
            loss=keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=options.label_smoothing
            ),
        )

    def _epoch(self, state: Checkpoint) -> str:
        """Train one epoch; return why the training has to end, if it has to."""
        epoch = state.epochs + 1
        started = time.perf_counter()
        self._compile(epoch)
        while True:
            try:
                loss, rate, trouble = self.steps_of_epoch(epoch)
                break
            except Exception as error:
                if not self._halved(error, state):
                    raise
        if trouble:
            return trouble
        accuracy, val_loss = hold_out_scores(self._predict(), self._codes[self._held_out])
        seconds = time.perf_counter() - started
        done = Epoch(epoch, loss, val_loss, accuracy, rate, seconds)
        better = _is_better(done.to_dict(), state.history[state.best_epoch])
        state.history.append(done.to_dict())
        state.epochs = epoch
        if better:
            state.best_epoch, state.best = epoch, self._weights()
        self._keep(state)
        if self._on_epoch:
            self._on_epoch(done)
        return ""

    def steps_of_epoch(self, epoch: int) -> tuple[float, float, str]:
        """Take the steps of one epoch (from 1), without the hold-out."""
        options = self._options
        rng = np.random.default_rng([options.seed, epoch])
        order = rng.permutation(self._rows)
        turn = (epoch - 1) % (1 + self._inputs.views)
        view = turn - 1 if turn else None
        limit = _DIVERGED * max(math.log(self._classes), self._loss_of_start)
        smooth, total, rate = 0.0, 0.0, 0.0
        for number, inputs in enumerate(self._inputs.batches(order, options.batch_size, view)):
            step = (epoch - 1) * self._steps_an_epoch + number
            rate = learning_rate_at(
                step,
                options.epochs * self._steps_an_epoch,
                highest=options.learning_rate,
                warmup=options.warmup,
            )
            rows = order[number * options.batch_size : (number + 1) * options.batch_size]
            loss = self._step(inputs, rows, rate, rng)
            self.losses.append(loss)
            smooth = loss if number == 0 else _SMOOTHING * smooth + (1 - _SMOOTHING) * loss
            if not math.isfinite(loss) or smooth > limit:
                return (
                    loss,
                    rate,
                    (
                        f"the loss diverged ({loss:.3g}) at step {step + 1}, in epoch {epoch}, "
                        f"at a learning rate of {rate:.2g}: take a lower --learning-rate"
                    ),
                )
            total += loss * len(rows)
            if self._on_step:
                done = min(len(order), (number + 1) * options.batch_size)
                self._on_step(epoch, done, len(order))
        return total / len(order), rate, ""

    def _step(
        self, inputs: list[Any], rows: NDArray[np.intp], rate: float, rng: np.random.Generator
    ) -> float:
        options = self._options
        targets = np.zeros((len(rows), self._classes), np.float32)
        targets[np.arange(len(rows)), self._codes[rows]] = 1
        inputs, targets = mix(inputs, targets, options.mixing, options.mixing_alpha, rng)
        weights = None
        if self._class_weights is not None:
            weights = (targets @ self._class_weights).astype(np.float32)
        self._optimizer.learning_rate = rate
        if self._parts == 1:
            return self._batch(inputs, targets, weights)
        # A step is taken after so many parts and not before, so that none may be empty; gradients
        # of the parts count the same, so that images of a small part count for more of it.
        places = np.resize(np.arange(len(rows)), max(len(rows), self._parts))
        weights = np.ones(len(rows), np.float32) if weights is None else weights
        total = 0.0
        for part in np.array_split(places, self._parts):
            share = np.float32(len(part) * self._parts / len(places))
            total += self._batch([x[part] for x in inputs], targets[part], weights[part] * share)
        return total / self._parts

    def _batch(
        self,
        inputs: list[Any],
        targets: NDArray[np.float32],
        weights: NDArray[np.float32] | None,
    ) -> float:
        model = self._network.model
        model.reset_metrics()  # otherwise the loss is the mean over all batches so far
        return float(model.train_on_batch(inputs, targets, weights))

    def _halved(self, error: Exception, state: Checkpoint) -> bool:
        """Compute batches in twice as many parts where memory ran out; then the epoch is redone."""
        adapter = load_adapter()
        exhausted = isinstance(error, MemoryError) or adapter.out_of_memory(error)
        if not exhausted or 2 * self._parts > self._options.batch_size:
            return False
        self._parts *= 2
        state.batches_a_step = self._parts
        _LOG.warning(
            "memory ran out: going on with batches of %d images, %d of them a step",
            max(1, self._options.batch_size // self._parts),
            self._parts,
        )
        adapter.clean_up()
        self._restore(state)
        self._shares = []
        self._compile(state.epochs + 1)
        return True

    def _patience_is_over(self, state: Checkpoint) -> str:
        waited = state.epochs - state.best_epoch
        if waited < self._options.patience or state.epochs >= self._options.epochs:
            return ""
        return f"no better hold-out score for {waited} epochs"

    def _predict(self) -> NDArray[np.float32]:
        batches = self._inputs.batches(self._held_out, _HOLD_OUT_BATCH)
        return np.concatenate([self._network.probabilities(batch) for batch in batches])

    def _weights(self) -> list[NDArray[Any]]:
        return [np.array(value) for value in self._network.model.get_weights()]

    def _set_weights(self, weights: list[NDArray[Any]]) -> None:
        self._network.model.set_weights(weights)

    def _keep(self, state: Checkpoint) -> None:
        state.weights = self._weights()
        state.optimizer = read_state(self._optimizer)
        write_checkpoint(self.checkpoint, state)
        lines = "".join(json.dumps(entry) + "\n" for entry in state.history)
        (self._folder / HISTORY).write_text(lines, "utf-8")


def _is_better(now: dict[str, Any], best: dict[str, Any]) -> bool:
    def rank(entry: dict[str, Any]) -> tuple[float, float]:
        return entry["val_accuracy"], -entry["val_loss"]

    return rank(now) > rank(best)
