"""The closed forms: what is kept of each layer's shift under a budget, and the one multiplier that fits it."""

import math
from collections.abc import Callable, Mapping

DECADE = math.log(10.0)
SPAN = 60  # decades that the multiplier may be away from where the search for it starts
EVALUATIONS = 200  # of a forecast, at most; some ten are usual
CLOSE = 1e-13  # relative distance from the budget at which the search ends


def scale(price: float, budget: float) -> float:
    """a in [0, 1] with a^2 P <= B: min(1, sqrt(B / P)).

    Args:
        price: P = 1/2 q of the whole shift, nats; q is quadratic, so a times the shift costs a^2 P exactly.
        budget: B, nats.
    """
    return 1.0 if price <= budget else math.sqrt(budget / price)


def kept(worth: float, price: float, multiplier: float) -> float:
    """a = n / (n + mu p) of one layer, the minimum of n (1 - a)^2 + mu a^2 p; a layer without a price stays whole."""
    if price <= 0 or multiplier == 0:
        return 1.0
    return worth / (worth + multiplier * price)


def layers(worths: Mapping[str, float], prices: Mapping[str, float], budget: float) -> dict[str, float]:
    """Layer -> a_l in [0, 1], the minimum of sum n_l (1 - a_l)^2 over all a with sum a_l^2 p_l <= B.

    The Lagrangian's minimum is a_l = n_l / (n_l + mu p_l), in which sum a_l^2 p_l falls as mu rises: mu is 0 where
    everything fits, else the one root. Where p_l / n_l is the same for all layers, so is a_l, and it is `scale`.

    Args:
        worths: n_l >= 0, what a layer is worth, in any one unit.
        prices: p_l = 1/2 q_l >= 0, nats, of the same layers.
        budget: B > 0, nats.
    """

    def forecast(multiplier: float) -> float:
        return sum(kept(worths[name], prices[name], multiplier) ** 2 * prices[name] for name in prices)

    multiplier = fitting_multiplier(forecast, budget, start=sum(worths.values()) / (sum(prices.values()) or 1.0))
    return {name: kept(worths[name], prices[name], multiplier) for name in prices}


def fitting_multiplier(
    forecast: Callable[[float], float], budget: float, *, start: float = 1.0, close: float = CLOSE
) -> float:
    """The least mu >= 0 at which a forecast that never rises with mu is inside the budget.

    Regula falsi with Illinois' halving, in log mu and log forecast; its last step is on the budget's side.

    Args:
        forecast: f(mu), nats; f(0) is that of the shift as it came.
        budget: B > 0, nats.
        start: a guess above 0.
        close: the relative distance from B that is near enough.
    """
    if forecast(0.0) <= budget:
        return 0.0

    def excess(log_multiplier: float) -> float:
        found = forecast(math.exp(log_multiplier))
        return math.log(found / budget) if found > 0 else -SPAN * DECADE

    low = high = math.log(start) if start > 0 else 0.0  # low: over the budget; high: inside it
    over = inside = excess(low)
    for _ in range(SPAN):
        if over > 0:
            break
        high, inside = low, over
        low -= DECADE
        over = excess(low)
    for _ in range(SPAN):
        if inside <= 0:
            break
        low, over = high, inside
        high += DECADE
        inside = excess(high)
    if over <= 0:  # within rounding of the budget for every mu above 0 that floats tell apart
        return math.exp(low)
    return math.exp(_between(excess, (low, over), (high, inside), close))


def _between(
    excess: Callable[[float], float], low: tuple[float, float], high: tuple[float, float], close: float
) -> float:
    """The upper end of a bracket of the root, once it is narrow or its value is near enough."""
    (left, over), (right, inside) = low, high
    nearest, side = inside, 0
    for _ in range(EVALUATIONS):
        if -close <= nearest <= 0 or right - left <= 4 * math.ulp(max(abs(left), abs(right))):
            break
        middle = right - inside * (right - left) / (inside - over)
        if not left < middle < right:
            middle = (left + right) / 2
        found = excess(middle)
        if found > 0:
            left, over = middle, found
            inside, side = (inside / 2 if side > 0 else inside), 1
        else:
            right, inside, nearest = middle, found, found
            over, side = (over / 2 if side < 0 else over), -1
    return right
