"""The zips that ``.featx`` and ``.keras`` files are, opened within their bounds."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featx.files.plain_network import MOST_MEMBERS, MOST_RATIO
from featx.files.safe_json import read_plain_json
from featx.files.safe_zip import open_plain_zip

DESCRIPTION = "model.json"
"""Member that says what the file is."""
NETWORK = "network.weights.h5"
"""Member with the weights of a network of the catalogue, as Keras writes them."""
OWN_NETWORK = "network.keras"
"""Member with a whole network, where it is of nobody's catalogue."""
_MOST_MEMBERS = 16
_MOST_JSON_BYTES = 64 << 20


@contextmanager
def open_model_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the file; damage shows as any of the ten types of errors that `zipfile` raises."""
    with path.open("rb") as file, open_plain_zip(file, most_members=_MOST_MEMBERS) as archive:
        yield archive


@contextmanager
def open_keras_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a network that anybody saved, perhaps compressed; errors are as of `open_model_zip`."""
    with (
        path.open("rb") as file,
        open_plain_zip(file, most_members=MOST_MEMBERS, most_ratio=MOST_RATIO) as archive,
    ):
        yield archive


def visit_weights(path: Path, look: Callable[[str, Any], None]) -> None:
    """Hand every item of a weights file, ``.keras`` or HDF5, with its name to `look`."""
    import h5py

    if path.suffix == ".keras":
        with (
            open_keras_zip(path) as archive,
            archive.open("model.weights.h5") as stored,
            h5py.File(stored, "r") as file,
        ):
            file.visititems(look)
    else:
        with h5py.File(path, "r", locking=False) as file:
            file.visititems(look)


def read_description(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Read `DESCRIPTION`.

    Raises
    ------
    KeyError
        If there is none.
    ValueError
        If it is too large, or no object of JSON.
    """
    if archive.getinfo(DESCRIPTION).file_size > _MOST_JSON_BYTES:
        raise ValueError(f"its {DESCRIPTION} is absurdly large")
    return read_plain_json(archive.read(DESCRIPTION), most_bytes=_MOST_JSON_BYTES)
