"""`search`: the best of many heads, transforms and blocks of features, as a fitted classifier."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import canonical_name
from featx.backbones.taps import parse_tap
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.exceptions import HeadError
from featx.extraction.sources import BackboneChoice
from featx.heads.table import make_head
from featx.images.labels import check_splits, read_label_sets, split_of
from featx.memory import as_bytes
from featx.models.backbone_costs import backbone_cost
from featx.models.classifier import ImageClassifier
from featx.models.feature_blocks import feature_block
from featx.models.label_set_training import label_targets
from featx.models.live_leaderboard import live_leaderboard
from featx.models.search_result import SearchResult
from featx.models.search_sample import (
    default_heads,
    require_streamable_space,
    sample_rows,
)
from featx.models.streamed_training import StreamedFit
from featx.models.training import (
    check_labels,
    describe_training,
    require_classes,
    require_labels,
)
from featx.models.unknown import learn_novelty
from featx.selection.checks import check_length
from featx.selection.measuring import Watch
from featx.selection.searching import SearchOptions, search_arrays
from featx.selection.space import Candidate, SearchSpace
from featx.selection.space_files import read_space_file
from featx.selection.splits import leak_groups
from featx.selection.transforms import parse_transform, pipeline


def search(
    features: Features,
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
    label_kind: str = "auto",
    scoring: str | None = None,
    score: str = "auto",
    one_standard_error: bool = False,
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
) -> SearchResult:
    """Try heads, their parameters, transforms and blocks of features, and fit the best of them.

    Candidates are measured by stratified cross-validation in which equal images, and images of one
    group, are never on both sides. Images of a split ``test`` take no part in it. The score that
    the winner was selected by is the greatest of many and so optimistic: ``result.score`` is
    measured on images that the selection has not seen.

    Parameters
    ----------
    features : Features
        From `featx.extract`, labelled, with any number of blocks.
    heads : str, estimator or sequence, optional
        ``"logistic"`` is tried over its own grid, ``"logistic:C=0.01|0.1"`` over these values,
        ``"logistic:C=0.001..10"`` (random, optuna) over a range. Estimators, and
        ``{"head": "logistic", "C": [0.01, 0.1]}``, do too. By default every head whose settings
        are measured together: nearest-mean, ridge, lda, knn, logistic.
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
    label_kind : {"auto", "class"}, default "auto"
        As for `featx.train`; not looked at with `y`.
    scoring : {"accuracy", "balanced_accuracy", "macro_f1", "log_loss", "top5"}, optional
        What is to be best; with ``multilabel`` one of ``"mean_average_precision"``, its default,
        and ``"micro_f1"``.
    score : {"auto", "test", "holdout", "nested", "none"}, default "auto"
        How the winner is scored: on the split ``test``; on a fifth of the images set aside; by
        repeating the selection in a cross-validation; not at all. ``"auto"`` takes ``test`` where
        there is one, else ``nested`` where that is cheap, else ``holdout``.
    one_standard_error : bool, default False
        Whether the cheapest wins of all that are within one standard error of the best.
    budget_s : float, optional
        Seconds after which no trial is started.
    n_jobs : int, default -1
        Number of fits at a time, as in joblib; it changes no score.
    seed : int, default 0
        One seed gives one answer.
    max_ram : str or int, optional
        Bound on the memory for features, as bytes or as ``"1GiB"``: candidates are then measured
        on a seeded share of every class or label that fits, and the winner is trained on all
        images in batches. Only heads that can be (see `featx.train`) are tried, by default
        nearest-mean, ridge, lda, logistic.
    y : sequence of length n, optional
        Labels in place of those of the features.
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
        Whether to draw the leaderboard as it grows, where standard error is a terminal.

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
    options = SearchOptions(
        strategy=strategy,
        n_trials=n_trials,
        cv=split_of(cv) or cv if isinstance(cv, str) else cv,
        repeats=repeats,
        scoring=scoring or ("mean_average_precision" if multilabel else "accuracy"),
        score=score,
        budget_s=budget_s,
        n_jobs=n_jobs,
        seed=seed,
        one_standard_error=one_standard_error,
    )
    wanted = {"heads": heads, "transforms": transforms, "backbones": backbones, "taps": taps}
    if isinstance(space, str | os.PathLike):
        space = read_space_file(space)
    bound = None if max_ram is None else as_bytes(max_ram)
    if bound is not None and space is None and heads is None:
        wanted["heads"] = default_heads()
    tried = read_space(space, **wanted)
    if bound is not None:
        require_streamable_space(tried)
    check_splits(features.splits, repr(features.name))
    labels, rows = _labels(features, y)
    if y is None and not multilabel:
        check_labels(features, labels, rows, label_kind)
        require_classes(features, labels, rows)
    named = _named_backbones(space, backbones)
    by_backbone = weights if isinstance(weights, Mapping) else {}
    whole_choice = None if by_backbone else weights
    used = _blocks(features, tried)
    groups = leak_groups(features.keys, features.groups, len(features))
    sample = None
    if bound is not None:
        check_length(len(features), labels, features.name)
        places = [{"backbone": block.backbone, "tap": block.tap} for block in used]
        sample = sample_rows(
            features,
            label_targets(labels, rows)[1] if multilabel else labels,
            rows,
            groups,
            places,
            bound=bound,
            seed=seed,
        )
    seen = np.arange(len(labels)) if sample is None else sample.rows
    blocks = []
    chosen = {}
    for block in used:
        place = {"backbone": block.backbone, "tap": block.tap}
        name = named.get(block.backbone, block.backbone)
        choice = BackboneChoice(
            name,
            by_backbone.get(name, whole_choice),
            preprocessing=preprocessing,
            trust=trust,
        ).completed(features.spec(**place), features.origin(**place))
        chosen[block.backbone] = choice
        cost = backbone_cost(features, block, choice, engine=engine, cache=cache)
        blocks.append(feature_block(features, block.backbone, block.tap, cost, sample))
    with live_leaderboard(progress, f"search {features.name}") as watch:
        outcome = search_arrays(
            blocks,
            labels[seen],
            tried,
            options,
            rows=rows if sample is None else np.arange(len(seen)),
            groups=groups if sample is None else np.unique(groups[seen], return_inverse=True)[1],
            splits=None if features.splits is None else features.splits[seen],
            label_sets=_label_sets(labels[rows]) if multilabel else None,
            journals=None if cache is None else CacheLayout.at(cache).searches,
            fresh=not resume,
            watch=watch,
        )
    training = outcome.rows if sample is None else sample.training
    model = _untrained(features, outcome.winner, seed, multilabel)
    model.set_params(**chosen[outcome.winner.backbone].arguments(), cache=cache)
    place = {"backbone": outcome.winner.backbone, "tap": outcome.winner.tap}
    if sample is None or bound is None:
        _fit(features, place, labels, training, model)
    else:
        outcome.notes.append(sample.note)
        names, targets = label_targets(labels, training) if multilabel else (None, labels)
        fitting = StreamedFit(features, place, targets, features.views(**place), bound)
        head = fitting.fit(make_head(model.head, seed=seed, multilabel=multilabel), training)
        spec, width = features.spec(**place), features.width(**place)
        model.take_head(head, spec, n_features=width, labels=names)
    model.novelty_ = learn_novelty(
        features, place, labels, training, seed=seed, max_ram_bytes=bound
    )
    model.training_ = describe_training(features, labels, training)
    return SearchResult(model, outcome, model.training_)


