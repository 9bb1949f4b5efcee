"""Budgets and early stopping in the report: their words, their curves, and a study's own tables."""

import pytest
from report_rows import COMPARISON, along, budgeted, results, row

from holdfast.report.budgets import budgeted as with_budgets
from holdfast.report.budgets import kept, notes, sentence
from holdfast.report.comparison import compare
from holdfast.report.context import context
from holdfast.report.finding import finding
from holdfast.report.palette import styles
from holdfast.report.study import best, listings
from holdfast.report.trajectories import moments, trajectory
from holdfast.report.words import setting_name


def plain_text(text):
    return text.replace("\u00a0", " ")


def test_a_budget_names_a_setting_and_a_strength_it_ended_at_does_not():
    rows = [budgeted(0.02, 0.018, 0.019, seed=seed, strength=seed + 1.0) for seed in range(2)]
    rows += [budgeted(0.5, 0.018, 0.4, budget_unit="points", budget_words="0.5 points of accuracy")]
    said = [plain_text(setting_name(setting)) for setting in compare(rows)]
    assert said == ["Kronecker (budget 0.02)", "Kronecker (budget 0.5 points)"]


@pytest.mark.parametrize(
    ("found", "more", "verdict"),
    [
        (0.019, {}, "inside"),
        (0.0205, {}, "over by 0.0005, no more than the standard error"),
        (0.03, {}, "over by 0.010"),
        (0.03, {"forgetting_error": None}, "over by 0.010"),
        (0.019, {"forgetting": None}, "inside"),  # what the losses say, in nats
        (0.019, {"forgetting": None, "budget_unit": "points"}, "not measured"),
    ],
)
def test_verdicts(found, more, verdict):
    [held] = with_budgets(compare([budgeted(0.02, 0.018, found, **more)]))
    assert held.verdict == verdict


def test_words_of_a_run():
    one = budgeted(0.02, 0.018, 0.019, scaled=0.83, steered_by="forecast")
    assert plain_text(sentence(one)) == "accepted 0.02, forecast 0.018, measured 0.019 ± 0.001"
    assert notes(one)[0].startswith("Steered by the forecast alone")
    assert "scaled by 0.830" in notes(one)[1]
    assert len(notes(one | {"scaled_by": 1.0})) == 1
    assert notes(row()) == []
    said = plain_text(finding(compare([one]), "token"))
    assert said.endswith(
        "the source loss rose by 0.019, inside the accepted 0.02 nats per item (standard error 0.001)."
    )


def test_the_corrected_forecast_is_the_one_that_is_shown():
    [held] = with_budgets(compare([budgeted(0.02, 0.005, 0.019, calibrated_forecast=0.0185)]))
    assert held.forecast == "0.018"
    [points] = with_budgets(compare([budgeted(0.5, 0.005, 0.4, budget_unit="points")]))
    assert points.forecast == "0.0050 nats"


def test_several_budgets_in_one_sentence():
    rows = [budgeted(b, b, b * f, seed=seed) for seed, (b, f) in enumerate([(0.01, 1.5), (0.02, 0.9), (0.05, 0.8)])]
    assert kept(compare(rows)) == "Of 3 runs with a budget 2 stayed inside it, and went over by 0.0050 at most."
    assert finding(compare(rows), "token") == kept(compare(rows))
    assert kept(compare(COMPARISON)) == ""


def test_trajectories_start_at_nothing_and_end_at_the_point():
    ran = row(source=4.48, target=3.559, history=[{"step": 100, "loss": 1.0}])
    ran["along"] = along(ran)[1:4]
    found = moments(ran)
    assert [step for step, *_ in found] == [0, 25, 50, 75, 100]
    assert found[0][1:] == (0.0, 0.0)
    assert found[2][1:] == pytest.approx((0.5, 0.5))
    assert found[-1][1:] == pytest.approx((1.0, 1.0))
    assert moments(row()) == []
    parts = [{"step": 50, "source_test": 3.98, "target_test": 4.059, "source_validation": 9.0}]
    assert moments(ran | {"along": parts})[1] == pytest.approx((50, 0.5, 0.5))


