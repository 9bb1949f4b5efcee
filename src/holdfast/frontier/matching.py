"""Learning and forgetting at equal terms, by interpolation: pure functions of points.

A *point* is (gain, forgetting): how far the target loss fell and the source loss rose, in nats per item or as shares
of plain fine-tuning's. The *curve* of a method is what is left of its points when those that another one beats at no
less gain are dropped: along it forgetting rises with gain. Between neighbours the logarithm of forgetting is taken to
be linear in gain, or forgetting itself where there is none; both readings below are of that one curve, so that each is
the other's inverse.
"""

import math
from collections.abc import Iterable
from itertools import pairwise

Point = tuple[float, float]  # gain, forgetting


def curve(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats, by rising gain: forgetting rises with it."""
    kept: list[Point] = []
    for candidate in sorted(set(points), key=lambda p: (-p[0], p[1])):
        if not kept or candidate[1] < kept[-1][1]:
            kept.append(candidate)
    return kept[::-1]


def at_gain(points: Iterable[Point], wanted: float) -> tuple[float, bool] | None:
    """The least forgetting at no less than the wanted gain, and whether a setting on either side was measured.

    None where nothing measured gains so much. Where every measured setting gains more, the one that forgets least
    stands in: an upper bound.
    """
    kept = curve(points)
    if not kept or kept[-1][0] < wanted:
        return None
    for (low, less), (high, more) in pairwise(kept):
        if low <= wanted <= high:
            return between(less, more, (wanted - low) / (high - low)), True
    return kept[0][1], kept[0][0] == wanted


def at_forgetting(points: Iterable[Point], accepted: float) -> tuple[float, bool] | None:
    """The most gain at no more than the accepted forgetting, and whether a setting on either side was measured.

    None where everything measured forgets more. Where everything on the curve forgets less, the one that gains most
    stands in: a lower bound.
    """
    kept = curve(points)
    if not kept or kept[0][1] > accepted:
        return None
    for (low, less), (high, more) in pairwise(kept):
        if less <= accepted <= more:
            return low + (high - low) * share_between(less, more, accepted), True
    return kept[-1][0], kept[-1][1] == accepted


def between(less: float, more: float, share: float) -> float:
    """A share of the way from one forgetting to the next."""
    if less <= 0:
        return less + (more - less) * share
    return math.exp(math.log(less) + (math.log(more) - math.log(less)) * share)


def share_between(less: float, more: float, value: float) -> float:
    """How much of the way from one forgetting to the next a value is: the inverse of `between`."""
    if less <= 0:
        return (value - less) / (more - less)
    return (math.log(value) - math.log(less)) / (math.log(more) - math.log(less))
