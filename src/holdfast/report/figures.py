"""The plots, as plotly figures without a colour scheme: the page's script gives them the reader's."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.report.budgets import budget_of, budgets_in_nats
from holdfast.report.canvas import FAINT, Styles, canvas, dash_of, mark_budgets, marker, series_key, several_families
from holdfast.report.comparison import Row, Setting, Span, by_series, forgetting, gain, number, span
from holdfast.report.finding import KEEP
from holdfast.report.palette import INK, Style
from holdfast.report.trajectories import trajectory
from holdfast.report.words import decimals, memory, middle, percent, seconds, setting_name

PATHS = 8  # from the start to as many points; among more, to plain's alone
Ids = Mapping[int, str]  # id() of a setting or a row -> its anchor on the page


def frontier(
    settings: Sequence[Setting],
    chosen: Sequence[Setting],
    styles: Styles,
    item: str,
    ids: Ids,
    best: Sequence[Setting],
) -> Any:
    """Learning (x) against forgetting (y).

    Runs are faint points, medians are joined along the strengths, and thin lines lead to the chosen settings' points
    by way of what was measured during training. The settings in `best` have a ring around them.
    """
    figure = canvas(f"target gain, nats per {html.escape(item)}", f"forgetting, nats per {html.escape(item)}", 480)
    for setting in chosen if len(chosen) <= PATHS else filter(lambda one: one.is_plain, chosen):
        _path(figure, setting, styles, settings, ids)
    for members in by_series(settings):
        style = styles[members[0].series]
        known = [s for s in members if s.gain and s.forgetting]
        if any(s.gain.count > 1 for s in known if s.gain):
            _runs(figure, known, style, several_families(settings), ids)
            _middles(figure, known, several_families(settings), ids)
        for joined in _joined(known):
            _medians(figure, joined, styles, settings, ids)
    _rings(figure, [s for s in best if s.gain and s.forgetting], ids)
    figure.update_yaxes(rangemode="tozero")
    for setting in settings if not several_families(settings) else []:
        if setting.is_plain and setting.gain and setting.gain.median > 0:  # also keeps the axis from magnifying noise
            _mark(figure, KEEP * setting.gain.median, f"{percent(KEEP)} of plain gain ")
    highest = max((s.forgetting.high for s in settings if s.forgetting), default=0.0)
    mark_budgets(figure, budgets_in_nats(settings), highest)
    return figure


def _joined(settings: Sequence[Setting]) -> list[list[Setting]]:
    """What a line may join: strengths with strengths, budgets with budgets."""
    found: dict[bool, list[Setting]] = {}
    for setting in settings:
        found.setdefault(budget_of(setting.rows[0]) is None, []).append(setting)
    return list(found.values())


def _mark(figure: Any, x: float, text: str) -> None:
    """A dotted vertical line with its name on top, to the left."""
    figure.add_vline(x=x, line={"color": FAINT, "width": 1, "dash": "dot"})
    top = {"x": x, "xanchor": "right", "y": 1, "yref": "paper", "yanchor": "top"}
    figure.add_annotation(**top, text=text, showarrow=False, font={"size": 11}, opacity=0.75)


def _path(figure: Any, setting: Setting, styles: Styles, settings: Sequence[Setting], ids: Ids) -> None:
    """From the start to a setting's point, by way of its measurements during training."""
    moments = [moment for moment in trajectory(setting) if None not in moment[1:]]
    if len(moments) < 3:  # the start, something between, the end
        return
    name = html.escape(setting_name(setting, alone=not several_families(settings)))
    style = styles[setting.series]
    figure.add_scatter(
        x=[learned for _, learned, _ in moments],
        y=[lost for *_, lost in moments],
        mode="lines",
        line={"color": style.color, "width": 0.9, "dash": dash_of(setting, settings, styles)},
        hoverinfo="skip",
        customdata=[ids[id(setting)]] * len(moments),
        meta=series_key(setting),
    )
    figure.add_scatter(  # the end is the setting's own point
        x=[learned for _, learned, _ in moments[:-1]],
        y=[lost for *_, lost in moments[:-1]],
        mode="markers",
        marker=marker(style, 4, 0.8),
        text=[_stopped(name, *moment) for moment in moments[:-1]],
        hovertemplate="%{text}<extra></extra>",
        customdata=[ids[id(setting)]] * (len(moments) - 1),
        meta=series_key(setting),
    )


def _stopped(name: str, step: float | None, learned: float | None, lost: float | None) -> str:
    return (
        f"<b>{name}</b>, stopped after step {step or 0:.0f}<br>gain {decimals(learned)}, forgetting {decimals(lost)}"
    )


def _middles(figure: Any, known: Sequence[Setting], many: bool, ids: Ids) -> None:
    """What the pointer meets in the middle of a median: plotly prefers small markers, and the last of equal ones."""
    figure.add_scatter(
        x=[s.gain.median for s in known if s.gain],
        y=[s.forgetting.median for s in known if s.forgetting],
        mode="markers",
        marker={"size": 6, "opacity": 0},
        text=[_hover(s, s.rows, many) for s in known],
        hovertemplate="%{text}<extra></extra>",
        customdata=[ids[id(s)] for s in known],
        meta=series_key(known[0]),
    )


