"""Try to break the cache: kill writers at random instants while others write and read.

    python scripts/torture_cache.py                 # 300 kills, a few minutes
    python scripts/torture_cache.py --kills 20

Three writers extract a growing folder of images into one cache, each in an order of its own; two
readers open it again and again. A writer is killed (SIGKILL) at a random instant and started anew.
The features are a function of the pixels that costs nothing, so that every row that any reader
sees is checked against a recomputation. A writer notes every image whose features it was told to be
kept; after each kill all of these have to be found. In the end one more extraction runs to
its end, and the cache has to equal that of a run without a crash. Prints what was seen, and ends
with 1 if anything was lost, wrong, or could not be opened.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import featx.cache.space as space_module
from featx.cache.layout import CacheLayout
from featx.cache.space import FeatureSpace, ShardWriter
from featx.images import ImageDataset, hash_file
from featx.pipeline import Stage
from featx.runner import Ledger, run
from featx.spec import FeatureSpec

WRITERS, READERS = 3, 2
SIZE_PX = 8
ROWS_A_SHARD = 6
TAP = "avg"
SPEC = FeatureSpec(
    backbone="torture",
    weights_sha256="0" * 64,
    input_size_px=(SIZE_PX, SIZE_PX),
    preprocessing="none",
)
Array = np.ndarray[Any, Any]


def compute(pixels: Array) -> Array:
    """Return features of shape (n, 16) of pixels of shape (n, 8, 8, 3): the oracle."""
    weights = np.random.default_rng(7).normal(size=(SIZE_PX * SIZE_PX * 3, 16))
    return (pixels.reshape(len(pixels), -1) @ weights).astype(np.float32)


class Oracle:
    """An engine that runs `compute`."""

    name, taps, batch_size, in_flight = "oracle", (TAP,), 2, 1

    def provenance(self) -> dict[str, Any]:
        return {"engine": self.name}

    def run(self, pixels: Array) -> dict[str, Array]:
        return {TAP: compute(pixels)}

    def submit(self, pixels: Array) -> Finished:
        return Finished(self.run(pixels))


@dataclass
class Finished:
    """A batch that was computed at once."""

    vectors: dict[str, Array]

    def result(self) -> dict[str, Array]:
        return self.vectors


class NotingWriter(ShardWriter):
    """Notes the keys of rows once they are kept."""

    def __init__(self, space: FeatureSpace, notes: Path) -> None:
        super().__init__(space, {"engine": "oracle"})
        self._noted = notes.open("a")
        self._pending: list[str] = []

    def add(self, keys: Array, features: Mapping[str, Array]) -> None:
        self._pending += [key.tobytes().hex() for key in keys]
        super().add(keys, features)

    def _commit(self) -> None:
        super()._commit()
        self._noted.write("".join(f"{key}\n" for key in self._pending))
        self._noted.flush()
        self._pending.clear()


def write(folder: Path, seed: int) -> None:
    """Extract what is in the folder, over and over."""
    space_module.SHARD_BYTES = ROWS_A_SHARD * 16 * 4
    generator = np.random.default_rng(seed)
    while True:
        space = FeatureSpace(CacheLayout(folder / "cache"), SPEC)
        stage = Stage(
            spec=SPEC,
            taps=(TAP,),
            store=space,
            open_engine=Oracle,
            open_sink=lambda _, space=space: NotingWriter(space, folder / f"kept-{seed}"),
        )
        data = ImageDataset.from_folder(folder / "images", labels="none")
        data = data.subset(generator.permutation(len(data)))
        (folder / f"ready-{os.getpid()}").touch()
        run(data, [stage], Ledger.blank(len(data)), workers=1)
        time.sleep(0.01)


def check(folder: Path) -> int:
    """Open the cache, and compare every row that is there with its recomputation."""
    expected = recomputed(folder)
    space = FeatureSpace(CacheLayout(folder / "cache"), SPEC)
    if space.damaged:
        raise AssertionError(f"damaged shards: {space.damaged}")
    count = 0
    for shard in space.shards:
        for key, row in zip(shard.keys.map(), shard.taps[TAP].map(), strict=True):
            if not np.array_equal(expected[key.tobytes()], row):
                raise AssertionError(f"a wrong row in {shard.path}")
            count += 1
    return count


_KNOWN: dict[str, tuple[bytes, Array]] = {}


def recomputed(folder: Path) -> dict[bytes, Array]:
    """Key and features of every image, computed from its file."""
    for path in (folder / "images").iterdir():
        if path.suffix == ".png" and path.name not in _KNOWN:
            pixels = np.asarray(Image.open(path))[None]
            _KNOWN[path.name] = hash_file(path), compute(pixels)[0]
    return dict(_KNOWN.values())


def read(folder: Path) -> None:
    """Check the cache until told to stop by a file."""
    rounds = 0
    while not (folder / "stop").exists():
        check(folder)
        rounds += 1
    (folder / f"reader-{os.getpid()}").write_text(str(rounds))


def add_images(folder: Path, count: int) -> None:
    """Add images, each by a rename, as a careful camera does."""
    generator = np.random.default_rng(random.getrandbits(32))
    for _ in range(count):
        pixels = generator.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        name = f"{generator.integers(1 << 62):020d}"
        Image.fromarray(pixels).save(folder / "images" / f".{name}", format="png")
        (folder / "images" / f".{name}").rename(folder / "images" / f"{name}.png")


def start(folder: Path, role: str, seed: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder)]
    return subprocess.Popen([*command, "--seed", str(seed)], stderr=subprocess.PIPE, text=True)


def lost_rows(folder: Path) -> int:
    """Return the number of rows that a writer was told to be kept and that are not there."""
    noted = {
        line
        for path in folder.glob("kept-*")
        for line in path.read_text().split("\n")[:-1]
        if len(line) == 64
    }
    if not noted:
        return 0
    keys = np.frombuffer(bytes.fromhex("".join(sorted(noted))), np.uint8).reshape(-1, 32)
    return int((~FeatureSpace(CacheLayout(folder / "cache"), SPEC).has((TAP,), keys)).sum())


def torture(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill writers; return what was seen."""
    random.seed(seed)
    (folder / "images").mkdir()
    add_images(folder, 50)
    readers = [start(folder, "reader") for _ in range(READERS)]
    writers = [start(folder, "writer", seed=number) for number in range(WRITERS)]
    seen = {"kills": 0, "died_by_themselves": 0, "lost_rows": 0, "checks": 0}
    while seen["kills"] < kills:
        number = random.randrange(WRITERS)
        victim = writers[number]
        while victim.poll() is None and not (folder / f"ready-{victim.pid}").exists():
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.3))
        seen["died_by_themselves"] += victim.poll() is not None
        victim.send_signal(signal.SIGKILL)
        sys.stderr.write(victim.communicate()[1])
        seen["kills"] += 1
        writers[number] = start(folder, "writer", seed=number)
        add_images(folder, 3)
        seen["lost_rows"] += lost_rows(folder)
        check(folder)
        seen["checks"] += 1
    for process in writers:
        process.kill()
        process.communicate()
    (folder / "stop").touch()
    seen["readers_failed"] = 0
    for process in readers:
        _, errors = process.communicate(timeout=120)
        if process.returncode:
            seen["readers_failed"] += 1
            sys.stderr.write(errors)
    seen["reader_rounds"] = sum(int(path.read_text()) for path in folder.glob("reader-*"))
    seen["rows"] = finish(folder)
    seen["images"] = len(recomputed(folder))
    seen["leftovers_in_tmp"] = len(list((folder / "cache" / "tmp").iterdir()))
    return seen


