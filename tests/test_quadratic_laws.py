"""The quadratic penalty, on every curvature, every way of training and every tiny network."""

import pytest
import torch
from adapted import CASES, adapt, effective_shifts, lora, move
from allocations import Allocations
from coupled import joint_price
from laws import EXACT, drawn
from networks import NETWORKS, Network
from penalising import ROUNDING, STRENGTH, anchor_of, gradients_of
from torch import nn
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.penalties.prices import quadratic_form
from holdfast.penalties.quadratic import Penalty
from holdfast.shifts.dense import Dense
from holdfast.shifts.low_rank import LowRank

KINDS = [kind for kind in catalogue.names("curvature") if catalogue.curvature(kind).squares]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_case = pytest.mark.parametrize(("flavour", "name"), CASES)


@each_kind
@each_case
def test_zero_and_stationary_at_the_start(kind: str, flavour: str, name: str) -> None:
    model = adapt(flavour, NETWORKS[name])
    value = Penalty(model, anchor_of(name, kind), STRENGTH)()
    assert_close(value, torch.zeros((), dtype=torch.float64), **ROUNDING)
    for gradient in gradients_of(value, model).values():
        assert gradient is not None
        assert_close(gradient, torch.zeros_like(gradient), **ROUNDING)


@each_kind
@each_case
def test_structured_equals_dense(kind: str, flavour: str, name: str) -> None:
    model = adapt(flavour, NETWORKS[name])
    penalty = Penalty(model, anchor_of(name, kind), STRENGTH, damping=0.2)
    move(model)
    forms = {layer: curvature.damped(0.2) for layer, curvature in penalty.prices[0].curvatures.items()}
    dense = joint_price(forms, {layer: reader().matrix() for layer, reader in penalty.prices[0].readers.items()})
    value = penalty()
    assert_close(value, STRENGTH / 2 * dense, **EXACT)
    wanted = gradients_of(STRENGTH / 2 * dense, model)
    assert_close(gradients_of(value, model), wanted, **EXACT)
    assert None not in wanted.values()  # exactly what is trained


@each_kind
@each_case
def test_the_forecast_is_half_the_price_of_what_moved(kind: str, flavour: str, name: str) -> None:
    network, anchor = NETWORKS[name], anchor_of(name, kind)
    model = adapt(flavour, network)
    penalty = Penalty(model, anchor, STRENGTH, damping=0.2)
    move(model)
    moved = effective_shifts(model, network)
    wanted = 0.5 * float(joint_price({layer: anchor.curvatures[layer] for layer in moved}, moved))
    tolerance = 1e-5 if flavour == "pissa" else 1e-9  # PEFT computes PiSSA's start in float32
    assert_close(sum(penalty.per_layer().values()), wanted, rtol=tolerance, atol=0)
    if catalogue.curvature(kind).forecasts:
        assert_close(penalty.predicted_forgetting, wanted, rtol=tolerance, atol=0)
    else:
        assert penalty.predicted_forgetting is None


@each_kind
@pytest.mark.parametrize("name", [name for flavour, name in CASES if flavour == "lora"])
def test_another_factoring_of_the_same_shift_costs_the_same(kind: str, name: str) -> None:
    model = adapt("lora", NETWORKS[name])
    penalty = Penalty(model, anchor_of(name, kind), STRENGTH)
    move(model)
    before = float(penalty().detach())
    mixing = drawn(3, 2, 2) + 2 * torch.eye(2, dtype=torch.float64)
    inverse = torch.linalg.inv(mixing)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name or "lora_embedding_B" in parameter_name:  # (out, r, ...) -> B M
                parameter.copy_(torch.einsum("or...,rs->os...", parameter.clone(), mixing))
            elif "lora_A" in parameter_name or "lora_embedding_A" in parameter_name:  # (r, in, ...) -> M^-1 A
                parameter.copy_(torch.einsum("rs,s...->r...", inverse, parameter.clone()))
    assert_close(float(penalty().detach()), before, rtol=1e-9, atol=0)


@each_kind
@pytest.mark.parametrize("flavour", ["lora", "two"])
@pytest.mark.parametrize("name", ["mlp", "llama", "gpt2", "conv2d"])
def test_frozen_adapters_are_priced_but_not_moved(kind: str, flavour: str, name: str) -> None:
    model = adapt(flavour, NETWORKS[name])
    penalty = Penalty(model, anchor_of(name, kind), STRENGTH)
    move(model)
    value = float(penalty().detach())
    frozen = [parameter for key, parameter in model.named_parameters() if "lora_A" in key and "default" in key]
    for parameter in frozen:
        parameter.requires_grad_(False)
    assert_close(float(penalty().detach()), value, rtol=0, atol=0)
    penalty.add_gradient()
    reached = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {key for key, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["kronecker", "identity"])
@pytest.mark.parametrize("flavour", ["lora", "rslora", "two"])
def test_the_thin_form_makes_nothing_of_the_size_of_the_weight(kind: str, flavour: str) -> None:
    out, inn = 70, 90
    layer = nn.Sequential(nn.Linear(inn, out)).double()
    rows = [{"x": drawn(seed, inn), "labels": torch.tensor(seed)} for seed in range(3)]
    network = Network("wide", lambda: layer, rows, ["0"], NETWORKS["mlp"].forward_loss)
    source = network.batches(2) if kind == "kronecker" else None
    options = {"targets": ["0"], "forward_loss": network.forward_loss, "progress": False}
    anchor = Anchor.estimate(layer, source, curvature=kind, **options)
    model = adapt(flavour, network)
    penalty = Penalty(move(model), anchor, STRENGTH, damping=0.1)
    with Allocations() as made:
        penalty.add_gradient()
        assert penalty.predicted_forgetting != 0.0
    assert made.largest <= 4 * max(out, inn)  # a few columns; the weight has 6300 entries, the factors more


def test_the_diagonal_forms_a_block_of_rows_at_a_time() -> None:
    from holdfast.curvature.diagonal import ROWS_AT_A_TIME, Diagonal

    out, inn = 3 * ROWS_AT_A_TIME, 5
    up, down = (tensor.requires_grad_() for tensor in (drawn(1, out, 2), drawn(2, 2, inn)))
    curvature = Diagonal(drawn(3, out, inn).square())
    with Allocations() as made:
        quadratic_form(LowRank(up, down, 0.5), curvature).backward()
    assert (out, inn) not in made.shapes


def test_trained_tensors_without_a_price_are_named() -> None:
    network = NETWORKS["bert-sequence"]
    model = lora(network, network.build(), target_modules=["query"], modules_to_save=["classifier"])
    with pytest.warns(UserWarning, match="classifier"):
        Penalty(model, anchor_of("bert-sequence", "kronecker"))


def test_a_shift_meets_a_curvature_of_its_own_shape() -> None:
    curvature = next(iter(anchor_of("mlp", "kronecker").curvatures.values()))
    with pytest.raises(HoldfastError, match=r"shape \(3, 3\)"):
        quadratic_form(Dense(torch.zeros(3, 3)), curvature)
