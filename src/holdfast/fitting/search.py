"""The largest forecast whose measured forgetting is inside a budget, found in a handful of measurements."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.errors import HoldfastError

NEAR = 0.05  # of the budget: a rise this little below it is near enough
AIM = 0.975  # of the budget: what every step aims at, to land inside and near
EVALUATIONS = 10  # measurements after which the best so far is taken
LAST = 16  # measurements after which a budget that nothing was inside of is given up
FLATTEST, STEEPEST = 0.5, 4.0  # powers of the forecast that a rise is taken to go as
FURTHEST = math.log(100)  # that one step may divide the forecast by
FLOOR = 0.1  # of the budget: a rise below it, or below 0, counts as this in logarithms


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

    A rise goes about as a power of the forecast, so all is done in logarithms: steps along the power 1, then along
    that of the last two points, until something is inside; regula falsi with Illinois' halving from there. It ends
    within 5 % under the limit, or after 10 measurements at the largest rise inside it.

    Args:
        measured: the rise at a fit with that forecast.
        forecast: of the shift as it came.
        rise: measured there, above `limit`.
        limit: the budget, in the rise's unit.

    Raises:
        HoldfastError: nothing is inside, however little of the shift is left.
    """
    tried, aim = Search(), AIM * limit
    over, inside, slope, side = (math.log(forecast), math.log(rise / aim)), None, 1.0, 0
    while len(tried.rises) < (EVALUATIONS if inside else LAST):
        place = over[0] - min(over[1] / slope, FURTHEST) if inside is None else _between(inside, over)
        found = measured(math.exp(place))
        tried.forecasts.append(math.exp(place))
        tried.rises.append(found)
        height = math.log(max(found, FLOOR * limit) / aim)
        if found <= limit:
            over = (over[0], over[1] / 2) if side < 0 else over
            inside, side, tried.best = (place, height), -1, len(tried.rises) - 1
            if found >= (1 - NEAR) * limit:
                break
        else:
            if inside is None:
                slope = min(max((over[1] - height) / (over[0] - place), FLATTEST), STEEPEST)
            elif side > 0:
                inside = (inside[0], inside[1] / 2)
            over, side = (place, height), 1
    if inside is None:
        raise HoldfastError(
            f"a measured forgetting of {limit:g} is out of reach: it is {tried.rises[-1]:g} still with a shift whose "
            f"forecast is {tried.forecasts[-1]:.2g} nats",
            causes=["the model that was measured is not the anchored one where nothing is left of its shift"],
            remedy="allow a larger budget",
        )
    return tried


def _between(inside: tuple[float, float], over: tuple[float, float]) -> float:
    """Where the line through both heights is 0, a tenth of the way off either end."""
    share = -inside[1] / (over[1] - inside[1])
    return inside[0] + min(max(share, 0.1), 0.9) * (over[0] - inside[0])
