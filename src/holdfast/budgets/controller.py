"""The controller: which strength holds a forecast at a limit."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from holdfast.errors import HoldfastError

STEPS = 1000  # of a run whose length nobody says
HASTY, PATIENT = 15.0, 8.0  # e-folds by which a whole run may move the multiplier at a steady error of 1
AIM = 0.97  # share of the limit that is aimed at: what is left then meets chance
RELAXED = 0.4  # share of the way to the wall's strength in one step
SLACK = 0.5  # share of the limit up to which nothing is held
DRIFT = 0.15  # by which the correction may change between measurements, as a share of it
RANGE = 25.0  # e-folds that the multiplier may be away from where it started


@dataclass
class Controller:
    """strength -> mu * max(0, (f/B - s) / (1 - s)), with mu following d log mu = k/T * log(f/B), |log| <= 1, per step.

    The wall is the augmented Lagrangian's max(0, mu + rho (f - B)) with rho in proportion to mu, so that no scale has
    to be guessed: the multiplier mu rises or falls by e-folds until the forgetting f rests at the limit B. Below s =
    half of B nothing is held at all: a run that needs no budget trains as if it had none. The strength goes a part of
    the way to the wall in each step: a model that followed at once would swing. T is the length of the run in steps,
    so mu keeps pace with the training, whatever its learning rate.

    f is the forecast times a correction, the ratio of what is measured to what is forecast at the same weights,
    filtered as a random walk (Kalman's gain, from the measurement's own standard error; 1 for the first, and where
    nothing at all was measured until now, such as before the weights move): a penalty drives the shift
    to where its curvature sees least, so the ratio grows as training goes on.

    Attributes:
        limit: B, in the unit of what is measured.
        steps: T.
        haste: k; where the forecast is noisy, such as what is seen of a few sequences, a smaller one.
        multiplier: mu, the strength that holds f at B.
    """

    limit: float
    steps: int = STEPS
    haste: float = HASTY
    multiplier: float = 1.0
    correction: float = 1.0
    applied: float = 0.0  # the last strength
    variance: float | None = None  # of the correction; None: the next measurement counts whole

    def __post_init__(self) -> None:
        if not (0 < self.limit < math.inf and self.steps > 0 and 0 < self.multiplier < math.inf):
            raise HoldfastError(
                f"limit={self.limit}, steps={self.steps}, multiplier={self.multiplier}", wanted="numbers above 0"
            )

    def calibrate(self, forecast: float, measured: float, error: float = 0.0) -> None:
        """Take note of what was measured, with a standard error, at the weights of a forecast above 0."""
        noise = (error / forecast) ** 2 if math.isfinite(error) else (measured / forecast) ** 2
        drift = DRIFT**2 * max(self.correction**2, noise)
        gain = 1.0 if self.variance is None else (self.variance + drift) / (self.variance + drift + noise)
        self.correction = max(self.correction + gain * (measured / forecast - self.correction), 0.0)
        self.variance = gain * noise
        if (
            self.correction == self.variance == 0
        ):  # of 0 with no error: drift has no scale, so the next one counts whole
            self.variance = None

    def expected(self, forecast: float) -> float:
        """The forecast, corrected by what was measured."""
        return self.correction * forecast

    def strength(self, forecast: float) -> float:
        """The strength for the next step; call it once per step."""
        full = max(self.expected(forecast), 0.0) / (AIM * self.limit)
        if full > SLACK:
            error = min(max(math.log(full), -1.0), 1.0)
            moved = math.log(self.multiplier) + self.haste / self.steps * error
            self.multiplier = math.exp(min(max(moved, -RANGE), RANGE))
        wall = self.multiplier * max(0.0, (full - SLACK) / (1 - SLACK))
        self.applied += RELAXED * (wall - self.applied)
        return self.applied

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