def read_space(
    space: Any = None,
    *,
    heads: Any = None,
    transforms: Any = None,
    backbones: Any = None,
    taps: Any = None,
) -> SearchSpace:
    """Read a search space from the arguments of `search`.

    Raises
    ------
    HeadError, UnknownNameError, MissingExtraError
        As `search`.
    """
    places = {"backbones": backbones, "taps": taps}
    heads_given = {"heads": heads, "transforms": transforms}
    given = {name: value for name, value in heads_given.items() if value is not None}
    if isinstance(space, str | os.PathLike):
        space = read_space_file(space)
    if space is None:
        space = given
    elif given:
        raise HeadError(
            f"a space and {', '.join(given)} were given: the space has its own, so write them into "
            "it"
        )
    return SearchSpace.read(_canonical(space, places))


def _canonical(parts: Any, places: Mapping[str, Any]) -> Any:
    """Write backbones and taps as blocks write them, into the parts that name none."""
    if isinstance(parts, Sequence) and not isinstance(parts, str):
        return [_canonical(part, places) for part in parts]
    if not isinstance(parts, Mapping):
        return parts
    written = {**{name: value for name, value in places.items() if value is not None}, **parts}
    for key, canonical in (("backbones", canonical_name), ("taps", _canonical_tap)):
        if written.get(key) is not None:
            written[key] = [canonical(str(name)) for name in _listed(written[key])]
    return written


