"""The ``.featx`` file: everything that a prediction needs, and nothing that runs.

A zip without compression. ``model.json`` (format version, specification, tap, classes, metrics,
provenance) states the SHA-256 of every other member; the head lies beside it as
`featx.heads.storage` writes it. Loading reads JSON and arrays; with trust, skops reads any
estimator of scikit-learn. ``docs/artefact.md`` states the format, ``docs/security.md`` what is
refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import zipfile
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from featx.backbones.networks import locate_network
from featx.backbones.source import canonical_name
from featx.backbones.weights import (
    DESCRIPTION,
    NETWORK,
    OWN_NETWORK,
    is_tuned_file,
    member_bytes,
    read_tuned,
)
from featx.exceptions import ArtefactError
from featx.extraction.job import as_view_policy
from featx.files.durable import written_whole
from featx.files.outputs import is_model, refuse_replacing
from featx.heads.novelty import dump_novelty
from featx.heads.storage import DESCRIPTION as STEPS
from featx.heads.storage import dump_head, load_head
from featx.models.artefact_file import KIND, NOVELTY, VERSION, read_artefact
from featx.models.artefact_model import check_answers, read_classifier
from featx.models.classifier import ImageClassifier
from featx.models.metrics import MOST_CONFUSED
from featx.spec import FeatureSpec

_PACKAGES = (
    "featx", "h5py", "keras", "numpy", "openvino", "pillow", "scikit-learn", "skops", "tensorflow"
)  # fmt: skip
_PARAMETERS = (
    *("backbone", "head", "tap", "input_size", "preprocessing", "random_state", "multilabel"),
)


def save_model(
    model: ImageClassifier,
    path: str | os.PathLike[str],
    *,
    metrics: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    spec: FeatureSpec | None = None,
    command: str | None = None,
    network: bytes | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a fitted classifier as a ``.featx`` file, whole or not at all.

    Parameters
    ----------
    model : ImageClassifier
        Fitted.
    path : path
        Where to; the folder must exist. A model that is there is replaced.
    metrics : dict, optional
        Figures and how they were measured, kept with the model.
    training : dict, optional
        What it was trained on: digest, name, number of images; by default what the model knows.
    spec : FeatureSpec, optional
        Of the features it was trained on; found out from the model's parameters by default.
    command : str, optional
        The command line that made it.
    network : bytes, optional
        The backbone's own weights, kept in the file: as Keras writes them for a backbone of the
        catalogue, else the network as ``.keras``. Those that come from a ``.featx`` file are kept
        without being asked.
    overwrite : bool, default False
        Whether to replace a file that is no model made by featx.

    Returns
    -------
    path : Path
        The file.

    Raises
    ------
    ArtefactError
        If the file cannot be written.
    OutputError
        If there is a file that is no model made by featx.
    WeightsError
        If the backbone's weights are not here, so that their digest cannot be stated.
    """
    target = Path(path)
    refuse_replacing(target, is_model, "model", force=overwrite)
    known = spec or model.spec_ or model.source().spec(image=model.image)
    files = dump_head(model.head_)
    novelty = {}
    if model.novelty_ is not None:
        novelty["novelty"], files[NOVELTY] = dump_novelty(model.novelty_)
    carried, members = _network(model, known, network)
    files |= members
    details = {
        "type": KIND,
        "version": VERSION if STEPS in files else 2 if carried else 1,
        "spec": known.to_dict(),
        "tap": model.tap,
        "classes": model.classes_.tolist(),
        "n_features": int(model.n_features_in_),
        "parameters": {
            **{name: _plain(getattr(model, name)) for name in _PARAMETERS},
            "backbone": _absolute_backbone(model.backbone),
        },
        **_views(model),
        "weights": _absolute(model.weights),
        **carried,
        **novelty,
        "metrics": _plain(_without_large_tables(metrics or {})),
        "training": _plain(model.training_ if training is None else training),
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    _write(target, {DESCRIPTION: json.dumps(details, indent=2, allow_nan=False).encode(), **files})
    return target


def _network(
    model: ImageClassifier, spec: FeatureSpec, network: bytes | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the network that belongs into the file, nothing where others have it too."""
    own = model.backbone.removeprefix("file:") if model.backbone.startswith("file:") else ""
    carrier = own or model.weights
    tuned = read_tuned(carrier) if is_tuned_file(carrier) else None
    if network is None:
        if tuned is None:
            return {}, {}
        network = member_bytes(tuned)
    if tuned is not None:
        architecture = tuned.architecture
    else:
        outside = locate_network(model.backbone) is not None
        architecture = "" if outside else canonical_name(model.backbone)
    if hashlib.sha256(network).hexdigest() != spec.weights_sha256:
        raise ArtefactError(
            "the network to be saved is not the one that the head was trained on: extract its "
            "features again, and train on these"
        )
    member = NETWORK if architecture else OWN_NETWORK
    return {"network": {"architecture": architecture}}, {member: network}


def _write(target: Path, files: dict[str, bytes]) -> None:
    try:
        with (
            written_whole(target) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        ):
            for name, data in files.items():
                archive.writestr(name, data)
    except OSError as error:
        raise ArtefactError(
            f"cannot write {target}: {error.strerror or error}. Name a file with -o, in a "
            "folder that exists and can be written"
        ) from error


def _without_large_tables(metrics: dict[str, Any]) -> dict[str, Any]:
    """Leave out a confusion matrix of thousands of classes, which would be most of the file."""
    if len(metrics.get("confusion", ())) <= MOST_CONFUSED:
        return metrics
    return {name: value for name, value in metrics.items() if name != "confusion"}


def _views(model: ImageClassifier) -> dict[str, Any]:
    """Return what a prediction has to know of views, nothing where there are none."""
    if not model.views:
        return {}
    policy = replace(as_view_policy(model.view_policy), index=0)
    kept = {"count": model.views, "average": model.average_views, "policy": policy.to_dict()}
    return {"views": kept}


def _absolute_backbone(backbone: str) -> str:
    prefix, colon, path = backbone.partition(":")
    if locate_network(backbone) is None:
        return backbone
    return f"{prefix}{colon}{_absolute(path)}"


def _absolute(weights: str | os.PathLike[str] | None) -> str | None:
    if weights is None:
        return None
    path = Path(weights).expanduser()
    return str(path.resolve()) if path.exists() else os.fspath(weights)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; what JSON has no number for becomes null."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return repr(value)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def load_model(
    path: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    trust: bool = False,
) -> ImageClassifier:
    """Read a ``.featx`` file; `featx.load` is this function.

    Parameters
    ----------
    path : path
        The file.
    cache : path, optional
        A cache folder whose features are used.
    weights : path, optional
        The backbone's weights (or the network, for one of one's own), where they are not found
        where they were.
    engine : str, default "auto"
        Key of `featx.engines.engine.ENGINES`.
    trust : bool, default False
        Needed for scikit-learn estimators that featx does not check, see `featx.heads.storage`, and
        for reading images with a ``savedmodel:`` backbone, whose graph may do anything.

    Raises
    ------
    ArtefactError
        If the file is damaged, foreign, unsafe, or of a later version.
    """
    file = Path(path)
    details, files = read_artefact(file)
    model: ImageClassifier = read_classifier(
        file, details, ImageClassifier, cache=cache, weights=weights, engine=engine, trust=trust
    )
    model.head_ = load_head(files, trust=trust)
    check_answers(file, model, details, files)
    return model


def read_details(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``model.json`` says, without loading the head."""
    return read_artefact(Path(path))[0]
