"""A browser, and datasets with images that models get wrong."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

import featx

HOSTILE = "<img src=x onerror=window.hacked=1>'\" & \x1b[2J\u202e.jpg"


@pytest.fixture(scope="session")
def browser():
    """Chromium as it is found on this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("needs Chromium on this machine: apt-get install chromium")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A folder of 3 classes with 12 images each, some of which lie in the wrong folder."""
    folder = tmp_path_factory.mktemp("shapes") / "shapes"
    generator = np.random.default_rng(0)
    colours = {"blue": (50, 70, 200), "red": (200, 60, 50), "<b>green</b>": (60, 170, 70)}
    names = list(colours)
    for number in range(36):
        name = names[number % 3]
        # Every ninth image is of another class than its folder says.
        colour = colours[names[(number + 1) % 3]] if number % 9 == 4 else colours[name]
        pixels = np.clip(generator.normal(colour, 25, (48, 64, 3)), 0, 255).astype(np.uint8)
        file = folder / name.replace("/", "\u2215") / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=90)
    (folder / "red" / "04.txt").write_text("no image")
    (folder / "red" / "broken.jpg").write_bytes(b"no image")
    (folder / "red" / "01.jpg").rename(folder / "red" / HOSTILE)
    return folder


@pytest.fixture(scope="session")
def trained(shapes, tmp_path_factory):
    """A training on these images."""
    cache = tmp_path_factory.mktemp("cache")
    features = featx.extract(shapes, backbone="tiny", cache=cache)
    return featx.train(features, cv=3, cache=cache)


@pytest.fixture(scope="session")
def report_file(trained, tmp_path_factory):
    """The report of this training."""
    pytest.importorskip("jinja2", reason="reports need the extra report")
    pytest.importorskip("bokeh", reason="reports need the extra report")
    target = tmp_path_factory.mktemp("report") / "report.html"
    trained.report(target, bootstrap=50)
    return target


@pytest.fixture(scope="session")
def search_file(trained, tmp_path_factory):
    """The report of a search on the same images."""
    pytest.importorskip("jinja2", reason="reports need the extra report")
    pytest.importorskip("bokeh", reason="reports need the extra report")
    target = tmp_path_factory.mktemp("search") / "search.html"
    heads = ["ridge:alpha=1|10", "knn:n_neighbors=1|3"]
    result = featx.search(trained.scored.features, heads=heads, cv=3, score="none", n_jobs=1)
    result.report(target, bootstrap=0)
    return target
