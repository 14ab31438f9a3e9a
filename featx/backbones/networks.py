"""Networks that are not in the catalogue: one row for each kind of file or folder they come in."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from featx.backbones.onnx_file import Layout, read_onnx, stated_preprocessing
from featx.backbones.preprocessing import named_preprocessing
from featx.backbones.rescaling import Config, PixelRange, range_of_keras_config
from featx.backbones.saved_model import load_saved_model, read_endpoint
from featx.backbones.weights import file_sha256, folder_sha256, open_keras_zip, readable, what_it_is
from featx.exceptions import BackboneError, FeatxError, MissingExtraError, reason
from featx.files.safe_zip import require_plain_network
from featx.quiet import quiet_import, quiet_loading

if TYPE_CHECKING:
    import keras

Size = tuple[int, int]
Json = Mapping[str, object]

_MOST_CONFIG_BYTES = 64 << 20
_SHOWN, _MOST_CHARACTERS = 5, 60
_HUB = "keras_hub"
_TOWER = "vision_encoder"


@dataclass(frozen=True, slots=True)
class StatedInput:
    """What the files of a network say of its input."""

    size_px: Size | None  # height and width, where they are fixed
    preprocessing: str  # as `find_preprocessing` reads it, empty where none is known
    pixels: PixelRange = ""  # which pixels the network itself takes, as far as its graph tells
    statement: str = ""  # what states the preprocessing, empty where it is a convention
    layout: Layout = "nhwc"  # where channels are


@dataclass(frozen=True, slots=True)
class NetworkKind:
    """A kind of file or folder that a network comes in."""

    prefix: str  # of names of this kind, before the colon
    summary: str
    read: Callable[[Path], StatedInput]  # imports no numerical framework and runs nothing
    load: Callable[[Path, Size, str], keras.Model]  # of the path, input size and preprocessing
    suffixes: tuple[str, ...] = ()  # of files; a folder has none
    needs_trust: bool = False  # whether building the network runs what is in the folder
    opaque: bool = False  # one function in its own number types: its outputs are its only places
    native: bool = False  # whether OpenVINO reads it itself, and Keras cannot
    beside: Callable[[Path], tuple[Path, ...]] | None = None  # further files with weights

    @property
    def noun(self) -> str:
        """What the path leads to, ``"file"`` or ``"folder"``."""
        return "file" if self.suffixes else "folder"

    def require(self, path: Path, name: str) -> None:
        """Raise `BackboneError` if nothing of this kind is there."""
        exists = path.is_file() if self.suffixes else path.is_dir()
        if not exists or (self.suffixes and path.suffix not in self.suffixes):
            raise BackboneError(
                f"expected '{self.prefix}:' and the {self.noun} of {self.summary}, received "
                f"{name!r}" + ("" if exists else f", which is no {self.noun}")
            )

    def digest(self, path: Path) -> str:
        """Return the SHA-256 that identifies the network."""
        if not self.suffixes:
            return folder_sha256(path)
        beside = self.beside(path) if self.beside else ()
        digests = [file_sha256(file) for file in (path, *beside)]
        return hashlib.sha256("".join(digests).encode()).hexdigest() if beside else digests[0]


def locate_network(name: str) -> tuple[NetworkKind, Path] | None:
    """Return the kind and the absolute path of a network that is in no catalogue, or None."""
    prefix, colon, text = name.partition(":")
    kind = NETWORK_KINDS.get(prefix) if colon else None
    if kind is None:
        return None
    if not text and not kind.suffixes:
        raise BackboneError(f"expected {prefix!r}, a colon and the path of a folder: {name!r}")
    path = Path(text).expanduser()
    return kind, Path(os.path.abspath(path)) if text else path


def network_name(kind: NetworkKind, path: Path) -> str:
    """Return the name of a network's features; a version number takes the folder above along."""
    if kind.suffixes:
        return f"{kind.prefix}:{path.stem}"
    name = path.name or "root"
    versioned = name.isdigit() and path.parent.name
    return f"{kind.prefix}:{path.parent.name}-{name}" if versioned else f"{kind.prefix}:{name}"


# Networks saved by Keras.


def _read_keras_file(path: Path) -> StatedInput:
    config = _keras_config(path)
    shape = _declared_input(config)
    if len(shape) == 4 and shape[3] not in (3, None):
        raise BackboneError(
            f"{path} takes inputs of shape {tuple(shape)}: expected RGB pixels with channels last, "
            "(n, h, w, 3). Save a network that takes these, with a layer in front that turns them"
        )
    size = _size(shape[1:3]) if len(shape) == 4 and shape[3] == 3 else None
    return StatedInput(size, "none", range_of_keras_config(config))


