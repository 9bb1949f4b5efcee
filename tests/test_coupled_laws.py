"""Laws of curvatures that couple layers, over all layers at once; invariances are those of `laws.same`."""

from typing import Any

import pytest
import torch
from adapted import adapt, move
from coupled import KINDS, anchor_of, defined, form, joint_price, random_shifts
from laws import EXACT, ROUNDING, price
from networks import NETWORKS
from penalising import gradients_of
from torch import Tensor
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.curvature.identity import Identity
from holdfast.penalties.quadratic import Penalty
from holdfast.shifts.low_rank import LowRank

SMALL = ["mlp", "conv1d", "twice", "embedding", "reentrant"]  # few enough weights to write the whole form down
each_kind = pytest.mark.parametrize("kind", KINDS)
each_small = pytest.mark.parametrize("name", SMALL)
each_network = pytest.mark.parametrize("name", list(NETWORKS))


def near(curvatures: Any, deltas: dict[str, Tensor]) -> dict[str, float]:
    """Rounding, where terms between layers may cancel most of q."""
    own = sum(float(price(curvature, deltas[name])) for name, curvature in curvatures.items())
    return {"rtol": 1e-9, "atol": ROUNDING * len(curvatures) * own}


def test_the_kinds_that_couple_layers() -> None:
    assert KINDS == ["samples-joint", "tridiagonal"]


@each_kind
@each_small
@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_the_whole_form_is_as_defined_and_positive(kind: str, name: str, damping: float) -> None:
    curvatures = {n: c.damped(damping) for n, c in anchor_of(name, kind).curvatures.items()}
    found, wanted = form(curvatures), defined(curvatures)
    assert_close(found, wanted, rtol=1e-9, atol=ROUNDING * float(wanted.abs().max()))
    assert_close(found, found.T, rtol=1e-9, atol=ROUNDING * float(wanted.abs().max()))
    smallest = torch.linalg.eigvalsh((found + found.T) / 2).min() / found.diagonal().max()
    assert_close(smallest.clamp(max=0), torch.zeros_like(smallest), rtol=0, atol=ROUNDING)


@each_kind
@each_network
def test_q_is_quadratic_and_not_negative(kind: str, name: str) -> None:
    curvatures = anchor_of(name, kind).curvatures
    one, other = random_shifts(curvatures, 1), random_shifts(curvatures, 2)
    q = joint_price(curvatures, one)
    bounds = near(curvatures, one) | {"atol": 9 * near(curvatures, one)["atol"]}
    assert float(q) >= 0
    assert_close(joint_price(curvatures, {n: -3.0 * d for n, d in one.items()}), 9.0 * q, **bounds)
    both = sum(joint_price(curvatures, {n: one[n] + sign * other[n] for n in one}) for sign in (1, -1))
    assert_close(both, 2 * q + 2 * joint_price(curvatures, other), **bounds)


@each_kind
@each_network
def test_a_shift_of_one_layer_has_that_layers_own_price(kind: str, name: str) -> None:
    curvatures = {n: c.damped(0.2) for n, c in anchor_of(name, kind).curvatures.items()}
    for layer, delta in random_shifts(curvatures, 3).items():
        alone = {n: delta if n == layer else torch.zeros(c.shape, dtype=delta.dtype) for n, c in curvatures.items()}
        assert_close(joint_price(curvatures, alone), price(curvatures[layer], delta), rtol=1e-9, atol=0)


@each_kind
@each_network
def test_layers_are_not_priced_apart(kind: str, name: str) -> None:
    curvatures = anchor_of(name, kind).curvatures
    deltas = random_shifts(curvatures, 4)
    apart = sum(float(price(curvature, deltas[n])) for n, curvature in curvatures.items())
    linked = kind != "tridiagonal" or any("next.inputs" in c.tensors() for c in curvatures.values())
    assert (abs(float(joint_price(curvatures, deltas)) - apart) > 1e-6 * apart) == linked


