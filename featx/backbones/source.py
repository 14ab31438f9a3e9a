"""A backbone, its weights and its input, settled before any numerical library is imported."""

from __future__ import annotations

import logging
import os
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featx.backbones.catalog import PREPROCESSINGS, Backbone
from featx.backbones.folders import FolderKind, StatedInput, folder_of
from featx.backbones.model_zip import NETWORK, visit_weights
from featx.backbones.own_rescaling import range_of_keras_config
from featx.backbones.registry import canonical_name, find_backbone
from featx.backbones.tuned import is_tuned_file, read_tuned
from featx.backbones.weights import Weights, file_sha256, folder_sha256, resolve_weights
from featx.backbones.wrong_files import read_keras_config
from featx.exceptions import BackboneError, UnknownNameError
from featx.spec import FeatureSpec, ImagePolicy, Precision, StorageDtype

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_CHOICES = "none, unit, tf, torch, caffe"
_RANGES = {
    "none": "pixels from 0 to 255",
    "unit": "pixels from 0 to 1",
    "tf": "pixels from -1 to 1",
    "torch": "ImageNet's mean and deviation",
    "caffe": "ImageNet's mean, blue first",
    "efficientnet-imagenet": "EfficientNet's rescaling for ImageNet weights",
}
_LOGGER = logging.getLogger("featx.preprocessing")
_logged: set[str] = set()


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """A resolved backbone: all that it takes to build its network and to name its features.

    It is a plain value that pickles. Building its network needs no further choice and, since
    `weights` names files of this machine, no internet.

    Parameters
    ----------
    name : str
        Name in the catalogue, or ``file:STEM``, ``savedmodel:STEM`` or ``hub:STEM`` for a network
        of one's own.
    row : Backbone or None
        The row of the catalogue; None for a network of one's own.
    weights : Weights
        Where the weights are, with their digest.
    input_size_px : tuple of two int
        Height and width of the input.
    preprocessing : str
        Key of `featx.backbones.catalog.PREPROCESSINGS`.
    note : str
        For a network of one's own: which preprocessing was chosen, and why.
    doubtful : bool
        Whether the note says that it may be the wrong one.
    trust : bool
        Whether the caller trusts what the network may do when it runs.
    """

    name: str
    row: Backbone | None
    weights: Weights
    input_size_px: tuple[int, int]
    preprocessing: str
    note: str = field(default="", compare=False)
    doubtful: bool = field(default=False, compare=False)
    trust: bool = field(default=False, compare=False)

    @property
    def address(self) -> str:
        """The name that finds this backbone from any folder: its path is absolute."""
        prefix, colon, _ = self.name.partition(":")
        path = self.weights.path
        return f"{prefix}:{path.resolve()}" if colon and path is not None else self.name

    @property
    def weights_choice(self) -> str | None:
        """The weights to ask for together with `address`: a path, ``random:SEED`` or None."""
        if ":" in self.name or self.weights.source in ("imagenet", "bundled"):
            return None
        path = self.weights.path
        return self.weights.source if path is None else str(path.resolve())

    def spec(
        self,
        *,
        image: ImagePolicy | None = None,
        dtype: StorageDtype = "float32",
        precision: Precision = "f32",
    ) -> FeatureSpec:
        """Return the specification of the features that this backbone makes.

        By default images are stretched with a bilinear filter, and JPEG files decoded at a reduced
        size where the catalogue says so.
        """
        return FeatureSpec(
            backbone=self.name,
            weights_sha256=self.weights.sha256,
            input_size_px=self.input_size_px,
            preprocessing=self.preprocessing,
            image=image or ImagePolicy(draft=self.row is not None and self.row.draft),
            dtype=dtype,
            precision=precision,
        )


