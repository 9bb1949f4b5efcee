"""Forecast against measured forgetting, along the way that an adapter took the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from holdfast.analysis.directions import Towards
from holdfast.analysis.forecasts import Fit, fit
from holdfast.analysis.moving import moving
from holdfast.anchor import Anchor
from holdfast.budgets.gauge import Gauge
from holdfast.errors import HoldfastError
from holdfast.likelihood import ForwardLoss
from holdfast.penalties.prices import Prices
from holdfast.progress import track
from holdfast.shifts.shift import Shift

ALPHAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class Step:
    """A place along a path: shares of a shift, or steps of training, and the layers' shifts there."""

    at: float
    shifts: Mapping[str, Shift]


@dataclass
class Calibration:
    """Measured rises of the source loss in nats per item, their standard errors, and each anchor's forecasts."""

    along: str  # what a step's place is
    places: list[float]
    loss: float  # before
    items: int
    measured: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    forecasts: dict[str, list[float]] = field(default_factory=dict)

    def fits(self) -> dict[str, Fit]:
        """Anchor -> its figures."""
        return {
            name: fit(self.places, forecasts, self.measured, self.errors) for name, forecasts in self.forecasts.items()
        }


def scaled_path(shifts: Mapping[str, Shift], alphas: Sequence[float] = ALPHAS) -> list[Step]:
    """alpha times a finished adapter's shift, for each alpha.

    Raises:
        HoldfastError: alphas that are not above 0.
    """
    if not alphas or min(alphas) <= 0:
        raise HoldfastError(f"alphas {list(alphas)}", wanted="shares above 0; at 0 nothing has moved")
    return [
        Step(alpha, {name: shift.scaled(shift.parts[0].new_tensor(alpha)) for name, shift in shifts.items()})
        for alpha in sorted(alphas)
    ]


@torch.no_grad()
def calibration(
    model: nn.Module,
    anchors: Mapping[str, Anchor],
    path: Sequence[Step],
    source: Any,
    *,
    along: str = "alpha",
    forward_loss: ForwardLoss | None = None,
    progress: bool = False,
) -> Calibration:
    """Measure the rise of the source loss at every step of a path, and what each anchor forecasts there.

    The forecast is 1/2 sum over layers <D_l, C_l D_l> (and between layers, where the curvature couples them), exact
    for a loss that is quadratic in the weights with that curvature and stationary at the anchor. The weights are moved
    in place and come back to the last bit.

    Args:
        model: the bare model at the anchored weights; after training an adapter, `peft_model.unload()`.
        anchors: name -> an anchor of the weights that forecasts in nats and holds every layer that moves.
        path: as `scaled_path(holdfast.shifts(peft_model))` makes it.
        source: batches of old data that the anchors were not measured on; 8 or more of them, for the errors.
        along: what a step's place is, for the axes.
        forward_loss: as for `Anchor.estimate`.
        progress: show a bar.

    Raises:
        HoldfastError: no step or anchor; an anchor of another model or of an adapter's parameters, one whose form is
            no forecast, or without curvature for a layer that moves; no batches.
    """
    if not path or not anchors:
        raise HoldfastError("nothing to compare", wanted="at least one anchor and one step of a path")
    current: dict[str, Shift] = dict(path[0].shifts)
    prices = {name: _prices(model, name, anchor, current) for name, anchor in anchors.items()}
    gauge = Gauge(model, source, forward_loss=forward_loss)
    gauge.prepare()
    found = Calibration(along, [step.at for step in path], gauge.loss, gauge.items)
    with moving(model) as weights, track("calibration", len(path), shown=progress, unit="step") as advance:
        for step in path:
            current.update(step.shifts)
            for name, price in prices.items():
                found.forecasts.setdefault(name, []).append(0.5 * float(price.form(damped=False)))
            towards = Towards(model, step.shifts)
            towards.check(weights.places)
            weights.to([(1.0, towards)])
            reading = gauge.look(whole=True, quiet=True)
            found.measured.append(reading.amount)
            found.errors.append(reading.error)
            advance()
    return found


def check(anchor: Anchor, name: str) -> None:
    """Raise HoldfastError for an anchor that forecasts no rise of the loss along a shift of the weights."""
    if anchor.space != "weights":
        raise HoldfastError(
            f"the anchor {name} is of an adapter's own parameters, and the path is one of weights",
            remedy="measure one of the weights: holdfast anchor without --space adapter",
        )
    if not all(curvature.forecasts for curvature in anchor.curvatures.values()):
        raise HoldfastError(
            f"the anchor {name} ({anchor.kind}) forecasts nothing in nats: its form is a length, not a loss",
            remedy="choose a curvature that is measured: kronecker, say",
        )


def _prices(model: nn.Module, name: str, anchor: Anchor, current: Mapping[str, Shift]) -> Prices:
    check(anchor, name)
    anchor.check(model)
    missing = [layer for layer in current if layer not in anchor.curvatures]
    if missing:
        raise HoldfastError(
            f"the anchor {name} has no curvature for {len(missing)} layers that move: {', '.join(missing[:3])}",
            remedy='measure it with targets that include them (".*" takes every layer)',
        )
    return Prices(model, anchor, 0.0, {layer: partial(current.__getitem__, layer) for layer in current})
