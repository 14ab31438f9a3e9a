"""The state of a training after an epoch, in one file that is there whole or not at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import FineTuningError
from featx.files.durable import written_whole

_LOG = logging.getLogger("featx")
_DESCRIPTION = "description"
_GROUPS = ("weights", "optimizer", "best")


@dataclass(slots=True)
class Checkpoint:
    """What is needed to go on.

    Parameters
    ----------
    job : str
        Digest of everything that decides the course of the training.
    epochs : int
        Epochs done.
    batches_a_step : int
        In how many parts a batch is computed, as memory allows.
    history : list of dict
        One entry an epoch.
    weights, optimizer : list of ndarray
        Variables of the network and of the optimizer.
    best : list of ndarray
        Variables of the network after the best epoch; none if no epoch was better than the start.
    best_epoch : int
        0 for the start.
    """

    job: str
    epochs: int = 0
    batches_a_step: int = 1
    history: list[dict[str, Any]] = field(default_factory=list)
    weights: list[NDArray[Any]] = field(default_factory=list)
    optimizer: list[NDArray[Any]] = field(default_factory=list)
    best: list[NDArray[Any]] = field(default_factory=list)
    best_epoch: int = 0


def write_checkpoint(path: Path, state: Checkpoint) -> None:
    """Write a checkpoint by rename, so that a kill leaves the earlier one."""
    arrays: dict[str, Any] = {}
    for group in _GROUPS:
        arrays |= _numbered(group, getattr(state, group))
    said = {
        "job": state.job,
        "epochs": state.epochs,
        "batches_a_step": state.batches_a_step,
        "history": state.history,
        "best_epoch": state.best_epoch,
        "counts": {group: len(getattr(state, group)) for group in _GROUPS},
    }
    arrays[_DESCRIPTION] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    # Always by the same name, so that kills leave one unfinished file and not many.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, temporary=temporary), temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise FineTuningError(
            f"cannot write {path}: {error.strerror or error}. Free some space, or name another "
            "place with -o"
        ) from error


def _numbered(group: str, arrays: Sequence[NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return {f"{group}_{number}": array for number, array in enumerate(arrays)}


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint at a path, None where there is none; a damaged one is named."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            said = json.loads(found[_DESCRIPTION].tobytes())
            arrays = {
                group: [found[f"{group}_{number}"] for number in range(said["counts"][group])]
                for group in _GROUPS
            }
            return Checkpoint(
                said["job"],
                said["epochs"],
                said["batches_a_step"],
                said["history"],
                best_epoch=said["best_epoch"],
                **arrays,
            )
    except FileNotFoundError:
        return None
    except Exception as error:  # `zipfile` and `numpy` have no base of their errors
        _LOG.warning("%s is damaged, so training starts anew: %s", path, str(error)[:200])
        return None
