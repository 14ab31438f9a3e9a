"""Train on features several times larger than the memory allowed, and in memory on a part of them.

    python scripts/bench/max_ram.py --gib 8 --max-ram 1GiB --head logistic --head ridge

Makes features (classes on Gaussian clouds, a tenth of the rows a test split), imports them into a
temporary cache, and trains each head in processes of their own: on everything within --max-ram, and
on a part that fits, once within --max-ram and once in memory. For each it prints seconds, accuracy
on the test split, and peaks of memory as Linux counts them twenty times a second: anonymous memory
(what the process has taken; pages of mapped files can be dropped at any time and are not in it),
what of that came after the dataset was opened, and the resident set with mapped files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

MIB = 1 << 20


class Clouds:
    """Rows that are drawn when they are read, the same every time; a source for `import_features`.

    Parameters
    ----------
    rows, width, classes : int
    """

    dtype = np.dtype(np.float32)
    _BLOCK = 2048

    def __init__(self, rows: int, width: int, classes: int) -> None:
        self.shape = (rows, width)
        self.y = np.random.default_rng(1).integers(0, classes, rows)
        self._centres = np.random.default_rng(2).normal(size=(classes, width)).astype("f4") * 0.06
        self._scales = np.random.default_rng(3).uniform(0.2, 3, width).astype("f4")

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the rows, some at a time."""
        for number in range(-(-self.shape[0] // self._BLOCK)):
            yield self._block(number)

    def _block(self, number: int) -> np.ndarray:
        here = slice(number * self._BLOCK, min(self.shape[0], (number + 1) * self._BLOCK))
        generator = np.random.default_rng([4, number])
        noise = generator.standard_normal((here.stop - here.start, self.shape[1]), dtype="f4")
        return (noise + self._centres[self.y[here]]) * self._scales


class Peak:
    """Follows the memory of this process."""

    def __init__(self) -> None:
        self.anonymous = self.resident = 0
        threading.Thread(target=self._follow, daemon=True).start()

    def now(self) -> int:
        """Anonymous memory now, in bytes."""
        found = {}
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "VmRSS"):
                found[name] = int(value.split()[0]) * 1024
        self.anonymous = max(self.anonymous, found["RssAnon"])
        self.resident = max(self.resident, found["VmRSS"])
        return found["RssAnon"]

    def _follow(self) -> None:
        while True:
            self.now()
            time.sleep(0.05)


def train(cache: str, name: str, head: str, max_ram: str | None) -> None:
    import featx
    from featx.heads.making import make_head

    make_head(head)
    if head.startswith("dense"):
        import keras  # noqa: F401
    peak = Peak()
    features = featx.Features.open(name, cache=cache)
    opened, peak.anonymous = peak.now(), 0
    started = time.perf_counter()
    result = featx.train(features, head=head, max_ram=max_ram)
    found = {
        "seconds": time.perf_counter() - started,
        "accuracy": result.metrics["accuracy"],
        "images": len(features),
        "anonymous_mib": peak.anonymous / MIB,
        "beyond_opened_mib": (peak.anonymous - opened) / MIB,
        "resident_mib": peak.resident / MIB,
    }
    print(json.dumps(found))


def make(cache: str, name: str, rows: int, width: int, classes: int) -> None:
    import featx

    source = Clouds(rows, width, classes)
    splits = np.where(np.arange(rows) % 10 == 0, "test", "train").tolist()
    featx.import_features(name, source, y=source.y, splits=splits, cache=cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=8.0, help="size of the features")
    parser.add_argument("--max-ram", default="1GiB")
    parser.add_argument("--part", type=float, default=0.1, help="share that both sides train on")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--head", action="append", help="several by repeating it, or none")
    parser.add_argument("--cache", help="a folder where they are kept; by default none is")
    parser.add_argument("--no-whole", action="store_true", help="the part only")
    options = parser.parse_args()
    rows = int(options.gib * 2**30 / 4 / options.width)
    part = int(rows * options.part)
    with ExitStack() as stack:
        cache = options.cache
        if cache is None:
            cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="featx-max-ram-"))
        sizes = {"part": part} if options.no_whole else {"part": part, "all": rows}
        for name, count in sizes.items():
            if (Path(cache) / "datasets" / f"{name}.h5").exists():
                continue
            started = time.perf_counter()
            _apart("make", cache, name, str(count), str(options.width), str(options.classes))
            size = count * options.width * 4 / 2**30
            seconds = time.perf_counter() - started
            print(
                f"made {name}: {count:,} rows of {options.width:,}, {size:.2f} GiB, {seconds:.0f} s"
            )
        if options.head == ["none"]:
            return
        print(f"--max-ram {options.max_ram}, peaks in MiB")
        print("head           features  memory     seconds  accuracy  anonymous  +opened  resident")
        for head in options.head if options.head else ["logistic", "ridge", "lda", "nearest-mean"]:
            for name, bound in (
                ("part", None),
                ("part", options.max_ram),
                ("all", options.max_ram),
            ):
                if name in sizes:
                    found = json.loads(_apart("train", cache, name, head, bound or ""))
                    print(
                        f"{head:14} {name:9} {bound or 'all':9} {found['seconds']:8.1f}  "
                        f"{found['accuracy']:8.4f}  {found['anonymous_mib']:9.0f}  "
                        f"{found['beyond_opened_mib']:7.0f}  {found['resident_mib']:8.0f}",
                        flush=True,
                    )


def _apart(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments], stdout=subprocess.PIPE, check=True
    )
    return done.stdout.decode()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        what, *given = sys.argv[2:]
        if what == "make":
            make(*given[:2], *map(int, given[2:]))
        else:
            train(*given[:3], given[3] or None)
    else:
        main()
