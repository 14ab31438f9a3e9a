"""What a user's type checker sees of featx; mypy checks this file with the package."""

from typing import assert_type

import featx
from featx.cache.features import Features
from featx.models.classifier import ImageClassifier
from featx.models.regressor import ImageRegressor
from featx.models.search import SearchResult
from featx.models.training import TrainingResult


def example() -> None:
    """Train and search on a folder; never run."""
    features = featx.extract("photos/", backbone="tiny")
    assert_type(features, Features)
    assert_type(featx.train(features), TrainingResult)
    assert_type(featx.search(features), SearchResult)
    assert_type(featx.load("photos.featx"), ImageClassifier | ImageRegressor)
