"""What all plots share: an empty figure without a colour scheme, and how a series is drawn."""

from collections.abc import Sequence
from typing import Any

from holdfast.report.comparison import Setting
from holdfast.report.palette import DASHES, INK, Series, Style

GRID = "rgba(128,128,128,0.22)"
FAINT = "rgba(128,128,128,0.75)"
Styles = dict[Series, Style]


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


def several_families(settings: Sequence[Setting]) -> bool:
    """Whether a name has to say the method."""
    return len({setting.family for setting in settings}) > 1


def series_key(setting: Setting) -> str:
    """What the key's buttons switch on and off."""
    return "/".join((*setting.family, setting.penalty))


def dash_of(setting: Setting, settings: Sequence[Setting], styles: Styles) -> str:
    """Colour and shape tell penalties apart; dashes tell families apart, or else penalties of one colour."""
    families = list(dict.fromkeys(other.family for other in settings))
    return styles[setting.series].dash if len(families) < 2 else DASHES[families.index(setting.family) % len(DASHES)]


def marker(style: Style, size: int, opacity: float = 1.0) -> dict[str, Any]:
    """A plotly marker."""
    return {"color": style.color, "symbol": style.symbol, "size": size, "opacity": opacity, "line": {"width": 0}}


def mark_budgets(figure: Any, budgets: Sequence[float], highest: float) -> None:
    """Dotted horizontal lines at what may be forgotten, named where there is room on an axis up to `highest`."""
    named = None
    for budget in budgets:
        figure.add_hline(y=budget, line={"color": FAINT, "width": 1, "dash": "dot"})
        if named is None or budget - named > 0.05 * max(highest, budgets[-1]):
            left = {"x": 0, "xref": "paper", "xanchor": "left", "y": budget, "yanchor": "bottom"}
            figure.add_annotation(
                **left, text=f"budget {budget:.3g}", showarrow=False, font={"size": 11}, opacity=0.75
            )
            named = budget
