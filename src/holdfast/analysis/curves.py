"""What a curve of losses along a line looks like, in figures."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise

ROUNDING = 1e-9  # of sums of float64


@dataclass(frozen=True)
class Shape:
    """Figures of L(alpha) on an even grid; points whose loss was not finite are left out.

    Args:
        amplitude: max L - min L, nats.
        variation: sum of |L_{i+1} - L_i|, nats.
        excess_variation: variation - (L_first - L_min) - (L_last - L_min), nats: 0 for any single valley, so what is
            left is oscillation.
        sign_changes: of the first difference, those below the floor left out; a single valley has 1.
        roughness: mean |second difference| / dalpha^2, nats per alpha^2.
        width: length of {alpha: L <= L_min + tau}, between grid points by straight lines.
        width_cut: whether that set reaches an end of the grid: the width is then a lower bound.
    """

    amplitude: float
    variation: float
    excess_variation: float
    sign_changes: int
    roughness: float
    width: float
    width_cut: bool

    def json(self) -> dict[str, float | int | bool]:
        """Name -> figure."""
        return asdict(self)


FIGURES = tuple(field.name for field in fields(Shape) if field.name != "width_cut")


def shape(alphas: Sequence[float], losses: Sequence[float], *, floor: float, tau: float) -> Shape | None:
    """The figures of one curve; None where fewer than three losses are finite.

    Args:
        alphas: evenly spaced, ascending.
        losses: nats.
        floor: nats; smaller steps are no change of direction.
        tau: nats above the lowest loss that count as its level set.
    """
    known = [(alpha, loss) for alpha, loss in zip(alphas, losses, strict=True) if math.isfinite(loss)]
    if len(known) < 3:
        return None
    values = [loss for _, loss in known]
    low = min(values)
    steps = [after - before for before, after in pairwise(values)]
    told = [step for step in steps if abs(step) > floor]
    spacing = alphas[1] - alphas[0]
    second = [
        abs(a - 2 * b + c) / spacing**2
        for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)
        if math.isfinite(a + b + c)
    ]
    variation = sum(map(abs, steps))
    excess = variation - (values[0] - low) - (values[-1] - low)
    return Shape(
        amplitude=max(values) - low,
        variation=variation,
        excess_variation=excess if excess > ROUNDING * variation else 0.0,
        sign_changes=sum(before * after < 0 for before, after in pairwise(told)),
        roughness=statistics.fmean(second) if second else math.nan,
        width=sum(_below(*one, *other, low + tau) for one, other in pairwise(known)),
        width_cut=min(values[0], values[-1]) <= low + tau,
    )


def _below(x0: float, y0: float, x1: float, y1: float, level: float) -> float:
    """How much of [x0, x1] a straight line from y0 to y1 spends at or below a level."""
    if max(y0, y1) <= level:
        return x1 - x0
    if min(y0, y1) > level:
        return 0.0
    return (x1 - x0) * (level - min(y0, y1)) / abs(y1 - y0)


def over_seeds(shapes: Sequence[Shape]) -> dict[str, dict[str, float | None]]:
    """Figure -> mean and standard deviation over curves; no deviation of a single one."""
    found: dict[str, dict[str, float | None]] = {}
    for name in FIGURES:
        values = [float(getattr(one, name)) for one in shapes]
        spread = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values) if values else None, "deviation": spread}
    return found


def larger(one: Sequence[float], other: Sequence[float]) -> bool | None:
    """Whether the mean of one is above the other's by more than two standard errors; None: can't be told.

    False: it is below by as much.
    """
    if len(one) < 2 or len(other) < 2:
        return None
    error = math.sqrt(statistics.variance(one) / len(one) + statistics.variance(other) / len(other))
    difference = statistics.fmean(one) - statistics.fmean(other)
    if abs(difference) <= 2 * error:
        return None
    return difference > 0
