"""Train many dense heads on the same batches, each stopped on its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from featx.heads.dense_arrays import Stack
from featx.heads.dense_batches import Batches
from featx.heads.network import DenseWeights, initial_weights, parameter_count
from featx.heads.training import Rows, Streams, Trained, TrainingPlan, judge

_LOG = logging.getLogger("featx")
# Tracing and compiling a smaller stack costs about as much as this much arithmetic.
_REBUILD_FLOP = 2e11


def train_stack(
    plans: Sequence[TrainingPlan],
    batches: Batches,
    held: Rows,
    outputs: int,
    streams: Streams,
    *,
    multilabel: bool = False,
    models: dict[Any, Any] | None = None,
) -> list[Trained]:
    """Fit heads by AdamW in shuffled batches, as each would be fitted alone."""
    heads = [_Head(plan, place, len(plans)) for place, plan in enumerate(plans)]
    start: list[DenseWeights] = [
        initial_weights(
            [batches.width, *plan.hidden, outputs], np.random.default_rng(streams.weights)
        )
        for plan in plans
    ]
    stack = Stack.start(plans, start, batches, streams, multilabel=multilabel, models=models)
    epoch, live = 0, list(range(len(heads)))
    while live:
        epoch += 1
        losses = stack.run_epoch(batches)
        logits, weights = stack.logits(held.X), cache(stack.weights)
        for place in live:
            judged = judge(held, logits[place]) if len(held) else None
            heads[place].note(epoch, losses[place], judged, weights)
        live = [place for place in live if not heads[place].done]
        if live:
            ends = [heads[p].earliest_end if len(held) else plans[p].max_epochs for p in live]
            left = max(ends) - epoch
            idle = [plans[place] for place in losses if heads[place].done]
            flop = sum(6.0 * parameter_count(p.hidden, batches.width, outputs) for p in idle)
            if flop * batches.rows * left > _REBUILD_FLOP:
                stack = stack.keep(live, epochs=left)
    return [head.trained for head in heads]


@dataclass(eq=False)
class _Head:
    """How far one head has come."""

    plan: TrainingPlan
    place: int
    of: int

    def __post_init__(self) -> None:
        self.trained = Trained(history={"loss": []})
        self.done = False
        self._lowest = np.inf

    @property
    def earliest_end(self) -> int:
        """The epoch at which it ends if it never improves again."""
        return min(self.plan.max_epochs, self.trained.best_epoch + self.plan.patience)

    def note(
        self,
        epoch: int,
        loss: float,
        judged: tuple[float, float] | None,
        weights: Callable[[], dict[int, DenseWeights]],
    ) -> None:
        """Take note of one more epoch, its loss, its loss and accuracy on the rows held out."""
        trained, history = self.trained, self.trained.history
        trained.epochs = epoch
        history["loss"].append(loss)
        lowered = epoch == self.plan.max_epochs
        if judged is not None:
            history.setdefault("val_loss", []).append(judged[0])
            history.setdefault("val_accuracy", []).append(judged[1])
            lowered = judged[0] < self._lowest
        if not np.isfinite([loss, *(judged or ())]).all():
            self._fail(loss if judged is None or not np.isfinite(loss) else judged[0])
            return
        if lowered:
            self._keep(epoch, weights()[self.place])
            self._lowest = np.inf if judged is None else judged[0]
        if self.plan.verbose and not self.trained.failure:
            self._log(epoch)
        patient = judged is None or epoch - trained.best_epoch < self.plan.patience
        self.done = self.done or not patient or epoch >= self.plan.max_epochs

    def _keep(self, epoch: int, weights: DenseWeights) -> None:
        copied: DenseWeights = [
            (np.array(kernel, order="C"), np.array(bias)) for kernel, bias in weights
        ]
        # The loss of an epoch is measured before its last step.
        if not all(np.isfinite(array).all() for layer in copied for array in layer):
            self._fail(np.nan)
            return
        self.trained.weights, self.trained.best_epoch = copied, epoch

    def _fail(self, loss: float) -> None:
        self.done = True
        self.trained.failure = (
            f"training diverged: the loss is {loss} in epoch {self.trained.epochs} at "
            f"learning_rate={self.plan.learning_rate}: lower the learning rate, and put the head "
            "behind standardisation as make_head does"
        )

    def _log(self, epoch: int) -> None:
        values = ", ".join(f"{name} {values[-1]:.4f}" for name, values in self._history())
        which = "" if self.of == 1 else f"head {self.place + 1} of {self.of}, "
        _LOG.info("%sepoch %d of at most %d: %s", which, epoch, self.plan.max_epochs, values)

    def _history(self) -> list[tuple[str, list[float]]]:
        return list(self.trained.history.items())
