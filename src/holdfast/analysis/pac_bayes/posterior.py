"""The posterior: noise around the tuned weights, as much as the loss bears, and the risk under that noise."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.analysis.pac_bayes.bounds import bernstein, sampled
from holdfast.analysis.pac_bayes.risk import Losses
from holdfast.analysis.pac_bayes.shape import Shape
from holdfast.errors import HoldfastError
from holdfast.shifts.shift import precise

Parameters = Mapping[str, nn.Parameter]
Centre = Mapping[str, Tensor]
CREDIT = 0.1  # a draw may lower its example's loss by this much at most, in the books
LEAST, MOST = 2.0**-24, 2.0**4  # scales between which the noise is sought


def centre(parameters: Parameters) -> dict[str, Tensor]:
    """The parameters' values, copied."""
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def put(parameters: Parameters, values: Centre) -> None:
    """Write values into the parameters, in place."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@contextmanager
def drawn(
    parameters: Parameters, around: Centre, shape: Shape, scale: float, generator: torch.Generator
) -> Iterator[None]:
    """The parameters as one draw of N(around, scale^2 M); afterwards they are `around`, to the bit.

    The draw is made in float32 or better and rounded once, to the weights' own precision. Rounding is then a function
    of the draw alone, the same for prior and posterior, and can only lower KL.
    """
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                middle = precise(around[name])
                parameter.copy_(middle + scale * shape.noise(name, middle, generator))
        yield
    finally:
        put(parameters, around)


def noise_scale(
    risk: Callable[[], float],
    parameters: Parameters,
    around: Centre,
    shape: Shape,
    *,
    tolerance: float,
    draws: int = 4,
    rounds: int = 12,
    seed: int = 0,
) -> float:
    """The largest s with mean over draws of r(around + s M^(1/2) e) - r(around) <= tolerance, by bisection on ln s.

    The same draws e serve every s. Where the mean does not rise with s throughout, one of its crossings is found.

    Args:
        risk: the mean loss with the parameters as they are.
        parameters: live.
        around: the centre; the parameters are there afterwards.
        shape: M.
        tolerance: in the risk's unit.
        draws: m.
        rounds: halvings; 12 tell s to 0.3 %.
        seed: of the draws.
    """
    put(parameters, around)
    start = risk()

    def rise(scale: float) -> float:
        generator, total = torch.Generator().manual_seed(seed), 0.0
        for _ in range(draws):
            with drawn(parameters, around, shape, scale, generator):
                total += risk()
        return total / draws - start

    low, high = math.log(LEAST), math.log(MOST)
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if rise(math.exp(middle)) <= tolerance else (low, middle)
    return math.exp(low)


@dataclass(frozen=True)
class StochasticRisk:
    """r(Q), the mean loss on the examples of a model drawn from Q, in [0, 1].

    Args:
        centre: the loss at Q's centre, exact.
        mean: the estimate of r(Q).
        most: what r(Q) is at most, with probability 1 - delta over the draws.
        draws: how many.
    """

    centre: float
    mean: float
    most: float
    draws: int


def stochastic_risk(
    model: nn.Module,
    parameters: Parameters,
    around: Centre,
    shape: Shape,
    scale: float,
    examples: Sequence[Any],
    losses: Losses,
    *,
    draws: int,
    delta: float,
    seed: int = 0,
    advance: Callable[[], object] | None = None,
) -> StochasticRisk:
    """Bound r(Q) from draws of its own, each of fresh noise and one example drawn with replacement.

    Each draw's difference from the same example's loss at the centre is an independent number in [-1, 1] whose
    expectation is r(Q) - r(centre). Differences below -0.1 are raised to -0.1, which can only raise their expectation
    and shortens the interval. `most` is the lesser of two bounds, each with half of delta: Bernstein's of these
    differences (they differ little), and Langford and Caruana's of the losses (where they are near 0).

    Raises:
        HoldfastError: fewer than 2 draws.
    """
    if draws < 2:
        raise HoldfastError(f"{draws} draws", wanted="2 or more; the risk's own error falls with them")
    put(parameters, around)
    exact = losses.of(model, examples)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(exact), (draws,), generator=generator)
    found = torch.empty(draws, dtype=torch.float64)
    for i, index in enumerate(chosen.tolist()):
        with drawn(parameters, around, shape, scale, generator):
            found[i] = losses.of(model, [examples[index]])[0]
        if advance is not None:
            advance()
    return _covered(exact, exact[chosen], found, delta)


def _covered(exact: Tensor, before: Tensor, found: Tensor, delta: float) -> StochasticRisk:
    """From all examples' losses at the centre, and of the drawn ones those at the centre and under noise."""
    differences, draws = found - before, len(found)
    raised = differences.clamp(min=-CREDIT)
    start, mean = float(exact.mean()), float(differences.mean())
    by_variance = start + bernstein(float(raised.mean()), float(raised.var()), draws, delta / 2, 1 + CREDIT)
    most = min(by_variance, sampled(float(found.mean()), draws, delta / 2), 1.0)
    return StochasticRisk(start, min(max(start + mean, 0.0), 1.0), most, draws)
