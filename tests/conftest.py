"""Fixtures and flags of the whole suite."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import types
from contextlib import ExitStack, contextmanager
from pathlib import Path

# Threads of BLAS that wait in a loop for a core cost more than all else where tests share cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

# Nothing downloads during tests, and no cache of the user's is touched.
os.environ["FEATX_OFFLINE"] = "1"
os.environ.pop("FEATX_CACHE", None)
os.environ.pop("FEATX_WEIGHTS", None)

# Networks are converted once for the whole suite, although every test has a cache of its own.
# A worker of pytest-xdist is a child of the process that made the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _ENGINES = tempfile.TemporaryDirectory(prefix="featx-engines-")
    os.environ["FEATX_ENGINES"] = _ENGINES.name

# A shell that starts the suite in the background has it ignore Ctrl-C, and so all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tests" / "helpers"))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the longer checks")


def shared_folder():
    named = os.environ.get("FEATX_SHARED")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    return folder if (folder / "weights").is_dir() else None


def pytest_collection_modifyitems(config, items):
    shared = shared_folder()
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="longer check: run with --slow"))
        if "realdata" in item.keywords and shared is None:
            item.add_marker(
                pytest.mark.skip(reason="no reference data in ../shared or FEATX_SHARED")
            )


@pytest.fixture(scope="session")
def shared():
    return shared_folder()


@pytest.fixture(scope="session")
def mobilenet_weights(shared):
    return shared / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5"


def _draw_photo(folder: Path, name: str, *, seed: int, colour: tuple[int, int, int]) -> Path:
    """A JPEG of 80 x 60 pixels: noise around a colour."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, 30, (60, 80, 3)) + np.array(colour)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(path, quality=90)
    return path


@pytest.fixture(scope="session")
def draw_photo():
    """A function that writes a JPEG of noise around a colour."""
    return _draw_photo


@pytest.fixture
def photos(tmp_path, draw_photo):
    """A folder of 2 classes with 6 JPEG files each."""
    folder = tmp_path / "photos"
    for number in range(6):
        draw_photo(folder, f"red/{number}.jpg", seed=number, colour=(200, 60, 60))
        draw_photo(folder, f"blue/{number}.jpg", seed=100 + number, colour=(60, 60, 200))
    return folder


@pytest.fixture(scope="session")
def small_network(tmp_path_factory):
    """A small convolutional network of one's own, saved as .keras: `file:PATH` names it."""
    from featx.quiet import quiet_import

    with quiet_import():
        import keras
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Rescaling(1 / 127.5, -1.0),
            layers.Conv2D(8, 3, strides=2, activation="relu", name="first"),
            layers.Conv2D(16, 3, strides=2, activation="relu", name="second"),
        ]
    )
    path = tmp_path_factory.mktemp("network") / "small.keras"
    model.save(path)
    return path


@pytest.fixture
def run_python():
    """Run Python code in a process of its own and return what it prints."""

    def run(code: str, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=check,
            env={**os.environ, **environment},
            cwd=REPOSITORY,
            timeout=900,
        )

    return run


@pytest.fixture
def featx_process(tmp_path):
    """Run the command line in a process of its own, in an empty folder."""

    def run(*args: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", "from featx.cli.main import main; main()", *map(str, args)],
            capture_output=True,
            text=True,
            input=stdin,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            cwd=tmp_path,
            timeout=900,
        )

    return run


@pytest.fixture
def featx_command(tmp_path):
    """Run the command line in this process, in an empty folder, as `featx_process` does."""

    def run(*args: str | Path, stdin: str = "") -> subprocess.CompletedProcess:
        from featx.cli.main import main

        words = list(map(str, args))
        with pytest.MonkeyPatch.context() as patch, process_state(patch, stdin) as output:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", ["featx", *words])
            try:
                main()
            except SystemExit as error:
                status = error.code
            except Exception:
                traceback.print_exc()
                status = 1
        return subprocess.CompletedProcess(words, status, *output)

    return run


@contextmanager
def process_state(patch, stdin):
    """Give the body the streams, loggers and signals of a new process; yields what it wrote."""
    root, of_featx = logging.getLogger(), logging.getLogger("featx.preprocessing")
    level, level_of_featx = root.level, of_featx.level
    handler = signal.getsignal(signal.SIGTERM)
    output = []
    with ExitStack() as stack:
        files = {}
        for name, content in (("stdin", stdin), ("stdout", ""), ("stderr", "")):
            file = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            file.write(content)
            file.seek(0)
            files[name] = file
            patch.setattr(sys, name, file)
        patch.setenv("FEATX_DEBUG", "")
        patch.setattr(root, "handlers", [])
        root.setLevel(logging.WARNING)
        of_featx.setLevel(logging.NOTSET)
        try:
            yield output
        finally:
            signal.signal(signal.SIGTERM, handler)
            root.setLevel(level)
            of_featx.setLevel(level_of_featx)
            for name in ("stdout", "stderr"):
                files[name].seek(0)
                output.append(files[name].read())


@pytest.fixture(scope="session")
def tf():
    from featx.quiet import quiet_import

    with quiet_import():
        import tensorflow
    return tensorflow


@pytest.fixture(scope="session")
def hub_module(tf, tmp_path_factory):
    """A SavedModel as TensorFlow Hub has them: vectors of images of 32 x 24, pixels 0 to 1."""
    generator = np.random.default_rng(0)

    class FeatureVector(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(generator.normal(size=(3, 3, 3, 6)).astype(np.float32))

        @tf.function(autograph=False)
        def __call__(self, images, training=False):
            x = tf.nn.relu(tf.nn.conv2d(images, self.kernel, 2, "VALID"))
            if training:  # of the batch, as BatchNorm in training mode
                x = x - tf.reduce_mean(x, axis=0, keepdims=True)
            return tf.reduce_mean(x, axis=[1, 2])

    module = FeatureVector()
    images = tf.TensorSpec((None, 32, 24, 3), tf.float32)
    for training in (True, False):
        module.__call__.get_concrete_function(images, training=training)
    folder = tmp_path_factory.mktemp("hub") / "vector" / "2"
    tf.saved_model.save(module, folder)
    return folder


@pytest.fixture
def keras_hub(monkeypatch):
    """What featx asks of KerasHub, making two convolutions; a list of what it was asked for."""
    import keras

    given = []

    def from_preset(preset, load_weights=True, **options):
        given.append((preset, options))
        keras.utils.set_random_seed(0)
        images = keras.Input(options.get("image_shape", (None, None, 3)))
        x = keras.layers.Conv2D(5, 3, strides=2, activation="relu", name="first")(images)
        return keras.Model(images, keras.layers.Conv2D(4, 3, name="stem")(x))

    module = types.ModuleType("keras_hub")
    module.models = types.SimpleNamespace(Backbone=types.SimpleNamespace(from_preset=from_preset))
    monkeypatch.setitem(sys.modules, "keras_hub", module)
    return given
