"""Learning and forgetting while training went on: what a run would be worth had it been stopped there."""

import html
import statistics
from collections.abc import Sequence
from typing import Any

from holdfast.report.budgets import budgets_in_nats
from holdfast.report.canvas import Styles, canvas, dash_of, mark_budgets, series_key, several_families
from holdfast.report.comparison import Row, Setting, number
from holdfast.report.words import setting_name

# Step, gain and forgetting in nats per item. No step: what the run left, where its length is not known or where it was
# changed after the last step.
Moment = tuple[float | None, float | None, float | None]
TITLES = {"gain": "Learned: how far the target loss fell", "forgetting": "Forgotten: how far the source loss rose"}


def moments(row: Row) -> list[Moment]:
    """The start, what was measured along the way, and the end; empty where nothing was measured on the way.

    A key of `along` is a side, or a side's test part where both parts were measured.
    """
    steps = {}
    for moment in row.get("along") or []:
        step = number(moment, "step")
        losses = {side: _either(moment, side, f"{side}_test") for side in ("source", "target")}
        if step is not None and any(loss is not None for loss in losses.values()):
            steps[step] = (_fall(row, losses["target"]), _rise(row, losses["source"]))
    if not steps:
        return []
    steps.setdefault(0.0, (0.0 if _known(row, "target") else None, 0.0 if _known(row, "source") else None))
    found: list[Moment] = [(step, *steps[step]) for step in sorted(steps)]
    end = (_fall(row, number(row, "target_after")), _rise(row, number(row, "source_after")))
    last = _last_step(row)
    if last is None or last > max(steps):
        found.append((last, *end))
    elif any(
        _apart(*pair) for pair in zip(end, found[-1][1:], strict=True)
    ):  # the finished shift was scaled to get inside a budget
        found.append((None, *end))
    return found


def _apart(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and abs(one - other) > 1e-6


def _either(moment: Row, key: str, other: str) -> float | None:
    value = number(moment, key)
    return number(moment, other) if value is None else value


def _known(row: Row, side: str) -> bool:
    return number(row, f"{side}_before") is not None


def _fall(row: Row, loss: float | None) -> float | None:
    before = number(row, "target_before")
    return None if loss is None or before is None else before - loss


def _rise(row: Row, loss: float | None) -> float | None:
    before = number(row, "source_before")
    return None if loss is None or before is None else loss - before


def _last_step(row: Row) -> float | None:
    """Of the whole run, as its log has it."""
    return max(
        (step for entry in row.get("history") or [] if (step := number(entry, "step")) is not None), default=None
    )


def trajectory(setting: Setting) -> list[Moment]:
    """Medians over the seeds at every step that was measured; the end comes last."""
    found: dict[float | None, list[tuple[float | None, float | None]]] = {}
    for row in setting.rows:
        for step, *values in moments(row):
            found.setdefault(step, []).append((values[0], values[1]))
    order = sorted(found, key=lambda step: (step is None, step))
    return [
        (step, _median([learned for learned, _ in found[step]]), _median([lost for _, lost in found[step]]))
        for step in order
    ]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def along(settings: Sequence[Setting], styles: Styles, item: str) -> dict[str, Any]:
    """For "gain" and "forgetting" a figure over the steps, for what was measured at two steps or more."""
    found = {}
    lines = [(setting, trajectory(setting)) for setting in settings]
    for i, side in enumerate(TITLES, start=1):
        known = [
            (s, line)
            for s, path in lines
            if len(line := [m for m in path if m[0] is not None and m[i] is not None]) > 1
        ]
        if not known:
            continue
        figure = canvas("step", f"nats per {html.escape(item)}", 300)
        for setting, line in known:
            name = html.escape(setting_name(setting, alone=not several_families(settings)))
            figure.add_scatter(
                x=[moment[0] for moment in line],
                y=[moment[i] for moment in line],
                mode="lines+markers",
                line={"color": styles[setting.series].color, "width": 1.8, "dash": dash_of(setting, settings, styles)},
                marker={"color": styles[setting.series].color, "symbol": styles[setting.series].symbol, "size": 6},
                hovertemplate=f"{name}<br>step %{{x}}: %{{y:.3f}}<extra></extra>",
                meta=series_key(setting),
            )
        if side == "forgetting":
            highest = max(moment[i] or 0.0 for _, line in known for moment in line)
            mark_budgets(figure, budgets_in_nats(settings), highest)
        found[side] = figure
    return found
