"""Measured forgetting: how far source batches that nothing else uses have got worse."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from holdfast.batches import batches_of, to_device
from holdfast.budgets.budget import Budget
from holdfast.errors import HoldfastError
from holdfast.evaluation import not_finite
from holdfast.layers import device_of
from holdfast.likelihood import ForwardLoss, Items
from holdfast.pretrained import adapters_off, evaluating
from holdfast.progress import track

# Items that a forgetting of B nats takes: the log-ratio of two models that are KL = B apart has a variance of about
# 2 B per item, so N items tell B to a share of sqrt(2 / (B N)); documents that differ make it up to twice that.
TELLING = 66.0  # N B for one look of several: a share of 0.17, twice that with documents that differ
FEWEST, BATCHES = 4000, 4  # items and batches of a look, where there are so many
DIFFERING = 2.0  # by which documents that differ widen the error, where a few batches can't tell
BLURRED = 50.0  # N B below which a measurement is off by more than a fifth
BLIND = 8.0  # N B below which it is off by more than half


@dataclass(frozen=True)
class Reading:
    """Forgetting in the budget's unit, its standard error over batches, the items, and their mean loss now in nats."""

    amount: float
    error: float
    items: int
    loss: float


class Gauge:
    """Losses of a model's batches before training against now; a few batches at a time, in turns.

    Prepare it, or restore its state, before the model has moved; of a model with adapters it takes the model without
    them as what was before. Under torch.distributed each rank reads its share.

    Args:
        model: the model that is trained.
        source: batches as for `Anchor.estimate`; they should serve no other purpose, so that they don't flatter.
        budget: what is measured; None: the rise of the loss, in nats per item.
        forward_loss: of models that are not of transformers, as for `Anchor.estimate`.
        name: of the data, for errors and progress.
        progress: show a bar when all batches are measured.

    Raises:
        HoldfastError: no batches, or too few items to tell the budget from chance.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Any,
        budget: Budget | None = None,
        forward_loss: ForwardLoss | None = None,
        *,
        name: str = "source",
        progress: bool = False,
    ) -> None:
        self.model, self.budget, self.name, self.progress = model, budget, name, progress
        self.reader = Items(model, forward_loss)
        self.batches = list(batches_of(source))
        if not self.batches:
            raise HoldfastError(
                "no source batches to measure forgetting on", remedy="pass some, or leave held_out out"
            )
        self.before: Tensor | None = None  # (batches, 3): summed nats, items, right answers
        self.turn = 0

    def prepare(self) -> None:
        """Measure what was before, once.

        Raises:
            HoldfastError: no scored item, or a budget that so few items can't measure.
        """
        if self.before is None:
            with adapters_off(self.model):
                self.before = self._sums(list(range(len(self.batches))), "before")
            check_measurable(self.budget, self.loss, self.items, self.name)

    @property
    def items(self) -> int:
        """Scored items in all batches."""
        return int(self._known[:, 1].sum())

    @property
    def loss(self) -> float:
        """The mean loss before, in nats per item."""
        return float(self._known[:, 0].sum() / self._known[:, 1].sum().clamp_min(1))

    @property
    def _known(self) -> Tensor:
        self.prepare()
        assert self.before is not None
        return self.before

    def look(self, *, whole: bool = False, quiet: bool = False) -> Reading:
        """What is forgotten now: on the next few batches, enough to tell the budget, or on all of them.

        The turns go on where they were after a look at all of them.
        """
        known = self._known
        count = len(self.batches)
        if not whole and self.budget is not None:
            wanted = telling_items(self.budget, self.budget.limit(self.loss))
            count = min(count, max(BATCHES, math.ceil(wanted * len(self.batches) / self.items)))
        chosen = [(self.turn + i) % len(self.batches) for i in range(count)]
        self.turn = (self.turn + count) % len(self.batches)
        return reading(known[chosen], self._sums(chosen, "after" if whole and not quiet else ""), self.unit)

    def uncertainty(self, seen: Reading) -> float:
        """A standard error that a few batches alike by chance don't make small: at least what N items can tell."""
        if self.budget is None:
            return seen.error
        least = DIFFERING * math.sqrt(2 * max(seen.amount, 0) * _variance(self.budget) / seen.items)
        return max(seen.error, least) if math.isfinite(seen.error) else max(least, abs(seen.amount) / 2)

    @property
    def unit(self) -> str:
        """What forgetting is measured in."""
        return "nats" if self.budget is None else self.budget.unit

    @torch.no_grad()
    def _sums(self, chosen: list[int], when: str = "") -> Tensor:
        """(chosen, 3) float64 on the CPU, complete on every rank; with a bar where it has a name."""
        together = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        device = device_of(self.model)
        sums = torch.zeros(len(chosen), 3, dtype=torch.float64)
        own = range(rank, len(chosen), world)
        bar = track(f"{self.name} {when}", len(own), shown=self.progress and bool(when))
        with evaluating(self.model), bar as advance:
            for place in own:
                said = self.reader.read(to_device(self.batches[chosen[place]], device))
                right = said.right() if self.unit == "points" else 0
                sums[place] = torch.tensor([float(said.loss()), said.items, right], dtype=torch.float64)
                advance()
        if together:
            shared = sums.to(device)
            dist.all_reduce(shared)
            sums = shared.cpu()
        if not bool(torch.isfinite(sums).all()):
            raise not_finite(f"{self.name} {when}".strip(), float(sums[:, 0].sum()))
        return sums

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, in JSON's types."""
        return {"before": None if self.before is None else self.before.tolist(), "turn": self.turn}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            HoldfastError: it is of other batches.
        """
        before = state["before"]
        if before is not None and len(before) != len(self.batches):
            raise HoldfastError(
                f"the run measured {len(before)} batches, and now there are {len(self.batches)}",
                remedy="resume with the same held_out batches",
            )
        self.before = None if before is None else torch.tensor(before, dtype=torch.float64)
        self.turn = state["turn"]


def reading(before: Tensor, now: Tensor, unit: str) -> Reading:
    """The rise of the mean loss, or the fall of the accuracy in points, between sums (batches, 3) of the same batches.

    With d_j the batch's difference and n_j its items, D = sum d / sum n, and batches as clusters: var D =
    J / (J - 1) sum (d_j - D n_j)^2 / (sum n)^2. No error is known of a single batch (infinite).
    """
    items = before[:, 1]
    moved = 100 * (before[:, 2] - now[:, 2]) if unit == "points" else now[:, 0] - before[:, 0]
    total, clusters = items.sum(), len(items)
    mean = moved.sum() / total
    spread = (moved - mean * items).square().sum() * clusters / max(clusters - 1, 1)
    error = float(spread.sqrt() / total) if clusters > 1 else math.inf
    return Reading(float(mean), error, int(total), float(now[:, 0].sum() / total))


def telling_items(budget: Budget, limit: float) -> float:
    """Items that tell the limit in one look of several."""
    return max(TELLING / _per_item(budget, limit), FEWEST)


def _variance(budget: Budget) -> float:
    """By what a forgetting has to be multiplied to be half its variance per item: 1 in nats, 50 in points."""
    return 50.0 if budget.unit == "points" else 1.0


def _per_item(budget: Budget, limit: float) -> float:
    """The limit as the variance per item that it brings, in the same unit squared: nats, or a share of the answers.

    To lose p points of accuracy at least p in 100 answers change, each by 1: the variance is at least p / 100, and
    the share sqrt(100 / (p N)).
    """
    return limit / _variance(budget)


def check_measurable(budget: Budget | None, loss: float, items: int, name: str) -> None:
    """Raise HoldfastError where so many items can't tell the budget from chance, and warn where they hardly can."""
    if items == 0:
        raise HoldfastError(f"{name}: no scored item to measure a loss on", remedy="give more data")
    if budget is None:
        return
    limit = budget.limit(loss)
    certain = items * _per_item(budget, limit)
    if certain >= BLURRED:
        return
    if certain >= BLIND:
        warnings.warn(
            f"{items:,} items of the {name} data measure a budget of {budget.words(loss)} to about "
            f"{(2 / certain) ** 0.5:.0%}; {math.ceil(items * BLURRED / certain):,} would to 20%",
            stacklevel=2,
        )
        return
    half, fifth = (share / certain * limit for share in (BLIND, BLURRED))
    raise HoldfastError(
        f"a budget of {budget.words(loss)} is below what {items:,} items of the {name} data can measure",
        wanted=f"a budget of {half:.2g} {budget.unit} or more (measured to a half; {fifth:.2g}: to a fifth)",
        remedy=f"give at least {math.ceil(items * BLIND / certain):,} items to measure on: more source data, or a "
        "larger part of it (--set held_out=SHARE, --set steering=SHARE)",
    )
