"""The values that one key of a way takes: a list, or a range to be searched."""

import math
from typing import Any

from pydantic import Field, model_validator

from holdfast.recipe import Settings

DIGITS = 3  # significant ones of a value from a range: readable, and finer than any curve


class Range(Settings):
    """Values between two ends."""

    low: float
    high: float
    log: bool = Field(True, description="spread on a logarithmic scale")
    relative: bool = Field(False, description="the ends are multiples of the base's value")
    points: int = Field(3, ge=1, description="how many a grid takes, the ends included")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm: make it more than 0, or set log: false")
        return self

    def times(self, base: Any) -> "Range":
        """The range in the key's own unit."""
        if not self.relative:
            return self
        return self.model_copy(update={"low": base * self.low, "high": base * self.high, "relative": False})

    def at(self, share: float) -> float:
        """The value at a share of the way from low to high."""
        if self.log:
            return rounded(math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low))))
        return rounded(self.low + share * (self.high - self.low))

    def grid(self) -> list[float]:
        """Evenly spread values; a single one is the middle."""
        if self.points == 1:
            return [self.at(0.5)]
        return [self.at(place / (self.points - 1)) for place in range(self.points)]


def rounded(value: float) -> float:
    """To a few significant digits."""
    return float(f"{value:.{DIGITS}g}")


def is_range(value: Any) -> bool:
    """Whether a recipe's value is meant as a range."""
    return isinstance(value, dict) and {"low", "high"} & set(value) != set()
