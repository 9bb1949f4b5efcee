"""Where in the network the shift went, and where forgetting is expected: figures by layer."""

import html
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.penalties.prices import BETWEEN
from holdfast.report.canvas import canvas
from holdfast.report.comparison import Row, Setting, number
from holdfast.report.words import penalty_name

BARS = 24  # layers without a block number are drawn as bars, the largest only


@dataclass(frozen=True)
class Measure:
    """What is mapped: a key of the rows, its title, and its unit as plotly formats and names it."""

    key: str
    title: str
    format: str
    unit: str


SHIFT = Measure("shift_sizes", "Where the shift went, against the size of the weight", ".2%", "")
COST = Measure("per_layer", "What it is expected to cost, in nats", ".4f", " nats")
MEASURES = (SHIFT, COST)


@dataclass(frozen=True)
class Grid:
    """Values (kinds x blocks) where layers are numbered; else one value for each of `kinds`, and no blocks."""

    kinds: list[str]
    blocks: list[int]
    values: list[list[float | None]]


def layers(rows: Sequence[Row], key: str) -> dict[str, float]:
    """Median over rows of each layer's figure; empty where none was recorded."""
    found: dict[str, list[float]] = {}
    for row in rows:
        measured = row.get(key) or {}
        for name in measured:
            value = number(measured, name)
            if value is not None:
                found.setdefault(str(name), []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def grid(values: Mapping[str, float]) -> Grid | None:
    """Blocks (x) by kinds of layer (y) where layers are numbered, the largest layers otherwise; None of nothing."""
    if not values:
        return None
    places = _places(list(values))
    blocks = sorted({block for block, _ in places.values()})
    if len(blocks) < 2:
        largest = sorted(values.items(), key=lambda pair: pair[1])[-BARS:]
        return Grid([name for name, _ in largest], [], [[value] for _, value in largest])
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    cells = {place: values[name] for name, place in places.items()}
    return Grid(kinds, blocks, [[cells.get((block, kind)) for block in blocks] for kind in kinds])


def _places(names: Sequence[str]) -> dict[str, tuple[int, str]]:
    """`model.layers.3.self_attn.q_proj` -> (3, "self_attn.q_proj"); layers without a number are left out."""
    split = {}
    for name in names:
        before, *after = re.split(r"(?:^|\.)(\d+)(?:\.|$)", name, maxsplit=1)
        if after:
            split[name] = (before, int(after[0]), after[1])
    stacks = {before for before, _, _ in split.values()}
    return {n: (block, kind if len(stacks) == 1 else f"{stack}: {kind}") for n, (stack, block, kind) in split.items()}


def heat(setting: Setting, measure: Measure) -> Any | None:
    """The map of one measure, medians over seeds; None without figures."""
    found = grid(layers(setting.rows, measure.key))
    return None if found is None else _map(found, measure) if found.blocks else _bars(found, measure)


def _map(found: Grid, measure: Measure) -> Any:
    figure = canvas("block", "", 96 + 26 * len(found.kinds))
    figure.add_heatmap(
        x=[str(block) for block in found.blocks],
        y=[html.escape(kind) for kind in found.kinds],
        z=found.values,
        colorscale="Cividis",
        zmin=0,
        xgap=2,
        ygap=2,
        colorbar={"thickness": 10, "outlinewidth": 0, "tickformat": ".2~%" if "%" in measure.format else ".2~g"},
        hovertemplate=f"block %{{x}}, %{{y}}: %{{z:{measure.format}}}{measure.unit}<extra></extra>",
    )
    figure.update_layout(xaxis={"type": "category", "showgrid": False}, yaxis={"autorange": "reversed"})
    return figure


def _bars(found: Grid, measure: Measure) -> Any:
    figure = canvas(measure.unit.strip(), "", 96 + 22 * len(found.kinds))
    figure.add_bar(
        x=[value for (value,) in found.values],
        y=[html.escape(name) for name in found.kinds],
        orientation="h",
        marker={"color": "#0072B2"},
        hovertemplate=f"%{{y}}: %{{x:{measure.format}}}{measure.unit}<extra></extra>",
    )
    figure.update_xaxes(tickformat=".2~%" if "%" in measure.format else ".2~g")
    return figure


def caption(setting: Setting) -> str:
    """The layer that moved most and the one that carries most of the forecast, in words."""
    said = []
    if moved := layers(setting.rows, SHIFT.key):
        name, most = max(moved.items(), key=lambda pair: pair[1])
        said.append(f"moved most: {name}, by {100 * most:.2g}\u00a0% of its weight")
    values = layers(setting.rows, COST.key)
    total, between = sum(values.values()), values.pop(BETWEEN, None)
    if values:
        name, most = max(values.items(), key=lambda pair: pair[1])
        share = f": {100 * most / total:.0f}\u00a0% of {total:.2g} nats" if total > 0 else ""
        joint = "" if between is None or total <= 0 else f"; {100 * between / total:.0f}\u00a0% is of layers together"
        said.append(f"most of the forecast in {name}{share}{joint}")
    return f"{penalty_name(setting.penalty)}: {'; '.join(said)}."