def _keras_config(path: Path) -> Config:
    """Return the layers of a ``.keras`` file as JSON types."""
    kind = what_it_is(path)
    if kind not in ("a .keras file", ""):
        raise BackboneError(
            f"{path} is no model saved by Keras 3: expected a .keras file, as "
            f"model.save('NAME.keras') writes it, received {kind}"
        )
    try:
        with open_keras_zip(path) as archive, archive.open("config.json") as member:
            # What is cut off is no JSON any more.
            return json.loads(member.read(_MOST_CONFIG_BYTES))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RecursionError) as error:
        raise BackboneError(f"{path} is no model saved by Keras 3: {reason(error)}") from error


def _declared_input(config: Config) -> list[int | None]:
    """Return the shape of a saved model's own input, not of inner layers; empty for none."""
    try:
        declared = [
            layer["config"].get("batch_shape") or layer["config"].get("batch_input_shape")
            for layer in config["config"]["layers"]
            if layer["class_name"] == "InputLayer"
        ]
        shape = declared[0] if declared else config["build_config"]["input_shape"]
    except (KeyError, TypeError, AttributeError):
        return []
    return shape if isinstance(shape, list) else []


def _load_keras_file(path: Path, size_px: Size, preprocessing: str) -> keras.Model:
    import keras

    try:
        with readable(path) as file, quiet_loading():
            return keras.models.load_model(file, compile=False, safe_mode=True)
    except FeatxError:
        raise
    except Exception as error:  # Keras raises what the file's layers raise
        if f"{_HUB}." in str(error) and _HUB not in sys.modules and find_spec(_HUB) is None:
            purpose = f"the network in {path}"
            raise MissingExtraError("keras-hub", extra="hub", purpose=purpose) from error
        if path.suffix == ".keras" and (unknown := _unknown_layers(path)):
            raise unknown from error
        raise BackboneError(
            f"{path} cannot be loaded as a Keras model: {reason(error)}. Is it whole, and of this "
            "version of Keras?"
        ) from error


def _unknown_layers(path: Path) -> BackboneError | None:
    """Return the error for a network with layers that are not Keras's, None where all are."""
    import keras

    layers = list(_objects(_keras_config(path)))
    custom = {}
    for layer in layers:
        module, registered = layer.get("module"), layer.get("registered_name")
        of_keras = isinstance(module, str) and module.split(".")[0] in ("keras", "builtins")
        if registered and not of_keras and keras.saving.get_registered_object(registered) is None:
            name = _shown(layer["class_name"])
            same = registered == layer["class_name"]
            custom[registered] = name if same else f"{name} (registered as {_shown(registered)})"
    export = "call model.export('FOLDER') and use -b savedmodel:FOLDER --trust (trust=True)"
    if custom:
        listed = ", ".join(list(custom.values())[:_SHOWN])
        more = f" and {len(custom) - _SHOWN} more" if len(custom) > _SHOWN else ""
        return BackboneError(
            f"{path} needs classes that are not in the file: expected layers of Keras, received "
            f"{listed}{more}. featx runs no code of others. In the program that has them, {export}"
        )
    lambdas = [
        _shown(layer["config"].get("name")) for layer in layers if layer["class_name"] == "Lambda"
    ]
    if lambdas:
        return BackboneError(
            f"{path} has Lambda layers ({', '.join(lambdas[:_SHOWN])}): expected layers of Keras, "
            "received Python code, which featx does not run. Replace them by layers such as "
            f"keras.layers.Rescaling, or in the program that made them {export}"
        )
    return None


