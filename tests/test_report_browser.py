"""The report in a real browser: it draws, answers pointer and keyboard, copies, and asks the network for nothing."""

import json
import re
import time

import pytest
from browsing import chromium, empty_plots, opened, point_of, points, until, written  # noqa: F401
from report_rows import COMPARISON, along, budgeted, measured, results, row, two_hundred

WHOLE = [
    one | {"along": along(one), "shift_sizes": {name: price / 10 for name, price in one["per_layer"].items()}}
    for one in COMPARISON
]
PAGES = {
    "one": lambda: results([WHOLE[2]]),
    "budget": lambda: results([budgeted(0.02, 0.018, 0.019, scaled=0.83)]),
    "several": lambda: results(WHOLE),
    "many": lambda: results(two_hundred()),
}
WHICH = "document.getElementById('run-which').textContent"
COUNT = "document.querySelector('.filters output').value"
RUN = "run-kronecker-strength-3-seed-0"


@pytest.fixture
def page_file(written):  # noqa: F811
    return lambda name: written(name, PAGES[name]())


@pytest.mark.parametrize(("name", "scheme"), [(n, "light") for n in PAGES] + [("several", "dark")])
def test_every_plot_draws_and_nothing_is_asked_of_the_network(chromium, page_file, name, scheme):  # noqa: F811
    began = time.perf_counter()
    with opened(chromium, page_file(name), color_scheme=scheme) as page:
        assert page.locator("main .js-plotly-plot").count() >= 4
        assert empty_plots(page) == []
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (max(shade) < 60) == (scheme == "dark")
    assert time.perf_counter() - began < 30


