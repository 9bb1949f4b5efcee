"""Learning against forgetting at matched target loss: pure functions of result rows.

A *point* is (gain kept, forgetting of plain), both as shares of the plain run's of the same seed. A method's curve,
and what is read of it between settings, are `holdfast.frontier.matching`'s.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from holdfast.frontier.matching import Point, at_gain

PLAIN: Point = (1.0, 1.0)
GAINS = (0.98, 0.95, 0.90)


def gain(row: dict[str, Any]) -> float:
    """Fall of the target loss, nats per item."""
    return row["target_before"] - row["target_after"]


def forgetting(row: dict[str, Any]) -> float:
    """Rise of the source loss, nats per item."""
    return row["source_after"] - row["source_before"]


def along(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured at its steps, as rows of their own, the untrained start first."""
    before = {side: row[f"{side}_before"] for side in ("source", "target")}
    start = {"step": 0, **{f"{side}_test": loss for side, loss in before.items()}}
    return [
        {
            "step": entry["step"],
            **{f"{side}_before": loss for side, loss in before.items()},
            **{f"{side}_after": entry[f"{side}_test"] for side in before},
        }
        for entry in ([start, *row["along"]] if row.get("along") else [])
    ]


def point(row: dict[str, Any], plain: dict[str, Any]) -> Point:
    """A row's shares of the plain run's gain and forgetting."""
    return gain(row) / gain(plain), forgetting(row) / forgetting(plain)


def matched(seeds: Sequence[Sequence[Point]], wanted: float) -> dict[str, Any]:
    """Median, least and most over seeds of the forgetting at one gain; None where a seed does not reach it."""
    found = [at_gain(points, wanted) for points in seeds]
    if not found or any(each is None for each in found):
        return {"forgetting_of_plain": None}
    values = [each[0] for each in found if each is not None]
    return {
        "forgetting_of_plain": round(statistics.median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
        "between_settings": all(each[1] for each in found if each is not None),
    }


def summary(name: str, rows: list[dict[str, Any]], plain: dict[int, dict[str, Any]], *, limit: bool) -> dict[str, Any]:
    """One method: its forgetting at each matched gain, and its step's CPU time over the plain one's.

    Args:
        name: the method's.
        rows: its runs, at every setting and seed.
        plain: seed -> the plain run.
        limit: whether its settings end in the plain run, at strength zero.
    """
    seeds = [seed for seed in plain if any(row["seed"] == seed for row in rows)]
    points = [points_of([row for row in rows if row["seed"] == seed], plain[seed], limit=limit) for seed in seeds]
    ratios = [row["cpu_seconds_per_step"] / plain[row["seed"]]["cpu_seconds_per_step"] for row in rows]
    return {
        "case": name,
        "seeds": len(seeds),
        "step_ratio": round(statistics.median(ratios), 4),
        "ms": round(1e3 * statistics.median(row["cpu_seconds_per_step"] for row in rows), 3),
        "preparation_s": round(statistics.median(row["anchor_seconds"] for row in rows), 3),
        **{f"at_{round(100 * wanted)}": matched(points, wanted) for wanted in GAINS},
    }


def points_of(rows: Iterable[dict[str, Any]], plain: dict[str, Any], *, limit: bool) -> list[Point]:
    """Ends and ways of one seed's runs, and the plain run where the method ends in it."""
    rows = list(rows)
    found = [point(each, plain) for row in rows for each in (*along(row), row)]
    return [*found, PLAIN] if limit else found
