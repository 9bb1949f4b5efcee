"""Panels as plotly figures, for the page."""

import html
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from holdfast.analysis.figure import Bars, Heat, Level, Line, Panel
from holdfast.report.canvas import FAINT, canvas
from holdfast.report.plots import CONFIG

BAND = 0.16  # opacity
DECADES = 30.0  # below it, 2 and 5 of each decade have a tick too


def plots(panels: Sequence[Panel]) -> list[tuple[Panel, str]]:
    """Each panel with its plot as HTML, as the page shows them: wide ones first; the first brings plotly's script."""
    found = []
    for index, panel in enumerate(sorted(panels, key=lambda panel: not panel.wide)):
        drawn = figure(panel).to_html(
            full_html=False,
            include_plotlyjs=index == 0,
            div_id=f"panel-{index}",
            config=CONFIG,
            default_height="auto",
        )
        found.append((panel, drawn))
    return found


def figure(panel: Panel) -> Any:
    """One panel as a plotly figure."""
    made = canvas(html.escape(panel.x), html.escape(panel.y), panel.height)
    for mark in panel.marks:
        _add(mark, made)
    named_bars = any(isinstance(mark, Bars) and mark.x and isinstance(mark.x[0], str) for mark in panel.marks)
    made.update_xaxes(type="category" if named_bars else panel.scale("x"))
    made.update_yaxes(type=panel.scale("y"))
    for values, axis in ((panel.positive("x"), made.layout.xaxis), (panel.positive("y"), made.layout.yaxis)):
        if axis.type == "log":
            short = max(values) < DECADES * min(values)
            axis.update(exponentformat="power", minor={"showgrid": False}, dtick="D2" if short else 1)
    made.update_layout(bargap=0.2 if named_bars else 0)
    named = sum(bool(trace.showlegend) for trace in made.data)
    if named > 1:
        made.update_layout(
            showlegend=True,
            barmode="overlay",
            legend={
                "orientation": "h",
                "traceorder": "normal",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
                "bgcolor": "rgba(0,0,0,0)",
            },
        )
    return made


@singledispatch
def _add(mark: Any, made: Any) -> None:
    raise TypeError(type(mark).__name__)


@_add.register
def _(mark: Line, made: Any) -> None:
    name, number = html.escape(mark.name), "%{x:.4~g}: %{y:.4~g}"
    if mark.low is not None and mark.high is not None:
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        made.add_scatter(x=list(mark.x), y=list(mark.low), **edge)
        made.add_scatter(x=list(mark.x), y=list(mark.high), fill="tonexty", fillcolor=_faint(mark.color), **edge)
    mode = "+".join(part for part, wanted in (("lines", mark.line), ("markers", mark.points)) if wanted)
    made.add_scatter(
        x=list(mark.x),
        y=list(mark.y),
        name=name,
        mode=mode,
        opacity=mark.opacity,
        line={"color": mark.color, "dash": mark.dash, "width": 2 if mark.opacity == 1 else 1},
        marker={"color": mark.color, "size": 6},
        showlegend=mark.shown,
        hovertemplate=f"{name}<br>{number}<extra></extra>",
    )


@_add.register
def _(mark: Bars, made: Any) -> None:
    made.add_bar(
        x=list(mark.x),
        y=list(mark.y),
        name=html.escape(mark.name),
        marker={"color": mark.color, "line": {"width": 0}},
        opacity=mark.opacity,
        showlegend=True,
    )


@_add.register
def _(mark: Heat, made: Any) -> None:
    shared = {
        "x": list(mark.x),
        "y": list(mark.y),
        "z": [list(row) for row in mark.z],
        "colorscale": "Cividis",
        "colorbar": {"thickness": 10, "outlinewidth": 0, "title": {"text": html.escape(mark.name), "side": "right"}},
        "hovertemplate": "%{x:.3~g}, %{y:.3~g}: %{z:.4~g}<extra></extra>",
        "showlegend": False,
    }
    if mark.contours:
        made.add_contour(**shared, ncontours=24, line={"width": 0.5, "color": "rgba(255,255,255,0.5)"})
    else:
        made.add_heatmap(**shared)


@_add.register
def _(mark: Level, made: Any) -> None:
    line = {"color": FAINT, "width": 1, "dash": "dot"}
    label = {"annotation": {"text": html.escape(mark.name), "font": {"size": 11}, "opacity": 0.75}}
    if mark.upright:
        made.add_vline(x=mark.at, line=line, annotation_position="top", **label)
    else:
        made.add_hline(y=mark.at, line=line, annotation_position="top left", **label)


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND})"
