"""The images to label next come as a list that relabelling takes back."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

import featx


@pytest.fixture
def unlabelled(photos, tmp_path):
    """A folder of 12 images without labels, 6 red and 6 blue, and 2 copies; its name is `new`."""
    folder = tmp_path / "new"
    folder.mkdir()
    for path in sorted(photos.glob("*/*.jpg")):
        shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    for number in range(2):
        shutil.copy(photos / "red" / "0.jpg", folder / f"copy {number}.jpg")
    return folder


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_list_is_filled_in_given_back_and_the_model_asks_for_more(
    unlabelled, tmp_path, featx_command
):
    first = featx_command("select", unlabelled, "-n", "4", "-o", "to label.csv")
    assert first.returncode == 0, first.stderr
    assert "featx dataset relabel --labels 'to label.csv' new" in first.stdout
    rows = read(tmp_path / "to label.csv")
    assert {row["path"].split("-")[0] for row in rows} >= {"blue"}
    assert [row["label"] for row in rows] == [""] * 4
    assert featx_command("select", "new", "-n", "4", "-o", "to label.csv").returncode == 0
    with (tmp_path / "to label.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for row in rows:
            writer.writerow([row["path"], "blue" if "blue" in row["path"] else "red"])
    refused = featx_command("select", "new", "-n", "4", "-o", "to label.csv")
    assert refused.returncode == 2
    assert "is no list without labels made by featx" in refused.stderr
    back = featx_command("dataset", "relabel", "new", "--labels", "to label.csv")
    assert back.returncode == 0, back.stderr
    assert featx_command("train", "new", "--cv", "0", "-o", "m.featx").returncode == 0
    more = featx_command("select", "new", "-n", "3", "--model", "m.featx", "--json")
    assert more.returncode == 0, more.stderr
    images = json.loads(more.stdout)["images"]
    assert len(images) == 3
    assert not {image["path"] for image in images} & {row["path"] for row in rows}
    assert {image["predicted"] for image in images} <= {"red", "blue"}


def test_no_image_comes_twice_and_none_that_equals_a_labelled_one(unlabelled, tmp_path):
    features = featx.extract(unlabelled, backbone="tiny", cache=tmp_path / "cache")
    assert len(features) == 14
    chosen = featx.select(features, 100)
    assert len(chosen) == 12
    keys = {features.keys[image.row].tobytes() for image in chosen}
    assert len(keys) == 12
    assert chosen == featx.select(features, 100)


def test_what_there_is_not_to_choose_is_said(photos, tmp_path, featx_command):
    refused = featx_command("select", photos)
    assert refused.returncode == 1
    assert "every image of 'photos' has a label" in refused.stderr
    paths = "\n".join(f"{path},," for path in photos.glob("red/*.jpg"))
    (tmp_path / "held.csv").write_text(f"path,label,split\n{paths.replace(',,', ',,test')}\n")
    refused = featx_command("select", "held.csv")
    assert "are in the splits test and val" in refused.stderr
    X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    sounds = featx.import_features("sounds", X, cache=tmp_path / "cache")
    model = featx.train(featx.extract(photos, cache=tmp_path / "cache"), cv=0).model
    with pytest.raises(featx.FeaturesError, match="expected one block for backbone='tiny'"):
        featx.select(featx.Features.open("sounds", cache=tmp_path / "cache"), 2, model=model)
    assert sounds
