"""Training curves: one small plot for each quantity that was logged."""

import html
import statistics
from collections.abc import Sequence
from typing import Any

from holdfast.report.canvas import Styles, canvas, dash_of, series_key
from holdfast.report.comparison import Setting, number
from holdfast.report.words import penalty_name

POINTS = 300  # a curve with more is thinned out
CURVES = {
    "loss": "Training loss on the target",
    "target_loss": "Target loss, held out",
    "source_loss": "Source loss, held out",
    "predicted_forgetting": "Forecast of forgetting",
    "distill_kl": "Divergence from its earlier answers",
    "penalty": "Penalty in the loss",
}


def curves(settings: Sequence[Setting], styles: Styles, item: str) -> dict[str, Any]:
    """Title -> figure, for what at least one setting logged at two steps or more; medians over seeds."""
    found = {}
    for key, title in CURVES.items():
        known = [(setting, line) for setting in settings if len(line := _curve(setting, key)) > 1]
        if known:
            figure = canvas("step", f"nats per {html.escape(item)}", 260)
            for setting, line in known:
                figure.add_scatter(
                    x=[step for step, _ in line],
                    y=[value for _, value in line],
                    mode="lines",
                    line={"color": styles[setting.series].color, "width": 1.8, "dash": dash_of(setting, settings)},
                    name=html.escape(penalty_name(setting.penalty)),
                    hovertemplate="step %{x}: %{y:.3f}",
                    meta=series_key(setting),
                )
            found[title] = figure
    return found


def _curve(setting: Setting, key: str) -> list[tuple[float, float]]:
    values: dict[float, list[float]] = {}
    for row in setting.rows:
        for moment in row.get("history") or []:
            step, value = number(moment, "step"), number(moment, key)
            if step is not None and value is not None:
                values.setdefault(step, []).append(value)
    line = [(step, statistics.median(found)) for step, found in sorted(values.items())]
    return line[:: -(-len(line) // POINTS)] if line else []
