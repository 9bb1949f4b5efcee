"""Means over seeds and how far they can be trusted."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its two-sided confidence interval; one seed alone has none."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low is not None and self.low > 0

    def told(self, name: str) -> dict[str, float | int | None]:
        """As the columns of a table: `name`, `name_low`, `name_high`."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def interval(values: Iterable[float]) -> Interval:
    """mean ± t(n - 1) s / sqrt(n): Student's interval at 95 %.

    Exact for normal values; over few seeds it is wide, as it should be.

    Raises:
        ValueError: no values.
    """
    known = list(values)
    count, mean = len(known), statistics.fmean(known)
    if count < 2:
        return Interval(mean, None, None, count)
    half = _quantile(count - 1) * statistics.stdev(known) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


@cache
def _quantile(freedom: int) -> float:
    from scipy.stats import t  # slow to import

    return float(t.ppf(0.5 + LEVEL / 2, freedom))
