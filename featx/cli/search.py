"""``featx search``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.options import (
    Command,
    backbone_options,
    cache_option,
    check_output,
    command_line,
    common_options,
    data_argument,
    extraction_arguments,
    file_path,
    flag,
    json_option,
    label_kind_option,
    max_ram_option,
    multilabel_option,
    next_prediction,
    output_option,
    seed_option,
    whole,
)
from featx.cli.show import show_features, table
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.models.search import SearchResult

_SHOWN = 15
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def _complete_head(_: Any, __: Any, incomplete: str) -> list[str]:
    from featx.heads.table import head_names

    return [name for name in head_names() if name.startswith(incomplete)]


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = _BUDGET.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"expected a time such as 60s, 10m or 1h, received {value!r}")
    return float(match[1]) * _SECONDS[match[2]]


@click.command("search", cls=Command, short_help="Find the best backbone, head and parameters.")
@data_argument
@backbone_options(several=True)
@click.option(
    "--head",
    "heads",
    multiple=True,
    shell_complete=_complete_head,
    help="A head over its own grid, over values as in logistic:C=0.01|0.1, or over a range as in "
    "logistic:C=0.001..10 (random, optuna). Repeat it for several.  "
    "[default: nearest-mean, ridge, lda, knn, logistic]",
)
@click.option(
    "--transform",
    "transforms",
    multiple=True,
    help="standard (the head as it is), none, l2, pca:64, pca:0.95 or whiten:64. Repeat it for "
    "several.  [default: standard]",
)
@file_path(
    "--space",
    help="Heads, transforms, backbones and taps in a JSON, TOML or YAML file, in place of --head "
    "and --transform.",
)
@click.option(
    "--strategy",
    default="grid",
    show_default=True,
    help="grid, random, halving (all on few rows, the better third on more) or optuna.",
)
@whole("--trials", least=1, help="How many to draw; not for grid.")
@whole("--cv", default=5, least=2, help="Folds.")
@click.option("--on-split", help="Measure on this split of DATA, such as val, instead of on folds.")
@whole("--repeats", default=1, least=1, help="How many times the folds are drawn.")
@click.option(
    "--scoring",
    help="accuracy, balanced_accuracy, macro_f1, log_loss or top5; with --multilabel "
    "mean_average_precision or micro_f1.  [default: the first of them]",
)
@click.option(
    "--score",
    default="auto",
    show_default="test where there is such a split, else nested where cheap, else holdout",
    help="How the winner is scored: test, holdout, nested or none.",
)
@flag(
    "--one-standard-error",
    help="Take the cheapest of all that are within one standard error of the best.",
)
@click.option(
    "--budget", callback=_seconds, help="Time after which no trial is started: 60s, 10m, 1h."
)
@whole("--jobs", "n_jobs", default=-1, help="Fits at a time; -1: cores.")
@flag("--fresh", help="Forget finished trials of the same search.")
@file_path("--csv", "csv_file", help="Write the whole leaderboard there.")
@output_option
@cache_option
@seed_option
@multilabel_option
@label_kind_option
@max_ram_option
@json_option
@common_options
def command(
    data: str,
    heads: tuple[str, ...],
    transforms: tuple[str, ...],
    space: Path | None,
    trials: int | None,
    budget: float | None,
    fresh: bool,
    csv_file: Path | None,
    output: Path | None,
    force: bool,
    cache: Path,
    as_json: bool,
    strategy: str,
    cv: int,
    on_split: str | None,
    repeats: int,
    scoring: str | None,
    score: str,
    one_standard_error: bool,
    n_jobs: int,
    multilabel: bool,
    label_kind: Any,
    max_ram: str | None,
    seed: int,
    **options: Any,
) -> None:
    """Find the best backbone, tap, head and parameters, and save the winner as a model.

    Features that are missing are extracted first. What is finished is kept: the same command goes
    on from there after Ctrl-C or a kill.

    \b
    featx search photos/ -o photos.featx
    featx search photos/ -b tiny -b mobilenet_v2 --head logistic --head 'dense:256|512' -o m.featx
    featx search photos/ --head 'logistic:C=0.0001..10' --strategy random --trials 30 --budget 2m
    """
    import featx
    from featx.files.outputs import begins_with, is_model
    from featx.models.search import default_heads, read_space, require_streamable_space
    from featx.selection.strategies import SearchOptions

    target = output or Path(f"{Path(data).resolve().stem}.featx")
    check_output(target, is_model, "model", force=force, data=data)
    if csv_file is not None:
        check_output(csv_file, begins_with("rank,"), "leaderboard", force=force, data=data)
    how: dict[str, Any] = {
        "strategy": strategy,
        "n_trials": trials,
        "cv": on_split or cv,
        "repeats": repeats,
        "scoring": scoring or ("mean_average_precision" if multilabel else "accuracy"),
        "score": score,
        "one_standard_error": one_standard_error,
        "budget_s": budget,
        "n_jobs": n_jobs,
        "seed": seed,
    }
    what: dict[str, Any] = {"heads": list(heads) or None, "transforms": list(transforms) or None}
    # A mistyped name is to be known before an hour of extraction.
    if max_ram is not None:
        if space is None and not heads:
            what["heads"] = default_heads()
        require_streamable_space(read_space(space, **what))
    read_space(space, **what)
    SearchOptions(**how)
    asked = extraction_arguments(options)
    features = featx.extract(data, **asked, multilabel=multilabel, cache=cache, progress=True)
    if asked["backbone"]:
        what["backbones"] = list(asked["backbone"])
    result = featx.search(
        features,
        **what,
        space=space,
        **how,
        weights=asked["weights"],
        preprocessing=asked["preprocessing"],
        trust=asked["trust"],
        engine=asked["engine"],
        multilabel=multilabel,
        label_kind=label_kind,
        max_ram=max_ram,
        cache=cache,
        resume=not fresh,
        progress=True,
    )
    result.save(target, command=command_line(), overwrite=force)
    if csv_file is not None:
        csv_file.write_text(result.to_csv(), "utf-8", "surrogateescape")
    if as_json:
        found = {"model": str(target), **result.to_dict(), "extraction": features.report}
        say_json(found)
        return
    show_features(features)
    _show(result)
    if csv_file is not None:
        say(f"table     {csv_file}: all {len(result.leaderboard):,} trials")
    say(f"saved     {target}")
    say(f"next: {next_prediction(target, data, features)}")


def _show(result: SearchResult) -> None:
    shown = [row for row in result.leaderboard if row.rank <= _SHOWN or row.chosen or row.pareto]
    header = ["rank", "backbone", "tap", "transform", "head", result.scoring, "±", "ms", "MB", ""]
    lines = [
        [
            str(row.rank),
            row.backbone,
            row.tap,
            row.transform,
            row.head,
            _number(row.score, 4),
            _number(row.std, 4),
            _number(row.ms, 3),
            _number(row.mb, 2),
            _marks(row),
        ]
        for row in shown
    ]
    say(*table(header, lines))
    if len(shown) < len(result.leaderboard):
        say(f"  and {len(result.leaderboard) - len(shown):,} more: --csv FILE has them all")
    say("  * chosen   f none is both faster and better   ms and MB are backbone and head")
    if result.best.backbone_ms is None:
        say("  the backbone could not be timed here: ms is of the head alone")
    known = f", {result.resumed:,} known from before" if result.resumed else ""
    say(
        f"search    {len(result.leaderboard):,} of {result.planned:,} candidates in "
        f"{result.seconds:.1f} s{known}"
    )
    if result.untried:
        say(
            f"          {result.untried:,} were not tried, since the time was over: the same "
            "command goes on"
        )
    for note in result.notes:
        say(f"note      {note}")
    best, score = result.best, result.score
    say(f"best      {best.head} on {best.backbone} {best.tap}, {best.transform}")
    say(
        f"selected  {result.scoring} {_number(best.score, 4)}: optimistic, since it is the best of "
        f"{len(result.leaderboard):,}"
    )
    if score.value is None or score.interval is None:
        say(f"score     {score.protocol}")
        return
    low, high = score.interval
    say(
        f"score     {result.scoring} {score.value:.4f} (95 %: {low:.3f} to {high:.3f}), "
        f"{score.protocol}"
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _marks(row: Any) -> str:
    marks = ["*"] * row.chosen + ["f"] * row.pareto + ["stopped early"] * row.stopped
    if row.share < 1:
        marks.append(f"on {row.share:.0%} of the rows")
    return " ".join([*marks, *([f"failed: {row.failed}"] if row.failed else [])])
