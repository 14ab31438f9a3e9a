"""The ``.featx`` file: everything that a prediction needs, and nothing that runs.

A zip without compression. ``model.json`` (format version, specification, tap, classes, metrics,
provenance) states the SHA-256 of every other member; the head lies beside it as
`featx.heads.storage` writes it. ``docs/artefact.md`` states the format, ``docs/security.md`` what
is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.networks import NETWORK_KINDS, locate_network
from featx.backbones.source import BackboneSource, canonical_name
from featx.backbones.taps import parse_tap
from featx.backbones.weights import (
    DESCRIPTION,
    NETWORK,
    NETWORKS,
    OWN_NETWORK,
    is_tuned_file,
    member_bytes,
    network_prefix,
    open_model_zip,
    read_description,
    read_tuned,
)
from featx.exceptions import ArtefactError, CacheFormatError, FeatxError, reason
from featx.extraction.backbone_choice import BackboneChoice, Branch, branch_arguments
from featx.extraction.job import as_view_policy
from featx.files.claims import shortened
from featx.files.outputs import Target, as_target, is_model, refuse_replacing, written_whole
from featx.files.safe_json import Json
from featx.files.safe_zip import require_plain_network
from featx.files.stores import local_copy
from featx.heads.decision import Decision
from featx.heads.novelty import dump_novelty, load_novelty
from featx.heads.steps import read_description as read_head_description
from featx.heads.storage import DESCRIPTION as STEPS
from featx.heads.storage import dump_head, load_head
from featx.models.image_features import ImageFeatures
from featx.selection.metrics import MOST_CONFUSED
from featx.spec import FeatureSpec, ViewPolicy

KIND = "featx-model"
VERSION = 5
"""The highest version that is read.

