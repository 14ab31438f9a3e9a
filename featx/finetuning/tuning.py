"""`finetune`: from a model with a head on cached features to one whose backbone is its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.exceptions import FineTuningError
from featx.files.outputs import is_model, refuse_replacing
from featx.finetuning.history import Epoch
from featx.finetuning.material import prepare_material
from featx.finetuning.network import TunedNetwork
from featx.finetuning.options import FineTuneOptions
from featx.finetuning.outcome import save_tuned, score_outcome
from featx.finetuning.start import Start, class_weights, prepare_start
from featx.finetuning.trainer import Training
from featx.models.classifier import ImageClassifier
from featx.models.model_file import load_model, read_details, save_model


@dataclass(frozen=True, slots=True, eq=False)
class FineTuned:
    """What a fine-tuning came to.

    Parameters
    ----------
    model : ImageClassifier
        Read back from `path`: the fine-tuned one, or the one it started from where that is better.
    path : Path
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
    """

    model: ImageClassifier
    path: Path
    kept: str
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    stopped: str
    interrupted: bool
    cut: tuple[str, ...]


def finetune(
    model: ImageClassifier | str | os.PathLike[str],
    data: Any,
    output: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    view_policy: Any = None,
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
    best epoch is kept, and where none is better than the head, the model stays as it was.

    Parameters
    ----------
    model : ImageClassifier or path
        Fitted, or a ``.featx`` file. Its head has to be linear layers: logistic, ridge, lda, svm
        or dense.
    data : ImageDataset, path or str
        What `featx.extract` takes, with labels. A split named ``val`` chooses the epoch, one named
        ``test`` has no say in anything and is scored in the end; without ``val`` a share of every
        class is held out, equal images and groups on one side.
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
        True draws a bar for the extraction; a callable gets epoch, images done, images in all.
    on_epoch : callable, optional
        Called with every `featx.finetuning.history.Epoch`, the start first.
    **options
        Of `featx.finetuning.options.FineTuneOptions`: ``unfreeze``, ``epochs``, ``learning_rate``,
        ``views``, ...

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
    asked = FineTuneOptions.read(options)
    target = Path(output)
    if not target.parent.is_dir():
        raise FineTuningError(
            f"the folder of {str(target)!r} does not exist: make it, or name another place"
        )
    refuse_replacing(target, is_model, "model", force=overwrite)
    start = prepare_start(
        model,
        data,
        asked,
        cache=cache,
        weights=weights,
        engine=engine,
        trust=trust,
        progress=bool(progress),
    )
    network, inputs = prepare_material(
        start, data, asked, cache=cache, engine=engine, view_policy=view_policy, progress=progress
    )
    folder = training_folder(target)
    training = Training(
        network,
        inputs,
        start.codes,
        start.rows,
        start.held_out,
        asked,
        folder,
        _job(start, asked, network, view_policy),
        class_weights=class_weights(asked, start),
        on_epoch=on_epoch,
        on_step=progress if callable(progress) else None,
    )
    if not resume:
        training.checkpoint.unlink(missing_ok=True)
    trained = training.run()
    tested = None
    if len(start.test):
        batches = inputs.batches(start.test, asked.batch_size)
        tested = np.concatenate([network.probabilities(batch) for batch in batches])
    metrics = score_outcome(start, trained, tested, asked)
    details = {} if isinstance(model, ImageClassifier) else read_details(model)
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
    )


def training_folder(output: Path) -> Path:
    """Return where the history and the checkpoint of a training are."""
    return output.with_name(f"{output.name}.training")


def _job(start: Start, options: FineTuneOptions, network: TunedNetwork, view_policy: Any) -> str:
    """Return the digest of everything that decides the course of a training."""
    said = {
        "options": options.to_dict(),
        "spec": start.source.spec(image=start.model.image).to_dict(),
        "tap": start.tap,
        "cut": network.cut.layers,
        "from_pixels": network.from_pixels,
        "view_policy": str(view_policy),
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for part in (start.features.keys, start.codes, start.rows, start.held_out):
        digest.update(np.ascontiguousarray(part).data)
    for kernel, bias in network.head_weights():
        digest.update(kernel.tobytes())
        digest.update(bias.tobytes())
    return digest.hexdigest()
