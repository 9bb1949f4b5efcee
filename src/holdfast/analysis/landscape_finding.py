"""A landscape in figures, pictures and words: whether pre-training makes it one of large oscillations."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.analysis.curves import FIGURES, larger, over_seeds
from holdfast.analysis.landscape import PRETRAINED, RANDOM, Curve, Landscape
from holdfast.analysis.landscape_panels import panels
from holdfast.analysis.leaving import Finding, Table

CLAIM = "going from a random to a pre-trained start turns small oscillations of the loss of new data into large ones"
NAMES = {
    "amplitude": "amplitude, nats",
    "variation": "total variation, nats",
    "excess_variation": "beyond one valley, nats",
    "sign_changes": "changes of direction",
    "roughness": "roughness, nats per alpha²",
    "width": "level set's width",
}
SAID = {"gaussian": "random lines", "gradient": "gradient", "tuned": "towards tuned"}
OSCILLATES = 0.05  # of the variation beyond a single valley: below it, a curve is one valley


def finding(found: Landscape, settings: Mapping[str, Any]) -> Finding:
    """What `leave` takes.

    Args:
        found: the landscape.
        settings: what it is of: model and data.
    """
    said = claim(found)
    return Finding(
        name="landscape",
        title=f"The loss around {settings.get('model', 'a model')}",
        question="How does the loss on new data lie around the pre-trained weights and around a random start, and "
        f"does it show that {CLAIM}?",
        words=words(found, said),
        settings={**settings, "grid": vars(found.grid), "moved_entries": found.moved},
        figures=figures(found, said),
        panels=panels(found),
        tables=[table(found, start) for start in found.losses],
        warnings=warnings(found),
    )


def figures(found: Landscape, said: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is drawn or said, for the JSON file."""
    by_start: dict[str, Any] = {}
    for start, loss in found.losses.items():
        directions = dict.fromkeys(curve.direction for curve in found.curves if curve.start == start)
        by_start[start] = {"loss": loss} | {name: over_seeds(_shapes(found.of(start, name))) for name in directions}
    return {
        "starts": by_start,
        "claim": said,
        "curves": [
            {**vars(curve), "shape": None if curve.shape is None else curve.shape.json()} for curve in found.curves
        ],
        "planes": [vars(plane) for plane in found.planes],
    }


def claim(found: Landscape) -> dict[str, Any]:
    """Whether the amplitude is larger and whether there is oscillation at all; None where it can't be told.

    "oscillates": at least half of a start's curves have more than 5 % of their variation beyond a single valley.
    """
    shapes = {start: _shapes(found.of(start)) for start in found.losses}
    oscillates = {start: _oscillates(found.of(start)) for start in shapes}
    amplitudes = {start: [one.amplitude for one in some] for start, some in shapes.items()}
    compared = larger(amplitudes[PRETRAINED], amplitudes[RANDOM]) if RANDOM in amplitudes else None
    known = RANDOM in amplitudes and all(amplitudes.values())
    ratio = statistics.fmean(amplitudes[PRETRAINED]) / statistics.fmean(amplitudes[RANDOM]) if known else None
    holds = None if compared is None else compared and oscillates[PRETRAINED]
    return {"larger_amplitude": compared, "amplitude_ratio": ratio, "oscillates": oscillates, "holds": holds}


def _shapes(curves: Sequence[Curve]) -> list[Any]:
    return [curve.shape for curve in curves if curve.shape is not None]


def _oscillates(curves: Sequence[Curve]) -> bool:
    some = _shapes(curves)
    return bool(some) and 2 * sum(one.excess_variation > OSCILLATES * one.variation for one in some) >= len(some)


