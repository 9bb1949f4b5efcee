"""The loss of a model on a fixed set of batches: mean nats per scored item, at any weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.batches import batches_of, to_device
from holdfast.errors import HoldfastError
from holdfast.evaluation import not_finite
from holdfast.layers import device_of
from holdfast.likelihood import ForwardLoss, Items
from holdfast.shifts.shift import precise


class Losses:
    """Reads the same batches again and again.

    Args:
        model: in eval mode when called.
        batches: as for `Anchor.estimate`.
        forward_loss: of models that are not of transformers, as there.

    Raises:
        HoldfastError: no batch.
    """

    def __init__(self, model: nn.Module, batches: Any, forward_loss: ForwardLoss | None = None) -> None:
        self.model, self.reader = model, Items(model, forward_loss)
        self.batches = [to_device(batch, device_of(model)) for batch in batches_of(batches)]
        if not self.batches:
            raise HoldfastError("no batches to measure a loss on", remedy="pass some")

    @torch.no_grad()
    def __call__(self) -> float:
        """The mean loss now; NaN where it is not finite, which far from a model's weights it may be.

        Raises:
            HoldfastError: no scored item.
        """
        total, items = 0.0, 0
        for batch in self.batches:
            said = self.reader.read(batch)
            total, items = total + float(said.loss()), items + said.items
        if items == 0:
            raise HoldfastError("no scored item in the batches to measure a loss on", remedy="give more data")
        return total / items if math.isfinite(total) else math.nan

    def start(self) -> float:
        """The mean loss at the model's own weights; raises HoldfastError where it is not finite."""
        loss = self()
        if not math.isfinite(loss):
            raise not_finite("the model as it came", loss)
        return loss

    def gradients(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """The gradient of the mean loss for each of the parameters; zero where the loss does not depend on it."""
        total = {name: torch.zeros_like(precise(parameter.detach())) for name, parameter in parameters.items()}
        items = 0
        with _asking(parameters), torch.enable_grad():
            for batch in self.batches:
                said = self.reader.read(batch)
                items += said.items
                found = torch.autograd.grad(said.loss(), list(parameters.values()), allow_unused=True)
                for sums, gradient in zip(total.values(), found, strict=True):
                    if gradient is not None:
                        sums += gradient
        return {name: sums / max(items, 1) for name, sums in total.items()}


@contextmanager
def _asking(parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """These require a gradient; their flags are restored."""
    flags = {parameter: parameter.requires_grad for parameter in parameters.values()}
    try:
        for parameter in flags:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
