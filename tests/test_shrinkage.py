"""The closed forms of fitting against slow optimisers, their optimality conditions and their symmetries."""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from holdfast.errors import HoldfastError
from holdfast.fitting import coupled, search, shrinkage

SLOW: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}  # gradient descent against a closed form
SIZES = [1, 2, 7]
SHARES = [0.9, 0.3, 0.02]  # of the price as it came


def problem(size: int, seed: int = 0) -> tuple[dict[str, float], dict[str, float]]:
    """Worths and prices of so many layers, over two decades."""
    drawn = random.Random(seed)
    names = [f"layer {number}" for number in range(size)]
    return {n: 10 ** drawn.uniform(-1, 1) for n in names}, {n: 10 ** drawn.uniform(-2, 0) for n in names}


def form(size: int, seed: int = 0, rank: int | None = None) -> Tensor:
    """A positive semi-definite matrix with terms of both signs between layers."""
    root = torch.randn(size, rank or size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def forecast(factors: dict[str, float], prices: dict[str, float]) -> float:
    return sum(factors[name] ** 2 * prices[name] for name in prices)


def descended(worths: Tensor, prices: Tensor, budget: float) -> Tensor:
    """The slow twin: projected gradient descent in u = a sqrt(p), where the budget is a ball around 0."""
    roots = prices.sqrt()
    moved = torch.zeros_like(worths)
    step = 1 / float((2 * worths / prices).max())
    for _ in range(20_000):
        moved = moved - step * 2 * worths * (moved / roots - 1) / roots
        length = float(moved.square().sum())
        moved = moved * min(1.0, (budget / length) ** 0.5) if length else moved
    return moved / roots


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", SHARES)
def test_layers_are_what_a_slow_optimiser_finds(size: int, share: float) -> None:
    worths, prices = problem(size)
    budget = share * sum(prices.values())
    found = shrinkage.layers(worths, prices, budget)
    assert forecast(found, prices) == pytest.approx(budget, rel=1e-12)
    assert forecast(found, prices) <= budget
    slow = descended(*(torch.tensor([*d.values()], dtype=torch.float64) for d in (worths, prices)), budget)
    assert_close(torch.tensor([*found.values()], dtype=torch.float64), slow, **SLOW)


@pytest.mark.parametrize("share", SHARES)
def test_layers_meet_the_optimality_conditions(share: float) -> None:
    """Kuhn-Tucker: n (1 - a) = mu a p with one mu >= 0 for all, a in [0, 1], and the budget used up."""
    worths, prices = problem(7, seed=3)
    found = shrinkage.layers(worths, prices, share * sum(prices.values()))
    multipliers = [worths[n] * (1 - a) / (a * prices[n]) for n, a in found.items()]
    assert multipliers == pytest.approx([multipliers[0]] * 7, rel=1e-8)
    assert multipliers[0] > 0
    assert all(0 < a < 1 for a in found.values())


def test_layers_do_not_care_about_order_or_units() -> None:
    worths, prices = problem(7)
    budget = 0.2 * sum(prices.values())
    found = shrinkage.layers(worths, prices, budget)
    backwards = dict(reversed(prices.items()))
    assert shrinkage.layers(worths, backwards, budget) == pytest.approx(found, rel=1e-9)
    assert shrinkage.layers({n: 1e6 * w for n, w in worths.items()}, prices, budget) == pytest.approx(found, rel=1e-9)
    dearer = {n: 1e-7 * p for n, p in prices.items()}
    assert shrinkage.layers(worths, dearer, 1e-7 * budget) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("share", SHARES)
def test_equal_prices_per_worth_are_one_factor(share: float) -> None:
    worths, _ = problem(7)
    prices = {name: 0.3 * worth for name, worth in worths.items()}
    budget = share * sum(prices.values())
    one = shrinkage.scale(sum(prices.values()), budget)
    assert one == pytest.approx(share**0.5)
    assert shrinkage.layers(worths, prices, budget) == pytest.approx(dict.fromkeys(worths, one), rel=1e-9)


def test_inside_the_budget_nothing_is_shrunk() -> None:
    worths, prices = problem(4)
    whole = sum(prices.values())
    for budget in (whole, 2 * whole):
        assert shrinkage.layers(worths, prices, budget) == dict.fromkeys(prices, 1.0)
        assert shrinkage.scale(whole, budget) == 1.0
    assert shrinkage.layers({}, {}, 0.1) == {}


def test_free_layers_stay_and_worthless_ones_go() -> None:
    found = shrinkage.layers({"free": 1.0, "dear": 1.0, "idle": 0.0}, {"free": 0.0, "dear": 1.0, "idle": 1.0}, 0.25)
    assert found == {"free": 1.0, "dear": pytest.approx(0.5), "idle": 0.0}


@pytest.mark.parametrize("budget", [1e-30, 1e-9, 0.999999999])
def test_extreme_budgets_are_met(budget: float) -> None:
    worths, prices = problem(5)
    whole = sum(prices.values())
    assert forecast(shrinkage.layers(worths, prices, budget * whole), prices) == pytest.approx(
        budget * whole, rel=1e-9
    )


@pytest.mark.parametrize("start", [1e-12, 1.0, 1e12])
def test_the_multiplier_is_found_from_any_start(start: float) -> None:
    found = shrinkage.fitting_multiplier(lambda mu: 4.0 / (1 + 3 * mu) ** 2, 0.01, start=start)
    assert found == pytest.approx(19 / 3, rel=1e-11)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", SHARES)
def test_coupled_layers_are_layers_where_nothing_couples(size: int, share: float) -> None:
    worths, prices = problem(size, seed=5)
    budget = share * sum(prices.values())
    numbers = (torch.tensor([*d.values()], dtype=torch.float64) for d in (worths, prices))
    found = coupled.coupled_layers(*(f(x) for f, x in zip((lambda x: x, torch.diag), numbers, strict=True)), budget)
    assert found.tolist() == pytest.approx(list(shrinkage.layers(worths, prices, budget).values()), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("multiplier", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_box_is_what_projected_descent_finds(rank: int, multiplier: float, seed: int) -> None:
    prices, worths = form(6, seed, rank), torch.rand(6, dtype=torch.float64) + 0.1
    found = coupled.shrunk(worths, prices, multiplier)
    hessian = multiplier * prices + torch.diag(worths)
    slow, step = torch.ones(6, dtype=torch.float64), 1 / float(torch.linalg.eigvalsh(hessian)[-1])
    for _ in range(20_000):
        slow = (slow - step * (hessian @ slow - worths)).clamp(0, 1)
    assert_close(found, slow, **SLOW)
    descent = coupled._descended(hessian, worths, torch.ones(6, dtype=torch.float64))  # what a circling set falls to
    assert_close(found, descent, rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", range(4))
def test_coupled_layers_use_the_budget_up_and_nothing_feasible_is_nearer(share: float, seed: int) -> None:
    prices, worths = form(6, seed), torch.rand(6, dtype=torch.float64) + 0.1
    budget = share * float(prices.sum())
    found = coupled.coupled_layers(worths, prices, budget)
    price = float(found @ prices @ found)
    assert price == pytest.approx(budget, rel=1e-9)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    best = float((worths * (1 - found).square()).sum())
    for _ in range(300):  # the problem is convex: no feasible point nearby is better
        other = (found + 0.03 * torch.randn(6, dtype=torch.float64)).clamp(0, 1)
        if (price := float(other @ prices @ other)) > budget:
            other = other * (budget / price) ** 0.5
        assert float((worths * (1 - other).square()).sum()) >= best - 1e-12


def test_coupled_layers_that_undo_each_other_stay() -> None:
    prices = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    found = coupled.coupled_layers(torch.ones(3, dtype=torch.float64), prices, 0.25)
    assert found.tolist() == pytest.approx([1.0, 1.0, 0.5], abs=1e-9)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("limit", [0.3, 0.03, 0.001])
def test_the_search_ends_inside_and_near(power: float, limit: float) -> None:
    tried = search.largest_inside(lambda x: 2.5 * x**power, 1.0, 2.5, limit)
    assert 0.95 * limit <= tried.rises[tried.best] <= limit
    assert len(tried.rises) <= 6
    assert tried.rises[tried.best] == 2.5 * tried.forecasts[tried.best] ** power


def test_the_search_bears_rises_below_zero() -> None:
    """At first an adapter may help the source: x (x - 0.1) falls below 0."""
    tried = search.largest_inside(lambda x: x * (x - 0.1), 1.0, 0.9, 1e-4)
    assert tried.rises[tried.best] <= 1e-4
    assert tried.forecasts[tried.best] >= 0.05


def test_the_search_gives_up_where_nothing_is_inside() -> None:
    with pytest.raises(HoldfastError, match="out of reach") as caught:
        search.largest_inside(lambda x: 0.5 + x, 1.0, 1.5, 0.1)
    assert "not the anchored one" in str(caught.value)


def test_the_search_keeps_the_largest_inside() -> None:
    """A step from 0.02 to 1 at one forecast: nothing is near the limit, and the last inside is kept."""
    tried = search.largest_inside(lambda x: 1.0 if x > 0.3 else 0.02, 1.0, 1.0, 0.5)
    assert len(tried.rises) == search.EVALUATIONS
    assert tried.forecasts[tried.best] == max(x for x, r in zip(tried.forecasts, tried.rises, strict=True) if r < 0.5)
    assert math.isclose(tried.forecasts[tried.best], 0.3, rel_tol=0.2)
