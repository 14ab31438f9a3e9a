"""Fit many dense heads at once: those that share their batches are trained as one stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from featx.heads.dense_batches import MemoryBatches
from featx.heads.dense_stack import train_stack
from featx.heads.dense_targets import Problem, read_targets, read_training
from featx.heads.network import parameter_count
from featx.heads.training import Rows, Streams, Trained, TrainingPlan, hold_out

if TYPE_CHECKING:
    from featx.heads.dense import DenseClassifier

# Weights, gradients, two moments and the best weights of so many parameters take about 1 GB.
_MOST_PARAMETERS = 48_000_000


def fit_heads(
    heads: Sequence[DenseClassifier],
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    models: dict[Any, Any] | None = None,
) -> list[str]:
    """Fit heads in place, each as its own ``fit`` would."""
    failures = [""] * len(heads)
    if not heads:
        return failures
    for head in heads:
        head._validate_params()
    first = heads[0]
    features, problem = read_training(first, X, y, sample_weight)
    for seed, places in alike(heads):
        members = [heads[place] for place in places]
        if members[0].class_weight != first.class_weight:
            labels = problem.targets if problem.multilabel else problem.classes[problem.targets]
            problem = read_targets(
                labels,
                len(features),
                class_weight=members[0].class_weight,
                sample_weight=sample_weight,
            )
            first = members[0]
        streams = Streams.of(seed)
        train, held = split_rows(problem, members[0].validation_fraction, streams)
        data = Rows(features, problem.targets, problem.weights)
        held_rows = Rows(features[held], problem.targets[held], problem.weights[held])

        for part in _parts(members, features.shape[1], len(problem.classes)):
            trained = train_stack(
                [plan_of(members[number]) for number in part],
                MemoryBatches(data, train, members[0].batch_size, streams.order),
                held_rows,
                len(problem.classes),
                streams,
                multilabel=problem.multilabel,
                models=models,
            )
            for number, result in zip(part, trained, strict=True):
                failures[places[number]] = keep_trained(
                    members[number], result, problem, like=heads[0]
                )
    return failures


def split_rows(
    problem: Problem, fraction: float, streams: Streams, *, most: int | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Choose the rows that a stack trains on, and those that say when its heads stop."""
    targets = problem.targets[problem.rows]
    if not problem.multilabel:
        # A class whose rows all have the weight 0 is absent here.
        targets = np.unique(targets, return_inverse=True)[1]
    train, held = hold_out(targets, fraction, np.random.default_rng(streams.held), most=most)
    return problem.rows[train], problem.rows[held]


def alike(heads: Sequence[DenseClassifier]) -> Iterator[tuple[int, list[int]]]:
    """Give the seed and the places of heads that see the same batches."""
    groups: dict[Any, list[int]] = {}
    for place, head in enumerate(heads):
        key = (
            seed_of(head),
            int(head.batch_size),
            float(head.validation_fraction),
            repr(head.class_weight),
        )
        groups.setdefault(key, []).append(place)
    for key, places in groups.items():
        yield key[0], places


def seed_of(head: DenseClassifier) -> int:
    """Draw the number that all randomness of a head comes from."""
    return int(check_random_state(head.random_state).randint(2**31 - 1))


def plan_of(head: DenseClassifier) -> TrainingPlan:
    """Give a head's parameters as a plan."""
    return TrainingPlan(
        hidden=tuple(int(size) for size in head.hidden),
        dropout=float(head.dropout),
        learning_rate=float(head.learning_rate),
        weight_decay=float(head.weight_decay),
        label_smoothing=float(head.label_smoothing),
        max_epochs=int(head.max_epochs),
        patience=int(head.patience),
        verbose=int(head.verbose),
    )


def keep_trained(
    head: DenseClassifier, trained: Trained, problem: Problem, *, like: DenseClassifier
) -> str:
    """Put what training gave into a head; give the reason where it diverged."""
    if trained.failure:
        return trained.failure
    head.classes_ = problem.classes
    head.multilabel_ = problem.multilabel
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(like, name):
            setattr(head, name, getattr(like, name))
    head.weights_ = trained.weights
    head.n_iter_, head.best_epoch_ = trained.epochs, trained.best_epoch
    head.history_ = trained.history
    return ""


def _parts(heads: Sequence[DenseClassifier], width: int, outputs: int) -> Iterator[list[int]]:
    """Cut a stack where it would take too much memory."""
    part: list[int] = []
    size = 0
    for place, head in enumerate(heads):
        count = parameter_count(plan_of(head).hidden, width, outputs)
        if part and size + count > _MOST_PARAMETERS:
            yield part
            part, size = [], 0
        part.append(place)
        size += count
    yield part
