from __future__ import annotations

import json

import pytest

import featx


@pytest.fixture
def model(small_network, photos, tmp_path):
    features = featx.extract(photos, backbone=f"file:{small_network}", cache=tmp_path / "cache")
    result = featx.train(features, backbone=f"file:{small_network}", cv=0)
    result.model.save(tmp_path / "m.featx", training=result.training)
    return tmp_path / "m.featx"


def test_an_export_is_verified_and_says_how_to_serve_it(
    featx_command, featx_process, model, photos, tmp_path
):
    result = featx_process("export", model, "--format", "openvino", "--verify", photos)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()[:2]
    assert first.endswith("2 classes, named in m.xml.json")
    assert second.startswith("verified with OpenVINO")
    assert "on 12 images of photos (0 failed): top-1 changed on 0" in second
    assert "--- python\n\nimport json\n\nimport numpy as np\nimport openvino\n" in result.stdout
    assert not result.stderr.strip()
    again = featx_command("export", model, "--format", "openvino")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "--force" in again.stderr


@pytest.mark.slow
def test_int8_takes_the_images_of_training(featx_command, model, tmp_path):
    result = featx_command("export", model, "-o", "m.tflite", "--int8", "--json")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["precision"], said["calibrated_on"]) == ("int8", "photos")
    assert said["size_bytes"] == (tmp_path / "m.tflite").stat().st_size
    assert set(said["serving"]) == {"python", "javascript"}
    assert not result.stderr.strip()
