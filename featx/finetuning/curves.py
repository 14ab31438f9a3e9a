"""Curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from featx.exceptions import MissingExtraError
from featx.finetuning.history import Epoch

_CURVES = ("loss", "val_loss", "val_accuracy", "learning_rate")


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
            if epoch.epoch or name.startswith("val"):
                writer.add_scalar(name, getattr(epoch, name), epoch.epoch)
        writer.flush()

    return write
