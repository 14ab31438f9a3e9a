"""How large the page of a report is, how long it takes to make and to open.

    python scripts/bench/report.py                 # 100,000 images
    python scripts/bench/report.py --libraries     # 100,000 points with Bokeh and with Plotly

The images are real JPEG files of 64 x 64 pixels, the features (1,280 numbers) and answers are made
up: 50 classes, of which 8 % are wrong. The page is opened in Chromium, from disk, without a GPU;
`ready` is when everything but the plots is there, `map` when the map is drawn after one scrolled to
it. Needs the extra `report` and playwright; plotly for `--libraries`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import featx
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Block, Manifest
from featx.cache.space import FeatureSpace
from featx.models.scored import Scored
from featx.reporting.model_report import Subject, write_subject
from featx.selection.metrics import Judged

CLASSES, WIDTH, WRONG = 50, 1280, 0.08
SHARD_ROWS = 5000
SPEC = featx.FeatureSpec(
    backbone="synthetic", weights_sha256="0" * 64, input_size_px=(64, 64), preprocessing="none"
)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def made_up(folder: Path, rows: int) -> Features:
    """Return features of images that are written to a folder."""
    generator = np.random.default_rng(0)
    pictures = []
    for number in range(CLASSES):
        small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(data, "jpeg")
        pictures.append(data.getvalue())
        (folder / "images" / f"class_{number:02d}").mkdir(parents=True)
    labels = generator.integers(0, CLASSES, rows).astype(np.int32)
    paths, keys = [], np.zeros((rows, 32), np.uint8)
    for row, label in enumerate(labels):
        # Bytes after the end of an image make each a file of its own.
        data = pictures[label] + row.to_bytes(8, "big")
        path = f"class_{label:02d}/image_{generator.integers(1 << 40):010x}_{row:06d}.jpg"
        (folder / "images" / path).write_bytes(data)
        keys[row] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        paths.append(path)
    centres = generator.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    space = FeatureSpace(CacheLayout(folder / "cache"), SPEC)
    for start in range(0, rows, SHARD_ROWS):
        part = slice(start, start + SHARD_ROWS)
        noise = generator.normal(size=(len(labels[part]), WIDTH)).astype(np.float32)
        space.add(keys[part], {"avg": centres[labels[part]] + 2 * noise}, {})
    blank, zeros = [""] * rows, np.zeros(rows, np.int64)
    manifest = Manifest(
        name="made-up",
        root=str(folder / "images"),
        classes=tuple(f"class_{number:02d}" for number in range(CLASSES)),
        path=paths,
        label=labels,
        group=blank,
        split=blank,
        reason=blank,
        size=zeros,
        mtime_ns=zeros,
        inode=zeros,
        key=keys,
        status=np.zeros(rows, np.uint8),
        source="files",
        blocks=(Block("synthetic", "avg", SPEC.digest),),
    )
    return Features(manifest, [space])


def answered(features: Features) -> Scored:
    """Return answers that are wrong in a share of the images."""
    generator = np.random.default_rng(1)
    y, names = features.y, np.array(features.classes)
    judged = Judged(y, names)
    said = np.where(
        generator.random(len(y)) < WRONG, generator.integers(0, CLASSES, len(y)), judged.truth
    )
    proba = generator.dirichlet(np.full(CLASSES, 0.1), len(y)) * 0.4
    proba[np.arange(len(y)), said] += 0.6
    judged.add(np.arange(len(y)), proba)
    scores = {"protocol": "made up", **judged.scores()}
    return Scored(
        features=features,
        backbone="synthetic",
        tap="avg",
        rows=np.arange(len(y)),
        names=names,
        scores=scores,
        judged=judged,
    )


def browse(pages: dict[str, Path], ready: str, after: str = "") -> None:
    """Print when pages are ready in a browser: the best of three, in milliseconds."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, CHROMIUM)))
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        for name, path in pages.items():
            opened, drawn = [], []
            for _ in range(3):
                page = browser.new_page(bypass_csp=True, viewport={"width": 1280, "height": 900})
                page.goto(path.resolve().as_uri(), timeout=120_000)
                page.wait_for_function(f"window.performance.getEntriesByName('{ready}').length")
                mark = f"performance.getEntriesByName('{ready}')[0].startTime"
                opened.append(page.evaluate(mark))
                if after:
                    started = page.evaluate(
                        "(document.getElementById('map').scrollIntoView(), performance.now())"
                    )
                    page.wait_for_function(after, timeout=120_000)
                    frame = "new Promise(f => requestAnimationFrame(() => requestAnimationFrame("
                    page.evaluate(f"{frame}() => f())))")
                    drawn.append(page.evaluate("performance.now()") - started)
                page.close()
            size = path.stat().st_size / 1e6
            also = f", map after {min(drawn):,.0f} ms" if drawn else ""
            print(f"{name}: {size:.1f} MB, ready after {min(opened):,.0f} ms{also}", flush=True)
        browser.close()


DRAWN = "requestAnimationFrame(() => requestAnimationFrame(() => performance.mark('drawn')))"


def libraries(folder: Path, rows: int) -> None:
    """Print what a page with the points of a map takes with Bokeh and with Plotly."""
    import plotly.graph_objects as graph
    import plotly.io
    from bokeh.embed import json_item
    from bokeh.plotting import figure

    from featx.reporting.plots import library

    generator = np.random.default_rng(0)
    code = generator.integers(0, 10, rows)
    points = (8 * generator.normal(size=(10, 2)))[code] + generator.normal(size=(rows, 2))
    parts = [points[code == number].astype(np.float32) for number in range(10)]
    plot = figure(width=900, height=600, tools="pan,wheel_zoom,lasso_select,hover")
    for part in parts:
        plot.scatter(part[:, 0], part[:, 1], size=4)
    item = json.dumps(json_item(plot, "plot"))
    script = f"Bokeh.embed.embed_item({item}).then(() => {{ {DRAWN} }})"
    page = f"<!doctype html><meta charset=utf-8><div id=plot></div><script>{library()}</script>"
    (folder / "bokeh.html").write_text(f"{page}<script>{script}</script>", "utf-8")
    traces = [graph.Scattergl(x=part[:, 0], y=part[:, 1], mode="markers") for part in parts]
    whole = plotly.io.to_html(graph.Figure(traces), include_plotlyjs=True, post_script=DRAWN)
    (folder / "plotly.html").write_text(whole, "utf-8")
    browse({name: folder / f"{name}.html" for name in ("bokeh", "plotly")}, "drawn")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--libraries", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.libraries:
            libraries(folder, options.rows)
            return
        features = made_up(folder, options.rows)
        scored = answered(features)
        started, used = time.perf_counter(), time.process_time()
        scored.scores["intervals"] = scored.intervals()
        subject = Subject(title="Made-up answers", scored=scored, facts=[])
        page = folder / "report.html"
        write_subject(subject, page)
        seconds, processor = time.perf_counter() - started, time.process_time() - used
        print(f"{options.rows:,} images: built in {seconds:.0f} s ({processor:.0f} s of processor)")
        browse({"report": page}, "ready", "document.documentElement.dataset.map === 'drawn'")


if __name__ == "__main__":
    main()
