"""Rows of results, gathered into settings and held against plain fine-tuning."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Family = tuple[str, str, str]
Key = tuple[Family, str, tuple[tuple[str, float], ...]]

PLAIN = "none"
PLAIN_WAY = "plain"  # what a study calls the same
# What a user sets, in a row or in its `hold`; the rest of a row is measured.
STRENGTHS = ("strength", "budget", "distill", "replay", "distill_sequences", "distill_every", "distill_top_k")
BUDGET_POINTS = "budget points"  # a budget in points of accuracy, which is no number of nats
DETAILS = ("distill_sequences", "distill_every", "distill_top_k")  # named where they differ
ADDED = ("damping", "learning_rate", "weight_decay")  # make a penalty another one
NOISE = 0.005  # nats per item: a share of a smaller change says nothing


@dataclass(frozen=True)
class Span:
    """One figure over the seeds of a setting."""

    median: float
    low: float
    high: float
    count: int
    mean: float


@dataclass(frozen=True)
class Setting:
    """One family, penalty and strength or budget, over all its seeds.

    The family is what is compared with a plain run of its own: (panel, method, variant). Rows of different panels do
    not belong on one plot (another model, other data); variants differ in settings beside the penalty, the rank for
    instance. Both are empty unless reports were merged.

    gain = target_before - target_after and forgetting = source_after - source_before, in nats per item; `kept` and
    `share` are the two as fractions of plain fine-tuning's of the same family and seed. Settings are chosen by
    `judged_kept` and `judged_share`: the same on the rows' `validation` part where all rows have one.
    """

    family: Family
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
    def panel(self) -> str:
        """Whose plot it belongs on."""
        return self.family[0]

    @property
    def method(self) -> str:
        """The tuner."""
        return self.family[1]

    @property
    def series(self) -> tuple[Family, str]:
        """What the strengths of one penalty have in common."""
        return self.family, self.penalty

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
    """Median, range and mean of the numbers among the values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Span(statistics.median(known), min(known), max(known), len(known), statistics.fmean(known))


def compare(rows: Sequence[Row]) -> list[Setting]:
    """Rows that differ in their seed alone become one setting; penalties in order of appearance, strengths rising."""
    common = {key for key in DETAILS if len({number(_held(row), key) for row in rows} - {None}) == 1}
    ambiguous = _shared_by_ways(rows)
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row, common, ambiguous), []).append(row)
    order = {series: i for i, series in reversed(list(enumerate((f, p) for f, p, _ in groups)))}
    plain = {family: found for (family, penalty, _), found in groups.items() if penalty == PLAIN}
    judged = validated(rows)
    keys = sorted(groups, key=lambda key: (order[key[:2]], key[2]))
    return [_setting(key, groups[key], plain.get(key[0], []), judged) for key in keys]


def family_of(row: Row) -> Family:
    """Panel, method and variant of a row."""
    return str(row.get("panel") or ""), str(row.get("method", "")), str(row.get("variant") or "")


def _shared_by_ways(rows: Sequence[Row]) -> set[tuple[Family, str]]:
    """Penalties that several ways of a study have in common: a lower learning rate and a plain run, for instance."""
    ways: dict[tuple[Family, str], set[Any]] = {}
    for row in rows:
        ways.setdefault((family_of(row), str(row.get("penalty", PLAIN))), set()).add(row.get("way"))
    return {series for series, found in ways.items() if len(found) > 1}


def validated(rows: Sequence[Row]) -> bool:
    """Whether every row has figures to choose by that are not the reported ones."""
    return all(isinstance(row.get("validation"), Mapping) for row in rows)


def _held(row: Row) -> Row:
    """A row with the keys of its `hold`."""
    return {**(row.get("hold") or {}), **row}


def _key(row: Row, common: set[str], ambiguous: set[tuple[Family, str]]) -> Key:
    """Family, penalty (a damped curvature is one of its own) and strengths or budget of a row."""
    hold, held, tried = row.get("hold") or {}, _held(row), row.get("values") or {}  # a study's way tries any keys
    keys = [key for key in dict.fromkeys([*STRENGTHS, *tried]) if key not in common]
    known = {key: value for key in keys if (value := number({**tried, **held}, key)) is not None}
    alone = [key for key in ("distill", "replay") if key in known and known[key] == known.get("strength")]
    if alone and not number(hold, "strength"):  # the strength is that of distillation or replay
        del known[alone[0]]
    if "budget" in known:
        known.pop("strength", None)  # where the run ended up, not what it was asked for
        known["budget"] = float(f"{known['budget']:.3g}")  # a share of a loss differs between seeds by a hair
        if row.get("budget_unit") == "points":
            known = {BUDGET_POINTS if key == "budget" else key: value for key, value in known.items()}
    family, penalty, way = family_of(row), str(row.get("penalty", PLAIN)), row.get("way")
    added = [str(row["added"])] if row.get("added") else []
    added += [f"{key} {value}" for key, value in tried.items() if isinstance(value, str) and key not in STRENGTHS]
    added += [f"{key.replace('_', ' ')} {value:g}" for key in ADDED if (value := number(held, key))]
    if way not in (None, PLAIN_WAY, penalty) and (family, penalty) in ambiguous:
        added.append(str(way) if known else " ".join(filter(None, [str(way), str(row.get("setting") or "")])))
    return family, ", ".join([penalty, *added]), tuple(known.items())


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
    series: dict[tuple[Family, str], list[Setting]] = {}
    for setting in settings:
        series.setdefault(setting.series, []).append(setting)
    return list(series.values())


def representatives(settings: Sequence[Setting], keep: float) -> list[Setting]:
    """One setting for each penalty: least forgetting at that share of gain, else most gain."""
    return [
        least_forgetting(members, keep) or max(members, key=lambda s: s.gain.median if s.gain else -math.inf)
        for members in by_series(settings)
    ]
