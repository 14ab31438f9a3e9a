"""A report as its reader meets it: in Chromium, from disk."""

from __future__ import annotations

import contextlib
import csv
import os
from pathlib import Path

import pytest

HOSTILE = "<img src=x onerror=window.hacked=1>'\" & \\x1b[2J\\u202e.jpg"


@pytest.fixture
def opened(browser, report_file):
    """A function that opens the report; every request and error of the page is kept."""
    contexts = []

    def opened(width=1280, height=900, file=report_file):
        context = browser.new_context(viewport={"width": width, "height": height})
        context.set_default_timeout(600_000)  # a busy machine is no fault of the page
        contexts.append(context)
        page = context.new_page()
        page.requests, page.errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on(
            "console",
            lambda line: page.errors.append(line.text) if line.type == "error" else None,
        )
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()


def draw_map(page):
    page.locator("#map").scroll_into_view_if_needed()
    page.locator("#map-plot").scroll_into_view_if_needed()
    page.wait_for_selector("html[data-map=drawn]")


def rows_where(page, truth, predicted):
    """Names of the rows of a cell."""
    return page.evaluate(
        """([truth, predicted]) => {
            const {column, nameOf} = featxReport;
            return [...column.label.keys()].filter(
                (row) => column.label[row] === truth + 1 && column.predicted[row] === predicted + 1
            ).map(nameOf);
        }""",
        [truth, predicted],
    )


def screenshot(page, name):
    """Keep a picture where FEATX_SCREENSHOTS says."""
    folder = os.environ.get("FEATX_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_no_request_leaves_the_page_and_nothing_fails(opened, report_file):
    page = opened()
    draw_map(page)
    page.locator("#confidence").scroll_into_view_if_needed()
    page.wait_for_selector("[data-plot=reliability] > *")
    page.wait_for_selector("[data-plot=coverage] > *")
    outside = [url for url in page.requests if not url.startswith(("data:", "blob:"))]
    assert outside == [report_file.as_uri()]
    assert page.errors == []
    screenshot(page, "desktop")


def test_a_click_on_a_cell_shows_its_images_the_worst_first(opened, trained):
    page = opened()
    judged = trained.scored.judged
    names = judged.classes.tolist()
    wrong = [number for number in range(len(judged.truth)) if not judged.right[number]]
    truth, predicted = int(judged.truth[wrong[0]]), int(judged.predicted[wrong[0]])
    page.click(f"button[data-truth='{truth}'][data-predicted='{predicted}']")
    title = page.inner_text("#images-title")
    assert title == f"{names[truth]} predicted as {names[predicted]}, the worst first"
    shown = page.locator("#images-tiles .name").all_inner_texts()
    assert sorted(shown) == sorted(rows_where(page, truth, predicted))
    first = page.locator("#images-tiles li").first
    assert names[predicted] in first.inner_text()
    assert f"labelled {names[truth]}" in first.inner_text()
    sizes = page.evaluate(
        "Promise.all([...document.querySelectorAll('#images-tiles img')].map(async (image) => "
        "(image.loading = 'eager', await image.decode(), image.naturalWidth)))"
    )
    assert len(sizes) == len(shown)
    assert set(sizes) == {160}


def test_a_keyboard_is_enough(opened):
    page = opened()
    button = page.locator(".matrix button").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("#images").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#images").is_visible()
    assert button.evaluate("button => button === document.activeElement")
    draw_map(page)
    page.locator("#map-plot").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    assert page.inner_text("#map-selected-title") == "1 image selected"
    assert page.inner_text("#map-files li") == page.locator("#tip .name").last.inner_text()


def test_names_with_markup_are_text(opened):
    page = opened()
    page.click("#classes .class-table th button")
    text = page.inner_text("body")
    assert "<b>green<∕b>" in text
    assert page.evaluate("window.hacked") is None
    rows = page.evaluate("featxReport.column.label.length")
    names = [page.evaluate(f"featxReport.nameOf({row})") for row in range(rows)]
    row = next(number for number, name in enumerate(names) if "onerror" in name)
    draw_map(page)
    x, y = page.evaluate(f"featxReport.screen({row})")
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.wait_for_selector("#tip:visible")
    shown = page.locator("#tip .name").last.inner_text()
    assert shown.endswith(".jpg")
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0


def test_pointing_at_a_point_shows_its_image(opened):
    page = opened()
    draw_map(page)
    for row in (0, 20):
        x, y = page.evaluate(f"featxReport.screen({row})")
        page.mouse.move(x - 3, y - 3)
        page.mouse.move(x, y)
        page.wait_for_selector("#tip:visible")
        assert page.locator("#tip img").get_attribute("src").startswith("data:image/webp")


def test_a_region_of_the_map_lists_its_files_as_csv(opened, trained):
    from playwright.sync_api import TimeoutError as TooLate

    page = opened()
    draw_map(page)
    box = page.locator("#map-plot").bounding_box()
    left, top = box["x"] + 12, box["y"] + 45
    right, bottom = box["x"] + box["width"] - 12, box["y"] + box["height"] - 12
    selected = page.locator("#map-selected-title:has-text('36 images selected')")
    for _ in range(20):
        page.mouse.move(left, top)
        page.mouse.down()
        for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 4)):
            page.mouse.move(x, y, steps=4)
        page.mouse.up()
        # Where a busy machine holds the first move up, the map takes it for a long press.
        with contextlib.suppress(TooLate):
            selected.wait_for(timeout=3000)
            break
    assert selected.is_visible()
    with page.expect_download() as download:
        page.click("#map-save")
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    features = trained.scored.features
    assert sorted(row["path"] for row in rows) == sorted(features.paths)
    labels = dict(zip(features.paths, features.y.tolist(), strict=True))
    assert {row["path"]: row["label"] for row in rows} == labels


def test_a_phone_shows_all_without_scrolling_sideways(opened):
    page = opened(width=390, height=844)
    draw_map(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".matrix button").first.click()
    assert page.locator("#images-close").is_visible()
    page.click("#images-close")
    screenshot(page, "phone")


def test_the_words_of_a_leaderboard_stay_whole(opened, search_file):
    for width in (390, 1280):
        page = opened(width=width, file=search_file)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cells = page.locator("#search tbody tr:first-child > :nth-child(-n+5):not(th)")
        heights = cells.evaluate_all(
            "cells => cells.map(cell => { const range = document.createRange();"
            " range.selectNodeContents(cell); return range.getClientRects().length; })"
        )
        assert heights == [1, 1, 1, 1]  # rank, transform, backbone and tap: a line each


def test_plots_are_there_to_be_printed_before_anybody_looks_at_them(opened, search_file):
    page = opened(file=search_file)
    for name in ("reliability", "coverage", "leaderboard"):
        page.wait_for_selector(f"[data-plot={name}] > *", state="attached")
    page.wait_for_selector("html[data-map=drawn]", state="attached")
    assert page.evaluate("scrollY") == 0
    assert page.errors == []


def test_tab_shows_where_it_is(opened):
    page = opened()
    draw_map(page)
    page.locator("#map-mode").focus()
    reached = []
    while len(reached) < 5:
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                    let element = document.activeElement;
                    while (element.shadowRoot?.activeElement)
                        element = element.shadowRoot.activeElement;
                    return [element.title || element.id, getComputedStyle(element).outlineStyle];
                }"""
            )
        )
    assert ["map-plot", "solid"] in reached
    assert ["Lasso Select", "solid"] in reached
    assert {style for _, style in reached} == {"solid"}
