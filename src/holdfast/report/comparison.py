"""Rows of results, gathered into settings and held against plain fine-tuning."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Key = tuple[str, str, tuple[tuple[str, float], ...]]

PLAIN = "none"
# What a user sets, in a row or in its `hold`; the rest of a row is measured.
STRENGTHS = ("strength", "budget", "distill", "replay", "distill_sequences", "distill_every", "distill_top_k")
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
    `share` are the two as fractions of plain fine-tuning's with the same method and seed. Settings are chosen by
    `judged_kept` and `judged_share`: the same on the rows' `validation` part where all rows have one.
    """

    method: str
    penalty: str
    strengths: tuple[tuple[str, float], ...]
    rows: tuple[Row, ...]
    gain: Span | None
    forgetting: Span | None
    kept: Span | None
    share: Span | None
    judged_kept: Span | None
    judged_share: Span | None

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
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    order = {series: i for i, series in reversed(list(enumerate((m, p) for m, p, _ in groups)))}
    plain = {method: found for (method, penalty, _), found in groups.items() if penalty == PLAIN}
    judged = validated(rows)
    keys = sorted(groups, key=lambda key: (order[key[:2]], key[2]))
    return [_setting(key, groups[key], plain.get(key[0], []), judged) for key in keys]


def validated(rows: Sequence[Row]) -> bool:
    """Whether every row has figures to choose by that are not the reported ones."""
    return all(isinstance(row.get("validation"), Mapping) for row in rows)


def _key(row: Row) -> Key:
    """Method, penalty (a damped curvature is one of its own) and strengths of a row."""
    hold = row.get("hold") or {}
    held = {**hold, **row}
    known = {key: value for key in STRENGTHS if (value := number(held, key)) is not None}
    alone = [key for key in ("distill", "replay") if key in known and known[key] == known.get("strength")]
    if alone and not number(hold, "strength"):  # the strength is that of distillation or replay
        del known[alone[0]]
    damping = number(held, "damping")
    penalty = str(row.get("penalty", PLAIN)) + (f", damping {damping:g}" if damping else "")
    return str(row.get("method", "")), penalty, tuple(known.items())


def _setting(key: Key, rows: list[Row], plain: list[Row], judged: bool) -> Setting:
    kept, share = _shares(rows, plain)
    by_kept, by_share = _shares([*map(_validation, rows)], [*map(_validation, plain)]) if judged else (kept, share)
    forgot = span(map(forgetting, rows))
    return Setting(*key, tuple(rows), span(map(gain, rows)), forgot, kept, share, by_kept, by_share)


def _validation(row: Row) -> Row:
    return {**row, **row["validation"]}


def _shares(rows: Sequence[Row], plain: Sequence[Row]) -> tuple[Span | None, Span | None]:
    """Gain and forgetting as fractions of plain fine-tuning's."""
    kept = span(share_of(gain(row), reference(row, plain, gain)) for row in rows)
    return kept, span(share_of(forgetting(row), reference(row, plain, forgetting)) for row in rows)


def reference(row: Row, plain: Sequence[Row], measure: Callable[[Row], float | None]) -> float | None:
    """Plain fine-tuning's figure at the row's seed; where that seed is missing, the median of all."""
    same = span(measure(other) for other in plain if other.get("seed") == row.get("seed"))
    found = same or span(map(measure, plain))
    return found.median if found else None


def share_of(value: float | None, whole: float | None) -> float | None:
    """value / whole, None where the whole is no more than noise."""
    return None if value is None or whole is None or whole < NOISE else value / whole


def able(settings: Iterable[Setting], keep: float) -> list[Setting]:
    """The settings that keep that share of plain gain, least forgetting first."""
    judged = [(s.judged_share.median, s) for s in settings if s.judged_share and s.judged_kept]
    return [s for _, s in sorted(judged, key=lambda pair: pair[0]) if s.judged_kept and s.judged_kept.median >= keep]


def least_forgetting(settings: Iterable[Setting], keep: float) -> Setting | None:
    """Among the settings that hold on and keep that share of plain gain, the one that forgot least."""
    return next(iter(able((s for s in settings if not s.is_plain), keep)), None)


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
