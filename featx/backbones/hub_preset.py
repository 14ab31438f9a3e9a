"""A preset of KerasHub in a local folder, as a Keras network."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featx.backbones.catalog import PREPROCESSINGS, Preprocessing
from featx.exceptions import BackboneError, MissingExtraError, reason
from featx.files.plain_network import require_plain_network
from featx.quiet import quiet_import, quiet_loading

_CONFIG, _CONVERTER = "config.json", "image_converter.json"
_OWNER = "keras_hub"
_SAME = 1e-3


def read_preset(folder: Path) -> tuple[tuple[int, int] | None, str]:
    """Return the input size and the preprocessing that a preset states.

    Both are of its ``image_converter.json``; the size may be of its ``config.json`` instead.

    Returns
    -------
    size_px : tuple of two int or None
        Height and width.
    preprocessing : str
        Key of `featx.backbones.catalog.PREPROCESSINGS`; empty where the preset states none, or one
        that is not in the table.

    Raises
    ------
    BackboneError
        If the folder is no preset of a KerasHub backbone, or damaged.
    """
    config = _backbone_config(folder)
    converter = _object(folder / _CONVERTER) if (folder / _CONVERTER).is_file() else {}
    stated = converter.get("config")
    stated = stated if isinstance(stated, dict) else {}
    size = _size(stated.get("image_size")) or _size(config.get("image_shape"))
    return size, _named(stated) if stated else ""


def load_preset(folder: Path, size_px: tuple[int, int], preprocessing: str) -> Any:
    """Build the backbone of a preset, with its weights.

    Parameters
    ----------
    folder : Path
        The preset.
    size_px : tuple of two int
        Height and width of the input.
    preprocessing : str
        Of the pixels; the network does not depend on it.

    Returns
    -------
    network : keras.Model
        Without a task's head.

    Raises
    ------
    MissingExtraError
        If keras-hub is not installed.
    BackboneError
        If the preset is damaged, or its network does not take this size.
    """
    config = _backbone_config(folder)
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
        if error.name != _OWNER:
            raise
        raise MissingExtraError("keras-hub", extra="hub", purpose="a hub: backbone") from error
    # Networks that state a size are built for it; others take any.
    shape = {"image_shape": (*size_px, 3)} if "image_shape" in config else {}
    try:
        with quiet_loading():
            return keras_hub.models.Backbone.from_preset(str(folder), **shape)
    except Exception as error:  # Keras raises what a preset's layers raise
        raise BackboneError(
            f"the preset {folder} cannot be loaded for inputs of {size_px[0]}x{size_px[1]} px: "
            f"{reason(error)}. Is it whole, and of this version of "
            "keras-hub? Leave --input-size out for its own size"
        ) from error


def require_keras_hub_for(needed: str, purpose: str) -> None:
    """Raise `MissingExtraError` if something failed for want of KerasHub's classes."""
    if f"{_OWNER}." in needed and _OWNER not in sys.modules and find_spec(_OWNER) is None:
        raise MissingExtraError("keras-hub", extra="hub", purpose=purpose)


def _backbone_config(folder: Path) -> dict[str, Any]:
    found = _object(folder / _CONFIG)
    config = found.get("config")
    kind = str(found.get("registered_name"))
    # Other formats name other libraries, whose objects are not to be made.
    if not kind.startswith(f"{_OWNER}>") or not isinstance(config, dict):
        raise BackboneError(
            f"{folder} is no preset of a KerasHub backbone: expected {_CONFIG} to name a class of "
            f"{_OWNER}, received {kind!r}. Write one with backbone.save_to_preset(FOLDER)"
        )
    return config


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BackboneError(
            f"{file.parent} is no preset of KerasHub: expected a folder with {file.name}, received "
            "one without"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(
            f"{file} cannot be read ({reason(error)}): get the preset again"
        ) from error
    if not isinstance(found, dict):
        raise BackboneError(f"{file} is damaged: expected a JSON object; get the preset again")
    return found


def _size(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    height, width = value[:2]
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        return None
    return height, width


def _named(converter: dict[str, Any]) -> str:
    """Return the name of the affine map of an image converter: pixel * scale + offset."""
    if not {"mean", "variance"}.isdisjoint(converter):  # of an early version
        return ""
    scale = _three(converter.get("scale"), default=1.0)
    offset = _three(converter.get("offset"), default=0.0)
    for name, rule in PREPROCESSINGS.items():
        if scale and offset and not rule.bgr and _same(rule, scale, offset):
            return name
    return ""


def _three(value: Any, *, default: float) -> list[float]:
    given = default if value is None else value
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if not all(isinstance(one, int | float) for one in listed) or len(listed) not in (1, 3):
        return []
    return [float(one) for one in listed] * (3 // len(listed))


def _same(rule: Preprocessing, scale: list[float], offset: list[float]) -> bool:
    # As inputs of the network, at both ends of the range of pixels.
    ends = [
        abs(a * pixel + b - (c * pixel + d)) / max(1.0, abs(c) * 255)
        for a, b, c, d in zip(scale, offset, rule.scale, rule.offset, strict=True)
        for pixel in (0, 255)
    ]
    return max(ends) <= _SAME