def resolve_backbone(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    trust: bool = False,
) -> BackboneSource:
    """Settle a backbone, its weights, its input size and its preprocessing.

    Parameters
    ----------
    name : str
        A name of the catalogue, or a network of one's own: ``file:PATH.keras``, ``file:PATH.featx``
        (one that was fine-tuned), ``savedmodel:FOLDER`` (TensorFlow) or ``hub:FOLDER`` (a preset
        of KerasHub).
    weights : str or path, optional
        See `featx.backbones.weights.resolve_weights`.
    input_size : int or tuple of two int, optional
        Height and width in pixels; by default the backbone's own.
    preprocessing : str, optional
        Only for networks of one's own: ``none`` (pixels 0 to 255), ``unit``, ``tf``, ``torch`` or
        ``caffe``. By default ``none`` for ``file:``, what the preset states for ``hub:``, and for
        ``savedmodel:`` ``none`` where its graph rescales pixels itself or takes uint8, else
        ``unit``, TensorFlow Hub's convention. `log_preprocessing` says what was chosen.
    trust : bool, default False
        Needed for ``savedmodel:``, whose graph may do anything, such as read and write files.
        Without it nothing in the folder is read.

    Raises
    ------
    UnknownNameError
        If there is no such backbone or preprocessing.
    WeightsError
        If the weights cannot be found.
    BackboneError
        If the input is smaller than the network can take, or a file is no Keras model.
    """
    if name.startswith("import:"):
        raise BackboneError(
            f"the features of {name!r} were made elsewhere: featx cannot make them from images; "
            "give it features, an array of shape (n, d)"
        )
    if name.startswith("file:"):
        source = _own(name.removeprefix("file:"), weights, input_size, preprocessing)
        return replace(source, trust=trust)
    if (found := folder_of(name)) is not None:
        kind, folder = found
        if kind.needs_trust and not trust:
            raise BackboneError(
                f"{name!r} is {kind.summary}, which can do anything when it runs, such as read and "
                "write files: give --trust (trust=True) if you know who made it"
            )
        source = _folder(name, kind, folder, weights, input_size, preprocessing)
        return replace(source, trust=trust)
    row = find_backbone(name)
    if preprocessing is not None:
        raise BackboneError(
            f"{row.name} has a preprocessing of its own; expected none, received {preprocessing!r}"
        )
    size = _size(input_size) or (row.input_size_px, row.input_size_px)
    if min(size) < row.shared.min_size_px:
        raise BackboneError(
            f"{row.name} takes inputs of {row.shared.min_size_px} px or more, received "
            f"{size[0]}x{size[1]}"
        )
    chosen = resolve_weights(row, weights)
    if is_tuned_file(chosen.path):
        own = read_tuned(chosen.path).spec.preprocessing
        return BackboneSource(row.name, row, chosen, size, own, trust=trust)
    return BackboneSource(row.name, row, chosen, size, _preprocessing(row, chosen), trust=trust)


