"""The table of heads that have names: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal


@dataclass(frozen=True)
class HeadSpec:
    """One named head, as data.

    Parameters
    ----------
    name : str
        What the user types.
    summary : str
        One line for lists.
    estimator : str
        Import path of the class; imported when a head is made.
    defaults : mapping of str to object
        Parameters where they differ from the class's own.
    standardised : bool, default=True
        Whether it sits behind a ``StandardScaler``.
    calibrated : bool, default=False
        Whether it gives margins only, so that `TemperatureCalibrated` wraps it.
    values : str, default=""
        The parameter that takes values without a name, as in ``dense:1024,1024``.
    storage : {"skops", "arrays"}, default="skops"
        How an artefact keeps it (see `dump_head`).
    needs_keras : bool, default=False
        Whether training imports Keras. Predicting never does.
    sweep : str, default=""
        Import path of its `Sweep`; without one, each setting is fitted by itself.
    streamed : str, default=""
        Import path of the function that fits the estimator on a stream of batches; without one,
        it has to see all rows at once.
    streamed_labels : str, default=""
        Import path of the function that does so for several labels an image in the same passes;
        without one, `streamed` is called once a label.
    grid : mapping of str to tuple
        Values that a search tries of each parameter, the default among them.
    cost : int, default=9
        What a prediction costs, in order: of two heads that are equally good, the one of lower
        cost is preferred.
    """

    name: str
    summary: str
    estimator: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    standardised: bool = True
    calibrated: bool = False
    values: str = ""
    storage: Literal["skops", "arrays"] = "skops"
    needs_keras: bool = False
    sweep: str = ""
    streamed: str = ""
    streamed_labels: str = ""
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    cost: int = 9


def _decades(first: int, last: int, steps: int) -> tuple[float, ...]:
    """Powers of ten, with this many steps a decade, both ends included."""
    return tuple(float(f"{10 ** (e / steps):.3g}") for e in range(first * steps, last * steps + 1))


# The defaults were chosen on 1,280 standardised MobileNetV2 features: CIFAR-10 at 2, 10, 50 and
# 500 images a class, and the ants and bees. Logistic regression needed 130 iterations at C=0.01,
# 160 at most over C from 1e-4 to 1, so that 5,000 is a guard and no budget.
#
# Costs: one product of the image with a vector a class (1, 2); layers (3); a product with each of
# 500 images (4) or of all (5); 200 trees (6).
_ROWS = (
    HeadSpec(
        "nearest-mean",
        "nearest class mean by cosine",
        "featx.heads.nearest_mean.NearestMean",
        sweep="featx.heads.nearest_mean.sweep_nearest_mean",
        streamed="featx.heads.nearest_mean_streaming.fit_nearest_mean_streamed",
        streamed_labels="featx.heads.nearest_mean_streaming.fit_nearest_mean_labels",
        grid={"metric": ("cosine", "euclidean")},
        cost=1,
    ),
    HeadSpec(
        "logistic",
        "logistic regression (multinomial, L2)",
        "sklearn.linear_model.LogisticRegression",
        {"C": 0.01, "max_iter": 5000},
        sweep="featx.heads.logistic_sweep.sweep_logistic",
        streamed="featx.heads.logistic_streaming.fit_logistic_streamed",
        streamed_labels="featx.heads.logistic_streaming.fit_logistic_labels",
        grid={"C": _decades(-5, 1, 2)},
        cost=2,
    ),
    HeadSpec(
        "svm",
        "linear support vector machine, with calibrated probabilities",
        "sklearn.svm.LinearSVC",
        # The dual is 3 times as fast as the primal at 5,000 rows and even with it at few.
        {"C": 0.001, "dual": True, "tol": 1e-3, "max_iter": 20000},
        calibrated=True,
        sweep="featx.heads.margin_sweep.sweep_svm",
        grid={"C": _decades(-5, -1, 1)},
        cost=2,
    ),
    HeadSpec(
        "rbf",
        "support vector machine with a Gaussian kernel on a basis of 500 images",
        "featx.heads.rbf.ReducedRBF",
        calibrated=True,
        sweep="featx.heads.margin_sweep.sweep_rbf",
        grid={"C": (0.1, 1.0, 10.0)},
        cost=4,
    ),
    HeadSpec(
        "knn",
        "k nearest neighbours by cosine, the nearer counting more",
        "featx.heads.neighbours.NearestNeighbours",
        sweep="featx.heads.neighbours_sweep.sweep_knn",
        grid={
            "n_neighbors": (1, 2, 3, 5, 7, 10, 15, 20, 30, 50),
            "metric": ("cosine", "euclidean"),
            "weights": ("distance", "uniform"),
        },
        cost=5,
    ),
    HeadSpec(
        "ridge",
        "ridge regression on the classes, with calibrated probabilities",
        "sklearn.linear_model.RidgeClassifier",
        {"alpha": 1000.0},
        calibrated=True,
        sweep="featx.heads.ridge.sweep_ridge",
        streamed="featx.heads.ridge_streaming.fit_ridge_streamed",
        streamed_labels="featx.heads.ridge_streaming.fit_ridge_labels",
        grid={"alpha": _decades(0, 6, 3)},
        cost=2,
    ),
    HeadSpec(
        "lda",
        "linear discriminant analysis, covariance shrunk after Ledoit and Wolf",
        "featx.heads.discriminant.ShrinkageLDA",
        # Its own probabilities take the covariance for known: from 2 to 50 images a class they
        # cost 4 to 15 nats an image, where the labels' shares alone cost 2.3.
        calibrated=True,
        sweep="featx.heads.discriminant_sweep.sweep_lda",
        streamed="featx.heads.discriminant_streaming.fit_lda_streamed",
        grid={"shrinkage": ("auto", 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)},
        cost=2,
    ),
    HeadSpec(
        "forest",
        "random forest of 200 trees",
        "featx.heads.trees.TreeEnsemble",
        {"splits": "best"},
        standardised=False,
        grid={"min_samples_leaf": (1, 3)},
        cost=6,
    ),
    HeadSpec(
        "extra-trees",
        "200 extremely randomised trees",
        "featx.heads.trees.TreeEnsemble",
        {"splits": "random"},
        standardised=False,
        grid={"min_samples_leaf": (1, 3)},
        cost=6,
    ),
    HeadSpec(
        "dense",
        "dense layers trained with Keras, for example dense:1024,1024",
        "featx.heads.dense.DenseClassifier",
        values="hidden",
        storage="arrays",
        needs_keras=True,
        sweep="featx.heads.dense_sweep.sweep_dense",
        streamed="featx.heads.dense_streaming.fit_streamed",
        grid={"hidden": ((), (256,), (1024,))},
        cost=3,
    ),
)

HEADS: Mapping[str, HeadSpec] = MappingProxyType({row.name: row for row in _ROWS})
"""Every named head by its name."""
