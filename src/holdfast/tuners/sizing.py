"""As many trained parameters as a budget allows: the size of a method, solved by counting."""

import math
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from holdfast.errors import HoldfastError
from holdfast.targets import Targets
from holdfast.tuners.tuner import Tuner
from holdfast.tuners.weightless import weightless


def parameters_of(model: nn.Module) -> int:
    """How many parameters a model has; what is tied counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


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
    """The tuner at the largest size whose trained parameters are no more than `budget`, in a smaller form if need be.

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
    if not tuner.sizes:
        count = _count(model, tuner, targets)
        raise HoldfastError(
            f"--parameters {budget:,}: --method {tuner.name} trains {count:,} parameters of this model, and has no "
            "size to choose",
            remedy="leave --parameters out, or choose fewer targets",
        )
    if tuner.counts:
        return tuner.sized(budget)
    for form in (tuner, *tuner.smaller()):
        counted = lambda size, form=form: _count(model, form.sized(size), targets)  # noqa: E731
        smallest = counted(form.least)
        if smallest <= budget:
            return form.sized(largest(counted, budget, form.least))
    share = math.ceil(1e5 * smallest / parameters_of(model)) / 1e3  # upwards: it is enough when it is given back
    raise HoldfastError(
        f"--parameters {budget:,}: --method {tuner.name} trains {smallest:,} already at its smallest "
        f"({tuner.sizes[0]} {tuner.least})",
        remedy=f"allow {smallest:,} ({share:g}%) or more, choose fewer targets, other options of "
        "the method's, or another --method; holdfast methods lists them",
    )


def largest(count: Callable[[int], int], budget: int, least: int = 1) -> int:
    """The largest size from `least` on with count(size) <= budget, where count grows and count(least) is within it.

    By doubling and halving: about 2 log2(size) counts. A count that grows no more stops the search.
    """
    low, high, known = least, least + 1, count(least)
    while (now := count(high)) <= budget:
        if now == known:
            return low
        low, high, known = high, 2 * high, now
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return low


def _count(model: nn.Module, tuner: Tuner, targets: Targets) -> int:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the method says it again when it is put on the model itself
        return trained(tuner.prepare(weightless(model), targets))
