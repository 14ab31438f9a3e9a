"""Measure candidates on folds: together where their head has a sweep, in parallel otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.rows import Fold
from featx.selection.costs import training_cost
from featx.selection.fitting import fit_in_parallel
from featx.selection.fold_data import FeatureBlock, FoldData, fold_data
from featx.selection.journal import Journal
from featx.selection.scoring import Scorer
from featx.selection.space import Candidate, Place
from featx.selection.sweeping import find_sweep, measure_together
from featx.selection.transforms import parse_transform
from featx.selection.trials import Measured, Trial

Watch: TypeAlias = Callable[[list[Trial], int], None]
"""Called with the trials that are finished and the number of those that are planned."""


@dataclass(eq=False)
class Measuring:
    """Measures candidates on the folds of some rows, and keeps what is finished.

    Parameters
    ----------
    blocks : mapping of (backbone, tap) to FeatureBlock
        The features.
    rows : ndarray of shape (n,)
        Rows of the blocks that this is about.
    codes : ndarray of shape (n,)
        Their classes, 0 to k - 1.
    groups : ndarray of shape (n,), int64
        Rows with equal numbers belong together.
    folds : sequence of (train, test)
        Places in `rows`.
    scorer : Scorer
        How predictions are scored.
    journal : Journal
        What was finished before, and where to keep more.
    scope : str, default "main"
        Tells the trials of this object from others of the same journal.
    seed : int, default 0
        Seed of the heads.
    n_jobs : int, default -1
        Number of fits at a time.
    deadline : float, optional
        Moment of `time.monotonic` after which nothing is started; one trial always is.
    watch : callable, optional
        Is told of finished trials.
    sets : ndarray of shape (k, labels), optional
        Labels of each class, where an image has several.
    """

    blocks: Mapping[Place, FeatureBlock]
    rows: NDArray[np.intp]
    codes: NDArray[np.intp]
    groups: NDArray[np.int64]
    folds: Sequence[Fold]
    scorer: Scorer
    journal: Journal
    scope: str = "main"
    seed: int = 0
    n_jobs: int = -1
    deadline: float | None = None
    watch: Watch | None = None
    sets: NDArray[np.intp] | None = None
    trials: dict[Candidate, Trial] = field(default_factory=dict)
    untried: set[Candidate] = field(default_factory=set)
    _data: dict[tuple[Place, float], FoldData] = field(default_factory=dict)

    def measure(self, candidates: Sequence[Candidate], *, share: float = 1.0) -> list[Trial]:
        """Measure candidates, each trained on a share of the training rows of each fold."""
        found: dict[Candidate, Measured] = {}
        sizes = _sizes(candidates)
        for unit in units_of(candidates, spread=self.deadline is not None):
            known = [(one, self._find(one, share)) for one in unit]
            found |= {one: measured for one, measured in known if measured is not None}
            missing = [one for one, measured in known if measured is None]
            if missing and self._expired(found):
                self.untried.update(missing)
                continue
            if missing:
                for one, measured in self._measure(unit, missing, share, sizes, found):
                    found[one] = measured
                    self._tell(found, share, len(candidates))
            self._tell(found, share, len(candidates))
        trials = [Trial(one, found[one], share) for one in candidates if one in found]
        self.trials |= {trial.candidate: trial for trial in trials}
        self.untried -= set(found)
        return trials

    def data(self, place: Place, share: float, sizes: list[float]) -> FoldData:
        """Return the rows of the folds of one block; one block is held at a time."""
        if (place, share) not in self._data:
            self._data.clear()
            self._data[place, share] = fold_data(
                self.blocks[place],
                self.rows,
                self.codes,
                self.folds,
                share=share,
                order=self._order(),
                sizes=sizes,
                sets=self.sets,
            )
        data = self._data[place, share]
        if set(sizes) - set(data.sizes):
            data.sizes += sizes
            data.forget_components()
        return data

    def _order(self) -> NDArray[np.intp]:
        """Shuffle groups, not rows, so that few rows are of few groups as all rows would be."""
        numbers = np.random.default_rng(self.seed).permutation(int(self.groups.max()) + 1)
        return np.argsort(numbers[self.groups], kind="stable")

    def _measure(
        self,
        unit: Sequence[Candidate],
        missing: Sequence[Candidate],
        share: float,
        sizes: list[float],
        found: Mapping[Candidate, Measured],
    ) -> Iterable[tuple[Candidate, Measured]]:
        first = unit[0]
        data = self.data((first.backbone, first.tap), share, sizes)
        sweep = None
        if self.sets is None:
            sweep = find_sweep(first, probabilities=self.scorer.needs == "probabilities")
        if sweep is not None:
            try:
                # All of the unit, also what is known: a sweep is one computation, and what its
                # settings learn from each other must not depend on when it was interrupted.
                together = measure_together(sweep, unit, data, self.scorer, seed=self.seed)
                self._keep(together.items(), share)
                yield from together.items()
            except HeadError:
                # Parameters that the head has and its sweep has not: one by one, then.
                pass
            else:
                return
        started = set(found)
        for one, measured in fit_in_parallel(
            missing,
            data,
            self.scorer,
            seed=self.seed,
            n_jobs=self.n_jobs,
            expired=lambda: self._expired(started),
        ):
            self._keep([(one, measured)], share)
            started.add(one)
            yield one, measured
        self.untried.update(set(missing) - started)

    def _keep(self, measured: Iterable[tuple[Candidate, Measured]], share: float) -> None:
        self.journal.add((self._key(one, share), figures) for one, figures in measured)

    def _key(self, candidate: Candidate, share: float) -> str:
        return f"{self.scope} {share:.6g} {candidate.key}"

    def _find(self, candidate: Candidate, share: float) -> Measured | None:
        """Return what the journal says of a candidate, None where it cannot be so."""
        known = self.journal.find(self._key(candidate, share))
        if known is None or known.failed:
            return known
        whole = len(known.scores) == len(self.folds)
        return known if whole and all(map(self.scorer.allows, known.scores)) else None

    def _expired(self, found: Iterable[Candidate]) -> bool:
        over = self.deadline is not None and time.monotonic() > self.deadline
        return over and (bool(self.trials) or bool(list(found)))

    def _tell(self, found: Mapping[Candidate, Measured], share: float, planned: int) -> None:
        if self.watch is not None:
            new = {one: Trial(one, measured, share) for one, measured in found.items()}
            self.watch(list({**self.trials, **new}.values()), planned)


def units_of(candidates: Sequence[Candidate], *, spread: bool = False) -> list[list[Candidate]]:
    """Put candidates that share block, transform and head together."""
    units: dict[tuple[str, ...], list[Candidate]] = {}
    for one in candidates:
        units.setdefault((one.backbone, one.tap, one.transform, one.head), []).append(one)
    places = {place: number for number, place in enumerate({key[:2]: None for key in units})}

    def turn(key: tuple[str, ...]) -> tuple[float, float]:
        by_block, by_cost = float(places[key[:2]]), training_cost(key[3])
        return (by_cost, by_block) if spread else (by_block, by_cost)

    return [units[key] for key in sorted(units, key=turn)]


def _sizes(candidates: Sequence[Candidate]) -> list[float]:
    transforms = {parse_transform(one.transform) for one in candidates}
    return sorted(transform.size for transform in transforms if transform.size is not None)
