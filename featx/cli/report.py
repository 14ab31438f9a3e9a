"""``featx report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featx.cli import options
from featx.cli.show import unused_images
from featx.terminal import say, say_json


@options.command(
    "report",
    options.model,
    options.data,
    click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path("report.html"),
        show_default=True,
        help="Where the page goes.",
    ),
    options.bootstrap,
    options.flag("--audit", help="Show what `featx audit` says of DATA too."),
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
    output: Path,
    force: bool,
    weights: str | None,
    trust: bool,
    audit: bool,
    cache: Path,
    as_json: bool,
    **settings: Any,
) -> int:
    """Show how good a model is, and on which images it is wrong, on one page.

    The page is one HTML file that loads nothing: open it from disk, or send it. It has the scores,
    the confusion matrix with the images of each cell, the worst errors, each class, how sure the
    model is, and a map of the images. Where DATA has a split named test, only its images are
    scored.

    \b
    featx report photos.featx held-out-photos/ -o report.html
    featx report photos.featx photos/ --audit
    """
    import featx
    from featx.files.outputs import as_target, size_of
    from featx.models.evaluation import extract_for

    options.check_report(output, data, force=force)
    reading = options.reading_arguments(settings)
    classifier = featx.load(model, cache=cache, weights=weights, trust=trust)
    features = extract_for(classifier, data, cache=cache, progress=True, **reading)
    metrics = featx.evaluate(classifier, features, **settings)
    featx.report(
        classifier,
        features,
        output,
        scores=metrics,
        audit=featx.audit(features, seed=settings["seed"]) if audit else None,
        name=model.name,
        seed=settings["seed"],
        overwrite=force,
    )
    images, size_bytes = metrics["images"], size_of(as_target(output))
    written_at = options.shown_word(output)
    if as_json:
        written = {"report": written_at, "images": images, "bytes": size_bytes}
        say_json({**written, **unused_images(features)})
        return options.exit_code(features.failed)
    say(f"{features.name}: {images:,} images scored, {metrics['failed']:,} could not be read")
    say(f"report    {written_at} ({size_bytes / 1e6:.1f} MB): open it in a browser")
    return options.exit_code(features.failed)
