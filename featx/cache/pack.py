"""`pack_dataset`: one self-contained file of a dataset's features, for any other tool.

`FORMATS` is the table of writers; each takes the content chunk by chunk, so that the matrix is
never whole in memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featx.cache.features import Features
from featx.cache.hdf5 import Values, create, tag, write_chunks
from featx.cache.layout import writing
from featx.cache.manifest import Block
from featx.exceptions import DatasetError, FeaturesError, MissingExtraError, UnknownNameError
from featx.files.outputs import is_pack, refuse_replacing, written_whole
from featx.spec import FeatureSpec

_CHUNK_BYTES = 8 << 20
_TEXT_ROWS = 65536
# Readers of safetensors refuse headers beyond this.
_MAX_HEADER_BYTES = 100_000_000
_SAFETENSORS_TYPES = {"<f4": "F32", "<f2": "F16", "<i4": "I32", "|u1": "U8"}
_OTHER_SUFFIXES = {"hdf5": "h5", "hdf": "h5", "pq": "parquet"}


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file that was packed, what is in it, and its size."""

    path: Path
    format: str  # key of FORMATS
    dataset: str
    backbone: str
    tap: str
    rows: int
    width: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Array:
    """An array of a packed file, whose rows come in chunks."""

    kind: str  # its type in HDF5
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    chunks: Iterable[Values]


