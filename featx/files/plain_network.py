"""Networks and weights as Keras saves them, looked through before Keras reads them."""

from __future__ import annotations

import io
import zipfile
from typing import IO

from featx.files.claims import UnsafeFileError, most_unpacked, shortened
from featx.files.safe_hdf5 import SIGNATURE, check_whole_hdf5
from featx.files.safe_zip import open_plain_zip

MOST_RATIO = 20
"""Weights are noise: a compressed network is no smaller than this part of itself."""
MOST_MEMBERS = 10_000
_MOST_ZIPS = 2


def require_plain_network(file: IO[bytes], name: str, *, packed: bool = False) -> None:
    """Refuse a network or its weights that could cost more than they hold, or lead out of the file.

    What is unsafe raises ``ValueError``, what cannot be opened ``zipfile.BadZipFile`` or
    ``OSError``. Its name decides whether it is HDF5 or a zip, as it does for Keras.
    """
    size = file.seek(0, 2)
    _look_inside(file, name, packed, most_unpacked(size, MOST_RATIO if packed else 1), 0)


def _look_inside(file: IO[bytes], name: str, packed: bool, most_bytes: int, depth: int) -> None:
    file.seek(0)
    signature, ending = file.read(8), name.rpartition(".")[2].lower()
    is_zip = ending in ("keras", "npz", "zip") or signature.startswith(b"PK")
    if ending in ("h5", "hdf5") or (signature == SIGNATURE and not is_zip):
        check_whole_hdf5(file, most_bytes=most_bytes, packed=packed)
    elif is_zip:
        if depth == _MOST_ZIPS:
            raise UnsafeFileError("it is a zip in a zip in a zip")
        ratio = MOST_RATIO if packed else 1
        try:
            opened = open_plain_zip(file, most_members=MOST_MEMBERS, most_ratio=ratio)
        except zipfile.BadZipFile as error:
            if zipfile.is_zipfile(file):  # for those who look less closely
                raise UnsafeFileError(str(error)) from error
            raise
        with opened as archive:
            for member in archive.infolist():
                try:
                    inner = io.BytesIO(archive.read(member))
                # Damage shows as any of ten types; Keras may read the other members all the same.
                except Exception as error:
                    raise UnsafeFileError(f"{shortened(member.filename)!r} is damaged") from error
                # Bounded by the whole file: what is compressed twice may not grow twice.
                _look_inside(inner, member.filename, packed, most_bytes, depth + 1)
