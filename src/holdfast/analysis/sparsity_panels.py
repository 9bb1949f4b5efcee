"""The plots of the measured sparsity."""

import statistics
from typing import TYPE_CHECKING, Any

from holdfast.analysis.concentration import NORM, SHARE
from holdfast.analysis.figure import Bars, Level, Line, Panel, color
from holdfast.analysis.nulls import NULLS
from holdfast.analysis.persistence import Overlap, chance
from holdfast.analysis.sparsity import BODY, Sparsity

if TYPE_CHECKING:
    from holdfast.analysis.sparsity_study import Measured

CURVE = [10 ** (exponent / 8) for exponent in range(-40, 1)]  # shares of the entries: 1e-5 to 1
BARS = 40  # tensors with a bar of their own; more are shown by the ends of their names
DASHES = {"pre-trained": "solid", "random": "dash", "tuned": "dot"}


def panels(measured: "Measured") -> list[Panel]:
    """Tensors, concentration, entries by size, and persistence."""
    wide = _tensors(measured.conditions["pre-trained"])
    return [wide, _concentration(measured), _histogram(measured), *_overlaps(measured)]


def _concentration(measured: "Measured") -> Panel:
    lines: list[Any] = [
        Line(name, CURVE, [one.body.norm(q).middle for q in CURVE], color(i), DASHES[name])
        for i, (name, one) in enumerate(measured.conditions.items())
    ]
    lines += [
        Line(f"{name} noise", CURVE, [null(q) for q in CURVE], "#8a8a8a", dash)
        for (name, null), dash in zip(NULLS.items(), ("dash", "dot"), strict=True)
    ]
    apart = measured.conditions["pre-trained"].together("embedding")
    if apart is not None:
        norms = [apart.norm(q).middle for q in CURVE]
        lines.append(Line("embeddings, pre-trained", CURVE, norms, color(3), "dashdot", opacity=0.6))
    caption = "How much of the gradient's norm its largest entries carry, all tensors but embeddings as one."
    marks = [*lines, Level("1 %", SHARE, upright=True), Level("99 % of the norm", NORM)]
    return Panel("Concentration", "share of the entries", "share of the norm", marks, caption, x_scale="log")


def _histogram(measured: "Measured") -> Panel:
    lines = []
    for i, (name, one) in enumerate(measured.conditions.items()):
        logs, shares = one.body.histogram()
        lines.append(Line(name, logs, shares, color(i), DASHES[name]))
    caption = "Entries by size, one point for each doubling. A Gaussian falls off within two decades to the left."
    return Panel("Sizes", "log10 |g|", "share of the entries", list(lines), caption)


def _tensors(one: Sparsity) -> Panel:
    values = {name: c.norm(SHARE).middle for name, c in one.of(*BODY).items() if c.entries >= 100}
    short = _shortened(values)
    if len(values) > BARS:
        ends: dict[str, list[float]] = {}
        for name, value in values.items():
            ends.setdefault(".".join(name.split(".")[-2:]), []).append(value)
        short = {end: statistics.fmean(found) for end, found in ends.items()}
    marks: list[Any] = [Bars("largest 1 %", list(short), list(short.values()))]
    marks += [Level(f"{name} noise", null(SHARE)) for name, null in NULLS.items()]
    caption = "The share of the norm in the largest 1 % of each tensor's entries, pre-trained."
    if len(values) > BARS:
        caption = caption.replace("each tensor's", "the tensors'") + " Means of tensors of one name."
    return Panel("Tensor by tensor", "", "share of the norm", marks, caption, wide=True, height=420)


def _shortened(values: dict[str, float]) -> dict[str, float]:
    """Names without what all of them share, and without what most of them end in."""
    short = {
        name.removeprefix("model.").removeprefix("layers.").removesuffix(".weight"): v for name, v in values.items()
    }
    short = {name.replace("self_attn.", "").replace("mlp.", ""): value for name, value in short.items()}
    return short if len(short) == len(values) else values


def _overlaps(measured: "Measured") -> list[Panel]:
    if not measured.training:
        return []
    parts: tuple[tuple[str, str, str], ...] = (
        ("recall", "Norm held", "of the norm lies in the entries that were largest before training"),
        ("jaccard", "Entries kept", "of the largest entries, then or now, are the largest both times (Jaccard)"),
    )
    return [_along(measured, *part) for part in parts]


def _along(measured: "Measured", key: str, title: str, what: str) -> Panel:
    def value(one: Overlap) -> float:
        return float(vars(one)[key])

    lines: list[Any] = [
        Line(name, [step for step, _ in moments], [value(one) for _, one in moments], color(i), points=True)
        for i, (name, moments) in enumerate(measured.training.items())
    ]
    lines += [
        Level("the source, before training", value(measured.overlaps["the source"])),
        *([Level("at random", value(chance(SHARE)))] if key == "recall" else []),  # else it is the axis
    ]
    return Panel(title, "training steps", key, lines, f"How much {what}.")
