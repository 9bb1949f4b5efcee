"""Training curves: one small plot for each quantity that was logged."""

import html
import statistics
from collections.abc import Sequence
from typing import Any

from holdfast.report.budgets import POINTS, budgets_in_nats, unit_of
from holdfast.report.canvas import Styles, canvas, dash_of, mark_budgets, series_key
from holdfast.report.comparison import Row, Setting, number
from holdfast.report.words import penalty_name

STEPS = 300  # a curve with more is thinned out
LOSS, NATS, BUDGET, NUMBER = "nats per target item", "nats per source item", "as the budget", "strength"
CURVES = {  # key of the history -> title, unit
    "loss": ("Training loss on the target", LOSS),
    "predicted_forgetting": ("Forecast of forgetting", NATS),
    "calibrated_forecast": ("Forecast, calibrated by measurements", BUDGET),
    "measured_forgetting": ("Forgetting, measured while training", BUDGET),
    "distill_kl": ("Divergence from its earlier answers", NATS),
    "penalty": ("Penalty in the loss", LOSS),
    "strength": ("Strength over training", NUMBER),
}


def unit(key: str, row: Row, items: dict[str, str]) -> str:
    """What a curve of that row is in, as the axis says it."""
    kind = CURVES[key][1]
    if kind == BUDGET and unit_of(row) == POINTS:
        return "points of accuracy"
    return kind if kind == NUMBER else f"nats per {items['target' if kind == LOSS else 'source']}"


def curves(settings: Sequence[Setting], styles: Styles, items: dict[str, str]) -> dict[str, Any]:
    """Title -> figure, for what at least one setting logged at two steps or more; medians over seeds."""
    found = {}
    for key, (title, _) in CURVES.items():
        known = [(setting, line) for setting in settings if len(line := _curve(setting, key)) > 1]
        for axis in dict.fromkeys(unit(key, setting.rows[0], items) for setting, _ in known):
            figure = canvas("step", html.escape(axis), 260)
            own = [(setting, line) for setting, line in known if unit(key, setting.rows[0], items) == axis]
            for setting, line in own:
                _draw(figure, setting, line, settings, styles)
            if key in ("predicted_forgetting", "calibrated_forecast", "measured_forgetting"):
                highest = max(value for _, line in own for _, value in line)
                mark_budgets(figure, budgets_in_nats([setting for setting, _ in own]), highest)
            found[title if title not in found else f"{title}, {axis}"] = figure
    return found


def _draw(
    figure: Any, setting: Setting, line: list[tuple[float, float]], all_of: Sequence[Setting], styles: Styles
) -> None:
    figure.add_scatter(
        x=[step for step, _ in line],
        y=[value for _, value in line],
        mode="lines",
        line={"color": styles[setting.series].color, "width": 1.8, "dash": dash_of(setting, all_of, styles)},
        name=html.escape(penalty_name(setting.penalty)),
        hovertemplate="step %{x}: %{y:.4~g}",
        meta=series_key(setting),
    )


def _curve(setting: Setting, key: str) -> list[tuple[float, float]]:
    values: dict[float, list[float]] = {}
    for row in setting.rows:
        for step, value in logged(row, key):
            values.setdefault(step, []).append(value)
    return thinned([(step, statistics.median(found)) for step, found in sorted(values.items())], STEPS)


def logged(row: Row, key: str) -> list[tuple[float, float]]:
    """Step and value of what a run's history holds."""
    pairs = [(number(moment, "step"), number(moment, key)) for moment in row.get("history") or []]
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def thinned(line: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Every so manieth point, the last one always."""
    if len(line) <= most:
        return line
    kept = line[:: -(-len(line) // (most - 1))]
    return kept if kept[-1] == line[-1] else [*kept, line[-1]]
