"""One colour and one marker for each penalty, the same in plots, key and tables.

Okabe and Ito's colours, which stay apart for every kind of colour vision; shapes carry the same distinction.
"""

from collections.abc import Iterable
from dataclasses import dataclass

INK = "#1c1e21"  # the page's script swaps it for the ink of the reader's theme


@dataclass(frozen=True)
class Style:
    """Colour, plotly marker symbol, and the same symbol as an SVG path in a 12 x 12 box."""

    color: str
    symbol: str
    path: str


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
_SPARE = [("#0072B2", "hexagon"), ("#CC79A7", "x"), ("#009E73", "hexagon"), ("#E69F00", "x"), ("#56B4E9", "hexagon")]


def styles(series: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Style]:
    """A style for each (method, penalty); a penalty without one of its own takes the next spare one."""
    pairs = list(dict.fromkeys(series))
    unknown = [penalty for penalty in dict.fromkeys(p for _, p in pairs) if penalty not in _CHOSEN]
    chosen = _CHOSEN | {penalty: _SPARE[i % len(_SPARE)] for i, penalty in enumerate(unknown)}
    return {pair: Style(*chosen[pair[1]], _PATHS[chosen[pair[1]][1]]) for pair in pairs}
