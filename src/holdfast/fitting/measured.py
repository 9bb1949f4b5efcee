"""Forgetting as it is measured: block by block, so that a rise has a standard error."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from holdfast.batches import to_device
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import Items, summed_loss
from holdfast.likelihoods.categorical import Categorical
from holdfast.pretrained import evaluating
from holdfast.progress import track

Unit = Literal["nats", "points"]


@dataclass(frozen=True)
class Measured:
    """What a model loses on each batch of the same data, summed over its items.

    Attributes:
        items: scored items of each batch.
        nats: -log p of the labels.
        wrong: labels that are not the most probable class; None where outputs are no classes.
    """

    items: Sequence[int]
    nats: Sequence[float]
    wrong: Sequence[int] | None

    @property
    def loss(self) -> float:
        """Mean nats per item."""
        return sum(self.nats) / sum(self.items)

    def lost(self, unit: Unit) -> list[float]:
        """What grows as the model forgets, summed over each batch's items: nats, or points of accuracy.

        Raises:
            HoldfastError: accuracy of outputs that are no classes.
        """
        if unit == "nats":
            return list(self.nats)
        if self.wrong is None:
            raise HoldfastError(
                "a budget in points of accuracy, and the model's outputs are no classes",
                remedy="state the budget in nats: '0.02', '1%'",
            )
        return [100.0 * wrong for wrong in self.wrong]


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[Any], *, name: str = "measure", progress: bool = False) -> Measured:
    """Read every batch in eval mode; modes are restored.

    Raises:
        HoldfastError: no scored item, or a loss that is not finite.
    """
    reader, device = Items(model), device_of(model)
    items: list[int] = []
    nats: list[float] = []
    wrong: list[int] = []
    batches = list(batches)
    with evaluating(model), track(name, len(batches), shown=progress) as advance:
        for batch in batches:
            scored = reader.run(to_device(batch, device))
            advance()
            if not scored.items:
                continue
            items.append(scored.items)
            nats.append(float(summed_loss(scored)))
            if isinstance(scored.likelihood, Categorical):
                wrong.append(_wrong(scored.likelihood))
    if not items:
        raise HoldfastError(f"{name}: no scored item to measure a loss on", remedy="give more data")
    if not math.isfinite(sum(nats)):
        raise HoldfastError(
            f"{name}: the loss is {sum(nats)}",
            causes=["the weights of the model or of the adapter hold NaN", "float16 overflows"],
            remedy="look at the weights, or load the model in float32",
        )
    return Measured(items, nats, wrong if len(wrong) == len(items) else None)


def _wrong(likelihood: Categorical) -> int:
    right = (likelihood.outputs.argmax(dim=1) == likelihood.labels()) & likelihood.scored
    return likelihood.items - int(right.sum())


def rise(before: Measured, after: Measured, unit: Unit = "nats") -> tuple[float, float | None]:
    """The mean rise per item, and its standard error over batches taken for independent; None for a single batch.

    r = sum d_b / sum n_b over the batches' differences d_b and items n_b, a ratio of means, whose variance is
    sum (d_b - r n_b)^2 / (sum n_b)^2 * N / (N - 1) to first order (Cochran, Sampling Techniques, sec. 6.4).
    """
    differences = [late - early for early, late in zip(before.lost(unit), after.lost(unit), strict=True)]
    total, count = sum(before.items), len(differences)
    mean = sum(differences) / total
    if count < 2:
        return mean, None
    squares = sum((d - mean * n) ** 2 for d, n in zip(differences, before.items, strict=True))
    return mean, math.sqrt(squares * count / (count - 1)) / total
