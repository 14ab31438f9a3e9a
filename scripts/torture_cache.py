"""Try to break the cache: kill its users at random instants and let their writes fail.

    python scripts/torture_cache.py                                  # 300 kills, 500 errors
    python scripts/torture_cache.py --kills 20 --errors 30 --seed 1 --minutes 2

Two writers extract three growing folders, two of which have one name. An editor relabels images and
splits datasets. A collector removes what no dataset uses, new shards too. Two readers open every
dataset again and again. Writers, editor and collector are killed (SIGKILL) at random instants and
started anew. Their opening, writing, flushing and renaming of files of the cache fails at random:
full disk, I/O error, quota, a write that is cut short, a limit on the size of files.

The features are a function of the pixels, so that every row that a reader sees is compared with its
recomputation. A writer notes the images of each run that ended well, the editor each edit that
it was told was done: all have to be found from then on. In the end all runs once more without
trouble, and the cache is verified. Prints what was seen, and ends with 1 if an acknowledged row or
edit was lost, a manifest promised a row without features, or a reader failed.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import featx
import featx.cache.space as space_module
import featx.extraction.backbone_choice as sources_module
import featx.extraction.pipeline as pipeline_module
from featx.backbones.source import BackboneSource
from featx.backbones.weights import Weights
from featx.cache import hdf5
from featx.cache.collection import collect_garbage
from featx.cache.datasets import edit_dataset
from featx.cache.editing import assign_splits, relabel
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Manifest, manifest_names
from featx.cache.repair import verify_cache
from featx.exceptions import FeatxError
from featx.images.files import image_key, read_file

FOLDERS = ("a/photos", "b/photos", "c/more")
ROLES = ("writer", "writer", "editor", "collector", "reader", "reader")
READERS = 2
SIZE_PX = 8
ROWS_A_SHARD = 6
TAP = "avg"
CLASSES = ("left", "right", "both", "none")
BACKBONE = "file:torture"
SOURCE = BackboneSource(
    BACKBONE, None, Weights(BACKBONE, "0" * 64, None), (SIZE_PX, SIZE_PX), "none"
)
Array = np.ndarray[Any, Any]


def compute(pixels: Array) -> Array:
    """Return features of shape (n, 16) of pixels of shape (n, 8, 8, 3): the oracle."""
    weights = np.random.default_rng(7).normal(size=(SIZE_PX * SIZE_PX * 3, 16))
    return np.stack([p.reshape(-1) @ weights for p in pixels]).astype(np.float32)


@dataclass
class Finished:
    """A batch that was computed at once."""

    vectors: dict[str, Array]

    def result(self) -> dict[str, Array]:
        return self.vectors


class Oracle:
    """An engine that runs `compute`."""

    name, taps, batch_size, in_flight = "oracle", (TAP,), 2, 1

    def provenance(self) -> dict[str, Any]:
        return {"engine": self.name}

    def submit(self, pixels: Array) -> Finished:
        return Finished({TAP: compute(pixels)})


def use_oracle() -> None:
    """Let extractions run the oracle in the place of a network."""
    sources_module.resolve_backbone = lambda *_, **__: SOURCE
    pipeline_module.make_engine = lambda *_, **__: Oracle()


def extract(folder: Path, cache: Path) -> Features:
    """Extract a folder with the oracle."""
    return featx.extract(folder, backbone=BACKBONE, cache=cache, workers=1, isolate=False)


class Faults:
    """Lets calls on files of a cache fail, once in so many, and counts the failures."""

    def __init__(self, root: Path, seed: int, one_in: int, count: Callable[[], None]) -> None:
        self._root = os.fspath(root)
        self._random = random.Random(seed)
        self._one_in = one_in
        self._count = count

    def draw(self, path: Any) -> OSError | None:
        """Return the error of this call, None for most."""
        inside = not isinstance(path, int) and os.fspath(path).startswith(self._root)
        if not (inside or isinstance(path, int)) or self._random.randrange(self._one_in):
            return None
        self._count()
        number = self._random.choice((errno.ENOSPC, errno.EIO, errno.EDQUOT))
        return OSError(number, os.strerror(number))

    def wrap(self, module: Any, name: str) -> None:
        """Let a function whose first argument is a path or descriptor fail."""
        real = getattr(module, name)

        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            error = self.draw(path)
            if error is not None:
                raise error
            return real(path, *args, **kwargs)

        setattr(module, name, call)

    def install(self) -> None:
        """Put failures into every kind of call by which featx writes."""
        for name in ("fsync", "replace", "rename", "unlink", "open", "ftruncate", "pwrite"):
            self.wrap(os, name)
        faults = self

        class Faulty(io.FileIO):
            def write(self, data: Any, /) -> int:
                error = faults.draw(str(self.name))
                if error is None:
                    return super().write(data) or 0
                if len(data) > 1 and faults._random.randrange(2):
                    return super().write(data[: len(data) // 2]) or 0  # the rest comes next
                raise error

        hdf5._PatientFile.__bases__ = (Faulty,)


@dataclass
class Place:
    """Folders of a torture, and what its processes tell each other."""

    root: Path

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def note(self, name: str, *content: Any) -> None:
        """Add a line to a file of notes, in one write."""
        line = (json.dumps(content) + "\n").encode()
        with (self.root / name).open("ab", buffering=0) as file:
            file.write(line)

    def notes(self, name: str) -> list[Any]:
        """Return the whole lines of a file of notes."""
        path = self.root / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]


def write(place: Place, generator: random.Random, refused: Callable[[], None]) -> None:
    """Extract one of the folders, over and over, and note what was kept."""
    folder = place.root / "images" / generator.choice(FOLDERS)
    expected = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    # No room for some files, now and then.
    limit = resource.RLIM_INFINITY if generator.randrange(5) else generator.randrange(500, 20_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        features = extract(folder, place.cache)
    except FeatxError:
        return refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    place.note("kept", str(folder), sorted(set(expected) & set(features.paths)))


def edit(place: Place, generator: random.Random, refused: Callable[[], None]) -> None:
    """Edit one of the datasets, and note what was done."""
    names = manifest_names(CacheLayout(place.cache))
    if not names:
        return time.sleep(0.01)
    name = generator.choice(names)
    done: list[Any] = []

    def change(manifest: Manifest) -> Manifest:
        rows = np.flatnonzero(manifest.key.any(axis=1))
        if not generator.randrange(4) or not len(rows):
            edited = assign_splits(
                manifest, {"train": 0.7, "test": 0.3}, seed=generator.randrange(10**6)
            )
        else:
            row = int(generator.choice(rows.tolist()))
            edited = relabel(manifest, paths={manifest.path[row]: generator.choice(CLASSES)})
        done[:] = [manifest.root, edited.edits[-1]]
        return edited

    try:
        edit_dataset(CacheLayout(place.cache), name, change)
    except FeatxError:
        refused()
    else:
        place.note("edited", *done)
    time.sleep(0.05)


def collect(place: Place, generator: random.Random, refused: Callable[[], None]) -> None:
    """Remove what no dataset uses, new shards too."""
    try:
        collect_garbage(
            CacheLayout(place.cache), older_than_s=generator.choice((0, 0.1, 3600)), dry_run=False
        )
    except FeatxError:
        refused()
    time.sleep(generator.uniform(0, 0.4))


def read(place: Place, _: random.Random, __: Callable[[], None]) -> None:
    """Open every dataset, and compare its rows."""
    check(place)
    time.sleep(0.02)


_ACTIONS = {"writer": write, "editor": edit, "collector": collect, "reader": read}
_KNOWN: dict[Path, tuple[bytes, Array]] = {}


def expected_rows(place: Place) -> dict[bytes, Array]:
    """Return key and features of every image, computed from its file."""
    for path in (place.root / "images").rglob("*.png"):
        if path not in _KNOWN:
            _KNOWN[path] = (
                image_key(read_file(path)),
                compute(np.asarray(Image.open(path))[None])[0],
            )
    return dict(_KNOWN.values())


def check(place: Place) -> list[str]:
    """Compare every row of every dataset with its recomputation, and look for what was noted.

    Returns
    -------
    list of str
        Acknowledged rows and edits that are not there.

    Raises
    ------
    AssertionError, FeatxError
        If a row is wrong, or promised and not there.
    """
    kept, edited = place.notes("kept"), place.notes("edited")
    layout = CacheLayout(place.cache)
    by_root: dict[str, Manifest] = {}
    for name in manifest_names(layout):
        features = Features.open(name, cache=place.cache)
        by_root[features.manifest.root] = features.manifest
        if not len(features):
            raise AssertionError(f"{name} has no row")
        X, rows = features.X, expected_rows(place)
        for key, row in zip(features.keys, X, strict=True):
            if not np.array_equal(rows[key.tobytes()], row):
                raise AssertionError(f"a wrong row in {name}")
    lost = []
    for root, paths in kept:
        manifest = by_root.get(str(Path(root).resolve()))
        done = set()
        if manifest is not None:
            done = {manifest.path[row] for row in np.flatnonzero(manifest.status % 2 == 0)}
        lost += [f"row {path} of {root}" for path in paths if path not in done]
    last_split = {root: one for root, one in edited if one["edit"] == "split"}
    for root, one in edited:
        manifest = by_root.get(root)
        there = manifest is not None and one in manifest.edits
        if one["edit"] == "split" and one != last_split[root]:
            continue  # a later split makes an earlier one void
        if one["edit"] == "split" and manifest is not None:
            there = any(other["edit"] == "split" for other in manifest.edits)
        if not there:
            lost.append(f"edit {one} of {root}")
    return lost


class Actors:
    """The processes of a torture: forked, so that a new one costs milliseconds."""

    def __init__(self, place: Place, seed: int, one_in: int) -> None:
        self._place = place
        self._seed = seed
        self._one_in = one_in
        self._started = 0
        self._counters = mmap.mmap(-1, 16 * len(ROLES))  # shared with every child
        self._pids: dict[int, int] = {}

    @property
    def errors(self) -> int:
        return sum(self._counter(slot, 0) for slot in range(len(ROLES)))

    @property
    def refused(self) -> int:
        return sum(self._counter(slot, 8) for slot in range(len(ROLES)))

    def _counter(self, slot: int, offset: int, add: int = 0) -> int:
        place = 16 * slot + offset
        (value,) = struct.unpack_from("q", self._counters, place)
        struct.pack_into("q", self._counters, place, value + add)
        return int(value + add)

    def start(self, slot: int, *, faults: bool = True) -> None:
        """Start the process of a slot."""
        self._started += 1
        seed = self._seed * 10_007 + self._started
        pid = os.fork()
        if pid:
            self._pids[slot] = pid
            return
        code = 1
        try:
            self._work(slot, seed, faults)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def _work(self, slot: int, seed: int, faults: bool) -> None:
        role, generator = ROLES[slot], random.Random(seed)
        if role != "reader" and faults:
            Faults(
                self._place.cache, seed, self._one_in, lambda: self._counter(slot, 0, 1) and None
            ).install()
        while not (self._place.root / "stop").exists():
            _ACTIONS[role](self._place, generator, lambda: self._counter(slot, 8, 1) and None)

    def kill(self, slot: int) -> None:
        """End a process at this instant."""
        os.kill(self._pids[slot], signal.SIGKILL)
        os.waitpid(self._pids.pop(slot), 0)

    def died(self) -> list[int]:
        """Return the slots whose process ended by itself, which none may before the end."""
        gone = []
        for slot, pid in list(self._pids.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._pids[slot]
                gone.append(slot)
        return gone

    def wait(self) -> int:
        """Wait until all have ended; return how many of them failed."""
        codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in self._pids.values()]
        self._pids.clear()
        return sum(code != 0 for code in codes)


def add_images(place: Place, generator: random.Random) -> None:
    """Draw one more image for every folder; some are in several."""
    for folder in FOLDERS:
        pixels = np.random.default_rng(generator.randrange(400)).integers(0, 256, (8, 8, 3))
        target = place.root / "images" / folder / generator.choice(CLASSES[:2])
        target.mkdir(parents=True, exist_ok=True)
        number = len(list((place.root / "images" / folder).rglob("*.png")))
        if number > 60:
            continue
        hidden = target / f".{number:04d}"
        Image.fromarray(pixels.astype(np.uint8)).save(hidden, "PNG")
        hidden.rename(target / f"{number:04d}.png")


def torture(root: Path, kills: int, errors: int, seed: int, minutes: float) -> dict[str, Any]:
    """Kill and let fail until both numbers are reached or the time is over."""
    place, generator = Place(root), random.Random(seed)
    for _ in range(4):
        add_images(place, generator)
    expected_rows(place)
    actors = Actors(place, seed, one_in=60)
    for slot in range(len(ROLES)):
        actors.start(slot)
    killed, died, readers_failed, lost, checks = 0, 0, 0, set(), 0
    broken: list[str] = []
    deadline = time.monotonic() + 60 * minutes
    while (killed < kills or actors.errors < errors) and time.monotonic() < deadline:
        time.sleep(generator.uniform(0.0, 0.3))
        if killed < kills:
            slot = generator.randrange(len(ROLES) - READERS)
            if slot not in (gone := actors.died()):
                actors.kill(slot)
                killed += 1
        else:
            gone = actors.died()
            slot = -1
        for ended in gone:
            readers_failed += ROLES[ended] == "reader"
            died += ROLES[ended] != "reader"
        for start in {slot, *gone} - {-1}:
            actors.start(start)
        if not generator.randrange(5):
            add_images(place, generator)
        if generator.randrange(4):
            continue  # what is noted stays, so that a later look finds what is lost
        try:
            lost.update(check(place))
        except (AssertionError, FeatxError) as error:
            broken.append(repr(error))
        checks += 1
    (root / "stop").touch()
    died_at_the_end = actors.wait()
    seen = {
        "kills": killed,
        "errors": actors.errors,
        "refused": actors.refused,
        "checks": checks,
        "acknowledged_runs": len(place.notes("kept")),
        "acknowledged_edits": len(place.notes("edited")),
        "lost": sorted(lost),
        "broken_promises": broken,
        "readers_failed": readers_failed,
        "died": died + died_at_the_end,
    }
    return seen | finish(place)


def finish(place: Place) -> dict[str, Any]:
    """Extract everything once without trouble, and verify the cache."""
    missing = 0
    for folder in FOLDERS:
        data = place.root / "images" / folder
        features = extract(data, place.cache)
        missing += len(list(data.rglob("*.png"))) - len(features)
    lost = check(place)
    findings = [str(f.reason) for f in verify_cache(CacheLayout(place.cache)).findings]
    return {"lost_at_the_end": lost, "images_missing": missing, "findings": findings}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--errors", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="end by then, reached or not")
    arguments = parser.parse_args()
    logging.getLogger("featx").setLevel(logging.CRITICAL)
    space_module.SHARD_BYTES = ROWS_A_SHARD * 16 * 4
    space_module.INDEX_ROWS = 2 * ROWS_A_SHARD  # spaces as small as these have an index, too
    use_oracle()
    root = Path(tempfile.mkdtemp()).resolve()
    try:
        seen = torture(root, arguments.kills, arguments.errors, arguments.seed, arguments.minutes)
    finally:
        with suppress(OSError):
            (root / "stop").touch()
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(seen))
    reached = seen["kills"] >= arguments.kills and seen["errors"] >= arguments.errors
    bad = ("lost", "lost_at_the_end", "broken_promises", "readers_failed", "died", "images_missing")
    return 0 if reached and not any(seen[what] for what in (*bad, "findings")) else 1


if __name__ == "__main__":
    sys.exit(main())
