"""Plots of benchmark results as SVG files, drawn with matplotlib (`pip install matplotlib`)."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "holdfast", "svg.fonttype": "none", "font.size": 8, "axes.spines.top": False})
mpl.rcParams.update({"axes.spines.right": False, "legend.frameon": False, "figure.constrained_layout.use": True})
COLORS = [mpl.colors.to_hex(color) for color in mpl.colormaps["tab20"].colors]  # type: ignore[attr-defined]
MARKERS = "osD^vPX*<>hp"


def styles(names: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> colour and marker; no two names share both."""
    return {
        name: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        for i, name in enumerate(names)
    }


def plain_numbers(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of each decade, written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: Path) -> None:
    """Write it; the same content gives the same bytes."""
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def frontier(rows: list[dict[str, Any]], summary: list[dict[str, Any]], path: Path) -> None:
    """Left: forgetting against gain, medians over seeds at each setting. Right: forgetting at 95 % against a step.

    Hollow marks are upper bounds: every measured setting kept more than 95 %.
    """
    names = [entry["case"] for entry in summary]
    style = styles(names)
    figure, (curves, costs) = plt.subplots(1, 2, figsize=(11, 5), width_ratios=[2, 1])
    for name in names:
        line = sorted(middle([row for row in rows if row["case"] == name]))
        curves.plot(*zip(*line, strict=True), label=name, linewidth=1, **style[name])
    curves.set(xlim=(0.8, 1.01), ylim=(0.01, 1.3), yscale="log", xlabel="gain kept, of plain LoRA")
    curves.set_ylabel("forgetting, of plain LoRA")
    for entry in summary:
        found = entry["at_95"]
        if found["forgetting_of_plain"] is not None:
            fill = "full" if found["between_settings"] else "none"
            costs.plot(entry["step_ratio"], found["forgetting_of_plain"], fillstyle=fill, **style[entry["case"]])
    plain_numbers(curves.yaxis)
    costs.set(
        yscale="log",
        xlabel="CPU time of a step, of plain LoRA",
        ylabel="forgetting at 95 % of the gain (hollow: at most)",
    )
    plain_numbers(costs.yaxis)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside right upper")
    save(figure, path)


def middle(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(gain kept, forgetting) of each setting, and of each step on its way: medians over seeds."""
    settings: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        settings.setdefault(str(row["hold"]), []).append((row["gain_kept"], row["forgetting_of_plain"]))
        for entry in row["along"]:
            point = entry["gain_kept"], entry["forgetting_of_plain"]
            settings.setdefault(f"{row['hold']} {entry['step']}", []).append(point)
    return [
        (statistics.median(kept for kept, _ in points), statistics.median(lost for _, lost in points))
        for points in settings.values()
    ]


def fidelity(summary: list[dict[str, Any]], path: Path) -> None:
    """Half q over the true KL by structure and depth, a panel for each share of the shift.

    Damping is shown where all else is usual: elsewhere it moves the ratio alike.
    """
    usual = {"fisher": "sampled", "per": "token", "space": "weights"}
    shown = [e for e in summary if not e["damping"] or all(e[name] == value for name, value in usual.items())]
    scales = sorted({entry["scale"] for entry in shown})
    height = 1 + 0.15 * len({entry["name"] for entry in shown})
    figure, axes = plt.subplots(1, len(scales), figsize=(4 * len(scales), height), sharey=True, squeeze=False)
    for axis, scale in zip(axes[0], scales, strict=True):
        ladder(axis, [entry for entry in shown if entry["scale"] == scale])
        axis.set_title(f"{scale:.0%} of the shift")
    axes[0][-1].legend(title="steps")
    save(figure, path)


def ladder(axis: Axes, entries: list[dict[str, Any]]) -> None:
    """One line per structure, one marker per depth."""
    names = list(dict.fromkeys(entry["name"] for entry in entries))
    depths = sorted({entry["depth"] for entry in entries})
    style = styles([str(depth) for depth in depths])
    for depth in depths:
        points = [(e["ratio_to_kl"], names.index(e["name"])) for e in entries if e["depth"] == depth]
        axis.plot(*zip(*points, strict=True), linestyle="none", label=str(depth), **style[str(depth)])
    axis.axvline(1, color="grey", linewidth=0.8)
    axis.set(xscale="log", xlabel="half q over the true KL")
    plain_numbers(axis.xaxis)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", linewidth=0.3)
