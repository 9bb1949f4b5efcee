"""A real Chromium without a window, opening report pages from their files and keeping an eye on what they do."""

import shutil
import time
from contextlib import contextmanager

import pytest

from holdfast.report.page import write

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def chromium():
    """The system's browser; tests are skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright drives the browser: pip install playwright"
    )
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(chromium, path, *, width=1200, fragment="", before="", **settings):
    """The page in a fresh window; at the end it must have asked for nothing but itself and complained of nothing.

    Args:
        chromium: the fixture above.
        path: of the HTML file.
        width: of the window in pixels.
        fragment: of the address, without #.
        before: a script that runs before the page's own.
        settings: of the window, `color_scheme` for instance.
    """
    context = chromium.new_context(viewport={"width": width, "height": 900}, **settings)
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.set_default_timeout(10_000)
    if before:
        page.add_init_script(before)
    page.goto(path.as_uri() + (f"#{fragment}" if fragment else ""))
    try:
        yield page
        assert complaints == []
        assert {url.partition("#")[0] for url in requests if not url.startswith(("data:", "blob:"))} == {path.as_uri()}
    finally:
        context.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Content of a results.json -> the page's file, written once for each name."""
    folder, files = tmp_path_factory.mktemp("pages"), {}

    def page(name, content):
        if name not in files:
            files[name] = folder / f"{name}.html"
            write(content, files[name])
        return files[name]

    return page


def points(page, plot):
    """Every shown point of a plot: what it opens, and where on the screen it is."""
    return page.evaluate(
        """(id) => {
          const plot = document.getElementById(id), box = plot.getBoundingClientRect();
          const { xaxis, yaxis } = plot._fullLayout;
          const shown = plot.data.filter((trace) => trace.visible !== false && trace.customdata);
          return shown.flatMap((trace) => trace.x.map((x, j) => ({
            opens: trace.customdata[j], seen: trace.hoverinfo !== "skip", size: trace.marker?.size,
            x: box.left + xaxis._offset + xaxis.d2p(x), y: box.top + yaxis._offset + yaxis.d2p(trace.y[j]),
          })));
        }""",
        plot,
    )


def point_of(page, plot, opens):
    """Scroll to a plot and return the screen position of the largest point that opens this."""
    page.locator(f"#{plot}").scroll_into_view_if_needed()
    found = [point for point in points(page, plot) if point["opens"] == opens and point["seen"]]
    return max(found, key=lambda point: point["size"])


def until(page, expression, wanted):
    """Wait for what a script says; the page's own policy forbids the waiting that playwright would do in it."""
    end = time.monotonic() + 10
    while (found := page.evaluate(expression)) != wanted:
        assert time.monotonic() < end, f"{expression} is {found!r}, not {wanted!r}"
        page.wait_for_timeout(30)


def empty_plots(page):
    """The plots in which nothing is drawn."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".js-plotly-plot")]
          .filter((plot) => !plot.querySelector(
            ".point, .js-line, .heatmaplayer image, .heatmaplayer path, .contourlayer path"))
          .map((plot) => plot.id || "of the panel")"""
    )
