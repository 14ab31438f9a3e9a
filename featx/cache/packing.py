"""`pack_dataset`: one self-contained file of a dataset's features, for any other tool."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featx.cache.features import Features
from featx.cache.pack_content import PackContent, collect_content
from featx.cache.pack_hdf5 import write_packed_hdf5
from featx.cache.pack_npz import write_packed_npz
from featx.cache.pack_parquet import write_packed_parquet
from featx.cache.pack_safetensors import write_packed_safetensors
from featx.exceptions import CacheWriteError, UnknownNameError, reason
from featx.files.durable import written_whole
from featx.files.outputs import is_pack, refuse_replacing

FORMATS: dict[str, Callable[[Path, PackContent], None]] = {
    "h5": write_packed_hdf5,
    "npz": write_packed_npz,
    "parquet": write_packed_parquet,
    "safetensors": write_packed_safetensors,
}
"""Formats of packed files, by their suffix."""

_OTHER_SUFFIXES = {"hdf5": "h5", "hdf": "h5", "pq": "parquet"}


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file that was packed.

    Parameters
    ----------
    path : Path
        Where it is.
    format : str
        Key of `FORMATS`.
    dataset, backbone, tap : str
        What is in it.
    rows, width : int
        Shape of the matrix.
    size_bytes : int
        Size of the file.
    """

    path: Path
    format: str
    dataset: str
    backbone: str
    tap: str
    rows: int
    width: int
    size_bytes: int


def pack_dataset(
    features: Features,
    path: str | os.PathLike[str],
    *,
    backbone: str | None = None,
    tap: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> PackedFile:
    """Write one matrix of features, with what belongs to its rows, as one file.

    The file needs no cache and no featx: ``X`` (n, d), ``y``, ``classes``, ``paths``, ``keys``,
    ``groups``, ``splits`` and the specification as JSON. It is written beside its place and
    renamed, about 8 MiB of features at a time.

    Parameters
    ----------
    features : Features
        From `featx.extract` or `Features.open`.
    path : path
        Where to; the folder must exist. A file that was packed before is replaced.
    backbone, tap : str, optional
        Which matrix, where there are several: a file holds one.
    format : {"h5", "npz", "parquet", "safetensors"}, optional
        By default the suffix of `path` decides.
    overwrite : bool, default False
        Whether to replace a file that featx did not pack.

    Returns
    -------
    PackedFile

    Raises
    ------
    UnknownNameError
        If the format is none of those.
    FeaturesError
        If not exactly one matrix fits, or its rows are not all in the cache.
    MissingExtraError
        For Parquet without pyarrow.
    CacheWriteError
        If the file cannot be written.
    OutputError
        If there is a file that featx did not pack.

    Examples
    --------
    >>> feats = Features.open("photos")  # doctest: +SKIP
    >>> pack_dataset(feats, "photos.h5").rows  # doctest: +SKIP
    245
    """
    target = Path(path)
    chosen = _format(target, format)
    refuse_replacing(target, is_pack, "packed file", force=overwrite)
    content = collect_content(features, backbone=backbone, tap=tap)
    _write_beside(target, lambda temporary: FORMATS[chosen](temporary, content))
    return PackedFile(
        path=target,
        format=chosen,
        dataset=content.dataset,
        backbone=content.backbone,
        tap=content.tap,
        rows=len(content),
        width=content.width,
        size_bytes=target.stat().st_size,
    )


def _format(target: Path, chosen: str | None) -> str:
    suffix = target.suffix.lower().removeprefix(".")
    name = chosen or _OTHER_SUFFIXES.get(suffix, suffix)
    if name not in FORMATS:
        raise UnknownNameError(
            "format of a packed file",
            name,
            FORMATS,
            hint=f"Name a file such as {target.with_suffix('.h5').name!r}",
        )
    return name


def _write_beside(target: Path, write: Callable[[Path], None]) -> None:
    try:
        with written_whole(target) as temporary:
            write(temporary)
    except (OSError, RuntimeError) as error:
        # h5py reports a failed write as OSError or RuntimeError, not always with a number.
        if not isinstance(error, OSError) and type(error) is not RuntimeError:
            raise
        number = getattr(error, "errno", None)
        raise CacheWriteError(
            f"cannot write {target}: {os.strerror(number) if number else reason(error)}. Name a "
            "file in a folder that exists, can be written and has space (-o)"
        ) from error