def _objects(value: object) -> Iterator[Config]:
    """Yield everything in a configuration that has a class."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class_name"), str) and isinstance(value.get("config"), dict):
                yield value
            waiting += reversed(value.values())
        elif isinstance(value, list):
            waiting += reversed(value)


def _shown(name: object) -> str:
    return repr(str(name)[:_MOST_CHARACTERS])


# Presets of KerasHub.


def _read_preset(folder: Path) -> StatedInput:
    """Read the size and the preprocessing of ``image_converter.json``, or a size of the network."""
    config = _preset_config(folder)
    file = folder / "image_converter.json"
    converter = _json_object(file).get("config") if file.is_file() else None
    stated = converter if isinstance(converter, dict) else {}
    size = _size(stated.get("image_size")) or _size(_of_images(config).get("image_shape"))
    preprocessing = _preprocessing_of(stated) if stated else ""
    return StatedInput(size, preprocessing, statement="its image_converter.json states it")


def _load_preset(folder: Path, size_px: Size, preprocessing: str) -> keras.Model:
    config = _preset_config(folder)
    for weights in sorted(folder.rglob("*.h5")):
        try:
            with weights.open("rb") as file:
                require_plain_network(file, weights.name, packed=True)
        except (ValueError, OSError) as error:
            raise BackboneError(
                f"{weights} is refused: {reason(error)}; take another copy of the preset"
            ) from error
    try:
        with quiet_import():
            import keras_hub
    except ModuleNotFoundError as error:
        if error.name != _HUB:
            raise
        raise MissingExtraError("keras-hub", extra="hub", purpose="a hub: backbone") from error
    # Networks that state a size are built for it; others take any.
    shape = {"image_shape": (*size_px, 3)} if "image_shape" in config else {}
    try:
        with quiet_loading():
            network = keras_hub.models.Backbone.from_preset(str(folder), **shape)
            # Of a network of images and texts, such as CLIP, the part that sees images.
            return getattr(network, _TOWER, network)
    except Exception as error:  # Keras raises what a preset's layers raise
        raise BackboneError(
            f"the preset {folder} cannot be loaded for inputs of {size_px[0]}x{size_px[1]} px: "
            f"{reason(error)}. Is it whole, and of this version of "
            "keras-hub? Leave --input-size out for its own size"
        ) from error


def _of_images(config: Json) -> Json:
    """Return the configuration of the part of a network that sees images."""
    tower = config.get(_TOWER)
    inner = tower.get("config") if isinstance(tower, dict) else None
    return inner if isinstance(inner, dict) else config


def _preset_config(folder: Path) -> Json:
    described = _json_object(folder / "config.json")
    config, registered = described.get("config"), str(described.get("registered_name"))
    # Other formats name other libraries, whose objects are not to be made.
    if not registered.startswith(f"{_HUB}>") or not isinstance(config, dict):
        raise BackboneError(
            f"{folder} is no preset of a KerasHub backbone: expected config.json to name a class "
            f"of {_HUB}, received {registered!r}. Write one with backbone.save_to_preset(FOLDER)"
        )
    return config


def _json_object(file: Path) -> Json:
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BackboneError(
            f"{file.parent} is no preset of KerasHub: expected a folder with {file.name}, received "
            "one without"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(
            f"{file} cannot be read ({reason(error)}): get the preset again"
        ) from error
    if not isinstance(value, dict):
        raise BackboneError(f"{file} is damaged: expected a JSON object; get the preset again")
    return value


def _size(value: object) -> Size | None:
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    height, width = value[:2]
    whole = all(isinstance(side, int) and side > 0 for side in (height, width))
    return (height, width) if whole else None


def _preprocessing_of(converter: Json) -> str:
    """Return the name of the affine map of an image converter, empty where featx has none."""
    if not {"mean", "variance"}.isdisjoint(converter):  # of an early version
        return ""
    scale, offset = _three(converter.get("scale"), 1.0), _three(converter.get("offset"), 0.0)
    if not scale or not offset or min(scale) <= 0:
        return ""
    mean = [-o / s for o, s in zip(offset, scale, strict=True)]
    return named_preprocessing(mean, [1 / s for s in scale])[0]


def _three(value: object, default: float) -> list[float]:
    """Return a number for each channel, none where the value is no such thing."""
    value = default if value is None else value
    values = list(value) if isinstance(value, list | tuple) else [value]
    numbers = [float(number) for number in values if isinstance(number, int | float)]
    whole = len(numbers) == len(values) and len(values) in (1, 3)
    return numbers * (3 // len(values)) if whole else []


def _read_saved_model(folder: Path) -> StatedInput:
    endpoint = read_endpoint(folder)
    # Pixels from 0 to 1 are the convention of TensorFlow Hub.
    whole = endpoint.dtype == "uint8"
    preprocessing = "none" if whole or endpoint.pixels == "0..255" else "unit"
    statement = "its function takes whole numbers" if whole else ""
    return StatedInput(endpoint.input_size_px, preprocessing, endpoint.pixels, statement)


# ONNX


def _read_onnx(path: Path) -> StatedInput:
    file = read_onnx(path)
    preprocessing, statement = stated_preprocessing(file)
    size = file.size_px(file.layout) if file.layout else None
    return StatedInput(size, preprocessing, "", statement, file.layout)


def _load_onnx(path: Path, size_px: Size, preprocessing: str) -> keras.Model:
    raise BackboneError(
        f"{path} is an ONNX network, which OpenVINO runs, and Keras cannot read: leave --engine "
        "keras and --precision mixed out"
    )


NETWORK_KINDS = {
    kind.prefix: kind
    for kind in (
        NetworkKind(
            "file",
            "a network saved as .keras, or of a tuned .featx",
            _read_keras_file,
            _load_keras_file,
            suffixes=(".keras", ".featx"),
        ),
        NetworkKind(
            "savedmodel",
            "a TensorFlow SavedModel",
            _read_saved_model,
            load_saved_model,
            needs_trust=True,
            opaque=True,
        ),
        NetworkKind("hub", "a preset of KerasHub", _read_preset, _load_preset),
        NetworkKind(
            "onnx",
            "an ONNX network",
            _read_onnx,
            _load_onnx,
            suffixes=(".onnx", ".featx"),
            opaque=True,
            native=True,
            beside=lambda path: read_onnx(path).beside,
        ),
    )
}
"""Every kind by its prefix."""
