r"""How fast images are read from archives and tables, against the same files in a folder.

    python scripts/bench/inputs.py photos/
    python scripts/bench/inputs.py photos/ --pixels 96 --rounds 7

Packs the images of a folder into a tar, a tar.gz, zips (stored and deflated), Parquet and Arrow,
beside it in a temporary folder. Every round then reads and decodes all images of each, in an order
that differs from round to round, with the loader of an extraction; that is what differs between
them. Prints for each the median of images/s, its ratio to the folder's in the same round, the
time to list it, and the peak memory of a process that does just this, without and with the images.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from featx.images.dataset import ImageDataset
from featx.images.decode import Target
from featx.images.loader import load_images
from featx.spec import ImagePolicy


def pack(folder: Path, target: Path) -> dict[str, Path]:
    """Return the folder and its copies in archives and tables, by name."""
    data = ImageDataset.from_folder(folder)
    names = list(data.paths)
    packed = {"folder": folder}
    for name, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        packed[name] = target / f"a.{name}"
        with tarfile.open(packed[name], mode) as tar:
            for path in names:
                tar.add(folder / path, path)
    for name, method in (("zip", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        packed[name] = target / f"{name}.zip"
        with zipfile.ZipFile(packed[name], "w", method) as archive:
            for path in names:
                archive.write(folder / path, path)
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        print("without Parquet and Arrow: pip install 'featx[parquet]'")
        return packed
    cells = [{"bytes": data.read(row), "path": path} for row, path in enumerate(names)]
    table = pa.table({"image": cells, "label": data.y.tolist()})
    packed["parquet"] = target / "a.parquet"
    parquet.write_table(table, packed["parquet"], row_group_size=1_000)
    packed["arrow"] = target / "a.arrow"
    with pa.OSFile(str(packed["arrow"]), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=1_000)
    return packed


def read_all(data: ImageDataset, pixels: int) -> float:
    """Return the images per second at which a dataset is read and decoded."""
    targets = [Target((pixels, pixels), ImagePolicy())]
    started = time.perf_counter()
    statuses = [loaded.status for loaded in load_images(data, range(len(data)), targets)]
    seconds = time.perf_counter() - started
    assert set(statuses) == {"decoded"}, set(statuses)
    return len(data) / seconds


def timed(function: Callable[[], ImageDataset]) -> tuple[ImageDataset, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def peak_mib() -> int:
    """Return the peak memory of this process, without that of the one which started it."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10


def peaks(path: Path, pixels: int) -> list[int]:
    """Return the peak memory in MiB of a process that lists the images, and that reads them too."""
    command = [sys.executable, __file__, str(path), "--pixels", str(pixels), "--peaks"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pixels", type=int, default=224, help="side of the decoded images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peaks", action="store_true", help="print the memory of this process")
    options = parser.parse_args()
    if options.peaks:
        data = ImageDataset.from_any(options.folder)
        print(peak_mib())
        read_all(data, options.pixels)
        print(peak_mib())
        return
    target = Path(tempfile.mkdtemp())
    try:
        packed = pack(options.folder, target)
        datasets, listing = {}, {}
        for name, path in packed.items():
            datasets[name], listing[name] = timed(lambda path=path: ImageDataset.from_any(path))
        rates: dict[str, list[float]] = {name: [] for name in packed}
        for number in range(options.rounds + 1):
            for name in random.Random(number).sample(sorted(packed), len(packed)):
                rate = read_all(datasets[name], options.pixels)
                if number:  # the first round warms up
                    rates[name].append(rate)
        print(f"{len(datasets['folder']):,} images at {options.pixels} px, {options.rounds} rounds")
        print("           images/s  of the folder's  listing s  MiB listed  MiB read")
        for name, values in rates.items():
            ratios = [a / b for a, b in zip(values, rates["folder"], strict=True)]
            listed, read = peaks(packed[name], options.pixels)
            print(
                f"{name:9} {statistics.median(values):9,.0f} {statistics.median(ratios):16.2f} "
                f"{listing[name]:10.3f} {listed:11,} {read:9,}"
            )
    finally:
        shutil.rmtree(target)


if __name__ == "__main__":
    main()
