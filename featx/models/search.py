"""`search`: the best of many heads, transforms and blocks of features, as a fitted classifier."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from featx.backbones.catalog import CATALOG
from featx.backbones.source import canonical_name
from featx.backbones.taps import parse_tap
from featx.backbones.weights import find_weights_file
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.engines.engine import Engine
from featx.exceptions import DatasetError, FeatxError, HeadError
from featx.extraction.backbone_choice import Branch
from featx.extraction.job import engines_folder, find_named
from featx.extraction.pipeline import Network
from featx.extraction.run import as_features
from featx.files.identity import content_groups
from featx.files.safe_json import Json
from featx.heads.learning import require_streamable
from featx.heads.rows import Fold, Numbers
from featx.heads.table import heads_for
from featx.heads.targets import label_strata
from featx.images.labels import check_splits, label_matrix, split_of
from featx.images.reading import ReadingOptions
from featx.memory import as_bytes, shown_bytes
from featx.models.classifier import ImageClassifier
from featx.models.fitting import Fitting, block_bytes, branches_of, read_block, untrained_model
from featx.models.regressor import ImageRegressor
from featx.models.scored import Scored
from featx.models.training import (
    check_classes,
    check_kind,
    label_targets,
    learn_from_answers,
    require_labels,
    score_answers,
    value_targets,
    write_report,
)
from featx.notebooks import (
    NotebookValue,
    data_frame,
    escaped,
    html_table,
    in_notebook,
    live_output,
)
from featx.selection.leaderboard import Row, ranked
from featx.selection.measuring import FeatureBlock, SearchOptions, Watch, total
from featx.selection.rules import LearntRule, RuleOptions
from featx.selection.search_space import (
    DEFAULT_HEADS,
    DEFAULT_VALUE_HEADS,
    SearchSpace,
    read_space_file,
)
from featx.selection.searching import HonestScore, SearchOutcome, check_length, search_arrays
from featx.selection.splits import named_fold, repeated_folds
from featx.selection.transforms import Estimator, parse_transform, pipeline
from featx.selection.trials import Trial
from featx.selection.value_metrics import kept_residuals
from featx.spec import BlockName, FeatureSpec
from featx.terminal import console, drawing, stage, visible

if TYPE_CHECKING:
    from pandas import DataFrame

_BATCH = 32
_FOLDS = 5
_MEASURE_S = 0.2


def _feature_block(
    features: Features,
    name: BlockName,
    costs: Sequence[_Cost],
    sample: SearchSample | None,
) -> FeatureBlock:
    """Return one block, or a sample of its rows, with its views and what its backbone costs."""
    views = [None, *features.views(**name)]
    digests = [spec.digest for view in views for spec in features.specs(**name, view=view)]
    # Features are told by their specifications and the images that they are of.
    digests.append(hashlib.sha256(np.ascontiguousarray(features.keys).data).hexdigest())
    rows, drawn = (None, []) if sample is None else (sample.rows, [sample.digest])
    digest = " ".join([name["tap"], *digests, *drawn])
    return read_block(
        features,
        name,
        rows,
        digest=digest,
        ms=total([cost.ms for cost in costs]),
        bytes=total([cost.bytes for cost in costs]),
        cost=sum(cost.order for cost in costs),
    )


class _Cost(NamedTuple):
    """What a backbone costs."""

    ms: float | None  # milliseconds an image
    bytes: int | None
    order: float  # which backbone is cheaper, the same on every machine


def _backbone_cost(branch: Branch, spec: FeatureSpec, engine: str) -> _Cost:
    """Return what a backbone costs on random pixels."""
    height, width = spec.input_size_px
    row, choice = CATALOG.get(spec.backbone), branch.choice
    size = None if row is None else int(row.parameters * 4)
    cost = 0.0 if size is None else size / 4 * height * width
    if spec.backbone.startswith("import:"):
        return _Cost(None, None, 0.0)
    if row is not None and choice.weights is None and find_weights_file(row) is None:
        return _Cost(None, size, cost)  # a timing is not worth a download
    try:
        source = choice.find(spec.weights_sha256)
        if size is None and source.weights.path is not None:
            size = _bytes(source.weights.path)
            cost = size / 4 * height * width
        network = Network(source, branch.taps, engine, folder=engines_folder()).open()
    except (FeatxError, OSError):
        return _Cost(None, size, cost)
    return _Cost(_milliseconds(network, (height, width)), size, cost)


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _milliseconds(engine: Engine, size_px: tuple[int, int]) -> float:
    pixels = np.random.default_rng(0).integers(0, 256, (_BATCH, *size_px, 3), dtype=np.uint8)
    engine.run(pixels)
    timings: list[float] = []
    begun = time.perf_counter()
    while not timings or time.perf_counter() - begun < _MEASURE_S:
        started = time.perf_counter()
        engine.run(pixels)
        timings.append(time.perf_counter() - started)
    return min(timings) * 1000 / _BATCH


_CAUTION = 1.5
_STREAMED_TRANSFORMS = ("standard", "none", "l2")
# A search holds the rows, those of a fold, and both standardised.
_COPIES = 5
_LEAST_OF_CLASS = 10
_LEAST_ROWS = 100


@dataclass(frozen=True, slots=True, eq=False)
class SearchSample:
    """The rows that candidates are measured on, and those that the winner is trained on."""

    rows: Numbers
    training: Numbers

    @property
    def digest(self) -> str:
        """What tells it from another sample of the same features."""
        return hashlib.sha256(np.ascontiguousarray(self.rows).data).hexdigest()[:16]

    @property
    def note(self) -> str:
        """What a user should know of it."""
        seen = int(np.isin(self.rows, self.training).sum())
        return (
            f"candidates were measured on {seen:,} images, as many as --max-ram allows; "
            f"the winner was trained on all {len(self.training):,}"
        )


def _require_streamable(space: SearchSpace) -> None:
    """Refuse a space whose winner might not train on batches."""
    for part in space.parts:
        for head in part.heads:
            require_streamable(head.make())
        for text in part.transforms:
            if parse_transform(text).kind not in _STREAMED_TRANSFORMS:
                raise HeadError(
                    f"{text!r} has to see all rows at once, which --max-ram (max_ram=...) does not "
                    f"allow: take {', '.join(_STREAMED_TRANSFORMS)}, or give it the memory"
                )


def _sample_rows(
    features: Features,
    labels: NDArray[np.generic],
    rows: Numbers,
    groups: NDArray[np.int64],
    blocks: list[BlockName],
    bound: int,
    seed: int,
) -> SearchSample | None:
    """Draw a share of every class, or of every label (n, labels), whose search fits a bound."""
    whole = _COPIES * sum(block_bytes(features, block) for block in blocks)
    most = int(len(features) * bound / whole)
    if most >= len(rows):
        return None
    if most < _LEAST_ROWS:
        needed = shown_bytes(whole * _LEAST_ROWS // len(features))
        raise HeadError(
            f"a search on {_LEAST_ROWS} images of {features.name!r} needs {needed}, more than the "
            f"{shown_bytes(bound)} of --max-ram (max_ram=...): raise it"
        )
    splits = np.zeros(len(features), "U1") if features.splits is None else features.splits
    training = rows
    if (splits[rows] == "test").any():
        training = rows[named_fold(splits[rows], "test", groups[rows])[0]]
    if labels.dtype.kind == "f":
        drawn = np.random.default_rng(seed).permutation(len(rows))[:most]
        return SearchSample(np.sort(rows[drawn]), training)
    if labels.ndim == 2:
        share, chosen = most / len(rows), []
        for name in np.unique(splits[rows]):
            part = rows[splits[rows] == name]
            drawn = label_strata(labels[part], [share, 1 - share], seed=seed) == 0
            chosen.append(part[drawn])
        return SearchSample(np.sort(np.concatenate(chosen)), training)
    strata = np.char.add(np.char.add(splits[rows].astype(str), "\0"), labels[rows].astype(str))
    _, codes, counts = np.unique(strata, return_inverse=True, return_counts=True)
    quota = np.maximum(np.round(counts * most / len(rows)), _LEAST_OF_CLASS)
    order = np.random.default_rng(seed).permutation(len(rows))
    order = order[np.argsort(codes[order], kind="stable")]
    # The place of each row among those of its stratum.
    turn = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return SearchSample(np.sort(rows[order[turn < quota[codes[order]]]]), training)


@dataclass(frozen=True, eq=False)
class Winner:
    """The winner of a search as it was fitted, and what it was fitted on."""

    fitting: Fitting
    names: NDArray[np.str_] | None  # of the labels where an image has several
    training: Numbers  # rows
    tested: Numbers  # rows of a split test
    head: Estimator  # fitted on all of `training`
    fit_s: float  # how long that took
    seed: int
    name: str = ""  # of the head, where it is the head as `featx.train` makes it
    model: ImageClassifier | None = None  # whose rule decides, where it has one
    learnt: LearntRule | None = None

    def learn(self, model: ImageClassifier, options: RuleOptions) -> Winner:
        """Give a model its rule, from a cross-validation of the winner, and return what has it."""
        fitting, rows = self.fitting, self.training
        folds = self._folds()
        answers = fitting.held_out(rows, folds, 0, name=self.name, seed=self.seed)
        _, learnt = learn_from_answers(model, fitting, self.names, rows, answers, folds, options)
        return replace(self, model=model, learnt=learnt)

    def _folds(self) -> list[Fold]:
        rows, features = self.training, self.fitting.features
        groups = content_groups(features.keys, features.groups)[rows]
        return repeated_folds(
            self.fitting.targets[rows], folds=_FOLDS, groups=groups, seed=self.seed
        )

    @property
    def score_s(self) -> float:
        """About how long `score` takes in seconds, where it fits heads."""
        return 0.0 if len(self.tested) else _FOLDS * self.fit_s

    def score(self) -> Scored | None:
        """Return what it says of images that it has not learnt from."""
        fitting, names = self.fitting, self.names
        if len(self.tested):
            answers = fitting.answers(self.head, self.tested, 0)
            rule = None if self.model is None else self.model.decision_
            scored = score_answers(
                fitting, names, self.tested, answers, trained=self.training, rule=rule
            )
            protocol = f"split test of {len(self.tested):,} images"
        else:
            rows = self.training
            try:
                folds = self._folds()
            except DatasetError:
                return None
            answers = fitting.held_out(rows, folds, 0, name=self.name, seed=self.seed)
            scored = score_answers(fitting, names, rows, answers, rule=self.learnt)
            protocol = (
                f"{len(folds)}-fold cross-validation of the winner on the images that it was "
                "chosen by: optimistic"
            )
        return replace(scored, scores={"protocol": protocol, **scored.scores})


class SearchResult(NotebookValue):
    """What a search found.

    Attributes
    ----------
    model : ImageClassifier or ImageRegressor
        The winner, fitted.
    training : dict
        Name, number of images and digest of what it was fitted on.
    best : Row
        The winner's line of the leaderboard. Its score is the one that it was selected by, which
        is optimistic.
    leaderboard : list of Row
        Every trial, the best first.
    score : HonestScore
        How good the winner is on images that the selection has not seen, with the protocol and
        the 95 % interval.
    cv_results_ : dict
        The trials in scikit-learn's form.
    notes : list of str
        What a user should know.
    planned, untried, resumed : int
        Number of candidates; of those that the budget left; of trials known from before.
    seconds : float
        How long the search took.
    """

    def __init__(
        self,
        model: ImageClassifier | ImageRegressor,
        outcome: SearchOutcome,
        winner: Winner | None = None,
        caution: float = 0.0,
    ) -> None:
        self.model, self.training = model, model.training_
        self._winner, self.caution = winner, caution
        self._board = outcome.leaderboard
        self.leaderboard: list[Row] = self._board.rows
        self.best = self.leaderboard[self._board.chosen]
        self.score: HonestScore = outcome.honest
        self.scoring = self._board.scorer.name
        self.notes = outcome.notes
        self.planned, self.untried = outcome.planned, outcome.untried
        self.resumed, self.seconds = outcome.resumed, outcome.seconds

    def __repr__(self) -> str:
        best = self.best
        return (
            f"<SearchResult: {best.head} on {best.backbone} {best.tap} ({best.transform}), best of "
            f"{len(self.leaderboard)}, selected by {self.scoring} {best.score:.4f}>"
        )

    @property
    def head(self) -> str:
        """The winning head with its parameters, as `featx.train` takes it (not its transform)."""
        return self.best.head

    @property
    def cv_results_(self) -> Json:
        """The trials in the form of scikit-learn's ``cv_results_``, in leaderboard order."""
        return self._board.cv_results()

    @property
    def metrics(self) -> Json:
        """What is kept with the saved model."""
        metrics: Json = {
            "protocol": self.score.protocol,
            "selected_by": {
                "scoring": self.scoring,
                "score": self.best.score,
                "candidates": len(self.leaderboard),
                "note": "optimistic: the best of all candidates on the images they were chosen by",
            },
        }
        if self.score.value is not None and self.score.interval is not None:
            metrics[self.scoring] = self.score.value
            metrics["interval_95"] = list(self.score.interval)
            metrics["images"] = self.score.images
        return metrics | self.decided

    @property
    def decided(self) -> Json:
        """What the rule is worth: ``decision`` and ``coverage``, each where it was asked for.

        It is measured on the split ``test`` where there is one, else in a cross-validation of the
        winner.
        """
        learnt = None if self._winner is None else self._winner.learnt
        if learnt is None or self._winner is None:
            return {}
        if not len(self._winner.tested) or self.scored is None:
            return learnt.report
        tested = {name: self.scored.scores.get(name, learnt.report[name]) for name in learnt.report}
        return tested

    def save(self, path: str | os.PathLike[str], **details: Any) -> None:
        """Write the fitted winner as a ``.featx`` file, with how it was measured.

        ``command`` and ``overwrite`` are those of `featx.models.model_file.save_model`.
        """
        self.model.save(path, metrics=self.metrics, training=self.training, **details)

    @cached_property
    def scored(self) -> Scored | None:
        """What the winner says of images that it has not learnt from.

        These are the images of a split ``test`` where there is one. Else it is trained again, in a
        cross-validation, when this is first asked for; None where that is not possible.
        """
        return None if self._winner is None else self._winner.score()

    @property
    def seconds_to_scored(self) -> float:
        """About how long `scored` takes: nothing to speak of once it was asked for."""
        return 0.0 if self._winner is None or "scored" in self.__dict__ else self._winner.score_s

    def report(self, output: str | os.PathLike[str], **options: Any) -> None:
        """Write a page about the winner and the leaderboard; see `featx.report` for `options`."""
        write_report(self, output, **options)

    def to_csv(self) -> str:
        """Return the leaderboard as CSV."""
        return self._board.to_csv()

    def to_pandas(self) -> DataFrame:
        """Return the leaderboard as a table of pandas, one row a trial, the best first.

        The columns are those of `to_csv`: see `featx.selection.leaderboard.Row`, and
        ``score_fold_0`` and so on.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        return data_frame(self._board.columns())

    def to_dict(self) -> Json:
        """Return everything but the model as JSON types."""
        return {
            "best": self.best.to_dict(),
            "score": self.score.to_dict(),
            "scoring": self.scoring,
            "candidates": self.planned,
            "untried": self.untried,
            "resumed": self.resumed,
            "seconds": self.seconds,
            "notes": self.notes,
            "leaderboard": [row.to_dict() for row in self.leaderboard],
            **self.decided,
        }


_SHOWN = 8
_RULED = "the scores of the search go by the most probable class; the rule is measured by itself"


@contextmanager
def _live_leaderboard(choice: bool | Watch, title: str) -> Iterator[Watch | None]:
    """Yield what is called with the trials that are finished and how many are planned."""
    if callable(choice):
        yield choice
    elif choice and in_notebook():
        with live_output() as draw:
            # Copied, as it is drawn later.
            yield lambda trials, planned: draw(
                partial(_leaders_as_html, title, trials.copy(), planned)
            )
    elif choice and sys.stderr.isatty():
        with _terminal_leaderboard(title) as show:
            yield show
    else:
        yield None


_HEADER = ("backbone", "tap", "transform", "head", "score")


def _leaders(title: str, trials: list[Trial], planned: int) -> tuple[str, list[tuple[str, ...]]]:
    """Return the title and the first lines of a leaderboard that grows."""
    rows: list[tuple[str, ...]] = []
    for trial in ranked(trials)[:_SHOWN]:
        candidate = trial.candidate
        score = trial.failed or f"{trial.score:.4f} ± {trial.std:.4f}"
        rows.append((*candidate.block_key, candidate.transform, candidate.text, score))
    return f"{title}: {len(trials):,} of {max(planned, len(trials)):,}", rows


def _leaders_as_html(title: str, trials: list[Trial], planned: int) -> str:
    heading, rows = _leaders(title, trials, planned)
    return f"<div>{escaped(heading)}</div>{html_table(_HEADER, rows, numbers=1)}"


@contextmanager
def _terminal_leaderboard(title: str) -> Iterator[Watch]:
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    live = Live(
        Spinner("line", Text(visible(title))),
        console=console(),
        transient=True,
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),
    )
    with drawing(live):

        def show(trials: list[Trial], planned: int) -> None:
            heading, rows = _leaders(title, trials, planned)
            table = Table(title=visible(heading))
            for name in _HEADER:
                table.add_column(name, justify="right" if name == "score" else "left")
            for row in rows:
                table.add_row(*map(visible, row))
            live.update(table)

        yield show


def search(
    features: object,
    *,
    heads: Any = None,
    transforms: Any = None,
    backbones: str | Sequence[str] | None = None,
    taps: str | Sequence[str] | None = None,
    space: Mapping[str, Any] | Sequence[Any] | str | os.PathLike[str] | None = None,
    strategy: str = "grid",
    n_trials: int | None = None,
    cv: int | str = 5,
    repeats: int = 1,
    multilabel: bool = False,
    regression: bool = False,
    label_kind: str = "auto",
    balanced: bool = False,
    optimise: str | None = None,
    coverage: float | None = None,
    coverage_by: str = "all",
    scoring: str | None = None,
    score: str = "auto",
    one_standard_error: bool = False,
    joins: bool = True,
    ensemble: bool = True,
    caution: float | None = None,
    budget_s: float | None = None,
    n_jobs: int = -1,
    seed: int = 0,
    max_ram: str | int | None = None,
    y: Sequence[Any] | NDArray[Any] | None = None,
    weights: Any = None,
    preprocessing: str | None = None,
    trust: bool = False,
    engine: str = "auto",
    cache: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool | Watch = False,
    **reading: Unpack[ReadingOptions],
) -> SearchResult:
    """Try heads, their parameters, transforms and blocks of features, and fit the best of them.

    Candidates are measured by stratified cross-validation in which equal images, and images of one
    group, are never on both sides. Images of a split ``test`` take no part in it. The score that
    the winner was selected by is the greatest of many and so optimistic: ``result.score`` is
    measured on images that the selection has not seen.

    Parameters
    ----------
    features : Features, or data
        From `featx.extract`, labelled, with any number of blocks; of whatever else it takes,
        features are extracted first, by default ``avg`` and ``inner`` of each backbone.
    heads : str, estimator or sequence, optional
        ``"logistic"`` is tried over its own grid, ``"logistic:C=0.01|0.1"`` over these values,
        ``"logistic:C=0.001..10"`` (random, optuna) over a range. Estimators, and
        ``{"head": "logistic", "C": [0.01, 0.1]}``, do too. By default logistic and ridge.
    transforms : str or sequence of str, optional
        ``"standard"`` (the default: the head as it is), ``"none"`` (without its standardisation),
        ``"l2"``, ``"pca:64"``, ``"pca:0.95"``, ``"whiten:64"``.
    backbones, taps : str or sequence of str, optional
        Which blocks; all by default. A backbone of one's own has to be named, with its path, if
        the classifier is to read images.
    space : mapping, sequence of mapping, or path, optional
        ``heads``, ``transforms``, ``backbones`` and ``taps`` together; several mappings are
        several parts. It replaces the arguments `heads` and `transforms`; `backbones` and `taps`
        are of the parts that name none. A path is a JSON, TOML or YAML file.
    strategy : {"grid", "random", "halving", "optuna"}, default "grid"
        Everything; some drawn at random; all on few rows and the better third on three times as
        many; what Optuna proposes.
    n_trials : int, optional
        How many to draw: 20 by default, 30 of Optuna.
    cv : int or str, default 5
        Number of folds, or the split that candidates are measured on (``"val"``).
    repeats : int, default 1
        How many times the folds are drawn.
    multilabel : bool, default False
        Whether a label such as ``ant|winged`` is several. Heads are then fitted one by one, and
        folds have each label in equal shares.
    regression : bool, default False
        Whether labels are numbers, as for `featx.train`. Heads are then ridge and knn by default.
    label_kind : {"auto", "class"}, default "auto"
        As for `featx.train`; not looked at with `y`.
    balanced : bool, default False
        Whether each class counts the same, however few images it has: heads that take it get
        ``class_weight="balanced"``. ``scoring="balanced_accuracy"`` goes with it.
    optimise, coverage, coverage_by
        As for `featx.train`: what the winner decides by, learnt in a cross-validation of it. The
        search itself, and ``result.score``, go by the most probable class.
    scoring : {"accuracy", "balanced_accuracy", "macro_f1", "log_loss", "top5"}, optional
        What is to be best; with ``multilabel`` one of ``"mean_average_precision"``, its default,
        and ``"micro_f1"``; with ``regression`` one of ``"r2"``, its default, ``"mae"`` and
        ``"rmse"``.
    score : {"auto", "test", "holdout", "nested", "none"}, default "auto"
        How the winner is scored: on the split ``test``; on a fifth of the images set aside; by
        repeating the selection in a cross-validation; not at all. ``"auto"`` takes ``test`` where
        there is one, else ``nested`` where that is cheap, else ``holdout``.
    one_standard_error : bool, default False
        Whether the cheapest wins of all that are within one standard error of the best.
    joins : bool, default True
        Whether to try blocks side by side: the best with each other one, the best of these with
        each, and so on as long as the score rises.
    ensemble : bool, default True
        Whether to try the weighted mean of the best heads that can be exported, at most 8. Its
        score on each fold is that of weights chosen on the other folds. Not with `max_ram`.
    caution : float, optional
        By how many standard errors of the difference a candidate has to be better than the usual
        one to win: the best of the first head on the first block of a backbone. By default 1.5
        where no heads are named, which keeps few images from choosing by chance, else 0: the best
        score wins.
    budget_s : float, optional
        Seconds after which no trial is started.
    n_jobs : int, default -1
        Number of fits at a time, as in joblib; it changes no score.
    seed : int, default 0
        One seed gives one answer.
    max_ram : str or int, optional
        Bound on the memory for features, as bytes or as ``"1GiB"``: candidates are then measured
        on a seeded share of every class or label that fits, and the winner is trained on all
        images in batches. Only heads that can be are tried (see `featx.train`).
    y : sequence of length n, optional
        Labels in place of those of the features; of a regression numbers, also of shape (n, k).
    weights, preprocessing, trust
        What the features were made with, kept with the model; `weights` may be a mapping by
        backbone.
    engine : str, default "auto"
        Which engine the backbones are timed on.
    cache : path, optional
        Cache folder: finished trials are kept in its ``searches``, and the same search goes on
        from them. By default nothing is kept.
    resume : bool, default True
        Whether to go on from finished trials.
    progress : bool or callable, default False
        Whether to draw the leaderboard as it grows, in a terminal or in a notebook.
    **reading
        How data that are no features are read, as for `featx.extract`: ``splits``, ``root``,
        ``label_column``, ...

    Returns
    -------
    SearchResult

    Raises
    ------
    DatasetError
        For no labels, one class, a class with too few images, labels of another length.
    FeaturesError
        For features that are not finite, or constant.
    HeadError
        For an empty space, or a head, parameter or option that cannot be as given.
    UnknownNameError
        For a name that is none, with the nearest that are.
    MissingExtraError
        If ``optuna``, or YAML, needs what is not installed.

    Examples
    --------
    >>> result = featx.search(feats, heads=["logistic", "knn", "dense:256|512"])  # doctest: +SKIP
    >>> result.head, result.score.value  # doctest: +SKIP
    ('logistic:C=0.01', 0.931)
    >>> result.save("photos.featx")  # doctest: +SKIP
    """
    ruled = RuleOptions.read(optimise, coverage, coverage_by, multilabel=multilabel)
    check_kind(multilabel=multilabel, regression=regression, balanced=balanced, ruled=bool(ruled))
    options = SearchOptions(
        strategy=strategy,
        n_trials=n_trials,
        cv=split_of(cv) or cv if isinstance(cv, str) else cv,
        repeats=repeats,
        scoring=scoring or default_scoring(multilabel=multilabel, regression=regression),
        score=score,
        budget_s=budget_s,
        n_jobs=n_jobs,
        seed=seed,
        one_standard_error=one_standard_error,
        joins=joins,
        ensemble=ensemble and max_ram is None,
        caution=_CAUTION if caution is None and heads is None and space is None else caution or 0.0,
        resume=resume,
    )
    bound = None if max_ram is None else as_bytes(max_ram)
    named: Json = {"heads": heads, "transforms": transforms, "backbones": backbones, "taps": taps}
    tried = read_space(
        space, **named, trust=trust, streamed=bound is not None, regression=regression
    )
    if balanced:
        tried = tried.balanced()
    called = list(tried.called.values()) or None
    features = as_features(
        features,
        reading,
        backbone=called,
        taps=default_taps(features, cache, called or ["tiny"]) if taps is None else taps,
        weights=weights,
        preprocessing=preprocessing,
        trust=trust,
        engine=engine,
        cache=cache,
        multilabel=multilabel,
    )
    check_splits(features.splits, repr(features.name))
    labels = np.asarray(require_labels(features) if y is None else y)
    rows = np.flatnonzero(features.labels >= 0) if y is None else np.arange(len(labels))
    if y is None and not (multilabel or regression):
        check_classes(features, labels, rows, label_kind)
    if not regression:
        ruled.check(labels[rows])
    names, targets = None, labels
    label_sets: tuple[NDArray[np.generic], NDArray[np.number]] | None = None
    if multilabel:
        names, targets = label_targets(labels, rows)
        if len(names) < 2:
            raise HeadError(
                f"expected two labels or more, received {', '.join(names.tolist()) or 'none'}: "
                "write several in the column label as ant|winged"
            )
        sets, first = np.unique(labels[rows], return_index=True)
        label_sets = sets, targets[rows[first]].astype(np.intp)
    if regression:
        check_length(len(features), labels, features.name)
        names, targets = value_targets(features, labels, rows, rows)
        # Rows are told apart by their numbers, as those of several labels by their sets.
        numbers, codes = np.unique(targets[rows], axis=0, return_inverse=True)
        labels = np.full(len(targets), -1)
        labels[rows] = codes.ravel()
        label_sets = np.arange(len(numbers)), numbers
    used = _used_blocks(features, tried)
    groups = content_groups(features.keys, features.groups)
    sample = None
    if bound is not None:
        check_length(len(features), labels, features.name)
        sample = _sample_rows(features, targets, rows, groups, used, bound, seed)
    seen = np.arange(len(labels)) if sample is None else sample.rows
    stated: Json = {"called": tried.called, "weights": weights, "preprocessing": preprocessing}
    # A backbone costs the same, wherever in it features are taken.
    known: dict[FeatureSpec, _Cost] = {}
    blocks = []
    for block in used:
        branches = branches_of(features, block, **stated, trust=trust)
        specs = features.specs(**block)
        for branch, spec in zip(branches, specs, strict=True):
            if spec not in known:
                with stage(f"timing {spec.backbone}"):
                    known[spec] = _backbone_cost(branch, spec, engine)
        costs = [known[spec] for spec in specs]
        blocks.append(_feature_block(features, block, costs, sample))
    with _live_leaderboard(progress, f"search {features.name}") as watch:
        outcome = search_arrays(
            blocks,
            labels[seen],
            tried,
            options,
            rows=rows if sample is None else np.arange(len(seen)),
            groups=groups[seen],
            splits=None if features.splits is None else features.splits[seen],
            label_sets=label_sets,
            journals=None if cache is None else CacheLayout.at(cache).searches,
            watch=watch,
        )
    winner, training = outcome.leaderboard.winner, outcome.rows
    if sample is not None:
        training = sample.training
        outcome.notes.append(sample.note)
    if multilabel:
        names, targets = label_targets(labels, training)
    won: BlockName = {"backbone": winner.backbone, "tap": winner.tap}
    made = winner.make(seed=seed, multilabel=multilabel)
    shape = (len(features), features.width(**won))
    head = pipeline(parse_transform(winner.transform), made, shape)
    # Text where text says it all, since a model is shown by it.
    plain = winner.transform == "standard" and winner.estimator is None
    model = untrained_model(
        features,
        won,
        winner.text if plain else head,
        branches_of(features, won, **stated, trust=trust),
        cache=cache,
        multilabel=multilabel,
        regression=regression,
        random_state=seed,
    )
    fitting = Fitting(features, won, head, targets, None if sample is None else bound)
    started = time.perf_counter()
    with stage(f"training {winner.text} on {len(training):,} images"):
        fitted = fitting.finish(model, labels, training, names)
    fit_s = time.perf_counter() - started
    with stage("measuring what would be unlike the training images"):
        of_one = np.zeros(len(labels)) if regression else labels
        model.novelty_ = fitting.novelty(training, of_one, seed=seed)
    tested = _tested_rows(features, of_one, rows, training)
    if multilabel and names is not None:
        targets[tested] = label_matrix(
            labels[tested].tolist(), names.tolist(), what="the split test"
        )
    name = winner.head if plain else ""
    won_by = Winner(fitting, names, training, tested, fitted, fit_s, seed, name)
    if ruled:
        with stage(f"learning what {winner.text} decides by"):
            won_by = won_by.learn(model, ruled)
        outcome.notes.append(_RULED)
    result = SearchResult(model, outcome, won_by, options.caution)
    if regression:
        with stage("measuring how far predictions are off"):
            if (scored := result.scored) is not None and scored.values is not None:
                model.residuals_ = kept_residuals(*scored.values)
    return result


def default_taps(
    data: object, cache: str | os.PathLike[str] | None, backbones: Sequence[str]
) -> list[str] | dict[str, list[str]]:
    """Return the taps that are tried by backbone, only avg where images cannot be read again."""
    named = None if isinstance(data, Features) else find_named(CacheLayout.at(cache), data)
    if named is not None and named.source != "packed" and not Path(named.root or "-").exists():
        return ["avg"]
    # A network of one's own has no blocks that are known.
    return {name: ["avg"] if ":" in name else ["avg", "inner"] for name in backbones}


def default_scoring(*, multilabel: bool, regression: bool) -> str:
    """Return what is to be best where nothing is named."""
    return "r2" if regression else "mean_average_precision" if multilabel else "accuracy"


def _tested_rows(
    features: Features, labels: NDArray[np.generic], rows: Numbers, training: Numbers
) -> Numbers:
    """Return the rows of a split named test; none where some have labels of no training row."""
    if features.splits is None:
        return rows[:0]
    tested = rows[(features.splits[rows] == "test") & ~np.isin(rows, training)]
    return tested if np.isin(labels[tested], labels[training]).all() else rows[:0]


def read_space(
    space: object = None,
    *,
    heads: object = None,
    transforms: object = None,
    backbones: object = None,
    taps: object = None,
    streamed: bool = False,
    regression: bool = False,
    trust: bool = False,
) -> SearchSpace:
    """Read a search space from the arguments of `search`, which raises the same.

    With ``streamed``, the winner has to train on batches.
    """
    arguments = {"heads": heads, "transforms": transforms}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if isinstance(space, str | os.PathLike):
        space = read_space_file(space)
    if space is None:
        space = arguments
        if streamed and heads is None:
            usual = DEFAULT_VALUE_HEADS if regression else DEFAULT_HEADS
            rows = heads_for(regression=regression)
            space = {"heads": [name for name in usual if rows[name].streamed], **arguments}
    elif arguments:
        raise HeadError(
            f"a space and {', '.join(arguments)} were given: the space has its own, so write them "
            "into it"
        )
    read = SearchSpace.read(
        space,
        defaults={"backbones": backbones, "taps": taps},
        canonical={"backbones": canonical_name, "taps": _canonical_tap},
        regression=regression,
        trust=trust,
    )
    if streamed:
        _require_streamable(read)
    return read


def _canonical_tap(name: str) -> str:
    return name if name == "imported" else str(parse_tap(name))


def _used_blocks(features: Features, space: SearchSpace) -> list[BlockName]:
    plain = [(block.backbone, block.tap) for block in features.blocks if block.view is None]
    used = {key for part in space.parts for key in part.block_keys(plain)}
    # None is for the search to say: it names what there is.
    chosen = [key for key in plain if key in used] or plain
    return [{"backbone": backbone, "tap": tap} for backbone, tap in chosen]
