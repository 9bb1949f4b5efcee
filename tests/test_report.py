"""The report page: what it says, what it survives, and that it asks the network for nothing."""

import builtins
import re
import sys
from html.parser import HTMLParser

import pytest
from report_rows import COMPARISON, measured, results, row

from holdfast.errors import HoldfastError
from holdfast.report.page import write


class Page(HTMLParser):
    """The page's tags, their attributes, and the text outside scripts and styles."""

    VOID = frozenset({"meta", "br", "path", "link", "img", "input"})

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)


def page_of(tmp_path, content):
    """Write the page and read it back; every tag is closed where it should be."""
    write(content, tmp_path / "report.html")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_whole_comparison(tmp_path):
    page = page_of(tmp_path, results(COMPARISON))
    for said in (
        "Kronecker (strength 3) kept 90 % of plain LoRA’s gain at 21 % of its forgetting.",
        "One seed",
        "Only one seed.",
        "Learning against forgetting",
        "Forgetting at 90 % of the gain",
        "Forecast and truth",
        "What it costs",
        "Where the shift went, and what it cost",
        "lora.rank",
        "of items.",
    ):
        assert said in page.text
    plots = [value for name, value in page.attributes if name == "id"]
    assert {"frontier", "forecast", "curve-0", "heat-0-0"} <= set(plots)
    assert len(plots) == len(set(plots))
    assert page.tags.count("details") == 1


def test_asks_the_network_for_nothing(tmp_path):
    write(results(COMPARISON), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {name for name, _ in page.attributes} & {"src", "srcset", "action", "poster", "data"}
    assert all(value.startswith("#run-") for name, value in page.attributes if name == "href")
    assert not {"link", "iframe", "object", "embed", "base", "img"} & set(page.tags)
    assert dict(page.attributes)["content"].startswith("default-src 'none'")
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style
    assert text.count("* plotly.js v") == 1


def test_escapes_everything(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    nasty = [{"prompt": evil, "side": evil, "before": evil, "after": evil}]
    rows = [
        row(**measured(0.5)),
        row(evil, 1.0, source=3.6, target=3.8, **(measured(0.1) | {"samples": nasty, "per_layer": {evil: 0.1}})),
        row("kronecker", 1.0, source=3.7, method=evil, seed=evil, **measured(0.1)),
    ]
    sides = {"source": {"name": evil, "item": evil}, "target": {"name": evil, "item": evil}}
    content = results(rows, title=evil, question=evil, warnings=[evil], settings={evil: {evil: evil}}, **sides)
    write(content, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert evil not in text
    assert "<script>alert" not in text
    assert "<img" not in "".join(re.split(r"<script.*?</script>", text, flags=re.DOTALL))
    assert evil in Page(text).text


def test_methods_are_named_where_there_are_several(tmp_path):
    rows = [one | {"method": method} for method in ("lora", "full") for one in COMPARISON]
    page = page_of(tmp_path, results(rows))
    assert "LoRA: Kronecker (strength 3)" in page.text
    assert "of plain full fine-tuning’s gain" in page.text
    assert "solid for LoRA, dash for full fine-tuning" in page.text


def test_two_hundred_rows(tmp_path):
    penalties = ("none", "identity", "diagonal", "kronecker", "distill-self", "distill-source", "replay", "another")
    rows = [
        row(penalty, None if penalty == "none" else strength, seed, 4.4 - i / 10 - strength / 50, 3.76 + strength / 50)
        for i, penalty in enumerate(penalties)
        for strength in (1.0, 3.0, 5.0, 10.0, 30.0)
        for seed in range(5)
    ]
    assert len(rows) == 200
    page = page_of(tmp_path, results(rows))
    assert "medians over seeds" in page.text


@pytest.mark.parametrize("missing", ["source", "forecast", "all"])
def test_one_row(tmp_path, missing):
    only = row("kronecker", 1.0, source=None if missing != "forecast" else 3.6)
    content = results([only]) if missing != "all" else {"schema": 1, "rows": [only | {"source_before": None}]}
    page = page_of(tmp_path, content)
    said = "rose by 0.120" if missing == "forecast" else "what was forgotten was not measured"
    assert said in page.text
    assert "fell by 0.796 nats per" in page.text
    assert "plotly-graph-div" not in [value for name, value in page.attributes if name == "class"]


@pytest.mark.parametrize("key", sorted(measured(0.1)))
def test_any_optional_key_may_be_absent_or_null(tmp_path, key):
    rows = [dict(one) for one in COMPARISON]
    for one in rows[:2]:
        del one[key]
    for one in rows[2:]:
        one[key] = None
    page = page_of(tmp_path, results(rows, settings={}, versions=None, warnings=[]))
    assert "kept 90" in page.text


def test_figures_that_are_no_numbers_count_as_missing(tmp_path):
    rows = [row(), row("kronecker", 1.0, source=float("nan")), row("diagonal", 1.0, source=3.9, target=float("inf"))]
    page = page_of(tmp_path, results(rows))
    assert "losses are missing" in page.text
    assert "nan" not in page.text.lower()


@pytest.mark.parametrize("content", [{}, {"schema": 2, "rows": [row()]}, {"schema": 1, "rows": []}])
def test_refuses_what_is_no_result(tmp_path, content):
    with pytest.raises(HoldfastError):
        write(content, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["plotly", "jinja2"])
def test_missing_library_names_the_extra(tmp_path, monkeypatch, library):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, library, raising=False)
    with pytest.raises(HoldfastError, match=rf'{library}[\s\S]*pip install "holdfast\[viz\]"'):
        write(results(COMPARISON), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
