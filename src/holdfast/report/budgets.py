"""Budgets: what was accepted, what was forecast and what was measured, side by side and in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.report.comparison import Row, Setting, forgetting, number, span
from holdfast.report.words import MISSING, count_of, decimals, middle

POINTS = "points"
_STEERED = {
    "forecast": "the forecast alone: nothing measured what was forgotten while it trained",
    "measurement": "measurements on source data while it trained",
}


@dataclass(frozen=True)
class Held:
    """A setting with a budget; figures are medians over its seeds, in the budget's unit but where said otherwise."""

    setting: Setting
    words: str
    unit: str
    budget: float
    forecast: str
    measured: float | None
    error: float | None
    verdict: str
    steered: str
    scaled: str


def budget_of(row: Row) -> float | None:
    """What may be forgotten, in the row's unit; None where a strength was set instead."""
    return number(row, "budget")


def unit_of(row: Row) -> str:
    """`nats`, or `points` of accuracy."""
    return str(row.get("budget_unit") or "nats")


def measured(row: Row) -> tuple[float | None, float | None]:
    """The forgetting in the budget's unit and its standard error."""
    value = number(row, "forgetting")
    if value is None and unit_of(row) != POINTS:
        value = forgetting(row)
    return value, number(row, "forgetting_error")


def budgets_in_nats(settings: Sequence[Setting]) -> list[float]:
    """Every budget that can be drawn among losses, rising."""
    found = {budget_of(row) for s in settings for row in s.rows if unit_of(row) != POINTS}
    return sorted(value for value in found if value is not None)


def budgeted(settings: Sequence[Setting]) -> list[Held]:
    """The settings that kept to a budget instead of a strength."""
    return [_held(s) for s in settings if budget_of(s.rows[0]) is not None]


def _held(setting: Setting) -> Held:
    first = setting.rows[0]
    pairs = [measured(row) for row in setting.rows]
    budget = budget_of(first)
    assert budget is not None
    return Held(
        setting=setting,
        words=str(first.get("budget_words") or f"{budget:g} {_per_item(unit_of(first))}"),
        unit=unit_of(first),
        budget=budget,
        forecast=_forecast(setting.rows),
        measured=middle(span(value for value, _ in pairs)),
        error=middle(span(error for _, error in pairs)),
        verdict=_verdict(setting.rows),
        steered=", ".join(dict.fromkeys(str(row.get("steered_by") or MISSING) for row in setting.rows)),
        scaled=_scaled(setting.rows),
    )


def _forecast(rows: Sequence[Row]) -> str:
    """The forecast at the end: corrected by what was measured on the way, else a curvature's own, which is in nats."""
    corrected, own = (
        span(number(row, key) for row in rows) for key in ("calibrated_forecast", "predicted_forgetting")
    )
    if corrected is not None or own is None:
        return figure(middle(corrected))
    return figure(own.median) + (" nats" if unit_of(rows[0]) == POINTS else "")


def _per_item(unit: str) -> str:
    return "points of accuracy" if unit == POINTS else "nats per item"


def excess(row: Row) -> float | None:
    """Measured forgetting above the budget; negative inside it."""
    value, _ = measured(row)
    budget = budget_of(row)
    return None if value is None or budget is None else value - budget


def _verdict(rows: Sequence[Row]) -> str:
    """Whether the measured forgetting stayed inside; over several runs, in how many it did."""
    over = [value for row in rows if (value := excess(row)) is not None]
    if not over:
        return "not measured"
    if len(over) > 1:
        return f"inside in {sum(value <= 0 for value in over)} of {len(over)} runs"
    if over[0] <= 0:
        return "inside"
    error = measured(rows[0])[1]
    close = ", no more than the standard error" if error is not None and over[0] <= error else ""
    return f"over by {figure(over[0])}{close}"


def _scaled(rows: Sequence[Row]) -> str:
    factors = span(value for row in rows if (value := number(row, "scaled_by")) is not None)
    if factors is None or factors.low == factors.high == 1:
        return MISSING
    low, high = decimals(factors.low, 2), decimals(factors.high, 2)
    return f"×\u00a0{low}" if low == high else f"×\u00a0{low} to {high}"


def notes(row: Row) -> list[str]:
    """How a run was kept to its budget, in sentences; empty without one."""
    if budget_of(row) is None:
        return []
    steered, factor = _STEERED.get(str(row.get("steered_by"))), number(row, "scaled_by")
    said = [f"Steered by {steered}."] if steered else []
    if factor is not None and factor != 1:
        said.append(
            f"Training ended over the budget: the finished shift was scaled by {decimals(factor, 3)} to get inside."
        )
    return said


def sentence(row: Row) -> str:
    """Accepted, forecast and measured in one line; empty without a budget."""
    budget = budget_of(row)
    if budget is None:
        return ""
    value, error = measured(row)
    forecast = _forecast([row])
    said = [f"accepted {budget:.3g}"]
    if forecast != MISSING:
        said.append(f"forecast {forecast}")
    said.append(f"measured {with_error(value, error)}" if value is not None else "not measured")
    return ", ".join(said)


def kept(settings: Sequence[Setting]) -> str:
    """Of several budgets, in how many runs they were kept; empty without any."""
    over = [value for s in settings for row in s.rows if (value := excess(row)) is not None]
    budgets = len(budgeted(settings))
    if not budgets:
        return ""
    if not over:
        return f"{count_of(budgets, 'setting')} had a budget, and what was forgotten was not measured."
    inside = sum(value <= 0 for value in over)
    if len(over) == 1:
        return "The run with a budget stayed inside it." if inside else "The run with a budget went over it."
    which = "all" if inside == len(over) else "none" if inside == 0 else str(inside)
    worst = "" if inside == len(over) else f", and went over by {figure(max(over))} at most"
    return f"Of {len(over)} runs with a budget {which} stayed inside it{worst}."


def figure(value: float | None) -> str:
    """Three decimals, four below a hundredth."""
    return decimals(value, 4 if value is not None and 0 < abs(value) < 0.00995 else 3)


def with_error(value: float | None, error: float | None) -> str:
    """`0.019 ± 0.001`."""
    return figure(value) + ("" if error is None else f"\u00a0±\u00a0{error:.2g}")