2 has a network of its own, 3 a head of steps, 4 several taps or backbones, an ensemble, or a rule,
5 numbers.
"""
NOVELTY = "novelty.h5"
_MEMBERS = ("head.skops", "head.json", "head.h5", NOVELTY, *NETWORKS)
_MOST_BYTES = 4 << 30


def read_artefact(path: Path) -> tuple[Json, dict[str, bytes]]:
    """Read what ``model.json`` says, and the bytes of every other member."""
    if not path.is_file():
        raise ArtefactError(
            f"expected a model saved by featx, received {str(path)!r}, which is no file"
        )
    try:
        return _read(path)
    except FeatxError:
        raise
    # `zipfile` has no base of its errors: damage shows as any of ten types.
    except Exception as error:
        raise ArtefactError(
            f"{path} is no model saved by featx, or was cut short or changed: {reason(error)}"
        ) from error


def _read(path: Path) -> tuple[Json, dict[str, bytes]]:
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ArtefactError(f"{path} has {size:,} bytes, more than any model of featx: refused")
    with open_model_zip(path) as archive:
        names = archive.namelist()
        if DESCRIPTION not in names:
            raise ArtefactError(
                f"{path} is a zip, but no model saved by featx: it has no {DESCRIPTION}"
            )
        details = read_description(archive)
        # Before the members: those of a later version may be others.
        _require_version(path, details)
        others = set(names) - {DESCRIPTION}
        if others - set(_MEMBERS):
            foreign = [shortened(name) for name in sorted(others - set(_MEMBERS))[:3]]
            raise ArtefactError(f"{path} has members that no featx model has: {foreign}")
        stated = details.get("files")
        if not isinstance(stated, dict) or set(stated) != others:
            raise ArtefactError(f"{path}: its members are not those that {DESCRIPTION} states")
        files = {name: archive.read(name) for name in stated}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != stated[name]:
            raise ArtefactError(f"{path}: {name} does not have the digest stated with it")
    return details, files


def _require_version(path: Path, details: Json) -> None:
    if details.get("type") != KIND:
        raise ArtefactError(f"{path}: {DESCRIPTION} does not describe a featx model")
    version = details.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ArtefactError(f"{path} states no format version, received {version!r}: refused")
    if version > VERSION:
        raise ArtefactError(
            f"{path} is a model of format version {version}, this featx reads "
            f"version {VERSION}: upgrade featx"
        )


_MOST_FEATURES = 1 << 24
_MOST_PX = 1 << 14
_MOST_VIEWS = 1000
_MOST_BLOCKS = 1000


def read_model(
    make: Callable[..., Any],
    path: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    engine: str,
    trust: bool,
) -> Any:
    """Return the model of a file, made by what takes its parameters; see `featx.load`."""
    file = local_copy(path)
    details, files = read_artefact(file)
    try:
        described = _with_own_network(file, details)
        parameters, specs = _read_parameters(described, weights)
        model = make(**parameters, cache=cache, engine=engine)
        model.n_features_in_ = _typed(described["n_features"], int, "n_features")
        _require_range("n_features", model.n_features_in_, _MOST_FEATURES)
        if not model.regression:
            _typed(described["classes"], list, "classes")
    except CacheFormatError as error:
        raise ArtefactError(f"{file}: {error}") from error
    except FeatxError as error:
        raise ArtefactError(f"{file} is damaged, or of another featx: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtefactError(f"{file} is damaged: model.json lacks or distorts {error}") from error
    model.specs_, model.trust = specs, trust
    training = details.get("training")
    model.training_ = training if isinstance(training, dict) else {}
    model.head_ = load_head(files, trust=trust)
    _check_head(file, model, details)
    if "decision" in details:
        try:
            model.decision_ = Decision.from_dict(
                details["decision"], len(model.classes_), multilabel=model.multilabel
            )
        except ArtefactError as error:
            raise ArtefactError(f"{file}: {error}") from error
    if NOVELTY in files:
        novelty = details.get("novelty")
        if not isinstance(novelty, dict):
            raise ArtefactError(f"{file} does not describe its {NOVELTY}: it was changed")
        try:
            model.novelty_ = load_novelty(novelty, files[NOVELTY], model.n_features_in_)
        except ArtefactError as error:
            raise ArtefactError(f"{file}: {error}") from error
    return model


def _with_own_network(path: Path, details: Json) -> Json:
    """Return the description of a model that takes its network, where it has one, from its file."""
    networks = [name for name in NETWORKS if name in details["files"]]
    if not networks:
        return details
    stated, expected = details["files"][networks[0]], details["spec"]["weights_sha256"]
    if stated != expected:
        raise ArtefactError("its network is not the one that its specification is of")
    backbone = details["parameters"]["backbone"]
    if locate_network(backbone) is None:
        return {**details, "weights": str(path.resolve())}
    name = f"{network_prefix(networks[0])}:{path.resolve()}"
    parameters = {**details["parameters"], "backbone": name}
    spec = {**details["spec"], "backbone": canonical_name(parameters["backbone"])}
    return {**details, "parameters": parameters, "spec": spec}


def _read_parameters(
    details: Json, weights: str | os.PathLike[str] | None
) -> tuple[Json, tuple[FeatureSpec, ...]]:
    """Return the parameters of the classifier that ``model.json`` describes, and its features."""
    parameters = details["parameters"]
    first = {
        "spec": details["spec"],
        "tap": details["tap"],
        "weights": details["weights"],
        "backbone": parameters["backbone"],
        "preprocessing": parameters["preprocessing"],
    }
    described = [first, *_typed(details.get("beside", []), list, "beside")]
    _require_range("number of backbones", len(described), _MOST_BLOCKS)
    if weights is not None and len(described) > 1:
        raise ArtefactError(
            f"it reads {len(described)} networks, and --weights (weights=...) names the file of "
            "one: put the files into a folder, and name that with FEATX_WEIGHTS"
        )
    read = [_read_branch(branch, weights) for branch in described]
    specs = tuple(spec for _, spec in read)
    if len({spec.image for spec in specs}) > 1:
        raise ArtefactError("its networks decode images by different rules")
    arguments = {
        "head": parameters["head"],
        **branch_arguments([branch for branch, _ in read]),
        "image": specs[0].image,
        "multilabel": parameters.get("multilabel", False) is True,
        "random_state": parameters["random_state"],
    }
    if "values" in details:
        arguments["regression"] = True
    if (views := details.get("views")) is not None:
        _require_range("number of views", _typed(views["count"], int, "views"), _MOST_VIEWS)
        arguments["views"], arguments["average_views"] = views["count"], bool(views["average"])
        arguments["view_policy"] = ViewPolicy.from_dict(views["policy"])
    return arguments, specs


def _read_branch(
    described: Json, weights: str | os.PathLike[str] | None
) -> tuple[Branch, FeatureSpec]:
    """Return a backbone with its taps, and the specification of its features."""
    spec = FeatureSpec.from_dict(described["spec"])
    # Imported features have no images, and so a size of 0.
    for side in spec.input_size_px:
        _require_range("input_size_px", side, _MOST_PX, least=0)
    taps = described["tap"]
    taps = [taps] if isinstance(taps, str) else _typed(taps, list, "tap")
    _require_range("number of taps", len(taps), _MOST_BLOCKS)
    for tap in taps:
        if _typed(tap, str, "tap") != "imported":
            parse_tap(tap)
    backbone = _typed(described["backbone"], str, "backbone")
    if canonical_name(backbone) != spec.backbone:
        raise ArtefactError(
            f"its specification is of {spec.backbone}, its parameters are of {backbone}"
        )
    if described["weights"] is not None:
        _typed(described["weights"], str, "weights")
    if weights is not None and locate_network(backbone) is not None:
        prefix = backbone.partition(":")[0]
        backbone, weights = f"{prefix}:{os.fspath(weights)}", None
    choice = BackboneChoice(
        backbone,
        weights if weights is not None else described["weights"],
        preprocessing=described["preprocessing"],
    )
    return Branch(choice.completed(spec), tuple(taps)), spec


def _typed(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name}: {type(value).__name__} in place of {kind.__name__}")
    return value


def _require_range(name: str, value: int, most: int, *, least: int = 1) -> None:
    if not least <= value <= most:
        raise ArtefactError(f"{name} is {value}, expected {least} to {most}")


def _check_head(path: Path, model: Any, details: Json) -> None:
    """Compare the head with what the file says of it, and have it answer once."""
    try:
        complaint = _complaint(model, details)
    except Exception as error:
        raise ArtefactError(
            f"{path} has a head that does not work ({reason(error)}): its arrays "
            "do not fit one another, or another version of scikit-learn made it; train again"
        ) from error
    if complaint:
        raise ArtefactError(f"{path} {complaint}")


def _complaint(model: Any, details: Json) -> str:
    head, width = model.head_, model.n_features_in_
    if model.regression:
        return _complaint_of_values(model, details)
    stated = details["classes"]
    if head.classes_.tolist() != (list(range(len(stated))) if model.multilabel else stated):
        return "states other classes than its head has: it was changed"
    if int(getattr(head, "n_features_in_", width)) != width:
        return "states another number of features than its head takes"
    model.classes_ = np.array(stated) if model.multilabel else head.classes_
    if hasattr(head, "predict_proba"):
        # Asked once, so that a head whose arrays do not fit is refused here and not later.
        rows = np.stack([np.zeros(width, np.float32), np.ones(width, np.float32)])
        proba = np.asarray(head.predict_proba(rows))
        between = np.isfinite(proba) & (proba >= -1e-6) & (proba <= 1.001)
        if proba.shape != (2, len(model.classes_)) or not between.all():
            return "has a head that gives no probabilities: refused"
    return ""


def _complaint_of_values(model: Any, details: Json) -> str:
    head, width, names = model.head_, model.n_features_in_, details["values"]
    columns = len(names) if isinstance(names, list) else 0
    if not columns or not all(isinstance(name, str) for name in names):
        return "does not name the numbers that it predicts"
    if int(getattr(head, "n_features_in_", width)) != width:
        return "states another number of features than its head takes"
    model.value_names_, model._several = tuple(names), columns > 1
    model.spread_ = np.array(details["spread"], np.float64)
    residuals = details["residuals"]
    model.residuals_ = None if residuals is None else np.array(residuals, np.float64)
    known = [model.spread_] if residuals is None else [model.spread_, *model.residuals_]
    for numbers in known:
        if numbers.shape != (columns,) or not (np.isfinite(numbers) & (numbers >= 0)).all():
            return "has a spread or residuals that are no positive numbers, one a value"
    if residuals is not None and not (np.diff(model.residuals_, axis=0) >= 0).all():
        return "has residuals that do not ascend"
    rows = np.stack([np.zeros(width, np.float32), np.ones(width, np.float32)])
    values = np.asarray(head.predict(rows)).reshape(2, -1)
    if values.shape != (2, columns) or not np.isfinite(values).all():
        return "has a head that does not give the numbers that it names: refused"
    return ""


_PACKAGES = (
    "featx", "h5py", "keras", "numpy", "openvino", "pillow", "scikit-learn", "skops", "tensorflow"
)  # fmt: skip
_PARAMETERS = ("head", "random_state", "multilabel")


def save_model(
    model: ImageFeatures,
    path: str | os.PathLike[str],
    *,
    metrics: Json | None = None,
    training: Json | None = None,
    spec: FeatureSpec | None = None,
    command: str | None = None,
    network: bytes | None = None,
    embed: bool = False,
    overwrite: bool = False,
) -> Target:
    """Write a fitted classifier as a ``.featx`` file, whole or not at all.

    Parameters and errors are those of `featx.ImageClassifier.save`. ``network`` is the backbone
    with weights of its own, kept in the file: as Keras writes them for a backbone of the catalogue,
    else as ``.keras``. With ``embed`` the file of the backbone is kept as it is. Networks that come
    from a ``.featx`` file are kept without being asked.
    """
    target = as_target(path)
    refuse_replacing(target, is_model, "model", force=overwrite)
    specs = model.plain_specs() if spec is None else (spec,)
    first, *beside = [
        _describe_branch(branch, spec) for branch, spec in zip(model.branches, specs, strict=True)
    ]
    joined = bool(beside) or not isinstance(first["tap"], str)
    files = dump_head(model.head_)
    novelty = {}
    if model.novelty_ is not None:
        novelty["novelty"], files[NOVELTY] = dump_novelty(model.novelty_)
    carried, members = _network(model, specs, network, embed)
    files |= members
    metrics = dict(metrics or {})
    if len(metrics.get("confusion", ())) > MOST_CONFUSED:
        del metrics["confusion"]  # of thousands of classes it would be most of the file
    details = {
        "type": KIND,
        "version": _version(model, files, carried, joined=joined),
        "spec": first["spec"],
        "tap": first["tap"],
        **_learnt(model),
        "n_features": int(model.n_features_in_),
        "parameters": {
            **{name: first[name] for name in ("backbone", "tap", "input_size", "preprocessing")},
            **{name: _plain(getattr(model, name)) for name in _PARAMETERS},
        },
        **_views(model),
        "weights": first["weights"],
        **({"beside": beside} if beside else {}),
        **carried,
        **novelty,
        **({} if model.decision_ is None else {"decision": model.decision_.to_dict()}),
        "metrics": _plain(metrics),
        "training": _plain(model.training_ if training is None else training),
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    _write(target, {DESCRIPTION: json.dumps(details, indent=2, allow_nan=False).encode(), **files})
    return target


def _learnt(model: ImageFeatures) -> Json:
    """Return the classes of a model, or the names of its numbers with how far it is off."""
    if not model.regression:
        return {"classes": model.classes_.tolist()}
    return {
        "values": list(model.value_names_),
        "spread": model.spread_.tolist(),
        "residuals": None if model.residuals_ is None else model.residuals_.tolist(),
    }


def _describe_branch(branch: Branch, spec: FeatureSpec) -> Json:
    """Return a backbone with its taps as JSON types."""
    choice = branch.choice
    return {
        "spec": spec.to_dict(),
        "tap": branch.taps[0] if len(branch.taps) == 1 else list(branch.taps),
        "backbone": _absolute_backbone(choice.backbone),
        "input_size": _plain(choice.input_size),
        "preprocessing": choice.preprocessing,
        "weights": _absolute(choice.weights),
    }


def _version(model: ImageFeatures, files: dict[str, bytes], carried: Json, *, joined: bool) -> int:
    """Return the lowest version that knows all that is in a file."""
    if model.regression:
        return VERSION
    new_steps = STEPS in files and read_head_description(files[STEPS])["version"] > 1
    if joined or new_steps or model.decision_ is not None:
        return 4
    return 3 if STEPS in files else 2 if carried else 1


def _network(
    model: ImageFeatures, specs: Sequence[FeatureSpec], network: bytes | None, embed: bool
) -> tuple[Json, dict[str, bytes]]:
    """Return the network that belongs into the file, nothing where others have it too."""
    if len(specs) > 1:
        if embed:
            raise ArtefactError(
                f"--embed (embed=True) keeps one network, and the model reads {len(specs)}: leave "
                "it out, the model then names them by path and digest"
            )
        return {}, {}
    (choice,), (spec,) = [branch.choice for branch in model.branches], specs
    located = locate_network(choice.backbone)
    carrier = choice.weights if located is None else located[1]
    architecture = canonical_name(choice.backbone) if located is None else ""
    member = NETWORK if architecture else OWN_NETWORK
    tuned = read_tuned(carrier) if is_tuned_file(carrier) else None
    if tuned is not None:
        architecture = tuned.architecture
        member = tuned.member if network is None else NETWORK if architecture else OWN_NETWORK
        network = member_bytes(tuned) if network is None else network
    elif network is None and embed:
        (source,) = model.sources()
        if source.weights.path is None or source.weights.source == "bundled":
            return {}, {}  # every featx has it, or draws it
        member, network = _network_of(source)
    if network is None:
        return {}, {}
    if hashlib.sha256(network).hexdigest() != spec.weights_sha256:
        raise ArtefactError(
            "the network to be saved is not the one that the head was trained on: extract its "
            "features again, and train on these"
        )
    return {"network": {"architecture": architecture}}, {member: network}


def _network_of(source: BackboneSource) -> tuple[str, bytes]:
    """Return the file of a backbone, under the name that it has in a model."""
    path = source.weights.path
    assert path is not None
    instead = "Leave --embed (embed=True) out: the model then names it by path and digest"
    kind = NETWORK_KINDS.get(source.kind)
    if path.is_dir() or (kind and kind.beside and kind.beside(path)):
        raise ArtefactError(f"{path} is more than one file, and --embed keeps one. {instead}")
    end = next(
        (end for end in (".weights.h5", ".keras", ".onnx") if path.name.endswith(end)), ".h5"
    )
    member = f"network{end}"
    data = path.read_bytes()
    try:
        require_plain_network(io.BytesIO(data), member)
    except Exception as error:
        raise ArtefactError(
            f"{path} cannot be kept in a model ({reason(error)}): save it uncompressed, in one "
            f"file. {instead}"
        ) from error
    return member, data


def _write(target: Target, files: dict[str, bytes]) -> None:
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


def _views(model: ImageFeatures) -> Json:
    """Return what a prediction has to know of views, nothing where there are none."""
    if not model.views:
        return {}
    policy = replace(as_view_policy(model.view_policy), index=0)
    views = {"count": model.views, "average": model.average_views, "policy": policy.to_dict()}
    return {"views": views}


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


def _plain(value: object) -> object:
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
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def read_details(path: str | os.PathLike[str]) -> Json:
    """Return what ``model.json`` says, without loading the head."""
    return read_artefact(local_copy(path))[0]


class Predictor(ImageFeatures):
    """What `featx.load` gives, but for training: it imports neither scikit-learn nor TensorFlow."""

    def __init__(self, backbone: str | Sequence[str], head: Any, **parameters: Any) -> None:
        self.backbone, self.head, self.batch_size = backbone, head, "auto"
        self.views, self.average_views, self.view_policy = 0, False, None
        self.multilabel, self.trust = False, False
        self.__dict__.update(parameters)
        self.classes_: NDArray[np.generic] = np.empty(0, np.str_)


def load_predictor(
    path: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    trust: bool = False,
) -> Predictor:
    """Read a ``.featx`` file for predicting; parameters and errors are those of `featx.load`."""
    model: Predictor = read_model(
        Predictor, path, cache=cache, weights=weights, engine=engine, trust=trust
    )
    return model
