"""``featx search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.options import command_line, extraction_arguments, next_prediction
from featx.cli.show import Laps, show_features, show_rule, table, unused_images
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.models.search import SearchResult

_SHOWN = 15


@options.command(
    "search",
    options.data,
    options.backbone,
    click.option(
        "--head",
        "heads",
        multiple=True,
        shell_complete=options.complete_head,
        help="A head over its own grid, over values as in logistic:C=0.01|0.1, or over a range as "
        "in logistic:C=0.001..10 (random, optuna). Repeat it for several.  "
        "[default: logistic and ridge; with --regression ridge and knn]",
    ),
    click.option(
        "--transform",
        "transforms",
        multiple=True,
        help="standard (the head as it is), none, l2, pca:64, pca:0.95 or whiten:64. Repeat it for "
        "several.  [default: standard]",
    ),
    options.file_path(
        "--space",
        help="Heads, transforms, backbones and taps in a JSON, TOML or YAML file, in place of "
        "--head and --transform.",
    ),
    click.option(
        "--strategy",
        default="grid",
        show_default=True,
        help="grid, random, halving (all on few rows, the better third on more) or optuna.",
    ),
    options.whole("--trials", "n_trials", least=1, help="How many to draw; not for grid."),
    options.whole("--cv", default=5, least=2, help="Folds."),
    click.option(
        "--on-split", help="Measure on this split of DATA, such as val, instead of on folds."
    ),
    options.whole("--repeats", default=1, least=1, help="How many times the folds are drawn."),
    click.option(
        "--scoring",
        help="accuracy, balanced_accuracy, macro_f1, log_loss or top5; with --multilabel "
        "mean_average_precision or micro_f1; with --regression r2, mae or rmse.  [default: the "
        "first of them]",
    ),
    click.option(
        "--score",
        default="auto",
        show_default="test where there is such a split, else nested where cheap, else holdout",
        help="How the winner is scored: test, holdout, nested or none.",
    ),
    options.flag(
        "--one-standard-error",
        help="Take the cheapest of all that are within one standard error of the best.",
    ),
    click.option(
        "--budget",
        "budget_s",
        callback=options.read_seconds,
        help="Time after which no trial is started: 60s, 10m, 1h.",
    ),
    options.whole("--jobs", "n_jobs", default=-1, help="Fits at a time; -1: cores."),
    click.option(
        "--joins/--no-joins", default=True, show_default=True, help="Try blocks side by side."
    ),
    click.option(
        "--ensemble/--no-ensemble",
        default=True,
        show_default=True,
        help="Try the weighted mean of the best heads.",
    ),
    click.option(
        "--caution",
        type=click.FloatRange(min=0),
        help="Standard errors by which a candidate has to be better than the first head on the "
        "first tap to win.  [default: 1.5 without --head, else 0: the best score wins]",
    ),
    options.flag("--fresh", help="Forget finished trials of the same search."),
    options.file_path("--csv", "csv_file", help="Write the whole leaderboard there."),
    options.output,
    options.embed,
    options.report,
    options.cache,
    options.seed,
    options.multilabel,
    options.regression,
    options.label_kind,
    options.balanced,
    options.rule,
    options.max_ram,
    options.as_json,
)
def command(
    data: str,
    csv_file: Path | None,
    output: Path | None,
    report_file: Path | None,
    embed: bool,
    force: bool,
    cache: Path,
    multilabel: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Find the best backbone, tap, head and parameters, and save the winner as a model.

    Features that are missing are extracted first: avg, and inner (blocks inside the network) of
    backbones of the catalogue, unless --tap names others. Blocks of features are tried alone and
    side by side, and the best heads together. What is finished is kept: the same command goes on
    from there after Ctrl-C or a kill.

    \b
    featx search photos/ -o photos.featx
    featx search photos/ -b tiny -b mobilenet_v2 --head logistic --head 'dense:256|512' -o m.featx
    featx search photos/ --head 'logistic:C=0.0001..10' --strategy random --trials 30 --budget 2m
    featx search faces.csv --regression --target-column age --scoring mae
    """
    import featx
    from featx.files.outputs import begins_with
    from featx.models.search import default_scoring, read_space
    from featx.models.training import check_kind
    from featx.selection.measuring import SearchOptions

    laps = Laps()
    options.check_targets(settings["regression"], settings["target_columns"])
    target = options.model_target(output, data, force=force)
    options.check_report(report_file, data, force=force)
    if csv_file is not None:
        options.check_output(csv_file, begins_with("rank,"), "leaderboard", force=force, data=data)
    settings["multilabel"] = multilabel
    extraction = extraction_arguments(settings)
    if not options.is_given("taps"):
        extraction["taps"] = _default_taps(data, cache, extraction["backbone"] or ("tiny",))
    what: dict[str, Any] = {
        name: list(settings.pop(name)) or None for name in ("heads", "transforms")
    }
    learnt = {
        "multilabel": multilabel,
        **{name: settings.pop(name) for name in ("regression", "label_kind", "balanced")},
    }
    kind = {name: learnt[name] for name in ("multilabel", "regression")}
    ruled = {name: settings[name] for name in ("optimise", "coverage", "coverage_by")}
    check_kind(**kind, balanced=learnt["balanced"], ruled=options.is_ruled(settings))
    options.check_rule(settings, multilabel=multilabel)
    for name in ruled:
        del settings[name]
    space, max_ram, fresh, on_split = (
        settings.pop(name) for name in ("space", "max_ram", "fresh", "on_split")
    )
    how: dict[str, Any] = {
        **settings,
        "cv": on_split or settings["cv"],
        "scoring": settings["scoring"] or default_scoring(**kind),
    }
    # A mistyped name is to be known before an hour of extraction.
    streamed = max_ram is not None
    named = read_space(
        space, **what, trust=extraction["trust"], streamed=streamed, regression=learnt["regression"]
    )
    if learnt["balanced"]:
        named.balanced()
    SearchOptions(**{**how, "caution": how["caution"] or 0.0})
    features = featx.extract(data, **extraction, cache=cache, progress=True)
    if not as_json:
        show_features(features)
    laps.lap("features")
    if extraction["backbone"]:
        what["backbones"] = list(extraction["backbone"])
    source = {name: extraction[name] for name in ("weights", "preprocessing", "trust", "engine")}
    result = featx.search(
        features,
        **what,
        space=space,
        **how,
        **source,
        **learnt,
        **ruled,
        max_ram=max_ram,
        cache=cache,
        resume=not fresh,
        progress=True,
    )
    laps.lap("search and its winner")
    result.save(target, command=command_line(), embed=embed, overwrite=force)
    if csv_file is not None:
        csv_file.write_text(result.to_csv(), "utf-8", "surrogateescape")
    laps.lap("score and saving")
    reported = options.write_report(result, report_file, seed=settings["seed"], force=force)
    if as_json:
        extracted = {"extraction": features.report, **unused_images(features)}
        say_json({"model": str(target), **result.to_dict(), **extracted})
        return options.exit_code(features.failed)
    _show(result)
    show_rule(result.decided)
    if csv_file is not None:
        say(f"table     {csv_file}: all {len(result.leaderboard):,} trials")
    say(f"saved     {target}")
    if reported:
        laps.lap("report")
        say(reported)
    laps.say()
    say(f"next: {next_prediction(target, data, features)}")
    return options.exit_code(features.failed)


def _default_taps(data: str, cache: Path, backbones: tuple[str, ...]) -> Any:
    """Return the taps that are tried by backbone, only avg where images cannot be read again."""
    from featx.cache.layout import CacheLayout
    from featx.extraction.job import find_named
    from featx.files.stores import as_address

    named = find_named(CacheLayout.at(cache), data)
    readable = named is None or as_address(named.root) or (named.root and Path(named.root).exists())
    if not readable:
        return ["avg"]
    # A network of one's own has no blocks that are known.
    return {name: ["avg"] if ":" in name else ["avg", "inner"] for name in backbones}


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
    higher = sum((row.score or 0.0) > (best.score or 0.0) for row in result.leaderboard)
    if higher and result.caution:
        say(
            f"note      {higher:,} scored higher, none clearly so: the usual one is taken "
            "(--caution 0 takes the highest)"
        )
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
