"""How long heads take to fit beside processes that keep every processor busy, and without them.

    python scripts/bench/busy.py
    python scripts/bench/busy.py --head logistic --head ridge --rows 245 --repeats 5

Each is fitted with as many threads as featx takes, and with one. Prints medians of seconds and
their ratio; a loop a processor is what else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from featx.heads.learning import fit_rows
from featx.heads.making import make_head
from featx.heads.rows import Rows
from featx.heads.table import HEADS
from featx.heads.targets import Targets
from featx.threads import usable_processors

COLUMNS, CLASSES = 1280, 10
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
              "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")  # fmt: skip


@contextmanager
def loops(count: int) -> Iterator[None]:
    """Keep processors busy."""
    with ExitStack() as stack:
        for _ in range(count):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(loop.wait)
            stack.callback(loop.kill)
        yield


def data(rows: int) -> tuple[Rows, Targets]:
    generator = np.random.default_rng(0)
    y = np.arange(rows) % CLASSES
    centres = 0.3 * generator.normal(size=(CLASSES, COLUMNS))
    X = generator.normal(size=(rows, COLUMNS)) + centres[y]
    return Rows.of(X.astype(np.float32)), Targets.of_classes(y)


def fit(head: str, rows: int, repeats: int) -> list[float]:
    """Return the seconds of some fits, after one that loads what it needs."""
    X, y = data(rows)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        fit_rows(make_head(head), X, y)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def fit_elsewhere(head: str, rows: int, repeats: int, *, one_thread: bool) -> list[float]:
    """Fit in a process of its own, whose libraries read their number of threads when they start."""
    limits = dict.fromkeys(ONE_THREAD, "1") if one_thread else {}
    call = [sys.executable, __file__, "--head", head, "--rows", str(rows),
            "--repeats", str(repeats), "--only"]  # fmt: skip
    done = subprocess.run(call, env={**os.environ, **limits}, stdout=subprocess.PIPE, check=True)
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--head", action="append", choices=list(HEADS))
    parser.add_argument("--rows", action="append", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    heads, rows = options.head or list(HEADS), options.rows or [245, 3600]
    if options.only:
        print(json.dumps(fit(heads[0], rows[0], options.repeats)))
        return
    for head in heads:
        for count in rows:
            found = {"head": head, "rows": count}
            for name, busy in (("alone", 0), ("busy", usable_processors())):
                with loops(busy):
                    # In turns, since what else the machine does changes.
                    pairs = [
                        [
                            fit_elsewhere(head, count, options.repeats, one_thread=limited)
                            for limited in (False, True)
                        ]
                        for _ in range(2)
                    ]
                ours, one = (
                    statistics.median(s for pair in pairs for s in pair[k]) for k in (0, 1)
                )
                found[name] = {"seconds": round(ours, 3), "one_thread": round(one, 3),
                               "ratio": round(ours / one, 2)}  # fmt: skip
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