@each_kind
@pytest.mark.parametrize("flavours", [("lora", "lora"), ("full", "full"), ("lora", "dora")])
@each_small
def test_gradients_are_those_of_the_dense_form(kind: str, name: str, flavours: tuple[str, str]) -> None:
    network = NETWORKS[name]
    curvatures: Any = {n: c.damped(0.1) for n, c in anchor_of(name, kind).curvatures.items()}
    # Layer by layer in turn, so that shifts of two structures meet.
    models = [adapt(flavour, network) for flavour in flavours]
    readers = [Penalty(model, anchor_of(name, kind)).prices[0].readers for model in models]
    for number, model in enumerate(models):
        move(model, seed=number)
    made, matrix = type(next(iter(curvatures.values()))), defined(curvatures)

    def priced() -> tuple[Tensor, Tensor]:
        shifts = {layer: readers[number % 2][layer]() for number, layer in enumerate(curvatures)}
        flat = torch.cat([shift.matrix().flatten() for shift in shifts.values()])
        return made.joint(curvatures, shifts), flat @ matrix @ flat

    assert_close(*priced(), **EXACT)
    for model in models:
        found, wanted = gradients_of(priced()[0], model), gradients_of(priced()[1], model)
        reached = {n: g for n, g in wanted.items() if g is not None}
        assert reached
        assert_close({n: g for n, g in found.items() if g is not None}, reached, **EXACT)


@each_kind
@each_network
def test_a_saved_anchor_is_the_anchor(kind: str, name: str, tmp_path: Any) -> None:
    anchor = anchor_of(name, kind)
    anchor.save(tmp_path / "anchor")
    deltas = random_shifts(anchor.curvatures, 5)
    wanted = joint_price(anchor.curvatures, deltas)
    assert_close(joint_price(Anchor.load(tmp_path / "anchor").curvatures, deltas), wanted, rtol=1e-12, atol=0)


@each_kind
@each_small
def test_damping_only_adds(kind: str, name: str) -> None:
    curvatures = anchor_of(name, kind).curvatures
    plain, some, more = (form({n: c.damped(share) for n, c in curvatures.items()}) for share in (0.0, 0.1, 0.3))
    assert_close(plain, form(curvatures), rtol=0, atol=0)
    for difference in (some - plain, more - some):
        smallest = torch.linalg.eigvalsh((difference + difference.T) / 2).min() / difference.diagonal().max()
        assert_close(smallest.clamp(max=0), torch.zeros_like(smallest), rtol=0, atol=ROUNDING)


@each_kind
@pytest.mark.parametrize("left", ["0", "2", "4"])
def test_layers_without_a_shift_are_left_out(kind: str, left: str) -> None:
    curvatures = {n: c for n, c in anchor_of("mlp", kind).curvatures.items() if n != left}
    found = form(curvatures)
    assert_close(found, defined(curvatures), **EXACT)
    smallest = torch.linalg.eigvalsh((found + found.T) / 2).min() / found.diagonal().max()
    assert_close(smallest.clamp(max=0), torch.zeros_like(smallest), rtol=0, atol=ROUNDING)


@each_kind
def test_the_penalty_is_that_of_all_layers_together(kind: str) -> None:
    network, anchor = NETWORKS["llama"], anchor_of("llama", kind)
    model = adapt("lora", network)
    penalty = Penalty(model, anchor, strength=1.0)
    move(model)
    deltas = {n: reader().matrix().detach() for n, reader in penalty.prices[0].readers.items()}
    q = joint_price(anchor.curvatures, deltas)
    assert_close(penalty().detach(), q / 2, **EXACT)
    assert_close(penalty.predicted_forgetting, float(q) / 2, rtol=1e-9, atol=0)
    named = penalty.per_layer()
    own = {n: 0.5 * float(price(anchor.curvatures[n], delta)) for n, delta in deltas.items()}
    assert_close({n: named[n] for n in own}, own, rtol=1e-9, atol=0)
    assert_close(sum(named.values()), float(q) / 2, rtol=1e-9, atol=0)


@each_kind
def test_a_shift_of_rank_zero_costs_nothing(kind: str) -> None:
    curvatures: Any = {n: c.damped(0.1) for n, c in anchor_of("mlp", kind).curvatures.items()}
    empty = {
        n: LowRank(torch.zeros(c.shape[0], 0).double(), torch.zeros(0, c.shape[1]).double())
        for n, c in curvatures.items()
    }
    q = catalogue.curvature(kind).joint(curvatures, empty)  # type: ignore[attr-defined]
    assert_close(q, torch.zeros((), dtype=torch.float64), rtol=0, atol=0)


def test_the_length_of_a_shift_is_its_price_under_the_identity() -> None:
    delta = random_shifts({"": Identity.of_shape(4, 3)}, 1)[""]
    assert_close(LowRank(delta, torch.eye(3).double(), 0.5).priced(Identity.of_shape(4, 3)), delta.square().sum() / 4)
