"""What the report computes from its rows, and the words it finds for them."""

import pytest
from report_rows import COMPARISON, row

from holdfast.report.comparison import compare, least_forgetting
from holdfast.report.finding import finding, support
from holdfast.report.heat import COST, caption, heat
from holdfast.report.words import old_data, setting_name


def test_medians_are_over_paired_seeds():
    rows = [row(seed=seed, source=4.48 + seed / 10, target=3.559) for seed in range(3)]
    rows += [row("kronecker", 1.0, seed, 3.48 + 0.25 * (1 + seed / 10), 3.609) for seed in range(3)]
    plain, held = compare(rows)
    assert plain.share.median == pytest.approx(1.0)
    assert (held.share.low, held.share.high) == pytest.approx((0.25, 0.25))
    assert held.kept.median == pytest.approx(0.95)
    assert held.kept.count == 3


def test_least_forgetting_at_a_gain():
    settings = compare(COMPARISON)
    chosen = {keep: least_forgetting(settings, keep) for keep in (0.95, 0.90, 0.88, 0.99)}
    assert chosen[0.95].strengths == (("strength", 1.0),)
    assert chosen[0.90].strengths == (("strength", 3.0),)
    assert chosen[0.88].penalty == "kronecker+distill-self"
    assert chosen[0.99] is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(target=4.56), row("kronecker", 1.0)], "learned nothing"),
        ([row(source=3.47), row("kronecker", 1.0)], "forgot nothing here (−0.0100 nats per token)"),
        ([row(source=None), row("kronecker", 1.0)], "is unknown"),
        ([row(), row("kronecker", 1.0, source=4.6)], "No penalty forgot less"),
        (
            [row(), row("kronecker", 1.0, source=3.6, target=4.0)],
            "No penalty kept 90 % of plain LoRA’s gain; Kronecker",
        ),
        ([row(), row("kronecker", 1.0, source=3.4)], "gain without forgetting"),
        ([row("kronecker", 1.0), row("kronecker", 3.0)], "no comparison"),
    ],
)
def test_finding_says_no_more_than_the_rows(rows, said):
    assert said in finding(compare(rows), "token").replace("\u00a0", " ")


def test_support_tells_spread_and_choice():
    rows = [row(seed=seed) for seed in range(2)]
    rows += [row("kronecker", s, seed, 3.6 + seed / 10, 3.8) for s in (1.0, 3.0) for seed in range(2)]
    said = " ".join(support(compare(rows), "token", validated=False)).replace("\u00a0", " ")
    assert "Over 2 seeds that forgetting was 12 % to 23 %." in said
    assert "Of 2 settings with a penalty" in said
    assert "One seed" not in said


def test_layers_without_numbers_become_bars():
    [bars] = compare([row("kronecker", 1.0, per_layer={"encoder": 0.1, "head": 0.3})])
    [grid] = compare([row("kronecker", 1.0, per_layer={"a.0.x": 0.1, "a.1.x": 0.2, "b.0.x": 0.3, "top": 0.4})])
    assert heat(bars, COST).data[0].type == "bar"
    drawn = heat(grid, COST).data[0]
    assert drawn.y == ("a: x", "b: x")
    assert [list(line) for line in drawn.z] == [[0.1, 0.2], [0.3, None]]


def test_what_lies_between_layers_is_no_layer():
    [setting] = compare([row("kronecker", 1.0, per_layer={"a.0.x": 0.1, "a.1.x": 0.2, "between layers": 0.7})])
    said = caption(setting).replace("\u00a0", " ")
    assert "most of the forecast in a.1.x: 20 % of 1 nats; 70 % is of layers together" in said


def test_settings_are_chosen_by_validation_where_there_is_one():
    def judged(strength, source, test):
        sides = {"source_before": 3.48, "target_before": 4.559, "source_after": source, "target_after": 3.8}
        return row("kronecker", strength, source=test, target=3.8, validation=sides)

    plain = row(
        validation={"source_before": 3.48, "target_before": 4.559, "source_after": 4.455, "target_after": 3.763}
    )
    settings = compare([plain, judged(1.0, source=3.6, test=3.7), judged(3.0, source=3.7, test=3.6)])
    best = least_forgetting(settings, 0.9)
    assert best.strengths == (("strength", 1.0),)
    assert best.share.median == pytest.approx((3.7 - 3.48) / (4.455 - 3.48))
    assert "on a validation part" in " ".join(support(settings, "token", validated=True))


def test_what_a_user_sets_is_never_merged_as_if_it_were_a_seed():
    both = [{"curvature": "kronecker", "strength": 0.3, "distill": weight} for weight in (0.2, 0.4)]
    rows = [row("kronecker+distill-self", 0.3, hold=hold) for hold in both]
    rows += [row("kronecker", 0.3, hold={"strength": 0.3, "damping": damping}) for damping in (0.0, 0.1)]
    rows += [row("distill-self", 0.4, hold={"distill": 0.4}), row("distill-self", 0.4, hold={"distill": 0.4}, seed=1)]
    said = [setting_name(setting).replace("\u00a0", " ") for setting in compare(rows)]
    assert said == [
        "Kronecker + distillation on its own text (strength 0.3, distill 0.2)",
        "Kronecker + distillation on its own text (strength 0.3, distill 0.4)",
        "Kronecker (strength 0.3)",
        "Kronecker, damping 0.1 (strength 0.3)",
        "Distillation on its own text (strength 0.4)",
    ]


@pytest.mark.parametrize(
    ("penalty", "needed"),
    [
        ("none", "none"),
        ("identity", "none"),
        ("distill-self", "none"),
        ("kronecker", "once, for the anchor"),
        ("rank-one", "once, for the anchor"),
        ("kronecker-root, damping 0.1", "once, for the anchor"),
        ("eigen-sequence+distill-self", "once, for the anchor"),
        ("identity-root+replay", "in every step"),
        ("diagonal+distill-source", "in every step"),
    ],
)
def test_when_old_data_is_needed(penalty, needed):
    assert old_data(penalty) == needed