def words(found: Landscape, said: Mapping[str, Any]) -> str:
    """The paragraph."""
    grid, sums = found.grid, {start: over_seeds(_shapes(found.of(start))) for start in found.losses}
    parts = [
        f"Along {grid.seeds} random directions ({_scaled(grid.normalise)}), from -{grid.span:g} to {grid.span:g}, the "
        f"loss around the pre-trained weights (at {found.losses[PRETRAINED]:.3f} nats) varies by "
        f"{_about(sums[PRETRAINED]['amplitude'])} nats"
    ]
    if RANDOM in sums:
        ratio = said["amplitude_ratio"]
        parts[0] += (
            f" (mean ± standard deviation over directions), around a random initialisation (at "
            f"{found.losses[RANDOM]:.3f}) by {_about(sums[RANDOM]['amplitude'])}"
            + (f": {ratio:.3g} times as much" if ratio else "")
            + "."
        )
    else:
        parts[0] += "."
    for start, figure in sums.items():
        shape = "oscillates" if said["oscillates"][start] else "is a single valley or slope"
        parts.append(
            f"Around the {start} weights a curve {shape}: {_about(figure['sign_changes'])} changes of direction, "
            f"{_part(figure)} of its variation beyond one valley; the loss stays within {grid.tau:g} nats of "
            f"its lowest over a width of {_about(figure['width'])}, of {2 * grid.span:g} in all."
        )
    parts += [_way(curve.alphas, curve.losses) for curve in found.of(PRETRAINED, "tuned")]
    parts.append(_verdict(found, said))
    return " ".join(filter(None, parts))


def _way(alphas: Sequence[float], losses: Sequence[float]) -> str:
    """From theta to the tuned weights, as far as the grid goes; a barrier is what lies above both ends."""
    way = [
        (alpha, loss) for alpha, loss in zip(alphas, losses, strict=True) if 0 <= alpha <= 1 and math.isfinite(loss)
    ]
    if len(way) < 2:
        return ""
    (_, first), (alpha, last) = way[0], way[-1]
    barrier = max(loss for _, loss in way) - max(first, last)
    over = f"over a barrier of {barrier:.3g} nats" if barrier > 0 else "without a barrier"
    return f"Towards the tuned weights the loss goes from {first:.3f} to {last:.3f} nats at alpha = {alpha:g}, {over}."


def _scaled(how: str) -> str:
    return {
        "filter": "each filter as long as the weight's own",
        "layer": "each tensor as long as the weight's own",
        "none": "standard normal, unscaled",
    }[how]


def _verdict(found: Landscape, said: Mapping[str, Any]) -> str:
    if RANDOM not in found.losses:
        return "No random start was measured, so the claim about pre-training can't be judged."
    if said["larger_amplitude"] is None:
        return f"The claim that {CLAIM} can't be told from these directions: the amplitudes are within two errors."
    if not said["larger_amplitude"]:
        return f"The claim that {CLAIM} does not hold here: the amplitude is smaller around the pre-trained weights."
    if said["holds"]:
        return f"So the claim that {CLAIM} holds here."
    return (
        f"So of the claim that {CLAIM}, the larger amplitude holds here and the oscillation does not: the pre-trained "
        "weights lie in one steep valley, the random ones on "
        + ("small ripples." if said["oscillates"][RANDOM] else "a plain.")
    )


def _about(figure: Mapping[str, Any]) -> str:
    if figure["mean"] is None:
        return "-"
    spread = "" if figure["deviation"] is None else f" ± {figure['deviation']:.2g}"
    return f"{figure['mean']:.3g}{spread}"


def _part(figure: Mapping[str, Mapping[str, Any]]) -> str:
    whole = figure["variation"]["mean"]
    return f"{100 * figure['excess_variation']['mean'] / whole:.2g} %" if whole else "none"


def warnings(found: Landscape) -> list[str]:
    """What makes the figures less than they seem."""
    said = []
    cut = sum(curve.shape is not None and curve.shape.width_cut for curve in found.curves)
    lost = sum(not math.isfinite(loss) for curve in found.curves for loss in curve.losses)
    if cut:
        said.append(f"The level set of {cut} of {len(found.curves)} curves reaches an end of the grid: it is wider.")
    if lost:
        said.append(f"{lost} points have a loss that is not finite; they are left out.")
    return said


def table(found: Landscape, start: str) -> Table:
    """One column for each direction: mean and standard deviation over seeds."""
    directions = list(dict.fromkeys(curve.direction for curve in found.curves if curve.start == start))
    sums = [over_seeds(_shapes(found.of(start, direction))) for direction in directions]
    rows = [[NAMES[name], *(_about(figure[name]) for figure in sums)] for name in FIGURES]
    return Table(f"Curves around the {start} weights", ["", *(SAID[one] for one in directions)], rows)