@dataclass(frozen=True, slots=True)
class _Content:
    """One matrix of a dataset and what belongs to its rows."""

    features: Features = field(repr=False)
    block: Block
    spec: FeatureSpec
    width: int

    def __len__(self) -> int:
        return len(self.features)

    def arrays(self) -> dict[str, _Array]:
        """Return the arrays of numbers by name."""
        dtype = np.dtype(self.spec.dtype).newbyteorder("<")
        row_bytes = self.width * dtype.itemsize

        def chunks() -> Iterator[Values]:
            for values, _ in self.features.batches(
                backbone=self.block.backbone,
                tap=self.block.tap,
                batch_size=max(1, _CHUNK_BYTES // row_bytes),
                max_ram_bytes=4 * max(_CHUNK_BYTES, row_bytes),
            ):
                yield np.ascontiguousarray(values, dtype)

        arrays = {
            "X": _Array("featx-features", (len(self), self.width), dtype, chunks()),
            "keys": _whole("featx-keys", self.features.keys),
        }
        if self.features.classes is not None:
            arrays["y"] = _whole("featx-array", np.asarray(self.features.labels, "<i4"))
        return arrays

    def texts(self) -> dict[str, Sequence[str]]:
        """Return the columns of text that there are, by name, and the names of the classes."""
        manifest, rows = self.features.manifest, self.features.rows
        columns: dict[str, Sequence[str]] = {"paths": manifest.path.take(rows)}
        if self.features.classes is not None:
            columns["classes"] = self.features.classes
        for name, column in {"groups": manifest.group, "splits": manifest.split}.items():
            if column.any():
                columns[name] = column.take(rows)
        return columns

    def facts(self) -> dict[str, str]:
        """Return what holds for the whole matrix, by name: text, the specification as JSON."""
        return {
            "dataset": _valid_text(self.features.name),
            "backbone": _valid_text(self.block.backbone),
            "tap": self.block.tap,
            "spec": self.spec.canonical_json(),
        }


def _whole(kind: str, values: Values) -> _Array:
    return _Array(kind, values.shape, values.dtype, [np.ascontiguousarray(values)])


def _parts(column: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(column), _TEXT_ROWS):
        yield column[start : start + _TEXT_ROWS]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _valid_text(text: str) -> str:
    r"""Return text that is valid UTF-8: bytes of a file name that are not become ``\xNN``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _collect(features: Features, backbone: str | None, tap: str | None) -> _Content:
    """Return the content of a packed file; `FeaturesError` if not exactly one matrix fits."""
    block = features.block(backbone=backbone, tap=tap)
    if not len(features):
        raise DatasetError(f"{features.name!r} has no rows to pack: none of its inputs was read")
    backbone, tap = block.backbone, block.tap
    # The file gets digests of its own, which must not vouch for damage.
    features.recheck(backbone=backbone, tap=tap)
    first, _ = next(features.batches(backbone=backbone, tap=tap, batch_size=1))
    spec = features.spec(backbone=backbone, tap=tap)
    return _Content(features, block, spec, first.shape[1])


def _write_hdf5(path: Path, content: _Content) -> None:
    """Write HDF5 of type ``featx-pack``, version 1; text is UTF-8 of a fixed length."""
    import h5py

    with create(path) as file:
        tag(file, "featx-pack")
        for name, text in content.facts().items():
            data = text.encode("utf-8")
            file.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", len(data)))
        for name, array in content.arrays().items():
            write_chunks(file, name, array.shape, array.dtype, array.chunks, array.kind)
        for name, column in content.texts().items():
            length = max(map(len, map(_encoded, column)), default=0) or 1
            dtype = h5py.string_dtype("utf-8", length)
            chunks = (np.array(list(map(_encoded, part)), dtype) for part in _parts(column))
            write_chunks(file, name, (len(column),), dtype, chunks, "featx-text")


def _write_npz(path: Path, content: _Content) -> None:
    """Write arrays that NumPy reads without pickle, uncompressed; facts are scalars."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in content.arrays().items():
            _write_npy(archive, name, array)
        for name, column in content.texts().items():
            dtype = np.dtype(f"<U{max(map(len, column), default=0) or 1}")
            chunks = (np.array(list(part), dtype) for part in _parts(column))
            _write_npy(archive, name, _Array("featx-text", (len(column),), dtype, chunks))
        for name, text in {"type": "featx-pack", **content.facts()}.items():
            _write_npy(archive, name, _whole("", np.array(text)))
        _write_npy(archive, "version", _whole("", np.array(1, "<i8")))


def _write_npy(archive: zipfile.ZipFile, name: str, array: _Array) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    # The entry may be larger than 4 GiB, which needs its long form.
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for values in array.chunks:
            member.write(values.tobytes())


def _write_parquet(path: Path, content: _Content) -> None:
    """Write one row an input, its features a list of fixed size, the facts as ``featx.NAME``."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise MissingExtraError("pyarrow", extra="parquet", purpose="writing Parquet") from error

    texts, arrays = content.texts(), content.arrays()
    facts = {"type": "featx-pack", "version": "1", **content.facts()}
    facts["classes"] = json.dumps(texts.get("classes"))
    kinds = {"float32": pa.float32(), "float16": pa.float16()}
    text = ("path", "label", "split", "group", "key")
    fields = [pa.field(name, pa.string()) for name in text]
    fields.append(pa.field("feature", pa.list_(kinds[content.spec.dtype], content.width)))
    schema = pa.schema(fields, {f"featx.{name}": value for name, value in facts.items()})
    classes = [*map(_valid_text, texts.get("classes", ())), None]
    nothing = [""] * len(content)
    keys, labels = content.features.keys, content.features.labels
    # Features hardly compress, and readers map what is not compressed.
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        end = 0
        for values in arrays["X"].chunks:
            rows = slice(end, end + len(values))
            end += len(values)
            columns: list[list[str | None]] = [
                [_valid_text(name) for name in texts["paths"][rows]],
                [classes[code] for code in labels[rows].tolist()],
                [_valid_text(name) or None for name in texts.get("splits", nothing)[rows]],
                [_valid_text(name) or None for name in texts.get("groups", nothing)[rows]],
                [key.tobytes().hex() for key in keys[rows]],
            ]
            batch = [pa.array(column, pa.string()) for column in columns]
            flat = pa.array(values.reshape(-1))
            batch.append(pa.FixedSizeListArray.from_arrays(flat, content.width))
            writer.write_batch(pa.record_batch(batch, schema=schema))


def _write_safetensors(path: Path, content: _Content) -> None:
    """Write the arrays as tensors and the rest as metadata, texts as JSON lists.

    Eight bytes with the length of a JSON header, the header, and the tensors end to end
    (https://github.com/huggingface/safetensors, "Format"): the package takes whole tensors only.
    """
    arrays = content.arrays()
    # Wider elements first, so that each tensor begins at a multiple of its element.
    tensors = {name: arrays[name] for name in ("y", "X", "keys") if name in arrays}
    metadata = {"type": "featx-pack", "version": "1", **content.facts()}
    # Readers refuse invalid UTF-8, which names of files may contain.
    for name, column in content.texts().items():
        metadata[name] = json.dumps([_valid_text(value) for value in column])
    entries: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {
            "dtype": _SAFETENSORS_TYPES[tensor.dtype.str],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries).encode("ascii")
    header += b" " * (-len(header) % 8)
    if len(header) > _MAX_HEADER_BYTES:
        raise FeaturesError(
            f"the paths of {len(content):,} rows take {len(header):,} bytes, more than the "
            f"{_MAX_HEADER_BYTES:,} that safetensors allows in its header: pack as .h5, .npz or "
            ".parquet"
        )
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)))
        file.write(header)
        for tensor in tensors.values():
            for values in tensor.chunks:
                file.write(values.data)


FORMATS: dict[str, Callable[[Path, _Content], None]] = {
    "h5": _write_hdf5,
    "npz": _write_npz,
    "parquet": _write_parquet,
    "safetensors": _write_safetensors,
}
"""Formats of packed files, by their suffix."""


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
    content = _collect(features, backbone, tap)
    step = "Name a file in a folder that exists, can be written and has space (-o)"
    with writing(target, step), written_whole(target) as temporary:
        FORMATS[chosen](temporary, content)
    return PackedFile(
        path=target,
        format=chosen,
        dataset=features.name,
        backbone=content.block.backbone,
        tap=content.block.tap,
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
