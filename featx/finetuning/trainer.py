"""Train the top of a network: batches, learning rates, checkpoints, early stopping."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.engines.backends import load_adapter
from featx.exceptions import FineTuningError
from featx.exporting.formats import Tensor
from featx.files.outputs import written_whole
from featx.files.safe_json import Json
from featx.files.safe_npy import open_npz
from featx.finetuning.network import TunedNetwork
from featx.finetuning.start import Array, Arrays, Inputs, Mixing, Start
from featx.heads.rows import Floats, Numbers

Optimizer: TypeAlias = Any
"""A ``keras.optimizers.Optimizer``; Keras has no types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What an epoch came to; numbers of the hold-out are without augmentation."""

    epoch: int  # from 1; 0 is the start
    loss: float  # mean over the training images, with smoothing and mixing
    # Of the hold-out: log loss and share that is right; of numbers the squared error of scaled
    # ones, R² and RMSE.
    val_loss: float
    val_accuracy: float | None = None
    val_r2: float | None = None
    val_rmse: float | None = None
    learning_rate: float  # of the head, at the end of the epoch
    seconds: float  # for training and hold-out

    @property
    def scores(self) -> dict[str, float]:
        """Scores of the hold-out by the names that results have."""
        known = {
            "accuracy": self.val_accuracy,
            "log_loss": None if self.val_accuracy is None else self.val_loss,
            "r2": self.val_r2,
            "rmse": self.val_rmse,
        }
        return {name: score for name, score in known.items() if score is not None}

    def to_dict(self) -> Json:
        """Return what it has as JSON types."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(slots=True)
class Trained:
    """How a training ended."""

    history: list[Json]  # the start, and one entry an epoch, see `Epoch`
    best_epoch: int  # 0 where no epoch was better than the start
    stopped: str  # why it ended before its last epoch
    interrupted: bool  # whether the user ended it
    answers: Floats  # for the hold-out, after the best epoch: probabilities or numbers
    temperature: float  # that the head was divided by after it; 1 where that is 0


def learning_rate_at(step: int, steps: int, *, highest: float, warmup: float) -> float:
    """Return the rate of a step: rising linearly, then falling along half a cosine to 0."""
    rising = round(warmup * steps)
    if step < rising:
        return highest * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(
    shares: Sequence[float], *, weight_decay: float, accumulate: int = 1
) -> Optimizer:
    """Make AdamW with a share of the learning rate for every variable."""
    import keras

    class LayerwiseAdamW(keras.optimizers.Adam):  # type: ignore[misc, name-defined, unused-ignore]
        def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
            # Of a variable that is not trained yet the moments are kept all the same, so that its
            # first step is not a leap.
            share = shares[self._get_variable_index(variable)]
            rate = keras.ops.cast(learning_rate, variable.dtype) * share
            if weight_decay and len(variable.shape) > 1:
                self.assign_sub(variable, variable * (rate * weight_decay))
            super().update_step(gradient, variable, rate)

    return LayerwiseAdamW(gradient_accumulation_steps=accumulate if accumulate > 1 else None)


