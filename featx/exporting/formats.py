"""The table of formats: data, and the paths of the two functions of each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from featx.exceptions import ExportError, UnknownNameError
from featx.exporting.conversion import Opened


@dataclass(frozen=True, slots=True)
class Format:
    """A format to export to.

    Parameters
    ----------
    name : str
        What the user types.
    summary : str
        One line for lists.
    suffix : str
        End of the path; empty for a folder.
    writer, runner : str
        Import paths of the functions that write and open it.
    beside : str, default ""
        Suffix of a second file that belongs to it.
    int8 : bool, default False
        Whether it can be quantised.
    """

    name: str
    summary: str
    suffix: str
    writer: str
    runner: str
    beside: str = ""
    int8: bool = False

    def files(self, path: Path) -> list[Path]:
        """Return what an export to a path consists of, the path itself last."""
        return [*([path.with_suffix(self.beside)] if self.beside else []), path]

    def write(self, network: Any, path: Path, **options: Any) -> None:
        """Write a network."""
        _imported(self.writer)(network, path, **options)

    def open(self, path: Path) -> Opened:
        """Open what was written in its own runtime."""
        opened: Opened = _imported(self.runner)(path)
        return opened


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(f"featx.exporting.{module}"), name)


_ROWS = (
    Format(
        "keras",
        "Keras 3, any backend",
        ".keras",
        "keras_format.write_keras",
        "keras_format.run_keras",
    ),
    Format(
        "savedmodel",
        "TensorFlow and TensorFlow Serving (a folder)",
        "",
        "tensorflow_formats.write_saved_model",
        "tensorflow_formats.run_saved_model",
    ),
    Format(
        "tflite",
        "LiteRT: phones, browsers, small boards",
        ".tflite",
        "tensorflow_formats.write_tflite",
        "tensorflow_formats.run_tflite",
        int8=True,
    ),
    Format(
        "onnx",
        "ONNX Runtime, in any language and in browsers",
        ".onnx",
        "onnx_format.write_onnx",
        "onnx_format.run_onnx",
    ),
    Format(
        "openvino",
        "OpenVINO on CPUs (.xml, and .bin beside it)",
        ".xml",
        "openvino_format.write_openvino",
        "openvino_format.run_openvino",
        beside=".bin",
    ),
)

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
"""Every format by its name."""


def choose_format(name: str | None, path: Path | None) -> Format:
    """Return the format of a name, or that a path's end stands for."""
    if name is None:
        found = [row for row in _ROWS if path is not None and row.suffix == path.suffix.lower()]
        if not found or not found[0].suffix:
            raise ExportError(
                f"expected a format, one of {', '.join(FORMATS)}, received none: name it with "
                "--format (format=...)"
            )
        return found[0]
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    row = FORMATS[name]
    if row.suffix and path is not None and path.suffix != row.suffix:
        raise ExportError(
            f"expected a path that ends in {row.suffix} for the format {name}, received {path}"
        )
    return row
