"""``featx finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.options import (
    Command,
    cache_option,
    check_output,
    choice,
    command_line,
    common_options,
    data_argument,
    file_path,
    flag,
    force_option,
    json_option,
    model_argument,
    next_command,
    reading_options,
    real,
    seed_option,
    whole,
)
from featx.terminal import say, say_json

if TYPE_CHECKING:
    from featx.finetuning.trainer import Epoch
    from featx.finetuning.tuning import FineTuned, Rehearsal


@click.command("finetune", cls=Command, short_help="Train the top of a model's backbone too.")
@model_argument
@data_argument
@file_path(
    "-o",
    "--output",
    help="Where the model goes.",
    metavar="PATH",
    show_default="MODEL-finetuned.featx",
)
@click.option(
    "--unfreeze",
    default="30%",
    show_default=True,
    metavar="PART",
    help="From where on layers are trained: a block (block_15) or layer, the last share of the "
    "layers (30%), after:15 for all but the first 15, or all.",
)
@whole("--epochs", default=10, least=1, help="")
@whole("--batch-size", default=32, least=1, help="")
@real("--learning-rate", default=0.001, help="Of the head; it rises, and falls along a cosine.")
@real(
    "--depth-decay",
    default=0.7,
    help="What the rate is multiplied by from block to block downwards.",
)
@real("--warmup", default=0.1, help="Share of the steps.")
@real("--weight-decay", default=0.0001, help="")
@real("--label-smoothing", default=0.0, help="")
@choice(
    "--mixing",
    values=["none", "mixup", "cutmix"],
    default="none",
    help="Mix images of a batch in pairs.",
)
@real("--mixing-alpha", default=0.2, help="")
@whole(
    "--views", default=0, least=0, help="Augmented views of each image; epochs take them in turn."
)
@click.option(
    "--view-policy",
    show_default="flip-crop-colour-1",
    help="How views are drawn: flip-1, flip-crop-1 or flip-crop-colour-1.",
)
@flag("--gradual", help="The head first, then one block more an epoch.")
@flag("--train-batchnorm", help="Let batch normalisation learn new statistics.")
@whole(
    "--patience", default=5, least=1, help="Epochs without a better hold-out score before it stops."
)
@real(
    "--holdout",
    default=0.2,
    help="Share of every class held out, where DATA has no split named val.",
)
@flag("--balanced", help="Let every class count the same.")
@choice(
    "--cut",
    values=["auto", "cached", "pixels"],
    default="auto",
    help="Cache what the frozen part gives, or run it in every step.",
)
@flag("--mixed", help="Compute in bfloat16; for GPUs, tested on a CPU only.")
@flag("--restart", help="Start anew, though a checkpoint could be gone on from.")
@flag("--dry-run", help="Say what it would take, and train nothing.")
@flag("--tensorboard", help="Write curves for TensorBoard, if installed.")
@click.option("--engine", default="auto", show_default=True, help="What computes the frozen part.")
@click.option("--weights", help="The backbone's weights, when they are not where they were.")
@flag("--trust", help="Load any scikit-learn head.")
@force_option()
@reading_options
@cache_option
@seed_option
@json_option
@common_options
def command(
    model: Path,
    data: str,
    output: Path | None,
    force: bool,
    restart: bool,
    dry_run: bool,
    tensorboard: bool,
    balanced: bool,
    engine: str,
    weights: str | None,
    trust: bool,
    cache: Path,
    as_json: bool,
    view_policy: str | None,
    **options: Any,
) -> None:
    """Train the top of a model's backbone too, from the head that it has.

    What stays frozen is run once over every image and comes from the cache. The best epoch on a
    hold-out is kept; where none beats the head, the model stays as it was. Ctrl-C keeps the best so
    far, and the same command goes on.

    \b
    featx finetune photos.featx photos/ --unfreeze block_15 --views 4
    featx finetune photos.featx photos/ --unfreeze all --dry-run
    """
    import featx
    from featx.files.outputs import is_model

    reading = {name: options.pop(name) for name in ("splits", "root")}
    source: Any = data
    if any(reading.values()):
        source = featx.ImageDataset.from_any(data, **reading)
    options["class_weight"] = "balanced" if balanced else None
    target = output or model.with_name(f"{model.stem}-finetuned.featx")
    check_output(target, is_model, "model", force=force, data=data)
    shared: dict[str, Any] = {
        "cache": cache, "weights": weights, "engine": engine, "trust": trust,
        "view_policy": view_policy,
    }  # fmt: skip
    if dry_run:
        from featx.finetuning.tuning import rehearse

        found = rehearse(model, source, **shared, **options)
        if as_json:
            say_json(found.to_dict())
        else:
            _show_rehearsal(found, options["epochs"])
        return
    from featx.extraction.progress import terminal_progress
    from featx.finetuning.tuning import tensorboard_writer, training_folder

    curves = tensorboard_writer(training_folder(target)) if tensorboard else None

    def tell(epoch: Epoch) -> None:
        if curves:
            curves(epoch)
        if not as_json:
            _show_epoch(epoch)

    with terminal_progress(True, "training") as bar:

        def step(epoch: int, done: int, total: int) -> None:
            if bar:
                bar((epoch - 1) * total + done, options["epochs"] * total, 0)

        done = featx.finetune(
            model,
            source,
            target,
            **shared,
            **options,
            resume=not restart,
            command=command_line(),
            overwrite=force,
            progress=step,
            on_epoch=tell,
        )
    if as_json:
        say_json(_as_json(done))
    else:
        _show(done, data)
    if done.interrupted:
        what = "the best epoch so far" if done.kept == "finetuned" else "the model as it was"
        raise KeyboardInterrupt(f"{what} is in {done.path}")


def _show_epoch(epoch: Epoch) -> None:
    if not epoch.epoch:
        say(f"start     hold-out accuracy {epoch.val_accuracy:.4f}, log loss {epoch.val_loss:.4f}")
        return
    say(
        f"epoch {epoch.epoch:<3} loss {epoch.loss:.4f}, hold-out accuracy "
        f"{epoch.val_accuracy:.4f}, log loss {epoch.val_loss:.4f}, {epoch.seconds:.1f} s"
    )


def _show(done: FineTuned, data: str) -> None:
    said = done.metrics["finetuning"]
    head, tuned = said["head"], said["finetuned"]
    if done.stopped:
        say(f"stopped   {done.stopped}")
    say(f"head      accuracy {head['accuracy']:.4f} on the {said['hold_out']}")
    if done.kept == "finetuned":
        say(
            f"finetuned accuracy {tuned['accuracy']:.4f}, epoch {said['best_epoch']} of "
            f"{said['epochs']}, chosen by the hold-out: optimistic"
        )
    else:
        say("kept      the head: no epoch was better on the hold-out")
    if "test" in said:
        test = said["test"]
        say(
            f"test      {test['images']} images: head {test['head']:.4f}, finetuned "
            f"{test['finetuned']:.4f}"
        )
    say(f"saved     {done.path}")
    say(f"next: {next_command('evaluate', str(done.path), data)}")


def _show_rehearsal(found: Rehearsal, epochs: int) -> None:
    where = f"activations of {', '.join(found.cut)}" if found.cut else "pixels"
    say(f"images    {found.images:,} to train on, {found.held_out:,} held out")
    say(
        f"trained   {found.trained_parameters:,} parameters of {found.trained_layers} layers, from "
        f"{where}; {found.frozen_parameters:,} frozen"
    )
    if found.cut:
        say(
            f"cache     {found.activation_bytes / 1e6:,.1f} MB of activations, "
            f"{found.extraction_s:,.0f} s for those that are missing"
        )
    say(f"time      {found.epoch_s:,.1f} s an epoch, at most {found.seconds:,.0f} s for {epochs}")
    if found.memory_bytes is not None:
        say(f"memory    {found.memory_bytes / 1e9:,.1f} GB at the peak of this rehearsal")


def _as_json(done: FineTuned) -> dict[str, Any]:
    return {
        "model": str(done.path),
        "kept": done.kept,
        "stopped": done.stopped or None,
        "cut": list(done.cut),
        "metrics": done.metrics,
        "history": done.history,
    }
