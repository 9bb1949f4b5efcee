"""What makes a penalty on LoRA's factors sound: present factors, a frozen A, a prior."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from adapted import adapt, move
from factored import compensated, lora_layers, same_penalty, starts
from laws import EXACT, drawn
from networks import NETWORKS
from penalising import anchor_of, gradients_of
from starts import estimate
from torch import nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.parts import parts_in
from holdfast.penalties.factors import FactorPenalty
from holdfast.penalties.quadratic import Penalty
from holdfast.shifts.read import factors


@pytest.mark.parametrize("name", ["mlp", "conv1d", "conv2d", "twice", "llama", "bert-tokens"])
def test_refreshed_blocks_hold_the_shift_itself(name: str) -> None:
    model = adapt("lora", NETWORKS[name])
    anchor = anchor_of(name, "kronecker")
    refreshed, shift = FactorPenalty(model, anchor, refresh=True), Penalty(model, anchor)
    born = starts(model)
    move(model)
    second = 0.0
    for layer, wrapped in lora_layers(model).items():
        now = factors(wrapped, "default")
        leaning = now.scale * now.up @ (now.down - born[layer][1])
        second += (leaning * anchor.curvatures[layer].apply(leaning.detach())).sum().detach()
    assert_close(refreshed().detach(), shift().detach() + second / 2, **EXACT)


def test_refreshed_blocks_are_differentiated_too() -> None:
    model = move(adapt("lora", NETWORKS["mlp"]))
    penalty = FactorPenalty(model, anchor_of_moved(model), refresh=True)
    move(model, seed=3)
    step, along = 1e-6, {n: drawn(5, *p.shape) for n, p in model.named_parameters() if p.requires_grad}
    slope = sum((gradient * along[n]).sum() for n, gradient in gradients_of(penalty(), model).items())
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for n, p in model.named_parameters():
                if p.requires_grad:
                    p.add_(sign * step * along[n])
        values.append(penalty().detach())
    assert_close(slope, (values[0] - values[1]) / (2 * step), rtol=1e-6, atol=0)


def anchor_of_moved(model: nn.Module) -> Anchor:
    """The network's anchor; its base weights are as built under any warm start."""
    anchor = anchor_of("mlp", "kronecker")
    anchor.check(model)
    return anchor


@pytest.mark.parametrize("name", ["mlp", "conv2d", "llama", "bert-tokens"])
def test_with_a_frozen_every_form_is_exact(name: str) -> None:
    network, anchor = NETWORKS[name], anchor_of(name, "kronecker")
    model = adapt("lora-fa", network)
    forms = [
        Penalty(model, anchor),
        Penalty(model, estimate(model, network)),
        *(FactorPenalty(model, anchor, neighbours=n, refresh=r) for n in (False, True) for r in (False, True)),
    ]
    move(model)
    for one, other in pairwise(forms):
        same_penalty(one, other, model)


def test_a_frozen_a_stays_frozen_when_peft_switches_adapters() -> None:
    model: Any = adapt("lora-fa", NETWORKS["llama"])
    before = [n for n, p in model.named_parameters() if p.requires_grad]
    assert not [n for n in before if "lora_A" in n]
    model.set_adapter("default")
    with model.disable_adapter():
        pass
    assert [n for n, p in model.named_parameters() if p.requires_grad] == before


@pytest.mark.parametrize("form", ["derived", "measured"])
def test_a_prior_is_the_only_force_on_a(form: str) -> None:
    network = NETWORKS["mlp"]
    model = adapt("lora", network)
    if form == "derived":
        penalty: Any = FactorPenalty(model, anchor_of("mlp", "kronecker"), 0.7, prior=0.3)
    else:
        penalty = Penalty(model, estimate(model, network), 0.7, prior=0.3)
    born = {name: p.tensor.detach().clone() for name, p in parts_in(model, "adapter").items()}
    move(model)
    gradients = gradients_of(penalty(), model)
    for name, part in parts_in(model, "adapter").items():
        if "lora_A" in name:
            wanted = 0.3 * (part.tensor - born[name]).detach()
            assert_close(gradients[f"base_model.model.{name}.weight"], wanted, **EXACT)


@pytest.mark.parametrize("kind", ["diagonal", "eigen", "identity", "tracekron"])
def test_other_curvatures_make_the_same_blocks_of_their_own_form(kind: str) -> None:
    anchor = anchor_of("mlp", kind)
    model = compensated(NETWORKS["mlp"])
    penalty = FactorPenalty(model, anchor)
    born = starts(model)
    move(model, seed=3)
    total = torch.zeros((), dtype=torch.float64)
    for layer, wrapped in lora_layers(model).items():
        now, (up, down) = factors(wrapped, "default"), born[layer]
        for shift in (now.scale * (now.up - up) @ down, now.scale * up @ (now.down - down)):
            total += (shift * anchor.curvatures[layer].apply(shift.detach())).sum().detach()
    assert_close(penalty().detach(), total / 2, **EXACT)
