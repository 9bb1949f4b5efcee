"""The loss of a model on rows of text: mean nats per scored item."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from holdfast.batches import Row, collate, to_device
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import Items, summed_loss
from holdfast.pretrained import evaluating
from holdfast.progress import track


@dataclass(frozen=True)
class Loss:
    """Mean nats per item over `items` scored items."""

    nats: float
    items: int

    @property
    def perplexity(self) -> float:
        """exp(nats)."""
        return math.exp(min(self.nats, 700.0))


@torch.no_grad()
def mean_loss(
    model: nn.Module, rows: Sequence[Row], *, batch_size: int = 32, name: str = "evaluate", progress: bool = False
) -> Loss:
    """The mean loss over all rows in eval mode, every item weighing the same; modes are restored.

    Raises:
        HoldfastError: no scored item, or a loss that is not finite.
    """
    reader, device = Items(model), device_of(model)
    total, items = 0.0, 0
    bar = track(name, math.ceil(len(rows) / batch_size), shown=progress)
    with evaluating(model), bar as advance:
        for start in range(0, len(rows), batch_size):
            batch: Any = to_device(collate(rows[start : start + batch_size]), device)
            scored = reader.run(batch)
            total += float(summed_loss(scored))
            items += scored.items
            advance()
    if items == 0:
        raise HoldfastError(f"{name}: no scored item to measure a loss on", remedy="give more data")
    if not math.isfinite(total):
        raise not_finite(name, total)
    return Loss(total / items, items)


def not_finite(name: str, loss: float) -> HoldfastError:
    """The error for a loss on some data that is infinite or no number."""
    return HoldfastError(
        f"{name}: the loss is {loss}",
        causes=[
            "the model's weights hold NaN",
            "float16 overflows",
            "the learning rate is too high",
        ],
        remedy="look at the weights, load the model in float32, or lower the learning rate",
    )
