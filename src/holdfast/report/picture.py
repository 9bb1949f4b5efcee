"""A small static picture of one run for its model card, as SVG: how much was learned and how much forgotten."""

import html
from collections.abc import Callable

from holdfast.report.budgets import POINTS, budget_of, figure, unit_of
from holdfast.report.comparison import Row, forgetting, gain, number
from holdfast.report.words import MISSING

WIDTH, LEFT, RIGHT = 640, 200, 20  # the bars lie between the margins
TOP, ROW, BAR = 10, 46, 24
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c1e21 }
.soft { fill: #5b6067; font-size: 11px }
line { stroke: #8a8a8a; stroke-width: 1 }
.forecast { stroke: #1c1e21; stroke-width: 2 }
.budget { stroke: #1c1e21; stroke-dasharray: 2 3 }
.learned { fill: #0072b2 }
.forgotten { fill: #d55e00 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e6e1 } .soft { fill: #a0a5ab } .forecast, .budget { stroke: #e6e6e1 } .learned { fill: #56b4e9 }
}
"""


def picture(row: Row) -> str:
    """An SVG of the gain and the forgetting in nats per item; empty where neither was measured.

    Both bars have one scale; to the left of the line is less than nothing: a source loss that fell. The forecast is a
    tick, a budget in nats a dotted line. Text takes the reader's light or dark scheme, the background is the page's.
    """
    learned, lost = gain(row), forgetting(row)
    if learned is None and lost is None:
        return ""
    marks = {
        "forecast": None if lost is None else number(row, "predicted_forgetting"),
        "budget": None if lost is None or unit_of(row) == POINTS else budget_of(row),
    }
    known = [value for value in (learned, lost, *marks.values()) if value is not None]
    low, high = min(0.0, *known), max(0.0, *known)
    scale = (WIDTH - LEFT - RIGHT) / ((high - low) or 1.0)

    def x(value: float) -> float:
        return round(LEFT + (value - low) * scale, 1)

    drawn = [
        *_bar("Learned", "new data", learned, _losses(row, "target"), TOP, x),
        *_bar("Forgotten", "old data", lost, _losses(row, "source"), TOP + ROW, x),
        f'<line x1="{x(0)}" x2="{x(0)}" y1="{TOP - 6}" y2="{TOP + ROW + BAR + 6}"/>',
    ]
    note, (top, bottom) = "nats per item", (TOP + ROW - 4, TOP + ROW + BAR + 4)
    for look, value in marks.items():
        if value is not None:
            drawn.append(f'<line class="{look}" x1="{x(value)}" x2="{x(value)}" y1="{top}" y2="{bottom}"/>')
            note += f" · {'tick' if look == 'forecast' else 'dotted'}: {look} {figure(value)}"
    drawn.append(f'<text class="soft" x="{LEFT}" y="{TOP + 2 * ROW + 8}">{html.escape(note)}</text>')
    return _svg(drawn, TOP + 2 * ROW + 20, f"Learned {figure(learned)}, forgotten {figure(lost)} nats per item")


def _losses(row: Row, side: str) -> str:
    before, after = number(row, f"{side}_before"), number(row, f"{side}_after")
    return "not measured" if before is None or after is None else f"{before:.3f} → {after:.3f}"


def _bar(name: str, data: str, value: float | None, losses: str, y: int, x: Callable[[float], float]) -> list[str]:
    """One side: in words on the left, as a bar on the right."""
    said = [
        f'<text x="0" y="{y + 10}">{name} {MISSING if value is None else figure(value)}</text>',
        f'<text class="soft" x="0" y="{y + 26}">{data}: loss {losses}</text>',
    ]
    if value is None:
        return said
    start, end = sorted((x(0), x(value)))
    width = max(end - start, 1.5)  # nothing forgotten is still seen
    return [*said, f'<rect class="{name.lower()}" x="{start}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>']


def _svg(drawn: list[str], height: int, label: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img"'
    return f'{head} aria-label="{html.escape(label)}">\n<style>{_STYLE}</style>\n' + "\n".join(drawn) + "\n</svg>\n"
