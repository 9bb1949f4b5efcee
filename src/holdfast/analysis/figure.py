"""What an analysis draws, in words of its own: the same panels become the page's plots and the static picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from holdfast.report.palette import COLORS, DASHES, INK

__all__ = ["COLORS", "DASHES", "INK", "Bars", "Heat", "Level", "Line", "Mark", "Panel", "color"]

Numbers = Sequence[float | None]  # None: nothing is drawn there


@dataclass(frozen=True)
class Line:
    """A series y over x, with a band where `low` and `high` are given.

    Args:
        points: a marker at each point as well; `line=False` leaves only these.
        shown: a name in the legend.
        opacity: less than 1 for what stands behind.
    """

    name: str
    x: Numbers
    y: Numbers
    color: str = INK
    dash: str = "solid"
    low: Numbers | None = None
    high: Numbers | None = None
    points: bool = False
    line: bool = True
    shown: bool = True
    opacity: float = 1.0


@dataclass(frozen=True)
class Bars:
    """A bar of height y at each x, numbers (a histogram) or names."""

    name: str
    x: Sequence[float] | Sequence[str]
    y: Numbers
    color: str = COLORS[0]
    opacity: float = 0.75


@dataclass(frozen=True)
class Heat:
    """Values z (len(y), len(x)) as colours; `name` is what the colours say."""

    name: str
    x: Numbers
    y: Numbers
    z: Sequence[Numbers]
    contours: bool = False


@dataclass(frozen=True)
class Level:
    """A dotted line across the panel: at a value of y, or of x where `upright`."""

    name: str
    at: float
    upright: bool = False


Mark = Line | Bars | Heat | Level
Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Panel:
    """One plot. The caption says what is seen, in a sentence; `wide` panels take the page's whole width."""

    title: str
    x: str
    y: str
    marks: list[Mark] = field(default_factory=list)
    caption: str = ""
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    wide: bool = False
    height: int = 340

    def scale(self, axis: Literal["x", "y"]) -> Scale:
        """What was asked for; linear where nothing is above 0, which no logarithmic axis can show."""
        asked: Scale = self.x_scale if axis == "x" else self.y_scale
        return asked if asked == "linear" or self.positive(axis) else "linear"

    def positive(self, axis: Literal["x", "y"]) -> list[float]:
        """The values above 0 of what is drawn along an axis."""
        values = [value for mark in self.marks if not isinstance(mark, Level) for value in getattr(mark, axis)]
        return [float(value) for value in values if isinstance(value, (int, float)) and value > 0]


def color(index: int) -> str:
    """The house's colours in turn."""
    return COLORS[index % len(COLORS)]
