"""The interface of the room: a term that joins the loss on the new data."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Regularizer(ABC):
    """A differentiable scalar of the model's trainable parameters.

    Used in a plain loop as `loss = task_loss + penalty()`, or once per optimizer step through `add_gradient`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    model: nn.Module
    # The optimizer step it is evaluated for: it decides what a term with data of its own draws, so that runs resume
    # exactly. Trainers set it; in a plain loop it stays None, and every evaluation counts as the next step.
    step: int | None = None
    shared: ClassVar[bool] = True  # whether every rank computes the same value

    @abstractmethod
    def __call__(self) -> Tensor:
        """The term to add to the loss, a 0-d tensor."""

    @abstractmethod
    def report(self) -> dict[str, float]:
        """What to log of the last evaluation."""

    @property
    @abstractmethod
    def predicted_forgetting(self) -> float | None:
        """The rise of the source loss in nats per item that is expected now; None where nothing is known."""

    def add_gradient(self, multiplier: float = 1.0) -> float:
        """Add `multiplier` times the term's gradient to `.grad`; returns the term's value.

        Call it once per optimizer step, after backward and before `optimizer.step()`; with a gradient scaler, after
        `scaler.unscale_(optimizer)`. The multiplier stays what was asked for under gradient accumulation, data
        parallelism and mixed precision, because it meets none of them. Where ranks draw different data, the mean of
        their gradients is added on each.
        """
        value = self()
        if value.requires_grad:
            for parameter, gradient in self._gradients(value):
                if not self.shared:
                    gradient = _mean_over_ranks(gradient, parameter)
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.add_(gradient.to(parameter.grad.dtype), alpha=multiplier)
        return float(value.detach())

    def reached(self) -> list[nn.Parameter]:
        """The trainable parameters that the term's gradient reaches."""
        if not self.shared:  # it runs the whole model, on data of its own
            return self._trainable()
        value = self()
        return [p for p, gradient in self._gradients(value) if gradient is not None] if value.requires_grad else []

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _gradients(self, value: Tensor) -> list[tuple[nn.Parameter, Tensor | None]]:
        parameters = self._trainable()
        return list(zip(parameters, torch.autograd.grad(value, parameters, allow_unused=True), strict=True))


def _mean_over_ranks(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor | None:
    """The mean gradient over all ranks, as DDP's; a rank that did not reach the parameter takes part with zero."""
    if not (dist.is_available() and dist.is_initialized()):
        return gradient
    gradient = torch.zeros_like(parameter) if gradient is None else gradient.contiguous()
    dist.all_reduce(gradient)
    return gradient / dist.get_world_size()
