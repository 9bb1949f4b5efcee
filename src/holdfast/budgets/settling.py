"""The end of a run: a shift that is still over its budget is scaled down until it is within."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

HALVINGS = 7  # of the range of the factor: to a hundredth


def start_of(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """A copy on the CPU, to scale from."""
    return [parameter.detach().to("cpu", copy=True) for parameter in parameters]


def settle(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], excess: Callable[[], float]) -> float:
    """Move the parameters back towards their start until excess() <= 1; returns the share of the way that is left.

    theta = theta_0 + a (theta_T - theta_0), the largest a in [0, 1] that bisection finds to 1/128. For full
    fine-tuning it scales the shift by a; for LoRA, whose B starts at 0, by a times what its A has moved. At a = 0
    nothing is forgotten, so a budget can always be met; excess is taken to rise with a.

    Args:
        parameters: what was trained.
        start: their values before training.
        excess: the forgetting as a share of its budget, at the parameters' present values.
    """
    if excess() <= 1:
        return 1.0
    end = [parameter.detach().clone() for parameter in parameters]
    inside, outside = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        _place(parameters, start, end, middle)
        if excess() <= 1:
            inside = middle
        else:
            outside = middle
    _place(parameters, start, end, inside)
    excess()
    return inside


@torch.no_grad()
def _place(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], end: Sequence[Tensor], share: float) -> None:
    for parameter, first, last in zip(parameters, start, end, strict=True):
        parameter.copy_(torch.lerp(first.to(last.device), last, share))
