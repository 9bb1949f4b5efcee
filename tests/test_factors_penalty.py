"""LaLoRA's blocks, derived from the weights and measured on the factors; and the theorem on its usual start."""

import pytest
import torch
from adapted import adapt, lora, move, pissa
from allocations import Allocations
from factored import compensated, lora_layers, same_penalty, starts
from laws import EXACT, drawn
from networks import NETWORKS, Network
from penalising import ROUNDING, anchor_of, gradients_of
from starts import estimate
from torch import nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.curvature.kronecker import Kronecker
from holdfast.errors import HoldfastError
from holdfast.penalties.factors import FactorPenalty
from holdfast.penalties.quadratic import Penalty
from holdfast.shifts.read import factors

NAMES = ("mlp", "conv1d", "conv2d", "twice", "llama", "bert-tokens", "bert-sequence", "recomputed")
FLAVOURS = ("lora", "patterns", "two", "lora-fa")
each_network = pytest.mark.parametrize("name", NAMES)
each_form = pytest.mark.parametrize(("kind", "neighbours"), [("kronecker", False), ("tridiagonal", True)])
each_flavour = pytest.mark.parametrize("flavour", FLAVOURS)


@each_form
@each_flavour
@each_network
def test_derived_blocks_are_the_measured_ones(kind: str, neighbours: bool, flavour: str, name: str) -> None:
    model = adapt(flavour, NETWORKS[name])
    measured = Penalty(model, estimate(model, NETWORKS[name], kind), 0.7)
    derived = FactorPenalty(model, anchor_of(name, "kronecker"), 0.7, neighbours=neighbours)
    same_penalty(derived, measured, move(model))


@each_form
@pytest.mark.parametrize("name", ["mlp", "conv2d", "twice", "llama", "recomputed"])
def test_derived_blocks_are_the_measured_ones_away_from_zero(kind: str, neighbours: bool, name: str) -> None:
    model = compensated(NETWORKS[name])
    measured = Penalty(model, estimate(model, NETWORKS[name], kind), 0.7)
    derived = FactorPenalty(model, anchor_of(name, "kronecker"), 0.7, neighbours=neighbours)
    same_penalty(derived, measured, move(model, seed=3), rtol=1e-8)


def test_pissa_starts_are_such() -> None:
    network = NETWORKS["mlp"]
    model = pissa(network, network.build())
    measured = Penalty(model, estimate(model, network))
    derived = FactorPenalty(model, anchor_of("mlp", "kronecker"))
    move(model, seed=3)
    assert_close(derived(), measured(), rtol=1e-5, atol=0)  # PEFT computes the start in float32


@each_network
def test_at_zero_every_block_of_a_vanishes_exactly(name: str) -> None:
    model = adapt("lora", NETWORKS[name])
    chained, anchor = (estimate(model, NETWORKS[name], kind) for kind in ("tridiagonal", "kronecker"))
    blocks = {part: curvature.tensors() for part, curvature in chained.curvatures.items() if "lora_A" in part}
    of_a = [tensors[side] for tensors in blocks.values() for side in ("gradients.full", "next.gradients")]
    assert_close(
        torch.cat([g.flatten() for g in of_a]).abs().max(), torch.zeros((), dtype=torch.float64), rtol=0, atol=0
    )
    penalty = Penalty(model, anchor, damping=1.0)  # a share of nothing
    move(model)
    free = {name: g for name, g in gradients_of(penalty(), model).items() if "lora_A" in name}
    for gradient in free.values():
        assert gradient is not None
        assert_close(gradient, torch.zeros_like(gradient), **ROUNDING)


@each_network
def test_at_zero_neighbours_add_nothing_and_all_forms_are_the_shift_s_with_the_first_a(name: str) -> None:
    model = adapt("lora", NETWORKS[name])
    anchor = anchor_of(name, "kronecker")
    blocks, chained = (FactorPenalty(model, anchor, neighbours=chain) for chain in (False, True))
    shift = Penalty(model, anchor)
    born = starts(model)
    move(model)
    same_penalty(blocks, chained, model)
    with torch.no_grad():
        for layer, (_, down) in born.items():
            factors(lora_layers(model)[layer], "default").down.copy_(down)
    assert_close(blocks(), shift(), **EXACT)


