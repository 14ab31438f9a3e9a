"""Images most like others: found from any file, by content, and shown as table, JSON and page."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import featx


@pytest.fixture
def extracted(photos, tmp_path):
    """The cache of the folder `photos`, with the features of `tiny`."""
    featx.extract(photos, backbone="tiny", cache=tmp_path / "cache")
    return tmp_path / "cache"


def test_a_new_image_finds_its_kind_and_one_of_the_dataset_is_known(
    extracted, photos, tmp_path, draw_photo, featx_command
):
    draw_photo(tmp_path, "new.jpg", seed=999, colour=(200, 60, 60))
    shutil.copy(photos / "blue" / "2.jpg", tmp_path / "copy.jpg")
    result = featx_command("similar", "photos", "new.jpg", "copy.jpg", "-k", "4", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["dataset"], report["backbone"], report["tap"]) == ("photos", "tiny", "avg")
    new, copy = report["images"]
    assert new["row"] is None
    assert [match["label"] for match in new["matches"]] == ["red"] * 4
    values = [match["similarity"] for match in new["matches"]]
    assert values == sorted(values, reverse=True)
    features = featx.Features.open("photos", cache=extracted)
    assert features.paths[copy["row"]] == "blue/2.jpg"
    assert [match["label"] for match in copy["matches"]] == ["blue"] * 4
    assert "blue/2.jpg" not in [match["path"] for match in copy["matches"]]
    rows, similarities = features.neighbours("blue/2.jpg", k=4)
    assert [match["row"] for match in copy["matches"]] == rows.tolist()
    assert [match["similarity"] for match in copy["matches"]] == similarities.tolist()


def test_images_of_the_dataset_need_neither_network_nor_files(
    extracted, photos, monkeypatch, featx_command
):
    def no_network(*_):
        raise AssertionError("the network was built")

    monkeypatch.setattr("featx.extraction.pipeline.Network.open", no_network)
    folder = featx_command("similar", "photos", photos / "red", "-k", "1")
    assert folder.returncode == 0, folder.stderr
    assert folder.stdout.count("which is red/") == 6
    shutil.rmtree(photos)
    for name in ("red/0.jpg", photos / "red" / "0.jpg"):
        gone = featx_command("similar", "photos", name, "-k", "3")
        assert gone.returncode == 0, gone.stderr
        assert "which is red/0.jpg in photos" in gone.stdout


def test_a_text_lists_images_and_what_cannot_be_read_is_said(
    extracted, photos, tmp_path, featx_command
):
    lists = tmp_path / "lists"
    lists.mkdir()
    shutil.copy(photos / "red" / "0.jpg", lists / "beside.jpg")
    (lists / "broken \x1b[2J.jpg").write_bytes(b"no image")
    text = "beside.jpg\nblue/1.jpg\n\nbroken \x1b[2J.jpg\nnowhere.jpg\n"
    (lists / "queries.txt").write_text(text)
    result = featx_command("similar", "photos", "lists/queries.txt", "-k", "2")
    assert result.returncode == 0, result.stderr
    assert "beside.jpg, which is red/0.jpg in photos" in result.stdout
    assert r"broken \x1b[2J.jpg: failed: " in result.stdout
    assert "nowhere.jpg: failed: no such file" in result.stdout
    assert "2 of 4 could not be read" in result.stderr
    nothing = featx_command("similar", "photos", "nowhere.jpg")
    assert nothing.returncode == 1


def test_several_blocks_have_to_be_chosen_and_a_folder_is_extracted_once(
    photos, tmp_path, featx_command
):
    first = featx_command("similar", photos, "photos/red/0.jpg", "-k", "1")
    assert first.returncode == 0, first.stderr
    featx.extract(photos, taps=["avg", "max"], cache=tmp_path / "cache")
    several = featx_command("similar", "photos", "red/0.jpg")
    assert several.returncode == 2
    assert "choose one with -b and --tap" in several.stderr
    assert "-b tiny --tap max" in several.stderr
    assert featx_command("similar", "photos", "red/0.jpg", "--tap", "max").returncode == 0
    other = featx_command("similar", "photos", "red/0.jpg", "-b", "resnet50")
    assert "0 such blocks" in other.stderr


def test_imported_features_know_their_own_paths_only(tmp_path, featx_command, draw_photo):
    X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    paths = [f"{n}.wav" for n in range(9)]
    featx.import_features("sounds", X, paths=paths, cache=tmp_path / "cache")
    assert featx_command("similar", "sounds", "3.wav").returncode == 0
    draw_photo(tmp_path, "new.jpg", seed=1, colour=(9, 9, 9))
    refused = featx_command("similar", "sounds", "new.jpg")
    assert "features were imported, so that featx cannot compute others" in refused.stderr


def test_a_page_shows_all_pictures_and_never_replaces_what_featx_did_not_make(
    extracted, photos, tmp_path, draw_photo, featx_command
):
    pytest.importorskip("jinja2", reason="pages need the extra report")
    draw_photo(tmp_path, "<b>new & old.jpg", seed=999, colour=(200, 60, 60))
    (photos / "blue" / "3.jpg").unlink()
    args = ("similar", "photos", "<b>new & old.jpg", "blue/0.jpg", "-k", "11", "-o", "sheet.html")
    result = featx_command(*args)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "sheet.html").read_text("utf-8")
    assert "&lt;b&gt;new &amp; old.jpg" in page
    assert "<b>new" not in page
    assert page.count("<img ") == 2 + 22 - 2  # a new image, a known one, and matches but the lost
    assert page.count("no picture") == 2
    assert featx_command(*args).returncode == 0
    (tmp_path / "sheet.html").write_text("mine")
    refused = featx_command(*args)
    assert refused.returncode == 2
    assert "is no page made by featx" in refused.stderr
