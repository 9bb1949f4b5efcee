"""Where in the network forgetting is expected: predicted forgetting by layer."""

import html
import re
import statistics
from collections.abc import Sequence
from typing import Any

from holdfast.penalties.prices import BETWEEN
from holdfast.report.canvas import canvas
from holdfast.report.comparison import Setting, number
from holdfast.report.words import penalty_name

BARS = 24  # layers without a block number are drawn as bars, the largest only


def layers(setting: Setting) -> dict[str, float]:
    """Median over seeds of each layer's forecast in nats; empty where none was recorded."""
    found: dict[str, list[float]] = {}
    for row in setting.rows:
        measured = row.get("per_layer") or {}
        for name in measured:
            value = number(measured, name)
            if value is not None:
                found.setdefault(str(name), []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def heat(setting: Setting, item: str) -> Any | None:
    """Blocks (x) by kinds of layer (y) where layers are numbered, bars otherwise; None without figures."""
    values = layers(setting)
    if not values:
        return None
    places = _places(list(values))
    if len({block for block, _ in places.values()}) < 2:
        return _bars(values, item)
    blocks = sorted({block for block, _ in places.values()})
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    cells = {place: values[name] for name, place in places.items()}
    figure = canvas("block", "", 96 + 26 * len(kinds))
    figure.add_heatmap(
        x=[str(block) for block in blocks],
        y=[html.escape(kind) for kind in kinds],
        z=[[cells.get((block, kind)) for block in blocks] for kind in kinds],
        colorscale="Cividis",
        zmin=0,
        xgap=2,
        ygap=2,
        colorbar={"thickness": 10, "outlinewidth": 0, "title": {"text": "nats", "side": "top"}},
        hovertemplate="block %{x}, %{y}: %{z:.4f} nats<extra></extra>",
    )
    figure.update_layout(xaxis={"type": "category", "showgrid": False}, yaxis={"autorange": "reversed"})
    return figure


def _places(names: Sequence[str]) -> dict[str, tuple[int, str]]:
    """`model.layers.3.self_attn.q_proj` -> (3, "self_attn.q_proj"); layers without a number are left out."""
    split = {}
    for name in names:
        before, *after = re.split(r"(?:^|\.)(\d+)(?:\.|$)", name, maxsplit=1)
        if after:
            split[name] = (before, int(after[0]), after[1])
    stacks = {before for before, _, _ in split.values()}
    return {n: (block, kind if len(stacks) == 1 else f"{stack}: {kind}") for n, (stack, block, kind) in split.items()}


def _bars(values: dict[str, float], item: str) -> Any:
    largest = sorted(values.items(), key=lambda pair: pair[1])[-BARS:]
    figure = canvas(f"forecast, nats per {html.escape(item)}", "", 96 + 22 * len(largest))
    figure.add_bar(
        x=[value for _, value in largest],
        y=[html.escape(name) for name, _ in largest],
        orientation="h",
        marker={"color": "#0072B2"},
        hovertemplate="%{y}: %{x:.4f} nats<extra></extra>",
    )
    return figure


def caption(setting: Setting) -> str:
    """The layer that carries most of the forecast, in words."""
    values = layers(setting)
    total, between = sum(values.values()), values.pop(BETWEEN, None)
    name, most = max(values.items(), key=lambda pair: pair[1])
    share = f": {100 * most / total:.0f}\u00a0% of {total:.2g} nats" if total > 0 else ""
    joint = "" if between is None or total <= 0 else f"; {100 * between / total:.0f}\u00a0% is of layers together"
    return f"{penalty_name(setting.penalty)}: most in {name}{share}{joint}."
