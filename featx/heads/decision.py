"""From probabilities to labels: the rule of a model, and its sets with a stated coverage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ArtefactError, reason
from featx.heads.rows import Doubles, Floats, Numbers
from featx.heads.targets import LABEL_THRESHOLD

OPTIMISED = {"f1": "macro F1", "balanced_accuracy": "balanced accuracy", "cost": "mean cost"}
"""What a rule may be optimised for, and how it is called."""
BY = ("all", "class")
"""What a coverage may be of: all images together, or those of each class by itself."""

# The sides of the numbers of each rule: k is the number of classes.
_SIDES = {"plain": "", "threshold": "1", "factors": "k", "thresholds": "k", "costs": "kk"}
_OF_LABELS = ("plain", "thresholds")


@dataclass(frozen=True, slots=True, eq=False)
class LabelSets:
    """Which labels an image may have: those at least as probable as a conformal limit."""

    coverage: float  # the share of images whose label is in its set
    by: str  # of which images that share is, one of `BY`
    least: Doubles  # (k,), weighed probability from which a class is in the set
    images: int  # that the limits come from

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON types."""
        return {
            "stated": self.coverage,
            "by": self.by,
            "least": self.least.tolist(),
            "images": self.images,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Turns probabilities (n, k) into labels; by default the most probable, or those above 0.5."""

    multilabel: bool = False
    kind: str = "plain"
    values: Doubles | None = None  # of a rule that is not plain
    optimised: str = ""  # a name of `OPTIMISED`; empty for the plain rule
    sets: LabelSets | None = None

    def decide(self, proba: Floats) -> Numbers:
        """Return the number of each row's class (n,), or 0 and 1 of several labels (n, k)."""
        if self.multilabel:
            limits = LABEL_THRESHOLD if self.values is None else self.values
            return np.asarray(proba > limits, np.intp)
        if self.kind == "threshold" and self.values is not None:
            return np.asarray(proba[:, 1] > self.values, np.intp)
        if self.kind == "costs" and self.values is not None:
            costs = self.values / max(self.values.max(), np.finfo(np.float64).tiny)
            # Rounded, since the last bits of a product depend on the number of rows.
            return np.asarray(np.round(proba @ costs, 12).argmin(axis=1))
        scores = proba if self.values is None else proba * self.values
        return np.asarray(scores.argmax(axis=1))

    def weighed(self, proba: Floats) -> Doubles:
        """Return probabilities as a threshold or factors weigh them: the greatest, or 0.5, decides.

        Costs weigh nothing: what an error costs does not make a label more probable.
        """
        values = np.asarray(proba, np.float64)
        if self.values is None or self.kind == "costs":
            return values
        if self.kind == "thresholds":
            values = values * (1 - self.values)
            total = values + (1 - proba) * self.values
        else:
            limit = self.values[0]
            factors = self.values if self.kind == "factors" else np.array([limit, 1 - limit])
            values = values * factors
            total = values.sum(axis=1, keepdims=True)
        return np.asarray(values / np.maximum(total, np.finfo(np.float64).tiny))

    def label_sets(self, proba: Floats) -> NDArray[np.bool_]:
        """Return which labels each image may have, shape (n, k)."""
        assert self.sets is not None
        return np.asarray(self.weighed(proba) >= self.sets.least)

    def covered(self, truth: Numbers, proba: Floats) -> NDArray[np.bool_]:
        """Return whether each true class is in its set, (n,); of several labels each one, (n, k).

        The truth is as `decide` returns it.
        """
        assert self.sets is not None
        least = self.sets.least if self.multilabel else self.sets.least[truth]
        return np.asarray(likelihoods(truth, self.weighed(proba)) >= least)

    def unsure(self, proba: Floats) -> NDArray[np.bool_]:
        """Return whether an image's set is not exactly one label, or one choice of several.

        A set of another label than the most probable one, which coverage by class can give, is
        unsure too.
        """
        sets = self.label_sets(proba)
        if self.multilabel:
            with_none = np.zeros(sets.shape, np.intp)
            return np.asarray((sets == self.covered(with_none, proba)).any(axis=1))
        best = self.weighed(proba).argmax(axis=1)
        return np.asarray((sets.sum(axis=1) != 1) | ~sets[np.arange(len(sets)), best])

    def describe(self, classes: NDArray[np.generic]) -> str:
        """Return what a person should know of it; nothing of the plain rule."""
        parts = []
        if self.kind == "threshold" and self.values is not None:
            parts.append(f"{classes[1]} above {self.values[0]:.3g}")
        elif self.kind == "thresholds":
            parts.append("a threshold a label")
        elif self.kind == "factors":
            parts.append("a factor a class")
        elif self.kind == "costs":
            parts.append("the least expected cost")
        if self.kind in ("threshold", "thresholds", "factors"):
            parts[0] += f", for {OPTIMISED[self.optimised]}"
        if self.sets is not None:
            of = {"all": "", "class": f" of each {'label' if self.multilabel else 'class'}"}
            parts.append(f"sets with a coverage of {self.sets.coverage:g}{of[self.sets.by]}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON types."""
        rule: dict[str, object] = {"kind": self.kind}
        if self.values is not None:
            rule |= {"values": self.values.tolist(), "optimised": self.optimised}
        return rule if self.sets is None else {**rule, "coverage": self.sets.to_dict()}

    @classmethod
    def from_dict(cls, value: object, classes: int, *, multilabel: bool) -> Decision:
        """Make it from what `to_dict` gave, for so many classes; `ArtefactError` for all else."""
        try:
            return cls._read(value, classes, multilabel)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArtefactError(
                f"the decision rule of the model is damaged ({reason(error)}): train the model "
                "again"
            ) from error

    @classmethod
    def _read(cls, value: Any, classes: int, multilabel: bool) -> Decision:
        kind = value["kind"]
        if kind not in _SIDES:
            raise ValueError(f"{str(kind)[:40]!r} is no rule")
        if kind != "plain" and multilabel != (kind in _OF_LABELS):
            raise ValueError(f"{kind!r} is no rule of such a model")
        if kind == "threshold" and classes != 2:
            raise ValueError(f"one threshold for {classes} classes")
        values, optimised = None, ""
        if kind != "plain":
            sides = [1 if side == "1" else classes for side in _SIDES[kind]]
            top = None if kind in ("factors", "costs") else 1.0
            values = _numbers(value["values"], sides, most=top)
            if kind == "factors" and not (values > 0).all():
                raise ValueError("a factor is not positive")
            optimised = value["optimised"]
            if optimised not in OPTIMISED:
                raise ValueError(f"{str(optimised)[:40]!r} is nothing that a rule is optimised for")
        sets = None
        if (coverage := value.get("coverage")) is not None:
            sets = _read_sets(coverage, classes)
        return cls(multilabel, kind, values, optimised, sets)


def _read_sets(value: Mapping[str, Any], classes: int) -> LabelSets:
    stated, images = _numbers([value["stated"]], [1], most=1.0)[0], value["images"]
    if not 0 < stated < 1:
        raise ValueError(f"{stated} is no coverage")
    if value["by"] not in BY:
        raise ValueError(f"a coverage is by {' or '.join(BY)}")
    if not isinstance(images, int) or isinstance(images, bool) or images < 1:
        raise ValueError("a coverage that comes from no image")
    return LabelSets(
        float(stated), value["by"], _numbers(value["least"], [classes], most=1.0), images
    )


def _numbers(value: object, sides: list[int], *, most: float | None) -> Doubles:
    """Return numbers from 0 on, of a shape, out of nested lists, or raise ``ValueError``."""
    if not isinstance(value, list) or len(value) != sides[0]:
        raise ValueError(f"expected a list of {sides[0]} numbers")
    if len(sides) > 1:
        return np.stack([_numbers(row, sides[1:], most=most) for row in value])
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
        raise ValueError("a number is none")
    numbers = np.array([float(item) for item in value], np.float64)
    if not np.isfinite(numbers).all() or (numbers < 0).any():
        raise ValueError("a number is not finite, or negative")
    if most is not None and (numbers > most).any():
        raise ValueError(f"a number is above {most:g}")
    return numbers


def likelihoods(truth: Numbers, proba: Floats) -> Doubles:
    """Return the probability of each true class (n,), or of each label's truth (n, k)."""
    values = np.asarray(proba, np.float64)
    if truth.ndim == 2:
        return np.where(truth > 0, values, 1 - values)
    return np.asarray(values[np.arange(len(truth)), truth])
