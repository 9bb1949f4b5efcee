"""The end of a run: a shift that is still over its budget is scaled down until it is within."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

TRIES = 20  # each takes the square root of what is too much off the shift, and a little more
MARGIN = 0.995


def start_of(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """A copy on the CPU, to scale from."""
    return [parameter.detach().to("cpu", copy=True) for parameter in parameters]


def settle(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], excess: Callable[[], float]) -> float:
    """Move the parameters back towards their start until excess() <= 1; returns the share of the way that is left.

    theta = theta_0 + a (theta_T - theta_0). For full fine-tuning that scales the shift by a; for LoRA, whose B starts
    at 0, by a times what its A has moved. A quadratic forgetting falls with a^2, so a is divided by the root of the
    excess; where a first-order part makes it fall more slowly, the next tries go on from there, from outside. At a = 0
    nothing is forgotten, so a budget can always be met.

    Args:
        parameters: what was trained.
        start: their values before training.
        excess: the forgetting as a share of its budget, at the parameters' present values.
    """
    over = excess()
    if over <= 1:
        return 1.0
    end, share = [parameter.detach().clone() for parameter in parameters], 1.0
    for number in range(TRIES):
        share = 0.0 if number == TRIES - 1 else share * MARGIN / math.sqrt(over)
        _place(parameters, start, end, share)
        over = excess()
        if over <= 1:
            break
    return share


@torch.no_grad()
def _place(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], end: Sequence[Tensor], share: float) -> None:
    for parameter, first, last in zip(parameters, start, end, strict=True):
        parameter.copy_(torch.lerp(first.to(last.device), last, share))
