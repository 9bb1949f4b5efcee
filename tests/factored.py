"""LoRA's factors: starts at which B is not zero, copies of starts, and penalties that should agree."""

from typing import Any

import torch
from adapted import adapt, move
from laws import EXACT
from networks import Network
from penalising import gradients_of
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.shifts.read import factors
from holdfast.targets import canonical


def compensated(network: Network) -> nn.Module:
    """LoRA at B_0 != 0, taken out of the base weight again, so that the function is the anchored one (float64)."""
    model = move(adapt("lora", network))
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.base_layer.weight.sub_(factors(layer, "default").matrix().reshape(layer.base_layer.weight.shape))
    return model


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Layer name -> PEFT's layer."""
    return {canonical(n): m for n, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}


def starts(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer name -> copies of B and A of the default adapter."""
    found = {name: factors(layer, "default") for name, layer in lora_layers(model).items()}
    return {name: (pair.up.detach().clone(), pair.down.detach().clone()) for name, pair in found.items()}


def same_penalty(one: Any, other: Any, model: nn.Module, **tolerance: Any) -> None:
    """Two penalties agree in value and gradient."""
    values = one(), other()
    tolerance = EXACT | tolerance
    assert_close(values[0], values[1], **tolerance)
    found, wanted = (gradients_of(value, model) for value in values)
    blank = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    filled = [{n: blank[n] if g is None else g for n, g in gradients.items()} for gradients in (found, wanted)]
    assert_close(filled[0], filled[1], **tolerance)
