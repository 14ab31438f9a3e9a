"""HDF5 of anybody's making: no links out of the file, and nothing larger than what it holds."""

from __future__ import annotations

import math
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from featx.files.claims import UnsafeFileError, most_unpacked, shortened

if TYPE_CHECKING:
    import h5py

Number = TypeVar("Number", np.float32, np.int64)
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def hdf5_item(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return what lies at a name, looked for through plain links within the file only."""
    import h5py

    item, where = group, _named(group, name)
    for part in name.strip("/").split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            names = ", ".join(list(group)[:20]) or "nothing"
            raise UnsafeFileError(f"{where} is missing, found: {names}")
        # Looked at before it is followed: it could lead to any file on this machine.
        if not isinstance(link, h5py.HardLink):
            raise UnsafeFileError(
                f"{where} is a link ({type(link).__name__}), which may lead out of the file: copy "
                "the data into it"
            )
        item = item[part]
    return item


def hdf5_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return an array whose bytes lie in this very file."""
    import h5py

    item = hdf5_item(group, name)
    if not isinstance(item, h5py.Dataset):
        raise UnsafeFileError(f"{_named(group, name)} is a group: expected an array")
    layout = item.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        raise UnsafeFileError(
            f"{_named(group, name)} keeps its data in other files: copy the data into it"
        )
    return item


def _named(group: h5py.Group, name: str) -> str:
    return repr(name) if group.name == "/" else f"{name!r} at {group.name}"


def hdf5_datasets(group: h5py.Group) -> dict[str, int]:
    """Return the number of dimensions of each array that lies plainly in a group."""
    import h5py

    hard = [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
    items = {name: group[name] for name in hard}
    return {name: item.ndim for name, item in items.items() if isinstance(item, h5py.Dataset)}


def contiguous_offset(dataset: h5py.Dataset) -> int:
    """Return where the bytes of an array begin, after checking that all of them lie there."""
    import h5py

    if dataset.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        raise UnsafeFileError(f"{dataset.name} is not stored contiguously in the file")
    size = math.prod(map(int, dataset.shape)) * dataset.dtype.itemsize
    offset = dataset.id.get_offset() if size else 0
    if offset is None or offset + size > h5py.h5i.get_file_id(dataset.id).get_filesize():
        raise UnsafeFileError(
            f"{dataset.name} claims {size:,} bytes, more than its file holds: it was cut short"
        )
    return int(offset)


def check_stored(dataset: h5py.Dataset, *, most_chunk_bytes: int, most_ratio: int | None) -> None:
    """Compare what an array claims with its file; no ratio holds for what is read by chunks."""
    import h5py

    size = math.prod(map(int, dataset.shape)) * dataset.dtype.itemsize
    held = min(dataset.id.get_storage_size(), h5py.h5i.get_file_id(dataset.id).get_filesize())
    layout = dataset.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.CHUNKED:
        chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if chunk_bytes > most_chunk_bytes:
            raise UnsafeFileError(f"{dataset.name} has chunks of {chunk_bytes:,} bytes: refused")
        for number in range(layout.get_nfilters()):
            code, _, _, name = layout.get_filter(number)
            if not h5py.h5z.filter_avail(code):
                raise UnsafeFileError(
                    f"{dataset.name} is compressed by {name.decode(errors='replace') or code}, "
                    "which is not installed: save it with gzip or uncompressed"
                )
        if most_ratio is not None and size > most_unpacked(held, most_ratio):
            raise UnsafeFileError(
                f"{dataset.name} claims {size:,} bytes, of which the file holds {held:,}: "
                "refused; save it again without compression"
            )
    elif size > held:
        raise UnsafeFileError(
            f"{dataset.name} claims {size:,} bytes, of which the file holds {held:,}: it was cut "
            "short or never written"
        )


def read_hdf5_array(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: type[Number]
) -> NDArray[Number]:
    """Return a contiguous array of finite numbers, which has to have a shape and a type."""
    dataset, expected = hdf5_dataset(group, name), np.dtype(dtype).newbyteorder("<")
    if dataset.dtype != expected or dataset.shape != shape:
        raise UnsafeFileError(
            f"{name} is {dataset.dtype} {shortened(dataset.shape)}, expected {expected} {shape}"
        )
    contiguous_offset(dataset)
    values = np.asarray(dataset[()], dtype)
    if not np.isfinite(values).all():
        raise UnsafeFileError(f"{name} holds NaN or infinity")
    return values


def check_whole_hdf5(file: IO[bytes], *, most_bytes: int, packed: bool) -> None:
    """Refuse links, data that lie elsewhere, chunks unless `packed`, and more than `most_bytes`."""
    import h5py

    complaints: list[str] = []
    claimed = 0

    def look_at_link(name: str, link: object) -> None:
        if not isinstance(link, h5py.HardLink):
            complaints.append(f"{shortened(name)!r} is a link")

    def look_at_item(name: str, item: h5py.Group | h5py.Dataset) -> None:
        nonlocal claimed
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or item.is_virtual or (item.chunks and not packed):
            complaints.append(f"{shortened(name)!r} is no array of this file alone")
        claimed += int(item.nbytes)

    with h5py.File(file, "r") as opened:
        try:
            opened.visititems_links(look_at_link)
            opened.visititems(look_at_item)
        except (OSError, RuntimeError, KeyError) as error:
            raise UnsafeFileError("its arrays cannot be listed") from error
    if claimed > most_bytes:
        complaints.append(f"its arrays claim {claimed:,} bytes in {file.seek(0, 2):,}")
    if complaints:
        raise UnsafeFileError(complaints[0])