def _canonical_tap(name: str) -> str:
    return name if name == "imported" else str(parse_tap(name))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _named_backbones(space: Any, backbones: Any) -> dict[str, str]:
    """Return what the user called each backbone: of a ``file:`` one, only that says where it is."""
    called = [] if backbones is None else _listed(backbones)
    for part in [space] if isinstance(space, Mapping) else space or ():
        if isinstance(part, Mapping) and part.get("backbones") is not None:
            called += _listed(part["backbones"])
    return {canonical_name(str(name)): str(name) for name in called}


def _labels(features: Features, y: Any) -> tuple[NDArray[Any], NDArray[np.intp]]:
    if y is not None:
        labels = np.asarray(y)
        return labels, np.arange(len(labels))
    return require_labels(features), np.flatnonzero(features.labels >= 0)


def _label_sets(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    sets = np.unique(labels)
    names, matrix = read_label_sets(sets.tolist())
    if len(names) < 2:
        raise HeadError(
            f"expected two labels or more, received {', '.join(map(str, names)) or 'none'}: write "
            "several in the column label as ant|winged"
        )
    return sets, matrix


def _blocks(features: Features, space: SearchSpace) -> list[Any]:
    plain = [block for block in features.blocks if block.view is None]
    there = [(block.backbone, block.tap) for block in plain]
    used = {place for part in space.parts for place in part.places(there)}
    # None is for the search to say: it names what there is.
    return [block for block in plain if (block.backbone, block.tap) in used] or plain


def _untrained(
    features: Features, winner: Candidate, seed: int, multilabel: bool
) -> ImageClassifier:
    place: dict[str, Any] = {"backbone": winner.backbone, "tap": winner.tap}
    spec, views = features.spec(**place), features.views(**place)
    shape = (len(features), features.width(**place))
    return ImageClassifier(
        head=_whole_head(winner, shape, seed, multilabel),
        tap=winner.tap,
        image=spec.image,
        views=len(views),
        view_policy=features.spec(**place, view=views[0]).views if views else None,
        multilabel=multilabel,
        random_state=seed,
    )


def _fit(
    features: Features,
    place: dict[str, Any],
    labels: NDArray[Any],
    rows: NDArray[np.intp],
    model: ImageClassifier,
) -> None:
    views = features.views(**place)
    parts = [features.matrix(**place), *(features.matrix(**place, view=v) for v in views)]
    X = np.concatenate([part[rows] for part in parts]) if views else parts[0][rows]
    model.fit_head(X, np.tile(labels[rows], len(parts)))
    spec = features.spec(**place)
    model.spec_, model.weights_sha256_ = spec, spec.weights_sha256


def _whole_head(winner: Candidate, shape: tuple[int, int], seed: int, multilabel: bool) -> Any:
    """Return the head as text where text says it all, since a model is shown by it."""
    if winner.transform == "standard" and winner.estimator is None:
        return winner.text
    head = winner.make(seed=seed, multilabel=multilabel)
    return pipeline(parse_transform(winner.transform), head, shape)
