"""What all plots share: an empty figure without a colour scheme, and how a series is drawn."""

from collections.abc import Sequence
from typing import Any

from holdfast.report.comparison import Setting
from holdfast.report.palette import INK, Style

GRID = "rgba(128,128,128,0.22)"
FAINT = "rgba(128,128,128,0.75)"
DASHES = ("solid", "dash", "dot", "dashdot")
Styles = dict[tuple[str, str], Style]


def canvas(x: str, y: str, height: int) -> Any:
    """An empty plotly figure with axis titles, `height` pixels high and as wide as the page allows."""
    import plotly.graph_objects as go

    axis = {"gridcolor": GRID, "zerolinecolor": FAINT, "linecolor": FAINT, "ticks": "", "automargin": True}
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 14, "t": 12, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        showlegend=False,
        hovermode="closest",
        dragmode=False,
        hoverlabel={"align": "left", "font": {"size": 12, "family": "system-ui, sans-serif"}},
        xaxis=axis | {"title": {"text": x, "standoff": 10}},
        yaxis=axis | {"title": {"text": y, "standoff": 8}},
    )
    return figure


def several_methods(settings: Sequence[Setting]) -> bool:
    """Whether a name has to say the method."""
    return len({setting.method for setting in settings}) > 1


def series_key(setting: Setting) -> str:
    """What the key's buttons switch on and off."""
    return "/".join(setting.series)


def dash_of(setting: Setting, settings: Sequence[Setting]) -> str:
    """Colour tells penalties apart, dashes tell methods apart."""
    methods = list(dict.fromkeys(other.method for other in settings))
    return DASHES[methods.index(setting.method) % 4]


def marker(style: Style, size: int, opacity: float = 1.0) -> dict[str, Any]:
    """A plotly marker."""
    return {"color": style.color, "symbol": style.symbol, "size": size, "opacity": opacity, "line": {"width": 0}}