def test_a_scaled_shift_ends_where_it_was_scaled_to():
    ran = row(source=4.48, target=3.559, history=[{"step": 100, "loss": 1.0}])
    ran["along"] = along(ran)
    assert len(moments(ran)) == 5
    found = moments(ran | {"source_after": 3.6, "target_after": 3.7})
    assert found[-2] == pytest.approx((100, 1.0, 1.0))
    assert found[-1] == (None, pytest.approx(0.859), pytest.approx(0.12))


def test_trajectories_are_medians_over_seeds_and_cope_with_gaps():
    rows = [row(seed=seed, source=3.48 + lost) for seed, lost in enumerate((0.2, 0.4, 0.9))]
    for one in rows:
        one["along"] = along(one)
    rows[0]["along"] = [{"step": 50, "source": None, "target": 4.0}, {"step": None}, {}]
    [setting] = compare(rows)
    middle = {step: lost for step, _, lost in trajectory(setting)}
    assert middle[50] == pytest.approx((0.2 + 0.45) / 2)  # of the two seeds that measured it
    assert middle[100] == pytest.approx(0.65)


def test_a_way_of_a_study_is_a_setting_of_its_own():
    rows = [row(way="plain"), row(way="low-learning-rate", setting="learning rate 0.0001", source=3.9, target=4.0)]
    rows += [row("kronecker", 1.0, way="kronecker", source=3.6)]
    settings = compare(rows)
    said = [plain_text(setting_name(setting)) for setting in settings]
    assert said == ["Plain", "Plain, low-learning-rate learning rate 0.0001", "Kronecker (strength 1)"]
    assert [setting.is_plain for setting in settings] == [True, False, False]
    assert settings[1].share.median == pytest.approx(0.42 / 0.975)


STUDY = {
    "recommendation": "Take Kronecker at 3.",
    "pareto": [
        {"way": "kronecker", "setting": "strength 3", "gain": 0.72, "interval": [0.7, 0.74], "status": "on the front"},
        {"way": "kronecker", "setting": "strength 1", "gain": 0.76, "interval": None, "status": "beaten"},
    ],
    "hypervolume": {"value": 0.5, "reference": {"gain": 0.0, "forgetting": 1.0}, "per_way": {"kronecker": 0.4}},
    "matched_learning": [{"target_loss": 3.8, "forgetting": 0.2, "sure": True}],
    "costs": [],
    "something_new": [{"a": 1}],
}


def test_a_studys_tables_are_shown_as_they_are():
    found = {listing.title: listing for listing in listings(STUDY)}
    assert list(found) == [
        "Settings that nothing beats in both learning and forgetting",
        "Forgetting at equal learning",
        "Hypervolume",
        "Something new",
    ]
    front = found["Settings that nothing beats in both learning and forgetting"]
    assert front.columns == ["way", "setting", "gain", "interval", "status"]
    assert front.lines[0] == ["kronecker", "strength 3", "0.720", "0.700 to 0.740", "on the front"]
    assert front.lines[1][3] == "–"
    assert found["Forgetting at equal learning"].lines == [["3.800", "0.200", "yes"]]
    assert "0.500, measured from gain 0.000, forgetting 1.000" in plain_text(found["Hypervolume"].note)


def test_the_front_is_ringed_by_name_or_by_place():
    rows = [one | {"way": one["penalty"], "setting": f"strength {one['strength'] or 0:g}"} for one in COMPARISON]
    settings = compare(rows)
    assert best(STUDY, settings) == [settings[3]]
    placed = {"pareto": [{"gain": 0.72, "forgetting": 0.208}]}
    assert best(placed, compare(COMPARISON)) == [compare(COMPARISON)[3]]
    assert best({}, settings) == []


def test_the_recommendation_stands_on_top():
    found = context(results(COMPARISON, frontier=STUDY))
    assert found["headline"] == "Take Kronecker at 3."
    assert "kept 90" in found["support"][0]


def test_twenty_series_look_different():
    named = ["none", "identity", "diagonal", "kronecker", "distill-self", "replay"]
    penalties = [*named, *(f"penalty-{i}" for i in range(20))]
    found = styles([(("", "lora", ""), penalty) for penalty in penalties])
    assert len({(style.color, style.symbol) for style in found.values()}) == len(penalties)
    assert len({(style.color, style.dash) for style in list(found.values())[:24]}) == 24