def finish(folder: Path) -> int:
    """Extract once without a crash; return the number of images that are right."""
    space = FeatureSpace(CacheLayout(folder / "cache"), SPEC)
    stage = Stage(
        spec=SPEC,
        taps=(TAP,),
        store=space,
        open_engine=Oracle,
        open_sink=lambda _: ShardWriter(space, {}),
    )
    data = ImageDataset.from_folder(folder / "images", labels="none")
    run(data, [stage], Ledger.blank(len(data)))
    check(folder)
    expected = recomputed(folder)
    keys = np.frombuffer(b"".join(expected), np.uint8).reshape(-1, 32)
    return int((space.gather(TAP, keys) == np.stack(list(expected.values()))).all(axis=1).sum())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--role", choices=["writer", "reader"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "writer":
        write(arguments.folder, arguments.seed)
    if arguments.role == "reader":
        read(arguments.folder)
        return 0
    folder = Path(tempfile.mkdtemp())
    try:
        seen = torture(folder, arguments.kills, arguments.seed)
    finally:
        (folder / "stop").touch()
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(seen))
    bad = seen["lost_rows"] + seen["died_by_themselves"] + seen["readers_failed"]
    return 1 if bad or seen["rows"] != seen["images"] else 0


if __name__ == "__main__":
    sys.exit(main())
