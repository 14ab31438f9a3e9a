"""A process that was forked off after a prediction answers, or says at once why it cannot."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

SCRIPT = """
import os, signal, sys, traceback
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import featx

# Far more than any of this takes: what hangs ends here.
signal.alarm(900)
paths = [f"{k}{i}.png" for k in "ab" for i in range(6)]
labels = [path[0] for path in paths]

def forked(work):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        try:
            work()
        except featx.exceptions.FeatxError as error:
            print(f"{type(error).__name__}: {error}")
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc()
            sys.exit(9)
        sys.exit(0)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forks")
    rng = np.random.default_rng(0)
    for k, name in enumerate("ab"):
        for i in range(6):
            pixels = rng.integers(0, 100, (40, 48, 3), dtype=np.uint8)
            pixels[..., k] += 120
            Image.fromarray(pixels).save(folder / f"{name}{i}.png")

    def run(code):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT + code],
            cwd=folder,
            # Nothing is converted yet, so that the parent uses Keras too.
            env={
                **os.environ,
                "FEATX_CACHE": str(folder / "cache"),
                "FEATX_ENGINES": str(folder / "engines"),
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.mark.slow
def test_what_a_fork_cannot_do_it_says_at_once_and_the_rest_it_does(run):
    lines = run(
        """
model = featx.ImageClassifier("tiny").fit(paths, labels)
expected = model.predict_proba(paths)
features = featx.FeatureExtractor("tiny").fit(paths).transform(paths)
featx.FeatureExtractor("tiny", engine="keras").fit(paths).transform(paths)
rows = featx.predict(model, paths)
next(rows)

forked(lambda: model.predict(paths))
forked(rows.close)
forked(lambda: list(featx.predict(model, paths[:1])))
forked(lambda: forked(lambda: model.predict(paths)))
forked(lambda: featx.ImageClassifier("tiny", input_size=48).fit(paths, labels))
forked(lambda: featx.FeatureExtractor("tiny", engine="keras").fit(paths).transform(paths))
forked(lambda: featx.ImageClassifier("tiny", head="dense").fit(features, labels))
print("cannot")

forked(lambda: featx.ImageClassifier("tiny").fit(features, labels).predict(features))
print("can", len(list(rows)))

with ThreadPoolExecutor(4) as threads:
    for answer in threads.map(lambda _: model.predict_proba(paths), range(4)):
        np.testing.assert_array_equal(answer, expected)
"""
    )
    cut = lines.index("cannot")
    ends = [line for line in lines[:cut] if line.startswith("ended")]
    errors = [line for line in lines[:cut] if not line.startswith("ended")]
    assert ends == ["ended 0"] * 8
    libraries = [error.split(" was in use before this process was forked")[0] for error in errors]
    assert libraries == [f"EngineError: {x}" for x in ["OpenVINO"] * 4 + ["Keras"] * 2]
    assert all("multiprocessing.get_context('spawn')" in error for error in errors)
    assert lines[cut + 1 :] == ["ended 0", "can 11"]


def test_a_fork_amid_loading_leaves_the_workers_alone(run):
    lines = run(
        """
from featx.images.dataset import ImageDataset
from featx.images.loader import load_images
from featx.spec import ImagePolicy

for isolate in (True, False):
    data = ImageDataset.from_paths(paths)
    rows = load_images(
        data, list(range(12)) * 40, [((8, 8), ImagePolicy())], workers=2, isolate=isolate
    )
    next(rows)
    forked(rows.close)
    forked(lambda: None)
    print(sum(row.status == "decoded" for row in rows))
"""
    )
    assert lines == ["ended 0", "ended 0", "479"] * 2
