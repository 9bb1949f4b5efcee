"""Whether the entries where a gradient is largest stay the same: over batches, over tasks and over training."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.analysis.concentration import SHARE
from holdfast.analysis.gradients import each_gradient
from holdfast.batches import to_device
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import ForwardLoss, Items, summed_loss

Masks = dict[str, Tensor]  # name -> (k,) int64, sorted flat indices


@dataclass(frozen=True)
class Overlap:
    """How much of a gradient an earlier mask I_0 of the same density still holds, over all tensors together.

    Args:
        recall: ||g[I_0]|| / ||g||, L2 norms; sqrt(density) for a gradient without structure.
        own: ||g[I]|| / ||g|| of the gradient's own largest entries: what recall can be at most.
        jaccard: |I_0 and I| / |I_0 or I|; density / (2 - density) for two masks drawn at random.
    """

    recall: float
    own: float
    jaccard: float


def chance(share: float) -> Overlap:
    """The overlap of a mask drawn at random with a gradient whose norm is spread evenly."""
    return Overlap(math.sqrt(share), math.sqrt(share), share / (2 - share))


def largest(gradient: Tensor, share: float) -> Tensor:
    """(k,) sorted flat indices of the `share` of entries with the largest |g|, at least one."""
    count = max(1, round(share * gradient.numel()))
    return gradient.detach().reshape(-1).abs().topk(count).indices.sort().values


def masks(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    tensors: Mapping[str, nn.Parameter],
    share: float = SHARE,
    forward_loss: ForwardLoss | None = None,
) -> Masks:
    """The largest entries of each tensor's gradient over all the batches; see `each_gradient`."""
    found: Masks = {}

    def take(name: str, gradient: Tensor) -> None:
        found[name] = largest(gradient, share).cpu()

    each_gradient(model, batches, take, tensors=tensors, forward_loss=forward_loss)
    return found


def overlap(
    model: nn.Module,
    batches: Sequence[Any],
    before: Masks,
    *,
    tensors: Mapping[str, nn.Parameter],
    forward_loss: ForwardLoss | None = None,
) -> Overlap:
    """How much of the gradient over these batches lies in masks that were found before."""
    held, own, whole = [], [], []  # energies
    common, either = 0, 0

    def take(name: str, gradient: Tensor) -> None:
        nonlocal common, either
        if name not in before:
            return
        flat, mask = gradient.detach().reshape(-1), before[name].to(gradient.device)
        present = flat.abs().topk(len(mask)).indices
        held.append(float(flat[mask].double().square().sum()))
        own.append(float(flat[present].double().square().sum()))
        whole.append(float(sum(part.double().square().sum() for part in flat.split(2**20))))
        shared = int(torch.isin(mask, present).sum())
        common, either = common + shared, either + 2 * len(mask) - shared

    each_gradient(model, batches, take, tensors=tensors, forward_loss=forward_loss)
    if not sum(whole):
        raise HoldfastError("the gradient is zero, so it lies nowhere", causes=["other tensors were masked"])
    total = sum(whole)
    return Overlap(math.sqrt(sum(held) / total), math.sqrt(sum(own) / total), common / either)


def trained(
    model: nn.Module,
    batches: Iterator[Any],
    moments: Sequence[int],
    *,
    tensors: Mapping[str, nn.Parameter],
    learning_rate: float,
    forward_loss: ForwardLoss | None = None,
    advance: Callable[[], object] | None = None,
) -> Iterator[int]:
    """Train the tensors in place with AdamW on a batch per step, in eval mode; stop at each moment and yield it.

    Raises:
        HoldfastError: the loss is not finite.
    """
    reader, device = Items(model, forward_loss), device_of(model)
    optimizer = torch.optim.AdamW(tensors.values(), lr=learning_rate, weight_decay=0.0)
    step = 0
    for moment in sorted(set(moments)):
        while step < moment:
            optimizer.zero_grad()
            for parameter in tensors.values():
                parameter.requires_grad_(True)
            scored = reader.run(to_device(next(batches), device))
            loss = summed_loss(scored) / scored.items
            if not math.isfinite(found := float(loss.detach())):
                raise HoldfastError(f"the loss is {found} after {step} steps", remedy="lower the learning rate")
            loss.backward()
            optimizer.step()
            step += 1
            if advance is not None:
                advance()
        optimizer.zero_grad()  # nothing dense waits while gradients are measured
        yield moment
