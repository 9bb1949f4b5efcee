"""As many trained parameters as a budget allows: the size of a method, solved by counting."""

import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from holdfast.errors import HoldfastError
from holdfast.targets import Targets
from holdfast.tuners.tuner import Tuner
from holdfast.tuners.weightless import weightless


def trained(model: nn.Module) -> int:
    """How many parameters train; what is tied counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def by_component(model: nn.Module, tuner: Tuner) -> dict[str, int]:
    """Component of the method -> how many of its parameters train, in the order of the model."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[tuner.component(name)] += parameter.numel()
    return dict(found)


def solve(model: nn.Module, tuner: Tuner, targets: Targets, budget: int) -> Tuner:
    """The tuner at the largest size whose trained parameters are no more than `budget`.

    The method is put on a weightless copy of the model at one size after another, so whatever it trains is counted
    as it is. The count grows with the size; where the method's size is the count, nothing has to be searched.

    Args:
        model: pre-trained, without an adapter; not changed.
        tuner: with its other options.
        targets: the layers.
        budget: parameters.

    Raises:
        HoldfastError: a method without a size, or one whose smallest is over the budget; both with the numbers.
    """
    key = tuner.size
    if key is None:
        count = _count(model, tuner, targets)
        raise HoldfastError(
            f"--parameters {budget:,}: --method {tuner.name} trains {count:,} parameters of this model, and has no "
            "size to choose",
            remedy="leave --parameters out, or choose fewer targets",
        )
    if tuner.counts:
        return _sized(tuner, key, budget)
    counted = lambda size: _count(model, _sized(tuner, key, size), targets)  # noqa: E731
    least = counted(1)
    if least > budget:
        raise HoldfastError(
            f"--parameters {budget:,}: --method {tuner.name} trains {least:,} already at {key} 1",
            remedy=f"allow {least:,} or more, choose fewer targets, or another --method",
        )
    return _sized(tuner, key, largest(counted, budget))


def largest(count: Callable[[int], int], budget: int) -> int:
    """The largest size of at least 1 with count(size) <= budget, where count grows and count(1) is within it.

    By doubling and halving: about 2 log2(size) counts. A count that grows no more stops the search.
    """
    low, high = 1, 2
    known = count(low)
    while (now := count(high)) <= budget:
        if now == known:
            return low
        low, high, known = high, 2 * high, now
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return low


def _sized(tuner: Tuner, key: str, size: int) -> Tuner:
    return type(tuner)(tuner.options.model_copy(update={key: size}))


def _count(model: nn.Module, tuner: Tuner, targets: Targets) -> int:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the method says it again when it is put on the model itself
        return trained(tuner.prepare(weightless(model), targets))
