"""``featx train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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
from featx.cli.show import label_scores, show_features
from featx.terminal import say, say_json


def _complete_head(_: Any, __: Any, incomplete: str) -> list[str]:
    from featx.heads.table import head_names

    return [name for name in head_names() if name.startswith(incomplete)]


@click.command("train", cls=Command, short_help="Train a head on features and save the model.")
@data_argument
@backbone_options(several=False)
@click.option(
    "--head",
    default="logistic",
    show_default=True,
    shell_complete=_complete_head,
    help="logistic, svm, knn, ridge, lda, forest or dense:1024,1024, with parameters as in "
    "logistic:C=0.1",
)
@whole("--cv", default=5, least=0, help="Folds; 0 for none.")
@output_option
@cache_option
@seed_option
@flag("--average-views", help="Predict by the mean over an image and its --views, at their price.")
@multilabel_option
@label_kind_option
@max_ram_option
@json_option
@common_options
def command(
    data: str,
    head: str,
    cv: int,
    output: Path | None,
    force: bool,
    cache: Path,
    seed: int,
    average_views: bool,
    multilabel: bool,
    label_kind: Any,
    max_ram: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a head on features and save the model.

    Features that are missing are extracted first. The accuracy is measured on images that the head
    has not seen: a split of DATA named test or val, else by cross-validation.

    \b
    featx train photos/ -o photos.featx
    featx train photos/ -b mobilenet_v2 --head dense:1024,1024 -o photos.featx
    featx train insects.csv --multilabel -o insects.featx  # labels such as ant|winged
    """
    import featx
    from featx.files.outputs import is_model
    from featx.heads.learning import require_streamable
    from featx.heads.making import make_head

    # What cannot be trained is to be known before an hour of extraction.
    if max_ram is not None:
        require_streamable(make_head(head))
    make_head(head, multilabel=multilabel)
    target = output or Path(f"{Path(data).resolve().stem}.featx")
    check_output(target, is_model, "model", force=force, data=data)
    if average_views and not options["views"]:
        raise click.UsageError("--average-views needs --views K, the number of views")
    asked = extraction_arguments(options)
    features = featx.extract(data, **asked, multilabel=multilabel, cache=cache, progress=True)
    started = time.perf_counter()
    result = featx.train(
        features,
        head=head,
        backbone=asked["backbone"],
        weights=asked["weights"],
        preprocessing=asked["preprocessing"],
        trust=asked["trust"],
        average_views=average_views,
        cv=cv,
        multilabel=multilabel,
        label_kind=label_kind,
        seed=seed,
        max_ram=max_ram,
        cache=cache,
    )
    seconds = time.perf_counter() - started
    result.model.save(
        target,
        metrics=result.metrics,
        training=result.training,
        command=command_line(),
        overwrite=force,
    )
    if as_json:
        found = {"model": str(target), "head": head, "metrics": result.metrics}
        say_json({**found, "extraction": features.report, "train_seconds": seconds})
        return
    show_features(features)
    what = "labels" if multilabel else "classes"
    say(f"head      {head} on {len(result.model.classes_)} {what} in {seconds:.1f} s")
    _show_accuracy(result)
    say(f"saved     {target}")
    say(f"next: {next_prediction(target, data, features)}")


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
