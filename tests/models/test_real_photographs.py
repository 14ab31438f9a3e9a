"""The job on real photographs with real weights, against a plain Keras + scikit-learn script."""

from __future__ import annotations

import numpy as np
import pytest

import featx

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def ants_bees(shared):
    return shared / "data" / "ants_bees"


@pytest.fixture(scope="module")
def options(mobilenet_weights, tmp_path_factory):
    cache = tmp_path_factory.mktemp("real") / "cache"
    return {"backbone": "mobilenet_v2", "weights": mobilenet_weights, "cache": cache}


@pytest.fixture(scope="module")
def features(ants_bees, options):
    return featx.extract(ants_bees, **options)


def plain_features(paths, weights):
    """What anybody would write with Keras alone."""
    import keras

    network = keras.applications.MobileNetV2(include_top=False, weights=None, pooling="avg")
    network.load_weights(weights)
    rows = []
    for start in range(0, len(paths), 32):
        images = [
            np.asarray(keras.utils.load_img(path, target_size=(224, 224), interpolation="bilinear"))
            for path in paths[start : start + 32]
        ]
        batch = keras.applications.mobilenet_v2.preprocess_input(np.stack(images).astype("f4"))
        rows.append(network.predict_on_batch(batch))
    return np.concatenate(rows)


def test_five_folds_reach_what_a_plain_pipeline_reaches(features):
    result = featx.train(features, head="logistic", cv=5)
    assert result.metrics["accuracy"] >= 0.96


@pytest.mark.slow
def test_held_out_probabilities_agree_with_a_plain_script(
    features, ants_bees, options, mobilenet_weights, tmp_path
):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lines = ["path,label,split"]
    files = [path for path in features.paths if not path.endswith(".gif")]
    lines += [
        f"{ants_bees / path},{path.split('/')[0]},{'test' if row % 4 == 0 else 'train'}"
        for row, path in enumerate(files)
    ]
    table = tmp_path / "split.csv"
    table.write_text("\n".join(lines))
    data = featx.extract(table, **options)
    assert data.report["extracted"] == 0
    model = featx.train(data, head="logistic:C=0.01", weights=mobilenet_weights).model
    model.save(tmp_path / "m.featx")
    held_out = [str(ants_bees / path) for path in files[::4]]
    ours = featx.load(tmp_path / "m.featx").predict_proba(held_out)

    X = plain_features([ants_bees / path for path in files], mobilenet_weights)
    y = np.array([path.split("/")[0] for path in files])
    testing = np.arange(len(files)) % 4 == 0
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=1e-8, max_iter=5000))
    plain.fit(X[~testing], y[~testing])
    # Engines and processors round differently, and a logistic regression magnifies that.
    np.testing.assert_allclose(ours, plain.predict_proba(X[testing]), atol=2e-3)
    scores = featx.evaluate(featx.load(tmp_path / "m.featx"), data)
    assert scores["accuracy"] == pytest.approx(plain.score(X[testing], y[testing]))
