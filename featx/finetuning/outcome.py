"""How a fine-tuning is scored and saved."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.finetuning.history import Trained, hold_out_scores
from featx.finetuning.network import TunedNetwork
from featx.finetuning.options import FineTuneOptions
from featx.finetuning.start import Start
from featx.heads.dense import DenseClassifier
from featx.models.classifier import ImageClassifier
from featx.models.model_file import save_model
from featx.models.training import describe_training
from featx.selection.metrics import score_predictions


def score_outcome(
    start: Start,
    trained: Trained,
    tested: NDArray[np.float32] | None,
    options: FineTuneOptions,
) -> dict[str, Any]:
    """Return the scores of what is to be kept, with the comparison under ``finetuning``."""
    codes = start.codes[start.held_out]
    before = start.probabilities(start.held_out)
    probe = hold_out_scores(before, codes)
    kept = "finetuned" if trained.best_epoch else "head"
    epochs = len(trained.history) - 1
    where = f"split {start.named}" if start.named else "hold-out"
    comparison: dict[str, Any] = {
        "kept": kept,
        "hold_out": f"{where} of {len(codes)} images",
        "best_epoch": trained.best_epoch,
        "epochs": epochs,
        "stopped": trained.stopped,
        "head": {"accuracy": probe[0], "log_loss": probe[1]},
        "options": options.to_dict(),
    }
    proba = trained.probabilities if trained.best_epoch else before
    after = hold_out_scores(proba, codes)
    comparison["finetuned"] = (
        {"accuracy": after[0], "log_loss": after[1]} if trained.best_epoch else None
    )
    rows = start.held_out
    protocol = f"{where} of {len(codes)} images, best of {epochs} epochs by it: optimistic"
    if tested is not None:
        rows, unseen = start.test, start.probabilities(start.test)
        comparison["test"] = {
            "images": len(rows),
            "head": hold_out_scores(unseen, start.codes[rows])[0],
            "finetuned": hold_out_scores(tested, start.codes[rows])[0],
        }
        proba = tested if trained.best_epoch else unseen
        protocol = f"split test: {len(rows)} images that had no say in the training"
    scores = score_predictions(start.y[rows], proba, np.asarray(start.model.classes_).astype(str))
    return {"protocol": protocol, **scores, "finetuning": comparison}


def save_tuned(
    start: Start,
    network: TunedNetwork,
    trained: Trained,
    metrics: dict[str, Any],
    target: Path,
    command: str | None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the fine-tuned network with its head as a ``.featx`` file."""
    own = start.source.row is None
    with tempfile.TemporaryDirectory(prefix="featx-") as folder:
        path = Path(folder) / ("network.keras" if own else "network.weights.h5")
        network.backbone.save(path) if own else network.backbone.save_weights(path)
        data = path.read_bytes()
    spec = start.source.spec(image=start.model.image)
    spec = replace(spec, weights_sha256=hashlib.sha256(data).hexdigest())
    head = _as_head(network, start)
    made = ImageClassifier(
        start.model.backbone,
        f"dense:hidden={head.hidden}",
        tap=start.tap,
        input_size=start.source.input_size_px,
        preprocessing=start.model.preprocessing,
        image=spec.image,
        random_state=start.model.random_state,
    )
    made.take_head(head, spec, n_features=head.n_features_in_)
    made.training_ = describe_training(start.features, start.y, start.rows)
    save_model(
        made,
        target,
        metrics=metrics,
        spec=spec,
        command=command,
        network=data,
        overwrite=overwrite,
    )


def _as_head(network: TunedNetwork, start: Start) -> DenseClassifier:
    """Return the trained layers as the dense head that predicts and is saved."""
    layers = network.head_weights()
    hidden = tuple(kernel.shape[1] for kernel, _ in layers[:-1])
    head = DenseClassifier(hidden, random_state=start.model.random_state)
    head.weights_, head.classes_ = layers, np.asarray(start.model.classes_)
    head.multilabel_, head.n_features_in_ = False, layers[0][0].shape[0]
    head.n_iter_ = head.best_epoch_ = 1
    head.history_ = {"loss": []}
    return head
