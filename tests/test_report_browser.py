"""The report in a real browser: whole, readable on a phone, in the dark and on paper, silent and alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedskew.report.comparison import write_comparison
from fedskew.report.page import write_report

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt-get install chromium")
RUN, COMPARISON = 13, 5  # figures of each page


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(finished_run, dense_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    compared = [dense_run.path, finished_run.path]
    return {
        "run": (write_report(finished_run.path, folder / "run.html"), RUN),
        "comparison": (write_comparison(compared, folder / "comparison.html"), COMPARISON),
    }


def opened(browser, path, width=1200, **more):
    """The page in a window, with what it said and what it asked for."""
    context = browser.new_context(viewport={"width": width, "height": 812}, **more)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, said, asked


@pytest.mark.parametrize("kind", ["run", "comparison"])
@pytest.mark.parametrize("width", [375, 768, 1200])
def test_every_figure_is_seen_nothing_overflows_nothing_is_said_or_fetched(browser, pages, kind, width):
    path, count = pages[kind]
    page, said, asked = opened(browser, path, width)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = page.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().toJSON())")
    assert len(boxes) == count
    assert all(
        box["width"] > 250 and box["height"] > 60 and box["left"] >= 0 and box["right"] <= width for box in boxes
    )


def test_letters_of_figures_are_text_and_large_enough_on_a_phone(browser, pages):
    page, _, _ = opened(browser, pages["run"][0], 375)
    sizes = page.evaluate("""[...document.querySelectorAll('figure svg text')].map(t => {
      const svg = t.closest('svg'), scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      return parseFloat(getComputedStyle(t).fontSize) * scale})""")
    assert len(sizes) > 80
    assert min(sizes) >= 8
    assert sorted(sizes)[len(sizes) // 2] >= 10.5
    words = page.evaluate("[...document.querySelectorAll('[data-figure=recall] text')].map(t => t.textContent)")
    assert {"nv", "mel"} <= set(words)


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_no_word_leaves_its_figure(browser, pages, kind):
    page, _, _ = opened(browser, pages[kind][0], 375)
    outside = page.evaluate("""[...document.querySelectorAll('figure svg text')].filter(t => {
      const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
      return a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1)
    }).map(t => t.closest('svg').dataset.figure + ': ' + t.textContent)""")
    assert outside == []


def test_colours_follow_the_reader_and_every_one_is_the_pages_own(browser, pages):
    shades = []
    for scheme in ("light", "dark"):
        page, _, _ = opened(browser, pages["run"][0], color_scheme=scheme)
        found = page.evaluate("""() => {
          const css = getComputedStyle(document.documentElement), names = new Set();
          for (const e of document.querySelectorAll('figure svg [style]'))
            for (const m of e.getAttribute('style').matchAll(/var\\((--[a-z0-9-]+)\\)/g)) names.add(m[1]);
          const dot = document.querySelector('[data-figure=recall] [style*="fill: var(--model)"]');
          return {empty: [...names].filter(n => !css.getPropertyValue(n)), names: [...names],
                  paper: getComputedStyle(document.body).backgroundColor, dot: getComputedStyle(dot).fill,
                  literal: [...document.querySelectorAll('figure svg [style*="#0101"]')].length}}""")
        assert found["empty"] == []
        assert {"--ink", "--model", "--line"} <= set(found["names"])
        assert found["literal"] == 0
        shades.append((found["paper"], found["dot"]))
    assert shades[0][0] != shades[1][0]
    assert shades[0][1] != shades[1][1]


def test_it_prints_light_whatever_the_reader_and_without_links_to_jump_to(browser, pages):
    page, _, _ = opened(browser, pages["run"][0], color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_line_of_coverage_is_seen_without_scrolling(browser, pages):
    page, _, _ = opened(browser, pages["run"][0], 375)
    box = page.locator(".coverage").first.bounding_box()
    assert box["y"] + box["height"] < 812
    weight = page.evaluate("getComputedStyle(document.querySelector('.coverage')).fontWeight")
    assert int(weight) >= 600
