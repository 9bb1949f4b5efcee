"""The model card of a run: the report's own figures and words, and a picture that needs no library."""

import xml.etree.ElementTree as ET

import pytest
from report_rows import budgeted, measured, results, row

from holdfast.card import PICTURE, write_card
from holdfast.report.picture import LEFT, RIGHT, WIDTH, picture

SETTINGS = {"model": "llama", "method": "lora", "anchor": ["k"], "curvature": None, "space": "weights",
            "strength": 1.0, "distill": 0.0}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def card_of(tmp_path, one):
    about = {"description": "some text"}
    write_card(tmp_path / "README.md", results([one], settings=SETTINGS, source=about, target=about))
    return (tmp_path / "README.md").read_text()


def test_a_budget_in_words(tmp_path):
    said = card_of(tmp_path, budgeted(0.02, 0.018, 0.019, scaled=0.83, form="quadratic"))
    said = said.replace("\u00a0", " ")
    assert "an anchor (k), quadratic penalty." in said
    assert "Held to a budget (0.02 nats per item): accepted 0.02, forecast 0.018, measured 0.019 ± 0.001." in said
    assert "scaled by 0.830" in said
    assert "at strength" not in said
    assert f"]({PICTURE})" in said
    ET.parse(tmp_path / PICTURE)


def test_a_strength_as_before(tmp_path):
    said = card_of(tmp_path, row("kronecker", 1.0, form="quadratic", source=3.6))
    assert "quadratic penalty, at strength 1.0." in said
    assert "budget" not in said


def test_no_picture_of_nothing(tmp_path):
    assert PICTURE not in card_of(tmp_path, row(source=None, target=None))
    assert not (tmp_path / PICTURE).exists()


@pytest.mark.parametrize(
    ("one", "learned", "forgotten"),
    [
        (row(source=4.48, target=3.559), 1.0, 1.0),
        (row(source=3.98, target=3.559), 1.0, 0.5),
        (row(source=3.98, target=3.559) | {"predicted_forgetting": 2.0}, 0.5, 0.25),
        (row(source=2.98, target=3.559), 2 / 3, 1 / 3),  # what was known better afterwards lies to the left
        (row(source=None, target=3.559), 1.0, None),
    ],
)
def test_bars_have_one_scale(one, learned, forgotten):
    bars = {bar.get("class"): bar for bar in ET.fromstring(picture(one)).iter(f"{SVG}rect")}
    room = WIDTH - LEFT - RIGHT
    assert float(bars["learned"].get("width")) == pytest.approx(learned * room, abs=0.11)
    if forgotten is None:
        assert "forgotten" not in bars
    else:
        assert float(bars["forgotten"].get("width")) == pytest.approx(forgotten * room, abs=0.11)
        assert all(LEFT <= float(bar.get("x")) <= WIDTH - RIGHT for bar in bars.values())


def test_marks_and_schemes():
    drawn = picture(budgeted(0.02, 0.018, 0.019, **{"seed": 0}))
    marks = {line.get("class") for line in ET.fromstring(drawn).iter(f"{SVG}line")}
    assert marks == {None, "forecast", "budget"}
    assert "prefers-color-scheme: dark" in drawn
    points = picture(budgeted(0.5, 0.018, 0.019) | {"budget_unit": "points"})
    assert 'class="budget"' not in points  # points of accuracy are no nats
    assert "not measured" in picture(row(source=None, **measured(0.1)))
