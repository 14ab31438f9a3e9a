"""Drawn pictures, the archive of 0.1, and what compares the present with it.

`frozen` holds what a test found against a JSON file that featx 0.1.0 wrote. `make_archive.py` sets
`FEATX_FREEZE` to a folder: the same tests then write these files and compare nothing.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[1] / "data" / "frozen"
CLASSES = ("red", "striped", "蜂")

# What differs from machine to machine or from run to run, by the name of its field.
_VOLATILE = re.compile(
    r"(.*_)?(seconds|s|bytes|ms|mb)|versions?|engine|binds|measured|found|pareto|runtime"
    r"|largest_difference|batch_difference|serving|weights_here"
)


def draw(attributes: tuple[int, int, int], number: int) -> np.ndarray:
    """A picture of 48 x 64 pixels: red or blue, striped or even, bright or dark, and noise."""
    red, striped, bright = attributes
    seed = number + 1000 * (red + 2 * striped + 4 * bright)
    noise = np.random.default_rng(seed).integers(-18, 19, (48, 64, 3))
    stripes = (np.arange(48)[:, None, None] // 4 % 2) * 80 * striped
    colour = np.array([120, 40, 30] if red else [30, 40, 120])
    return np.clip(noise + stripes + colour + 70 * bright, 0, 255).astype(np.uint8)


def save_picture(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels as PPM, whose bytes no library chooses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = pixels.shape
    path.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes())
    return path


def draw_dataset(folder: Path) -> Path:
    """Three classes with 8 pictures each in `pictures`, sets of labels in `sets.csv`.

    There are a copy, a file that is damaged and one that is no picture, too; `table.csv` has groups
    and splits.
    """
    pictures = folder / "pictures"
    for code, name in enumerate(CLASSES):
        attributes = tuple(int(code == place) for place in range(3))
        for number in range(8):
            save_picture(pictures / name / f"{number}.ppm", draw(attributes, number))
    (pictures / "red" / "8.ppm").write_bytes((pictures / "red" / "0.ppm").read_bytes())
    (pictures / "red" / "broken.ppm").write_bytes(b"P6\n64 48\n255\n")
    (pictures / "red" / "notes.txt").write_text("no picture")
    lines, sets = ["path,label,group,split"], ["path,red,striped,bright"]
    for number in range(24):
        attributes = (number & 1, number >> 1 & 1, number >> 2 & 1)
        path = save_picture(folder / "more" / f"{number:02}.ppm", draw(attributes, 50 + number))
        name = path.relative_to(folder).as_posix()
        lines.append(
            f"{name},{'ab'[number & 1]},g{number // 3},{'test' if number > 17 else 'train'}"
        )
        sets.append(f"{name},{','.join(map(str, attributes))}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "sets.csv").write_text("\n".join(sets) + "\n")
    return folder


@pytest.fixture(scope="session")
def archived(tmp_path_factory):
    """The folder of models, caches, files and networks that featx 0.1.0 left."""
    folder = tmp_path_factory.mktemp("archived")
    data = Path(os.environ.get("FEATX_FREEZE", DATA))
    with tarfile.open(data / "archive.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def run():
    """A function that runs a command in this process: exit code, standard output and error."""
    from featx.cli.main import main

    def call(*args, stdin: str = ""):
        streams = sys.stdin, sys.stdout, sys.stderr
        before = signal.getsignal(signal.SIGTERM)
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
        sys.stdout, sys.stderr = out, err
        try:
            main([str(arg) for arg in args])
            code = 0
        except SystemExit as error:
            code = error.code or 0
        finally:
            sys.stdin, sys.stdout, sys.stderr = streams
            signal.signal(signal.SIGTERM, before)
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        return code, *texts

    return call


def lasting(value, name: str = "", folder: str = ""):
    """What has to stay the same of a JSON value; of the rest the type alone, in angle brackets.

    Text with a space is for people and may be reworded. Paths are taken from `folder` on.
    """
    if _VOLATILE.fullmatch(name) and isinstance(value, (int, float, str, list, tuple)):
        return f"<{type(value).__name__}>"
    if isinstance(value, dict):
        return {key: lasting(item, str(key), folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [lasting(item, name, folder) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else str(value)
    text = str(value).replace(folder, "{folder}") if folder else str(value)
    # The digest of a network that was trained here.
    text = re.sub(r"(finetuned)-[0-9a-f]{12}", r"\1-<digest>", text)
    return "<words>" if " " in text else text


def differences(expected, actual, tolerance: float, where: str = "") -> list[str]:
    """Where `actual` is not as `expected`; it may have more fields."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        lost = [f"{where}/{key}: is gone" for key in expected if key not in actual]
        return lost + [
            line
            for key in expected
            if key in actual
            for line in differences(expected[key], actual[key], tolerance, f"{where}/{key}")
        ]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        return [
            line
            for number, pair in enumerate(zip(expected, actual, strict=True))
            for line in differences(*pair, tolerance, f"{where}/{number}")
        ]
    if isinstance(expected, float) and isinstance(actual, float):
        if abs(expected - actual) <= tolerance:
            return []
    elif type(expected) is type(actual) and expected == actual:
        return []
    return [f"{where}: expected {expected!r}, received {actual!r}"]


@pytest.fixture(scope="session")
def frozen():
    """A function that compares a value with what featx 0.1.0 had for it."""

    def compare(name: str, value, *, folder="", tolerance: float = 1e-3):
        value = json.loads(json.dumps(lasting(value, folder=str(folder))))
        if target := os.environ.get("FEATX_FREEZE"):
            text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
            # Short lists on one line.
            text = re.sub(r"\[[^][{}]{,300}\]", lambda m: re.sub(r"\s*\n\s*", " ", m[0]), text)
            path = Path(target, f"{name}.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
            return
        expected = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
        assert differences(expected, value, tolerance) == []

    return compare
