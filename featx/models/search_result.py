"""`SearchResult`: a fitted classifier, how it was found, and how good it is."""

from __future__ import annotations

import os
from typing import Any

from featx.models.classifier import ImageClassifier
from featx.selection.honest import HonestScore
from featx.selection.leaderboard import Row
from featx.selection.searching import SearchOutcome


class SearchResult:
    """What a search found.

    Parameters
    ----------
    model : ImageClassifier
        The winner, fitted.
    outcome : SearchOutcome
        How it was found.
    training : dict
        Name, number of images and digest of what it was fitted on.

    Attributes
    ----------
    best : Row
        The winner's line of the leaderboard. Its score is the one that it was selected by, which
        is optimistic.
    leaderboard : list of Row
        Every trial, the best first.
    score : HonestScore
        How good the winner is on images that the selection has not seen, with the protocol and
        the 95 % interval.
    cv_results_ : dict
        The trials in scikit-learn's form.
    notes : list of str
        What a user should know.
    planned, untried, resumed : int
        Number of candidates; of those that the budget left; of trials known from before.
    seconds : float
        How long the search took.
    """

    def __init__(
        self, model: ImageClassifier, outcome: SearchOutcome, training: dict[str, Any]
    ) -> None:
        self.model = model
        self.training = training
        self._outcome = outcome
        self.leaderboard: list[Row] = outcome.leaderboard.rows
        self.best = self.leaderboard[outcome.leaderboard.chosen]
        self.score: HonestScore = outcome.honest
        self.scoring = outcome.leaderboard.scorer.name
        self.notes = list(outcome.notes)
        self.planned, self.untried = outcome.planned, outcome.untried
        self.resumed, self.seconds = outcome.resumed, outcome.seconds

    def __repr__(self) -> str:
        best = self.best
        return (
            f"<SearchResult: {best.head} on {best.backbone} {best.tap} ({best.transform}), best of "
            f"{len(self.leaderboard)}, selected by {self.scoring} {best.score:.4f}>"
        )

    @property
    def head(self) -> str:
        """The winning head with its parameters, as `featx.train` takes it (not its transform)."""
        return self.best.head

    @property
    def cv_results_(self) -> dict[str, Any]:
        """The trials in the form of scikit-learn's ``cv_results_``, in leaderboard order."""
        return self._outcome.leaderboard.cv_results()

    @property
    def metrics(self) -> dict[str, Any]:
        """What is kept with the saved model."""
        found: dict[str, Any] = {
            "protocol": self.score.protocol,
            "selected_by": {
                "scoring": self.scoring,
                "score": self.best.score,
                "candidates": len(self.leaderboard),
                "note": "optimistic: the best of all candidates on the images they were chosen by",
            },
        }
        if self.score.value is not None and self.score.interval is not None:
            found[self.scoring] = self.score.value
            found["interval_95"] = list(self.score.interval)
            found["images"] = self.score.images
        return found

    def save(self, path: str | os.PathLike[str], **details: Any) -> None:
        """Write the fitted winner as a ``.featx`` file, with how it was measured.

        ``command`` and ``overwrite`` are those of `featx.models.artefact.save_model`.
        """
        self.model.save(path, metrics=self.metrics, training=self.training, **details)

    def to_csv(self) -> str:
        """Return the leaderboard as CSV."""
        return self._outcome.leaderboard.to_csv()

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the model as JSON types."""
        return {
            "best": self.best.to_dict(),
            "score": self.score.to_dict(),
            "scoring": self.scoring,
            "candidates": self.planned,
            "untried": self.untried,
            "resumed": self.resumed,
            "seconds": self.seconds,
            "notes": self.notes,
            "leaderboard": [row.to_dict() for row in self.leaderboard],
        }
