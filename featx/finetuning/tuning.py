"""`finetune`: from a model and images to a fine-tuned model, or a rehearsal of that."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.exceptions import FineTuningError, MissingExtraError
from featx.exporting.formats import Tensor
from featx.extraction.progress import Progress, terminal_progress
from featx.extraction.run import plan_extraction
from featx.files.outputs import Target, as_target, is_model, refuse_replacing
from featx.files.safe_json import Json
from featx.files.stores import address_name
from featx.finetuning.network import TunedNetwork
from featx.finetuning.start import (
    FineTuneOptions,
    Start,
    activation_bytes,
    network_for,
    prepare_material,
    prepare_start,
)
from featx.finetuning.trainer import (
    Epoch,
    Trained,
    Training,
    make_optimizer,
)
from featx.heads.rows import Floats
from featx.images.reading import Reading
from featx.memory import peak_bytes
from featx.models.classifier import ImageClassifier, load_model
from featx.models.image_model import ImageModel
from featx.models.model_file import read_details, save_model
from featx.models.regressor import ImageRegressor
from featx.models.scored import Scored
from featx.models.training import write_report
from featx.models.training_keys import describe_training
from featx.notebooks import NotebookValue, data_frame
from featx.spec import ViewPolicy

if TYPE_CHECKING:
    from pandas import DataFrame

_LOG = logging.getLogger("featx")
_CURVES = ("loss", "val_loss", "val_accuracy", "val_r2", "val_rmse", "learning_rate")


def tensorboard_writer(folder: Path) -> Callable[[Epoch], None]:
    """Return what writes an epoch for TensorBoard, into ``FOLDER/tensorboard``."""
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise MissingExtraError(
            "tensorboard", extra="tensorboard", purpose="writing curves"
        ) from error
    writer = Writer(str(folder / "tensorboard"))

    def write(epoch: Epoch) -> None:
        for name in _CURVES:
            value = getattr(epoch, name)
            if value is not None and (epoch.epoch or name.startswith("val")):
                writer.add_scalar(name, value, epoch.epoch)
        writer.flush()

    return write


def score_outcome(start: Start, trained: Trained, tested: Floats | None) -> Scored:
    """Return what the better of both says, with its scores and the comparison ``finetuning``."""
    objective, rows = start.objective, start.held_out
    before = start.head_answers(rows)
    kept = "finetuned" if _is_better(start, trained, before) else "head"
    epochs = len(trained.history) - 1
    where = f"split {start.named}" if start.named else "hold-out"
    tuned = objective.scores(trained.answers, rows) if trained.best_epoch else None
    comparison: Json = {
        "kept": kept,
        "hold_out": f"{where} of {len(rows)} images",
        "best_epoch": trained.best_epoch,
        **({} if objective.regression else {"temperature": trained.temperature}),
        "epochs": epochs,
        "stopped": trained.stopped,
        "started_from": start.started_from,
        "head": objective.scores(before, rows),
        "finetuned": tuned,
        "options": start.options.to_dict(),
    }
    answers = trained.answers if kept == "finetuned" else before
    chose = {
        "finetuned": objective.chooses.format(epochs),
        "head": f"between the head and {epochs} epochs",
    }
    protocol = f"{where} of {len(rows)} images, which chose {chose[kept]}: optimistic"
    if tested is not None:
        rows, unseen = start.test, start.head_answers(start.test)
        head, network = (objective.scores(side, rows) for side in (unseen, tested))
        first, second = objective.pair
        comparison["test"] = {
            "images": len(rows),
            "head": head[first],
            "finetuned": network[first],
            f"head_{second}": head[second],
            f"finetuned_{second}": network[second],
        }
        answers = tested if kept == "finetuned" else unseen
        protocol = f"split test: {len(rows)} images, {objective.unseen}"
    comparison["protocol"] = protocol
    scored: Json = objective.scored(answers, rows, start.y)
    return Scored(
        features=start.features,
        **(start.block if kept == "finetuned" else start.head_block),
        rows=rows,
        **{
            **scored,
            "scores": {"protocol": protocol, **scored["scores"], "finetuning": comparison},
        },
    )


def _is_better(start: Start, trained: Trained, before: Floats) -> bool:
    """Tell whether the best epoch, with its temperature, beats the model's head as it is."""
    if not trained.best_epoch:
        return False
    objective = start.objective
    after, least = (
        objective.rank(objective.hold_out_scores(answers, start.held_out))
        for answers in (trained.answers, before)
    )
    return after > least