def _runs(figure: Any, settings: Sequence[Setting], style: Style, many: bool, ids: Ids) -> None:
    rows = [(s, row) for s in settings for row in s.rows if gain(row) is not None and forgetting(row) is not None]
    figure.add_scatter(
        x=[gain(row) for _, row in rows],
        y=[forgetting(row) for _, row in rows],
        mode="markers",
        marker=marker(style, 6, 0.4),
        text=[_hover(s, [row], many) for s, row in rows],
        hovertemplate="%{text}<extra></extra>",
        customdata=[ids[id(row)] for _, row in rows],
        meta=series_key(settings[0]),
    )


def _medians(figure: Any, known: Sequence[Setting], styles: Styles, settings: Sequence[Setting], ids: Ids) -> None:
    style = styles[known[0].series]
    figure.add_scatter(
        x=[s.gain.median for s in known if s.gain],
        y=[s.forgetting.median for s in known if s.forgetting],
        mode="lines+markers",
        line={"color": style.color, "width": 1.8, "dash": dash_of(known[0], settings, styles)},
        marker=marker(style, 11),
        error_x=_whiskers([s.gain for s in known if s.gain], style),
        error_y=_whiskers([s.forgetting for s in known if s.forgetting], style),
        text=[_hover(s, s.rows, several_families(settings)) for s in known],
        hovertemplate="%{text}<extra></extra>",
        customdata=[ids[id(s)] for s in known],
        meta=series_key(known[0]),
    )


def _rings(figure: Any, best: Sequence[Setting], ids: Ids) -> None:
    if not best:
        return
    figure.add_scatter(
        x=[s.gain.median for s in best if s.gain],
        y=[s.forgetting.median for s in best if s.forgetting],
        mode="markers",
        marker={"color": INK, "symbol": "circle-open", "size": 21, "line": {"width": 1.2}},
        customdata=[ids[id(s)] for s in best],
        hoverinfo="skip",
    )


def _whiskers(spans: Sequence[Span], style: Style) -> dict[str, Any]:
    return {
        "array": [s.high - s.median for s in spans],
        "arrayminus": [s.median - s.low for s in spans],
        "color": style.color,
        "thickness": 1.2,
        "width": 0,
        "visible": any(s.count > 1 for s in spans),
    }


def _hover(setting: Setting, rows: Sequence[Row], many: bool) -> str:
    """Settings and figures of one run, or of the median of several."""

    def mid(key: str) -> float | None:
        return middle(span(number(row, key) for row in rows))

    which = f"seed {rows[0].get('seed', '–')}" if len(rows) == 1 else f"median of {len(rows)} seeds"
    lines = [
        f"<b>{html.escape(setting_name(setting, alone=not many))}</b>, {html.escape(which)}",
        f"target {decimals(mid('target_before'))} → {decimals(mid('target_after'))}",
        f"source {decimals(mid('source_before'))} → {decimals(mid('source_after'))}",
    ]
    if setting.kept and setting.share and len(rows) == len(setting.rows):
        lines.append(f"gain kept {percent(setting.kept.median)}, forgetting {percent(setting.share.median)} of plain")
    if mid("predicted_forgetting") is not None:
        lines.append(f"forecast {decimals(mid('predicted_forgetting'))}")
    cost = [text for text in (seconds(mid("seconds")), memory(mid("peak_memory_mb"))) if text != "–"]
    return "<br>".join([*lines, ", ".join(cost)] if cost else lines)


def forecast(settings: Sequence[Setting], styles: Styles, item: str, ids: Ids) -> Any | None:
    """Predicted (y) against real forgetting (x), every run a point; None where no run has both."""
    points = [
        (s, row, real, predicted)
        for s in settings
        for row in s.rows
        if (real := forgetting(row)) is not None and (predicted := number(row, "predicted_forgetting")) is not None
    ]
    if len(points) < 2:
        return None
    figure = canvas(f"real forgetting, nats per {html.escape(item)}", "forecast, nats", 420)
    values = [value for _, _, *pair in points for value in pair]
    if min(values) > 0 and max(values) > 20 * min(values):
        figure.update_xaxes(type="log", dtick="D2", tickformat="~g")
        figure.update_yaxes(
            type="log", dtick="D2", tickformat="~g", title={"text": "forecast, nats (both scales log)"}
        )
    else:
        figure.update_xaxes(rangemode="tozero")
        figure.update_yaxes(rangemode="tozero")
    ends = [min(values), max(values)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": FAINT, "width": 1, "dash": "dot"}, hoverinfo="skip"
    )
    for members in by_series(settings):
        own = [point for point in points if point[0].series == members[0].series]
        figure.add_scatter(
            x=[real for _, _, real, _ in own],
            y=[predicted for *_, predicted in own],
            mode="markers",
            marker=marker(styles[members[0].series], 9, 0.85),
            text=[_hover(s, [row], several_families(settings)) for s, row, _, _ in own],
            hovertemplate="%{text}<extra></extra>",
            customdata=[ids[id(row)] for _, row, *_ in own],
            meta=series_key(members[0]),
        )
    return figure
