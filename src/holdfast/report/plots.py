"""The page's plots as HTML; the first one brings plotly's script with it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from holdfast.report.canvas import Styles
from holdfast.report.comparison import Setting
from holdfast.report.figures import forecast, frontier
from holdfast.report.heat import MEASURES, caption, heat
from holdfast.report.training import curves
from holdfast.report.trajectories import TITLES, along, trajectory

CONFIG = {"displayModeBar": False, "displaylogo": False, "responsive": True, "scrollZoom": False}


def plots(
    settings: Sequence[Setting],
    chosen: Sequence[Setting],
    styles: Styles,
    items: dict[str, str],
    ids: Mapping[int, str],
    best: Sequence[Setting],
) -> dict[str, Any]:
    """frontiers (one for each panel), forecast, along and curves (title -> plot), maps, and plotly's bare script.

    Args:
        settings: all of the page.
        chosen: one for each penalty, for what can't be drawn of all.
        styles: of their series.
        items: what the losses of each side are per.
        ids: what a click opens.
        best: the settings with a ring around them.
    """
    drawn = _Drawing()
    found: dict[str, Any] = {"frontiers": [], "forecast": "", "along": {}, "curves": {}, "maps": []}
    for panel in dict.fromkeys(s.panel for s in settings):
        own, shown = ([s for s in part if s.panel == panel] for part in (settings, chosen))
        if sum(s.gain is not None and s.forgetting is not None for s in own) > 1 or any(map(trajectory, own)):
            name = f"frontier-{len(found['frontiers'])}" if found["frontiers"] else "frontier"
            figure = frontier(own, shown, styles, items["target"], ids, [s for s in best if s.panel == panel])
            found["frontiers"].append((panel, drawn(figure, name)))
    predicted = forecast(settings, styles, items["source"], ids)
    if predicted is not None:
        found["forecast"] = drawn(predicted, "forecast")
    for side, figure in along(chosen, styles, items["target"]).items():
        found["along"][TITLES[side]] = drawn(figure, f"along-{side}")
    for title, figure in curves(chosen, styles, items).items():
        found["curves"][title] = drawn(figure, f"curve-{len(found['curves'])}")
    for setting, maps in _maps(chosen):
        i = len(found["maps"])
        pair = [(title, drawn(figure, f"heat-{i}-{j}")) for j, (title, figure) in enumerate(maps)]
        found["maps"].append((setting, caption(setting), pair))
    return found | {"plotly": "" if drawn.loaded else _script()}


def _maps(chosen: Sequence[Setting]) -> Iterator[tuple[Setting, list[tuple[str, Any]]]]:
    """Every setting that has maps, with their titles and figures."""
    for setting in chosen:
        maps = [(measure.title, figure) for measure in MEASURES if (figure := heat(setting, measure))]
        if maps:
            yield setting, maps


class _Drawing:
    """Figures as HTML; the first one brings plotly's script."""

    loaded = False

    def __call__(self, figure: Any, name: str) -> str:
        include, self.loaded = not self.loaded, True
        return figure.to_html(
            full_html=False, include_plotlyjs=include, div_id=name, config=CONFIG, default_height="auto"
        )


def _script() -> str:
    """Plotly alone, for a page that draws only in its panel."""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"
