"""Finished runs as points: the seeds of one setting together, and what stopping early would have given."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.frontier.matching import Point
from holdfast.report.comparison import forgetting, gain, number

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting of one way: its (gain, forgetting) for each seed, in nats per item."""

    way: str
    words: str  # "strength 4"; empty for a way without values
    points: Mapping[int, Point]


def settings(rows: Iterable[Row]) -> list[Setting]:
    """The rows' settings in their order; rows without both losses are left out."""
    found: dict[tuple[str, str], dict[int, Point]] = {}
    for row in rows:
        point = point_of(row)
        if point is not None:
            found.setdefault((row["way"], row["setting"]), {})[row["seed"]] = point
    return [Setting(way, words, points) for (way, words), points in found.items()]


def point_of(row: Row) -> Point | None:
    """(gain, forgetting) of a row, where both were measured."""
    learned, lost = gain(row), forgetting(row)
    return None if learned is None or lost is None else (learned, lost)


def stopped(rows: Sequence[Row], way: str, named: str) -> list[Setting]:
    """What stopping the runs of `way` early would have given: a setting for each step at which they were measured.

    What was measured where a run ended is the run itself, and is left out.

    Args:
        rows: finished runs; their `along` holds {"step", "source", "target"} in nats.
        way: whose runs are stopped.
        named: what the settings are called.
    """
    found: dict[int, dict[int, Point]] = {}
    for row in rows:
        if row["way"] != way:
            continue
        before = number(row, "target_before"), number(row, "source_before")
        for entry in row.get("along") or []:
            target, source = number(entry, "target"), number(entry, "source")
            end = (target, source) == (number(row, "target_after"), number(row, "source_after"))
            if None not in (*before, target, source) and not end:
                found.setdefault(entry["step"], {})[row["seed"]] = before[0] - target, source - before[1]  # type: ignore[operator]
    return [Setting(named, f"step {step}", found[step]) for step in sorted(found)]


def by_way(found: Iterable[Setting]) -> dict[str, list[Setting]]:
    """Way -> its settings."""
    ways: dict[str, list[Setting]] = {}
    for setting in found:
        ways.setdefault(setting.way, []).append(setting)
    return ways


def at_seed(found: Iterable[Setting], seed: int) -> list[Point]:
    """The points that were run with one seed."""
    return [setting.points[seed] for setting in found if seed in setting.points]


def seeds_of(found: Iterable[Setting]) -> list[int]:
    """All seeds of some settings."""
    return sorted({seed for setting in found for seed in setting.points})
