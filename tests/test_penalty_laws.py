"""What every term that joins the loss obeys, whatever it is made of."""

import inspect
import math
from typing import Any

import pytest
import torch
from adapted import adapt, move
from laws import EXACT
from networks import NETWORKS, Network
from penalising import ROUNDING, STRENGTH, anchor_of, gradients_of
from torch import nn
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.errors import HoldfastError
from holdfast.penalties.regularizer import Regularizer

PENALTIES = catalogue.names("penalty")
REHEARSALS = ("replay",)  # keep teaching the source's own labels, so they pull at the anchor too
each_penalty = pytest.mark.parametrize("penalty_name", PENALTIES)


def make(name: str, model: nn.Module, network: Network, strength: float = STRENGTH) -> Any:
    """Any penalty of the catalogue, by what its constructor asks for."""
    made = catalogue.find("penalty", name)
    parameters = inspect.signature(made).parameters
    given: dict[str, Any] = {"model": model}
    needs = getattr(made, "needs", None)  # the one curvature that it can use
    known = {
        "anchor": lambda: anchor_of(network.name, "kronecker" if needs is None else needs.kind),
        "source": lambda: network.batches(2),
        "strength": lambda: strength,
        "weight": lambda: strength,
        "progress": lambda: False,
        "terms": lambda: [make("quadratic", model, network, 1.0), make("distill", model, network, 1.0)],
    }
    given |= {parameter: known[parameter]() for parameter in parameters if parameter in known}
    return made(**given)


@each_penalty
def test_every_term_is_a_differentiable_number(penalty_name: str) -> None:
    network = NETWORKS["llama"]
    model = adapt("lora", network)
    penalty: Regularizer = make(penalty_name, model, network)
    move(model)
    value = penalty()
    assert value.shape == ()
    assert float(value.detach()) > 0
    assert all(math.isfinite(figure) for figure in penalty.report().values())
    assert penalty.report()
    assert {type(figure) for figure in penalty.report().values()} == {float}


@each_penalty
def test_every_term_is_zero_and_stationary_at_the_start(penalty_name: str) -> None:
    if penalty_name in REHEARSALS:
        pytest.skip("a rehearsal is no distance from the anchor")
    network = NETWORKS["llama"]
    model = adapt("lora", network)
    value = make(penalty_name, model, network)()
    assert_close(value, torch.zeros_like(value), **ROUNDING)
    for gradient in gradients_of(value, model).values():
        assert gradient is not None
        assert_close(gradient, torch.zeros_like(gradient), **ROUNDING)


@each_penalty
def test_every_term_adds_exactly_its_gradient(penalty_name: str) -> None:
    network = NETWORKS["llama"]
    model = adapt("lora", network)
    penalty = make(penalty_name, model, network)
    penalty.step = 0
    move(model)
    wanted = gradients_of(penalty(), model)
    parameters = dict(model.named_parameters())
    first = next(iter(wanted))
    parameters[first].grad = torch.ones_like(parameters[first])
    value = penalty.add_gradient(multiplier=2.0)
    assert_close(value, float(penalty().detach()), rtol=1e-12, atol=0)
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        added = parameter.grad - 1 if name == first else parameter.grad
        assert_close(added, 2 * wanted[name], **EXACT)


@each_penalty
def test_no_strength_no_gradient(penalty_name: str) -> None:
    network = NETWORKS["llama"]
    model = adapt("lora", network)
    penalty = make(penalty_name, model, network, strength=0.0)
    move(model)
    penalty.add_gradient()
    for parameter in model.parameters():
        if parameter.grad is not None:
            assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=0)


@each_penalty
def test_no_strength_trains_as_without_it(penalty_name: str) -> None:
    network, ended = NETWORKS["llama"], []
    for held in (False, True):
        torch.manual_seed(0)
        model = adapt("lora", network).train()
        penalty = make(penalty_name, model, network, strength=0.0) if held else None
        move(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for batch in network.batches(2):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            if penalty is not None:
                penalty.add_gradient()
            optimizer.step()
        ended.append({name: parameter.detach() for name, parameter in model.named_parameters()})
    assert_close(*ended, rtol=0, atol=0)


@each_penalty
@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf])
def test_strengths_without_a_meaning_are_refused(penalty_name: str, strength: float) -> None:
    network = NETWORKS["llama"]
    with pytest.raises(HoldfastError, match="at least 0"):
        make(penalty_name, adapt("lora", network), network, strength)
