"""Backbones that are folders: a TensorFlow SavedModel, or a preset of KerasHub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.backbones.hub_preset import load_preset, read_preset
from featx.backbones.own_rescaling import PixelRange
from featx.backbones.saved_model import load_saved_model
from featx.backbones.saved_model_file import read_endpoint
from featx.exceptions import BackboneError

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of folder that a backbone can be.

    Parameters
    ----------
    prefix : str
        What a name of this kind begins with, before the colon.
    summary : str
        What the folder is.
    needs_trust : bool
        Whether building the network runs what is in the folder.
    opaque : bool
        Whether the network is one function in the number types that it was saved with: its places
        are its outputs, of which there may be several.
    read : callable
        From the folder to what it states; imports no numerical library.
    load : callable
        From the folder, an input size and a preprocessing to a `keras.Model`.
    """

    prefix: str
    summary: str
    needs_trust: bool
    opaque: bool
    read: Callable[[Path], StatedInput]
    load: Callable[[Path, Size, str], Any]


@dataclass(frozen=True, slots=True)
class StatedInput:
    """What the files of a network say of its input.

    Parameters
    ----------
    size_px : tuple of two int or None
        Height and width, where they are fixed.
    preprocessing : str
        Key of `featx.backbones.catalog.PREPROCESSINGS`; empty where none is known.
    pixels : {"0..255", "0..1", ""}
        Which pixels the network itself takes, as far as its graph tells.
    source : str
        What states the preprocessing; empty where it is a convention.
    """

    size_px: Size | None
    preprocessing: str
    pixels: PixelRange = ""
    source: str = ""


def _read_saved_model(folder: Path) -> StatedInput:
    found = read_endpoint(folder)
    source = "its function takes whole numbers" if found.dtype == "uint8" else ""
    return StatedInput(found.input_size_px, found.preprocessing, found.pixels, source)


def _read_preset(folder: Path) -> StatedInput:
    size, preprocessing = read_preset(folder)
    return StatedInput(size, preprocessing, source="its image_converter.json states it")


FOLDER_KINDS: dict[str, FolderKind] = {
    "savedmodel": FolderKind(
        "savedmodel", "a TensorFlow SavedModel", True, True, _read_saved_model, load_saved_model
    ),
    "hub": FolderKind("hub", "a preset of KerasHub", False, False, _read_preset, load_preset),
}
"""Every kind by its prefix."""


def folder_of(name: str) -> tuple[FolderKind, Path] | None:
    """Return the kind and the absolute path of a backbone that is a folder, None for any other.

    Raises
    ------
    BackboneError
        If there is no path behind the prefix.
    """
    prefix, colon, path = name.partition(":")
    kind = FOLDER_KINDS.get(prefix) if colon else None
    if kind is None:
        return None
    if not path:
        raise BackboneError(f"expected {prefix!r}, a colon and the path of a folder: {name!r}")
    return kind, Path(os.path.abspath(Path(path).expanduser()))


def folder_stem(folder: Path) -> str:
    """Return what a folder is called; a version number takes the name above it along.

    Examples
    --------
    >>> folder_stem(Path("/models/efficientnet")), folder_stem(Path("/models/efficientnet/2"))
    ('efficientnet', 'efficientnet-2')
    """
    name = folder.name or "root"
    return f"{folder.parent.name}-{name}" if name.isdigit() and folder.parent.name else name