def _size(value: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if value is None:
        return None
    height, width = (value, value) if isinstance(value, int) else value
    if min(height, width) < 1:
        raise BackboneError(f"expected an input size in pixels, received {value!r}")
    return int(height), int(width)


def _preprocessing(row: Backbone, weights: Weights) -> str:
    family = row.shared
    if not family.own_preprocessing:
        return family.preprocessing
    carries = weights.path is not None and _has_imagenet_statistics(weights.path)
    return family.preprocessing if carries else family.own_preprocessing


def _has_imagenet_statistics(path: Path) -> bool:
    """Whether a weights file holds a Normalization layer with ImageNet's means.

    Keras builds EfficientNet with one more rescaling for ImageNet weights; whether weights belong
    to that variant shows in the statistics that they carry.
    """
    import h5py
    import numpy as np

    found = []

    def look(name: str, item: Any) -> None:
        is_mean = isinstance(item, h5py.Dataset) and "normalization" in name.lower()
        if is_mean and "batch" not in name.lower() and item.size == 3 and item.dtype.kind == "f":
            found.append(np.allclose(np.ravel(item[()]), _IMAGENET_MEAN, atol=1e-3))

    try:
        visit_weights(path, look)
    except (OSError, RuntimeError, KeyError, ValueError, zipfile.BadZipFile):
        return False  # a damaged file is reported when it is loaded
    return any(found)


def _own(
    path_text: str,
    weights: str | os.PathLike[str] | None,
    input_size: int | tuple[int, int] | None,
    preprocessing: str | None,
) -> BackboneSource:
    path = Path(path_text).expanduser()
    if not path.is_file() or path.suffix not in (".keras", ".featx"):
        raise BackboneError(
            "expected 'file:' and the path of a network saved as .keras, or of a tuned .featx, "
            f"received 'file:{path_text}'" + ("" if path.is_file() else ", which is no file")
        )
    if weights is not None:
        raise BackboneError("a 'file:' backbone brings its own weights: leave --weights out")
    if is_tuned_file(path):
        return _tuned(path, input_size, preprocessing)
    config = read_keras_config(path)
    shape = _declared_input(config)
    if len(shape) == 4 and shape[3] not in (3, None):
        raise BackboneError(
            f"{path} takes inputs of shape {tuple(shape)}: expected RGB pixels with channels last, "
            "(n, h, w, 3). Save a network that takes these, with a layer in front that turns them"
        )
    stated = StatedInput(_declared_size(config), "none", range_of_keras_config(config))
    found = Weights(f"file:{path}", file_sha256(path), path)
    return _foreign(f"file:{path.stem}", found, stated, input_size, preprocessing)


def _folder(
    name: str,
    kind: FolderKind,
    folder: Path,
    weights: str | os.PathLike[str] | None,
    input_size: int | tuple[int, int] | None,
    preprocessing: str | None,
) -> BackboneSource:
    if not folder.is_dir():
        raise BackboneError(
            f"expected {kind.prefix!r} and the folder of {kind.summary}, received {name!r}, which "
            "is no folder"
        )
    if weights is not None:
        raise BackboneError(
            f"a {kind.prefix + ':'!r} backbone brings its own weights: leave --weights out"
        )
    found = Weights(f"{kind.prefix}:{folder}", folder_sha256(folder), folder)
    return _foreign(canonical_name(name), found, kind.read(folder), input_size, preprocessing)


def _foreign(
    name: str,
    weights: Weights,
    stated: StatedInput,
    input_size: int | tuple[int, int] | None,
    preprocessing: str | None,
) -> BackboneSource:
    """Settle a network that is not in the catalogue from what its files say of its input."""
    chosen = preprocessing or stated.preprocessing
    if not chosen:
        raise BackboneError(
            f"{weights.path} states no preprocessing that featx has: give --preprocessing "
            f"(preprocessing=...), one of {_CHOICES}"
        )
    if chosen not in PREPROCESSINGS:
        raise UnknownNameError("preprocessing", chosen, PREPROCESSINGS)
    size = _size(input_size) or stated.size_px
    if size is None:
        raise BackboneError(
            f"{weights.path} does not fix the size of its input, or does not take RGB images: give "
            "--input-size (input_size=...)"
        )
    note, doubtful = _note(name, chosen, stated, asked=preprocessing is not None)
    return BackboneSource(name, None, weights, size, chosen, note, doubtful)


def _note(name: str, chosen: str, stated: StatedInput, *, asked: bool) -> tuple[str, bool]:
    """Return what a user should know of the preprocessing, and whether it may be wrong."""
    used = f"{name}: preprocessing {chosen} ({_RANGES[chosen]})"
    if stated.pixels == "0..255" and chosen != "none":
        return (
            f"{used}, and the network rescales pixels itself, so that they are rescaled twice. "
            "Leave --preprocessing (preprocessing=...) out",
            True,
        )
    if asked:
        return f"{used}, as asked", False
    if stated.pixels == "0..255":
        return f"{used}, because the network rescales pixels itself", False
    if stated.source:
        return f"{used}, because {stated.source}", False
    change = f"give --preprocessing (preprocessing=...), one of {_CHOICES}"
    if stated.pixels == "0..1" and chosen == "none":
        return f"{used}, but the network seems to take pixels from 0 to 1: {change}", True
    if stated.pixels == "0..1":
        return f"{used}, because the network's own arithmetic takes these", False
    return f"{used}, by default. If the network was trained on others, {change}", True


def log_preprocessing(source: BackboneSource) -> None:
    """Log once a process which preprocessing was chosen for a network of one's own, and why.

    A ``file:`` network gets the pixels as they are: that is worth a line only where it is doubtful.
    """
    plain = source.name.startswith("file:") and source.preprocessing == "none"
    if source.note and source.note not in _logged and (source.doubtful or not plain):
        _logged.add(source.note)
        _LOGGER.log(logging.WARNING if source.doubtful else logging.INFO, "%s", source.note)


def _tuned(
    path: Path, input_size: int | tuple[int, int] | None, preprocessing: str | None
) -> BackboneSource:
    """Settle a network that was fine-tuned: read as in its training, unless asked otherwise."""
    tuned = read_tuned(path)
    own = tuned.spec.preprocessing
    if preprocessing not in (None, own):
        raise BackboneError(
            f"{path} was fine-tuned with the preprocessing {own!r}, received {preprocessing!r}: "
            "leave --preprocessing out"
        )
    row = find_backbone(tuned.architecture) if tuned.member == NETWORK else None
    found = Weights(f"file:{path}", tuned.sha256, path)
    size = _size(input_size) or tuned.spec.input_size_px
    return BackboneSource(f"file:{path.stem}", row, found, size, own)


def _declared_size(config: Any) -> tuple[int, int] | None:
    shape = _declared_input(config)
    if len(shape) == 4 and shape[1] and shape[2] and shape[3] == 3:
        return int(shape[1]), int(shape[2])
    return None


def _declared_input(config: Any) -> list[Any]:
    """Return the shape of the input that a saved model declares, empty where it declares none.

    Shapes of inner layers do not count: what comes before them may change the size.
    """
    try:
        layers = config["config"]["layers"]
        declared = [
            layer["config"].get("batch_shape") or layer["config"].get("batch_input_shape")
            for layer in layers
            if layer["class_name"] == "InputLayer"
        ]
        shape = declared[0] if declared else config["build_config"]["input_shape"]
    except (KeyError, TypeError, AttributeError):
        return []
    return shape if isinstance(shape, list) else []
