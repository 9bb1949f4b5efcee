"""One colour and one marker for each penalty, the same in plots, key and tables.

Okabe and Ito's colours, which stay apart for every kind of colour vision; shapes carry the same distinction.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.report.comparison import Family

Series = tuple[Family, str]  # of a setting
DASHES = ("solid", "dash", "dot", "dashdot")
INK = "#1c1e21"  # the page's script swaps it for the ink of the reader's theme


@dataclass(frozen=True)
class Style:
    """Colour, plotly marker symbol, the same symbol as an SVG path in a 12 x 12 box, and plotly line dash."""

    color: str
    symbol: str
    path: str
    dash: str


_PATHS = {
    "circle": "M6 1.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0-9z",
    "triangle-up": "M6 1l5.2 9.2h-10.4z",
    "triangle-down": "M6 11l-5.2-9.2h10.4z",
    "square": "M1.8 1.8h8.4v8.4h-8.4z",
    "diamond": "M6 .4l5.6 5.6l-5.6 5.6l-5.6-5.6z",
    "pentagon": "M6 .8l5.2 3.8l-2 6.1h-6.4l-2-6.1z",
    "star": "M6 .3l1.7 3.6l3.9.5l-2.9 2.7l.8 3.9l-3.5-1.9l-3.5 1.9l.8-3.9l-2.9-2.7l3.9-.5z",
    "cross": "M4.2 1h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
    "x": "M3.2 .8l2.8 2.8l2.8-2.8l2.4 2.4l-2.8 2.8l2.8 2.8l-2.4 2.4l-2.8-2.8l-2.8 2.8l-2.4-2.4l2.8-2.8l-2.8-2.8z",
    "hexagon": "M6 .5l4.8 2.7v5.6l-4.8 2.7l-4.8-2.7v-5.6z",
}
_CHOSEN = {
    "none": (INK, "circle"),
    "identity": ("#CC79A7", "triangle-up"),
    "diagonal": ("#E69F00", "square"),
    "kronecker": ("#0072B2", "diamond"),
    "distill-self": ("#009E73", "pentagon"),
    "distill-source": ("#56B4E9", "triangle-down"),
    "kronecker+distill-self": ("#D55E00", "star"),
    "kronecker+distill-source": ("#D55E00", "x"),
    "replay": ("#8A8A8A", "cross"),
}
COLORS = ("#0072B2", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#D55E00", "#8A8A8A")
# Neighbours differ in colour and shape, and with 7 colours and 10 shapes no pair comes twice.
_SPARE = [
    pair
    for i in range(len(COLORS) * len(_PATHS))
    if (pair := (COLORS[i % len(COLORS)], [*_PATHS][::-1][i % len(_PATHS)])) not in _CHOSEN.values()
]


def styles(series: Iterable[Series]) -> dict[Series, Style]:
    """A style for each series; a penalty without one of its own takes the next spare one.

    Those of one colour are told apart by their shapes and, where no marker is drawn, by their dashes.
    """
    pairs = list(dict.fromkeys(series))
    penalties = list(dict.fromkeys(penalty for _, penalty in pairs))
    unknown = [penalty for penalty in penalties if penalty not in _CHOSEN]
    chosen = _CHOSEN | {penalty: _SPARE[i % len(_SPARE)] for i, penalty in enumerate(unknown)}
    colors = [chosen[penalty][0] for penalty in penalties]
    dashes = {p: DASHES[colors[:i].count(colors[i]) % len(DASHES)] for i, p in enumerate(penalties)}
    return {pair: Style(*(look := chosen[pair[1]]), _PATHS[look[1]], dashes[pair[1]]) for pair in pairs}
