"""How much memory something takes, in numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    """How many numbers one part of a layer's curvature takes.

    Attributes:
        measured: in memory while it is measured.
        used: in memory when it is finished.
        stored: in a file.
        shared: layers that are given the same inputs hold it once.
    """

    measured: int
    used: int
    stored: int
    shared: bool = False
