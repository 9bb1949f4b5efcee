"""The largest forecast whose measured forgetting is inside a budget, found in a handful of measurements."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.errors import HoldfastError

NEAR = 0.05  # of the budget: a rise this little below it is near enough
AIM = 0.975  # of the budget: what an interpolation aims at, to land inside and near
EVALUATIONS = 8  # measurements after which the best so far is taken
LAST = 16  # measurements after which a budget that nothing was inside of is given up
STEEPEST = 1e-3  # the least that one step multiplies the forecast by


@dataclass
class Search:
    """What was tried, in its order.

    Attributes:
        forecasts: nats that each try was aimed at.
        rises: what was then measured, in the budget's unit.
        best: number of the try that is kept.
    """

    forecasts: list[float] = field(default_factory=list)
    rises: list[float] = field(default_factory=list)
    best: int = 0


def largest_inside(measured: Callable[[float], float], forecast: float, rise: float, limit: float) -> Search:
    """The largest forecast found at which the measured rise is at most `limit`.

    A rise goes about as a power of the forecast: secants in their logarithms inside a shrinking bracket, the first
    along the power 1. It ends within 5 % under the limit, or after 8 measurements at the largest rise inside it.

    Args:
        measured: the rise at a fit with that forecast.
        forecast: of the shift as it came.
        rise: measured there, above `limit`.
        limit: the budget, in the rise's unit.

    Raises:
        HoldfastError: nothing is inside, however little of the shift is left.
    """
    tried = Search()
    over, inside = (math.log(forecast), rise), None
    while len(tried.rises) < (EVALUATIONS if inside else LAST):
        place = _next(over, inside, limit)
        found = measured(math.exp(place))
        tried.forecasts.append(math.exp(place))
        tried.rises.append(found)
        if found > limit:
            over = (place, found)
            continue
        inside, tried.best = (place, found), len(tried.rises) - 1
        if found >= (1 - NEAR) * limit:
            break
    if inside is None:
        raise HoldfastError(
            f"a measured forgetting of {limit:g} is out of reach: it is {tried.rises[-1]:g} still with a shift whose "
            f"forecast is {tried.forecasts[-1]:.2g} nats",
            causes=["the model that was measured is not the anchored one where nothing is left of its shift"],
            remedy="allow a larger budget",
        )
    return tried


def _next(over: tuple[float, float], inside: tuple[float, float] | None, limit: float) -> float:
    """The logarithm of the forecast to try next."""
    high, rise = over
    if inside is None:
        return high + math.log(max(min(AIM * limit / rise, 0.9), STEEPEST))
    low, least = inside
    if least <= 0:  # nothing is forgotten there, and a logarithm says nothing
        return (low + high) / 2
    share = math.log(AIM * limit / least) / math.log(rise / least)
    return low + min(max(share, 0.1), 0.9) * (high - low)
