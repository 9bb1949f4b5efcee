"""`holdfast.fit`: a finished adapter back inside a forgetting budget, in closed form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from holdfast.anchor import Anchor
from holdfast.batches import batches_of
from holdfast.budgets.budget import Budget
from holdfast.budgets.gauge import Gauge
from holdfast.errors import HoldfastError
from holdfast.fitting.moving import Moving
from holdfast.fitting.refusals import check_anchor
from holdfast.fitting.search import Search, largest_inside
from holdfast.fitting.way import Way
from holdfast.fitting.ways import way
from holdfast.fitting.worth import by_gain, by_length
from holdfast.likelihood import ForwardLoss

FORECAST, MEASUREMENT = "forecast", "measurement"


@dataclass(frozen=True)
class Fitted:
    """What was kept of a shift.

    Attributes:
        how: the way it was fitted.
        factors: layer name -> |D'| / |D|: for "scale" and "layers" what its shift was multiplied by.
        budget: in words.
        limit: the budget in its unit.
        unit: "nats" per source item, or "points" of accuracy.
        steered_by: "measurement" on the source, or the anchor's "forecast" alone.
        forecast_before, forecast_after: 1/2 q: nats, where the anchor's curvature forecasts.
        prices_before, prices_after: layer name -> 1/2 q_l.
        forgetting_before, forgetting_after: measured on `source`, in the budget's unit; None without source.
        worths: layer name -> what its shift was taken to be worth; empty for "scale".
        rank_lost: layer name -> share of the fitted |D'|^2 that the adapter's rank could not hold ("project").
        search: (forecast aimed at, forgetting measured there) for each try.
    """

    how: str
    factors: dict[str, float]
    budget: str
    limit: float
    unit: str
    steered_by: str
    forecast_before: float
    forecast_after: float
    prices_before: dict[str, float]
    prices_after: dict[str, float]
    forgetting_before: float | None
    forgetting_after: float | None
    worths: dict[str, float]
    rank_lost: dict[str, float]
    search: list[tuple[float, float]]

    @property
    def changed(self) -> bool:
        """Whether anything was; an adapter that is inside its budget is left as it is, bit for bit."""
        return any(factor != 1 for factor in self.factors.values())


def fit(
    model: nn.Module,
    anchor: Anchor,
    budget: Budget | float | str,
    how: str = "layers",
    *,
    source: Any = None,
    target: Any = None,
    reference: Mapping[str, Tensor] | None = None,
    batch_size: int = 8,
    forward_loss: ForwardLoss | None = None,
    progress: bool = True,
) -> Fitted:
    """Shrink a finished shift, in place and without training, until it is inside a forgetting budget.

    "scale" multiplies the whole shift by one factor; "layers" each layer by its own, the minimum of
    sum n_l (1 - a_l)^2 under the budget; "project" filters each layer's shift in its curvature's eigenbasis, and what
    is left is cut to the adapter's rank. See `holdfast.fitting.shrinkage` and `holdfast.fitting.project`.

    Without `source` the anchor's forecast decides, which is low (a Kronecker anchor says 0.4 of what plain LoRA
    forgets). With it, the forecast only says in which proportions to shrink: how much is searched until the measured
    rise of the source's loss is within 5 % below the budget, in about four measurements; an anchor that forecasts
    nothing (identity) will do then.

    Args:
        model: a PEFT model with LoRA or SIFT, loaded on the anchored base; what its active adapters do is shrunk. Or a
            wholly tuned model, with `reference`.
        anchor: of the base model's weights.
        budget: nats per source item, or text: "0.02", "1%" of perplexity, "loss 1%", "accuracy 0.5" points.
        how: "scale", "layers" or "project".
        source: old data to measure on: batches, a DataLoader or a `datasets.Dataset`; read some four times.
        target: batches of new data, which say what a layer is worth (n_l: its price under the target's own curvature);
            None: n_l = |D_l|_F^2.
        reference: layer name -> weight of the base model, as `holdfast.snapshot(base)` gives it, for a wholly tuned
            model. Only layers' weights are looked at.
        batch_size: for a `datasets.Dataset`.
        forward_loss: of models that are not of transformers, as for `Anchor.estimate`.
        progress: show progress bars.

    Raises:
        HoldfastError: another base model; adapters that scaling can't bring back (DoRA, PiSSA, modules_to_save,
            biases; each says why); layers without curvature; a budget that needs source data, or more of them; an
            anchor that forecasts nothing without source data. The model is then as it was.
    """
    asked, kind = Budget.parse(budget), way(how)
    check_budget(asked, measured=source is not None)
    check_anchor(anchor, measured=source is not None)
    gauge = None
    if source is not None:
        batches = batches_of(source, batch_size)
        gauge = Gauge(model, batches, asked, forward_loss, name="source that steers", progress=progress)
    moving = Moving(model, anchor, reference)
    try:
        if gauge is not None:
            moving.scale(0.0)
            gauge.prepare()
            moving.scale(1.0)
        worths: dict[str, float] = {}
        if kind.weighs and moving.moves:
            worths = by_length(moving)
            if target is not None:
                worths = by_gain(moving, batches_of(target, batch_size), forward_loss, progress=progress)
        return _fitted(moving, kind(moving, worths), asked, gauge)
    except BaseException:
        moving.scale(1.0)
        raise


def check_budget(budget: Budget, *, measured: bool) -> None:
    """Raise HoldfastError for a budget that only a measurement can hold, where nothing is there to measure on."""
    if not measured and (budget.unit == "points" or budget.of == "loss"):
        raise HoldfastError(
            f"a budget of {budget.words()} is measured on old data, and none is named",
            wanted="a budget in nats or of perplexity, which a forecast alone can hold: 0.02, 1%",
            remedy="pass source data",
        )


def _fitted(moving: Moving, shrinking: Way, budget: Budget, gauge: Gauge | None) -> Fitted:
    moving.scale(1.0)
    forecast, prices = moving.forecast(), moving.per_layer()
    told: tuple[float | None, float | None] = (None, None)
    loss = None if gauge is None else gauge.loss
    limit = budget.limit(loss)
    if gauge is None:
        factors, tried = shrinking.aim(limit), Search()
    else:
        factors, tried, told = _steered(moving, shrinking, limit, gauge)
    return Fitted(
        how=shrinking.name,
        factors=factors,
        budget=budget.words(loss),
        limit=limit,
        unit=budget.unit,
        steered_by=FORECAST if gauge is None else MEASUREMENT,
        forecast_before=forecast,
        forecast_after=moving.forecast(),
        prices_before=prices,
        prices_after=moving.per_layer(),
        forgetting_before=told[0],
        forgetting_after=told[1],
        worths=dict(shrinking.worths),
        rank_lost=dict(shrinking.lost),
        search=list(zip(tried.forecasts, tried.rises, strict=True)),
    )


def _steered(
    moving: Moving, shrinking: Way, limit: float, gauge: Gauge
) -> tuple[dict[str, float], Search, tuple[float, float]]:
    """The factors, what was tried, and the forgetting measured before and after."""

    def measured(forecast: float) -> float:
        shrinking.aim(forecast)
        return gauge.look(whole=True).amount

    came = gauge.look(whole=True).amount
    if came <= limit:
        return dict.fromkeys(moving.moves, 1.0), Search(), (came, came)
    if not moving.forecast() > 0:
        raise HoldfastError(
            f"the adapter forgets {came:.3g} {gauge.unit}, and the anchor has no price for anything that it moved",
            causes=["the anchor was measured on data that the moved layers do not serve"],
            remedy="measure the anchor on source data like those that are measured here",
        )
    tried = largest_inside(measured, moving.forecast(), came, limit)
    factors = shrinking.aim(tried.forecasts[tried.best])
    return factors, tried, (came, tried.rises[tried.best])
