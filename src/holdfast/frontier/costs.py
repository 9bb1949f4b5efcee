"""What each way costs: time per step, preparation, memory."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from holdfast.frontier.points import Row
from holdfast.report.comparison import number


def table(rows: Sequence[Row], plain: str) -> list[dict[str, Any]]:
    """Medians over a way's runs; a step is held against plain fine-tuning's on the same machine.

    Wall time: runs side by side on one machine slow each other, alike for all ways.

    Args:
        rows: finished runs; their `host` says where.
        plain: the way that is the measure.
    """
    ways = dict.fromkeys(row["way"] for row in rows)
    hosts = {row.get("host") for row in rows}
    measure = {
        host: _median(
            number(row, "seconds_per_step") for row in rows if row["way"] == plain and row.get("host") == host
        )
        for host in hosts
    }
    return [_line(way, [row for row in rows if row["way"] == way], measure) for way in ways]


def _line(way: str, rows: list[Row], measure: dict[Any, float | None]) -> dict[str, Any]:
    shares = (_share(number(row, "seconds_per_step"), measure[row.get("host")]) for row in rows)
    return {
        "way": way,
        "runs": len(rows),
        "seconds_per_step": _median(number(row, "seconds_per_step") for row in rows),
        "of_plain": _median(shares),
        "preparation_seconds": _median(number(row, "anchor_seconds") for row in rows),
        "peak_memory_mb": _median(number(row, "peak_memory_mb") for row in rows),
        "trainable_parameters": next(
            (row["trainable_parameters"] for row in rows if "trainable_parameters" in row), None
        ),
    }


def _share(seconds: float | None, whole: float | None) -> float | None:
    return None if seconds is None or not whole else seconds / whole


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
