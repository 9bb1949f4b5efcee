"""Panels as one static SVG, in ink on a clear ground, for a paper or a model card. Drawn with matplotlib."""

import io
import itertools
import math
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from holdfast.analysis.figure import Bars, Heat, Level, Line, Numbers, Panel

COLUMNS = 2
WIDTH, HEIGHT = 3.4, 2.5  # inches of one panel: two fit the width of a page
LETTERS = 44  # of the names of bars that fit side by side under one panel
STYLE: Any = {  # as matplotlib's rcParams
    "svg.hashsalt": "holdfast",
    "svg.fonttype": "none",
    "font.size": 8,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
}
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def picture(panels: Sequence[Panel]) -> str:
    """All panels side by side, two in a row and a wide one alone; the same content gives the same text."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    places = _places(panels)
    rows = max(row for row, _ in places.values()) + 1
    columns = max(columns.stop for _, columns in places.values())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
        grid = figure.add_gridspec(rows, columns)
        for index, (row, across) in places.items():
            _draw(panels[index], figure.add_subplot(grid[row, across]))
        written = io.StringIO()
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})
    return written.getvalue()


def _places(panels: Sequence[Panel]) -> dict[int, tuple[int, slice]]:
    """Index of a panel -> its row, and the columns that it takes."""
    places: dict[int, tuple[int, slice]] = {}
    row, column = 0, 0
    for index, panel in enumerate(panels):
        width = COLUMNS if panel.wide else 1
        if column + width > COLUMNS:
            row, column = row + 1, 0
        places[index] = row, slice(column, column + width)
        column += width
    return places


def _draw(panel: Panel, axes: Any) -> None:
    axes.set(title=_plain(panel.title), xlabel=_plain(panel.x), ylabel=_plain(panel.y))
    for mark in panel.marks:
        _add(mark, axes)
    names = [name for mark in panel.marks if isinstance(mark, Bars) for name in mark.x if isinstance(name, str)]
    if sum(map(len, dict.fromkeys(names))) > (COLUMNS if panel.wide else 1) * LETTERS:
        axes.tick_params(axis="x", labelrotation=90)
    if panel.scale("x") == "log":  # a linear scale set anew would undo an axis of names
        axes.set_xscale("log")
    if panel.scale("y") == "log":
        axes.set_yscale("log")
    if len(axes.get_legend_handles_labels()[1]) > 1:
        crowded = any(isinstance(mark, Bars) and mark.opacity == 1 for mark in panel.marks)  # bars to the top
        axes.legend(**({"loc": "upper left", "bbox_to_anchor": (1, 1)} if crowded else {}))


@singledispatch
def _add(mark: Any, axes: Any) -> None:
    raise TypeError(type(mark).__name__)


@_add.register
def _(mark: Line, axes: Any) -> None:
    look = {"color": mark.color, "alpha": mark.opacity, "linewidth": 1.2 if mark.opacity == 1 else 0.7}
    if mark.low is not None and mark.high is not None:
        axes.fill_between(
            _floats(mark.x), _floats(mark.low), _floats(mark.high), color=mark.color, alpha=0.16, linewidth=0
        )
    axes.plot(
        _floats(mark.x),
        _floats(mark.y),
        linestyle=DASHES[mark.dash] if mark.line else "none",
        marker="o" if mark.points else None,
        markersize=3,
        label=_plain(mark.name) if mark.shown else None,
        **look,
    )


@_add.register
def _(mark: Bars, axes: Any) -> None:
    axes.bar(
        list(mark.x),
        _floats(mark.y),
        color=mark.color,
        alpha=mark.opacity,
        label=_plain(mark.name),
        width=_width(mark),
    )
    if any(isinstance(place, str) for place in mark.x):  # a name without a bar at either end keeps its place
        axes.set_xlim(-0.5, len(mark.x) - 0.5)


def _width(mark: Bars) -> float:
    """Bars of a histogram touch."""
    places = [place for place in mark.x if not isinstance(place, str)]
    return 0.8 if len(places) < 2 else min(b - a for a, b in itertools.pairwise(places))


@_add.register
def _(mark: Heat, axes: Any) -> None:
    x, y, z = _floats(mark.x), _floats(mark.y), [_floats(row) for row in mark.z]
    if mark.contours:
        drawn = axes.contourf(x, y, z, levels=24, cmap="cividis")
    else:
        drawn = axes.pcolormesh(x, y, z, cmap="cividis", shading="nearest")
    axes.figure.colorbar(drawn, ax=axes, label=_plain(mark.name))


@_add.register
def _(mark: Level, axes: Any) -> None:
    look = {"color": "#8a8a8a", "linewidth": 0.8, "linestyle": ":"}
    if mark.upright:
        axes.axvline(mark.at, **look)
    else:
        axes.axhline(mark.at, **look)
    if mark.name:
        place = {"x": mark.at, "y": 1, "va": "bottom"} if mark.upright else {"x": 0.01, "y": mark.at, "va": "bottom"}
        transform = axes.get_xaxis_transform() if mark.upright else axes.get_yaxis_transform()
        axes.text(s=_plain(mark.name), fontsize=6, color="#5b6067", transform=transform, **place)


def _floats(values: Numbers) -> list[float]:
    """A gap where there is no number."""
    return [math.nan if value is None else float(value) for value in values]


def _plain(text: str) -> str:
    """Dollars are dollars."""
    return text.replace("$", r"\$")
