"""`export`: a model as one file that other programs run."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sklearn.utils.validation import check_is_fitted

from featx.exceptions import DatasetError, ExportError
from featx.exporting.description import (
    answer_names,
    as_json,
    describe,
    description_path,
    placed_whole,
    refuse_existing,
    report_path,
    serving_code,
)
from featx.exporting.formats import FORMATS, OUTPUT, VALUES, Format, choose_format, require_onnx
from featx.exporting.graph import Part, build_graph, head_steps
from featx.exporting.onnx_graph import write_joined
from featx.exporting.verification import (
    TOLERANCE,
    Calibration,
    calibration_images,
    find_images,
    require_one_view,
    training_images,
    verify_export,
)
from featx.files.safe_json import Json
from featx.images.dataset import ImageDataset
from featx.models.classifier import ImageClassifier, load_model
from featx.models.image_model import ImageModel
from featx.models.model_file import read_details
from featx.models.regressor import ImageRegressor
from featx.quiet import quiet_import
from featx.spec import FeatureSpec

_LOG = logging.getLogger("featx")


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """What `export` wrote.

    Parameters
    ----------
    path : Path
        The file or folder.
    description : dict
        What lies beside it as ``PATH.json``: class names, input, output.
    verification : dict or None
        The report of `featx.verify_export`.
    calibrated_on : str
        Name of the images that int8 ranges were taken from.
    """

    path: Path
    description: Json
    verification: Json | None = None
    calibrated_on: str = ""

    @property
    def size_bytes(self) -> int:
        """Size of the export without what lies beside it."""
        files = FORMATS[self.description["format"]].files(self.path)
        every = [f for file in files for f in ([file] if file.is_file() else file.rglob("*"))]
        return sum(file.stat().st_size for file in every if file.is_file())

    @property
    def serving(self) -> dict[str, str]:
        """The few lines that run it, by language."""
        return serving_code(self.path, self.description)


def export(
    model: ImageClassifier | ImageRegressor | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    int8: bool = False,
    calibrate: object = None,
    verify: object = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
) -> Export:
    """Write a model as one network from uint8 RGB pixels to probabilities, or to numbers.

    The backbone with its preprocessing, the pooling, the scaler or principal components and the
    head become one graph, which needs no featx. What remains for the program that serves it is
    decoding and resizing; the names of the classes lie beside it as ``PATH.json``.

    Parameters
    ----------
    model : ImageClassifier, ImageRegressor or path
        Fitted, or the path of a ``.featx`` file. The output of a regression is called ``values``.
    path : path, optional
        Where to. By default the model's own path with the end of the format.
    format : str, optional
        ``"keras"``, ``"savedmodel"``, ``"tflite"``, ``"onnx"`` or ``"openvino"``; by default what
        `path` ends in.
    int8 : bool, default False
        Whether weights and activations are quantised to 8 bits, for ``"tflite"`` alone.
    calibrate : ImageDataset, path or str, optional
        Typical images for `int8`, of which up to 100 are used. By default those that the model was
        trained on, where the cache knows them, else those of `verify`. An image is either
        calibrated or verified on, see `featx.verify_export`.
    verify : ImageDataset, path or str, optional
        Images on which the written file is compared with the model, see `featx.verify_export`.
    tolerance : float, default 1e-3
        Largest difference of a probability in that comparison, or of a number in deviations of
        training.
    overwrite : bool, default False
        Whether to replace what is at `path`.
    cache : path, optional
        Where names of datasets, and features that are known already, are looked up.
    weights, trust
        As in `featx.load`, where `model` is a path.

    Returns
    -------
    Export
        ``path``, ``description``, ``verification`` and ``serving``.

    Raises
    ------
    ExportError
        If there is something at `path`, the head cannot be exported, a conversion fails, or the
        written file does not agree with the model.
    MissingExtraError
        If the format needs a package that is not installed.
    WeightsError
        If the backbone's weights are not here.
    DatasetError
        If `calibrate` or `verify` has no image that can be read.

    Examples
    --------
    >>> done = export("photos.featx", "photos.onnx", verify="photos/")  # doctest: +SKIP
    >>> done.verification["largest_difference"]  # doctest: +SKIP
    2.4e-07
    >>> print(done.serving["python"])  # doctest: +SKIP
    """
    row = choose_format(format, None if path is None else Path(path))
    if int8 and not row.int8:
        raise ExportError(f"the format {row.name} has no int8 here: use tflite, or leave int8 out")
    target = _target(model, path, row)
    if row.name == "onnx":
        require_onnx()
    outcome = [*row.files(target), description_path(target)]
    if not overwrite:
        refuse_existing(outcome)
    training: Json = {}
    if isinstance(model, ImageModel):
        fitted = model
    else:
        fitted = load_model(model, cache=cache, weights=weights, trust=trust)
        training = read_details(model)["training"]
    check_is_fitted(fitted, "head_")
    require_one_view(fitted)
    steps = head_steps(fitted.head_)
    parts = [
        Part(source, branch.taps)
        for source, branch in zip(fitted.sources(), fitted.branches, strict=True)
    ]
    if any(not part.source.is_native for part in parts):
        _require_backend(row)
    for part in parts:
        if row.name == "keras" and part.source.name.startswith("savedmodel:"):
            raise ExportError(
                f"a Keras file holds layers, and {part.source.name} is a graph of TensorFlow that "
                "it would only point to: take --format savedmodel, tflite, onnx or openvino"
            )
    specs = fitted.plain_specs()
    spec = specs[0]
    sizes = {f"{height}x{width}" for height, width in (spec.input_size_px for spec in specs)}
    if len(sizes) > 1:
        raise ExportError(
            f"the networks of the model take images of {' and '.join(sorted(sizes))} px, and an "
            "export takes one image: train it again with one --input-size (input_size=...)"
        )
    precisions = {spec.precision.partition(":")[0] for spec in specs} - {"f32"}
    if precisions:
        _LOG.warning(
            "the model was trained on features in %s: the export computes in f32, and is compared "
            "with the model's predictions in f32",
            ", ".join(sorted(precisions)),
        )
    checked = None if verify is None else find_images(verify, cache)
    ranges = _calibration(calibrate, checked, training, spec, cache) if int8 else None
    description = describe(
        format=row.name,
        precision="int8" if int8 else "float32",
        model=fitted,
        spec=spec,
        calibration=None if ranges is None else ranges.describe(),
    )
    output = VALUES if fitted.regression else OUTPUT
    names = answer_names(description)
    native = any(part.source.is_native for part in parts)
    network = None if native else build_graph(parts, steps, output)
    with placed_whole([description_path(target), *row.files(target)]) as folder:
        made = folder / target.name
        pixels = None if ranges is None else ranges.pixels
        if network is None:
            write_joined(row, parts, steps, made, classes=names, output=output)
        else:
            row.write(network, made, classes=names, calibration=pixels)
        description_path(made).write_text(as_json(description), "utf-8")
    report_path(target).unlink(missing_ok=True)  # it was about what was there before
    report = None
    if checked is not None:
        report = verify_export(fitted, target, checked, tolerance=tolerance)
    return Export(target, description, report, "" if ranges is None else ranges.name)


def planned_files(
    model: str | os.PathLike[str], path: str | os.PathLike[str] | None, style: str | None
) -> list[Path]:
    """Return what `export` would write: the files or the folder, and the description."""
    row = choose_format(style, None if path is None else Path(path))
    target = _target(model, path, row)
    return [*row.files(target), description_path(target)]


def _target(
    model: ImageClassifier | ImageRegressor | str | os.PathLike[str],
    path: str | os.PathLike[str] | None,
    row: Format,
) -> Path:
    if path is not None:
        return Path(path)
    if isinstance(model, ImageModel):
        raise ExportError("expected a path to export to, received none: give path=...")
    file = Path(model)
    return file.with_name(f"{file.stem}{row.suffix or f'_{row.name}'}")


def _require_backend(row: Format) -> None:
    with quiet_import():
        import keras
    backend = keras.backend.backend()
    if row.name != "keras" and backend != "tensorflow":
        raise ExportError(
            f"the format {row.name} is converted by TensorFlow: expected the Keras backend "
            f"'tensorflow', received {backend!r}; set KERAS_BACKEND=tensorflow"
        )


def _calibration(
    calibrate: object,
    checked: ImageDataset | None,
    training: Json,
    spec: FeatureSpec,
    cache: str | os.PathLike[str] | None,
) -> Calibration:
    if calibrate is not None:
        return calibration_images(find_images(calibrate, cache), spec, checked)
    known = training_images(training, cache)
    if known is not None and checked is None:
        return calibration_images(known, spec)
    if known is not None:
        with suppress(DatasetError):  # the images of training may have gone since
            return calibration_images(known, spec, checked)
    if checked is not None:
        return calibration_images(checked, spec, checked)
    raise ExportError(
        "int8 takes its ranges from real images: name some with --calibrate DATA "
        "(calibrate=...), a folder or a dataset of the cache"
    )
