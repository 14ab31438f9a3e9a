"""What lies beside an exported file, and how both come to their places: whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featx.exceptions import ExportError, reason
from featx.exporting.graph import INPUT, OUTPUT
from featx.files.durable import beside, flush, flush_names
from featx.spec import FeatureSpec

_TYPE, _VERSION = "featx-export", 1
_NO_TEXT = re.compile("[\ud800-\udfff]")


def as_json(value: Any, *, indent: int | None = 2) -> str:
    """Return JSON in which letters of any script are themselves, and always UTF-8."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _NO_TEXT.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def description_path(path: Path) -> Path:
    """Return where the description of an export lies."""
    return path.with_name(f"{path.name}.json")


def report_path(path: Path) -> Path:
    """Return where the result of a verification lies."""
    return path.with_name(f"{path.name}.verification.json")


def describe(
    *,
    format: str,
    precision: str,
    classes: list[Any],
    spec: FeatureSpec,
    tap: str,
    head: str,
    multilabel: bool = False,
    calibration: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the description of an export as JSON types."""
    height, width = spec.input_size_px
    return {
        "type": _TYPE,
        "version": _VERSION,
        "format": format,
        "precision": precision,
        "classes": classes,
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": [None, height, width, 3],
            "colours": "RGB",
            # A network that is given these must not be given rescaled ones.
            "pixels": "whole numbers from 0 to 255; the network rescales them itself",
            "image": spec.image.to_dict(),
        },
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": [None, len(classes)],
            "multilabel": multilabel,
        },
        "model": {"backbone": spec.backbone, "tap": tap, "head": head, "spec_sha256": spec.digest},
        **({} if calibration is None else {"calibration": calibration}),
    }


def read_description(path: Path) -> dict[str, Any]:
    """Read the description that lies beside an export."""
    beside = description_path(path)
    try:
        found = json.loads(beside.read_text("utf-8"))
        classes = found["classes"]
        kind, version = found["type"], found["version"]
        complete = isinstance(classes, list) and {"format", "precision"} <= set(found)
        complete &= isinstance(found.get("calibration", {}).get("keys", []), list)
    except FileNotFoundError as error:
        raise ExportError(
            f"expected {beside.name} beside {path}, with the names of its classes: keep the two "
            "together, or export the model again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{beside} is damaged ({reason(error)}): export the model again"
        ) from error
    if kind != _TYPE or version != _VERSION or not complete:
        raise ExportError(
            f"{beside} is of type {kind!r}, version {version!r}: expected {_TYPE!r}, version "
            f"{_VERSION}, as this featx writes it; export the model again"
        )
    return dict(found)


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raise `ExportError` if something is there already, or the folder is not."""
    folder = paths[0].parent
    if not folder.is_dir():
        raise ExportError(f"expected -o PATH in a folder that exists, received {paths[0]}")
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ExportError(
                f"{path} exists already: name another path with -o, or replace it with "
                "--force (overwrite=True)"
            )


@contextmanager
def placed_whole(paths: Sequence[Path]) -> Iterator[Path]:
    """Make a folder whose files go to their places together when the block ends without error."""
    parent = paths[0].parent
    folder = beside(paths[-1])
    try:
        folder.mkdir()
        try:
            yield folder
            for path in paths:
                _move(folder / path.name, path, folder)
            flush_names(parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ExportError(
            f"cannot write {paths[-1]}: {error.strerror or error}. Name a path with -o, in a "
            "folder that can be written"
        ) from error


def _move(made: Path, target: Path, folder: Path) -> None:
    flush(made)
    # A folder cannot be renamed over another one; the old one goes with the temporary folder.
    if target.is_dir() and not target.is_symlink():
        target.rename(folder / f"{target.name}.old")
    made.replace(target)
