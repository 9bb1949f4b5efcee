"""Measured forgetting: against plain sums, its standard error, turns, and what is too little to tell a budget."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from adapted import adapt, move
from networks import NETWORKS
from slow import scored
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from holdfast.budgets import gauge as gauges
from holdfast.budgets.budget import Budget
from holdfast.budgets.gauge import BLIND, BLURRED, Gauge, Reading, reading
from holdfast.errors import HoldfastError

LLAMA = NETWORKS["llama"]
WIDE = Budget(5.0)  # tells itself with the handful of items of a test


@torch.no_grad()
def mean_loss(model: nn.Module) -> float:
    """Over all scored items, one row at a time."""
    model.eval()
    parts = [scored(LLAMA, model, row) for row in LLAMA.rows]
    total = sum(float(cross_entropy(logits, labels, reduction="sum")) for logits, labels in parts)
    return total / sum(len(labels) for _, labels in parts)


def test_it_is_the_rise_of_the_mean_loss():
    model = adapt("lora", LLAMA)
    gauge = Gauge(model, LLAMA.batches(1), WIDE)
    assert gauge.loss == pytest.approx(mean_loss(model), rel=1e-12)
    before = mean_loss(model)
    move(model)
    model.train()
    seen = gauge.look(whole=True)
    assert model.training
    assert seen.amount == pytest.approx(mean_loss(model) - before, rel=1e-9)
    assert seen.loss == pytest.approx(mean_loss(model), rel=1e-12)
    assert seen.items == gauge.items


def test_before_is_the_model_without_its_adapter_whenever_it_is_asked():
    model = adapt("lora", LLAMA)
    early = Gauge(model, LLAMA.batches(1), WIDE)
    early.prepare()
    move(model)
    late = Gauge(model, LLAMA.batches(1), WIDE)
    assert_close(late.look(whole=True).amount, early.look(whole=True).amount, rtol=1e-12, atol=0)


def test_points_of_accuracy():
    model = adapt("lora", LLAMA)
    gauge = Gauge(model, LLAMA.batches(1), Budget(60.0, "accuracy"))
    gauge.prepare()
    right = _right(model)
    move(model)
    items = gauge.items
    assert gauge.look(whole=True).amount == pytest.approx(100 * (right - _right(model)) / items)


def _right(model):
    """Tokens that the largest logit foresees."""
    count = 0
    for batch in LLAMA.batches(1):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        count += int(((logits[:, :-1].argmax(-1) == labels) & (labels != -100)).sum())
    return count


def test_a_regression_head_has_no_accuracy():
    network = NETWORKS["mlp"]
    model = network.build()
    regress = lambda model, batch: (model(batch["x"]), torch.zeros_like(model(batch["x"])))  # noqa: E731
    with pytest.raises(HoldfastError, match="accuracy"):
        Gauge(model, network.batches(1), Budget(60.0, "accuracy"), regress).prepare()


def test_the_error_is_that_of_means_over_clusters():
    """Batches of equal size: the standard error of a mean; of any sizes: what resampling them finds."""
    generator = torch.Generator().manual_seed(0)
    moved = torch.randn(40, generator=generator, dtype=torch.float64) + 0.5
    before = torch.stack([torch.zeros(40), torch.ones(40), torch.zeros(40)], dim=1).double()
    now = before.clone()
    now[:, 0] = moved
    found = reading(before, now, "nats")
    assert found.amount == pytest.approx(float(moved.mean()))
    assert found.error == pytest.approx(float(moved.std() / math.sqrt(40)))

    items = torch.randint(1, 30, (40,), generator=generator).double()
    before[:, 1], now[:, 1], now[:, 0] = items, items, moved * items
    found = reading(before, now, "nats")
    drawn = torch.randint(40, (4000, 40), generator=generator)
    means = (now[:, 0][drawn].sum(1) - before[:, 0][drawn].sum(1)) / items[drawn].sum(1)
    assert found.error == pytest.approx(float(means.std()), rel=0.1)
    assert reading(before[:1], now[:1], "nats").error == math.inf


def test_a_few_batches_alike_by_chance_are_not_certain():
    gauge = Gauge(adapt("lora", LLAMA), LLAMA.batches(1), WIDE)
    alike = Reading(amount=0.02, error=0.0, items=400, loss=1.0)
    assert gauge.uncertainty(alike) == pytest.approx(2 * math.sqrt(2 * 0.02 / 400))
    assert gauge.uncertainty(replace(alike, error=0.5)) == 0.5
    assert gauge.uncertainty(replace(alike, error=math.inf)) == pytest.approx(2 * math.sqrt(2 * 0.02 / 400))
    points = Gauge(adapt("lora", LLAMA), LLAMA.batches(1), Budget(60.0, "accuracy"))
    assert points.uncertainty(replace(alike, amount=4.0)) == pytest.approx(2 * 100 * math.sqrt(0.04 / 400))


def test_turns_go_round_and_a_state_goes_on(monkeypatch):
    monkeypatch.setattr(gauges, "FEWEST", 1)
    monkeypatch.setattr(gauges, "BATCHES", 2)
    model = adapt("lora", LLAMA)
    budget = Budget(60.0)  # two batches a look
    gauge = Gauge(model, LLAMA.batches(1), budget)
    gauge.prepare()
    move(model)
    alone = [Gauge(model, [batch], WIDE).look(whole=True) for batch in LLAMA.batches(1)]
    first, second = gauge.look(), gauge.look()
    assert first.items == alone[0].items + alone[1].items
    assert first.amount * first.items == pytest.approx(sum(one.amount * one.items for one in alone[:2]))
    other = Gauge(model, LLAMA.batches(1), budget)
    other.restore({**gauge.state(), "turn": 2})
    assert other.look() == second
    with pytest.raises(HoldfastError, match="same held_out"):
        Gauge(model, LLAMA.batches(2), budget).restore(gauge.state())


@pytest.mark.parametrize(("share", "outcome"), [(BLIND - 0.5, "below"), (BLURRED - 1, "20%"), (BLURRED + 1, None)])
def test_too_few_items_for_a_budget(share, outcome):
    model = adapt("lora", LLAMA)
    gauge = Gauge(model, LLAMA.batches(1), None)
    gauge.prepare()
    small = Gauge(model, LLAMA.batches(1), Budget(share / gauge.items))
    if outcome == "below":
        with pytest.raises(
            HoldfastError,
            match=r"below what [0-9]* items of the source data can measure[\s\S]*wanted: a budget of .* nats or more",
        ):
            small.prepare()
    elif outcome:
        with pytest.warns(UserWarning, match=outcome):
            small.prepare()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            small.prepare()


def test_nothing_to_measure_on():
    model = adapt("lora", LLAMA)
    with pytest.raises(HoldfastError, match="no source batches"):
        Gauge(model, [], WIDE)
    blank = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in LLAMA.batches(2)]
    with pytest.raises(HoldfastError, match="no scored item"):
        Gauge(model, blank, WIDE).prepare()


def test_a_broken_model_is_told():
    model = adapt("lora", LLAMA)
    gauge = Gauge(model, LLAMA.batches(2), WIDE)
    gauge.prepare()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(math.nan)
    with pytest.raises(HoldfastError, match="the loss is nan"):
        gauge.look(whole=True)
