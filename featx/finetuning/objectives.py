"""What a network is trained on, classes or numbers: the loss, the scores and which are better."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from featx.cache.features import Features
from featx.exceptions import DatasetError, FineTuningError, UnknownNameError
from featx.files.safe_json import Json
from featx.heads.estimators import check_values
from featx.heads.rows import Doubles, Floats, Fold, Numbers
from featx.heads.steps import Linear, Softmax, Step, dense_steps, fitted_head, fitted_values
from featx.heads.targets import Targets, value_scale
from featx.images.values import read_values
from featx.models.classifier import ImageClassifier
from featx.models.regressor import ImageRegressor
from featx.selection.metrics import Judged, value_scores
from featx.selection.splits import hold_out, repeated_folds
from featx.selection.transforms import Estimator
from featx.selection.value_metrics import kept_residuals, score_values
from featx.spec import FeatureSpec

Loss: TypeAlias = Any
"""A loss of Keras, which has no types."""
Layers: TypeAlias = Sequence[tuple[Floats, Floats]]
"""Kernel and bias of every layer of a head."""
ClassWeight: TypeAlias = str | Mapping[str, float] | None

LOSSES = ("squared", "huber")
"""What numbers are learnt by; the first is the default."""
_HIGHEST_TEMPERATURE = 100.0
_PRIOR_ERRORS = 0.5


class Objective(ABC):
    """The targets of all rows, and all that depends on whether they are classes or numbers."""

    regression: ClassVar[bool]
    views: ClassVar[int]  # of each image, where no number is given
    head: ClassVar[str]  # that a network can start with, where the model's own is of another kind
    # Scores by the names that results have, with those of the history.
    pair: ClassVar[Mapping[str, str]]
    chooses: ClassVar[str]  # what the hold-out chooses, with `{}` for the number of epochs
    unseen: ClassVar[str]  # what a split named test is, in words

    @property
    @abstractmethod
    def labelled(self) -> NDArray[np.bool_]:
        """Which rows have a target, shape (n,)."""

    @property
    @abstractmethod
    def array(self) -> NDArray[np.generic]:
        """The targets of all rows."""

    @classmethod
    @abstractmethod
    def of(
        cls, model: ImageClassifier | ImageRegressor, features: Features, y: NDArray[np.str_]
    ) -> Objective:
        """Read the targets of all rows, as a model knows them."""

    @classmethod
    @abstractmethod
    def check(cls, *, loss: str | None, label_smoothing: float, class_weight: ClassWeight) -> None:
        """Raise `FineTuningError` for options that are about the other kind of target."""

    @abstractmethod
    def draw(self, rows: Numbers, groups: NDArray[np.int64], share: float, seed: int) -> Fold:
        """Return which of some rows are trained on, and which are held out."""

    @abstractmethod
    def check_sides(self, rows: Numbers, held_out: Numbers) -> None:
        """Raise an error where the rows of one side cannot be learnt from, or scored."""

    def scaled_by(self, rows: Numbers) -> Objective:
        """Return the objective with its scale taken from the rows that are trained on."""
        return self

    def learnt(self, y: NDArray[np.str_], rows: Numbers) -> NDArray[np.generic]:
        """Return what a head is fitted on, of some rows with the labels of all."""
        return y[rows]

    @abstractmethod
    def of_head(self, head: Estimator, X: Floats) -> Doubles:
        """Return what a head says of features, shape (n, k)."""

    def to_network(self, steps: list[Step]) -> list[Step]:
        """Return the steps of a head as the network has them, whose outputs are scaled."""
        return steps

    @abstractmethod
    def targets(self, rows: Numbers) -> NDArray[np.float32]:
        """Return what the network's outputs are compared with, shape (n, k)."""

    def class_weights(self, class_weight: ClassWeight, rows: Numbers) -> Doubles | None:
        """Return what an image of each class counts, (k,); None where all count the same."""
        return None

    @abstractmethod
    def loss(self, name: str | None, label_smoothing: float) -> Loss:
        """Make the loss."""

    @abstractmethod
    def guessing(self, rows: Numbers, batch_size: int) -> float:
        """Return the most that the loss of a batch is where nothing has been learnt."""

    @abstractmethod
    def answers(self, outputs: NDArray[np.float32]) -> Floats:
        """Return what outputs of the network say, shape (n, k): probabilities or numbers."""

    def temperature(self, outputs: NDArray[np.float32], rows: Numbers) -> float:
        """Return what outputs have to be divided by to be as sure as they are right."""
        return 1.0

    @abstractmethod
    def hold_out_scores(self, answers: Floats, rows: Numbers) -> dict[str, float]:
        """Return the scores of the answers for some rows, by the names of the history."""

    @abstractmethod
    def rank(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """Return what orders scores; the best has the greatest."""

    def scores(self, answers: Floats, rows: Numbers) -> dict[str, float]:
        """Return the scores of the answers for some rows, by the names that results have."""
        named = self.hold_out_scores(answers, rows)
        return {name: named[known] for name, known in self.pair.items()}

    @abstractmethod
    def scored(self, answers: Floats, rows: Numbers, y: NDArray[np.str_]) -> Json:
        """Return names, scores and answers, as arguments of `Scored`."""

    @abstractmethod
    def model(
        self, parameters: Json, layers: Layers, spec: FeatureSpec, rows: Numbers
    ) -> ImageClassifier | ImageRegressor:
        """Return a fitted model with the layers of a network as its head."""

    def remember(
        self, model: ImageClassifier | ImageRegressor, answers: Floats, held_out: Numbers
    ) -> None:
        """Let a model keep what it needs to know of its answers for the hold-out."""
        return


@dataclass(frozen=True, eq=False)
class ClassObjective(Objective):
    """One class an image: cross-entropy, and the accuracy, then the log loss."""

    classes: NDArray[np.generic]  # that the model knows
    codes: Numbers  # class of each row, -1 where it has no label

    regression = False
    views = 4
    head = "logistic"
    pair = {"accuracy": "val_accuracy", "log_loss": "val_loss"}  # noqa: RUF012
    chooses = "the epoch (best of {}) and the temperature"
    unseen = "which chose neither the epoch nor the temperature"

    @classmethod
    def of(
        cls, model: ImageClassifier | ImageRegressor, features: Features, y: NDArray[np.str_]
    ) -> ClassObjective:
        """Read the classes of all rows."""
        names = [str(name) for name in model.classes_]
        strangers = sorted({str(label) for label in y[features.labels >= 0]} - set(names))
        if strangers:
            raise FineTuningError(
                f"{features.name!r} has classes that the model does not know: "
                f"{', '.join(strangers[:5])}; it knows {', '.join(names[:10])}. Train a head on "
                "this data first"
            )
        codes = {name: code for code, name in enumerate(names)}
        known = np.array([codes.get(str(label), -1) for label in y], np.intp)
        return cls(np.asarray(model.classes_), known)

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [str(name) for name in self.classes]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which rows have a class."""
        labelled: NDArray[np.bool_] = self.codes >= 0
        return labelled

    @property
    def array(self) -> NDArray[np.generic]:
        """The codes of all rows, shape (n,)."""
        return self.codes

    @classmethod
    def check(cls, *, loss: str | None, label_smoothing: float, class_weight: ClassWeight) -> None:
        """Refuse a loss of numbers."""
        if loss is not None:
            raise FineTuningError(
                "--loss (loss=...) is for models that predict numbers, and the model predicts "
                "classes: leave it out"
            )

    def draw(self, rows: Numbers, groups: NDArray[np.int64], share: float, seed: int) -> Fold:
        """Hold out a share of every class."""
        return hold_out(self.codes[rows], share=share, groups=groups, seed=seed)

    def check_sides(self, rows: Numbers, held_out: Numbers) -> None:
        """Refuse a side without every class."""
        every = np.unique(self.codes[self.labelled])
        for name, some in (("training images", rows), ("hold-out", held_out)):
            lacking = np.setdiff1d(every, self.codes[some])
            if lacking.size:
                raise DatasetError(
                    f"the {name} ({len(some)} images) have no image of class "
                    f"{self.names[lacking[0]]!r}: fine-tuning has to see every class on both "
                    "sides. Give more images of it, another --holdout or --seed, or splits named "
                    "train and val"
                )

    def of_head(self, head: Estimator, X: Floats) -> Doubles:
        """Return probabilities."""
        proba: Doubles = head.predict_proba(X)
        return proba

    def targets(self, rows: Numbers) -> NDArray[np.float32]:
        """Return 1 for the class of each row, and 0 for the others."""
        targets = np.zeros((len(rows), len(self.classes)), np.float32)
        targets[np.arange(len(rows)), self.codes[rows]] = 1
        return targets

    def class_weights(self, class_weight: ClassWeight, rows: Numbers) -> Doubles | None:
        """Return what an image of each class counts."""
        names = self.names
        if class_weight is None:
            return None
        if isinstance(class_weight, str):
            counts = np.bincount(self.codes[rows], minlength=len(names))
            balanced: Doubles = len(rows) / (len(names) * np.maximum(counts, 1))
            return balanced
        strangers = set(class_weight) - set(names)
        if strangers:
            raise UnknownNameError("class in class_weight", min(strangers), names)
        return np.array([float(class_weight.get(name, 1.0)) for name in names])

    def loss(self, name: str | None, label_smoothing: float) -> Loss:
        """Make the cross-entropy of logits."""
        import keras

        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=label_smoothing
        )

    def guessing(self, rows: Numbers, batch_size: int) -> float:
        """Return the log loss where all classes are as probable."""
        return math.log(len(self.classes))

    def answers(self, outputs: NDArray[np.float32]) -> Floats:
        """Return the softmax of logits."""
        return Softmax().apply(outputs).astype(np.float32, copy=False)

    def temperature(self, outputs: NDArray[np.float32], rows: Numbers) -> float:
        """Return the temperature that explains the rows best."""
        return best_temperature(outputs, self.codes[rows])

    def hold_out_scores(self, answers: Floats, rows: Numbers) -> dict[str, float]:
        """Return log loss and accuracy."""
        accuracy, loss = hold_out_scores(answers, self.codes[rows])
        return {"val_loss": loss, "val_accuracy": accuracy}

    def rank(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """Order by the accuracy, of equal ones by the log loss."""
        return scores["val_accuracy"], -scores["val_loss"]

    def scored(self, answers: Floats, rows: Numbers, y: NDArray[np.str_]) -> Json:
        """Judge probabilities."""
        names = self.classes.astype(str)
        judged = Judged(y[rows], names)
        judged.add(np.arange(len(rows)), answers)
        return {"names": names, "scores": judged.scores(), "judged": judged}

    def model(
        self, parameters: Json, layers: Layers, spec: FeatureSpec, rows: Numbers
    ) -> ImageClassifier | ImageRegressor:
        """Return a classifier."""
        made, width = ImageClassifier(**parameters), len(layers[0][0])
        head = fitted_head(self.classes, width, dense_steps(layers, Softmax()))
        made.take_head(head, [spec], n_features=width)
        return made


@dataclass(frozen=True, eq=False)
class ValueObjective(Objective):
    """Numbers: the squared or Huber's error of scaled numbers, and the squared error.

    The network learns numbers less their mean, in deviations, both of the rows trained on.
    """

    names: tuple[str, ...]
    values: Doubles  # (n, k), NaN where a row has none
    mean: Doubles = field(default_factory=lambda: np.zeros(1))  # (k,), as the next
    spread: Doubles = field(default_factory=lambda: np.ones(1))

    regression = True
    views = 0  # a crop changes the size of what is seen, and with it the number
    head = "ridge"
    pair = {"r2": "val_r2", "rmse": "val_rmse"}  # noqa: RUF012
    chooses = "the epoch (best of {})"
    unseen = "which did not choose the epoch"

    @classmethod
    def of(
        cls, model: ImageClassifier | ImageRegressor, features: Features, y: NDArray[np.str_]
    ) -> ValueObjective:
        """Read the numbers of all rows that have some."""
        labelled, names = features.labels >= 0, model.value_names_
        values = np.full((len(y), len(names)), np.nan)
        what = repr(features.name)
        values[labelled] = read_values(y[labelled].tolist(), what, names=names)[1]
        return cls(names, values)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which rows have numbers."""
        return np.asarray(~np.isnan(self.values[:, 0]))

    @property
    def array(self) -> NDArray[np.generic]:
        """The numbers of all rows, shape (n, k)."""
        return self.values

    @classmethod
    def check(cls, *, loss: str | None, label_smoothing: float, class_weight: ClassWeight) -> None:
        """Refuse what is about classes."""
        for used, option in (
            (label_smoothing, "--label-smoothing (label_smoothing=...)"),
            (class_weight is not None, "--balanced (class_weight=...)"),
        ):
            if used:
                raise FineTuningError(
                    f"{option} is about classes, and the model predicts numbers: leave it out"
                )

    def draw(self, rows: Numbers, groups: NDArray[np.int64], share: float, seed: int) -> Fold:
        """Hold out a share of low, middling and high numbers."""
        folds = max(2, round(1 / share))
        return repeated_folds(self.values[rows], folds=folds, groups=groups, seed=seed)[0]

    def check_sides(self, rows: Numbers, held_out: Numbers) -> None:
        """Refuse too few numbers, and numbers that do not differ."""
        for name, some in (("training images", rows), ("hold-out", held_out)):
            if len(some) < 2:
                raise DatasetError(
                    f"the {name} are {len(some)} with a number, and fine-tuning needs 2 or more: "
                    "give more images, another --holdout, or splits named train and val"
                )
        check_values(self.values[rows])

    def scaled_by(self, rows: Numbers) -> ValueObjective:
        """Return the objective with mean and deviations of some rows."""
        mean, spread = value_scale(Targets.of_values(self.values[rows]))
        return replace(self, mean=mean, spread=spread)

    def learnt(self, y: NDArray[np.str_], rows: Numbers) -> NDArray[np.generic]:
        """Return numbers, (n,) where there is one an image."""
        values = self.values[rows]
        return values[:, 0] if len(self.names) == 1 else values

    def of_head(self, head: Estimator, X: Floats) -> Doubles:
        """Return numbers."""
        return np.asarray(head.predict(X), np.float64).reshape(len(X), -1)

    def to_network(self, steps: list[Step]) -> list[Step]:
        """Let the last layer give scaled numbers."""
        last = steps[-1]
        assert isinstance(last, Linear)
        # In double precision: the spread may be a small part of the mean.
        kernel, bias = np.asarray(last.kernel, np.float64), np.asarray(last.bias, np.float64)
        return [*steps[:-1], Linear(kernel / self.spread, (bias - self.mean) / self.spread)]

    def targets(self, rows: Numbers) -> NDArray[np.float32]:
        """Return scaled numbers."""
        return self._scaled(rows).astype(np.float32)

    def _scaled(self, rows: Numbers) -> Doubles:
        scaled: Doubles = (self.values[rows] - self.mean) / self.spread
        return scaled

    def loss(self, name: str | None, label_smoothing: float) -> Loss:
        """Make the squared error, or Huber's, which is linear beyond one deviation."""
        import keras

        return keras.losses.Huber() if name == "huber" else keras.losses.MeanSquaredError()

    def guessing(self, rows: Numbers, batch_size: int) -> float:
        """Return the squared error of the mean on the rows that are furthest from it."""
        squares = np.sort((self._scaled(rows) ** 2).mean(axis=1))
        return float(squares[-batch_size:].mean())

    def answers(self, outputs: NDArray[np.float32]) -> Floats:
        """Return numbers in their unit."""
        return outputs.astype(np.float64) * self.spread + self.mean

    def hold_out_scores(self, answers: Floats, rows: Numbers) -> dict[str, float]:
        """Return the squared error of scaled numbers, R² and RMSE: means over the columns."""
        truth = self.values[rows]
        r2, _, rmse = value_scores(truth, answers).mean(axis=1)
        squared = float((((answers - truth) / self.spread) ** 2).mean())
        return {"val_loss": squared, "val_r2": float(r2), "val_rmse": float(rmse)}

    def rank(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """Order by the squared error."""
        return (-scores["val_loss"],)

    def scored(self, answers: Floats, rows: Numbers, y: NDArray[np.str_]) -> Json:
        """Score numbers."""
        truth = self.values[rows]
        return {
            "names": np.array(self.names),
            "scores": score_values(truth, answers, self.names),
            "values": (truth, answers),
        }

    def model(
        self, parameters: Json, layers: Layers, spec: FeatureSpec, rows: Numbers
    ) -> ImageClassifier | ImageRegressor:
        """Return a regressor, whose last layer gives numbers in their unit."""
        made, width = ImageRegressor(**parameters), len(layers[0][0])
        kernel, bias = (np.asarray(part, np.float64) for part in layers[-1])
        last = kernel * self.spread, bias * self.spread + self.mean
        head = fitted_values(len(self.names), width, dense_steps([*layers[:-1], last]))
        made.take_head(head, [spec], n_features=width, names=self.names, values=self.values[rows])
        return made

    def remember(
        self, model: ImageClassifier | ImageRegressor, answers: Floats, held_out: Numbers
    ) -> None:
        """Keep how far the answers are off, for intervals."""
        model.residuals_ = kept_residuals(self.values[held_out], answers)


def hold_out_scores(probabilities: Floats, codes: Numbers) -> tuple[float, float]:
    """Return accuracy and log loss."""
    right = float((probabilities.argmax(axis=1) == codes).mean())
    likely = probabilities[np.arange(len(codes)), codes].astype(np.float64)
    return right, float(-np.log(np.maximum(likely, 1e-12)).mean())


def best_temperature(logits: Floats, codes: Numbers) -> float:
    """Return the number by which logits (n, k) have to be divided for the least log loss.

    Notes
    -----
    Half an image more is counted, which is wrong with the confidence of the median image: few
    images that are all right do not make a network certain. This is the prior of Jeffreys for the
    share of errors; Platt counts a whole one ("Probabilistic Outputs for Support Vector Machines",
    1999). Of hundreds of images it changes nothing. The median and not the mean, as in
    `featx.heads.calibrated.fit_temperature`: margins of a trained network can be a hundred nats.
    """
    wide = logits.astype(np.float64)
    right = wide[np.arange(len(codes)), codes]
    runner_up = np.sort(wide, axis=1)[:, -2]

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        total = logsumexp(wide * scale, axis=1)
        wrong = float(np.median(total - runner_up * scale))
        return float((total - right * scale).sum()) + _PRIOR_ERRORS * wrong

    bounds = -math.log(_HIGHEST_TEMPERATURE), math.log(_HIGHEST_TEMPERATURE)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)
