"""What users may say a budget as, and what it comes to."""

import math

import pytest

from holdfast.budgets.budget import Budget
from holdfast.errors import HoldfastError


@pytest.mark.parametrize(
    ("said", "amount", "of"),
    [
        (0.02, 0.02, "nats"),
        ("0.02", 0.02, "nats"),
        ("0.02 nats", 0.02, "nats"),
        ("nats 0.02", 0.02, "nats"),
        ("1e-2", 0.01, "nats"),
        ("1%", 0.01, "perplexity"),
        ("1 %", 0.01, "perplexity"),
        ("perplexity 1%", 0.01, "perplexity"),
        ("loss 2%", 0.02, "loss"),
        ("accuracy 0.5", 0.5, "accuracy"),
        ("accuracy 0.5 points", 0.5, "accuracy"),
    ],
)
def test_what_is_said_is_understood(said, amount, of):
    budget = Budget.parse(said)
    assert (budget.amount, budget.of) == (pytest.approx(amount), of)
    assert Budget.parse(budget) is budget


@pytest.mark.parametrize(
    "said",
    ["", "much", "0.02 miles", "perplexity 0.02", "accuracy 1%", "loss 1", "1% nats", "nats 1 nats", "1.2.3", True],
)
def test_anything_else_is_refused_with_the_forms(said):
    with pytest.raises(HoldfastError, match="per source item"):
        Budget.parse(said)


@pytest.mark.parametrize("said", [0, -0.02, "-1%", float("nan"), float("inf"), "accuracy 0"])
def test_amounts_without_a_meaning_are_refused(said):
    with pytest.raises(HoldfastError, match="above 0"):
        Budget.parse(said)


def test_limits():
    assert Budget.parse("0.02").limit() == 0.02
    assert Budget.parse("1%").limit() == pytest.approx(math.log(1.01))
    assert Budget.parse("loss 2%").limit(3.5) == pytest.approx(0.07)
    assert Budget.parse("accuracy 0.5").limit(3.5) == 0.5
    for before in (None, 0.0):
        with pytest.raises(HoldfastError, match="source loss"):
            Budget.parse("loss 2%").limit(before)


def test_words_say_which_share_is_meant():
    assert Budget.parse("0.02").words() == "0.02 nats per item"
    assert Budget.parse("1%").words() == "1 % of perplexity, 0.00995 nats per item"
    assert Budget.parse("loss 2%").words(3.5) == "2 % of loss, 0.07 nats per item"
    assert Budget.parse("loss 2%").words() == "2 % of loss"
    assert Budget.parse("accuracy 0.5").words() == "0.5 points of accuracy"
