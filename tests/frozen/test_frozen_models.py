"""Models that featx 0.1.0 saved answer as they did, in Python and on the command line."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

import featx

# Whether a model was saved with what marks unknown images.
MODELS = {"plain": True, "tuned": False, "views": True, "sets": False, "crop": False}


@pytest.fixture(scope="module")
def images(drawn):
    """Pictures of every class and set of labels, and one that is unlike all."""
    strange = drawn / "strange.png"
    from PIL import Image

    board = (np.indices((48, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(np.stack([255 - board, board, 255 - board], axis=2)).save(strange)
    return [*sorted((drawn / "pictures").glob("*/[1-3].ppm")),
            *sorted((drawn / "more").glob("1*.ppm")), strange]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_gives_the_same_answers(name, archived, images, drawn, run, frozen, tmp_path):
    path = archived / "models" / f"{name}.featx"
    weights = {} if name == "tuned" else {"weights": archived / "small.keras"}
    cache = tmp_path / "cache"
    model = featx.load(path, cache=cache, **weights)
    proba = model.predict_proba(list(map(str, images)))
    labels = model.predict(list(map(str, images)))
    labels = np.asarray(labels).tolist()
    rows = [
        {
            "path": row.path, "status": row.status, "top": [list(top) for top in row.top],
            "unknown": row.unknown, "distance": row.distance,
        }
        for row in featx.predict(model, map(str, images), top_k=2, unknown=MODELS[name])
    ]  # fmt: skip
    found = {
        "classes": list(map(str, model.classes_)),
        "backbone": model.backbone.split("/")[0],
        "tap": model.tap,
        "input_size": list(model.input_size),
        "proba": proba.astype(float).tolist(),
        "labels": labels,
        "rows": rows,
    }
    frozen(f"model-{name}", found, folder=drawn)

    options = ["--cache", cache, *(["--weights", weights["weights"]] if weights else [])]
    unknown = ["--unknown"] if MODELS[name] else []
    arguments = ["predict", path, *images, *options, *unknown]
    code, out, err = run(*arguments, "--top-k", 2, "--format", "jsonl")
    assert (code, err) == (0, "")
    lines = list(map(json.loads, out.splitlines()))
    for line, row in zip(lines, rows, strict=True):
        assert [[top["label"], top["probability"]] for top in line["top"]] == [
            [label, pytest.approx(value)] for label, value in row["top"]
        ]
        assert (line["path"], line["status"]) == (row["path"], "ok")
        assert line["label"] == row["top"][0][0]
        if unknown:
            assert line["unknown"] is row["unknown"]
    frozen(f"model-{name}-line", lines[0], folder=drawn)
    code, out, err = run(*arguments, "--format", "csv")
    assert (code, err) == (0, "")
    table = list(csv.DictReader(io.StringIO(out)))
    numbers = ("probability", "distance")
    frozen(
        f"model-{name}-csv",
        [{k: float(v) if k in numbers and v else v for k, v in row.items()} for row in table],
        folder=drawn,
    )


def test_saved_models_are_scored_and_compared_as_before(archived, drawn, frozen, tmp_path):
    cache = tmp_path / "cache"
    plain, views = (
        featx.load(archived / "models" / f"{name}.featx", cache=cache,
                   weights=archived / "small.keras")
        for name in ("plain", "views")
    )  # fmt: skip
    image = featx.ImagePolicy(draft=False)  # the default of 0.1
    options = {"backbone": f"file:{archived / 'small.keras'}", "image": image, "cache": cache}
    data = featx.extract(drawn / "pictures", **options)
    more = featx.extract(drawn / "pictures", **options, taps="first:max", views=2)
    scores = {
        "plain": featx.evaluate(plain, data, bootstrap=50),
        "views": featx.evaluate(views, more, bootstrap=50),
        "compared": featx.compare_models(plain, views, data, more, bootstrap=50),
    }
    frozen("evaluations", scores)
