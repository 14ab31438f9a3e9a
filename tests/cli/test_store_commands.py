"""Models, pages and predictions whose files lie in a store."""

from __future__ import annotations

import json

import pytest

import featx
from featx.exceptions import CacheError, OutputError, StoreError

pytest.importorskip("obstore")
from object_server import BUCKET, serving

MODEL = "s3://bucket/models/photos.featx"


@pytest.fixture
def server(photos):
    with serving() as server:
        server.put_folder(photos, "photos/")
        yield server


@pytest.fixture
def run(featx_command, tmp_path):
    def invoke(*args, code=0):
        done = featx_command(*args, "--cache", tmp_path / "cache")
        assert done.returncode == code, done.stderr
        return done

    return invoke


def test_a_model_goes_to_a_store_and_predicts_from_there(server, photos, run, tmp_path):
    done = run("train", f"{server.url}/{BUCKET}/none.csv?sig=secret", "-o", MODEL, code=1)
    assert "no such object" in done.stderr
    done = run("train", "s3://bucket/photos/", "-o", MODEL)
    assert f"saved     {MODEL}" in done.stdout
    assert f"featx predict --cache {tmp_path}/cache {MODEL} s3://bucket/photos/" in done.stdout
    from_store = run("predict", MODEL, photos, "--format", "csv").stdout
    local = tmp_path / "photos.featx"
    local.write_bytes(server.objects["models/photos.featx"])
    assert from_store == run("predict", local, photos, "--format", "csv").stdout
    model = featx.load(MODEL)
    assert model.classes_.tolist() == ["blue", "red"]
    scores = json.loads(run("evaluate", MODEL, "s3://bucket/photos", "--json").stdout)
    assert (scores["model"], scores["images"]) == (MODEL, 12)
    done = run("train", "s3://bucket/photos/", "-o", MODEL)
    assert "since the model that was there" in done.stdout


def test_a_search_and_a_fine_tuning_write_into_a_store(server, run, photos):
    done = run("search", photos, "--head", "ridge", "--tap", "avg", "--no-ensemble", "-o", MODEL)
    assert f"saved     {MODEL}" in done.stdout
    tuned = "s3://bucket/models/photos-finetuned.featx"
    done = run("finetune", MODEL, photos, "--epochs", "1", "--views", "0")
    assert f"saved     {tuned}" in done.stdout
    assert featx.load(tuned).classes_.tolist() == ["blue", "red"]


def test_pages_are_written_into_a_store(server, run, photos):
    pytest.importorskip("bokeh")
    page = "s3://bucket/pages/report.html"
    for _ in range(2):  # a page of featx may be replaced
        done = run("train", photos, "-o", MODEL, "--report", page)
        assert f"report    {page}" in done.stdout
    assert b"A page made by featx" in server.objects["pages/report.html"]
    done = run("report", MODEL, photos, "-o", page)
    assert f"{page} (" in done.stdout


def test_what_featx_did_not_make_is_not_replaced(server, run, photos):
    server.put("models/photos.featx", b"precious")
    server.put("report.html", b"precious")
    done = run("train", photos, "-o", MODEL, code=2)
    assert "is no model made by featx: name another object" in done.stderr
    done = run("train", photos, "-o", "m.featx", "--report", "s3://bucket/report.html", code=2)
    assert "is no page made by featx" in done.stderr
    assert server.objects["models/photos.featx"] == server.objects["report.html"] == b"precious"
    run("train", photos, "-o", MODEL, "--force")
    assert server.objects["models/photos.featx"] != b"precious"
    done = run("train", photos, "-o", "https://host/m.featx", code=2)
    assert "an object of a bucket such as s3://bucket/name" in done.stderr


def test_a_model_that_a_store_does_not_take_is_kept_here(server, run, photos, tmp_path):
    server.misbehave = lambda method, name: 403 if method == "PUT" else None
    done = run("train", photos, "-o", MODEL, code=2)
    assert "access denied" in done.stderr
    assert "What was made is kept in 'photos.featx'" in done.stderr
    assert featx.load(tmp_path / "photos.featx").classes_.tolist() == ["blue", "red"]


def test_no_secret_of_an_address_is_in_a_model(server, run):
    rows = "".join(
        f"photos/{name}/{number}.jpg,{name}\n" for name in ("red", "blue") for number in range(6)
    )
    server.put("table.csv", f"path,label\n{rows}".encode())
    table = server.url.replace("http://", "http://ann:pass@") + f"/{BUCKET}/table.csv?sig=secret"
    done = run("train", table, "-o", MODEL)
    for text in (done.stdout, done.stderr, server.objects["models/photos.featx"].decode("latin-1")):
        assert "sig=" not in text
        assert "ann:pass" not in text


def test_predictions_read_addresses(server, run, photos, featx_command, tmp_path):
    run("train", photos, "-o", "m.featx")
    url = f"{server.url}/{BUCKET}/photos/red/0.jpg"
    done = run("predict", "m.featx", "s3://bucket/photos/blue", f"{url}?sig=x", "--format", "csv")
    rows = [line.split(",")[:2] for line in done.stdout.splitlines()[1:]]
    assert rows == [
        *([f"s3://bucket/photos/blue/{number}.jpg", "blue"] for number in range(6)),
        [url, "red"],
    ]
    for more, status in (((), "failed"), (("--follow-urls",), "ok")):
        done = featx_command("predict", "m.featx", "-", "--format", "jsonl", *more, stdin=url)
        assert json.loads(done.stdout)["status"] == status
    model = featx.load(tmp_path / "m.featx")
    assert next(featx.predict(model, url)).status == "ok"
    assert next(featx.predict(model, [url])).reason.startswith("an address")
    assert next(featx.predict(model, [url], follow_urls=True)).status == "ok"


def test_a_cache_is_a_folder(server, featx_command, photos, monkeypatch):
    done = featx_command("extract", photos, "--cache", "s3://bucket/cache")
    assert done.returncode == 1
    for words in ("s3://bucket/cache", "featx cache push", "featx cache pull"):
        assert words in done.stderr
    with pytest.raises(CacheError, match="featx cache push"):
        featx.extract(photos, cache="gs://bucket/cache")
    monkeypatch.setenv("FEATX_CACHE", "s3://bucket/cache")
    with pytest.raises(CacheError, match="featx cache push"):
        featx.FeatureCache()


def test_a_model_that_is_not_there_is_an_error(server):
    with pytest.raises(StoreError, match=r"s3://bucket/m.featx is not there"):
        featx.load("s3://bucket/m.featx")
    with pytest.raises(OutputError, match="an object of a bucket"):
        featx.ImageClassifier().save("s3://bucket/")
