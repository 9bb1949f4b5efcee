"""Costs, and the one sentence that says what to take: never more than the runs do."""

from torch.testing import assert_close

from holdfast.frontier import costs
from holdfast.frontier.points import Setting
from holdfast.frontier.recommendation import recommend

PLAIN = Setting("plain", "", {0: (2.0, 1.0), 1: (2.1, 1.1), 2: (1.9, 0.9)})
BEST = Setting("kronecker", "strength 8", {0: (1.9, 0.10), 1: (2.0, 0.11), 2: (1.85, 0.10)})
NEAR = Setting("distill", "distill 1", {0: (1.9, 0.09), 1: (2.0, 0.14), 2: (1.85, 0.11)})
FAR = Setting("l2", "strength 0.1", {0: (1.9, 0.50), 1: (2.0, 0.55), 2: (1.85, 0.52)})
WEAK = Setting("l2", "strength 1", {0: (1.0, 0.01), 1: (1.1, 0.01), 2: (0.9, 0.01)})
ALL = [PLAIN, BEST, NEAR, FAR, WEAK]


def test_for_a_wanted_gain_the_least_forgetting_is_taken_and_its_equals_are_named():
    said = recommend(ALL, [PLAIN], keep=0.9, accept=None, item="token")
    assert said.startswith(
        "To keep 90 % of plain fine-tuning's gain, take kronecker (strength 8): it kept 96 % and forgot"
    )
    assert "where plain fine-tuning forgot 1" in said
    assert "distill (distill 1) can't be told apart from it (means of 3 seeds)." in said
    assert "l2" not in said
    assert said.count(".") - said.count("0.") - said.count("1.") <= 2  # one sentence


def test_for_an_accepted_forgetting_the_most_gain_is_taken():
    said = recommend(ALL, [PLAIN], keep=0.9, accept=0.05, item="token")
    assert said.startswith("For an accepted forgetting of 0.05 nats per token, take l2 (strength 1): it learned 1 ")
    said = recommend(ALL, [PLAIN], keep=0.9, accept=0.105, item="token")
    assert "take kronecker (strength 8)" in said
    assert "over seeds may reach 0.118" in said  # its interval ends beyond what is accepted
    said = recommend(ALL, [PLAIN], keep=0.9, accept=0.001)
    assert said.startswith("No setting stayed within 0.001 nats per item; l2 (strength 1) forgot least")


def test_what_can_not_be_said_is_not_said():
    assert "nothing can be recommended" in recommend([], [], keep=0.9, accept=None)
    assert "name an accepted forgetting" in recommend([BEST], [], keep=0.9, accept=None)
    idle = Setting("plain", "", {0: (0.001, 0.5)})
    assert "no gain to weigh" in recommend([idle, BEST], [idle], keep=0.9, accept=None)
    kept = Setting("plain", "", {0: (1.0, 0.001)})
    assert "nothing needs holding" in recommend([kept, BEST], [kept], keep=0.9, accept=None)
    assert "nothing forgot less than plain" in recommend([PLAIN, WEAK], [PLAIN], keep=0.9, accept=None)
    one = [Setting(s.way, s.words, {0: s.points[0]}) for s in (PLAIN, BEST, NEAR)]
    said = recommend(one, [one[0]], keep=0.9, accept=None)
    assert "one seed: how far seeds differ is not known" in said
    assert "told apart" not in said
    assert "interval" not in said


def test_costs_are_held_against_plain_on_the_same_machine():
    def run(way, host, step, memory=100.0):
        return {"way": way, "host": host, "seconds_per_step": step, "peak_memory_mb": memory, "anchor_seconds": 4.0}

    rows = [
        run("plain", "a", 0.1),
        run("plain", "b", 1.0),
        run("held", "a", 0.12),
        run("held", "b", 1.2),
        run("held", "c", 9.0),
    ]
    plain, held = costs.table(rows, "plain")
    assert_close((plain["of_plain"], held["of_plain"]), (1.0, 1.2))
    assert (held["runs"], held["peak_memory_mb"], held["preparation_seconds"]) == (3, 100.0, 4.0)
    assert held["trainable_parameters"] is None
    assert costs.table(rows[2:], "plain")[0]["of_plain"] is None