@pytest.mark.parametrize("name", ["budget", "many"])
def test_nothing_is_wider_than_a_phone(chromium, page_file, name):  # noqa: F811
    with opened(chromium, page_file(name), width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.evaluate("location.hash = document.querySelector('main a').hash")
        page.locator("#run[open]").wait_for()
        assert page.evaluate("document.getElementById('run').scrollWidth") <= 390


def test_plain_runs_are_drawn_in_the_readers_ink(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("several"), color_scheme="dark") as page:
        inks = (
            "[...document.getElementById('frontier').data].filter((trace) => trace.plain).map((t) => t.marker.color)"
        )
        assert set(page.evaluate(inks)) == {"#e6e6e1"}
        page.emulate_media(color_scheme="light")
        until(page, f"{inks}.every((color) => color === '#1c1e21')", True)


def test_hover_shows_the_settings(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("several")) as page:
        point = point_of(page, "frontier", RUN)
        page.mouse.move(point["x"], point["y"])
        said = page.locator("#frontier .hovertext").text_content()
        for part in ("Kronecker (strength\u00a03)", "seed 0", "source 3.480 → 3.688", "forecast 0.060"):
            assert part in said


def test_a_click_opens_the_run_and_escape_closes_it(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("several")) as page:
        point = point_of(page, "frontier", RUN)
        page.mouse.click(point["x"], point["y"])
        page.locator("#run[open]").wait_for()
        assert page.url.endswith(f"#{RUN}")
        said = page.locator("#run").inner_text()
        for part in (
            "Kronecker (strength\u00a03)",
            "0.208",
            "Over training",
            "By layer",
            "of items.",
            "method: lora",
            "# model: name yours",
        ):
            assert part in said
        assert page.locator("#run .js-plotly-plot").count() == 6  # 2 along the way, 2 logged, 2 maps
        assert empty_plots(page) == []
        page.keyboard.press("Escape")
        page.locator("#run").wait_for(state="hidden")
        assert "#" not in page.url


def test_the_keyboard_reaches_every_setting(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("several")) as page:
        links = page.locator(".settings tbody a")
        assert links.count() == len(WHOLE)
        links.nth(2).focus()
        page.keyboard.press("Enter")
        page.locator("#run[open]").wait_for()
        assert page.evaluate("document.getElementById('run').contains(document.activeElement)")
        assert "Kronecker (strength\u00a01)" in page.locator("#run-name").inner_text()
        page.keyboard.press("Escape")
        page.locator("#run").wait_for(state="hidden")
        assert links.nth(2).evaluate("(link) => link === document.activeElement")


def test_an_address_opens_its_run(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("several"), fragment=RUN) as page:
        assert page.locator("#run").is_visible()
        page.evaluate("location.hash = 'run-of-another-page'")
        page.locator("#run").wait_for(state="hidden")


def test_a_median_lists_its_runs(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("many")) as page:
        point = point_of(page, "frontier", "run-kronecker-strength-3")
        page.mouse.click(point["x"] + 1, point["y"])
        page.locator("#run[open]").wait_for()
        runs = page.locator("#run-body a")
        assert runs.all_inner_texts() == [f"seed {seed}" for seed in range(5)]
        runs.nth(4).click()
        until(page, WHICH, "seed 4")
        assert page.locator("#run pre").first.inner_text().startswith("Return the number")
        page.locator("#run-body a").click()  # back to all seeds
        until(page, WHICH, "median of 5 runs, with their range")


def visible(page, plot):
    """The ids that a plot's points open."""
    return {point["opens"] for point in points(page, plot)}


def test_the_key_hides_a_penalty_everywhere(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("several")) as page:
        before = visible(page, "frontier")
        page.locator(".key").first.get_by_role("button", name="Kronecker", exact=True).click()
        for plot in ("frontier", "forecast"):
            left = visible(page, plot)
            assert left == {run for run in before if not run.startswith("run-kronecker-strength")}
        curves = "document.getElementById('curve-0').data.filter((trace) => trace.visible === false).length"
        assert page.evaluate(curves) == 1
        assert page.locator('.key [aria-pressed="false"]').count() == page.locator(".key").count()


def test_filters_narrow_plots_and_table(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("many")) as page:
        all_of, rows = visible(page, "frontier"), page.locator(".settings tbody tr:visible")
        assert rows.count() == 36
        page.get_by_label("Search").fill("kronecker")
        until(page, COUNT, "5 of 36 settings")
        assert rows.count() == 5
        assert {run.partition("-strength")[0] for run in visible(page, "frontier")} == {"run-kronecker"}
        page.get_by_label("Search").fill("kronecker 10")
        until(page, COUNT, "1 of 36 settings")
        assert rows.locator("th").inner_text().strip() == "Kronecker"  # the name moved to the row that is left
        page.get_by_label("Seed").select_option("3")
        until(page, "document.getElementById('forecast').data.flatMap((t) => t.customdata ?? []).length", 1)
        assert visible(page, "frontier") == visible(page, "forecast") == {"run-kronecker-strength-10-seed-3"}
        page.get_by_role("button", name="Show all").click()
        until(page, "document.querySelectorAll('.settings tbody tr:not([hidden])').length", 36)
        assert page.evaluate(COUNT) == ""
        assert visible(page, "frontier") == all_of


NO_CLIPBOARD = "Object.defineProperty(Navigator.prototype, 'clipboard', { get: () => undefined });"
LISTEN = """document.addEventListener("copy", () => {
  window.copied = document.activeElement.value ?? String(document.getSelection());
});"""


@pytest.mark.parametrize("clipboard", [True, False])
def test_tables_and_recipes_are_copied(chromium, page_file, clipboard):  # noqa: F811
    fake = "navigator.clipboard.writeText = async (text) => { window.copied = text; };"
    with opened(chromium, page_file("several"), before=fake if clipboard else NO_CLIPBOARD + LISTEN) as page:
        table = page.locator(".table", has=page.locator(".settings"))
        table.get_by_role("button", name="Copy table").click()
        until(page, "Boolean(window.copied)", True)
        lines = [line.split("\t") for line in page.evaluate("window.copied").split("\n")]
        assert table.get_by_role("button").inner_text() == "Copied"
        assert {len(line) for line in lines} == {15}
        assert lines[0][:4] == ["Penalty", "Strength", "Source loss, nats", "Source loss, nats"]
        assert lines[1][:4] == ["Penalty", "Strength", "before", "after"]
        assert [line[:4] for line in lines[4:6]] == [
            ["Kronecker", "1", "3.480", "3.827"],
            ["Kronecker", "3", "3.480", "3.688"],
        ]
        page.evaluate(f"window.copied = null; location.hash = '{RUN}'")
        page.get_by_role("button", name="Copy recipe").click()
        until(page, "Boolean(window.copied)", True)
        assert page.evaluate("window.copied") == page.locator("#run pre").last.inner_text()


def test_budgets_are_drawn_and_said(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("budget")) as page:
        said = page.locator("main").inner_text()
        for part in ("0.018", "0.019\u00a0±\u00a00.001", "inside", "scaled by 0.830", "Steered by measurements"):
            assert part in said
        for plot in ("frontier", "along-forgetting"):
            assert page.locator(f"#{plot} .annotation-text").all_text_contents() == ["budget 0.02"]
        assert "Strength over training" in said


def test_text_of_the_data_stays_text(chromium, written):  # noqa: F811
    evil = "</script><img src=x onerror=alert(1)><b>bold</b>"
    nasty = [{"prompt": evil, "side": evil, "before": evil, "after": evil}]
    whole = measured(0.1) | {"samples": nasty, "per_layer": {f"{evil}.{i}.{evil}": 0.1 for i in range(3)}}
    rows = [row(**measured(0.5)), row(evil, 1.0, source=3.6, seed=evil, method=evil, **whole)]
    sides = {"source": {"name": evil, "item": evil}, "target": {"name": evil, "item": evil}}
    content = results(rows, title=evil, question=evil, warnings=[evil], settings={"targets": [evil]}, **sides)
    with opened(chromium, written("evil", content)) as page:
        [run] = {point["opens"] for point in points(page, "frontier") if "onerror" in point["opens"]}
        point = point_of(page, "frontier", run)
        page.mouse.move(point["x"], point["y"])
        assert "<img src=x onerror=alert(1)>" in page.locator("#frontier .hovertext").text_content()
        page.mouse.click(point["x"], point["y"])
        page.locator("#run[open]").wait_for()
        assert evil in page.locator("#run-name").inner_text()
        assert evil in page.locator("#run").inner_text()
        assert page.locator("img").count() == 0
        assert page.evaluate("document.querySelectorAll('h1 b, #run b, li b').length") == 0


def test_prints_everything_or_the_open_run(chromium, page_file):  # noqa: F811
    with opened(chromium, page_file("several"), color_scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.pdf(format="A4").count(b"/Type /Page\n") >= 3
        page.evaluate(f"location.hash = '{RUN}'")
        page.locator("#run[open]").wait_for()
        assert not page.locator("main").is_visible()
        assert page.locator("#run-name").is_visible()


def test_two_hundred_runs_stay_light(page_file):
    path = page_file("many")
    assert path.stat().st_size < 8e6  # plotly's script is 4.8 MB of it
    text = path.read_text(encoding="utf-8")
    assert "thinned out to 60 points" in text
    [content] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert len(json.loads(content)["runs"]) == 236
