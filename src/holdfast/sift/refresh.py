"""Choosing again while training goes on: entries that stay keep what they learned and what the optimizer knows."""

from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.likelihood import ForwardLoss
from holdfast.sift.entries import Entries, carried
from holdfast.sift.finding import entries_of
from holdfast.sift.selection import ACCUMULATOR_MB, Selection, choose
from holdfast.sift.stepping import attend


def refresh(
    model: nn.Module,
    batches: Any = None,
    optimizer: Any = None,
    forward_loss: ForwardLoss | None = None,
    *,
    adapter: str | None = None,
    accumulator_mb: float = ACCUMULATOR_MB,
    progress: bool = False,
) -> Selection:
    """Choose each tensor's entries again, as many as it has, at the weights as they are now.

    Entries that stay keep their values and the optimizer's states; new ones start at the base weight with states of
    zero; those that leave go back to the base, and what they learned is lost: so the model never differs from it in
    more than k entries, and a file never holds more. The optimizer's step count is one for all entries of a tensor:
    with Adam's usual betas and a long run behind it, a new entry's first step is (1 - 0.9) / sqrt(1 - 0.999) = 3.2
    times the learning rate.

    Args:
        model: as for `select`; DistributedDataParallel may hold it already.
        batches: fresh ones, as for `select`.
        optimizer: that trains the values; None where none has stepped yet.
        forward_loss, adapter, accumulator_mb, progress: as for `select`.

    Raises:
        HoldfastError: as `select`; an optimizer whose states are not one number for each entry.
    """
    found = entries_of(model, adapter)
    attend(one.entries for one in found.values())
    states = {} if optimizer is None else {name: _states(optimizer, one.entries) for name, one in found.items()}
    before = {name: one.entries.indices for name, one in found.items()}
    selection = choose(model, batches, forward_loss, adapter, accumulator_mb, progress, resize=False)
    for name, one in found.items():
        for state in states.get(name, {}).values():
            state.copy_(carried(state, before[name], one.entries.indices, torch.zeros_like(state)))
    return selection


def _states(optimizer: Any, entries: Entries) -> dict[str, Tensor]:
    """The optimizer's states of the entries, one number each; what is a single number for all is left alone."""
    held = optimizer.state.get(entries.values, {})
    found = {name: state for name, state in held.items() if isinstance(state, Tensor) and state.dim() > 0}
    odd = [n for n, s in found.items() if s.shape != entries.values.shape or not s.is_floating_point()]
    if odd:
        raise HoldfastError(
            f"the optimizer's state {odd[0]!r} is not one number for each entry of {entries.place.name!r}",
            causes=["an optimizer with states in 8 bits or in factors"],
            remedy="train with torch.optim.AdamW or another optimizer with plain states, or with refresh=0",
        )
    return found
