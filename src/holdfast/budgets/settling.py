"""The end of a run: a shift that is still over its budget is scaled down until it is within."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TRIES = 12  # evaluations of the excess at most
ENOUGH = 0.97  # an excess from here to 1 is where it ends


def start_of(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """A copy on the CPU, to scale from."""
    return [parameter.detach().to("cpu", copy=True) for parameter in parameters]


def starts_within(model: nn.Module) -> dict[int, Tensor]:
    """The id of each parameter that stands for entries of the model's own weights -> where it started, (k,).

    The pre-trained entries, or 0 where it trains increments; wherever the entries are by now (`Entries` of SIFT).
    """
    entries: list[Any] = [module for module in model.modules() if hasattr(module, "increments")]
    return {id(one.values): one.at_base() for one in entries}


def settle(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], excess: Callable[[], float]) -> float:
    """Move the parameters back towards their start until excess() <= 1; returns the share of the way that is left.

    theta = theta_0 + a (theta_T - theta_0). For full fine-tuning that scales the shift by a; for LoRA, whose B starts
    at 0, by a times what its A has moved. The excess is taken to be a power of a: 2 at first, then the power through
    the last point outside and the last one inside, until it is just inside. At a = 0 nothing is forgotten, so a budget
    can always be met.

    Args:
        parameters: what was trained.
        start: their values before training.
        excess: the forgetting as a share of its budget, at the parameters' present values.
    """
    over = excess()
    if over <= 1:
        return 1.0
    end = [parameter.detach().clone() for parameter in parameters]
    outside, inside, power = (1.0, over), (0.0, 0.0), 2.0
    for _ in range(TRIES):
        share, over = inside if inside[1] > 0 else outside
        share *= ((1 + ENOUGH) / 2 / over) ** (1 / power)
        if not inside[0] < share < outside[0]:
            share = (inside[0] + outside[0]) / 2
        _place(parameters, start, end, share)
        over = excess()
        if over > 1:
            outside = share, over
        else:
            inside = share, over
        if ENOUGH <= over <= 1:
            break
        if inside[1] > 0:
            power = max(math.log(outside[1] / inside[1]) / math.log(outside[0] / inside[0]), 0.5)
    if over > 1:
        _place(parameters, start, end, inside[0])
        excess()
    return inside[0]


@torch.no_grad()
def _place(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], end: Sequence[Tensor], share: float) -> None:
    for parameter, first, last in zip(parameters, start, end, strict=True):
        parameter.copy_(torch.lerp(first.to(last.device), last, share))
