"""Fit dense heads on more rows than memory holds: statistics and batches come from a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.dense_batches import BatchSource, StreamedBatches, require_batch
from featx.heads.dense_many import alike, keep_trained, plan_of, split_rows
from featx.heads.dense_stack import train_stack
from featx.heads.dense_targets import Problem, read_targets
from featx.heads.training import Rows, Streams

if TYPE_CHECKING:
    from featx.heads.dense import DenseClassifier

_HELD_SHARE = 4


def fit_streamed(
    head: Any,
    source: BatchSource,
    y: Any,
    sample_weight: Any = None,
    *,
    max_ram_bytes: int = 256 << 20,
) -> Any:
    """Fit one dense head, alone or behind a ``StandardScaler``, on a stream of batches."""
    scaler, dense = _parts(head)
    (failure,) = fit_streamed_heads(
        [dense], source, y, sample_weight, scaler=scaler, max_ram_bytes=max_ram_bytes
    )
    if failure:
        raise HeadError(failure)
    return head


def fit_streamed_heads(
    heads: Sequence[DenseClassifier],
    source: BatchSource,
    y: Any,
    sample_weight: Any = None,
    *,
    scaler: Any = None,
    max_ram_bytes: int = 256 << 20,
) -> list[str]:
    """Fit heads together on a stream of batches; see `fit_streamed` and `fit_heads`."""
    failures = [""] * len(heads)
    for head in heads:
        head._validate_params()
    count = int(np.shape(y)[0]) if not hasattr(y, "shape") else int(y.shape[0])
    width = _learn_statistics(source, count, scaler)
    scaled = _Scaled(source, scaler, count)
    for seed, places in alike(heads):
        members = [heads[place] for place in places]
        problem = read_targets(
            y, count, class_weight=members[0].class_weight, sample_weight=sample_weight
        )
        streams = Streams.of(seed)
        most = max(1, max_ram_bytes // _HELD_SHARE // (4 * width))
        train, held = split_rows(problem, members[0].validation_fraction, streams, most=most)
        batches = StreamedBatches(
            scaled,
            problem.targets,
            problem.weights,
            train,
            width=width,
            batch_size=members[0].batch_size,
            seed=streams.order,
        )
        trained = train_stack(
            [plan_of(head) for head in members],
            batches,
            _gather(scaled, problem, held, width),
            len(problem.classes),
            streams,
            multilabel=problem.multilabel,
        )
        for place, head, result in zip(places, members, trained, strict=True):
            head.n_features_in_ = width
            failures[place] = keep_trained(head, result, problem, like=head)
    return failures


class _Scaled:
    """The stream, standardised."""

    def __init__(self, source: BatchSource, scaler: Any, count: int) -> None:
        self._source, self._scaler, self._count = source, scaler, count

    def __call__(self, seed: int) -> Iterator[tuple[NDArray[Any], NDArray[np.intp]]]:
        for X, rows in self._source(seed):
            if self._scaler is None:
                yield X, rows
            else:
                features, numbers = require_batch(X, rows, self._count)
                yield self._scaler.transform(features), numbers


def _learn_statistics(source: BatchSource, count: int, scaler: Any) -> int:
    """Pass over the stream once: fit the scaler, count the rows, give the number of features."""
    if scaler is not None:
        scaler._reset()
    seen = np.zeros(count, dtype=bool)
    width: int | None = None
    total = 0
    for part, rows in source(0):
        features, numbers = require_batch(part, rows, count, width)
        width = features.shape[1]
        seen[numbers] = True
        total += len(numbers)
        if scaler is None:
            break
        scaler.partial_fit(features)
    if width is None:
        raise HeadError(
            "the stream gave no batch: expected pairs (X, rows) from every call of the source"
        )
    if scaler is not None and (total != count or not seen.all()):
        raise HeadError(
            f"expected each of {count} labelled rows once a pass, received {total} rows, "
            f"{int(seen.sum())} of them different: number the rows as the labels are"
        )
    return width


def _gather(source: BatchSource, problem: Problem, rows: NDArray[np.intp], width: int) -> Rows:
    X = np.empty((len(rows), width), dtype=np.float32)
    if len(rows):
        place = np.full(len(problem.targets), -1)
        place[rows] = np.arange(len(rows))
        for part, numbers in source(0):
            features, numbers = require_batch(part, numbers, len(place), width)
            wanted = place[numbers] >= 0
            X[place[numbers[wanted]]] = features[wanted]
    return Rows(X, problem.targets[rows], problem.weights[rows])


def _parts(head: Any) -> tuple[Any, Any]:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    from featx.heads.dense import DenseClassifier

    steps = [step for _, step in head.steps] if isinstance(head, Pipeline) else [head]
    scalers, dense = steps[:-1], steps[-1]
    if (
        not isinstance(dense, DenseClassifier)
        or len(scalers) > 1
        or not all(isinstance(scaler, StandardScaler) for scaler in scalers)
    ):
        raise HeadError(
            f"only a dense head, alone or behind a StandardScaler, trains on a stream; received "
            f"{head!r}: make it with make_head('dense')"
        )
    return (scalers[0] if scalers else None), dense
