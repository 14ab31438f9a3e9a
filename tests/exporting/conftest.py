"""One fitted model and one network for the tests of exports."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exporting.exporter import export


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 3 classes with 5 pictures each, of several kinds of file, and one broken one."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for code, name in enumerate(("ant", "bee", "moth")):
        (folder / name).mkdir()
        for number in range(5):
            base = rng.normal(0, 40, (48, 64, 3)) + np.eye(3)[code] * 90 + 80
            image = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
            image.save(folder / name / f"{number}.{('jpg', 'png')[number % 2]}", quality=95)
    (folder / "moth" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def files(pictures):
    return sorted(str(path) for path in pictures.glob("*/[0-9].*"))


@pytest.fixture(scope="session")
def label_sets(files):
    """The pictures with any number of labels; what the last one has is not known."""
    sets = ["all", "all|bee", "all|ключ|bee"]
    return featx.ImageDataset.from_paths(files, [*np.repeat(sets, 5)[:-1], ""])


@pytest.fixture(scope="session")
def fit(small_network, files):
    """A function that fits a classifier on the pictures."""

    def fitted(head="logistic", *, names=("ant", "bee", "moth"), **options):
        model = featx.ImageClassifier(f"file:{small_network}", head, **options)
        return model.fit(files, np.repeat(names, 5))

    return fitted


@pytest.fixture(scope="session")
def model(fit):
    return fit()


@pytest.fixture(scope="session")
def keras_export(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("keras") / "m.keras").path
