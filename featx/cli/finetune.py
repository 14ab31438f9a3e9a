"""``featx finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.options import command_line, next_command
from featx.cli.show import unused_images
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.finetuning.trainer import Epoch
    from featx.finetuning.tuning import FineTuned, Rehearsal


@options.command(
    "finetune",
    options.model,
    options.data,
    options.file_path(
        "-o",
        "--output",
        help="Where the model goes.",
        metavar="PATH",
        show_default="MODEL-finetuned.featx",
    ),
    click.option(
        "--unfreeze",
        default="30%",
        show_default=True,
        metavar="PART",
        help="From where on layers are trained: a block (block_15) or layer, the last share of the "
        "layers (30%), after:15 for all but the first 15, or all.",
    ),
    options.whole("--epochs", default=10, least=1, help=""),
    options.whole("--batch-size", default=32, least=1, help=""),
    click.option(
        "--learning-rate",
        type=float,
        show_default="0.001; 0.0001 on fewer than 200 images",
        help="Of the head; it rises, and falls along a cosine.",
    ),
    options.real(
        "--depth-decay",
        default=0.7,
        help="What the rate is multiplied by from block to block downwards.",
    ),
    options.real("--warmup", default=0.1, help="Share of the steps."),
    options.real("--weight-decay", default=0.0001, help=""),
    click.option(
        "--loss",
        type=click.Choice(["squared", "huber"]),
        show_default="squared",
        help="Of models that predict numbers only.",
    ),
    options.real("--label-smoothing", default=0.0, help=""),
    options.choice(
        "--mixing",
        values=["none", "mixup", "cutmix"],
        default="none",
        help="Mix images of a batch in pairs.",
    ),
    options.real("--mixing-alpha", default=0.2, help=""),
    options.whole(
        "--views",
        least=0,
        show_default="4; 0 for numbers",
        help="Augmented views of each image; epochs take them in turn. Each costs what the image "
        "does in the cache; 0 for none.",
    ),
    options.view_policy,
    options.flag("--gradual", help="The head first, then one block more an epoch."),
    options.flag("--train-batchnorm", help="Let batch normalisation learn new statistics."),
    options.whole(
        "--patience",
        default=10,
        least=1,
        help="Epochs without a better hold-out score before it stops.",
    ),
    options.real(
        "--holdout",
        default=0.2,
        help="Share of every class held out, where DATA has no split named val.",
    ),
    options.flag("--balanced", help="Let every class count the same."),
    options.choice(
        "--cut",
        values=["auto", "cached", "pixels"],
        default="auto",
        help="Cache what the frozen part gives, or run it in every step.",
    ),
    options.flag("--mixed", help="Compute in bfloat16; for GPUs, tested on a CPU only."),
    options.report,
    options.flag("--restart", help="Start anew, though a checkpoint could be gone on from."),
    options.flag("--dry-run", help="Say what it would take, and train nothing."),
    options.flag("--tensorboard", help="Write curves for TensorBoard, if installed."),
    click.option(
        "--engine", default="auto", show_default=True, help="What computes the frozen part."
    ),
    options.weights,
    options.flag("--trust", help="Load any scikit-learn head."),
    options.force(),
    options.reading,
    options.cache,
    options.seed,
    options.as_json,
)
def command(
    model: Path,
    data: str,
    output: Path | None,
    report_file: Path | None,
    force: bool,
    restart: bool,
    dry_run: bool,
    tensorboard: bool,
    balanced: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Train the top of a model's backbone too, from the head that it has.

    What stays frozen is run once over every image and comes from the cache. The best epoch on a
    hold-out is kept, with its confidence corrected; where none beats the head, the model stays as
    it was. Ctrl-C keeps the best so
    far, and the same command goes on.

    \b
    featx finetune photos.featx photos/ --unfreeze block_15
    featx finetune photos.featx photos/ --views 0 --epochs 5
    featx finetune photos.featx photos/ --unfreeze all --dry-run
    """
    import featx
    from featx.files.outputs import as_target, is_model

    settings["class_weight"] = "balanced" if balanced else None
    target = as_target(output or model.with_name(f"{model.stem}-finetuned.featx"))
    options.check_output(target, is_model, "model", force=force, data=data)
    options.check_report(report_file, data, force=force)
    if dry_run:
        from featx.finetuning.tuning import rehearse

        rehearsal = rehearse(model, data, **settings)
        if as_json:
            say_json(rehearsal.to_dict())
        else:
            _show_rehearsal(rehearsal, settings["epochs"])
        return 0
    from featx.finetuning.tuning import tensorboard_writer, training_folder

    curves = tensorboard_writer(training_folder(target)) if tensorboard else None

    def tell(epoch: Epoch) -> None:
        if curves:
            curves(epoch)
        if not as_json:
            _show_epoch(epoch)

    done = featx.finetune(
        model,
        data,
        target,
        **settings,
        resume=not restart,
        command=command_line(),
        overwrite=force,
        progress=True,
        on_epoch=tell,
    )
    if report_file is not None:
        done.report(report_file, seed=settings["seed"], overwrite=force)
    if as_json:
        say_json(_as_json(done))
    else:
        _show(done, data)
        if report_file is not None:
            say(f"report    {options.shown_word(report_file)}")
    if done.interrupted:
        what = "the best epoch so far" if done.kept == "finetuned" else "the model as it was"
        raise KeyboardInterrupt(f"{what} is in {done.path}")
    return options.exit_code(done.scored.features.failed)