def save_tuned(
    start: Start,
    network: TunedNetwork,
    trained: Trained,
    metrics: Json,
    target: Target,
    command: str | None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the fine-tuned network with its head as a ``.featx`` file."""
    whole = start.source.row is None
    with tempfile.TemporaryDirectory(prefix="featx-") as folder:
        path = Path(folder) / ("network.keras" if whole else "network.weights.h5")
        network.backbone.save(path) if whole else network.backbone.save_weights(path)
        data = path.read_bytes()
    spec = start.source.spec(image=start.model.image)
    spec = replace(spec, weights_sha256=hashlib.sha256(data).hexdigest())
    layers = network.head_weights()
    parameters: Json = {
        "backbone": start.model.backbone,
        "head": f"dense:hidden={tuple(len(bias) for _, bias in layers[:-1])}",
        "tap": start.block["tap"],
        "input_size": start.source.input_size_px,
        "preprocessing": start.model.preprocessing,
        "image": spec.image,
        "random_state": start.model.random_state,
    }
    made = start.objective.model(parameters, layers, spec, start.rows)
    start.objective.remember(made, trained.answers, start.held_out)
    made.training_ = describe_training(start.features, start.y, start.rows)
    if start.model.decision_ is not None:
        _LOG.warning(
            "the fine-tuned model decides by the most probable class: the decision rule and the "
            "coverage of the model that it comes from are of other probabilities"
        )
    save_model(
        made, target, metrics=metrics, spec=spec, command=command, network=data, overwrite=overwrite
    )


_STEPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """What a fine-tuning would take."""

    images: int  # that are trained on, and that choose the epoch
    held_out: int
    cut: list[str]  # layers whose activations are cached; none where training starts from pixels
    trained_layers: int  # of the backbone up to the tap, as the next two
    trained_parameters: int
    frozen_parameters: int
    activation_bytes: int  # of the cache for all images and views
    extraction_s: float  # for those that the cache does not have
    epoch_s: float  # of an epoch, and of all with the extraction
    seconds: float
    memory_bytes: int | None  # peak of the process; None where it cannot be told

    def to_dict(self) -> Json:
        """Return it as JSON types."""
        return asdict(self)


def rehearse(
    model: ImageClassifier | ImageRegressor | str | os.PathLike[str],
    data: object,
    *,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    view_policy: str | ViewPolicy | None = None,
    trust: bool = False,
    **options: Any,
) -> Rehearsal:
    """Say what `featx.finetune` would take: a few steps are run on noise, and nothing is kept."""
    reading = Reading.taken(options)
    start = prepare_start(
        model,
        data,
        FineTuneOptions.read(options),
        reading=reading,
        cache=cache,
        weights=weights,
        engine=engine,
        view_policy=view_policy,
        trust=trust,
    )
    network, chosen = network_for(start), start.options
    stored, waiting = 0, 0.0
    if not network.from_pixels:
        stored = activation_bytes(network, start)
        waiting = plan_extraction(start.data, **start.taps(network.cut.layers)).seconds
    step_s, held_out_s = _measured(network, start)
    steps = math.ceil(len(start.rows) / chosen.batch_size)
    epoch_s = steps * step_s + len(start.held_out) * held_out_s
    variables = [v for group in network.cut.groups for layer in group for v in layer.weights]
    frozen = [v for layer in network.cut.frozen for v in layer.weights]
    return Rehearsal(
        images=len(start.rows),
        held_out=len(start.held_out),
        cut=[] if network.from_pixels else list(network.cut.layers),
        trained_layers=sum(len(group) for group in network.cut.groups),
        trained_parameters=_numbers(variables),
        frozen_parameters=_numbers(frozen),
        activation_bytes=stored,
        extraction_s=waiting,
        epoch_s=epoch_s,
        seconds=waiting + chosen.epochs * epoch_s,
        memory_bytes=peak_bytes(),
    )


def _numbers(variables: list[Tensor]) -> int:
    return sum(math.prod(v.shape) for v in variables)


def _measured(network: TunedNetwork, start: Start) -> tuple[float, float]:
    """Return the seconds of a step, and of an image of the hold-out."""
    options, objective = start.options, start.objective
    rng = np.random.default_rng(0)
    shapes = [tuple(t.shape[1:]) for t in network.model.features.inputs]
    kind = np.uint8 if network.from_pixels else np.float32
    inputs = [(rng.random((options.batch_size, *shape)) * 6).astype(kind) for shape in shapes]
    targets = objective.targets(np.resize(start.rows, options.batch_size))
    optimizer = make_optimizer(
        network.rate_shares(options.depth_decay), weight_decay=options.weight_decay
    )
    network.model.compile(
        optimizer=optimizer, loss=objective.loss(options.loss, options.label_smoothing)
    )
    training = [
        _timed(lambda: network.model.train_on_batch(inputs, targets)) for _ in range(_STEPS)
    ]
    holding = [_timed(lambda: objective.answers(network.logits(inputs))) for _ in range(_STEPS)]
    # The first call traces or compiles.
    return statistics.median(training[1:]), statistics.median(holding[1:]) / options.batch_size


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True, eq=False)
class FineTuned(NotebookValue):
    """What a fine-tuning came to.

    Parameters
    ----------
    model : ImageClassifier or ImageRegressor
        Read back from `path`: the fine-tuned one, or the one it started from where that is better.
    path : Path or str
        The ``.featx`` file.
    kept : {"finetuned", "head"}
        Which of the two it is.
    metrics : dict
        As saved: ``protocol``, the scores of what was kept, and under ``finetuning`` those of both.
    history : list of dict
        The start (epoch 0), and one entry an epoch.
    stopped : str
        Why training ended before its last epoch; empty where it did not.
    interrupted : bool
        Whether the user ended it.
    cut : tuple of str
        Layers whose activations were cached; none where the network was trained from pixels.
    scored : Scored
        What the better of the two says of each image of the hold-out, or of the split ``test``.
    """

    model: ImageClassifier | ImageRegressor
    path: Target
    kept: str
    metrics: Json
    history: list[Json]
    stopped: str
    interrupted: bool
    cut: tuple[str, ...]
    scored: Scored

    def report(self, output: str | os.PathLike[str], **options: Any) -> None:
        """Write a page about the training and the hold-out; see `featx.report` for `options`."""
        write_report(self, output, **options)

    def to_pandas(self) -> DataFrame:
        """Return the history as a table of pandas, one row an epoch; 0 is the start.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        return data_frame(self.history)


def finetune(
    model: ImageClassifier | ImageRegressor | str | os.PathLike[str],
    data: object,
    output: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    view_policy: str | ViewPolicy | None = None,
    resume: bool = True,
    trust: bool = False,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool | Callable[[int, int, int], None] = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> FineTuned:
    """Train the top of a model's backbone on, from the head that it has.

    The head is first fitted on the images that are trained on, without those held out, so that the
    comparison is fair (unless these are what it was trained on); the network then starts from the
    backbone with this head and gives the same probabilities before the first step. Activations of
    the part that stays frozen come from the cache. After every epoch the hold-out is scored; the
    best epoch is kept. Its logits are divided by the temperature that explains the hold-out best,
    so that the probabilities say how often the network is right. A model of a regression learns
    numbers, in deviations of those that it is trained on, by the squared error or that of Huber;
    the epoch with the least squared error on the hold-out is kept, and the errors there give the
    intervals of predictions. Where the result is not better
    than the head, the model stays as it was.

    Parameters
    ----------
    model : ImageClassifier, ImageRegressor or path
        Fitted, or a ``.featx`` file, of one backbone. Its head has to be linear layers: logistic,
        ridge, lda, svm or dense; of a regression ridge, svm or dense. Of a model that reads several
        taps or ``inner``, the network starts from a new head on the tap ``avg``, and is compared
        with the model's own head.
    data : ImageDataset, path or str
        What `featx.extract` takes, with labels. A split named ``val`` chooses the epoch, one named
        ``test`` has no say in anything and is scored in the end; without ``val`` a share of every
        class, or of low, middling and high numbers, is held out, equal images and groups on one
        side.
    output : path
        Where the model goes. Beside it, ``OUTPUT.training/`` keeps ``history.jsonl`` and, until
        training has ended, a checkpoint: the same call goes on from it.
    cache : path, optional
        Cache folder, as of `featx.extract`.
    weights, trust
        As in `featx.load`, where `model` is a path.
    engine : str, default "auto"
        What computes the frozen part.
    view_policy : str or ViewPolicy, optional
        How views are drawn, as in `featx.extract`.
    resume : bool, default True
        Whether to go on from a checkpoint of the same training.
    command : str, optional
        The command line, kept with the model.
    overwrite : bool, default False
        Whether to replace a file at `output` that is no model made by featx.
    progress : bool or callable, default False
        True draws a bar for the extraction and one for the training, in a terminal or in a
        notebook; a callable gets epoch, images done, images in all.
    on_epoch : callable, optional
        Called with every `featx.finetuning.trainer.Epoch`, the start first.
    **options
        Of `featx.finetuning.start.FineTuneOptions`: ``unfreeze``, ``epochs``, ``learning_rate``,
        ``views``, ...; and how `data` are read, as for `featx.extract`: ``splits``, ``root``,
        ``label_column``, ...

    Returns
    -------
    FineTuned

    Raises
    ------
    FineTuningError
        If nothing would be trained, the head is of another kind, the model of other classes, or an
        option is out of its range.
    UnknownNameError
        If there is no such block or layer.
    DatasetError
        If there are no labels, or the hold-out lacks a class.

    Notes
    -----
    First the head, then the network: Kumar et al., "Fine-Tuning can Distort Pretrained Features
    and Underperform Out-of-Distribution", ICLR 2022. Rates by depth and gradual unfreezing: Howard
    and Ruder, "Universal Language Model Fine-tuning", ACL 2018.

    Examples
    --------
    >>> tuned = finetune("photos.featx", "photos/", "tuned.featx")  # doctest: +SKIP
    >>> tuned.kept, tuned.metrics["accuracy"]  # doctest: +SKIP
    ('finetuned', 0.97)
    """
    reading = Reading.taken(options)
    chosen, target = FineTuneOptions.read(options), as_target(output)
    if isinstance(target, Path) and not target.parent.is_dir():
        raise FineTuningError(
            f"the folder of {str(target)!r} does not exist: make it, or name another place"
        )
    refuse_replacing(target, is_model, "model", force=overwrite)
    start = prepare_start(
        model,
        data,
        chosen,
        cache=cache,
        weights=weights,
        engine=engine,
        view_policy=view_policy,
        trust=trust,
        reading=reading,
        progress=bool(progress),
    )
    network, inputs = prepare_material(start, progress=bool(progress))
    with terminal_progress(progress is True, "training") as bar:
        training = Training(
            start,
            network,
            inputs,
            training_folder(target),
            _job(start, network),
            on_epoch=on_epoch,
            on_step=progress if callable(progress) else _steps_shown(bar, chosen.epochs),
        )
        if not resume:
            training.checkpoint.unlink(missing_ok=True)
        trained = training.run()
    tested = None
    if len(start.test):
        batches = inputs.batches(start.test, chosen.batch_size)
        outputs = [start.objective.answers(network.logits(batch)) for batch in batches]
        tested = np.concatenate(outputs)
    scored = score_outcome(start, trained, tested)
    metrics = scored.scores
    details = {} if isinstance(model, ImageModel) else read_details(model)
    if metrics["finetuning"]["kept"] == "finetuned":
        save_tuned(start, network, trained, metrics, target, command, overwrite=overwrite)
    else:
        # The scores above are of a head on fewer images than that of the model which is kept.
        before = details.get("metrics") or {"protocol": "not measured"}
        metrics = {**before, "finetuning": metrics["finetuning"]}
        save_model(
            start.model,
            target,
            metrics=metrics,
            training=details.get("training"),
            command=command or details.get("command"),
            overwrite=overwrite,
        )
    if not trained.interrupted:
        training.checkpoint.unlink(missing_ok=True)
    return FineTuned(
        load_model(target, cache=cache, engine=engine, trust=trust),
        target,
        metrics["finetuning"]["kept"],
        metrics,
        trained.history,
        trained.stopped,
        trained.interrupted,
        () if network.from_pixels else network.cut.layers,
        scored,
    )


def _steps_shown(bar: Progress | None, epochs: int) -> Callable[[int, int, int], None] | None:
    """Return what tells a bar of all epochs how far one of them is, None without a bar."""
    if bar is None:
        return None
    return lambda epoch, done, total: bar((epoch - 1) * total + done, epochs * total, 0)


def training_folder(output: Target) -> Path:
    """Return where the history and the checkpoint of a training are."""
    if isinstance(output, str):  # of a model in a store: in the working folder
        return Path(f"{address_name(output)}.training")
    return output.with_name(f"{output.name}.training")


def _job(start: Start, network: TunedNetwork) -> str:
    """Return the digest of everything that decides the course of a training."""
    course = {
        "options": start.options.to_dict(),
        "spec": start.source.spec(image=start.model.image).to_dict(),
        "tap": start.block["tap"],
        "cut": network.cut.layers,
        "from_pixels": network.from_pixels,
        "view_policy": str(start.view_policy),
    }
    digest = hashlib.sha256(json.dumps(course, sort_keys=True, default=str).encode())
    for part in (start.features.keys, start.objective.array, start.rows, start.held_out):
        digest.update(np.ascontiguousarray(part).data)
    for kernel, bias in network.head_weights():
        digest.update(kernel.tobytes())
        digest.update(bias.tobytes())
    return digest.hexdigest()
