"""How the rows of neighbouring layers find each other, and what is summed over them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from coupled import anchor_of, defined, form, joint_price, of_outputs, random_shifts
from laws import EXACT, ROUNDING, drawn
from networks import NETWORKS, Batch
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.curvature.neighbours import Link, NextInputs
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.curvature.tridiagonal import Tridiagonal
from holdfast.factors.diagonal import Diagonal
from holdfast.factors.factor import Storage
from holdfast.rows.origin import Origin


class Repeated(nn.Module):
    """Two layers called in turn, twice each; what they are given is changed in place afterwards."""

    def __init__(self, *, in_place: bool, swapped: bool = False) -> None:
        super().__init__()
        made = {"first": nn.Linear(4, 3), "second": nn.Linear(3, 4)}
        for name in reversed(made) if swapped else made:
            self.add_module(name, made[name])
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        for _ in range(2):
            hidden = torch.tanh(self.first(x))
            x = x.mul_(0.5) if self.in_place else x * 0.5
            moved = self.second(hidden)
            x = x.add_(moved) if self.in_place else x + moved
        return x


def repeated(**options: Any) -> tuple[nn.Module, Batch]:
    """The module, frozen, so that it may change what it is given."""
    torch.manual_seed(4)
    made = Repeated(in_place=False).double()
    model = Repeated(**options).double().requires_grad_(False)
    model.load_state_dict(made.state_dict())
    return model, {"x": drawn(6, 5, 4)}


def test_calls_are_matched_in_their_order() -> None:
    model, batch = repeated(in_place=False)
    curvatures: Any = of_outputs(model, batch).curvatures
    x = batch["x"]
    total = torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(2):
        hidden = torch.tanh(model.first(x))  # type: ignore[operator]
        total += x.T @ hidden
        x = x * 0.5 + model.second(hidden)  # type: ignore[operator]
    assert_close(curvatures["first"].cross.inputs, total / 10, **EXACT)


def test_what_is_held_is_safe_from_changes_in_place() -> None:
    plain, changed = (of_outputs(*repeated(in_place=one)).curvatures for one in (False, True))
    assert_close(form(changed), form(plain), **EXACT)


def test_layers_may_run_in_another_order_than_the_models() -> None:
    forward, backward = (of_outputs(*repeated(in_place=False, swapped=one)).curvatures for one in (False, True))
    assert list(forward) == list(reversed(backward))
    deltas = random_shifts(forward, 1)
    assert_close(joint_price(backward, {n: deltas[n] for n in backward}), joint_price(forward, deltas), **EXACT)


def test_layers_that_are_called_unequally_often_are_not_linked() -> None:
    curvatures: Any = anchor_of("twice", "tridiagonal").curvatures  # shared twice, beside once, head once
    assert [c.cross is not None for c in curvatures.values()] == [False, True, False]


@pytest.mark.parametrize(
    "options", [{"fraction": 0.5}, {"fisher": "sampled", "draws": 3}, {"fisher": "exact"}], ids=str
)
def test_the_whole_stays_positive(options: dict[str, Any]) -> None:
    curvatures = anchor_of("conv1d", "tridiagonal", **options).curvatures
    found = form(curvatures)
    assert_close(found, defined(curvatures), **EXACT)
    smallest = torch.linalg.eigvalsh((found + found.T) / 2).min() / found.trace()
    assert_close(smallest.clamp(max=0), torch.zeros_like(smallest), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", ["llama", "conv1d", "mlp"])
def test_merged_anchors_are_the_anchor_of_all_data(name: str) -> None:
    network = NETWORKS[name]
    parts = [network.rows[:3], network.rows[3:]]
    halves = [anchor_of(name, "tridiagonal", network.batches(2, rows), fisher="data") for rows in parts]
    whole, merged = anchor_of(name, "tridiagonal", fisher="data"), Anchor.merge(halves)
    deltas = random_shifts(whole.curvatures, 2)
    assert_close(joint_price(merged.curvatures, deltas), joint_price(whole.curvatures, deltas), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "offers",
    [
        [(0, [2, 4]), (1, [3, 3])],  # as many rows, of other sequences
        [(0, [6]), (0, [6]), (1, [6]), "next batch", (1, [6]), (0, [6]), (1, [6])],  # unequal, the other way round
        [(1, [6]), "next draw", (0, [6])],
        [(0, [6])],
    ],
    ids=["sequences", "balanced over batches", "balanced over draws", "alone"],
)
def test_rows_without_their_partner_leave_no_sum(offers: list[Any]) -> None:
    link, batch, draw = Link(Reading()), 0, 0
    for offer in offers:
        batch, draw = batch + (offer == "next batch"), draw + (offer == "next draw")
        if isinstance(offer, tuple):
            link.offer(offer[0], drawn(1, 6, 4 - offer[0]), Origin(offer[1], None, draw, batch))
    link.settle()
    assert link.total is None
    assert link.unmatched > 0


def test_sums_away_from_the_device_are_the_same() -> None:
    kept, rows = {}, [drawn(seed, 6, width) for seed, width in ((1, 4), (2, 3))]
    for place in (None, "cpu", "disk"):
        link = Link(Reading(offload=place))  # type: ignore[arg-type]
        for batch in range(2):
            link.offer(0, rows[0], Origin([6], batch=batch))
            link.offer(1, rows[1], Origin([6], batch=batch))
        kept[place] = link.total
        assert_close(kept[place], 2 * rows[0].T @ rows[1], **EXACT)


def test_a_link_that_fails_once_stays_apart_through_files_and_ranks() -> None:
    size, reading = LayerSize(3, 4), Reading()

    def summed(*lengths: int) -> NextInputs:
        half = NextInputs(size, reading, link=Link(reading))
        half.place = 2
        for batch, length in enumerate(lengths):
            half.add(drawn(batch, 6, 4), origin=Origin([6], batch=batch))
            assert half.link is not None
            half.link.offer(1, drawn(9, length, 3), Origin([length], batch=batch))
        return half

    whole, apart = summed(6, 6), summed(6, 5)
    again = NextInputs.restored(size, reading, whole.state())
    assert_close(again.matched(), whole.matched(), rtol=0, atol=0)
    again.merge(summed(6).state())
    assert_close(again.matched(), whole.matched() + drawn(0, 6, 4).T @ drawn(9, 6, 3), **EXACT)
    assert again.place == 2
    for one, other in ((whole, apart), (apart, whole)):
        merged = NextInputs.restored(size, reading, one.state())
        merged.merge(other.state())
        assert merged.matched() is None


def test_only_layers_with_whole_factors_are_linked() -> None:
    whole = LayerSize(3, 4)
    cut = replace(whole, inputs=Storage(Diagonal))
    sizes = {"a": whole, "b": whole, "c": cut, "d": whole, "e": whole, "f": LayerSize(3, 4, indexed=True)}
    made = Tridiagonal.statistics()
    sums = {n: {name: kind(size, Reading()) for name, kind in made.items()} for n, size in sizes.items()}
    assert sorted(Tridiagonal.link(sums)) == ["b", "e"]
