"""The same features from a cluster of Ray and from one of Dask, whatever dies in them."""

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import EngineError
from featx.extraction import parts

COUNT = 48


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster") / "photos"
    for n in range(COUNT):
        label = folder / ("ant" if n % 2 else "bee")
        label.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(label / f"{n:03d}.png")
    return folder


@pytest.fixture(scope="module")
def plain(photos):
    return featx.extract(photos, cache=photos.with_name("plain"))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(parts, "_LEAST_ROWS", 6)
    monkeypatch.setattr(parts, "_PARTS", 8)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def same(one, other):
    a, b = one.manifest, other.manifest
    assert np.array_equal(a.key, b.key)
    assert np.array_equal(a.status, b.status)
    assert one.y.tolist() == other.y.tolist()
    assert np.array_equal(one.X, other.X)
    return True


def dying_once(file):
    """Return what ends its process if a file is there, which it removes, else computes a part."""
    name = str(file)

    def compute(part):
        # Under its own name: what is nested here is sent as it is.
        import os

        from featx.extraction import parts

        try:
            os.unlink(name)
        except FileNotFoundError:
            return parts.compute_part(part)
        os._exit(7)

    return compute


def dying_of(path):
    """Return what ends its process whenever a part has an image."""

    def compute(part):
        import os

        from featx.extraction import parts

        if path in part.images.paths:
            os._exit(7)
        return parts.compute_part(part)

    return compute


# Ray


@pytest.fixture(scope="module")
def ray_cluster():
    """Two nodes on this machine, with a processor each."""
    pytest.importorskip("ray", reason="needs ray")
    import ray
    from ray.cluster_utils import Cluster

    folder = str(Path(featx.__file__).parents[1])
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    node = cluster.add_node(num_cpus=1)
    paths = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield cluster, node
    ray.shutdown()
    cluster.shutdown()


def test_ray_computes_what_this_process_does(ray_cluster, photos, plain, cache):
    feats = featx.extract(photos, cache=cache, on="ray")
    assert same(plain, feats)
    assert feats.report["extracted"] == COUNT
    assert featx.extract(photos, cache=cache, on="ray").report["extracted"] == 0
    import ray

    assert ray.is_initialized()  # it was connected before, and is not ours to end


def test_a_worker_of_ray_that_is_killed_is_replaced(
    ray_cluster, photos, plain, cache, tmp_path, monkeypatch
):
    marker = tmp_path / "kill"
    marker.touch()
    monkeypatch.setattr(parts, "compute_part", dying_once(marker))
    feats = featx.extract(photos, cache=cache, on="ray")
    assert not marker.exists()
    assert feats.report["failed"] == 0
    assert same(plain, feats)


def test_a_part_that_always_kills_its_worker_fails_alone(
    ray_cluster, photos, plain, cache, monkeypatch
):
    victim = plain.paths[7]
    with monkeypatch.context() as patch:
        patch.setattr(parts, "compute_part", dying_of(victim))
        feats = featx.extract(photos, cache=cache, on="ray")
    lost = [path for path, why in feats.failed if why.startswith(parts.NOT_COMPUTED)]
    assert victim in lost
    assert len(lost) == 6
    again = featx.extract(photos, cache=cache, on="ray")
    assert again.report["extracted"] == 6
    assert same(plain, again)


def test_a_node_of_ray_that_goes_loses_no_row(ray_cluster, photos, plain, cache, monkeypatch):
    cluster, node = ray_cluster
    real, entered = parts.PartedRun._enter, []

    def enter(self, future, rows):
        entered.append(rows)
        if len(entered) == 1:
            cluster.remove_node(node)
        real(self, future, rows)

    monkeypatch.setattr(parts.PartedRun, "_enter", enter)
    try:
        feats = featx.extract(photos, cache=cache, on="ray")
    finally:
        cluster.add_node(num_cpus=1)
    assert feats.report["failed"] == 0
    assert same(plain, feats)


def test_ray_writes_predictions(ray_cluster, photos, plain, tmp_path, monkeypatch):
    from featx.models import prediction

    monkeypatch.setattr(prediction, "_CHUNK", 20)
    featx.train(plain, head="nearest-mean", cache=photos.with_name("plain")).model.save(
        tmp_path / "m.featx"
    )
    done = featx.predict_to(tmp_path / "m.featx", photos, tmp_path / "ray", on="ray")
    assert (done.written, done.images, done.failed) == (3, COUNT, ())
    featx.predict_to(tmp_path / "m.featx", photos, tmp_path / "here")
    for file in (tmp_path / "here").iterdir():
        assert (tmp_path / "ray" / file.name).read_text() == file.read_text()


DRIVER = """
    import sys, os, logging
    import featx
    from featx.extraction import parts

    parts._LEAST_ROWS, parts._PARTS, parts._WINDOW = 6, 8, 1
    real, entered = parts.PartedRun._enter, []

    def enter(self, future, rows):
        real(self, future, rows)
        entered.append(rows)
        if len(entered) == 3:
            os.kill(os.getpid(), 9)

    parts.PartedRun._enter = enter
    featx.extract(sys.argv[1], cache=sys.argv[2], on="ray")
"""


def test_a_driver_that_is_killed_and_run_again(ray_cluster, photos, plain, cache):
    cluster, _ = ray_cluster
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(photos), str(cache)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr[-2000:]
    again = featx.extract(photos, cache=cache, on="ray")
    assert again.report["extracted"] <= COUNT - 3 * 6
    assert same(plain, again)


def test_no_cluster_of_ray_at_an_address(photos, cache):
    pytest.importorskip("ray", reason="needs ray")
    code = "import featx, sys; featx.extract(sys.argv[1], cache=sys.argv[2], on='ray')"
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    command = [sys.executable, "-c", code, str(photos), str(cache)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "no Ray cluster at RAY_ADDRESS=127.0.0.1:1" in done.stderr


# Dask


@pytest.fixture(scope="module")
def dask_cluster():
    pytest.importorskip("distributed", reason="needs distributed")
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        host="127.0.0.1",
        silence_logs=logging.ERROR,
    ) as cluster:
        yield cluster


@pytest.mark.filterwarnings("ignore")
def test_dask_computes_what_this_process_does(dask_cluster, photos, plain, cache):
    feats = featx.extract(photos, cache=cache, on=f"dask={dask_cluster.scheduler_address}")
    assert same(plain, feats)
    assert feats.report["extracted"] == COUNT


@pytest.mark.filterwarnings("ignore")
def test_a_worker_of_dask_that_is_killed_is_replaced(
    dask_cluster, photos, plain, cache, tmp_path, monkeypatch
):
    marker = tmp_path / "kill"
    marker.touch()
    monkeypatch.setattr(parts, "compute_part", dying_once(marker))
    feats = featx.extract(photos, cache=cache, on=f"dask={dask_cluster.scheduler_address}")
    assert not marker.exists()
    assert feats.report["failed"] == 0
    assert same(plain, feats)


def test_no_scheduler_of_dask_at_an_address(photos, cache):
    pytest.importorskip("distributed", reason="needs distributed")
    with pytest.raises(EngineError, match="no Dask scheduler at tcp://127.0.0.1:1"):
        featx.extract(photos, cache=cache, on="dask=tcp://127.0.0.1:1")
