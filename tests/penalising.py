"""What the tests of the penalties share."""

from functools import cache
from typing import Any

import torch
from networks import NETWORKS
from torch import Tensor, nn

from holdfast import catalogue
from holdfast.anchor import Anchor

STRENGTH = 0.7
ROUNDING: dict[str, Any] = {"rtol": 0, "atol": 1e-12}  # of what is zero


@cache
def anchor_of(name: str, kind: str) -> Anchor:
    """The anchor of a network as built."""
    network = NETWORKS[name]
    source = network.batches(2) if catalogue.curvature(kind).statistics() else None
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "progress": False}
    return Anchor.estimate(network.build(), source, curvature=kind, **options)


def gradients_of(value: Tensor, model: nn.Module) -> dict[str, Tensor | None]:
    """Trainable parameter -> gradient."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return dict(zip(trained, found, strict=True))
