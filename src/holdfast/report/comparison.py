"""Rows of results, gathered into settings and held against plain fine-tuning."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

PLAIN = "none"
STRENGTHS = ("strength", "budget", "distill", "damping")  # keys of a row that a user sets; the rest is measured
NOISE = 0.005  # nats per item: a share of a smaller change says nothing


@dataclass(frozen=True)
class Span:
    """One figure over the seeds of a setting."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Setting:
    """One method, penalty and strength, over all its seeds.

    gain = target_before - target_after and forgetting = source_after - source_before, in nats per item; `kept` and
    `share` are the two as fractions of plain fine-tuning's with the same method and seed.
    """

    method: str
    penalty: str
    strengths: tuple[tuple[str, float], ...]
    rows: tuple[Row, ...]
    gain: Span | None
    forgetting: Span | None
    kept: Span | None
    share: Span | None

    @property
    def series(self) -> tuple[str, str]:
        """What the strengths of one penalty have in common."""
        return self.method, self.penalty

    @property
    def is_plain(self) -> bool:
        """Whether nothing held the model."""
        return self.penalty == PLAIN

    def span(self, key: str) -> Span | None:
        """A measured key of its rows."""
        return span(number(row, key) for row in self.rows)


def number(row: Row, key: str) -> float | None:
    """A finite number, or None where there is none."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def difference(row: Row, key: str, other: str) -> float | None:
    """row[key] - row[other], None where either is missing."""
    minuend, subtrahend = number(row, key), number(row, other)
    return None if minuend is None or subtrahend is None else minuend - subtrahend


def gain(row: Row) -> float | None:
    """How far the target loss fell, in nats per item."""
    return difference(row, "target_before", "target_after")


def forgetting(row: Row) -> float | None:
    """How far the source loss rose, in nats per item."""
    return difference(row, "source_after", "source_before")


def span(values: Iterable[float | None]) -> Span | None:
    """Median and range of the numbers among the values."""
    known = [value for value in values if value is not None]
    return Span(statistics.median(known), min(known), max(known), len(known)) if known else None


def compare(rows: Sequence[Row]) -> list[Setting]:
    """Rows that differ in their seed alone become one setting; penalties in order of appearance, strengths rising."""
    groups: dict[tuple[str, str, tuple[tuple[str, float], ...]], list[Row]] = {}
    for row in rows:
        chosen = ((key, number(row, key)) for key in STRENGTHS)
        strengths = tuple((key, value) for key, value in chosen if value is not None)
        groups.setdefault((str(row.get("method", "")), str(row.get("penalty", PLAIN)), strengths), []).append(row)
    order = {series: i for i, series in reversed(list(enumerate((m, p) for m, p, _ in groups)))}
    plain = {method: rows_ for (method, penalty, _), rows_ in groups.items() if penalty == PLAIN}
    keys = sorted(groups, key=lambda key: (order[key[:2]], key[2]))
    return [_setting(key, groups[key], plain.get(key[0], [])) for key in keys]


def _setting(key: tuple[str, str, tuple[tuple[str, float], ...]], rows: list[Row], plain: list[Row]) -> Setting:
    return Setting(
        *key,
        rows=tuple(rows),
        gain=span(map(gain, rows)),
        forgetting=span(map(forgetting, rows)),
        kept=span(share_of(gain(row), reference(row, plain, gain)) for row in rows),
        share=span(share_of(forgetting(row), reference(row, plain, forgetting)) for row in rows),
    )


def reference(row: Row, plain: Sequence[Row], measure: Callable[[Row], float | None]) -> float | None:
    """Plain fine-tuning's figure at the row's seed; where that seed is missing, the median of all."""
    same = span(measure(other) for other in plain if other.get("seed") == row.get("seed"))
    found = same or span(map(measure, plain))
    return found.median if found else None


def share_of(value: float | None, whole: float | None) -> float | None:
    """value / whole, None where the whole is no more than noise."""
    return None if value is None or whole is None or whole < NOISE else value / whole


def least_forgetting(settings: Iterable[Setting], keep: float) -> Setting | None:
    """Among the settings that hold on and keep that share of plain gain, the one that forgot least."""
    able = [s for s in settings if not s.is_plain and s.kept and s.share and s.kept.median >= keep]
    return min(able, key=lambda s: s.share.median if s.share else math.inf, default=None)


def by_series(settings: Iterable[Setting]) -> list[list[Setting]]:
    """The strengths of each penalty together."""
    series: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings:
        series.setdefault(setting.series, []).append(setting)
    return list(series.values())


def representatives(settings: Sequence[Setting], keep: float) -> list[Setting]:
    """One setting for each penalty: least forgetting at that share of gain, else most gain."""
    return [
        least_forgetting(members, keep) or max(members, key=lambda s: s.gain.median if s.gain else -math.inf)
        for members in by_series(settings)
    ]