def _show_epoch(epoch: Epoch) -> None:
    scores = f"hold-out {_written(epoch.scores)}"
    if not epoch.epoch:
        say(f"start     {scores}")
        return
    say(f"epoch {epoch.epoch:<3} loss {epoch.loss:.4f}, {scores}, {epoch.seconds:.1f} s")


def _show(done: FineTuned, data: str) -> None:
    scores = done.metrics["finetuning"]
    head, tuned, test = scores["head"], scores["finetuned"], scores.get("test")
    cooled = "temperature" in scores
    if done.stopped:
        say(f"stopped   {done.stopped}")
    say(f"head      {_written(head)} on the {scores['hold_out']}")
    if tuned:
        say(
            f"finetuned {_written(tuned)}, epoch {scores['best_epoch']} of {scores['epochs']}"
            + (f", temperature {scores['temperature']:.2f}" if cooled else "")
        )
    if done.kept == "head":
        say("kept      the head: no epoch was better on the hold-out")
    say(
        f"note      the hold-out chose {'epoch and temperature' if cooled else 'the epoch'}: "
        "its scores are optimistic" + ("" if test else ". A split named test gives an honest score")
    )
    if test:
        first, second = head
        sides = ", ".join(
            f"{side} {_written({first: test[side], second: test[f'{side}_{second}']})}"
            for side in ("head", "finetuned")
        )
        say(f"test      {test['images']} images that chose nothing: {sides}")
    say(f"saved     {done.path}")
    carried = {"cache", "trust", *options.reading_arguments({})}
    say(f"next: {next_command('evaluate', str(done.path), data, carried=carried)}")


_NAMES = {"accuracy": "accuracy", "log_loss": "log loss", "r2": "R²", "rmse": "RMSE"}


def _written(scores: dict[str, float]) -> str:
    return ", ".join(f"{_NAMES[name]} {score:.4f}" for name, score in scores.items())


def _show_rehearsal(rehearsal: Rehearsal, epochs: int) -> None:
    where = f"activations of {', '.join(rehearsal.cut)}" if rehearsal.cut else "pixels"
    say(f"images    {rehearsal.images:,} to train on, {rehearsal.held_out:,} held out")
    say(
        f"trained   {rehearsal.trained_parameters:,} parameters of {rehearsal.trained_layers} "
        f"layers, from {where}; {rehearsal.frozen_parameters:,} frozen"
    )
    if rehearsal.cut:
        say(
            f"cache     {rehearsal.activation_bytes / 1e6:,.1f} MB of activations, "
            f"{rehearsal.extraction_s:,.0f} s for those that are missing"
        )
    say(
        f"time      {rehearsal.epoch_s:,.1f} s an epoch, at most {rehearsal.seconds:,.0f} s "
        f"for {epochs}"
    )
    if rehearsal.memory_bytes is not None:
        say(f"memory    {rehearsal.memory_bytes / 1e9:,.1f} GB at the peak of this rehearsal")


def _as_json(done: FineTuned) -> dict[str, Any]:
    return {
        "model": done.path,
        "kept": done.kept,
        "stopped": done.stopped or None,
        "cut": list(done.cut),
        "metrics": done.metrics,
        "history": done.history,
        **unused_images(done.scored.features),
    }
