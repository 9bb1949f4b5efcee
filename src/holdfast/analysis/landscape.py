"""How the loss lies around a model's weights: along random and telling directions, beside a random initialisation.

L(theta + alpha d) on a fixed set of batches, in eval mode. Whether pre-training makes the landscape of new data one of
large oscillations (SIFT, arXiv 2312.11875v1, abstract) can be seen there.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.analysis.curves import Shape, shape
from holdfast.analysis.directions import Direction, Gaussian, Normalise, Place, Steepest, Towards
from holdfast.analysis.losses import Losses
from holdfast.analysis.moving import Moving, moving
from holdfast.errors import HoldfastError
from holdfast.likelihood import ForwardLoss, bare
from holdfast.progress import track
from holdfast.shifts.shift import Shift

PRETRAINED, RANDOM = "pre-trained", "randomly initialised"
FLOOR = 1e-4  # nats: what float32 sums of another order differ by is a hundredth of it
TAU = 0.1  # nats


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Args:
        span: alpha goes from -span to span; at 1 a normalised direction is as long as the weights themselves.
        points: along a line; odd, so that alpha = 0 is one.
        seeds: random directions for each starting point.
        plane: points along each side of a plane of two random directions; odd, or 0 for none.
        normalise: of random directions, as in `directions.Gaussian`.
        floor: nats; see `curves.shape`.
        tau: nats; see `curves.shape`.
        seed: of the directions and of the random initialisation.
    """

    span: float = 1.0
    points: int = 41
    seeds: int = 5
    plane: int = 9
    normalise: Normalise = "filter"
    floor: float = FLOOR
    tau: float = TAU
    seed: int = 0

    def check(self) -> None:
        """Raise HoldfastError for a grid that is none."""
        for name, value, odd in (("points", self.points, self.points), ("plane", self.plane, self.plane or 1)):
            if odd % 2 == 0 or (name == "points" and value < 5) or value < 0 or value in (1, 2):
                raise HoldfastError(
                    f"{name} is {value}",
                    wanted="an odd number of 5 or more" if name == "points" else "0, or an odd number of 3 or more",
                    remedy=f"{name}={max(value | 1, 5)}",
                )
        for name, number in (("span", self.span), ("tau", self.tau)):
            if not (number > 0 and math.isfinite(number)):
                raise HoldfastError(f"{name} is {number}", wanted="a number above 0")
        if self.seeds < 1 or self.floor < 0:
            raise HoldfastError(f"seeds={self.seeds}, floor={self.floor}", wanted="seeds >= 1 and floor >= 0")

    def alphas(self, points: int) -> list[float]:
        """From -span to span; the middle is exactly 0."""
        half = points // 2
        return [self.span * (i - half) / half for i in range(points)]


@dataclass(frozen=True)
class Curve:
    """Losses along one direction from one start; NaN where they are not finite."""

    start: str
    direction: str
    seed: int | None
    alphas: list[float]
    losses: list[float]
    shape: Shape | None


@dataclass(frozen=True)
class Plane:
    """Losses over theta + x d1 + y d2: losses[row of y][column of x]; both directions orthogonal."""

    start: str
    alphas: list[float]
    losses: list[list[float]]


@dataclass
class Landscape:
    """What was measured: curves and planes, the loss at each start, and the size of what moves."""

    grid: Grid
    curves: list[Curve] = field(default_factory=list)
    planes: list[Plane] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    moved: int = 0  # entries

    def of(self, start: str, direction: str = "gaussian") -> list[Curve]:
        """The curves of one start and direction."""
        return [curve for curve in self.curves if curve.start == start and curve.direction == direction]


