"""How much memory something takes, in numbers."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Amount:
    """How many numbers one part of a layer's curvature takes, or several together.

    Attributes:
        measured: in memory while it is measured.
        used: in memory when it is finished.
        stored: in a file.
        shared: layers that are given the same inputs hold it once.
    """

    measured: int = 0
    used: int = 0
    stored: int = 0
    shared: bool = False

    def __add__(self, other: Self) -> Self:
        return type(self)(self.measured + other.measured, self.used + other.used, self.stored + other.stored)

    def __sub__(self, other: Self) -> Self:
        return type(self)(self.measured - other.measured, self.used - other.used, self.stored - other.stored)

    @property
    def held(self) -> int:
        """The most that is in memory at a time."""
        return max(self.measured, self.used)
