"""What every analysis leaves: three files that agree, drawn before anything is written."""

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from browsing import chromium, empty_plots, opened  # noqa: F401

from holdfast.analysis import leaving
from holdfast.analysis.figure import Bars, Heat, Level, Line, Panel, color
from holdfast.analysis.leaving import Finding, Table, leave, plain


def panels():
    """One of every mark."""
    return [
        Panel(
            "Losses <b>",
            "alpha",
            "nats",
            [
                Line("mean", [0, 1, 2], [1.0, None, 3.0], color(0), low=[0.5, 1, 2], high=[1.5, 2, 4]),
                Line("seeds", [0, 1, 2], [1.0, 2.0, 3.0], color(1), dash="dot", points=True),
                Level("floor $1", 0.7),
                Level("here", 1.0, upright=True),
            ],
            "What is seen.",
        ),
        Panel("Histogram", "log10", "share", [Bars("one", [-1.0, 0.0, 1.0], [0.2, 0.5, 0.3])]),
        Panel("Names", "", "share", [Bars("two", ["a", "b"], [0.2, 0.5])]),
        Panel("Plane", "a", "b", [Heat("nats", [0, 1], [0, 1, 2], [[1, 2], [3, 4], [5, None]])]),
        Panel("Log", "n", "m", [Line("x", [1, 10], [1, 100])], x_scale="log", y_scale="log"),
        Panel("None above zero", "n", "m", [Line("x", [1, 2], [None, -1.0], points=True)], y_scale="log"),
        Panel("Contours", "a", "b", [Heat("nats", [0, 1], [0, 1], [[1, 2], [3, 4]], contours=True)]),
        Panel("Wide and last", "n", "m", [Line("x", [1, 2], [1.0, 2.0])], wide=True),
    ]


def finding(**more):
    """A small one."""
    base = {
        "name": "sample",
        "title": "A title & more",
        "question": "What is it?",
        "words": "It is 3 <nats>.",
        "settings": {"seed": 0, "data": {"path": "x"}, "list": [1, 2]},
        "figures": {"curve": torch.tensor([1.0, math.nan]), "most": math.inf, "n": 3},
        "panels": panels(),
        "tables": [Table("Figures", ["what", "value"], [["amplitude", "3.0"]])],
        "warnings": ["Few points."],
    }
    return Finding(**(base | more))


def test_all_three_files_say_the_same(tmp_path):
    content = leave(finding(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample.html", "sample.json", "sample.svg"]
    assert json.loads((tmp_path / "sample.json").read_text()) == content
    assert content["schema"] == 1
    assert content["figures"] == {"curve": [1.0, None], "most": None, "n": 3}
    assert {"machine", "versions", "settings", "words", "warnings"} <= content.keys()
    page = (tmp_path / "sample.html").read_text()
    for text in ("It is 3 &lt;nats&gt;.", "Few points.", "amplitude", "data.path"):
        assert text in page
    drawn = ElementTree.fromstring((tmp_path / "sample.svg").read_text())
    words = "".join(drawn.itertext())
    assert [panel.title for panel in panels() if panel.title not in words] == []


def test_the_picture_is_the_same_each_time(tmp_path):
    for folder in ("a", "b"):
        leave(finding(), tmp_path / folder)
    assert (tmp_path / "a/sample.svg").read_bytes() == (tmp_path / "b/sample.svg").read_bytes()


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    leave(finding(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(leaving, "picture", lambda panels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        leave(finding(words="Another."), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_plain_values():
    assert plain({"a": (1, torch.tensor(2.0)), 3: -math.inf}) == {"a": [1, 2.0], "3": None}


def test_the_page_draws_and_asks_for_nothing(chromium, tmp_path):  # noqa: F811
    leave(finding(), tmp_path)
    with opened(chromium, tmp_path / "sample.html", color_scheme="dark") as page:
        assert page.locator(".js-plotly-plot").count() == len(panels())
        assert empty_plots(page) == []
