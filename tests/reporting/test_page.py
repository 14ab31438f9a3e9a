"""Pages that hold everything that they show, and show text as text."""

from __future__ import annotations

import re

import pytest

from featx.exceptions import OutputError

pytest.importorskip("jinja2", reason="pages need the extra report")

from featx.reporting import page

HOSTILE = "<img src=x onerror=alert(1)>\"'&</script>\x1b[2J\udcff\u202e"


@pytest.fixture
def template(monkeypatch, tmp_path):
    """A template on the base of all pages."""
    folder = tmp_path / "templates"
    folder.mkdir()
    for file in page._TEMPLATES.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "sheet.html").write_text(
        '{% extends "base.html" %}{% import "parts.html" as parts %}'
        "{% block title %}{{ name }}{% endblock %}"
        "{% block content %}{{ parts.tile(picture, name, [name]) }}{% endblock %}"
    )
    monkeypatch.setattr(page, "_TEMPLATES", folder)
    page._environment.cache_clear()
    yield "sheet.html"
    page._environment.cache_clear()


def test_text_of_data_is_text_on_the_page(template, tmp_path):
    target = tmp_path / "sheet.html"
    page.write_page(target, template, name=HOSTILE, picture=None)
    text = target.read_text("utf-8")
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "<img" not in text
    assert "\\x1b[2J\\udcff\\u202e" in text
    assert "no picture" in text


def test_a_page_may_load_nothing_and_run_its_own_scripts_only(template):
    text = page.render_page(template, name="a", picture="data:,", scripts=["let a = '<b>'"])
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe-eval" not in policy
    assert "<script>let a = '<b>'</script>" in text


def test_a_page_replaces_pages_only(template, tmp_path):
    target, values = tmp_path / "sheet.html", {"name": "a", "picture": None}
    page.write_page(target, template, **values)
    page.write_page(target, template, **values)
    target.write_text("<!doctype html>\n<p>a page of somebody else")
    with pytest.raises(OutputError, match="is no page made by featx"):
        page.write_page(target, template, **values)
    page.write_page(target, template, overwrite=True, **values)
    assert page.is_page(target)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["sheet.html"]
