"""When a pass over source data is enough, and how far it has come."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.curvature.curvature import Curvature
from holdfast.errors import HoldfastError
from holdfast.measuring.halves import Halves

FIRST = 4  # rounds before the halves are compared: two for each
GROWTH = 1.25  # of the items from one comparison to the next
TWICE = 2  # comparisons in a row that have to be good enough: one may be so by chance


@dataclass
class Progress:
    """How far a pass has come.

    Attributes:
        batches: over all ranks.
        rounds: which the halves take in turn, where there are two.
        items: of each half.
        agreement: what the last comparison of the halves came to.
        compare_at: items at which the next one is due.
        settled: the last comparisons in a row that were good enough.
    """

    batches: int = 0
    rounds: int = 0
    items: list[int] = field(default_factory=lambda: [0, 0])
    agreement: float | None = None
    compare_at: float = 0.0
    settled: int = 0


@dataclass(frozen=True)
class Extent:
    """How much of the source is read: all of it, so many scored items, or until the curvature is that well known."""

    max_items: int | None = None
    until: float | None = None

    def enough(self, done: Progress, halves: Halves) -> bool:
        """Whether the halves were found to agree, comparison after comparison; all ranks must ask."""
        if self.until is None or done.rounds < FIRST or sum(done.items) < done.compare_at:
            return False
        done.agreement = halves.agreement(done.items)
        done.compare_at = sum(done.items) * GROWTH
        done.settled = done.settled + 1 if done.agreement < self.until else 0
        return done.settled >= TWICE

    def report(self, done: Progress, halves: Halves) -> None:
        """Warn where the data ended first; all ranks must ask."""
        if self.until is None or done.settled >= TWICE:
            return
        if all(done.items):
            done.agreement = halves.agreement(done.items)
        if done.agreement is None or done.agreement >= self.until:
            reached = (
                "they are too few to compare" if done.agreement is None else f"they agree to {done.agreement:.2g}"
            )
            limited = self.max_items is not None and sum(done.items) >= self.max_items
            ended = f"max_items={self.max_items} stopped it" if limited else "the source ended"
            more = "A larger max_items" if limited else "More source data"
            warnings.warn(
                f"{ended} after {sum(done.items)} items, before two halves agreed to {self.until:.2g}: {reached}. "
                f"{more} would make the curvature better known",
                stacklevel=2,
            )


def check_extent(until: float | None, checkpoint: str | Path | None, shard: bool, kind: type[Curvature]) -> None:
    """Raise HoldfastError for a stopping rule that is none, and for one where there is nothing to stop."""
    if until is not None and not 0 < until < 1:
        raise HoldfastError(f"until={until}", wanted="a relative error above 0 and below 1, 0.02 say")
    asked = [n for n, v in {"until": until, "checkpoint": checkpoint, "shard": shard or None}.items() if v is not None]
    if asked and not kind.statistics():
        raise HoldfastError(
            f"curvature {kind.kind!r} is not measured, so {', '.join(asked)} can't be meant", remedy="leave it out"
        )
