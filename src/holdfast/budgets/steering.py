"""One budget at work on one term: its forecast, its strength, and what is measured in between."""

from collections.abc import Callable
from typing import Any

from holdfast.budgets.budget import Budget
from holdfast.budgets.controller import HASTY, STEPS, Controller
from holdfast.budgets.gauge import Gauge, Reading
from holdfast.errors import HoldfastError

LOOKS = 24  # measurements over a run
EARLY = 0.125  # of the budget: from there on every doubling of the forecast is measured
POINTS_PER_NAT = 30.0  # what a nat costs in points of accuracy until it is measured


class Steering:
    """Sets a term's strength once per step, from its forecast and, every so many steps, from what is measured.

    Args:
        budget: what is accepted.
        forecast: the term's present forecast in nats per item; None before there is one.
        turn_to: sets the term's strength.
        gauge: measures the forgetting; None: the forecast alone steers.
        steps: of the whole run; None: a trainer says so, else 1000.
        looks: measurements over the run.
        haste: of the controller.

    Raises:
        HoldfastError: a budget in points or in shares of the loss with nothing to measure them on.
    """

    def __init__(
        self,
        budget: Budget,
        forecast: Callable[[], float | None],
        turn_to: Callable[[float], None],
        gauge: Gauge | None,
        *,
        steps: int | None = None,
        looks: int = LOOKS,
        haste: float = HASTY,
    ) -> None:
        if gauge is None and budget.of in ("accuracy", "loss"):
            raise HoldfastError(
                f"a budget of {budget.words()} takes source data to measure it on",
                remedy="pass held_out=batches, or state it in nats",
            )
        if looks < 1 or (steps is not None and steps < 1):
            raise HoldfastError(f"steps={steps}, looks={looks}", wanted="counts of at least 1")
        self.budget, self.gauge, self.forecast, self.turn_to = budget, gauge, forecast, turn_to
        self.steps, self.looks, self.haste = steps, looks, haste
        self.last = -1  # the last step that it was turned at
        self.looked_at = 0.0  # the forecast at the last measurement
        self.reading: Reading | None = None
        self.fresh = False  # whether the reading has not been reported yet
        self._controller: Controller | None = None

    @property
    def controller(self) -> Controller:
        """Made when first needed: a budget in shares of the loss is known once the loss is."""
        if self._controller is None:
            loss = None if self.gauge is None else self.gauge.loss
            start = POINTS_PER_NAT if self.budget.unit == "points" else 1.0
            self._controller = Controller(self.budget.limit(loss), self.steps or STEPS, self.haste, correction=start)
        return self._controller

    def pace(self, steps: int) -> None:
        """The run has so many steps, where the user said nothing."""
        if self.steps is None:
            self.steps = self.controller.steps = steps

    def turn(self, step: int | None) -> None:
        """Set the strength for a step; a step that comes again changes nothing, and None is the next one."""
        step = self.last + 1 if step is None else step
        if step == self.last:
            return
        self.last = step
        controller, forecast = self.controller, self.forecast() or 0.0
        if self.gauge is not None and self._due(step, forecast):
            self.reading, self.fresh = self.gauge.look(), True
            self.looked_at = forecast
            controller.calibrate(forecast, self.reading.amount, self.gauge.uncertainty(self.reading))
        self.turn_to(controller.strength(forecast))

    def _due(self, step: int, forecast: float) -> bool:
        """Every so many steps; before that whenever the forecast has doubled, from where it begins to matter."""
        if forecast <= 0:
            return False
        every = max(1, self.controller.steps // self.looks)
        matters = forecast * max(self.controller.correction, 1.0) > EARLY * self.controller.limit
        return step % every == 0 or (matters and forecast > 2 * self.looked_at)

    @property
    def strength(self) -> float:
        """The last one that was set."""
        return self.controller.applied

    def expected(self) -> float | None:
        """The forecast in the budget's unit, corrected by what was measured."""
        forecast = self.forecast()
        return None if forecast is None else self.controller.expected(forecast)

    def final(self) -> float:
        """What is forgotten now, in the budget's unit: measured on everything there is, else as forecast."""
        if self.gauge is None:
            return self.forecast() or 0.0
        self.reading, self.fresh = self.gauge.look(whole=True), True
        return self.reading.amount

    def report(self) -> dict[str, float]:
        """What to log: the strength, the corrected forecast, and what was measured since the last time."""
        figures = {"strength": self.strength}
        if self.gauge is not None and (expected := self.expected()) is not None:
            figures["calibrated_forecast"] = expected
        if self.fresh and self.reading is not None:
            figures["measured_forgetting"] = self.reading.amount
        self.fresh = False
        return figures

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, in JSON's types."""
        return {
            "controller": self.controller.state(),
            "gauge": None if self.gauge is None else self.gauge.state(),
            "last": self.last,
            "looked_at": self.looked_at,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            HoldfastError: it is of another budget, or of other batches to measure on.
        """
        if (state["gauge"] is None) != (self.gauge is None):
            raise HoldfastError(
                "the run was steered by measurements, and now there is nothing to measure on, or the other way round",
                remedy="resume with the held_out batches that it was started with",
            )
        if self.gauge is not None:
            self.gauge.restore(state["gauge"])
        self.controller.restore(state["controller"])
        self.last, self.looked_at = state["last"], state["looked_at"]
        self.turn_to(self.strength)
