"""What ``model.json`` says becomes a classifier, and has to agree with the head beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones.networks import locate_network
from featx.backbones.source import canonical_name
from featx.backbones.taps import parse_tap
from featx.backbones.weights import NETWORK, OWN_NETWORK
from featx.exceptions import ArtefactError, CacheFormatError, FeatxError, reason
from featx.extraction.sources import BackboneChoice
from featx.heads.novelty import load_novelty
from featx.models.artefact_file import NOVELTY
from featx.spec import FeatureSpec, ViewPolicy

_MOST_FEATURES = 1 << 24
_MOST_PX = 1 << 14
_MOST_VIEWS = 1000


def read_classifier(
    path: Path,
    details: dict[str, Any],
    make: Callable[..., Any],
    *,
    cache: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    engine: str,
    trust: bool = False,
) -> Any:
    """Make the classifier that ``model.json`` describes, without its head."""
    try:
        described = _with_own_network(path, details)
        model = _read(described, make, cache, weights, engine)
    except CacheFormatError as error:
        raise ArtefactError(f"{path}: {error}") from error
    except FeatxError as error:
        raise ArtefactError(f"{path} is damaged, or of another featx: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtefactError(f"{path} is damaged: model.json lacks or distorts {error}") from error
    model.trust = trust
    stated = details.get("training")
    model.training_ = stated if isinstance(stated, dict) else {}
    return model


def _with_own_network(path: Path, details: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a model that takes its network, where it has one, from its file."""
    own = [name for name in (NETWORK, OWN_NETWORK) if name in details["files"]]
    if not own:
        return details
    stated, expected = details["files"][own[0]], details["spec"]["weights_sha256"]
    if stated != expected:
        raise ArtefactError("its network is not the one that its specification is of")
    backbone = details["parameters"]["backbone"]
    if locate_network(backbone) is None:
        return {**details, "weights": str(path.resolve())}
    parameters = {**details["parameters"], "backbone": f"file:{path.resolve()}"}
    spec = {**details["spec"], "backbone": canonical_name(parameters["backbone"])}
    return {**details, "parameters": parameters, "spec": spec}


def _read(
    details: dict[str, Any],
    make: Callable[..., Any],
    cache: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    engine: str,
) -> Any:
    spec = FeatureSpec.from_dict(details["spec"])
    # Imported features have no images, and so a size of 0.
    for side in spec.input_size_px:
        _require_range("input_size_px", side, _MOST_PX, least=0)
    parameters, tap = details["parameters"], _typed(details["tap"], str, "tap")
    if tap != "imported":
        parse_tap(tap)
    backbone = _typed(parameters["backbone"], str, "backbone")
    if canonical_name(backbone) != spec.backbone:
        raise ArtefactError(
            f"its specification is of {spec.backbone}, its parameters are of {backbone}"
        )
    kept = details["weights"]
    if kept is not None:
        _typed(kept, str, "weights")
    prefix = backbone.partition(":")[0]
    if weights is not None and locate_network(backbone) is not None:
        backbone, weights = f"{prefix}:{os.fspath(weights)}", None
    choice = BackboneChoice(
        backbone,
        weights if weights is not None else kept,
        preprocessing=parameters["preprocessing"],
    )
    model = make(
        head=parameters["head"],
        **choice.completed(spec).arguments(),
        tap=tap,
        image=spec.image,
        **_read_views(details),
        cache=cache,
        engine=engine,
        multilabel=parameters.get("multilabel", False) is True,
        random_state=parameters["random_state"],
    )
    model.n_features_in_ = _typed(details["n_features"], int, "n_features")
    _require_range("n_features", model.n_features_in_, _MOST_FEATURES)
    if not isinstance(details["classes"], list):
        raise TypeError("classes")
    model.spec_, model.weights_sha256_ = spec, spec.weights_sha256
    return model


def _typed(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name}: {type(value).__name__} in place of {kind.__name__}")
    return value


def _require_range(name: str, value: int, most: int, *, least: int = 1) -> None:
    if not least <= value <= most:
        raise ArtefactError(f"{name} is {value}, expected {least} to {most}")


def _read_views(details: dict[str, Any]) -> dict[str, Any]:
    kept = details.get("views")
    if kept is None:
        return {}
    _require_range("number of views", _typed(kept["count"], int, "views"), _MOST_VIEWS)
    return {
        "views": kept["count"],
        "average_views": bool(kept["average"]),
        "view_policy": ViewPolicy.from_dict(kept["policy"]),
    }


def check_answers(
    path: Path, model: Any, details: dict[str, Any], files: Mapping[str, bytes]
) -> None:
    """Compare the head with what the file says of it, have it answer once, and add the rest."""
    try:
        complaint = _complaint(model, details)
    except Exception as error:
        raise ArtefactError(
            f"{path} has a head that does not work ({reason(error)}): its arrays "
            "do not fit one another, or another version of scikit-learn made it; train again"
        ) from error
    if complaint:
        raise ArtefactError(f"{path} {complaint}")
    if NOVELTY in files:
        said = details.get("novelty")
        if not isinstance(said, dict):
            raise ArtefactError(f"{path} does not describe its {NOVELTY}: it was changed")
        try:
            model.novelty_ = load_novelty(said, files[NOVELTY], model.n_features_in_)
        except ArtefactError as error:
            raise ArtefactError(f"{path}: {error}") from error


def _complaint(model: Any, details: dict[str, Any]) -> str:
    head, width = model.head_, model.n_features_in_
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
        if proba.shape != (2, len(model.classes_)) or not _are_probabilities(proba):
            return "has a head that gives no probabilities: refused"
    return ""


def _are_probabilities(values: np.ndarray[Any, Any]) -> bool:
    return bool(np.isfinite(values).all() and (values >= -1e-6).all() and (values <= 1.001).all())
