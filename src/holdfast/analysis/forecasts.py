"""How a forecast of forgetting does against what is measured, in figures."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOLD = 2.0  # standard errors that a rise is above zero, or a forecast off it, before it counts
SHARES = (0.1, 0.5)  # errors whose place along the path is sought


@dataclass(frozen=True)
class Fit:
    """One anchor along a path.

    Args:
        ratios: forecast / measured at each step; None where the measured rise is within two errors of zero.
        slope: of log measured on log forecast, by least squares over the steps with a ratio: 1 where the measured rise
            grows as the forecast does, however wrong its size; above 1 the loss rises faster than a quadratic.
        passes: share -> the first step at which the forecast is off by more than that share of the measured rise (or
            fall), and by more than two standard errors; None: nowhere. Rises within two errors of zero are left out.
        rank_correlation: Spearman's, between forecasts and measurements.
    """

    ratios: list[float | None]
    slope: float | None
    passes: dict[str, float | None]
    rank_correlation: float | None

    def json(self) -> dict[str, Any]:
        """Name -> figure."""
        return asdict(self)


def fit(
    places: Sequence[float], forecasts: Sequence[float], measured: Sequence[float], errors: Sequence[float]
) -> Fit:
    """The figures of one anchor.

    Args:
        places: of the steps along the path, ascending.
        forecasts: nats.
        measured: nats.
        errors: standard errors of what was measured, nats.
    """
    told = [rise > TOLD * error for rise, error in zip(measured, errors, strict=True)]
    steps = list(zip(places, forecasts, measured, errors, told, strict=True))
    passes = {}
    for share in SHARES:
        moved = [(at, f, m, e) for at, f, m, e, _ in steps if abs(m) > TOLD * e]
        off = (at for at, f, m, e in moved if abs(f - m) > max(share * abs(m), TOLD * e))
        passes[f"{share:.0%}"] = next(off, None)
    return Fit(
        ratios=[forecast / rise if known else None for _, forecast, rise, _, known in steps],
        slope=slope([(math.log(f), math.log(m)) for _, f, m, _, known in steps if known and f > 0]),
        passes=passes,
        rank_correlation=rank_correlation(list(forecasts), list(measured)),
    )


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least squares of y on x; None of fewer than two places."""
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def rank_correlation(one: list[float], other: list[float]) -> float | None:
    """Spearman's, ties sharing their mean rank; None where one of both is constant."""
    if len(one) < 2 or len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return statistics.correlation(_ranks(one), _ranks(other))


def _ranks(values: list[float]) -> list[float]:
    """1 for the least; equal values share the mean of their ranks."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]