@pytest.mark.parametrize("start", ["zero", "compensated"])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "llama"])
def test_neighbours_make_the_linearised_shift(start: str, name: str) -> None:
    network, anchor = NETWORKS[name], anchor_of(name, "kronecker")
    model = compensated(network) if start == "compensated" else adapt("lora", network)
    penalty = FactorPenalty(model, anchor, 0.7, neighbours=True)
    born = starts(model)
    move(model, seed=3)
    total = 0.0
    for layer, wrapped in lora_layers(model).items():
        now, (up, down) = factors(wrapped, "default"), born[layer]
        linear = now.scale * ((now.up - up) @ down + up @ (now.down - down))
        total += (linear * anchor.curvatures[layer].apply(linear.detach())).sum().detach()
    assert_close(penalty().detach(), 0.7 / 2 * total, **EXACT)


@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_blocks_are_what_the_paper_writes(name: str) -> None:
    anchor = anchor_of(name, "kronecker")
    model = compensated(NETWORKS[name])
    penalties = {chain: FactorPenalty(model, anchor, neighbours=chain) for chain in (False, True)}
    born = starts(model)
    move(model, seed=3)
    blocks = cross = 0.0
    for layer, wrapped in lora_layers(model).items():
        now, (up, down) = factors(wrapped, "default"), born[layer]
        d_up, d_down, squared = now.up.detach() - up, now.down.detach() - down, now.scale**2
        curvature = anchor.curvatures[layer]
        assert isinstance(curvature, Kronecker)
        s, g = curvature.tensors()["inputs.full"], curvature.tensors()["gradients.full"]
        blocks += squared * torch.trace(d_up.T @ g @ d_up @ down @ s @ down.T)
        blocks += squared * torch.trace(d_down.T @ (up.T @ g @ up) @ d_down @ s)
        cross += 2 * squared * torch.trace(d_down.T @ (up.T @ g) @ d_up @ (down @ s))
    assert_close(penalties[False]().detach(), blocks / 2, **EXACT)
    assert_close(penalties[True]().detach(), (blocks + cross) / 2, **EXACT)
    assert abs(float(cross)) > 1e-3 * float(blocks)  # the neighbours matter here


def test_the_forecast_is_of_the_shift() -> None:
    model = adapt("lora", NETWORKS["llama"])
    anchor = anchor_of("llama", "kronecker")
    penalty, shift = FactorPenalty(model, anchor), Penalty(model, anchor)
    move(model)
    assert_close(penalty.predicted_forgetting, shift.predicted_forgetting, rtol=0, atol=0)
    assert_close(penalty.per_layer(), shift.per_layer(), rtol=0, atol=0)


def test_nothing_of_the_size_of_the_weight_is_made() -> None:
    out, inn = 70, 90
    layer = nn.Sequential(nn.Linear(inn, out)).double()
    rows = [{"x": drawn(seed, inn), "labels": torch.tensor(seed)} for seed in range(3)]
    network = Network("wide", lambda: layer, rows, ["0"], NETWORKS["mlp"].forward_loss)
    anchor = Anchor.estimate(
        layer, network.batches(2), targets=["0"], forward_loss=network.forward_loss, progress=False
    )
    model = lora(network, layer)
    penalties = [FactorPenalty(model, anchor, neighbours=n, refresh=n) for n in (False, True)]
    move(model)
    with Allocations() as made:
        for penalty in penalties:
            penalty.add_gradient()
    assert made.largest <= 4 * max(out, inn)


def test_what_has_no_factors_is_refused() -> None:
    network, anchor = NETWORKS["llama"], anchor_of("llama", "kronecker")
    with pytest.raises(HoldfastError, match="no LoRA whose factors"):
        FactorPenalty(network.build(), anchor)
    with pytest.raises(HoldfastError, match="magnitudes are no factor"):
        FactorPenalty(adapt("dora", network), anchor)
    model = adapt("lora", network)
    with pytest.raises(HoldfastError, match=r"give it to holdfast\.Penalty"):
        FactorPenalty(model, estimate(model, network))
    with torch.no_grad():
        next(iter(lora_layers(model).values())).base_layer.weight.add_(0.1)
    with pytest.raises(HoldfastError, match="another model"):
        FactorPenalty(model, anchor)
