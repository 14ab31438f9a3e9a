"""``featx train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.options import command_line, extraction_arguments, next_prediction
from featx.cli.show import (
    Laps,
    label_scores,
    show_features,
    show_rule,
    unused_images,
    value_scores,
)
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.files.outputs import Target


@options.command(
    "train",
    options.data,
    options.backbone,
    click.option(
        "--head",
        default="logistic",
        show_default="logistic, with --regression ridge",
        shell_complete=options.complete_head,
        help="logistic, svm, knn, ridge, lda, forest or dense:1024,1024, with parameters as in "
        "logistic:C=0.1; with --regression ridge, svm, knn, forest, extra-trees or dense",
    ),
    options.whole("--cv", default=5, least=0, help="Folds; 0 for none."),
    options.output,
    options.embed,
    options.report,
    options.cache,
    options.seed,
    options.flag(
        "--average-views", help="Predict by the mean over an image and its --views, at their price."
    ),
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
    output: Path | None,
    report_file: Path | None,
    embed: bool,
    force: bool,
    cache: Path,
    head: str,
    multilabel: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Train a head on features and save the model.

    Features that are missing are extracted first. The accuracy is measured on images that the head
    has not seen: a split of DATA named test or val, else by cross-validation. Of several -b and
    --tap, the features are side by side: one model on all of them.

    \b
    featx train photos/ -o photos.featx
    featx train photos/ -b mobilenet_v2 --head dense:1024,1024 -o photos.featx
    featx train photos/ -b tiny -b mobilenet_v2 -o both.featx
    featx train insects.csv --multilabel -o insects.featx  # labels such as ant|winged
    featx train faces.csv --regression --target-column age -o age.featx
    featx train photos/ --optimise f1 --coverage 0.95 -o photos.featx
    """
    import featx
    from featx.heads.foreign import trusted_head
    from featx.heads.learning import require_streamable
    from featx.heads.making import balanced_head, make_head
    from featx.models.training import VALUE_HEAD, check_kind, require_classes

    laps = Laps()
    # What cannot be trained is to be known before an hour of extraction.
    regression, balanced = settings.pop("regression"), settings.pop("balanced")
    options.check_targets(regression, settings["target_columns"])
    kind: dict[str, Any] = {"multilabel": multilabel, "regression": regression}
    check_kind(**kind, balanced=balanced, ruled=options.is_ruled(settings))
    if regression and not options.is_given("head"):
        head = VALUE_HEAD
    named, seed = head, settings["seed"]
    if settings["trust"] and not regression:
        head = trusted_head(head, seed=seed, saved=True)
    head = balanced_head(head) if balanced else head
    shown = head if isinstance(head, str) else named
    untrained = make_head(head, **kind)
    options.check_rule(settings, multilabel=multilabel)
    if settings["max_ram"] is not None:
        require_streamable(untrained)
    target = options.model_target(output, data, force=force)
    before = _training_of(target)
    options.check_report(report_file, data, force=force)
    if settings["average_views"] and not settings["views"]:
        raise click.UsageError("--average-views needs --views K, the number of views")
    settings["multilabel"] = multilabel
    extraction = extraction_arguments(settings)
    features = featx.extract(data, **extraction, cache=cache, progress=True)
    if not (multilabel or regression):
        require_classes(features, settings["label_kind"])
    if not as_json:
        show_features(features)
    laps.lap("features")
    source = {name: extraction[name] for name in ("backbone", "weights", "preprocessing", "trust")}
    if len(features.blocks) > 1:
        source["tap"] = extraction["taps"]
    started = time.perf_counter()
    result = featx.train(features, head=head, **kind, cache=cache, **source, **settings)
    seconds = time.perf_counter() - started
    laps.lap("head and its score")
    change = result.change(before, seed=settings["seed"])
    result.model.save(
        target,
        metrics=result.metrics,
        training=result.training,
        command=command_line(),
        embed=embed,
        overwrite=force,
    )
    laps.lap("saving")
    reported = options.write_report(result, report_file, seed=settings["seed"], force=force)
    if as_json:
        saved = {"model": str(target), "head": shown, "metrics": result.metrics, "change": change}
        extracted = {"extraction": features.report, **unused_images(features)}
        say_json({**saved, **extracted, "train_seconds": seconds})
        return options.exit_code(features.failed)
    if regression:
        names = result.model.value_names_
        say(f"head      {shown} on {len(names)} number{'s' * (len(names) > 1)} in {seconds:.1f} s")
        _show_values(result)
    else:
        what = "labels" if multilabel else "classes"
        say(f"head      {shown} on {len(result.model.classes_)} {what} in {seconds:.1f} s")
        _show_accuracy(result)
        show_rule(result.metrics)
    if change is not None:
        low, high = change["interval"]
        say(
            f"change    {change['difference']:+.4f} (95 %: {low:+.3f} to {high:+.3f}) since the "
            f"model that was there, on the {change['images']:,} images that both have scored"
        )
    say(f"saved     {target}")
    if reported:
        laps.lap("report")
        say(reported)
    laps.say()
    say(f"next: {next_prediction(target, data, features)}")
    return options.exit_code(features.failed)


def _training_of(target: Target) -> Any:
    """Return what a model says of its training that is to be replaced; nothing where none is."""
    from featx.exceptions import FeatxError
    from featx.models.model_file import read_details

    if isinstance(target, Path) and not target.is_file():
        return {}
    try:
        return read_details(target)["training"]
    except (FeatxError, KeyError):
        return {}


def _show_values(result: Any) -> None:
    from featx.selection.value_metrics import half_widths

    metrics, model = result.metrics, result.model
    if "values" not in metrics:
        say(f"scores    {metrics['protocol']}")
        return
    for row in metrics["values"]:
        say(f"scores    {value_scores(row)}")
    say(f"          {metrics['protocol']}")
    half = ", ".join(
        f"{name} ± {width:.4g}"
        for name, width in zip(model.value_names_, half_widths(model.residuals_), strict=True)
    )
    say(f"interval  {half} holds the true number of 90 % of images")


def _show_accuracy(result: Any) -> None:
    metrics = result.metrics
    if "mean_average_precision" in metrics:
        say(f"scores    {label_scores(metrics)}, {metrics['protocol']}")
        return
    if "accuracy" not in metrics:
        say(f"accuracy  {metrics['protocol']}")
        return
    spread = metrics.get("accuracy_by_fold")
    folds = f" (folds {min(spread):.3f} to {max(spread):.3f})" if spread else ""
    say(f"accuracy  {metrics['accuracy']:.4f}{folds}, {metrics['protocol']}")
    for suspect in result.suspects[:5]:
        say(
            f"look at   {suspect.path}: labelled {suspect.label}, looks like {suspect.predicted} "
            f"({suspect.probability:.2f})"
        )
