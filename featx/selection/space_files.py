"""Search spaces in files: JSON, TOML, and YAML where PyYAML is installed."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from featx.exceptions import HeadError, MissingExtraError, reason

_MOST_BYTES = 1 << 20


def _json(text: str) -> Any:
    return json.loads(text)


def _toml(text: str) -> Any:
    found = tomllib.loads(text)
    # TOML has no list at its top: several parts are [[parts]].
    return found["parts"] if list(found) == ["parts"] else found


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise MissingExtraError(
            "PyYAML", extra="hpo", purpose="reading a search space from YAML (JSON and TOML do too)"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


_READERS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {".json": _json, ".toml": _toml, ".yaml": _yaml, ".yml": _yaml}
)


def read_space_file(path: str | os.PathLike[str]) -> Any:
    """Return what a file holds, for `featx.selection.space.SearchSpace.read`."""
    file = Path(path).expanduser()
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise HeadError(
            f"expected a search space in a file that ends in {', '.join(_READERS)}, received "
            f"{str(path)!r}"
        )
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise HeadError(f"{file} is larger than 1 MiB, which no search space is")
        return reader(file.read_text("utf-8"))
    except OSError as error:
        raise HeadError(
            f"the search space {str(path)!r} cannot be read ({error.strerror or error}): name a "
            "file that exists"
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, HeadError):
            raise
        raise HeadError(
            f"{file} is no valid {file.suffix[1:].upper()}: {reason(error)}: see docs/search.md "
            "for the form of a search space"
        ) from error
