"""The controller: which strength holds a forecast at a limit."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from holdfast.errors import HoldfastError

STEPS = 1000  # of a run whose length nobody says
PATIENCE = 25.0  # e-folds by which a whole run may move the multiplier at a steady error of 1
AIM = 0.97  # share of the limit that is aimed at: what is left then meets chance
SLACK = 0.5  # share of the limit up to which nothing is held
FORGET = 0.5  # share of the past in the correction, at each new measurement
RANGE = 25.0  # e-folds that the multiplier may be away from where it started


@dataclass
class Controller:
    """strength = mu * max(0, (f/B - s) / (1 - s)) with mu following d log mu = k/T * log(f/B), |log| <= 1, per step.

    The first factor is the augmented Lagrangian's max(0, mu + rho (f - B)) with rho in proportion to mu, so that no
    scale has to be guessed: the multiplier rises or falls by e-folds until the forgetting f rests at the limit B, and
    the wall around B answers in the same step. Below s = half of B nothing is held at all: a run that needs no budget
    trains as if it had none. f is the forecast times a correction, the ratio of what was measured to what was
    forecast at the same weights, sums over the measurements with weights that halve each time (a ratio of sums
    bears measurements that chance has made negative). T is the length of the run in steps: the multiplier keeps pace
    with the training, whatever its learning rate.

    Attributes:
        limit: B, in the unit of what is measured.
        steps: T.
        multiplier: mu, the strength that holds f at B.
    """

    limit: float
    steps: int = STEPS
    multiplier: float = 1.0
    correction: float = 1.0
    measured: float = 0.0  # discounted sum
    forecast: float = 0.0  # discounted sum, at the same weights

    def __post_init__(self) -> None:
        if not (0 < self.limit < math.inf and self.steps > 0 and 0 < self.multiplier < math.inf):
            raise HoldfastError(
                f"limit={self.limit}, steps={self.steps}, multiplier={self.multiplier}", wanted="numbers above 0"
            )

    def calibrate(self, forecast: float, measured: float) -> None:
        """Take note of what was measured at the weights of a forecast."""
        self.measured = FORGET * self.measured + measured
        self.forecast = FORGET * self.forecast + forecast
        if self.forecast > 0:
            self.correction = max(self.measured / self.forecast, 0.0)

    def expected(self, forecast: float) -> float:
        """The forecast, corrected by what was measured."""
        return self.correction * forecast

    def strength(self, forecast: float) -> float:
        """The strength for the next step; call it once per step."""
        full = max(self.expected(forecast), 0.0) / (AIM * self.limit)
        if full <= SLACK:
            return 0.0
        error = min(max(math.log(full), -1.0), 1.0)
        moved = math.log(self.multiplier) + PATIENCE / self.steps * error
        self.multiplier = math.exp(min(max(moved, -RANGE), RANGE))
        return self.multiplier * ((full - SLACK) / (1 - SLACK))

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs; JSON keeps its floats exactly."""
        return asdict(self)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            HoldfastError: it is of another limit.
        """
        if state["limit"] != self.limit:
            raise HoldfastError(
                f"the run was held at {state['limit']:g}, and now the budget is {self.limit:g}",
                remedy="resume with the same budget, or start again",
            )
        for name, value in state.items():
            setattr(self, name, value)
