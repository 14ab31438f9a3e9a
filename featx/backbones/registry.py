"""Find a backbone by its name."""

from __future__ import annotations

import re
from pathlib import Path

from featx.backbones.catalog import CATALOG, Backbone
from featx.backbones.folders import folder_of, folder_stem
from featx.exceptions import UnknownNameError


def backbone_names() -> list[str]:
    """Return the names of the catalogue, in its order."""
    return list(CATALOG)


def find_backbone(name: str) -> Backbone:
    """Return the row of the catalogue for a name.

    Parameters
    ----------
    name : str
        featx's name or that of the builder in `keras.applications`; case, ``-`` and ``_`` do not
        matter.

    Raises
    ------
    UnknownNameError
        If there is none, with the nearest names.

    Examples
    --------
    >>> find_backbone("MobileNetV2").name
    'mobilenet_v2'
    >>> find_backbone("mobilnet_v2")
    Traceback (most recent call last):
    ...
    featx.exceptions.UnknownNameError: unknown backbone 'mobilnet_v2': did you mean ...
    """
    wanted = _plain(name)
    rows = CATALOG.values()
    # Our names before Keras's: one builder may serve several rows, with other arguments.
    by_keras = {_plain(row.keras_name): row for row in rows if not row.arguments}
    row = {_plain(row.name): row for row in rows}.get(wanted) or by_keras.get(wanted)
    if row is not None:
        return row
    raise UnknownNameError(
        "backbone",
        name,
        CATALOG,
        hint="A network of your own is 'file:PATH.keras', 'savedmodel:FOLDER' or 'hub:FOLDER'; "
        "`featx backbones` shows the table",
    )


def canonical_name(name: str) -> str:
    """Return the name under which features of a backbone are kept.

    Examples
    --------
    >>> canonical_name("MobileNetV2"), canonical_name("file:/models/mine.keras")
    ('mobilenet_v2', 'file:mine')
    """
    if name.startswith("import:"):
        return name
    if name.startswith("file:"):
        return f"file:{Path(name.removeprefix('file:')).stem}"
    if (found := folder_of(name)) is not None:
        kind, folder = found
        return f"{kind.prefix}:{folder_stem(folder)}"
    return find_backbone(name).name


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
