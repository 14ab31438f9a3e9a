"""The ``.featx`` file: everything that a prediction needs, and nothing that runs.

A zip without compression. ``model.json`` (format version, specification, tap, classes, metrics,
provenance) states the SHA-256 of every other member; the head lies beside it as
`featx.heads.storage` writes it. Loading reads JSON, HDF5 arrays and skops with a list of types
that are allowed: no code of the file runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from featx.exceptions import ArtefactError, CacheFormatError, FeatxError
from featx.heads.storage import dump_head, load_head
from featx.job import as_view_policy
from featx.models.classifier import ImageClassifier
from featx.spec import FeatureSpec, ImagePolicy, ViewPolicy

__all__ = ["load_model", "read_details", "save_model"]

_KIND = "featx-model"
_VERSION = 1
_MEMBERS = ("head.skops", "head.json", "head.h5")
_MAX_BYTES = 4 << 30
_MAX_JSON_BYTES = 256 << 20
_PACKAGES = ("featx", "keras", "numpy", "scikit-learn", "skops", "tensorflow", "pillow")
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
) -> Path:
    """Write a fitted classifier as a ``.featx`` file, whole or not at all.

    Parameters
    ----------
    model : ImageClassifier
        Fitted.
    path : path
        Where to; the folder must exist.
    metrics : dict, optional
        Figures and how they were measured, kept with the model.
    training : dict, optional
        What it was trained on: digest, name, number of images.
    spec : FeatureSpec, optional
        Of the features it was trained on; found out from the model's parameters by default.

    Raises
    ------
    ArtefactError
        If the file cannot be written.
    WeightsError
        If the backbone's weights are not here, so that their digest cannot be stated.
    """
    target = Path(path)
    known = spec or model.spec_ or model.source().spec(image=model.image)
    files = dump_head(model.head_)
    details = {
        "type": _KIND,
        "version": _VERSION,
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
        "metrics": metrics or {},
        "training": training or {},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("model.json", json.dumps(details, indent=2))
            for name, data in files.items():
                archive.writestr(name, data)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ArtefactError(
            f"cannot write {target}: {error.strerror or error}. Name a file with -o, in a "
            "folder that exists and can be written"
        ) from error
    return target


def _views(model: ImageClassifier) -> dict[str, Any]:
    """Return what a prediction has to know of views, nothing where there are none."""
    if not model.views:
        return {}
    policy = replace(as_view_policy(model.view_policy), index=0)
    kept = {"count": model.views, "average": model.average_views, "policy": policy.to_dict()}
    return {"views": kept}


def _read_views(details: dict[str, Any]) -> dict[str, Any]:
    kept = details.get("views")
    if kept is None:
        return {}
    return {
        "views": int(kept["count"]),
        "average_views": bool(kept["average"]),
        "view_policy": ViewPolicy(**kept["policy"]),
    }


def _absolute_backbone(backbone: str) -> str:
    if not backbone.startswith("file:"):
        return backbone
    return f"file:{_absolute(backbone.removeprefix('file:'))}"


def _absolute(weights: str | os.PathLike[str] | None) -> str | None:
    if weights is None:
        return None
    path = Path(weights).expanduser()
    return str(path.resolve()) if path.is_file() else os.fspath(weights)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return repr(value)


def _versions() -> dict[str, str]:
    found = {}
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
        The backbone's weights (or the network, for a ``file:`` backbone), where they are not
        found where they were.
    engine : str, default "auto"
        Key of `featx.engines.select.ENGINES`.
    trust : bool, default False
        Needed for heads whose format can carry more than numbers, see `featx.heads.storage`.

    Raises
    ------
    ArtefactError
        If the file is damaged, foreign, unsafe, or of a later version.
    """
    details, files = _read(Path(path))
    head = load_head(files, trust=trust)
    try:
        spec = FeatureSpec.from_dict(details["spec"])
        parameters = details["parameters"]
        backbone = str(parameters["backbone"])
        if backbone.startswith("file:") and weights is not None:
            backbone, weights = f"file:{os.fspath(weights)}", None
        model = ImageClassifier(
            backbone,
            parameters["head"],
            weights=weights if weights is not None else details["weights"],
            tap=str(details["tap"]),
            input_size=spec.input_size_px,
            preprocessing=parameters["preprocessing"],
            image=None if spec.image == ImagePolicy() else spec.image,
            **_read_views(details),
            cache=cache,
            engine=engine,
            multilabel=bool(parameters.get("multilabel", False)),
            random_state=parameters["random_state"],
        )
        model.head_ = head
        model.classes_ = np.array(details["classes"]) if model.multilabel else head.classes_
        model.n_features_in_ = int(details["n_features"])
        model.spec_ = spec
        model.weights_sha256_ = spec.weights_sha256
        stated = range(len(model.classes_)) if model.multilabel else details["classes"]
        if head.classes_.tolist() != list(stated):
            raise ArtefactError(f"{path} states other classes than its head has: it was changed")
        if int(head.n_features_in_) != model.n_features_in_:
            raise ArtefactError(f"{path} states another number of features than its head takes")
    except CacheFormatError as error:
        raise ArtefactError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FeatxError):
            raise
        raise ArtefactError(f"{path} is damaged: model.json lacks or distorts {error}") from error
    return model


def read_details(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``model.json`` says, without loading the head.

    Raises
    ------
    ArtefactError
        If the file is damaged, foreign, or of a later version.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    if not path.is_file():
        raise ArtefactError(
            f"expected a model saved by featx, received {str(path)!r}, which is no file"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_members(path, archive)
    except FeatxError:
        raise
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        NotImplementedError,
        RecursionError,
        OverflowError,
    ) as error:
        raise ArtefactError(
            f"{path} is no model saved by featx, or was cut short or changed: {error}"
        ) from error


def _read_members(path: Path, archive: zipfile.ZipFile) -> tuple[dict[str, Any], dict[str, bytes]]:
    members = archive.infolist()
    names = [member.filename for member in members]
    if "model.json" not in names:
        raise ArtefactError(f"{path} is a zip, but no model saved by featx: it has no model.json")
    foreign = set(names) - {"model.json", *_MEMBERS}
    if foreign or len(set(names)) != len(names):
        raise ArtefactError(f"{path} has members that no featx model has: {sorted(foreign)[:5]}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ArtefactError(f"{path} is compressed, which no model saved by featx is: refused")
    size = path.stat().st_size
    if sum(member.file_size for member in members) > min(size, _MAX_BYTES):
        raise ArtefactError(f"{path} claims more bytes than it has: refused")
    if archive.getinfo("model.json").file_size > _MAX_JSON_BYTES:
        raise ArtefactError(f"{path}: model.json is absurdly large: refused")
    details = json.loads(archive.read("model.json"))
    if not isinstance(details, dict) or details.get("type") != _KIND:
        raise ArtefactError(f"{path}: model.json does not describe a featx model")
    if details.get("version") != _VERSION:
        raise ArtefactError(
            f"{path} is a model of format version {details.get('version')!r}, this featx reads "
            f"version {_VERSION}: upgrade featx"
        )
    stated = details.get("files")
    if not isinstance(stated, dict) or set(stated) != set(names) - {"model.json"}:
        raise ArtefactError(f"{path}: its members are not those that model.json states")
    files = {name: archive.read(name) for name in stated}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != stated[name]:
            raise ArtefactError(f"{path}: {name} does not have the digest stated with it")
    return details, files
