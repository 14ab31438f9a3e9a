"""What 32 dense heads cost together: Keras `fit` of one, featx's head alone, and the stack.

    python scripts/bench/dense_heads.py
    python scripts/bench/dense_heads.py --features features.npz --rounds 5 --alone 32

Without `--features` (an .npz with `X` and `y`), features like those of a pooled convolutional
network are drawn: no negative values, skewed, correlated. They are standardised by the training
rows. All sides run in one process, in turns, after a first call that is not counted.

- `keras fit`: `keras.Sequential`, AdamW, `fit` with `EarlyStopping(restore_best_weights=True)`, on
  the same rows and with the same batch size, of the head `dense:256` with its defaults.
- `featx one`: `DenseClassifier.fit` of the same head.
- `featx 32`: `fit_heads` of 32 heads: learning rates x widths x dropouts x decays.
- `keras equal`, `featx 32 equal`: the same for an equal number of epochs, `--epochs`; stopped
  early, a stack runs as long as its slowest learning rate.
- `alone`: some heads of the stack by their own `fit` with the same seed, for their accuracy, and
  by Keras, for the mean time of one Keras `fit` over the settings.

The processor's seconds stand beside the clock's, as a busy machine makes the latter long. The noise
that a difference in accuracy is held against is the standard deviation of one head over seeds.
Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.dense import DenseClassifier, fit_heads
from featx.heads.dense_training import hold_out
from featx.heads.rows import Rows
from featx.heads.targets import Targets
from featx.quiet import quiet_import

RATES, DROPOUTS, DECAYS = (3e-4, 1e-3, 3e-3, 1e-2), (0.2, 0.5), (1e-4, 1e-2)
SEED = 0

Data = tuple[NDArray[np.float32], NDArray[np.intp]]


def draw_features(rows: int, width: int, classes: int) -> Data:
    """Draw rectified mixtures of class, nuisance and noise."""
    rng = np.random.default_rng(SEED)
    y = rng.integers(0, classes, rows)
    factors = rng.normal(size=(64, width)) / 8
    hidden = rng.normal(size=(rows, 64)) * np.linspace(2.0, 0.3, 64)
    hidden += 0.55 * rng.normal(size=(classes, 64))[y]
    X = hidden @ factors + 0.6 * rng.normal(size=(rows, width)) + rng.normal(size=width) * 0.4
    return np.maximum(X, 0).astype(np.float32), y


def load_features(path: str) -> Data:
    with np.load(path) as file:
        return file["X"].astype(np.float32), np.unique(file["y"], return_inverse=True)[1]


def standardised(data: Data, test_rows: int) -> tuple[Data, Data]:
    """Split off test rows, and scale by the training rows."""
    X, y = data
    order = np.random.default_rng(SEED).permutation(len(y))
    train, test = order[test_rows:], order[:test_rows]
    mean, scale = X[train].mean(axis=0), X[train].std(axis=0)
    X = (X - mean) / np.where(scale > 0, scale, 1)
    return (X[train], y[train]), (X[test], y[test])


def fit_keras(train: Data, params: dict[str, Any]) -> tuple[Any, int]:
    """Do what a careful user does by hand."""
    import keras

    X, y = train
    head = DenseClassifier(**params)
    generator = np.random.default_rng(SEED)
    rows, held = hold_out(Targets.of_classes(y), head.validation_fraction, generator)
    keras.utils.set_random_seed(SEED)
    layers: list[Any] = [keras.Input((X.shape[1],))]
    for size in head.hidden:
        layers += [keras.layers.Dense(size, activation="relu"), keras.layers.Dropout(head.dropout)]
    model = keras.Sequential([*layers, keras.layers.Dense(int(y.max()) + 1)])
    model.compile(
        optimizer=keras.optimizers.AdamW(head.learning_rate, weight_decay=head.weight_decay),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        X[rows],
        y[rows],
        validation_data=(X[held], y[held]),
        batch_size=head.batch_size,
        epochs=head.max_epochs,
        callbacks=[
            keras.callbacks.EarlyStopping(patience=head.patience, restore_best_weights=True)
        ],
        verbose=0,
    )
    return model, len(history.history["loss"])


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", help=".npz with X (n, d) and y (n,); drawn otherwise")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument("--widths", type=int, nargs=2, default=(128, 256))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15, help="of the sides of equal epochs")
    parser.add_argument("--alone", type=int, default=8, help="heads to train alone as well")
    asked = parser.parse_args()
    logging.getLogger("featx").setLevel(logging.ERROR)
    with quiet_import():
        import keras

    data = (
        load_features(asked.features)
        if asked.features
        else draw_features(asked.rows + asked.test_rows, asked.width, asked.classes)
    )
    train, (X_test, y_test) = standardised(data, asked.test_rows)
    one: dict[str, Any] = {"hidden": (256,), "random_state": SEED}
    grid: list[dict[str, Any]] = [
        {
            "hidden": (size,),
            "learning_rate": rate,
            "dropout": dropout,
            "weight_decay": decay,
            "random_state": SEED,
        }
        for size, rate, dropout, decay in itertools.product(asked.widths, RATES, DROPOUTS, DECAYS)
    ]

    equal = {"max_epochs": asked.epochs, "patience": asked.epochs}

    def stack(**more: Any) -> list[DenseClassifier]:
        heads = [DenseClassifier(**params, **more) for params in grid]
        failures = fit_heads(heads, Rows.of(train[0]), Targets.of_classes(train[1]))
        return [head for head, failure in zip(heads, failures, strict=True) if not failure]

    sides: dict[str, Callable[[], Any]] = {
        "keras fit": lambda: fit_keras(train, one),
        "featx one": lambda: DenseClassifier(**one).fit(*train),
        "featx 32": stack,
        "keras equal": lambda: fit_keras(train, {**one, **equal}),
        "featx 32 equal": lambda: stack(**equal),
    }
    fit_keras(train, {**one, "max_epochs": 1})
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for _ in range(asked.rounds):
        for name, call in sides.items():
            results[name], clock, cpu = timed(call)
            seconds[name].append(clock)
            processor[name].append(cpu)

    def accuracy(head: Any) -> float:
        return float(np.mean(head.predict(X_test) == y_test))

    model, keras_epochs = results["keras fit"]
    keras_accuracy = float(np.mean(model.predict(X_test, verbose=0).argmax(axis=1) == y_test))
    heads = results["featx 32"]
    chosen = np.unique(np.linspace(0, len(grid) - 1, asked.alone).astype(int)).tolist()
    rows_alone = []
    for place in chosen:
        head, clock, _ = timed(partial(DenseClassifier(**grid[place]).fit, *train))
        (_, keras_ran), keras_clock, keras_cpu = timed(partial(fit_keras, train, grid[place]))
        rows_alone.append(
            {
                "head": place,
                "seconds": clock,
                "keras_seconds": keras_clock,
                "keras_processor_seconds": keras_cpu,
                "keras_epochs": keras_ran,
                "accuracy_alone": accuracy(head),
                "accuracy_stacked": accuracy(heads[place]),
                "epochs_alone": head.n_iter_,
                "epochs_stacked": heads[place].n_iter_,
                "largest_probability_difference": float(
                    np.abs(head.predict_proba(X_test) - heads[place].predict_proba(X_test)).max()
                ),
            }
        )
    noise = statistics.stdev(
        accuracy(DenseClassifier(**{**one, "random_state": seed}).fit(*train)) for seed in range(4)
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    cpu_medians = {name: statistics.median(values) for name, values in processor.items()}
    epochs = {
        "keras fit": keras_epochs,
        "featx one": results["featx one"].n_iter_,
        "featx 32": sum(head.n_iter_ for head in heads),
        "keras equal": results["keras equal"][1],
        "featx 32 equal": sum(head.n_iter_ for head in results["featx 32 equal"]),
    }
    print(
        f"{len(train[1])} x {train[0].shape[1]}, {keras.backend.backend()}, widths {asked.widths}"
    )
    print(f"{'':16s}{'seconds':>9s}{'cpu s':>9s}{'x keras':>9s}{'x (cpu)':>9s}{'epochs':>8s}")
    for name in sides:
        print(
            f"{name:16s}{medians[name]:9.2f}{cpu_medians[name]:9.2f}"
            f"{medians[name] / medians['keras fit']:9.2f}"
            f"{cpu_medians[name] / cpu_medians['keras fit']:9.2f}{epochs[name]:8d}"
        )
    of_equal = medians["featx 32 equal"] / medians["keras equal"]
    print(f"for {asked.epochs} epochs on both sides: {of_equal:.2f} x")
    best = max(accuracy(head) for head in heads)
    print(
        f"accuracy: keras {keras_accuracy:.4f}, featx one {accuracy(results['featx one']):.4f}, "
        f"best of 32 {best:.4f}; standard deviation over seeds {noise:.4f}"
    )
    means = {
        name: statistics.mean(row[name] for row in rows_alone)
        for name in ("keras_seconds", "keras_processor_seconds")
    }
    print(
        f"mean of {len(rows_alone)} keras fits over the settings: {means['keras_seconds']:.2f} s, "
        f"{means['keras_processor_seconds']:.2f} cpu s: the stack takes "
        f"{medians['featx 32'] / means['keras_seconds']:.2f} x, "
        f"cpu {cpu_medians['featx 32'] / means['keras_processor_seconds']:.2f} x"
    )
    worst = max((abs(r["accuracy_alone"] - r["accuracy_stacked"]) for r in rows_alone), default=0.0)
    print(
        f"stacked against alone, {len(rows_alone)} heads: accuracy differs by {worst:.4f} at most"
    )
    print(
        json.dumps(
            {
                "seconds": seconds,
                "processor_seconds": processor,
                "ratio": medians["featx 32"] / medians["keras fit"],
                "ratio_processor": cpu_medians["featx 32"] / cpu_medians["keras fit"],
                "ratio_of_equal_epochs": of_equal,
                "epochs": epochs,
                "noise": noise,
                "alone": rows_alone,
            }
        )
    )


if __name__ == "__main__":
    main()