def landscape(
    model: nn.Module,
    batches: Any,
    grid: Grid | None = None,
    *,
    tuned: Mapping[str, Tensor | Shift] | None = None,
    gradient: bool = True,
    random: nn.Module | bool = True,
    forward_loss: ForwardLoss | None = None,
    progress: bool = False,
) -> Landscape:
    """Measure the landscape of the batches' loss around a model and around a random initialisation of it.

    Directions are made from their seed tensor by tensor and never stored; of each model one copy of the weights is
    kept while it moves, from which they come back to the last bit, checked by a hash, also after an interruption.
    Weights are moved in float32 and written in the model's own precision: of a bfloat16 model the finest steps are
    lost in its rounding.

    Args:
        model: the bare model; a transformers model, or any module together with `forward_loss`.
        batches: of new data, as for `Anchor.estimate`; the same for every point.
        grid: what is measured; None: `Grid()`.
        tuned: what the weights came to, as a direction from the pre-trained start: layer name -> its shift
            (`holdfast.shifts(peft_model)`), or parameter name -> difference.
        gradient: also along minus the gradient.
        random: a randomly initialised model of the same architecture, or True: one is made from a transformers model's
            configuration (`random_twin`); False: none. A head that the pre-trained model has no weights for should be
            the same in both.
        forward_loss: as for `Anchor.estimate`.
        progress: show a bar.

    Raises:
        HoldfastError: a grid that is none, no batch, adapters on the model, moved weights of another model, or a loss
            that is not finite at the start.
    """
    grid = grid or Grid()
    grid.check()
    starts = {PRETRAINED: model}
    if random is not False:
        starts[RANDOM] = random_twin(model, grid.seed) if random is True else random
    found = Landscape(grid)
    lines = len(starts) * (grid.seeds + gradient) + (tuned is not None)
    with track(
        "landscape", lines * grid.points + len(starts) * grid.plane**2, shown=progress, unit="point"
    ) as advance:
        for name, start in starts.items():
            measure = Losses(start, batches, forward_loss)
            with moving(start) as weights:
                found.losses[name] = measure.start()
                found.moved = sum(place.parameter.numel() for place in weights.places)
                for seed, direction in _directions(grid, weights.places, measure, gradient):
                    found.curves.append(_line(name, direction, seed, grid, weights, measure, advance))
                if tuned is not None and start is model:
                    towards = Towards(model, tuned)
                    towards.check(weights.places)
                    found.curves.append(_line(name, towards, None, grid, weights, measure, advance))
                if grid.plane:
                    found.planes.append(_plane(name, grid, weights, measure, advance))
    return found


def random_twin(model: nn.Module, seed: int = 0) -> nn.Module:
    """A randomly initialised model of the same configuration, on the same device and in the same precision.

    Raises:
        HoldfastError: not a transformers model, so how it is initialised is not known.
    """
    inner: Any = bare(model)
    if not hasattr(inner, "config"):
        raise HoldfastError(
            f"{type(inner).__name__} is not a transformers model, so its random initialisation is not known",
            remedy="pass random=a freshly made model, or random=False",
        )
    first = next(inner.parameters())
    devices = [] if first.device.type == "cpu" else [first.device]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        made = type(inner)(copy.deepcopy(inner.config))
    return made.to(first.device, first.dtype).eval()


def _directions(
    grid: Grid, known: Sequence[Place], measure: Losses, gradient: bool
) -> list[tuple[int | None, Direction]]:
    found: list[tuple[int | None, Direction]] = [
        (seed, Gaussian(seed, grid.normalise)) for seed in range(grid.seed, grid.seed + grid.seeds)
    ]
    if gradient:
        parameters = {place.name: place.parameter for place in known}
        found.append((None, Steepest(measure.gradients(parameters), list(known))))
    return found


def _line(
    start: str,
    direction: Direction,
    seed: int | None,
    grid: Grid,
    weights: Moving,
    measure: Losses,
    advance: Callable[[], object],
) -> Curve:
    alphas, losses = grid.alphas(grid.points), []
    for alpha in alphas:
        weights.to([(alpha, direction)])
        losses.append(measure())
        advance()
    return Curve(start, direction.name, seed, alphas, losses, shape(alphas, losses, floor=grid.floor, tau=grid.tau))


def _plane(start: str, grid: Grid, weights: Moving, measure: Losses, advance: Callable[[], object]) -> Plane:
    """The first random direction, which is also a line, and the second made orthogonal to it."""
    across = Gaussian(grid.seed, grid.normalise)
    up = Gaussian(grid.seed + 1, grid.normalise, beside=across)
    alphas = grid.alphas(grid.plane)
    losses: list[list[float]] = [[] for _ in alphas]
    for row, y in zip(losses, alphas, strict=True):
        for x in alphas:
            weights.to([(x, across), (y, up)])
            row.append(measure())
            advance()
    return Plane(start, alphas, losses)