def read_state(optimizer: Optimizer) -> Arrays:
    """Return steps taken and moments, between two steps; `write_state` takes them back."""
    parts = optimizer.gradient_accumulation_steps or 1
    lasting = _lasting(optimizer)
    return [np.array(v) // parts if _counts_batches(v) else np.array(v) for v in lasting]


def write_state(optimizer: Optimizer, state: Sequence[Array]) -> None:
    """Take over what `read_state` gave of an optimizer for the same variables."""
    parts = optimizer.gradient_accumulation_steps or 1
    for variable, value in zip(_lasting(optimizer), state, strict=True):
        variable.assign(value * parts if _counts_batches(variable) else value)


def _lasting(optimizer: Optimizer) -> list[Tensor]:
    return [v for v in optimizer.variables if "gradient_accumulator" not in v.path]


def _counts_batches(variable: Tensor) -> bool:
    return bool(variable.path.endswith("iteration"))


def mix(
    inputs: Arrays,
    targets: NDArray[np.float32],
    how: Mixing,
    alpha: float,
    rng: np.random.Generator,
) -> tuple[Arrays, NDArray[np.float32]]:
    """Mix every image of a batch with another one of it."""
    if how == "none" or len(targets) < 2:
        return inputs, targets
    share = float(rng.beta(alpha, alpha))
    partner = rng.permutation(len(targets))
    if how == "mixup":
        inputs = [_blend(x, x[partner], share) for x in inputs]
    else:
        inputs, share = _pasted(inputs, partner, share, rng)
    blended: NDArray[np.float32] = share * targets + (1 - share) * targets[partner]
    return inputs, blended.astype(np.float32)


def _blend(a: Array, b: Array, share: float) -> Array:
    mixed = share * a.astype(np.float32) + (1 - share) * b.astype(np.float32)
    return np.rint(mixed).astype(np.uint8) if a.dtype == np.uint8 else mixed.astype(a.dtype)


def _pasted(
    inputs: Arrays, partner: Numbers, share: float, rng: np.random.Generator
) -> tuple[Arrays, float]:
    """Paste a square of the partner into each image; return, too, the share that is left of it."""
    side, centre = math.sqrt(1 - share), (rng.random(), rng.random())
    pasted, left = [], []
    for x in inputs:
        box = [
            slice(round(max(0.0, at - side / 2) * length), round(min(1.0, at + side / 2) * length))
            for at, length in zip(centre, x.shape[1:3] if x.ndim == 4 else (), strict=False)
        ]
        image = x.copy() if box else x
        if box:
            image[:, box[0], box[1]] = x[partner][:, box[0], box[1]]
        pasted.append(image)
        # Counted in positions, of which what is no image has none.
        inside = math.prod((b.stop - b.start) / n for b, n in zip(box, x.shape[1:3], strict=False))
        left.append(1 - inside if box else 1.0)
    return pasted, left[0]


_LOG = logging.getLogger("featx")
_DESCRIPTION = "description"
_FIELDS = ("job", "epochs", "batches_a_step", "history", "best_epoch")
_GROUPS = ("weights", "optimizer", "best")


@dataclass(slots=True)
class Checkpoint:
    """What is needed to resume."""

    job: str  # digest of everything that decides the course of the training
    epochs: int = 0  # that are done
    batches_a_step: int = 1  # in how many parts a batch is computed, as memory allows
    history: list[Json] = field(default_factory=list)
    weights: Arrays = field(default_factory=list)  # variables of the network
    optimizer: Arrays = field(default_factory=list)
    best: Arrays = field(default_factory=list)  # of the network after the best epoch, if not 0
    best_epoch: int = 0


def write_checkpoint(path: Path, state: Checkpoint) -> None:
    """Write a checkpoint by rename, so that a kill leaves the earlier one."""
    arrays: dict[str, Array] = {}
    for group in _GROUPS:
        for number, array in enumerate(getattr(state, group)):
            arrays[f"{group}_{number}"] = array
    description = {
        **{name: getattr(state, name) for name in _FIELDS},
        "counts": {group: len(getattr(state, group)) for group in _GROUPS},
    }
    arrays[_DESCRIPTION] = np.frombuffer(json.dumps(description).encode(), np.uint8)
    # Always by the same name, so that kills leave one unfinished file and not many.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, temporary=temporary), temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type, unused-ignore]
    except OSError as error:
        raise FineTuningError(
            f"cannot write {path}: {error.strerror or error}. Free some space, or name another "
            "place with -o"
        ) from error


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint at a path, None where there is none; a damaged one is named."""
    try:
        with open_npz(path, most_ratio=1) as file:
            description = json.loads(file.read(_DESCRIPTION).tobytes())
            arrays: dict[str, Any] = {
                group: [file.read(f"{group}_{number}") for number in range(count)]
                for group, count in description.pop("counts").items()
            }
            return Checkpoint(**description, **arrays)
    except FileNotFoundError:
        return None
    except Exception as error:  # `zipfile` and `numpy` have no base of their errors
        _LOG.warning("%s is damaged, so training starts anew: %s", path, str(error)[:200])
        return None


HISTORY = "history.jsonl"
"""Name of the file with one line an epoch."""

_HOLD_OUT_BATCH = 64
# A loss of so many times that of guessing, or of the start, is no noise of a batch.
_DIVERGED = 5.0
_SMOOTHING = 0.8


class Training:
    """One training, which resumes from its checkpoint where there is one.

    Notes
    -----
    The loop is not that of Keras's `fit`: batches of an epoch are drawn from the seed and its
    number alone, an epoch in which memory runs out is done again in smaller parts, and the moments
    of the optimizer outlast a change of rates. So a killed training ends with the same weights.
    """

    def __init__(
        self,
        start: Start,
        network: TunedNetwork,
        inputs: Inputs,
        folder: Path,
        job: str,
        *,
        on_epoch: Callable[[Epoch], None] | None = None,
        on_step: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self._network, self._inputs, self._objective = network, inputs, start.objective
        options = start.options
        self._rows, self._held_out, self._options = start.rows, start.held_out, options
        self._folder, self._job = folder, job
        self._class_weights = self._objective.class_weights(options.class_weight, start.rows)
        self._on_epoch, self._on_step = on_epoch, on_step
        self._guessing = self._objective.guessing(start.rows, options.batch_size)
        self._steps_an_epoch = math.ceil(len(start.rows) / options.batch_size)
        self._highest_rate = options.rate_for(len(start.rows))
        self._parts = 1
        self._shares: list[float] = []
        self._optimizer: Optimizer = None
        self.losses: list[float] = []
        """Loss of every step of this run."""

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept while the training is under way."""
        return self._folder / "checkpoint.npz"

    def run(self) -> Trained:
        """Train, and leave the weights of the best epoch in the network, its confidence mended."""
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
        outputs, temperature = self._outputs(), 1.0
        if state.best_epoch:
            temperature = self._objective.temperature(outputs, self._held_out)
            self._network.cool(temperature)
        answers = self._objective.answers(outputs / np.float32(temperature))
        return Trained(state.history, state.best_epoch, stopped, interrupted, answers, temperature)

    def prepare(self) -> None:
        """Set up for the first epoch without scoring or keeping anything, as to time epochs."""
        self._start = self._weights()
        self._loss_of_start = math.inf
        self._compile(1)

    def _begun(self) -> Checkpoint:
        started = time.perf_counter()
        self._start = self._weights()
        scores = self._scores()
        self._compile(1)
        seconds = time.perf_counter() - started
        first = Epoch(epoch=0, loss=math.nan, learning_rate=0.0, seconds=seconds, **scores)
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
            loss=self._objective.loss(options.loss, options.label_smoothing),
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
        scores = self._scores()
        seconds = time.perf_counter() - started
        done = Epoch(epoch=epoch, loss=loss, learning_rate=rate, seconds=seconds, **scores)
        rank = self._objective.rank
        better = rank(scores) > rank(state.history[state.best_epoch])
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
        limit = _DIVERGED * max(self._guessing, self._loss_of_start)
        smooth, total, rate = 0.0, 0.0, 0.0
        for number, inputs in enumerate(self._inputs.batches(order, options.batch_size, view)):
            step = (epoch - 1) * self._steps_an_epoch + number
            rate = learning_rate_at(
                step,
                options.epochs * self._steps_an_epoch,
                highest=self._highest_rate,
                warmup=options.warmup,
            )
            rows = order[number * options.batch_size : (number + 1) * options.batch_size]
            loss = self._step(inputs, rows, rate, rng)
            self.losses.append(loss)
            smooth = loss if number == 0 else _SMOOTHING * smooth + (1 - _SMOOTHING) * loss
            if not math.isfinite(loss) or smooth > limit:
                trouble = (
                    f"the loss diverged ({loss:.3g}) at step {step + 1}, in epoch {epoch}, "
                    f"at a learning rate of {rate:.2g}: take a lower --learning-rate"
                )
                return loss, rate, trouble
            total += loss * len(rows)
            if self._on_step:
                done = min(len(order), (number + 1) * options.batch_size)
                self._on_step(epoch, done, len(order))
        return total / len(order), rate, ""

    def _step(self, inputs: Arrays, rows: Numbers, rate: float, rng: np.random.Generator) -> float:
        options = self._options
        targets = self._objective.targets(rows)
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
        self, inputs: Arrays, targets: NDArray[np.float32], weights: NDArray[np.float32] | None
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

    def _scores(self) -> dict[str, float]:
        """Return the scores of the hold-out."""
        answers = self._objective.answers(self._outputs())
        return self._objective.hold_out_scores(answers, self._held_out)

    def _outputs(self) -> NDArray[np.float32]:
        batches = self._inputs.batches(self._held_out, _HOLD_OUT_BATCH)
        return np.concatenate([self._network.logits(batch) for batch in batches])

    def _weights(self) -> Arrays:
        return [np.array(value) for value in self._network.model.get_weights()]

    def _set_weights(self, weights: Arrays) -> None:
        self._network.model.set_weights(weights)

    def _keep(self, state: Checkpoint) -> None:
        state.weights = self._weights()
        state.optimizer = read_state(self._optimizer)
        write_checkpoint(self.checkpoint, state)
        lines = "".join(json.dumps(entry) + "\n" for entry in state.history)
        (self._folder / HISTORY).write_text(lines, "utf-8")
