"""Which settings no other beats, how sure that is, and how much of the plane they cover."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from holdfast.frontier.intervals import Interval, interval
from holdfast.frontier.matching import Point, curve
from holdfast.frontier.points import Setting, at_seed, by_way, seeds_of

ON, UNSURE, BEATEN = "on the front", "not told apart from it", "beaten"


def mean_point(setting: Setting) -> tuple[Interval, Interval]:
    """Mean gain and mean forgetting over seeds."""
    return interval(g for g, _ in setting.points.values()), interval(f for _, f in setting.points.values())


def front(found: Sequence[Setting]) -> list[Setting]:
    """The settings that no other beats by mean: none gains no less and forgets no more, and one of both truly."""
    means = [(mean_point(setting), setting) for setting in found]
    places = [((gain.mean, lost.mean), setting) for (gain, lost), setting in means]
    return [setting for place, setting in places if not any(_beats(other, place) for other, _ in places)]


def _beats(one: Point, other: Point) -> bool:
    return one[0] >= other[0] and one[1] <= other[1] and one != other


def surely_beats(one: Setting, other: Setting) -> bool:
    """Whether `one` gains more and forgets less beyond the noise of seeds.

    Both differences are taken seed by seed, since runs of one seed share data order and start, and both of their 95 %
    intervals have to exclude zero. Fewer than two seeds in common say nothing.
    """
    shared = [(one.points[seed], other.points[seed]) for seed in one.points if seed in other.points]
    if len(shared) < 2:
        return False
    more = interval(mine[0] - theirs[0] for mine, theirs in shared)
    less = interval(theirs[1] - mine[1] for mine, theirs in shared)
    return more.above_zero and less.above_zero


def table(found: Sequence[Setting]) -> list[dict[str, Any]]:
    """Every setting, by falling gain: where it is, its intervals over seeds, and whether it is on the front.

    Off the front by mean, a setting is "beaten" where another one surely beats it, else "not told apart from it".
    """
    best = {id(setting) for setting in front(found)}
    rows = []
    for setting in found:
        gain, lost = mean_point(setting)
        beaten = any(surely_beats(other, setting) for other in found)
        rows.append(
            {
                "way": setting.way,
                "setting": setting.words,
                "seeds": gain.seeds,
                **gain.told("gain"),
                **lost.told("forgetting"),
                "status": ON if id(setting) in best else BEATEN if beaten else UNSURE,
            }
        )
    return sorted(rows, key=lambda row: (-row["gain"], row["forgetting"]))


def area(points: Iterable[Point], reference: Point) -> float:
    """The area of all (gain, forgetting) that some point beats and that beat the reference: the hypervolume.

    Args:
        points: any; those that do not beat the reference count nothing.
        reference: (least gain, most forgetting) that count at all.
    """
    least, most = reference
    inside = curve(p for p in points if p[0] > least and p[1] < most)
    # Along the curve both rise: a strip of gain up to each point is covered by that point's forgetting.
    return sum((high[0] - low[0]) * (most - high[1]) for low, high in pairwise([(least, most), *inside]))


def hypervolume(found: Sequence[Setting]) -> dict[str, Any]:
    """The area covered by all settings and by each way's, means over seeds, and the reference point.

    The reference is no gain at all, and the most that any run forgot. Areas are in squared nats per item; `share` is
    of the rectangle between the reference and one run that would gain the most and forget the least of all.
    """
    every = [point for setting in found for point in setting.points.values()]
    reference = (0.0, max((lost for _, lost in every), default=0.0))
    least = min((lost for _, lost in every), default=0.0)
    whole = max((gain for gain, _ in every), default=0.0) * (reference[1] - least)

    def covered(members: Sequence[Setting]) -> dict[str, Any]:
        areas = interval(area(at_seed(members, seed), reference) for seed in seeds_of(members))
        share = areas.mean / whole if whole > 0 else None
        return {**areas.told("value"), "seeds": areas.seeds, "share": share}

    per_way = [{"way": way, **covered(members)} for way, members in by_way(found).items()]
    return {
        **(covered(found) if every else {"value": None}),
        "unit": "squared nats per item",
        "reference": {"gain": reference[0], "forgetting": reference[1]},
        "per_way": sorted(per_way, key=lambda row: -row["value"]),
    }
