"""``featx evaluate``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import click

from featx.cli import options
from featx.cli.show import notes, show_rule, show_scores, unused_images
from featx.terminal import say, say_json

_COUNTS = ("true positives", "false positives", "false negatives", "true negatives")


@options.command(
    "evaluate",
    options.model,
    options.data,
    click.option(
        "--compare",
        "other",
        type=click.Path(path_type=Path),
        help="A second model on the same images: McNemar's test, or errors of a regression.",
    ),
    options.bootstrap,
    options.file_path(
        "--confusion",
        help="Write the confusion matrix as CSV; of several labels an image, four counts a label.",
    ),
    options.report,
    options.loading,
    options.force(),
    options.reading,
    options.cache,
    options.seed,
    options.as_json,
)
def command(
    model: Path,
    data: str,
    other: Path | None,
    confusion: Path | None,
    report_file: Path | None,
    force: bool,
    weights: str | None,
    trust: bool,
    cache: Path,
    as_json: bool,
    **settings: Any,
) -> int:
    """Score a model on labelled images.

    Where DATA has a split named test, only its images count. Every score has its 95 % interval, by
    drawing the images again. The calibration error is the expected one, over 15 bins.

    \b
    featx evaluate photos.featx photos-held-out/
    featx evaluate old.featx photos-held-out/ --compare new.featx
    featx evaluate age.featx faces.csv  # a regression: R², MAE and RMSE
    """
    import featx
    from featx.files.outputs import begins_with
    from featx.models.evaluation import extract_for

    if confusion is not None:
        recognise = begins_with("true \\ predicted,", f"label,{_COUNTS[0]},")
        options.check_output(confusion, recognise, "confusion matrix", force=force, data=data)
    options.check_report(report_file, data, force=force)
    reading = options.reading_arguments(settings)
    classifier = featx.load(model, cache=cache, weights=weights, trust=trust)
    second = None if other is None else featx.load(other, cache=cache, trust=trust)
    if confusion is not None and classifier.regression:
        raise click.UsageError("--confusion is of classes, and the model predicts numbers")
    features = extract_for(classifier, data, cache=cache, progress=True, **reading)
    metrics = featx.evaluate(classifier, features, **settings)
    report = {"model": options.shown_word(model), "dataset": features.name, **metrics}
    if report_file is not None:
        featx.report(
            classifier,
            features,
            report_file,
            scores=metrics,
            name=model.name,
            seed=settings["seed"],
            overwrite=force,
        )
    if confusion is not None:
        _write_confusion(confusion, metrics)
    if second is not None:
        report["comparison"] = {
            "second_model": options.shown_word(other),
            **featx.compare_models(
                classifier,
                second,
                features,
                extract_for(second, data, cache=cache, progress=True, **reading),
                **settings,
            ),
        }
    if as_json:
        say_json({**report, **unused_images(features)})
        return options.exit_code(features.failed)
    say(f"{features.name}: {metrics['images']:,} images, {metrics['failed']:,} failed")
    notes(features)
    show_scores(metrics)
    show_rule(metrics)
    if report_file is not None:
        say(f"report    {options.shown_word(report_file)}")
    if second is not None:
        _show_comparison(report["comparison"])
    return options.exit_code(features.failed)


def _write_confusion(path: Path, metrics: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if "labels" in metrics:
            writer.writerow(["label", *_COUNTS])
            for row in metrics["labels"]:
                (absent, wrong), (missed, right) = row["confusion"]
                writer.writerow([row["label"], right, wrong, missed, absent])
            return
        writer.writerow(["true \\ predicted", *metrics["classes"]])
        for name, row in zip(metrics["classes"], metrics["confusion"], strict=True):
            writer.writerow([name, *row])


def _show_comparison(comparison: dict[str, Any]) -> None:
    if "mae" in comparison:
        first, second = comparison["mae"]
        low_high = comparison.get("interval")
        within = " (95 % interval {:+.4g} to {:+.4g})".format(*low_high) if low_high else ""
        say(
            f"{comparison['second_model']}: mean absolute error {second:.4g} against {first:.4g}, "
            f"{comparison['difference']:+.4g}{within}"
        )
        return
    first, second = comparison["accuracy"]
    what = "accuracy" if comparison["right"] == "the label" else f"{comparison['right']} right"
    low_high = comparison.get("interval")
    within = " (95 % interval {:+.4f} to {:+.4f})".format(*low_high) if low_high else ""
    say(
        f"{comparison['second_model']}: {what} {second:.4f} against {first:.4f}, "
        f"{comparison['difference']:+.4f}{within}"
    )
    say(
        f"right on {comparison['only_second_right']:,} images where the first is wrong, wrong on "
        f"{comparison['only_first_right']:,} where the first is right: "
        f"p = {comparison['p_value']:.3g} (McNemar's exact test)"
    )
