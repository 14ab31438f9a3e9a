"""`load_predictor`: a saved model for predicting only, ready in a fraction of a second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.storage import load_head
from featx.models.artefact_file import read_artefact
from featx.models.artefact_model import check_answers, read_classifier
from featx.models.image_features import ImageFeatures


class Predictor(ImageFeatures):
    """What `featx.load` gives, but for training: it imports neither scikit-learn nor TensorFlow."""

    def __init__(self, backbone: str, head: Any, **parameters: Any) -> None:
        self.backbone, self.head, self.batch_size = backbone, head, "auto"
        self.views, self.average_views, self.view_policy = 0, False, None
        self.multilabel, self.trust = False, False
        self.__dict__.update(parameters)
        self.novelty_: Any = None
        self.classes_: NDArray[Any] = np.empty(0, np.str_)


def load_predictor(
    path: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    trust: bool = False,
) -> Predictor:
    """Read a ``.featx`` file for predicting; parameters and errors are those of `featx.load`."""
    file = Path(path)
    details, files = read_artefact(file)
    model: Predictor = read_classifier(
        file, details, Predictor, cache=cache, weights=weights, engine=engine, trust=trust
    )
    model.head_ = load_head(files, trust=trust)
    check_answers(file, model, details, files)
    return model
