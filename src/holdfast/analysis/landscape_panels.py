"""A landscape as panels: bundles of curves, their rise on a logarithmic scale, telling directions, planes."""

import math
import statistics
from collections.abc import Sequence

from holdfast.analysis.directions import REACH
from holdfast.analysis.figure import DASHES, INK, Heat, Level, Line, Mark, Panel, color
from holdfast.analysis.landscape import PRETRAINED, RANDOM, Curve, Landscape

COLORS = {PRETRAINED: color(0), RANDOM: color(5)}


def panels(found: Landscape) -> list[Panel]:
    """Curves on the same axes, their rise on a logarithmic one, informative directions, planes."""
    made = [
        Panel(
            "Loss along random directions",
            "alpha",
            "nats per item",
            [mark for start in found.losses for mark in _bundle(found.of(start), start)],
            "Thin lines are single directions, thick ones their mean, bands a standard deviation.",
            wide=True,
        ),
        Panel(
            "Rise above the lowest point of each curve",
            "alpha",
            "nats per item",
            [mark for start in found.losses for mark in _rises(found.of(start), start)],
            "On a logarithmic scale a small landscape is seen beside a large one.",
            y_scale="log",
        ),
    ]
    if any(curve.direction == "gradient" for curve in found.curves):
        marks: list[Mark] = [_single(curve) for start in found.losses for curve in found.of(start, "gradient")]
        said = f"At alpha = 1 the weights have moved by {REACH:.0%} of their norm."
        made.append(Panel("Along minus the gradient", "alpha", "nats per item", marks, said))
    if any(curve.direction == "tuned" for curve in found.curves):
        marks = [*(_single(curve) for curve in found.of(PRETRAINED, "tuned")), Level("tuned", 1.0, upright=True)]
        made.append(
            Panel("Towards the tuned weights", "alpha", "nats per item", marks, "At alpha = 1 they are reached.")
        )
    for plane in found.planes:
        heat = Heat("nats", plane.alphas, plane.alphas, _gaps(plane.losses), contours=True)
        said = "Two random directions, orthogonal to each other; the colours of each plane are its own."
        made.append(Panel(f"Plane around the {plane.start} weights", "alpha", "beta", [heat], said))
    return made


def _bundle(curves: Sequence[Curve], start: str) -> list[Mark]:
    thin: list[Mark] = [
        Line(start, curve.alphas, _gap(curve.losses), COLORS[start], shown=False, opacity=0.35) for curve in curves
    ]
    columns = list(zip(*(curve.losses for curve in curves), strict=True))
    mean = [statistics.fmean(column) for column in columns]
    spread = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
    low = [middle - wide for middle, wide in zip(mean, spread, strict=True)]
    high = [middle + wide for middle, wide in zip(mean, spread, strict=True)]
    return [*thin, Line(start, curves[0].alphas, _gap(mean), COLORS[start], low=_gap(low), high=_gap(high))]


def _rises(curves: Sequence[Curve], start: str) -> list[Mark]:
    found: list[Mark] = []
    for index, curve in enumerate(curves):
        low = min((loss for loss in curve.losses if math.isfinite(loss)), default=math.nan)
        rise = [loss - low if loss > low else None for loss in curve.losses]
        found.append(Line(start, curve.alphas, rise, COLORS[start], shown=index == 0, opacity=0.85))
    return found


def _single(curve: Curve) -> Line:
    dash = DASHES[0] if curve.start == PRETRAINED else DASHES[1]
    return Line(curve.start, curve.alphas, _gap(curve.losses), COLORS.get(curve.start, INK), dash)


def _gap(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _gaps(rows: Sequence[Sequence[float]]) -> list[list[float | None]]:
    return [_gap(row) for row in rows]
