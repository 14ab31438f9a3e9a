"""Say what a file is, or holds, that cannot be used as weights or as a network."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featx.backbones.catalog import CATALOG, Backbone
from featx.backbones.model_zip import open_keras_zip, visit_weights
from featx.exceptions import BackboneError, WeightsError, reason

_MOST_CONFIG_BYTES = 64 << 20
_IMAGENET_CLASSES = 1000
_SHOWN, _MOST_CHARACTERS = 5, 60
_HDF5, _KERAS = "an HDF5 file", "a .keras file"
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", _HDF5),
    (b"version https://git-lfs", "a Git LFS pointer: `git lfs pull` gets the file itself"),
    (b"<", "a web page in place of the download"),
    (b"\x80", "a pickle, which featx never reads"),
)


def _kind(path: Path) -> str:
    """Return what a file is by its first bytes, empty where they are unknown."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError):
            return "a zip that is cut short or damaged: get it again"
        if "config.json" in names:
            return _KERAS
        pickled = any(name.endswith(".pkl") for name in names)
        return "a file of PyTorch, which is a pickle" if pickled else "a zip archive"
    return next((kind for begin, kind in _STARTS if start.lstrip().startswith(begin)), "")


def require_weights_file(path: Path, step: str) -> None:
    """Raise `WeightsError`, with the next step, if a file is something else than its name says."""
    kind = _kind(path)
    expected = _KERAS if path.suffix == ".keras" else _HDF5
    if kind not in (expected, ""):
        step = "Give it a name that ends in .keras" if kind == _KERAS else step
        raise WeightsError(
            f"{path} is no weights file: expected {expected}, as Keras writes it, received {kind}. "
            f"{step}"
        )


def require_keras_file(path: Path) -> None:
    """Raise `BackboneError` if a file with the ending ``.keras`` is something else."""
    kind = _kind(path)
    if kind not in (_KERAS, ""):
        raise BackboneError(
            f"{path} is no model saved by Keras 3: expected {_KERAS}, as model.save('NAME.keras') "
            f"writes it, received {kind}"
        )


def misfit(row: Backbone, path: Path, stored: Path, error: BaseException) -> WeightsError:
    """Return the error for weights that a network does not take; `stored` is where Keras read."""
    try:
        received = _parameters(stored)
    except (OSError, RuntimeError, KeyError, ValueError, zipfile.BadZipFile) as damage:
        return WeightsError(
            f"{path} cannot be read, so that it is damaged or cut short: expected weights of "
            f"{row.name}, received an error of HDF5 ({reason(damage)}). Get the file again"
        )
    top = (row.features + 1) * _IMAGENET_CLASSES
    alike = [other.name for other in CATALOG.values() if other.parameters == received]
    if received == row.parameters:
        cause = f" in other shapes ({reason(error)}). Is it of another network?"
    elif received == row.parameters + top:
        cause = ". It has the top as well: save the network with include_top=False"
    elif alike:
        cause = f", as many as {' or '.join(alike)}: use that backbone (-b {alike[0]})"
    else:
        cause = ". It is of another network, or another width (alpha) of this one"
    return WeightsError(
        f"{path} does not fit {row.name}: expected {row.parameters:,} parameters, without the top, "
        f"received {received:,}{cause}. Without --weights featx takes those of ImageNet"
    )


def _parameters(path: Path) -> int:
    """Return how many numbers the weights in a file are, those of an optimizer left out."""
    import h5py

    sizes: dict[str, int] = {}

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            sizes[name] = int(item.size)

    visit_weights(path, look)
    return sum(size for name, size in sizes.items() if not name.startswith("optimizer"))


def read_keras_config(path: Path) -> Any:
    """Return what a ``.keras`` file says of its layers, as JSON types.

    Raises
    ------
    BackboneError
        If it is no such file.
    """
    require_keras_file(path)
    try:
        with open_keras_zip(path) as archive, archive.open("config.json") as member:
            # What is cut off is no JSON any more.
            return json.loads(member.read(_MOST_CONFIG_BYTES))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RecursionError) as error:
        raise BackboneError(f"{path} is no model saved by Keras 3: {reason(error)}") from error


def unknown_layers(path: Path) -> BackboneError | None:
    """Return the error for a network with layers that are not Keras's, None where all are."""
    import keras

    layers = list(_objects(read_keras_config(path)))
    lambdas = [_shown(one["config"].get("name")) for one in layers if one["class_name"] == "Lambda"]
    custom = {}
    for one in layers:
        module, registered = one.get("module"), one.get("registered_name")
        own = isinstance(module, str) and module.split(".")[0] in ("keras", "builtins")
        if registered and not own and keras.saving.get_registered_object(registered) is None:
            name = _shown(one["class_name"])
            same = registered == one["class_name"]
            custom[registered] = name if same else f"{name} (registered as {_shown(registered)})"
    export = "call model.export('FOLDER') and use -b savedmodel:FOLDER --trust (trust=True)"
    if custom:
        listed = ", ".join(list(custom.values())[:_SHOWN])
        more = f" and {len(custom) - _SHOWN} more" if len(custom) > _SHOWN else ""
        return BackboneError(
            f"{path} needs classes that are not in the file: expected layers of Keras, received "
            f"{listed}{more}. featx runs no code of others. In the program that has them, {export}"
        )
    if lambdas:
        return BackboneError(
            f"{path} has Lambda layers ({', '.join(lambdas[:_SHOWN])}): expected layers of Keras, "
            "received Python code, which featx does not run. Replace them by layers such as "
            f"keras.layers.Rescaling, or in the program that made them {export}"
        )
    return None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
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


def _shown(name: Any) -> str:
    return repr(str(name)[:_MOST_CHARACTERS])
