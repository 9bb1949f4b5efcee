"""A certificate: the most that a tuned, slightly noisy model loses on fresh data, and what each part adds to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.analysis.pac_bayes.bounds import BOUNDS
from holdfast.analysis.pac_bayes.divergence import scaled
from holdfast.analysis.pac_bayes.posterior import Centre, StochasticRisk
from holdfast.analysis.pac_bayes.shape import Shape, distance
from holdfast.errors import HoldfastError

SAMPLING = 0.2  # of delta goes to the estimate of r(Q), the rest to the bound


@dataclass(frozen=True)
class Certificate:
    """With probability 1 - delta over the n examples and the draws: R(Q) <= each of `bounds` by itself.

    Everything is in the losses' own unit, from 0 to `most`.

    Args:
        prior: what the prior is centred at.
        divergence: KL(Q || P), nats.
        support: of it, what a support chosen on these examples costs.
        n: independent examples.
        risk: the estimate of r(Q).
        sampled: what r(Q) is at most.
        bounds: name -> value, each by itself.
        most: C, which any predictor keeps to.
    """

    prior: str
    divergence: float
    support: float
    n: int
    delta: float
    risk: float
    sampled: float
    bounds: dict[str, float]
    most: float

    @property
    def value(self) -> float:
        """Seeger's bound, which was chosen beforehand."""
        return self.bounds["seeger"]

    @property
    def vacuous(self) -> bool:
        """Whether it says no more than that losses are at most C: to three digits, as it is shown."""
        return self.value >= self.most * (1 - 5e-4)

    @property
    def parts(self) -> dict[str, float]:
        """What adds up to `value`: the risk, the error of its estimate, the price of n examples, and that of KL."""
        without = BOUNDS["seeger"](self.sampled, 0.0, self.n, self.delta * (1 - SAMPLING), self.most)
        return {
            "empirical risk": self.risk,
            "its estimate": self.sampled - self.risk,
            "few examples": without - self.sampled,
            "KL": self.value - without,
        }


def certify(
    name: str,
    posterior: Centre,
    prior: Centre,
    shape: Shape,
    scale: float,
    risk: StochasticRisk,
    n: int,
    *,
    delta: float,
    most: float = 1.0,
    support: float = 0.0,
) -> Certificate:
    """The bounds for Q = N(posterior, scale^2 M) and P = N(prior, scale^2 M).

    `prior`, `scale` and `shape` must not depend on the n examples; `posterior` may. One fifth of delta goes to the
    estimate of r(Q): `risk` must have been measured with `delta_of_draws(delta)`.

    Args:
        name: of the prior.
        support: nats, where the examples chose the trained entries (`divergence.support`).

    Raises:
        HoldfastError: other tensors in the prior than in the posterior, or what the bounds refuse.
    """
    if posterior.keys() != prior.keys():
        raise HoldfastError(f"the prior {name} is of other tensors than the posterior")
    dimensions = sum(tensor.numel() for tensor in posterior.values())
    divergence = scaled(dimensions, scale, scale, distance(shape, posterior, prior)) + support
    left = delta * (1 - SAMPLING)
    bounds = {key: bound(most * risk.most, divergence, n, left, most) for key, bound in BOUNDS.items()}
    return Certificate(name, divergence, support, n, delta, most * risk.mean, most * risk.most, bounds, most)


def delta_of_draws(delta: float) -> float:
    """The part of delta that the estimate of r(Q) may fail with."""
    return delta * SAMPLING


def as_figures(found: Mapping[str, Certificate]) -> dict[str, Any]:
    """For a JSON file."""
    return {
        name: {**vars(one), "value": one.value, "vacuous": one.vacuous, "parts": one.parts}
        for name, one in found.items()
    }
